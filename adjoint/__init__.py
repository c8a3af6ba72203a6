"""The engine: contract, primitives, state store, verdicts, policies, conformance.

Imports jax and numpy only, and knows no library.
"""

"""The conformance checks: one function per property that the contract promises.

None knows a solver by name. What applies is decided by the solver's capabilities and by the methods
that it defines; the problems are its own `example` and `unsolvable`.
"""

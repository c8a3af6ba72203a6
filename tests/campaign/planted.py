"""Families with faults, to show that the campaign finds them: not part of it."""

import os
import time

from .case import Case, Family

__all__ = ["FAMILIES"]


def sound(rng):
    return Case("trusted", float(rng.uniform(0, 1e-5)), True, {"drawn": rng.random()})


def miss(rng):
    return Case("trusted", float(rng.choice([1.0, float("inf"), float("nan")])), False)


def false_alarm(rng):
    del rng
    return Case("untrusted", 1e-9, True)


def honest(rng):
    return Case("untrusted", float(rng.choice([1e-2, float("inf")])), True)


def error(rng):
    raise ZeroDivisionError(f"planted {rng.random()}")


def hang(rng):
    time.sleep(rng.uniform(600, 601))
    return sound(rng)


def death(rng):
    del rng
    os.abort()


FAULTS = (sound, miss, false_alarm, honest, error, hang, death)
FAMILIES = tuple(Family(fault.__name__, f"planted {fault.__name__}", fault) for fault in FAULTS)

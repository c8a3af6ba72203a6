"""Who has PETSc objects: these are destroyed inside of PETSc's lock and before its end, or never.

Quirks: destructors run in any thread, while another one may be inside PETSc; so they put objects
aside until the next entry. What is left to PETSc's own end is destroyed there by PETSc 3.18, when
the interpreter is gone that Python's parts of it need. After an error in the midst of a solve,
vectors are locked and parts half replaced, and to destroy them may end the process.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any, ClassVar

from .transpose import DIRECT

__all__ = ["Owner", "destroy_all", "empty"]

_living: weakref.WeakSet[Owner] = weakref.WeakSet()
_garbage: deque[Any] = deque()


class Owner:
    """What has PETSc objects of its own, which end with it.

    Attributes:
        owns: The names of the attributes that hold them, if they are there already.
    """

    owns: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, *args: Any, **keywords: Any):
        """Enter it in the list of those that are alive."""
        del args, keywords
        made = super().__new__(cls)
        _living.add(made)
        return made

    def owned(self) -> list[Any]:
        """Return the objects."""
        objects = [getattr(self, name, None) for name in self.owns]
        return [each for each in objects if each is not None]

    def abandon(self) -> None:
        """Have the objects never destroyed, since an error was raised in the midst of their use."""
        for each in self.owned():
            each.incRef()

    def __del__(self, discard=_garbage.extend):  # bound: at exit, globals go before the last owners
        discard(self.owned())


def empty() -> None:
    """Destroy what was put aside."""
    while _garbage:
        each = _garbage.popleft()
        if each.handle and each.comm.size > 1:
            continue  # petsc4py puts it aside in its turn, until all ranks destroy it together
        if each.handle and _must_stay(each):
            each.incRef()
        each.destroy()


def _must_stay(each: Any) -> bool:
    """Tell whether this is a solver by SuperLU_DIST.

    Of two that are alive at once, PETSc (3.18 for one) frees the communicator of the second twice:
    when it is destroyed, and when the process ends.
    """
    solver = each.getKSP() if hasattr(each, "getKSP") else each
    if not hasattr(solver, "getPC"):
        return False
    pc = solver.getPC()
    return pc.getType() in DIRECT and pc.getFactorSolverType() == "superlu_dist"


def destroy_all() -> None:
    """Destroy all objects that there are."""
    for owner in list(_living):
        _garbage.extend(owner.owned())
    empty()

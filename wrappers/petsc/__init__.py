"""PETSc, through petsc4py: linear systems by KSP, nonlinear ones by SNES.

Quirks, each handled in the file that is named: option lifetimes (`options`), transposed solves that
lie or poison (`transpose`), one thread at a time (`library`), the order of destruction (`owner`),
values that are replaced in place (`matrices`, `workspace`), reasons and errors (`reasons`,
`errors`), and GPUs (`device`, `buffers`, `on_device`).
"""

from .existing_ksp import from_ksp as from_ksp
from .existing_snes import from_snes as from_snes
from .ksp import KSP as KSP
from .snes import SNES as SNES
from .solve import ksp as ksp
from .solve import snes as snes

__all__ = ["KSP", "SNES", "from_ksp", "from_snes", "ksp", "snes"]

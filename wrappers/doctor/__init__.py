"""What is here of backsolve and its libraries, and whether it works: `python -m backsolve doctor`.

Quirks: a broken library may end its process, or never return, when it is imported, used or left. So
each is examined in a process of its own, which has a time limit. MPI may be started once for each
rank of a launcher: what starts it shares one process.
"""

from .launch import launched as launched
from .report import Report as Report
from .report import diagnose as diagnose

__all__ = ["Report", "diagnose", "launched"]

"""Less compiling, on which most of the time of the tests is spent.

Here programs run a few times only: they need not be fast, but quickly made, see `QUICK`. And what
was made is kept from run to run: JAX keeps programs in a folder, but writes a file in place: a
process that reads at that moment, or after one that was killed, finds half of it. So each process
with tests has a folder of its own, with links to what is kept, and hands on at its end what is
whole. Programs with callbacks, those of this package, are never kept. `BACKSOLVE_PROGRAMS` names
another place; nothing depends on it.
"""

import atexit
import hashlib
import os
import platform
import shutil
import sys
import tempfile
import zlib
from importlib.metadata import version
from pathlib import Path

MOST = 512 << 20  # bytes that are kept; above, all are made again
# For processes that would write the same file at the same moment, or that are to compile.
NOT_KEPT = {"JAX_ENABLE_COMPILATION_CACHE": "0"}
# For programs that run a few times. `conftest.py` sets it for the tests' own process, unless it is
# set; what times, races or counts memory does so in processes of its own, as users compile it. (XLA
# is quicker still without its fusion emitters, but the LLVM of JAX 0.10 then makes wrong code.)
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def keep_programs() -> dict[str, str]:
    """Return the settings that let JAX read what is kept, in this process and those it starts."""
    kept = _place()
    own = Path(tempfile.mkdtemp(prefix="backsolve-programs-"))
    atexit.register(_hand_on, own, kept, os.getpid())
    try:
        kept.mkdir(parents=True, exist_ok=True)
        for file in os.scandir(kept):
            _give(Path(file.path), own / file.name)
    except OSError:  # read-only, or somebody removes it at this moment
        pass
    return {
        "JAX_COMPILATION_CACHE_DIR": str(own),
        "JAX_ENABLE_COMPILATION_CACHE": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _place() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get("BACKSOLVE_PROGRAMS") or cache / "backsolve" / "programs")
    # For other processors XLA compiles other code. JAX knows, but complains.
    try:
        processor = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0]
    except (OSError, IndexError):
        processor = platform.processor()
    made_for = f"{platform.machine()} {processor} {sys.version} {version('jaxlib')}"
    return root / hashlib.sha256(made_for.encode()).hexdigest()[:16]


def _hand_on(own: Path, kept: Path, process: int) -> None:
    if os.getpid() != process:  # a fork
        return
    try:
        size = sum(file.stat().st_size for file in os.scandir(kept))
        if size > MOST:
            shutil.rmtree(kept)
            kept.mkdir()
        for file in own.glob("*-cache"):
            if not (kept / file.name).exists() and _whole(file):
                _give(file, kept / file.name)
    except OSError:
        pass
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _give(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except FileExistsError:  # another process was first
        pass
    except OSError:  # another file system
        part = place.with_name(f"part-{os.getpid()}")
        shutil.copyfile(file, part)
        part.replace(place)


def _whole(file: Path) -> bool:
    # With the package zstandard JAX compresses otherwise: then nothing is handed on.
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(file.read_bytes())
    except zlib.error:
        return False
    return decompressor.eof

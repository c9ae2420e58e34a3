"""What serves `malloc` in a benchmark's process.

XLA allocates each output of a CPU program aligned to 64 bytes, which glibc's allocator is slow at: it cuts such
blocks out of larger ones, and its caches per thread do not serve them. The time of a step with hundreds of outputs
then depends on what the process allocated before.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

_PACKAGE, _LIBRARY = "cmeel-mimalloc", "libmimalloc.so"
NAME = "mimalloc"


def alternative() -> Path | None:
    """The other allocator's library that the benchmarks' environment has, to be preloaded; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.name == _LIBRARY)
    return next(iter(found), None)


def is_in_use() -> bool:
    """Whether it serves this process."""
    try:
        return f"/{_LIBRARY}" in Path("/proc/self/maps").read_text()
    except OSError:
        return False

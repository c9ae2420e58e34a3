"""Which of ThreadSanitizer's reports are about treadle.

CPython and jaxlib are not instrumented. XLA's locks wait on futexes directly, which ThreadSanitizer does
not see, so it takes whatever they guard for unguarded: a program that only uses jax gives a hundred
reports. A suppression would match anywhere in a stack, and hide treadle where jaxlib calls it. Here a
report counts if one of its two accesses was made by treadle's own code, directly or through the C and C++
libraries.
"""

import re
from pathlib import Path

_RUNTIMES = re.compile(r"\((libtsan|libstdc\+\+|libc|libgcc_s)\b[^)]*\)$")
_ACCESS = re.compile(r"^  (?:Previous )?(?:atomic )?(?:write|read) of size", re.IGNORECASE)


def reports(prefix: Path) -> tuple[list[str], int]:
    """The reports about treadle in the logs that start with `prefix`, and the number of all reports."""
    found: list[str] = []
    total = 0
    for log in sorted(prefix.parent.glob(f"{prefix.name}.*")):
        for report in log.read_text(errors="replace").split("=" * 18):
            if "WARNING: ThreadSanitizer" not in report:
                continue
            total += 1
            if any("(_core." in frame for frame in culprits(report)):
                found.append(report)
    return found, total


def culprits(report: str) -> list[str]:
    """The frame that each access of a report was made from; the first frame if it names no access."""
    frames: list[str] = []
    looking = not any(_ACCESS.match(line) for line in report.splitlines())
    for line in report.splitlines():
        if _ACCESS.match(line):
            looking = True
        elif looking and line.startswith("    #") and not _RUNTIMES.search(line):
            frames.append(line)
            looking = False
    return frames

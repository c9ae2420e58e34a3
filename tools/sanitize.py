"""Run the suite on a build that watches itself. Run by `make sanitize`.

By default that is AddressSanitizer and UndefinedBehaviorSanitizer over everything. ``--thread`` is
ThreadSanitizer over the tests with threads, and ``--growth`` counts the core's objects to find what
each run of a test leaves behind.

The interpreter is not instrumented, so the sanitizer's runtime is preloaded. CPython's own allocator is
replaced by malloc, or the sanitizer would not see what happens inside its arenas.
"""

import argparse
import os
import platform
import subprocess
import sys

import races
from instrumented import ROOT, build, library

RUNTIMES = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}
RACES = ROOT / "build" / "sanitize-thread" / "report"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--sanitizers", default="address,undefined", help="as -fsanitize takes them")
    kind.add_argument("--thread", action="store_true", help="ThreadSanitizer, tests with threads")
    kind.add_argument("--growth", action="store_true", help="no sanitizer: count objects instead")
    parser.add_argument("--jobs", default="2", help="pytest processes")
    parser.add_argument("--short", action="store_true", help="leave out the tests marked slow")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()

    sanitizers = "thread" if options.thread else "" if options.growth else options.sanitizers
    python = build(
        f"sanitize-{sanitizers.replace(',', '-') or 'growth'}",
        {"TREADLE_DEBUG": "ON", "TREADLE_SANITIZE": sanitizers},
    )
    # ThreadSanitizer maps fixed addresses, which a randomized layout may have taken.
    command = ["setarch", platform.machine(), "-R"] if options.thread else []
    command += [python, "-m", "pytest", "-q", "-n", options.jobs, "-p", "no:cacheprovider"]
    command += ["-m", "not slow"] if options.short else []
    command += ["--growth"] if options.growth else []
    everything = ["tests/reliability/test_threads.py"] if options.thread else ["tests"]
    command += options.pytest or everything
    for old in RACES.parent.glob(f"{RACES.name}.*"):
        old.unlink()
    done = subprocess.run(command, cwd=ROOT, env=environment(sanitizers), check=False)
    if "thread" in sanitizers.split(","):
        ours, total = races.reports(RACES)
        print(*ours, f"{len(ours)} reports about treadle, {total} in all", sep="\n")
        sys.exit(done.returncode or bool(ours))
    sys.exit(done.returncode)


def environment(sanitizers: str) -> dict[str, str]:
    """What an instrumented extension needs in a plain interpreter."""
    if not sanitizers:
        return os.environ | {"JAX_PLATFORMS": "cpu"}
    libraries = [library(RUNTIMES[name]) for name in sanitizers.split(",")]
    # Exceptions are thrown through jaxlib, which links libstdc++ itself: it has to be there when the
    # runtime looks for the functions that it intercepts.
    libraries.append(library("libstdc++.so.6"))
    return os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONMALLOC": "malloc",
        "JAX_PLATFORMS": "cpu",
        # CPython and jaxlib keep memory until the process ends, and none of their frames can be told from
        # ours in a report: what the core leaves behind is counted instead (--growth).
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # Most reports are about XLA: tools/races.py picks out those about treadle.
        "TSAN_OPTIONS": f"log_path={RACES}:halt_on_error=0:exitcode=0:history_size=4",
    }


if __name__ == "__main__":
    main()

"""Run the benchmark suites and write the report.

Each suite runs in a process of its own, within a time limit; one that fails or takes too long is named in the
report, and the rows that it had finished are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="ten minutes at most (the default)")
    size.add_argument("--full", action="store_true", help="long enough for stable numbers")
    size.add_argument(
        "--smoke", action="store_true", help="too short to mean anything; tests the harness"
    )
    parser.add_argument("--suites", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--out", type=Path, default=HERE / "report", help="folder for the report")
    parser.add_argument(
        "--render", type=Path, metavar="JSON", help="only write the report of these results"
    )
    parser.add_argument("--minutes", type=float, help="stop after this long (quick: 9.5)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def effort_of(options: argparse.Namespace) -> Any:
    from harness.timing import Effort

    if options.full:
        return Effort(
            row_seconds=30,
            batch_seconds=0.05,
            min_rounds=15,
            max_rounds=200,
            far_rounds=8,
            full=True,
        )
    if options.smoke:
        return Effort(
            row_seconds=0.2,
            batch_seconds=0.002,
            batch_steps=2,
            min_rounds=2,
            max_rounds=3,
            far_rounds=2,
        )
    return Effort(row_seconds=2, batch_seconds=0.008, min_rounds=9, max_rounds=100, far_rounds=4)


def run_one(options: argparse.Namespace) -> None:
    """A suite in this process, its rows appended to a file as they come."""
    import suites

    started = time.monotonic()
    with options.rows.open("a") as file:
        for row in suites.load(options.one)(effort_of(options)):
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            file.flush()
            print(f"    {time.monotonic() - started:5.1f} s  {row.name}", flush=True)


def run_suite(
    name: str, options: argparse.Namespace, seconds: float, compiled: str
) -> dict[str, Any]:
    import suites

    size = "--full" if options.full else "--smoke" if options.smoke else "--quick"
    # Most of a run's time is compiling. What one suite has compiled, another that needs it, or a note that reads
    # the program, takes from here; it is the same machine code.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    environment = {**os.environ, **cache, "PYTHONWARNINGS": "ignore", **suites.environment(name)}
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder) / "rows.jsonl", Path(folder) / "log.txt"
        rows.touch()
        command = [sys.executable, str(HERE / "run.py"), size, "--one", name, "--rows", str(rows)]
        started = time.monotonic()
        busy = _children_seconds()
        error = None
        with log.open("w") as output:
            try:
                code = subprocess.run(
                    command, env=environment, stderr=output, timeout=max(seconds, 1)
                ).returncode
                if code:
                    lines = log.read_text(errors="replace").strip().splitlines()
                    # JAX ends a traceback with a remark of its own.
                    said = [
                        line for line in lines if re.match(r"\w[\w.]*(Error|Exception)\b", line)
                    ]
                    error = said[-1][:300] if said else f"exit status {code}"
                    print("\n".join(lines[-20:]), file=sys.stderr)
            except subprocess.TimeoutExpired:
                error = f"stopped after {seconds:.0f} s"
        taken = time.monotonic() - started
        found = [json.loads(line) for line in rows.read_text().splitlines()]
    # Far less processor time than time tells that the machine was busy with other things.
    return {
        "rows": found,
        "error": error,
        "seconds": taken,
        "cpu_seconds": _children_seconds() - busy,
    }


def _children_seconds() -> float:
    """Processor time of all processes that were started from here and have ended."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> int:
    options = parse()
    if options.one:
        run_one(options)
        return 0
    from page.write import write_report

    if options.render:
        write_report(json.loads(options.render.read_text()), options.out)
        return 0
    import suites
    from harness.machine import describe

    size = "full" if options.full else "smoke" if options.smoke else "quick"
    names = options.suites or list(suites.SUITES)
    results: dict[str, Any] = {
        "size": size,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "suites": {},
    }
    minutes = options.minutes or (9.5 if size != "full" else 240)
    deadline = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as compiled:
        for place, name in enumerate(names):
            left = deadline - time.monotonic()
            seconds = suites.limit(left, names[place:])
            print(f"{name} (at most {seconds:.0f} of {left:.0f} s left)", flush=True)
            results["suites"][name] = run_suite(name, options, seconds, compiled)
            # After each suite, so that an interrupted run leaves a report of what it measured.
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    write_report(results, options.out)
    failed = {name: suite["error"] for name, suite in results["suites"].items() if suite["error"]}
    for name, error in failed.items():
        print(f"{name}: {error}", file=sys.stderr)
    print(f"report: {options.out / 'index.html'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

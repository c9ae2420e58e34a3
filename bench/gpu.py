"""An Adam step of an MLP on a GPU: what the host pays, what a loop pays, what the device is busy with.

Host time is how long the Python call takes to return, with the device idle before it. Waited is a step whose loss is
waited for. Loop is a step of many, of which the last is waited for. Busy is the sum of the device's kernels
and copies by JAX's profiler. A row runs in a process of its own, its cases in turn, as in the other benchmarks.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WIDTH = 16
LEAVES_PER_BLOCK = 12  # four parameters, each with two moments
BASE = "jax.jit, flat"
COUNTS = 2  # Adam's and the optimizer's
STEPS_BEFORE_COMPARING = 5
MEASURES = {"host": "host", "waited": "waited", "loop": "loop"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", type=int, nargs="+", default=[62, 602], help="leaves of a row")
    parser.add_argument("--seconds", type=float, default=20, help="measuring time of a row")
    parser.add_argument("--limit", type=float, default=120, help="seconds a first call may take")
    parser.add_argument("--cases", nargs="+", help="only cases with one of these in their names")
    parser.add_argument("--out", type=Path, default=HERE / "report" / "gpu")
    parser.add_argument("--render", action="store_true", help="write the report of results again")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--without", nargs="*", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--compiled", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# -- one row, in its own process -----------------------------------------------------------------------


def makers() -> dict[str, Any]:
    import packed
    import peers

    known = peers.makers()
    names = [peers.HAND_FLAT, peers.HAND_DONATED, peers.TREADLE, peers.TREADLE_DONATED]
    names += [name for name in known if name.startswith("flax") or name == peers.EQUINOX]
    return {**{name: known[name] for name in names}, **packed.MAKERS}


def run_row(leaves: int, options: argparse.Namespace) -> None:
    """Prints lines of JSON: `{"starts": case}` before each first call, at last the rows."""
    import jax
    import numpy as np
    from jax.experimental.compilation_cache import compilation_cache

    import models
    import packed
    from harness.timing import Row

    blocks, rest = divmod(leaves - COUNTS, LEAVES_PER_BLOCK)
    if rest or blocks < 1:
        raise SystemExit(f"{leaves} leaves: it must be {LEAVES_PER_BLOCK} a block and {COUNTS}")
    model = models.mlp(blocks, WIDTH)
    # What the process and XLA do once must not count as the first case's.
    makers()[BASE](models.mlp(1, WIDTH)).step().block_until_ready()

    cases, first_calls, values = {}, {}, {}
    for name, make in makers().items():
        if name in options.without or not wanted(name, options.cases):
            continue
        say(starts=name)
        # A second process takes what this one compiles from there, but no case takes it from another.
        jax.config.update("jax_compilation_cache_dir", str(options.compiled / name))
        compilation_cache.reset_cache()
        case = make(model)
        made = time.perf_counter()
        jax.block_until_ready(case.step())
        first_calls[name] = time.perf_counter() - made
        say(case=name, first_call=first_calls[name])
        # flax's cases make their first step when they are made, so theirs is no first call.
        stepped = 2 if name.startswith("flax") else 1
        if stepped == 2:
            del first_calls[name]
        for _ in range(STEPS_BEFORE_COMPARING - stepped):
            jax.block_until_ready(case.step())
        values[name] = [np.asarray(value) for value in case.values()]
        cases[name] = case
    say(starts=None)

    name = f"Adam step of an MLP of {blocks} blocks, width {WIDTH}"
    row = Row(name=name, base=BASE, leaves=leaves)
    row.cases, row.rounds = measure({n: case.step for n, case in cases.items()}, BASE, options)
    for name, case in cases.items():
        row.cases[name]["first_call_s"] = first_calls.get(name)
        row.cases[name]["difference"] = max(
            float(np.max(np.abs(one - other)))
            for one, other in zip(values[name], values[BASE], strict=True)
        )
        row.cases[name] |= busy(case.step)

    steps = packed.pieces(model)
    base = next(iter(steps))
    pieces = Row(name="Pieces of packing, each as a program of its own", base=base, leaves=leaves)
    pieces.cases, pieces.rounds = measure(steps, base, options)
    for name, step in steps.items():
        pieces.cases[name] |= {"first_call_s": None, "difference": None, **busy(step)}
    say(rows=[dataclasses.asdict(row), dataclasses.asdict(pieces)])


def wanted(name: str, cases: list[str] | None) -> bool:
    return not cases or name == BASE or any(part in name for part in cases)


def say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def measure(
    steps: Mapping[str, Any], base: str, options: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], int]:
    """Quartiles of the three times and of their ratios to the base, round by round."""
    import jax

    from harness import timing

    effort = timing.Effort(row_seconds=options.seconds, batch_seconds=0.03, batch_steps=20)
    costs = {name: timing.warm_up(step, effort.batch_seconds) for name, step in steps.items()}
    # Each batch is run twice: waiting for each step, and for the last.
    turns, rounds = timing.share_out({n: 2 * c for n, c in costs.items()}, base, effort)
    taken: dict[str, dict[int, dict[str, float]]] = {name: {} for name in steps}
    order = random.Random(0)
    gc.collect()
    gc.freeze()
    for turn in range(rounds):
        names = [n for n in steps if timing.takes_part(turn, turns[n].rounds, rounds)]
        order.shuffle(names)
        for name in names:
            gc.collect()
            step, count = steps[name], turns[name].count
            jax.block_until_ready(step())
            host = waited = 0.0
            for _ in range(count):
                started = time.perf_counter()
                result = step()
                host += time.perf_counter() - started
                jax.block_until_ready(result)
                waited += time.perf_counter() - started
            loop = timing.run_batch(step, count)
            taken[name][turn] = {"host": host / count, "waited": waited / count, "loop": loop}
    gc.unfreeze()
    found = {
        name: {
            "rounds": len(of_turn),
            "steps_per_round": turns[name].count,
            **{
                which: timing.summary(
                    [times[which] for times in of_turn.values()],
                    [taken[base][turn][which] for turn in of_turn],
                )
                for which in MEASURES
            },
        }
        for name, of_turn in taken.items()
    }
    return found, rounds


def busy(step: Any, count: int = 20) -> dict[str, Any]:
    """Microseconds a step of the device's streams, and how many kernels and copies; None off a GPU."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(count):
                result = step()
            jax.block_until_ready(result)
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        events = [
            event.duration_ns
            for plane in planes
            if plane.name.startswith("/device:GPU")
            for line in plane.lines
            if line.name.startswith("Stream")
            for event in line.events
        ]
    if not events:
        return {"busy_us": None, "kernels": None}
    return {"busy_us": sum(events) / count / 1e3, "kernels": len(events) / count}


# -- all rows ------------------------------------------------------------------------------------------


def watch_rows(leaves: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a size, or why there are none. A case whose first call outlasts the limit is left out."""
    first_calls: dict[str, float] = {}
    slow: list[str] = []
    with tempfile.TemporaryDirectory() as compiled:
        environment = {
            **os.environ,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "PYTHONWARNINGS": "ignore",
        }
        while True:
            command = [sys.executable, __file__, "--row", str(leaves)]
            command += ["--seconds", str(options.seconds), "--compiled", compiled]
            command += ["--without", *slow]
            if options.cases:
                command += ["--cases", *options.cases]
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE
            )
            rows, running = listen(process, options.limit, first_calls)
            if rows:
                for name, case in rows[0]["cases"].items():
                    if case["first_call_s"] is not None:
                        case["first_call_s"] = first_calls[name]
                rows[0]["notes"] += [
                    f"{name}: left out, its first call took more than {options.limit:g} s"
                    for name in slow
                ]
                return rows
            assert process.stderr is not None
            if running == BASE and process.returncode < 0:
                return [failure(leaves, f"{BASE} took more than {options.limit:g} s", first_calls)]
            if running is None or process.returncode >= 0:
                return [failure(leaves, process.stderr.read().strip()[-2000:], first_calls)]
            slow.append(running)


def failure(leaves: int, error: str, first_calls: dict[str, float]) -> dict[str, Any]:
    return {"leaves": leaves, "error": error, "first_calls": first_calls}


def listen(
    process: subprocess.Popen[str], limit: float, first_calls: dict[str, float]
) -> tuple[list[dict[str, Any]] | None, str | None]:
    """The rows if they came, and the case that was in its first call at the end."""
    rows, running, timer = None, None, None
    for line in process.stdout or ():
        said = json.loads(line)
        if timer:
            timer.cancel()
        if "starts" in said:
            running = said["starts"]
            if running:
                timer = threading.Timer(limit, process.kill)
                timer.start()
        elif "first_call" in said:
            first_calls.setdefault(said["case"], said["first_call"])
            print(f"    {said['first_call']:6.1f} s  first call of {said['case']}", flush=True)
        else:
            rows = said["rows"]
    if timer:
        timer.cancel()
    process.wait()
    return rows, running


def report(results: dict[str, Any]) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "# A training step on a GPU",
        "",
        f"{results['date']}; {', '.join(machine['devices'])}; {machine['cpu']}, {machine['cores']} cores. "
        f"Python {machine['python']}; {versions}. By `bench/gpu.py`, which says what the columns mean.",
        "",
        "Ratios are to the first case, round by round: medians and, in brackets, quartiles. Times are medians, in "
        "microseconds a step. The last column is the largest difference of a parameter from the first case's "
        f"after {STEPS_BEFORE_COMPARING} steps.",
        "",
    ]
    for row in results["rows"]:
        if "error" in row:
            lines += [f"## {row['leaves']} leaves", "", "Did not finish:", ""]
            lines += ["```", row["error"], "```", ""]
            for name, seconds in row["first_calls"].items():
                lines.append(f"- first call of {name}: {seconds:.1f} s")
            lines.append("")
            continue
        lines += [
            f"## {row['name']}",
            "",
            f"{row['leaves']} leaves, {row['rounds']} rounds.",
            "",
            "| case | host | ratio | waited | ratio | loop | ratio | busy | kernels | first call, s | differs |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, case in row["cases"].items():
            cells = [name]
            for which in MEASURES:
                one = case[which]
                spread = f"[{one['ratio_low']:.2f}, {one['ratio_high']:.2f}]"
                cells += [f"{one['us']:.0f}", f"{one['ratio']:.2f} {spread}"]
            cells += [
                number(case["busy_us"], ".0f"),
                number(case["kernels"], ".0f"),
                number(case["first_call_s"], ".1f"),
                number(case["difference"], ".1g"),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", *(f"- {note}" for note in row["notes"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def write(results: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "report.md").write_text(report(results))


def main() -> int:
    options = parse()
    if options.row:
        warnings.simplefilter("ignore")
        run_row(options.row, options)
        return 0
    if options.render:
        write(json.loads((options.out / "results.json").read_text()), options.out)
        return 0
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "rows": [],
    }
    for leaves in options.leaves:
        print(f"{leaves} leaves", flush=True)
        results["rows"] += watch_rows(leaves, options)
        # After each row, so that an interrupted run leaves what it measured.
        write(results, options.out)
    failed = [row for row in results["rows"] if "error" in row]
    for row in failed:
        print(f"{row['leaves']} leaves: {row['error']}", file=sys.stderr)
    print(f"report: {options.out / 'report.md'}")
    return 1 if failed else 0


def describe_machine() -> dict[str, Any]:
    """In a process of its own: one that has a GPU open keeps most of its memory from the others."""
    code = "import json; from harness.machine import describe; print(json.dumps(describe()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())

"""Build the peers' cases of one row, check that they do the same, and time them."""

from __future__ import annotations

import collections
import re
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from harness.timing import Effort, Row, interleave
from peers import TREADLE, Case

# Compiling once more just to read the program is only worth it while it is small.
_COMPILED_TEXT_LEAVES = 150


def compare_cases(
    name: str,
    makers: Mapping[str, Callable[[], Case]],
    effort: Effort,
    *,
    base: str,
    leaves: int,
    slow: tuple[str, ...] = (),
    threads: int = 2,
) -> Row:
    """One row. A peer that fails is named in the row's notes and does not stop the others.

    Args:
        name: the row's name.
        makers: makes each peer's case.
        effort: how long to measure.
        base: the peer that ratios are against.
        leaves: array leaves of the state.
        slow: peers left out unless the effort is full.
        threads: how many peers are traced and compiled at a time.
    """
    cases: dict[str, Case] = {}
    notes: list[str] = []
    chosen = {peer: make for peer, make in makers.items() if effort.full or peer not in slow}
    notes += [f"{peer}: only in the full run" for peer in makers if peer not in chosen]
    # Most of this is XLA compiling on one core.
    with ThreadPoolExecutor(threads) as pool:
        ahead = {
            peer: pool.submit(_first_step, make)
            for peer, make in chosen.items()
            # The mode of flax is a setting of the process.
            if threads > 1 and not peer.startswith("flax")
        }
    for peer, make in chosen.items():
        try:
            cases[peer] = ahead[peer].result() if peer in ahead else _first_step(make)
        except Exception as error:
            notes.append(f"{peer}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
            traceback.print_exc()
    if base not in cases:
        return Row(
            name=name, base=base, leaves=leaves, notes=[*notes, f"{base} failed: no comparison"]
        )
    if effort.full or leaves <= _COMPILED_TEXT_LEAVES:
        notes += program_differences(cases, base, leaves)
    row = interleave(
        name, {peer: case.step for peer, case in cases.items()}, effort, base=base, leaves=leaves
    )
    row.notes = notes
    if TREADLE in cases and cases[TREADLE].profile is not None:
        row.extra["profile"] = cases[TREADLE].profile().as_dict()
    return row


def _first_step(make: Callable[[], Case]) -> Case:
    """Some peers take this step while they are set up."""
    case = make()
    jax.block_until_ready(case.step())
    return case


def agreement_notes(makers: Mapping[str, Callable[[], Case]], steps: int = 3) -> list[str]:
    """Where the peers' state differs after the same number of steps from the same start."""
    reference: list[np.ndarray] | None = None
    notes = []
    for peer, make in makers.items():
        case = make()
        for _ in range(steps - _steps_done_while_set_up(peer)):
            case.step()
        values = sorted((plain(v) for v in case.values()), key=_order)
        if reference is None:
            reference = values
            continue
        same = len(values) == len(reference) and all(
            a.shape == b.shape and np.allclose(a, b, rtol=1e-3, atol=1e-4)
            for a, b in zip(reference, values, strict=True)
        )
        if not same:
            notes.append(f"{peer}: its state after {steps} steps is not the others'")
    return notes


def _steps_done_while_set_up(peer: str) -> int:
    return 1 if peer.startswith("flax") else 0


def plain(value: Any) -> np.ndarray:
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value)


def _order(array: np.ndarray) -> Any:
    return array.shape, str(array.dtype), round(float(array.sum()), 3)


def program_differences(cases: Mapping[str, Case], base: str, leaves: int) -> list[str]:
    """How the programs differ from the base's, by counting their operations."""
    compiled = leaves <= _COMPILED_TEXT_LEAVES
    counts: dict[str, collections.Counter[str]] = {}
    unknown = []
    for peer, case in cases.items():
        if case.lower is None:
            unknown.append(peer)
            continue
        try:
            lowered = case.lower()
            text = lowered.compile().as_text() if compiled else lowered.as_text()
            counts[peer] = operations(text)
        except Exception:
            unknown.append(peer)
    reference = counts.get(base)
    if reference is None:
        return []
    what = "compiled HLO" if compiled else "lowered program"
    same = [peer for peer in counts if counts[peer] == reference and peer != base]
    notes = [f"same operations in the {what} as {base}: {', '.join(same)}"] if same else []
    for peer, count in counts.items():
        if count != reference:
            more, fewer = count - reference, reference - count
            notes.append(
                f"{peer}: {what} differs from {base}'s: "
                + "; ".join(
                    f"{word} {dict(sorted(difference.items()))}"
                    for word, difference in (("more", more), ("fewer", fewer))
                    if difference
                )
            )
    if unknown:
        notes.append(f"program not readable from: {', '.join(unknown)}")
    return notes


_OPERATION = re.compile(r"= (?:\([^=]*?\)|\S+) ([a-z][a-z0-9-]*)\(|\b(stablehlo\.\w+)")


def operations(text: str) -> collections.Counter[str]:
    """How often each operation occurs in HLO or StableHLO text."""
    return collections.Counter(a or b for a, b in _OPERATION.findall(text))

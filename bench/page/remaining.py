"""For each target that is missed: what the remaining cost is made of, from what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from page.targets import FLAX_GRAPH, HAND_FLAT, TREADLE, Measured, find, targets

_PHASES = ("verify", "gather", "scatter")
_ONE_LEAF = "1 leaves, all changed"


def remaining_costs(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A title and a sentence or two for each target that was measured and is not met."""
    for line in targets(results):
        if line.met is False:
            yield line.what, " ".join(_explained(results, line))


def parts(profile: dict[str, Any]) -> str:
    """Where a call of Treadle's spends its time, in words."""
    own = sum(profile[phase] for phase in _PHASES)
    named = ", ".join(f"{phase} {profile[phase]:.1f}" for phase in _PHASES)
    return (
        f"{own:.1f} µs of a call are Treadle's own ({named}; scatter also frees the arrays that it "
        f"replaces, as any code must), {profile['dispatch']:.1f} µs JAX's call of the compiled "
        f"step with {profile['leaves_in']} arrays in "
        f"and {profile['leaves_out']} out"
    )


def _explained(results: dict[str, Any], line: Measured) -> list[str]:
    if line.row is None:
        return ["the tables below have all that was measured."]
    if line.case == FLAX_GRAPH:
        return _against_flax(results, line.row)
    if line.case == "treadle.jit, a module":
        return _one_leaf(results, line.row)
    ours = line.row["cases"][line.case]
    if "tail" in ours:
        return _tail(line.row)
    said = []
    if "added_us" in ours:
        said.append(
            f"the step takes {ours['us']:.0f} µs, {_more_or_less(ours['added_us'])} than {line.row['base']} "
            f"(quartiles {ours['added_us_low']:+.0f} to {ours['added_us_high']:+.0f})."
        )
    profile = line.row["extra"].get("profile")
    if profile is not None:
        said.append(f"By `treadle.profile`, {parts(profile)}.")
    return said


def _more_or_less(microseconds: float) -> str:
    return f"{abs(microseconds):.0f} µs {'more' if microseconds >= 0 else 'less'}"


def _against_flax(results: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """The ratio is bounded by what JAX takes for the step itself, whoever calls it."""
    hand, ours, theirs = (row["cases"][name] for name in (HAND_FLAT, TREADLE, FLAX_GRAPH))
    said = [
        f"the hand-written step itself takes {hand['us']:.0f} µs here, to which flax adds "
        f"{theirs['added_us']:.0f} µs and Treadle {ours['added_us']:.0f} µs. A wrapper that added nothing "
        f"at all would be {theirs['ratio']:.1f} times faster than flax."
    ]
    bare = find(results, "breakdown", lambda row: "us_per_output" in row["extra"])
    if bare is not None:
        many = max(bare["cases"].values(), key=lambda case: case["us"])
        said.append(
            f"Most of that step is JAX making its outputs: a bare `jax.jit` of `x + 1` over {bare['leaves']} arrays "
            f"takes {many['us']:.0f} µs, {bare['extra']['us_per_output']:.1f} µs for each array that comes out."
        )
    profile = row["extra"].get("profile")
    if profile is not None:
        said.append(f"By `treadle.profile`, {parts(profile)}.")
    return said


def _tail(row: dict[str, Any]) -> list[str]:
    """Whether the garbage collector can be what made the slowest steps slow."""
    return [
        f"{name}: {case['p50']:.0f} µs at p50, {case['p99']:.0f} at p99, {case['p99.9']:.0f} at p99.9 of "
        f"{case['steps']} steps, with {sum(case['collections_per_1000_steps']):.1f} garbage collections per 1000 steps."
        for name, case in row["cases"].items()
        if name in (HAND_FLAT, TREADLE)
    ]


def _one_leaf(results: dict[str, Any], row: dict[str, Any]) -> list[str]:
    array = row["cases"]["treadle.jit, an array"]["added_us"]
    module = row["cases"]["treadle.jit, a module"]["added_us"]
    said = [
        f"{array:.2f} µs are added to a call that has a bare array as its argument, and {module - array:.2f} µs more "
        "where a module and its Variable have to be verified."
    ]
    breakdown = find(results, "breakdown", lambda row: _ONE_LEAF in row["cases"])
    if breakdown is not None:
        case = breakdown["cases"][_ONE_LEAF]
        named = ", ".join(f"{phase} {case[phase]:.2f} µs" for phase in _PHASES)
        said.append(f"For one leaf that changes: {named}, reading the clock included.")
    return said

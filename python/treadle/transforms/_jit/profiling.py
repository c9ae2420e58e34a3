"""Where the time of one jitted call goes, and what would make it cheaper."""

from __future__ import annotations

import dataclasses
import enum
import statistics
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from treadle import _core
from treadle._public import publish
from treadle.errors import listed
from treadle.transforms._arguments import argument_label, function_name

__all__ = ["Profile", "profile"]

# Paths named in a piece of advice before the rest is only counted.
_NAMED = 3
# Outputs from which on the allocator shows, and the replacements for glibc's that people preload.
_MANY_OUTPUTS = 100
_ALLOCATORS = ("jemalloc", "mimalloc", "tcmalloc")
# A static whose hash takes longer than this is worth a word, in microseconds.
_SLOW_STATIC = 0.2


@dataclass(frozen=True)
class Profile:
    """What one call of a jitted function costs on the host. Times are medians in microseconds.

    Attributes:
        function: name of the function.
        call_class: class of a repeated call with the same objects: ``hot`` as it should be, or
            ``warm`` where something among the arguments must be walked anew each time.
        first_call_class: class of the first call: ``cold`` if it had to be traced and compiled.
        calls: how many calls were timed.
        verify: finding the plan, and checking that the structure is still the same.
        gather: collecting the arrays to pass.
        dispatch: the call of the compiled function by JAX; not its running, where JAX runs it
            asynchronously.
        scatter: writing the results back into the objects.
        bare: calling the same compiled function on the same arrays without Treadle.
        ratio: whole call against `bare`, the median over calls that ran next to each other.
        ratio_low: lower quartile of that.
        ratio_high: upper quartile of that.
        leaves_in: arrays passed.
        leaves_out: arrays returned.
        advice: what would make the call cheaper, one sentence each.
    """

    function: str
    call_class: str
    first_call_class: str
    calls: int
    verify: float
    gather: float
    dispatch: float
    scatter: float
    bare: float
    ratio: float
    ratio_low: float
    ratio_high: float
    leaves_in: int
    leaves_out: int
    advice: tuple[str, ...]

    @property
    def total(self) -> float:
        """Verify, gather, dispatch and scatter together, in microseconds."""
        return self.verify + self.gather + self.dispatch + self.scatter

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain data, for JSON."""
        return {**dataclasses.asdict(self), "total": self.total, "advice": list(self.advice)}

    def __str__(self) -> str:
        first = (
            "" if self.first_call_class == self.call_class else f", first {self.first_call_class}"
        )
        lines = [
            f"{self.function}: {self.call_class}{first}, {self.leaves_in} leaves in, "
            f"{self.leaves_out} out, median of {self.calls} calls",
            f"  {'':<14}{'µs':>10}{'share':>9}",
        ]
        for phase in ("verify", "gather", "dispatch", "scatter"):
            taken = getattr(self, phase)
            lines.append(f"  {phase:<14}{taken:>10.1f}{taken / max(self.total, 1e-9):>9.1%}")
        lines += [
            f"  {'whole call':<14}{self.total:>10.1f}",
            f"  {'bare jax.jit':<14}{self.bare:>10.1f}",
            f"  {'ratio':<14}{self.ratio:>10.3f}   quartiles {self.ratio_low:.3f} to {self.ratio_high:.3f}",
        ]
        lines += [f"  - {line}" for line in self.advice]
        return "\n".join(lines)


def profile(step: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Profile:
    """Measure one jitted function with these arguments.

    The function is called some dozens of times on copies of the graph nodes, so that the caller's
    own objects stay as they are, and in turn with the bare compiled function. If these arguments
    have not been seen before, it is compiled first.

    Args:
        step: a function, or a bound method, made by `jit`.
        *args: its positional arguments, as in a call.
        **kwargs: its keyword arguments.

    Returns:
        A `Profile`: data, and a table when printed.

    Raises:
        TypeError: `step` was not made by `jit`.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> @nnx.jit
    ... def apply(model, x):
    ...     return model(x)
    >>> found = nnx.profile(apply, nnx.Linear(2, 3, rngs=nnx.Rngs(0)), jnp.ones((4, 2)))
    >>> found.call_class, found.leaves_in, found.leaves_out
    ('hot', 3, 1)
    >>> print(found)
    apply: hot, first cold, 3 leaves in, 1 out, median of ... calls
    ...
    """
    jitted, args = _unbound(step, args)
    kwargs = {**jitted.companions, **kwargs}
    graphdef, arguments = _copies(jitted, args, kwargs)
    (given, named), donated = arguments
    result, first = jitted._timed(given, named)
    jax.block_until_ready(result)
    plan = jitted.plan(graphdef, _leaves(jitted, given, named))
    compiled = plan.function

    reports, ratios, bares = [], [], []
    for _ in range(_calls(jitted, given, named)):
        result, report = jitted._timed(given, named)
        jax.block_until_ready(result)
        leaves = _leaves(jitted, given, named)
        passed = [jitted.copy(leaf) if i in donated else leaf for i, leaf in enumerate(leaves)]
        jax.block_until_ready(passed)
        started = time.perf_counter_ns()
        returned = compiled(*passed)
        bare = time.perf_counter_ns() - started
        jax.block_until_ready(returned)
        reports.append(report)
        bares.append(bare)
        ratios.append(sum(report.get(phase, 0) for phase in _PHASES) / bare)
        # Freeing the outputs is no part of the next call.
        del returned, passed, leaves, result

    median = {
        phase: statistics.median(report.get(phase, 0) for report in reports) / 1e3
        for phase in _PHASES
    }
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    last = reports[-1]
    return Profile(
        function=function_name(jitted.function),
        call_class=last["call_class"],
        first_call_class=first["call_class"],
        calls=len(reports),
        **median,
        bare=statistics.median(bares) / 1e3,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        leaves_in=last["leaves_in"],
        leaves_out=last["leaves_out"],
        advice=tuple(_advice(jitted, plan, graphdef, given, named, last["call_class"])),
    )


_PHASES = ("verify", "gather", "dispatch", "scatter")


def _unbound(step: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """The jitted function below a bound method, with the instance among its arguments."""
    if isinstance(step, types.MethodType):
        step, args = step.__func__, (step.__self__, *args)
    if not isinstance(step, _core.Dispatcher):
        raise TypeError(
            f"profile expects a function made by treadle.jit, got {step!r}. Wrap it: "
            "profile(jit(function), ...)."
        )
    return step, args


def _walk(jitted: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _core.Flat:
    return _core.flatten_call(args, kwargs, *jitted.options.static)


def _leaves(jitted: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    return _walk(jitted, args, kwargs).leaves


def _copies(jitted: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Structure, equal arguments with other nodes, and the leaves that a call would use up."""
    flat = _walk(jitted, args, kwargs)
    donated = frozenset(jitted.donated(flat.graphdef, flat.leaves))
    leaves = [jitted.copy(leaf) if i in donated else leaf for i, leaf in enumerate(flat.leaves)]
    arguments, _ = _core.unflatten(flat.graphdef, leaves)
    return flat.graphdef, (arguments, donated)


def _calls(jitted: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many calls to time: about half a second of them, within limits."""
    started = time.perf_counter()
    result, _ = jitted._timed(args, kwargs)
    jax.block_until_ready(result)
    return max(11, min(100, int(0.25 / (time.perf_counter() - started))))


# -- advice ----------------------------------------------------------------------------------------


def _advice(
    jitted: Any,
    plan: Any,
    graphdef: _core.GraphDef,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    call_class: str,
) -> Iterator[str]:
    flat = _walk(jitted, args, kwargs)

    def name(leaf: int) -> str:
        return argument_label(jitted.function, graphdef.paths()[leaf])

    if call_class != "hot":
        yield (
            "The arguments are walked at every call. Custom pytree types, types registered with "
            "register_graph_node_type and very deep containers among them cannot be checked in "
            "place: keep them in nodes and plain containers, or out of the call."
        )
    hosted = [i for i, leaf in enumerate(flat.leaves) if not isinstance(leaf, jax.Array)]
    if hosted:
        yield (
            f"{listed(hosted, _NAMED, name)}: no jax.Array but a number or numpy array, which is put on the "
            f"device at each call. Put it there once where it does not change."
        )
    traced = plan.function.trace(*flat.leaves)
    jaxpr = traced.jaxpr.jaxpr
    unused = _unused(jaxpr)
    if unused:
        yield (
            f"{listed(unused, _NAMED, name)}: not used by the computation, yet gathered and passed, about "
            f"0.2 µs each. Pass only the part of the model that is needed."
        )
    effects, _ = plan.read(plan.function.eval_shape(*flat.leaves))
    yield from _output_advice(jaxpr, effects.outputs(), name)
    if (
        len(jaxpr.outvars) >= _MANY_OUTPUTS
        and jax.default_backend() == "cpu"
        and _on_glibc_malloc()
    ):
        yield (
            f"{len(jaxpr.outvars)} outputs, each allocated by glibc's malloc, which is slow at the small "
            f"aligned blocks that XLA asks for. Start the program on another allocator (LD_PRELOAD with "
            f"jemalloc, mimalloc or tcmalloc): it can halve such a step."
        )
    for path, micros in _slow_statics(flat, jitted.function):
        yield (
            f"{path}: a static value that is hashed at every call because it might have changed, "
            f"{micros:.1f} µs. Make its class a frozen dataclass, or keep it out of the graph."
        )


def _unused(jaxpr: Any) -> list[int]:
    """Inputs that no output and no effect depends on."""
    live = {id(var) for var in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(var) in live for var in equation.outvars):
            live.update(id(var) for var in equation.invars)
    return [i for i, var in enumerate(jaxpr.invars) if id(var) not in live]


def _output_advice(
    jaxpr: Any, outputs: Sequence[tuple[str, int, Any]], name: Callable[[int], str]
) -> Iterator[str]:
    inputs = {id(var): i for i, var in enumerate(jaxpr.invars)}
    unchanged: list[int] = []
    results: list[int] = []
    keys: list[int] = []
    for (kind, leaf, _), var in zip(outputs, jaxpr.outvars, strict=True):
        source = inputs.get(id(var))
        if source is not None:
            (unchanged if kind == "leaf" and source == leaf else results).append(source)
        elif kind == "leaf" and jax.numpy.issubdtype(var.aval.dtype, jax.dtypes.prng_key):
            keys.append(leaf)
    if unchanged:
        yield (
            f"{listed(unchanged, _NAMED, name)}: donated and not changed, so it must come back, about 1 µs "
            f"each. Donate only what changes."
        )
    if results:
        yield (
            f"{listed(results, _NAMED, name)}: an input handed back as an output, about 1 µs each. Read it "
            f"from the caller's own objects instead."
        )
    if keys:
        yield (
            f"{listed(keys, _NAMED, name)}: a random key that comes back changed, about 3 µs each. Let the "
            f"stream's count change instead of its key."
        )


def _on_glibc_malloc() -> bool:
    """Whether glibc's own allocator serves this process, as far as Linux tells."""
    try:
        mapped = Path("/proc/self/maps").read_text()
    except OSError:
        return False
    return "/libc.so.6" in mapped and not any(f"lib{name}" in mapped for name in _ALLOCATORS)


def _slow_statics(flat: _core.Flat, function: Callable[..., Any]) -> Iterator[tuple[str, float]]:
    """Static attributes whose own Python code runs whenever they are compared."""
    for ref, path in zip(flat.refs, flat.graphdef.ref_paths(), strict=True):
        for key, value in sorted(getattr(ref, "__dict__", {}).items()):
            if _core.is_node(value) or not isinstance(type(value).__hash__, types.FunctionType):
                continue
            # Classes and enums cannot change, frozen dataclasses promise not to.
            parameters = getattr(type(value), "__dataclass_params__", None)
            if isinstance(value, (type, enum.Enum)) or getattr(parameters, "frozen", False):
                continue
            micros = _time_of_hash(value)
            if micros > _SLOW_STATIC:
                yield argument_label(function, (*path, key)), micros


def _time_of_hash(value: Any, repeats: int = 20) -> float:
    try:
        started = time.perf_counter()
        for _ in range(repeats):
            hash(value)
        return (time.perf_counter() - started) / repeats * 1e6
    except TypeError:
        return 0.0


publish(__all__, globals())

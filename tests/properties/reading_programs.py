"""Random programs over what code reads besides its arguments, each run in three ways.

A *world* is what functions can read and a program can change: a global, a list, a dict, attributes
of a class, an object and a function, a config without a hash, a callable that holds its node. A
program is a list of steps drawn from a `Source`. Every step does one call with the world as it is,
eagerly (the truth), through a transform that was made once, and through one made for this call; all
three must give the same value and leave the same state behind.

The one thing left out is what JAX leaves out too: a function object that a trace has seen is taken
at its word, so a persistent function is never asked about what *it* reads having changed, only
about what its arguments and new functions read.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import treadle as nnx

if TYPE_CHECKING:
    from .source import Source

RATE: float = 1.0


@dataclasses.dataclass
class Config:
    """An ordinary dataclass: no hash."""

    rate: Any = 1.0
    names: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A config with a hash, which does not tell 1 from 1.0."""

    rate: Any


class Rates:
    """A class and an object whose attributes change."""

    rate = 1.0

    def __init__(self) -> None:
        self.own = 1.0


class Plain:
    """A config with neither a hash of its own nor an equality."""

    def __init__(self, rate: Any = 1.0, names: Any = ()) -> None:
        self.rate = rate
        self.names = list(names)


class Slotted:
    """The same without a dict."""

    __slots__ = ("names", "rate")

    def __init__(self, rate: Any = 1.0, names: Any = ()) -> None:
        self.rate = rate
        self.names = list(names)


def namespace(rate: Any = 1.0, names: Any = ()) -> types.SimpleNamespace:
    return types.SimpleNamespace(rate=rate, names=set(names))


def nested(rate: Any = 1.0, names: Any = ()) -> Plain:
    """Something that changes inside of what does not."""
    return Plain(Boxed(Config(rate)), names)


CONFIGS: tuple[Callable[..., Any], ...] = (Config, Plain, Slotted, namespace, nested)


@dataclasses.dataclass(frozen=True)
class Boxed:
    """A frozen dataclass around a config."""

    inner: Any


def rate_of(config: Any) -> Any:
    """The number in a config."""
    rate = config.rate
    return rate.inner.rate if isinstance(rate, Boxed) else rate


def set_rate_of(config: Any, value: float) -> None:
    if isinstance(config, Frozen):
        return
    rate = config.rate
    (rate.inner if isinstance(rate, Boxed) else config).rate = value


def add_name(config: Any, name: str) -> None:
    names = getattr(config, "names", None)
    if isinstance(names, set):
        names.add(name)
    elif names is not None:
        names.append(name)


class Net(nnx.Module):
    """Variables in an order of the program's, a config, and a way to call itself."""

    def __init__(
        self, source: Source, how: str = "unbound", config: Any = None, shuffled: bool = False
    ) -> None:
        names = list("abc")
        for _ in range(3):
            name = names.pop(source.below(len(names)) if shuffled else 0)
            setattr(self, name, nnx.Param(jnp.asarray(float(1 + source.below(5)))))
        self.count = nnx.BatchStat(jnp.asarray(0.0))
        self.table: Any = {"z": nnx.Param(jnp.asarray(2.0))}
        self.config: Any = config
        self.act: Any = unchanged
        self.how = how
        self.impl: Any = HOW[how](self)

    late: Any

    def step(self, x: Any) -> Any:
        """Reads the weights in the order of the attributes, and counts."""
        self.count.value = self.count.value + 1
        for value in vars(self).values():
            if isinstance(value, nnx.Param):
                x = x * 0.5 + value.value
        for value in self.table.values():
            x = x * 0.25 + value.value
        return x


def unchanged(x: Any) -> Any:
    return x


def unbound(self: Any, x: Any) -> Any:
    return self.step(x)


HOW: dict[str, Callable[[Any], Any]] = {
    "unbound": lambda self: unbound,
    "method": lambda self: self.step,
    "partial": lambda self: functools.partial(Net.step, self),
}


def called(m: Any, x: Any) -> Any:
    """The module by the callable that it holds."""
    return m.impl(m, x) if m.how == "unbound" else m.impl(x)


class World:
    """Everything that a program reads or changes."""

    def __init__(self, source: Source, themes: frozenset[str]) -> None:
        self.source = source
        self.themes = themes
        how = source.pick(tuple(HOW)) if "callables" in themes else "unbound"
        # Models taking turns.
        config = source.pick(CONFIGS) if "configs" in themes else lambda: None
        self.models = [Net(source, how, config(), "order" in themes) for _ in range(2)]
        self.items = [1.0]
        self.rates = Rates()
        set_global(1.0)
        Rates.rate = 1.0
        Net.late = late_times
        by_function.rate = 1.0  # type: ignore[attr-defined]
        # Few of them, so that one is made again after what it reads has changed.
        Scaler.scale = Scaler.times  # type: ignore[method-assign]
        set_config(1.0)
        readers = (
            *(by_global, by_class, by_function, by_method, by_config, jnp.tanh),
            *(
                self.by_list,
                self.by_object,
                functools.partial(by_global),
                jax.checkpoint(by_method),
            ),
        )
        self.inner = [source.pick(readers) for _ in range(2)]
        self.make = source.pick(MAKERS)

    def by_list(self, x: Any) -> Any:
        """Reads a list."""
        return x * sum(self.items)

    def by_object(self, x: Any) -> Any:
        """Reads an attribute of an object."""
        return x * self.rates.own

    def fresh(self) -> Callable[[Any], Any]:
        """A new function over an old one that reads something."""
        return self.make(self.source.pick(self.inner))

    def change_all(self, value: float) -> None:
        """Change everything that the functions read."""
        set_global(value)
        self.items[:] = [value]
        self.rates.own = Rates.rate = value
        by_function.rate = value  # type: ignore[attr-defined]


def set_global(value: float) -> None:
    globals()["RATE"] = value


def by_global(x: Any) -> Any:
    return x * RATE


def by_class(x: Any) -> Any:
    return x * Rates.rate


class Scaler:
    """A class whose method changes."""

    def times(self, x: Any) -> Any:
        return x * 3.0

    def plus(self, x: Any) -> Any:
        return x + 3.0

    scale = times


class Below(Scaler):
    def __init__(self) -> None:
        super().__init__()


def by_method(x: Any) -> Any:
    return Below().scale(x)


CONFIG: Any = None


def set_config(value: float) -> None:
    globals()["CONFIG"] = Config(value)


def by_config(x: Any) -> Any:
    return x * CONFIG.rate


def by_function(x: Any) -> Any:
    return x * by_function.rate  # type: ignore[attr-defined]


# -- what a step may change ----------------------------------------------------------------------


def change(world: World) -> None:
    """One change of the world, of the themes that the program has."""
    source, m = world.source, world.source.pick(world.models)
    value = float(1 + source.below(4))
    changes: list[Callable[[], Any]] = []
    if "functions" in world.themes:
        changes += [
            lambda: world.change_all(value),
            lambda: world.change_all(value + 10),
            lambda: set_global(value),
            lambda: world.items.append(value),
            lambda: setattr(Rates, "rate", value),
            lambda: setattr(world.rates, "own", value),
            lambda: setattr(by_function, "rate", value),
            lambda: setattr(Scaler, "scale", source.pick((Scaler.times, Scaler.plus))),
            lambda: set_config(value),
            lambda: setattr(CONFIG, "rate", value),
        ]
    if "operands" in world.themes:
        changes += [
            lambda: setattr(m, "act", source.pick((by_global, by_method, by_config, jnp.tanh))),
            lambda: setattr(Scaler, "scale", source.pick((Scaler.times, Scaler.plus))),
            lambda: set_global(value),
            lambda: set_config(value),
            lambda: setattr(Net, "late", source.pick((late_times, late_plus))),
        ]
    if "order" in world.themes:
        changes += [
            lambda: m.table.__setitem__(source.pick("yxa"), nnx.Param(jnp.asarray(value))),
            lambda: put_last(m, source.pick("abc")),
        ]
    if "configs" in world.themes:
        changes += [
            lambda: setattr(m, "config", Config(value)),
            lambda: setattr(m, "config", Frozen(int(value))),
            lambda: setattr(m, "config", Frozen(value)),
            lambda: set_rate_of(m.config, value),
            lambda: add_name(m.config, source.pick("ab")),
            lambda: setattr(m, "config", source.pick(CONFIGS)(value, ["a"])),
        ]
    changes += [
        lambda: setattr(m.a, "value", jnp.asarray(value)),
        lambda: setattr(m.count, "value", jnp.asarray(value)),
    ]
    source.pick(changes)()


def put_last(m: Any, name: str) -> None:
    variable = getattr(m, name)
    delattr(m, name)
    setattr(m, name, variable)


# -- what a step may call ------------------------------------------------------------------------


MAKERS: tuple[Callable[[Callable[[Any], Any]], Callable[[Any], Any]], ...] = (
    lambda inner: lambda x: inner(x),
    lambda inner: lambda x, inner=inner: inner(x),
    lambda inner: functools.partial(lambda f, x: f(x), inner),
    lambda inner: (lambda table: lambda x: table[0](x))([inner]),
)


def with_function(m: Any, x: Any, f: Callable[[Any], Any]) -> Any:
    return f(called(m, x))


def with_config(m: Any, x: Any, f: Any) -> Any:
    y = called(m, x) * rate_of(m.config)
    names = len(getattr(m.config, "names", ()))
    # The type of the number is seen in the result's.
    return y + names + (jnp.asarray(rate_of(m.config)) * 2).astype(jnp.float32) / 3


def late_times(self: Any, x: Any) -> Any:
    return x * 7.0


def late_plus(self: Any, x: Any) -> Any:
    return x + 7.0


def with_operands(m: Any, x: Any, f: Any) -> Any:
    """What comes along with the module: a function that it holds, a method of its class."""
    return m.late(m.act(called(m, x)))


def with_clock(m: Any, x: Any, f: Any) -> Any:
    """What it gives differs each time."""
    return called(m, x) * 0 + f()


def lifted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under a transform, with the arguments (m, x, f)."""
    if name == "jit":
        return nnx.jit(function, static_argnums=2)
    if name == "remat":
        return nnx.remat(function, static_argnums=2)
    if name == "cond":
        return lambda m, x, f: nnx.cond(
            jnp.array(True), lambda m, x: function(m, x, f), lambda m, x: function(m, x, f), m, x
        )
    if name == "grad":
        return lambda m, x, f: nnx.value_and_grad(lambda m, x: function(m, x, f))(m, x)[0]
    if name == "scan":
        return lambda m, x, f: nnx.scan(
            lambda c, m: (function(m, c, f), None), length=1, state_axes={}
        )(x, m)[0]
    assert name == "vmap"
    return lambda m, x, f: nnx.vmap(
        lambda m, x: function(m, x, f), in_axes=(None, 0), state_axes={}, split_rngs=False
    )(m, jnp.stack([x, x]))[0]


TRANSFORMS = ("jit", "remat", "cond", "grad", "scan", "vmap")


def seen(m: Any) -> tuple[Any, ...]:
    """What a call may leave behind: values, order, statics."""
    names = tuple(name for name in vars(m) if not name.startswith("_"))
    table = tuple((name, float(v.value)) for name, v in m.table.items())
    values = tuple(float(getattr(m, name).value) for name in ("a", "b", "c", "count"))
    return names, table, values


def run(source: Source, themes: frozenset[str], transform: str, steps: int = 4) -> None:
    """Run a program; raise AssertionError where a way of calling differs from the eager call."""
    world = World(source, themes)
    kinds = [with_function] if "functions" in themes else []
    kinds += [with_config] if "configs" in themes else []
    kinds += [with_operands] if "operands" in themes else []
    kinds = kinds or [with_function]
    persistent = {kind: lifted(transform, kind) for kind in kinds}
    for _ in range(steps):
        if source.byte() % 4 != 3:
            change(world)
        m, kind = source.pick(world.models), source.pick(kinds)
        # A constant where no theme is about functions.
        f = world.fresh() if "functions" in themes else jnp.tanh
        x = jnp.asarray(float(source.below(3)))
        start = m.count.value
        truth = kind(m, x, f)
        after = seen(m)
        for way in (persistent[kind], lifted(transform, kind)):
            m.count.value = start
            value = way(m, x, f)
            np.testing.assert_allclose(
                value, truth, rtol=1e-5, err_msg=f"{transform} {kind.__name__}"
            )
            assert seen(m) == after


def run_clock(source: Source, transform: str) -> None:
    """Fresh functions over a builtin that is never the same: it is read at each call."""
    m = Net(source)
    call = lifted(transform, with_clock)
    clock = source.pick((time.perf_counter_ns, time.monotonic_ns, time.time_ns))
    values = {float(call(m, jnp.asarray(1.0), lambda: clock() % 2**22)) for _ in range(3)}
    assert len(values) > 1


# -- axes ----------------------------------------------------------------------------------------


def run_axes(source: Source) -> None:
    """vmap and scan with plain entries for nodes, against a Python loop over slices."""
    size = 2 + source.below(2)
    shape = tuple(size if i < 2 else 1 + source.below(3) for i in range(2 + source.below(2)))
    entries = [source.pick((None, *range(-len(shape) + (len(shape) > 2), 2))) for _ in range(2)]
    entries = [e if e is None or shape[e] == size else 0 for e in entries]
    if all(entry is None for entry in entries):
        entries[0] = 0
    arrays = [
        jnp.arange(float(np.prod(shape))).reshape(shape) * (i + 1) + source.below(4)
        for i in range(2)
    ]
    wrap = source.pick((nnx.Param, lambda a: nnx.Dict(w=nnx.Param(a)), lambda a: a))
    read = lambda v: v["w"].value if isinstance(v, nnx.Dict) else getattr(v, "value", v)  # noqa: E731
    out = source.pick((0, -1))

    def f(a: Any, b: Any) -> Any:
        return jnp.sin(read(a)).sum() + jnp.cos(read(b)).mean() * jnp.ones(2)

    def part(array: Any, entry: int | None, i: int) -> Any:
        return array if entry is None else jnp.take(array, i, axis=entry)

    truth = jnp.stack(
        [f(*(part(a, e, i) for a, e in zip(arrays, entries, strict=True))) for i in range(size)],
        axis=out,
    )
    mapped = nnx.vmap(f, in_axes=tuple(entries), out_axes=out)
    np.testing.assert_allclose(mapped(*map(wrap, arrays)), truth, rtol=1e-5)
    np.testing.assert_allclose(nnx.jit(mapped)(*map(wrap, arrays)), truth, rtol=1e-5)
    looped = nnx.scan(
        lambda c, a, b: (c + 1, f(a, b)),
        in_axes=(nnx.Carry, *entries),
        out_axes=(nnx.Carry, out),
    )
    c, stacked = looped(jnp.asarray(0), *map(wrap, arrays))
    assert int(c) == size
    np.testing.assert_allclose(stacked, truth, rtol=1e-5)

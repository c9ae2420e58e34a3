"""Statics compare by content and type at any depth; those without a hash by what they hold (points 7, 8)."""

from __future__ import annotations

import argparse
import array
import collections
import dataclasses
import enum
import functools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.open_points import cases


@dataclasses.dataclass(frozen=True)
class Cfg:
    value: Any


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Any
    name: str = "n"


@dataclasses.dataclass
class Open:
    value: Any = 1
    items: Any = dataclasses.field(default_factory=list)


class Named(NamedTuple):
    value: Any


class Holder:
    """An object of no library, compared by identity, hashed by it too."""

    def __init__(self, value):
        self.value = value


WRAP = {
    "frozen": Cfg,
    "nested": lambda v: Outer(Cfg(v)),
    "in a tuple": lambda v: (Cfg(v),),
    "in a named tuple": lambda v: Named(Cfg(v)),
    "in a dict": lambda v: {"k": Cfg(v)},
}


def unwrap(config):
    while not isinstance(config, (int, float, bool)):
        for name in ("inner", "value"):
            if hasattr(config, name):
                config = getattr(config, name)
                break
        else:
            config = config["k"] if isinstance(config, dict) else config[0]
    return config


PAIRS = [(1, 1.0), (1, True), (1.0, True), (0.0, -0.0)]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
@pytest.mark.parametrize("wrap", WRAP)
def test_numbers_of_other_types_are_other_statics(wrap, pair):
    f = nnx.jit(lambda m: jnp.asarray(unwrap(m["config"])))
    for value in pair:
        m = nnx.Dict(w=nnx.Param(1.0), config=WRAP[wrap](value))
        seen = f(m)
        assert seen.dtype == jnp.asarray(value).dtype
        assert (
            bool(np.signbit(seen)) == bool(np.signbit(value)) if isinstance(value, float) else True
        )


@pytest.mark.parametrize("pair", cases({str(p): (list(p),) for p in PAIRS}))
def test_static_arguments_too(pair):
    f = nnx.jit(lambda x, c: x * 0 + jnp.asarray(c.value), static_argnums=1)
    for value in pair:
        seen = f(jnp.zeros((), jnp.int32), Cfg(value))
        assert seen.dtype == (jnp.zeros((), jnp.int32) + jnp.asarray(value)).dtype


def test_a_branch_over_a_float_subclass():
    """Its repr does not tell it apart."""

    class Quiet(float):
        def __repr__(self):
            return "quiet"

    def run(value):
        f = lambda x: x * value  # noqa: E731
        return float(nnx.cond(jnp.array(True), f, f, jnp.array(1.0)))

    assert (run(Quiet(2.0)), run(Quiet(3.0))) == (2.0, 3.0)


def test_a_float_subclass_with_more_in_it():
    class Tagged(float):
        def __new__(cls, value, tag):
            self = super().__new__(cls, value)
            self.tag = tag
            return self

    def run(value):
        f = lambda x: x * value.tag  # noqa: E731
        return float(nnx.cond(jnp.array(True), f, f, jnp.array(1.0)))

    assert (run(Tagged(1.0, 2.0)), run(Tagged(1.0, 3.0))) == (2.0, 3.0)


def test_an_int_subclass_in_a_jitted_model():
    class Bits(int):
        pass

    f = nnx.jit(lambda m: m["w"].value * (2 if isinstance(m["k"], Bits) else 3))
    assert float(f(nnx.Dict(w=nnx.Param(1.0), k=Bits(1)))) == 2.0
    assert float(f(nnx.Dict(w=nnx.Param(1.0), k=1))) == 3.0


def test_enum_members_are_themselves():
    class Mode(enum.Enum):
        A = 1
        B = 2

    f = nnx.jit(lambda m: m["w"].value * m["mode"].value)
    assert float(f(nnx.Dict(w=nnx.Param(1.0), mode=Mode.A))) == 1.0
    assert float(f(nnx.Dict(w=nnx.Param(1.0), mode=Mode.B))) == 2.0


def test_numpy_scalars_in_attributes_are_statics():
    m = nnx.Dict(w=nnx.Param(1.0), k=np.float32(2))
    f = nnx.jit(lambda m: m["w"].value * m["k"])
    assert float(f(m)) == 2.0
    assert len(nnx.state(m).flat_state()) == 1
    m["k"] = np.float32(3)
    assert float(f(m)) == 3.0


NUMBERS = [np.float32(2), np.float64(2), np.int8(2), np.uint8(2), np.bool_(True), np.complex64(2)]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("wrap", [lambda k: k, lambda k: [k], lambda k: {"k": k}, Cfg, Holder])
def test_numpy_scalars_keep_their_type_and_share_programs(wrap, number):
    seen = []

    @nnx.jit
    def f(m):
        config = m["k"]
        while isinstance(config, (list, dict)):
            config = config[0] if isinstance(config, list) else config["k"]
        seen.append(getattr(config, "value", config))
        return m["w"].value

    held = wrap(number)
    for _ in range(3):
        f(nnx.Dict(w=nnx.Param(1.0), k=held))
    assert len(seen) == 1
    assert type(seen[0]) is type(number)


def test_numpy_scalars_compare_by_their_bytes():
    traces = []

    @nnx.jit
    def f(m):
        traces.append(m["k"])

    numbers = [np.float32("nan"), np.float32(0.0), np.float32(-0.0), np.float64(0.0), 0.0]
    for _ in range(2):
        for number in numbers:
            f(nnx.Dict(w=nnx.Param(1.0), k=type(number)(number)))
    assert len(traces) == len(numbers)


def test_numpy_scalars_as_arguments_and_values_are_arrays():
    f = nnx.jit(lambda m, x: m["w"].value * x)
    m = nnx.Dict(w=nnx.Param(np.float32(2)))
    assert [float(f(m, np.float32(x))) for x in (1, 2, 3)] == [2.0, 4.0, 6.0]
    assert nnx.state(m)["w"].value == 2.0


def test_what_a_frozen_dataclass_holds_may_change():
    config = Cfg(Holder(2.0))
    f = nnx.jit(lambda m: m["w"].value * m["config"].value.value)
    m = nnx.Dict(w=nnx.Param(1.0), config=config)
    assert float(f(m)) == 2.0
    config.value.value = 3.0
    assert float(f(m)) == 3.0


# -- point 8: without a hash -------------------------------------------------------------------


class Slotted:
    """Attributes without a dict."""

    __slots__ = ("other", "value")

    def __init__(self, value):
        self.value = value


class WithoutHash:
    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return type(other) is WithoutHash and other.value == self.value

    __hash__ = None


class Derived(Open):
    """Has the equality of a dataclass, and an attribute that this does not know."""

    more = 0.0


UNHASHABLE = {
    "dataclass": (lambda: Open(2.0), lambda c: c.value, lambda c: setattr(c, "value", 5.0)),
    "list in a dataclass": (
        lambda: Open(items=[2.0]),
        lambda c: sum(c.items),
        lambda c: c.items.append(3.0),
    ),
    "set": (lambda: {2.0}, sum, lambda c: c.add(3.0)),
    "set in a dataclass": (
        lambda: Open({2.0}),
        lambda c: sum(c.value),
        lambda c: c.value.add(3.0),
    ),
    "nested": (
        lambda: Open(Open(2.0)),
        lambda c: c.value.value,
        lambda c: setattr(c.value, "value", 5.0),
    ),
    "in a list": (lambda: [Open(2.0)], lambda c: c[0].value, lambda c: setattr(c[0], "value", 5.0)),
    "in a partial": (
        lambda: functools.partial(lambda c: c.value, Open(2.0)),
        lambda c: c(),
        lambda c: setattr(c.args[0], "value", 5.0),
    ),
    "frozen around": (
        lambda: Cfg(Open(2.0)),
        lambda c: c.value.value,
        lambda c: setattr(c.value, "value", 5.0),
    ),
    "list in a foreign object": (
        lambda: Holder([2.0]),
        lambda c: sum(c.value),
        lambda c: c.value.append(3.0),
    ),
    "dict in a foreign object": (
        lambda: Holder({"a": [2.0]}),
        lambda c: sum(c.value["a"]),
        lambda c: c.value["a"].append(3.0),
    ),
    "deque in a foreign object": (
        lambda: Holder(collections.deque([2.0])),
        lambda c: sum(c.value),
        lambda c: c.value.append(3.0),
    ),
    "defaultdict in a foreign object": (
        lambda: Holder(collections.defaultdict(float, a=2.0)),
        lambda c: sum(c.value.values()),
        lambda c: c.value.update(b=3.0),
    ),
    "object in an object": (
        lambda: Holder(Holder(2.0)),
        lambda c: c.value.value,
        lambda c: setattr(c.value, "value", 5.0),
    ),
    "slots": (lambda: Slotted(2.0), lambda c: c.value, lambda c: setattr(c, "value", 5.0)),
    "new slot": (
        lambda: Slotted(2.0),
        lambda c: getattr(c, "other", c.value),
        lambda c: setattr(c, "other", 5.0),
    ),
    "namespace": (
        lambda: types.SimpleNamespace(value=2.0),
        lambda c: c.value,
        lambda c: setattr(c, "value", 5.0),
    ),
    "argparse": (
        lambda: argparse.Namespace(value=2.0),
        lambda c: c.value,
        lambda c: setattr(c, "value", 5.0),
    ),
    "equality without a hash": (
        lambda: WithoutHash(2.0),
        lambda c: c.value,
        lambda c: setattr(c, "value", 5.0),
    ),
    "attribute that is no field": (
        lambda: Open(2.0),
        lambda c: getattr(c, "more", c.value),
        lambda c: setattr(c, "more", 5.0),
    ),
    "below a dataclass": (
        lambda: Derived(2.0),
        lambda c: c.value + c.more,
        lambda c: setattr(c, "more", 3.0),
    ),
    "list in a partial": (
        lambda: functools.partial(sum, [2.0]),
        lambda c: c(),
        lambda c: c.args[0].append(3.0),
    ),
    "object in a partial": (
        lambda: functools.partial(lambda c: c.value, Holder(2.0)),
        lambda c: c(),
        lambda c: setattr(c.args[0], "value", 5.0),
    ),
    "keyword of a partial of a partial": (
        lambda: functools.partial(functools.partial(lambda *, c: c.value, c=Open(2.0))),
        lambda c: c(),
        lambda c: setattr(c.keywords["c"], "value", 5.0),
    ),
    "partial in an object": (
        lambda: Holder(functools.partial(sum, [2.0])),
        lambda c: c.value(),
        lambda c: c.value.args[0].append(3.0),
    ),
}


@pytest.mark.parametrize("name", UNHASHABLE)
def test_statics_without_a_hash_are_read_by_content(name):
    make, read, change = UNHASHABLE[name]
    f = nnx.jit(lambda m: m["w"].value * read(m["config"]))
    m = nnx.Dict(w=nnx.Param(1.0))
    m["config"] = make()
    # The second call is hot.
    assert [float(f(m)), float(f(m))] == [2.0, 2.0]
    change(m["config"])
    assert float(f(m)) == 5.0


@pytest.mark.parametrize(
    "name",
    ["dataclass", "set", "nested", "namespace", "argparse", "equality without a hash", "in a list"],
)
def test_equal_content_shares_a_program(name):
    make, read, _ = UNHASHABLE[name]
    traces = []

    @nnx.jit
    def f(m):
        traces.append(1)
        return m["w"].value * read(m["config"])

    for _ in range(3):
        m = nnx.Dict(w=nnx.Param(1.0))
        m["config"] = make()
        f(m)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["dataclass", "set"])
@pytest.mark.parametrize("run", ["grad", "remat", "clone", "split", "vmap", "cond"])
def test_statics_without_a_hash_in_every_transform(run, name):
    make, read, _ = UNHASHABLE[name]
    m = nnx.Dict(w=nnx.Param(jnp.array(3.0)))
    m["config"] = make()

    def f(m):
        return m["w"].value * read(m["config"])

    runs = {
        "grad": lambda: nnx.value_and_grad(f)(m)[0],
        "remat": lambda: nnx.remat(f)(m),
        "clone": lambda: f(nnx.clone(m)),
        "split": lambda: f(nnx.merge(*nnx.split(m))),
        "vmap": lambda: nnx.vmap(f, state_axes={}, axis_size=2)(m)[0],
        "cond": lambda: nnx.cond(jnp.array(True), f, f, m),
    }
    assert float(runs[run]()) == 6.0


def test_a_static_argument_without_a_hash():
    f = nnx.jit(lambda x, c: x * c.value, static_argnums=1)
    config = Open(2.0)
    assert float(f(1.0, config)) == 2.0
    config.value = 3.0
    assert float(f(1.0, config)) == 3.0


def test_flax_models_with_an_ordinary_dataclass_config():
    flax = pytest.importorskip("flax.nnx", reason="flax has no release for this Python")

    class Model(flax.Module):
        def __init__(self, config):
            self.config = config
            self.w = flax.Param(jnp.array(1.0))

        def __call__(self):
            return self.w[...] * self.config.value

    model = Model(Open(2.0))
    f = nnx.jit(lambda m: m())
    assert float(f(model)) == 2.0
    model.config.value = 3.0
    assert float(f(model)) == 3.0
    assert float(flax.jit(lambda m: m())(model)) == 3.0


def test_a_module_with_a_config_made_by_a_call():
    m = nnx.Dict(w=nnx.Param(jnp.array(1.0)))

    @nnx.jit
    def f(m):
        m["config"] = Open(2.0)

    f(m)
    assert m["config"].value == 2.0


def test_an_equal_config_set_inside_is_the_new_one():
    m = nnx.Dict(w=nnx.Param(jnp.array(1.0)))
    m["config"] = before = Open(2.0)

    @nnx.jit
    def f(m):
        m["config"] = Open(2.0)

    f(m)
    assert m["config"] is not before
    assert m["config"] == before


@pytest.mark.parametrize(
    "make",
    [dict, lambda items: list(items.values()), lambda items: set(items.values())],
    ids=["dict", "list", "set"],
)
def test_large_tables_in_objects_count_by_identity_and_length(make):
    """They are not read at each call: what is added is seen, what is exchanged is not."""
    m = nnx.Dict(w=nnx.Param(jnp.array(1.0)))
    m["table"] = Holder(make({str(i): i for i in range(100_000)}))
    f = nnx.jit(lambda m: m["w"].value * len(m["table"].value))
    assert float(f(m)) == 100_000
    grow = getattr(m["table"].value, "add", getattr(m["table"].value, "append", None))
    grow(-1) if grow else m["table"].value.update(a=1)
    assert float(f(m)) == 100_001
    m["table"].value = make({"a": 1})
    assert float(f(m)) == 1


def test_large_frozen_configs_compare_by_content():
    traces = []

    @nnx.jit
    def f(m):
        traces.append(1)
        return m["w"].value

    for _ in range(3):
        f(nnx.Dict(w=nnx.Param(jnp.array(1.0)), config=Cfg(tuple(range(5_000)))))
    assert len(traces) == 1
    f(nnx.Dict(w=nnx.Param(jnp.array(1.0)), config=Cfg((*range(4_999), 0))))
    assert len(traces) == 2


class Sampler:
    """An object that is no node, with a method that reads it."""

    def __init__(self, held=None):
        self.rate = 1.0
        self.held = held

    def at(self, x):
        return x * self.rate


def holders():
    """Objects that hold what changes in place and has no hash, and how to read it."""
    return {
        "numpy in a dataclass": lambda: Arrays(np.array([1.0])),
        "numpy in a frozen dataclass": lambda: FrozenArrays(np.array([1.0])),
        "numpy in a namespace": lambda: types.SimpleNamespace(held=np.array([1.0])),
        "numpy in an object": lambda: Sampler(np.array([1.0])),
        "numpy below a list": lambda: Nested(),
        "array": lambda: Arrays(array.array("d", [1.0])),
        "memoryview": lambda: Arrays(memoryview(array.array("d", [1.0]))),
        "list": lambda: Arrays([1.0]),
    }


@dataclasses.dataclass
class Arrays:
    held: object


@dataclasses.dataclass(frozen=True)
class FrozenArrays:
    held: object


class Nested:
    """What it holds is found below a list of its own."""

    def __init__(self):
        self.parts = [np.array([1.0])]

    @property
    def held(self):
        return self.parts[0]


CALLS = {
    "jit": lambda: nnx.jit(lambda m, x: x * m["c"].held[0]),
    "remat": lambda: nnx.remat(lambda m, x: x * m["c"].held[0]),
    "cond": lambda: lambda m, x: nnx.cond(True, times_held, times_held, m, x),
    "fori_loop": lambda: (
        lambda m, x: nnx.fori_loop(0, 1, lambda i, c: (c[0], times_held(*c)), (m, x))[1]
    ),
}


def times_held(m, x):
    return x * m["c"].held[0]


@pytest.mark.parametrize("call", cases(CALLS))
@pytest.mark.parametrize("make", cases(holders()))
def test_arrays_and_buffers_in_objects_are_read_by_content(make, call):
    held, f = make(), call()
    m = nnx.Dict(c=held)
    assert float(f(m, jnp.array(3.0))) == 3.0
    held.held[0] = 2.0
    assert float(f(m, jnp.array(3.0))) == 6.0


def test_a_method_of_an_object_is_read_with_the_object():
    sampler = Sampler()
    passed = nnx.jit(lambda x, f: f(x), static_argnames="f")
    m = nnx.Dict(f=sampler.at)
    held = {
        "jit": nnx.jit(lambda m, x: m.f(x)),
        "remat": nnx.remat(lambda m, x: m.f(x)),
        "cond": lambda m, x: nnx.cond(True, lambda m, x: m.f(x), lambda m, x: x, m, x),
    }
    for rate in (1.0, 2.0):
        sampler.rate = rate
        assert float(passed(3.0, sampler.at)) == 3.0 * rate
        for f in held.values():
            assert float(f(m, jnp.array(3.0))) == 3.0 * rate


def test_the_kind_of_keys_is_part_of_what_is_compiled_outside_of_jit():
    def draw(x):
        return x + jax.random.normal(jax.random.key(3), ())

    for kind in ("threefry2x32", "rbg", "threefry2x32"):
        with jax.default_prng_impl(kind):
            drawn = nnx.cond(True, draw, lambda x: x, jnp.array(0.0))
            np.testing.assert_allclose(drawn, draw(jnp.array(0.0)))
            looped = nnx.fori_loop(0, 1, lambda i, x: draw(x), jnp.array(0.0))
            np.testing.assert_allclose(looped, draw(jnp.array(0.0)))

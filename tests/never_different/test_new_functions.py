"""A new function gets the program of another only if all that it reads is known and equal (points 4 to 6)."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import itertools
import os
import random
import secrets
import time
import types
import uuid
from time import perf_counter_ns
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.open_points import cases, pairs
from treadle import _core

LAM = 1.0
ITEMS = [1.0]


class Settings:
    rate = 1.0


def by_global(w):
    return w * LAM


def by_list(w):
    return w * sum(ITEMS)


def by_class_attribute(w):
    return w * Settings.rate


def by_function_attribute(w):
    return w * by_function_attribute.rate


by_function_attribute.rate = 1.0
NAMESPACE = types.SimpleNamespace(rate=1.0)
TABLE = {"rate": 1.0}


def by_namespace(w):
    return w * NAMESPACE.rate


def by_table(w):
    return w * TABLE["rate"]


COUNTER = itertools.count()
USERS = types.ModuleType("users")
USERS.inner = types.ModuleType("users.inner")
USERS.clock = time.perf_counter_ns
USERS.rate = 2.0
USERS.scaled = USERS.inner.scaled = by_global


def by_module(w):
    return USERS.inner.scaled(w)


def two_levels(w):
    return by_global(w)


def set_rate(value):
    """Change everything that the functions above read."""
    globals()["LAM"] = value
    ITEMS[:] = [value]
    Settings.rate = by_function_attribute.rate = NAMESPACE.rate = TABLE["rate"] = value


INNER = {
    "global": by_global,
    "list": by_list,
    "class attribute": by_class_attribute,
    "function attribute": by_function_attribute,
    "namespace": by_namespace,
    "dict": by_table,
    "two levels": two_levels,
    "module": by_module,
    "vmapped": jax.vmap(by_global, in_axes=None, axis_size=1),
    "jax gradient": jax.grad(lambda w: by_global(w) * 1.0),
    "jax checkpoint": jax.checkpoint(by_global),
    "partial": functools.partial(by_global),
    "cached": functools.wraps(by_global)(lambda w: by_global(w)),
    "custom_jvp": jax.custom_jvp(by_global),
    "custom_vjp": jax.custom_vjp(by_global),
    "bound method": types.MethodType(lambda self, w: w * LAM, object()),
}
INNER["custom_jvp"].defjvp(lambda p, t: (by_global(p[0]), LAM * t[0]))
INNER["custom_vjp"].defvjp(lambda w: (by_global(w), None), lambda _, g: (g * LAM,))

# The wrapper is made anew for each call, the inner function is one and the same.
FRESH = {
    "lambda": lambda inner: lambda n: inner(n["w"].value),
    "default": lambda inner: lambda n, inner=inner: inner(n["w"].value),
    "partial": lambda inner: functools.partial(lambda i, n: i(n["w"].value), inner),
    "list": lambda inner: (lambda table: lambda n: table[0](n["w"].value))([inner]),
    "closure of a closure": lambda inner: (lambda g: lambda n: g(n))(lambda n: inner(n["w"].value)),
}


def net():
    return nnx.Dict(w=nnx.Param(jnp.array(3.0)))


@pytest.fixture(autouse=True)
def rates():
    set_rate(1.0)
    yield
    set_rate(1.0)


def first(value):
    return float(jnp.ravel(value)[0])


def eager(inner):
    return first(inner(3.0))


@pytest.mark.parametrize(
    ("inner", "fresh"),
    cases(pairs(INNER, FRESH)),
)
def test_fresh_functions_as_static_arguments(inner, fresh):
    step = nnx.jit(lambda n, loss: loss(n), static_argnames="loss")
    assert first(step(net(), loss=fresh(inner))) == eager(inner)
    set_rate(5.0)
    assert first(step(net(), loss=fresh(inner))) == eager(inner)


@pytest.mark.parametrize("inner", cases(INNER))
def test_fresh_functions_as_attributes(inner):
    step = nnx.jit(lambda n: n["loss"](n))
    n = net()
    n["loss"] = FRESH["lambda"](inner)
    assert first(step(n)) == eager(inner)
    set_rate(5.0)
    n["loss"] = FRESH["lambda"](inner)
    assert first(step(n)) == eager(inner)


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_fresh_branches_of_an_eager_cond(inner):
    for rate in (1.0, 5.0):
        set_rate(rate)
        f = FRESH["lambda"](inner)
        assert first(nnx.cond(jnp.array(True), f, f, net())) == eager(inner)


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_fresh_bodies_of_loops_and_switches(inner):
    for rate in (1.0, 5.0):
        set_rate(rate)
        f = FRESH["lambda"](inner)
        assert first(nnx.switch(0, [f, f], net())) == eager(inner)
        out = nnx.scan(lambda c, f=f: (c, f(net())), length=1)(0.0)[1]
        assert first(out) == eager(inner)


WRAPPED = {
    "grad": nnx.grad(lambda w: w * LAM),
    "vmap": nnx.vmap(lambda w: w * LAM, in_axes=None, axis_size=1),
    "remat": nnx.remat(lambda w: w * LAM),
}


@pytest.mark.parametrize("inner", cases(WRAPPED))
def test_fresh_functions_over_our_own_wrappers(inner):
    step = nnx.jit(lambda n, loss: loss(n), static_argnames="loss")
    for rate in (1.0, 5.0):
        set_rate(rate)
        assert first(step(net(), loss=lambda n: inner(n["w"].value))) == eager(inner)


def test_a_jitted_function_in_a_fresh_one():
    inner = nnx.jit(lambda w: w * 2.0)
    step = nnx.jit(lambda n, loss: loss(n), static_argnames="loss")
    assert first(step(net(), loss=lambda n: inner(n["w"].value))) == 6.0
    assert first(step(net(), loss=lambda n: inner(n["w"].value))) == 6.0


def test_fresh_functions_over_an_optax_transformation():
    optax = pytest.importorskip("optax")
    tx = optax.stateless(lambda updates, params: jax.tree.map(lambda u: u * LAM, updates))
    step = nnx.jit(lambda n, f: f(n), static_argnames="f")
    for rate in (1.0, 5.0):
        set_rate(rate)
        out = step(net(), f=lambda n: tx.update(n["w"].value, tx.init(n["w"].value))[0])
        assert first(out) == 3.0 * rate


def test_the_very_same_function_is_taken_at_its_word():
    """As by jax.jit."""
    traces = []

    def loss(n):
        traces.append(1)
        return n["w"].value * LAM

    step = nnx.jit(lambda n, loss: loss(n), static_argnames="loss")
    step(net(), loss=loss), step(net(), loss=loss)
    assert len(traces) == 1


def test_equal_functions_over_constants_share_a_program():
    traces = []

    def scale(k):
        def f(w):
            return w * k

        return f

    @functools.partial(nnx.jit, static_argnames="loss")
    def step(n, loss):
        traces.append(1)
        return loss(n["w"].value)

    assert first(step(net(), loss=scale(2.0))) == 6.0
    assert first(step(net(), loss=scale(2.0))) == 6.0
    assert first(step(net(), loss=scale(3.0))) == 9.0
    assert len(traces) == 2


class Base:
    factor = 2.0

    def __init__(self, scale):
        self.scale = scale

    def scaled(self, w):
        return w * self.factor * self.scale


class Derived(Base):
    def __init__(self, scale):
        super().__init__(scale)

    @property
    def doubled(self):
        return 2 * self.scale

    @functools.cached_property
    def kept(self):
        return self.scale

    @staticmethod
    def same(w):
        return w

    @classmethod
    def of(cls):
        return cls(1.0)


class Net(nnx.Module):
    def __init__(self, rngs):
        super().__init__()
        self.linear = nnx.Linear(2, 2, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


class Mode(enum.Enum):
    ONE = 1
    TWO = 2

    def times(self, w):
        return w * self.value


@dataclasses.dataclass
class Config:
    rate: float = 2.0
    names: list[str] = dataclasses.field(default_factory=list)

    def scaled(self, w):
        return w * self.rate


@dataclasses.dataclass(frozen=True)
class Fixed:
    value: Any


class Pair(NamedTuple):
    a: float


def made_over(value, f):
    """A new function over one object."""
    return lambda: lambda w: f(value, w)


COMMON = {
    "class": lambda: lambda w: Derived(2.0).scaled(w),
    "class method": lambda: lambda w: Derived.of().scaled(w),
    "class attribute": lambda: lambda w: w * Derived.factor,
    "isinstance": lambda: lambda w: w * (2.0 if isinstance(w, Net) else 3.0),
    "own module": lambda: lambda w: Net(nnx.Rngs(0))(jnp.ones(2)).sum() * w,
    "layer": lambda: lambda w: nnx.Linear(2, 2, rngs=nnx.Rngs(0))(jnp.ones(2)).sum() * w,
    "enumeration": lambda: lambda w: Mode.TWO.times(w),
    "dataclass": lambda: lambda w: Config().scaled(w),
    "named tuple": lambda: lambda w: w * Pair(2.0).a,
    "numpy scalar": lambda: lambda w: w * np.float32(2.0),
    "gradient": lambda: lambda w: nnx.grad(lambda x: x * x)(w),
    "config": made_over(Config(3.0), lambda c, w: c.scaled(w)),
    "set": made_over({1.0, 2.0}, lambda c, w: w * len(c)),
    "member": made_over(Mode.TWO, lambda c, w: c.times(w)),
    "module": lambda: lambda w: w * USERS.rate + USERS.scaled(w),
    "package": lambda: lambda w: USERS.inner.scaled(w),
}


@pytest.mark.parametrize("name", COMMON)
def test_common_functions_made_anew_share_a_program(name):
    traces = []

    @functools.partial(nnx.jit, static_argnames="loss")
    def step(w, loss):
        traces.append(1)
        return loss(w)

    for _ in range(3):
        np.testing.assert_allclose(step(3.0, loss=COMMON[name]()), COMMON[name]()(3.0), rtol=1e-6)
    assert len(traces) == 1


def rate_of_a_default():
    return LAM


@dataclasses.dataclass
class WithDefault:
    rate: float = dataclasses.field(default_factory=rate_of_a_default)


CHANGES = {
    "method": ("class", Derived, "scaled", lambda self, w: w + self.scale),
    "method of a base": ("class", Base, "scaled", lambda self, w: w + self.scale),
    "attribute of a base": ("class", Base, "factor", 7.0),
    "through a class method": ("class method", Base, "factor", 7.0),
    "read from the class": ("class attribute", Base, "factor", 7.0),
    "forward": ("own module", Net, "__call__", lambda self, x: self.linear(x) + 1.0),
    "method of a member": ("enumeration", Mode, "times", lambda self, w: w + self.value),
    "method of a captured member": ("member", Mode, "times", lambda self, w: w + self.value),
    "attribute of a module": ("module", USERS, "rate", 7.0),
    "attribute of an inner module": ("package", USERS.inner, "scaled", lambda w: w + 1.0),
    "inner module": ("package", USERS, "inner", types.SimpleNamespace(scaled=lambda w: w + 2.0)),
    "method of a dataclass": ("config", Config, "scaled", lambda self, w: w + self.rate),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("run", ["jit", "cond"])
def test_new_functions_follow_classes_that_change(change, run, monkeypatch):
    name, owner, attribute, value = CHANGES[change]
    step = nnx.jit(lambda w, loss: loss(w), static_argnames="loss")
    runs = {
        "jit": lambda f: step(3.0, loss=f),
        "cond": lambda f: nnx.cond(jnp.array(True), f, f, jnp.array(3.0)),
    }
    before = float(COMMON[name]()(3.0))
    np.testing.assert_allclose(runs[run](COMMON[name]()), before, rtol=1e-6)
    monkeypatch.setattr(owner, attribute, value)
    after = float(COMMON[name]()(3.0))
    assert after != before
    np.testing.assert_allclose(runs[run](COMMON[name]()), after, rtol=1e-6)


def test_a_default_factory_reads_a_global():
    step = nnx.jit(lambda w, loss: loss(w), static_argnames="loss")
    for rate in (1.0, 5.0):
        set_rate(rate)
        assert first(step(3.0, loss=lambda w: w * WithDefault().rate)) == 3.0 * rate


def test_a_metaclass_is_read_too(monkeypatch):
    class Meta(type):
        def rate(cls):
            return 2.0

    class Made(metaclass=Meta):
        pass

    step = nnx.jit(lambda w, loss: loss(w), static_argnames="loss")
    assert first(step(3.0, loss=lambda w: w * Made.rate())) == 6.0
    monkeypatch.setattr(Meta, "rate", lambda cls: 5.0)
    assert first(step(3.0, loss=lambda w: w * Made.rate())) == 15.0


UNKNOWN = {
    "Settings": made_over(Settings(), lambda s, w: w * s.rate),
    "module": lambda: lambda w: w * float(bool(USERS)),
    "ndarray": made_over(np.ones(2), lambda a, w: w * a.sum()),
    "list_iterator": made_over(iter([1.0]), lambda o, w: w),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_unknown_is_named_when_retraces_are_explained(kind):
    step = nnx.jit(lambda w, loss: loss(w), static_argnames="loss")
    with nnx.explain_retraces(sink=lambda retrace: None) as explained:
        for _ in range(2):
            step(3.0, loss=UNKNOWN[kind]())
    assert f"a {kind} that may have changed" in str(explained[0])


def test_numpy_vectorize_over_what_changed():
    f = np.vectorize(lambda w: w * LAM)
    step = nnx.jit(lambda x, g: x + g(), static_argnames="g")
    for rate in (1.0, 5.0):
        set_rate(rate)
        assert first(step(0.0, g=lambda: float(f(3.0)))) == 3.0 * rate


# -- point 5: builtins -------------------------------------------------------------------------


def test_a_clock_in_a_fresh_branch_is_read_again():
    def read():
        def branch(x):
            return x + perf_counter_ns() % 2**20

        return int(nnx.cond(jnp.array(True), branch, branch, jnp.array(0)))

    assert len({read() for _ in range(4)}) > 1


def test_a_clock_in_a_fresh_attribute_is_read_again():
    f = nnx.jit(lambda n: n["w"].value * 0 + n["clock"]())
    seen = set()
    for _ in range(4):
        n = net()
        n["clock"] = lambda: perf_counter_ns() % 2**20
        seen.add(float(f(n)))
    assert len(seen) > 1


NUMBERS = iter(range(100))


def through(read):
    """A new function over an old one."""
    return lambda: read()


IMPURE = {
    "time.time_ns": lambda: (lambda c: lambda: c() % 2**20)(time.time_ns),
    "random.random": lambda: through(random.random),
    "numpy.random": lambda: through(np.random.random),
    "iterator": lambda: through(NUMBERS.__next__),
    "os.urandom": lambda: (lambda c: lambda: int.from_bytes(c(2), "big"))(os.urandom),
    "time of a module": lambda: lambda: time.time_ns() % 2**20,
    "random of a module": lambda: lambda: random.random(),
    "os of a module": lambda: lambda: int.from_bytes(os.urandom(2), "big"),
    "a class in C": lambda: lambda: datetime.datetime.now().microsecond,
    "its method": lambda: (lambda now: lambda: now().microsecond)(datetime.datetime.now),
    "below a class in C": lambda: lambda: random.Random().random(),
    "uuid": lambda: lambda: uuid.uuid4().int % 2**20,
    "secrets": lambda: lambda: secrets.randbelow(2**20),
    "counter": lambda: lambda: next(COUNTER),
    "a module of the user's": lambda: lambda: USERS.clock() % 2**20,
}


@pytest.mark.parametrize("make", cases(IMPURE))
def test_impure_builtins_are_not_constants(make):
    step = nnx.jit(lambda x, g: x + g(), static_argnames="g")
    seen = {float(step(0.0, g=make())) for _ in range(4)}
    assert len(seen) > 1


def test_print_in_a_fresh_branch_prints_each_time(capsys):
    def call():
        def branch(x):
            print("here")
            return x

        nnx.cond(jnp.array(True), branch, lambda x: x, jnp.array(0))

    call(), call(), call()
    assert capsys.readouterr().out == "here\n" * 3


def test_a_class_that_claims_to_be_a_builtins():
    def make():
        class Claimed:
            __module__ = "builtins"

            def __init__(self):
                self.k = LAM

            def __call__(self, w):
                return w * LAM

        return Claimed

    kind = make()
    step = nnx.jit(lambda n, loss: loss(n), static_argnames="loss")
    obj = kind()
    for rate in (1.0, 5.0):
        set_rate(rate)
        assert first(step(net(), loss=lambda n: obj(n["w"].value))) == 3.0 * rate


def test_a_class_that_claims_to_be_of_a_known_package():
    class Claimed:
        __module__ = "jax.numpy"
        rate = 1.0

        @staticmethod
        def scale(w):
            return w * Claimed.rate

    step = nnx.jit(lambda n, loss: loss(n), static_argnames="loss")
    for rate in (1.0, 5.0):
        Claimed.rate = rate
        assert first(step(net(), loss=lambda n: Claimed.scale(n["w"].value))) == 3.0 * rate


def test_math_and_operator_are_constants():
    import math
    import operator

    traces = []

    @functools.partial(nnx.jit, static_argnames="f")
    def step(x, f):
        traces.append(1)
        return f(x)

    for _ in range(3):
        step(1.0, f=lambda x: operator.mul(x, math.sqrt(4.0)))
        step(1.0, f=lambda x: jnp.sin(x))
    assert len(traces) == 2


# -- point 6: back-references ------------------------------------------------------------------


def test_back_references_compare_what_they_lead_to():
    grown = []

    def a_f():
        return len(grown)

    def factory(b, c, d):
        return lambda x: x * d[0] + 0 * (a_f() + b[0] + c[0])

    b, c = [2.0], [3.0]
    step = nnx.jit(lambda x, f: f(x), static_argnames="f")
    assert float(step(1.0, f=factory(b, c, b))) == 2.0
    grown.append(1)
    assert float(step(1.0, f=factory(b, c, c))) == 3.0


def test_back_references_through_dicts_and_functions():
    grown = {}

    def size():
        return len(grown)

    def factory(b, c, d):
        return lambda x: x * d() + 0 * (size() + b() + c())

    def two():
        return 2.0

    def three():
        return 3.0

    step = nnx.jit(lambda x, f: f(x), static_argnames="f")
    assert float(step(1.0, f=factory(two, three, two))) == 2.0
    grown["k"] = 1
    assert float(step(1.0, f=factory(two, three, three))) == 3.0


def test_back_references_in_an_eager_branch():
    grown = []

    def a_f():
        return len(grown)

    def factory(b, c, d):
        return lambda x: x * d[0] + 0 * (a_f() + b[0] + c[0])

    b, c = [2.0], [3.0]
    run = lambda f: float(nnx.cond(jnp.array(True), f, f, jnp.array(1.0)))  # noqa: E731
    assert run(factory(b, c, b)) == 2.0
    grown.append(1)
    assert run(factory(b, c, c)) == 3.0


GROWN: list[int] = []


def length():
    return len(GROWN)


def over(b, c, d):
    a_f = length
    return lambda x: x * d[0] + 0 * (a_f() + b[0] + c[0])


def test_back_references_after_a_global_has_grown():
    b, c = [2.0], [3.0]
    GROWN.clear()
    step = nnx.jit(lambda m, x: m["f"](x))
    assert float(step(nnx.Dict(f=over(b, c, b)), 1.0)) == 2.0
    for _ in range(3):
        GROWN.append(1)
        assert float(step(nnx.Dict(f=over(b, c, c)), 1.0)) == 3.0
        assert float(step(nnx.Dict(f=over(b, c, b)), 1.0)) == 2.0


# -- what operands bring along -----------------------------------------------------------------


class Scaled(nnx.Module):
    factor = 2.0

    def __init__(self):
        self.w = nnx.Param(jnp.array(3.0))
        self.act = by_global

    def __call__(self, x):
        return self.act(x * self.w.value * self.factor)


class ScaledConfig:
    def scale(self):
        return 1.0


def called(m):
    return m(1.0)


def by_config(m):
    return m["w"].value * m["config"].scale()


EAGER = {
    "cond": lambda f, m: nnx.cond(jnp.array(True), f, f, m),
    "switch": lambda f, m: nnx.switch(0, [f], m),
    "while_loop": lambda f, m: nnx.while_loop(
        lambda c: c[0] < 1, lambda c: (c[0] + 1, f(c[2]), c[2]), (0, 0.0, m)
    )[1],
    "fori_loop": lambda f, m: nnx.fori_loop(0, 1, lambda i, c: (f(c[1]), c[1]), (0.0, m))[0],
    "scan": lambda f, m: nnx.scan(lambda c, m: (c, f(m)), length=1, state_axes={})(0.0, m)[1],
    "remat": lambda f, m: nnx.remat(f)(m),
    "vmap": lambda f, m: nnx.vmap(f, state_axes={}, axis_size=1)(m),
}
every_eager = pytest.mark.parametrize("run", EAGER)


@every_eager
def test_a_patched_method_of_an_operand(run, monkeypatch):
    m = Scaled()
    assert first(EAGER[run](called, m)) == 6.0
    monkeypatch.setattr(Scaled, "__call__", lambda self, x: x + self.w.value)
    assert first(EAGER[run](called, m)) == 4.0


@every_eager
def test_a_class_attribute_of_an_operand(run, monkeypatch):
    m = Scaled()
    assert first(EAGER[run](called, m)) == 6.0
    monkeypatch.setattr(Scaled, "factor", 5.0)
    assert first(EAGER[run](called, m)) == 15.0


@every_eager
def test_a_global_that_a_function_in_an_operand_reads(run):
    m = Scaled()
    assert first(EAGER[run](called, m)) == 6.0
    set_rate(5.0)
    assert first(EAGER[run](called, m)) == 30.0


@every_eager
def test_a_method_of_a_config_in_an_operand(run, monkeypatch):
    m = net()
    m["config"] = ScaledConfig()
    assert first(EAGER[run](by_config, m)) == 3.0
    monkeypatch.setattr(ScaledConfig, "scale", lambda self: 5.0)
    assert first(EAGER[run](by_config, m)) == 15.0


def test_what_common_operands_bring_along_is_known():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 2, rngs=rngs)
            self.norm = nnx.BatchNorm(2, rngs=rngs)
            self.act = jax.nn.relu
            self.mode = Mode.ONE
            self.config = Fixed((1, 2.0, "a"))

        def __call__(self, x):
            return self.norm(self.act(self.linear(x)))

    keys = [_core.fingerprint(*nnx.graphdef(Block(nnx.Rngs(0))).callables()) for _ in range(2)]
    assert keys[0] is not None
    assert keys[0] == keys[1]

"""Promises of cond, switch, while_loop and fori_loop."""

from __future__ import annotations

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.transforms import models as shared_models
from tests.transforms.models import Block, assert_same, values
from treadle.transforms import _branches, _loops


def make():
    return nnx.Dict(a=nnx.Param(jnp.array(1.0)), b=nnx.Param(jnp.array(2.0)))


def grow(m, x):
    m["a"].value = m["a"].value + x
    return x


def shrink(m, x):
    m["b"].value = m["b"].value - x
    return -x


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("pred", [False, True])
def test_cond_runs_one_branch_by_reference(pred, jitted):
    m, expected = make(), make()
    a, b = m["a"], m["b"]

    def run(m, pred):
        return nnx.cond(pred, grow, shrink, m, jnp.array(3.0))

    out = (nnx.jit(run) if jitted else run)(m, jnp.array(pred))
    assert float(out) == (grow if pred else shrink)(expected, 3.0)
    assert m["a"] is a
    assert m["b"] is b
    assert_same(values(m), values(expected))


def test_cond_leaves_what_no_branch_changes_alone():
    m = make()
    b = m["b"].value
    nnx.cond(True, grow, lambda m, x: x, m, 1.0)
    assert m["b"].value is b


def test_cond_may_only_read_nodes_of_another_trace_level():
    m = make()
    f = jax.jit(lambda p: nnx.cond(p, lambda m: m["a"].value, lambda m: m["b"].value, m))
    assert (float(f(True)), float(f(False))) == (1.0, 2.0)


def test_cond_with_equal_structure_changes():
    def extend(value):
        def f(m):
            m["new"] = nnx.Param(jnp.array(value))
            m.kind = "extended"
            return m, m["a"]

        return f

    m = make()
    returned, a = nnx.cond(jnp.array(False), extend(1.0), extend(2.0), m)
    assert returned is m
    assert a is m["a"]
    assert float(m["new"].value) == 2.0
    assert m.kind == "extended"


def test_cond_draws_random_numbers_by_reference():
    rngs = nnx.Rngs(0)
    drawn = nnx.cond(
        jnp.array(True), lambda r: jax.random.uniform(r()), lambda r: jnp.array(0.0), rngs
    )
    expected = jax.random.uniform(jax.random.fold_in(jax.random.key(0), 0))
    assert float(drawn) == float(expected)
    assert int(rngs.default.count.value) == 1


def test_cond_is_differentiable():
    def loss(m, p):
        return nnx.cond(p, lambda m: m["a"].value ** 2, lambda m: m["b"].value ** 3, m)

    grads = nnx.grad(loss)(make(), jnp.array(False))
    assert float(grads["a"].value) == 0.0
    assert float(grads["b"].value) == 12.0


def test_cond_without_jit():
    m = make()
    with jax.disable_jit():
        assert float(nnx.cond(jnp.array(True), grow, shrink, m, 3.0)) == 3.0
    assert float(m["a"].value) == 4.0


def note(m, x):
    m.note = x if isinstance(x, str) else "noted"
    return x


def widen(m, x):
    m["a"].value = jnp.ones(3)
    return x


def pair(m, x):
    return x, x


def wide(m, x):
    return jnp.ones(2)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (note, r"branches 0 \(grow\) and 1 \(note\) leave m\.note with different structure"),
        (pair, r"leave the result with different structure"),
        (wide, r"give the result different types: float32\[\] and float32\[2\]"),
        (widen, r"give m\.a different types: float32\[\] and float32\[3\]"),
    ],
)
def test_branches_that_disagree_are_a_clear_error(other, message):
    m = make()
    before, attributes = values(m), set(vars(m))
    with pytest.raises(TypeError, match=message):
        nnx.cond(True, grow, other, m, jnp.array(1.0))
    assert_same(values(m), before)
    assert set(vars(m)) == attributes


@pytest.mark.parametrize("index", [-1, 0, 1, 2, 7])
def test_switch_runs_one_branch_clamped(index):
    m, expected = make(), make()
    functions = [grow, shrink, lambda m, x: 2 * x]
    out = nnx.switch(jnp.array(index), functions, m, jnp.array(3.0))
    assert float(out) == functions[min(max(index, 0), 2)](expected, 3.0)
    assert_same(values(m), values(expected))


def test_switch_needs_a_branch():
    with pytest.raises(ValueError, match="at least one branch"):
        nnx.switch(0, [])


def body(carry):
    m, i = carry
    m(jnp.ones((1, 2)))
    return m, i + 1


def test_while_loop_is_the_python_loop():
    m, expected = Block(2, rngs=nnx.Rngs(0)), Block(2, rngs=nnx.Rngs(0))
    kernel = m.kernel
    returned, i = nnx.while_loop(lambda c: c[1] < 4, body, (m, 0))
    for _ in range(4):
        body((expected, 0))
    assert returned is m
    assert m.kernel is kernel
    assert int(i) == 4
    assert_same(nnx.state(m), nnx.state(expected))


def test_while_loop_that_never_runs():
    m = make()
    before = values(m)
    nnx.while_loop(lambda m: m["a"].value < 0, lambda m: (grow(m, 1.0), m)[1], m)
    assert_same(values(m), before)


def test_fori_loop_is_the_python_loop():
    m, expected = make(), make()

    def f(i, m):
        m["a"].value, m["b"].value = m["b"].value * i, m["a"].value
        return m

    assert nnx.fori_loop(1, 4, f, m) is m
    for i in range(1, 4):
        f(i, expected)
    assert_same(values(m), values(expected))


def test_fori_loop_unroll_reaches_jax():
    def traced(**parameters):
        def run(x):
            return nnx.fori_loop(0, 4, lambda i, x: x * 2.0, x, **parameters)

        return str(jax.make_jaxpr(run)(1.0))

    assert "unroll=2" in traced(unroll=2)
    assert "unroll=4" in traced(unroll=True)
    assert traced() != traced(unroll=2)


def test_fori_loop_with_traced_bounds():
    f = jax.jit(lambda n: nnx.fori_loop(0, n, lambda i, x: x + i, 0))
    assert int(f(5)) == 10


def test_streams_in_loops_are_carried():
    rngs = nnx.Rngs(0)

    def f(i, carry):
        rngs, total = carry
        return rngs, total + jax.random.uniform(rngs())

    _, total = nnx.fori_loop(0, 3, f, (rngs, 0.0))
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(3)]
    np.testing.assert_allclose(total, sum(jax.random.uniform(k) for k in keys), rtol=1e-6)
    assert int(rngs.default.count.value) == 3


@pytest.mark.parametrize("unroll", [None, True])
@pytest.mark.parametrize("jitted", [False, True])
def test_loops_that_never_run_return_what_they_were_given(jitted, unroll):
    m = make()
    before = values(m)
    assert nnx.fori_loop(0, 0, lambda i, m: (grow(m, i), m)[1], m, unroll=unroll) is m
    with jax.disable_jit(not jitted):
        assert nnx.fori_loop(3, 0, lambda i, m: (grow(m, i), m)[1], m) is m
        returned, i = nnx.while_loop(
            lambda c: c[1] > 0, lambda c: (grow(*c), (c[0], c[1] - 1.0))[1], (m, 0.0)
        )
    assert returned is m
    assert float(i) == 0.0
    assert_same(values(m), before)


def swap(m):
    m["a"], m["b"] = m["b"], m["a"]
    m["a"].value = m["a"].value + 1


def replace(m):
    m["a"] = nnx.Param(m["a"].value + 1)


def alias(m):
    m["a"] = m["b"]


LOOPS = {
    "fori_loop": lambda f, m: nnx.fori_loop(0, 4, lambda i, m: (f(m), m)[1], m),
    "while_loop": lambda f, m: nnx.while_loop(
        lambda c: c[1] < 4, lambda c: (f(c[0]), (c[0], c[1] + 1))[1], (m, 0)
    ),
    "scan": lambda f, m: nnx.scan(lambda m, x: (f(m), (m, x))[1])(m, jnp.arange(4)),
    "scan, state carried": lambda f, m: nnx.scan(lambda c, m: (c, f(m)), length=4, state_axes={})(
        0, m
    ),
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (swap, r"\.a is carried.*must stay the same object.*puts \S+\.b in its place"),
        (replace, r"\.a is carried.*must stay the same object.*puts another Param in its place"),
        (alias, r"\.b is carried.*its structure must stay the same"),
    ],
)
def test_other_objects_inside_a_carry_are_clear_errors(loop, jitted, function, message):
    m = make()
    before, inside = values(m), dict(m)
    with pytest.raises(TypeError, match=message), jax.disable_jit(not jitted):
        loop(function, m)
    assert_same(values(m), before)
    assert all(m[key] is inside[key] for key in inside)


@pytest.mark.parametrize("nested", [False, True])
def test_swaps_across_the_parts_of_a_carry_are_clear_errors(nested):
    def f(i, carry):
        m, n = carry
        m["a"], n["b"] = n["b"], m["a"]
        return m, n

    m = make()
    n = nnx.Dict(m=m, b=nnx.Param(jnp.array(0.0))) if nested else make()
    with pytest.raises(TypeError, match=r"carry\[0\]\.a is carried.*puts carry\[1\]\.b in its"):
        nnx.fori_loop(0, 2, f, (m, n))


def test_a_part_of_the_carry_that_is_passed_beside_it_is_an_object_like_others():
    def f(i, carry):
        swap(carry[0])
        return carry

    m = make()
    with pytest.raises(TypeError, match=r"carry\[0\]\.a is carried.*puts carry\[0\]\.b in its"):
        nnx.fori_loop(0, 2, f, (m, m["a"]))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m: nnx.clone(m), "the carry m is Dict; the function must return that same object"),
        (lambda m: (m, 1), "must come back with the structure"),
        (lambda m: (note(m, "x"), m)[1], r"m\.note is carried"),
        (lambda m: (widen(m, 1), m)[1], r"m\.a is carried.*float32\[\] to float32\[3\]"),
    ],
)
def test_carries_that_change_are_clear_errors(function, message):
    m = make()
    before, attributes = values(m), set(vars(m))
    with pytest.raises(TypeError, match=message):
        nnx.while_loop(lambda m: m["a"].value < 3, function, m)
    assert_same(values(m), before)
    assert set(vars(m)) == attributes


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m: grow(m, 1.0) > 0, r"cond_fun changes m\.a, but it may only look"),
        (lambda m: note(m, "x") == "x", "structure, but it may only look"),
        (lambda m: m["a"].value, r"must return a boolean scalar, it returned float32\[\]"),
        (lambda m: m["a"], r"must return a boolean scalar, it returned a Param\. Return its value"),
        (lambda m: m, r"must return a boolean scalar, it returned a Dict\.(\n|$)"),
        (lambda m: (m["a"],), r"must return a boolean scalar, it returned a tuple\.(\n|$)"),
    ],
)
def test_cond_fun_that_does_more_than_look_is_a_clear_error(function, message):
    with pytest.raises(TypeError, match=message):
        nnx.while_loop(function, lambda m: m, make())


# -- called outside of any transform ---------------------------------------------------------------


def _calls_of(tag: int):
    """Fresh functions each time, as a loop around such a call makes them."""

    def add(i, carry):
        return carry[0], carry[1] + tag * i

    def advance(carry):
        return carry[0], carry[1] + tag

    def read(m, x):
        return m["a"].value * tag + x

    return {
        "cond": lambda m, n: nnx.cond(n > 1, grow, read, m, 1.0),
        "switch": lambda m, n: nnx.switch(
            n, [lambda m, x, k=k: read(m, x * k) for k in range(3)], m, 1.0
        ),
        "while_loop": lambda m, n: nnx.while_loop(lambda c: c[1] < 3, advance, (m, n)),
        "fori_loop": lambda m, n: nnx.fori_loop(0, n, add, (m, 0)),
        "fori_loop, unrolled": lambda m, n: nnx.fori_loop(0, 4, add, (m, 0), unroll=2),
    }


def _traces():
    """How often programs of such calls were traced; counting in the functions would be something that they read."""
    programs = {**vars(_branches), **vars(_loops)}
    return sum(programs[name].num_traces for name in programs if name.startswith("_compiled_"))


@pytest.mark.parametrize("name", list(_calls_of(1)))
def test_repeated_calls_are_traced_once(name):
    m, other = make(), make()
    _calls_of(1)[name](m, 1)
    before = _traces()
    for n in range(3):
        _calls_of(1)[name](m, n)
        _calls_of(1)[name](other, n)
    assert _traces() == before
    # Other functions are other programs.
    _calls_of(2)[name](m, 1)
    assert _traces() == before + 1


_known_by_name = nnx.Dict(w=nnx.Param(jnp.array(1.0)))


@pytest.mark.parametrize("way", ["closure", "default", "partial", "global", "helper", "list"])
def test_what_a_function_captured_is_read_at_each_call(way):
    table = nnx.Param(jnp.array(1.0))
    listed = [1.0]

    def helper(m):
        return m["a"].value * table.value

    reads = {
        "closure": lambda m: m["a"].value * table.value,
        "default": lambda m, table=table: m["a"].value * table.value,
        "partial": functools.partial(lambda table, m: m["a"].value * table.value, table),
        "global": lambda m: m["a"].value * _known_by_name["w"].value,
        "helper": lambda m: helper(m),
        "list": lambda m: m["a"].value * listed[0],
    }
    m = make()
    for factor in (1.0, 5.0):
        table.value = _known_by_name["w"].value = jnp.array(factor)
        listed[0] = factor
        assert float(nnx.cond(True, reads[way], lambda m: m["a"].value, m)) == factor


FACTOR = 2.0


def helper(x):
    return x * 2.0


class Setting:
    factor = 2.0


class Named:
    """An object that says of itself what the function does that it is made of."""

    def __init__(self):
        functools.update_wrapper(self, jnp.abs)

    def __call__(self, x):
        return x * FACTOR


named = Named()


def _imports(x):
    # Under a name that is no global here.
    from tests.transforms.models import imported_factor

    return x * imported_factor


def _imports_module(x):
    import tests.transforms.models as elsewhere

    return x * elsewhere.imported_factor


def _imports_next_to_it(x):
    from .models import imported_factor

    return x * imported_factor


READERS = {
    "global": lambda x: x * FACTOR,
    "function that is a global": lambda x: helper(x),
    "class attribute": lambda x: x * Setting.factor,
    "function that wraps one of JAX": functools.wraps(jnp.abs)(lambda x: x * FACTOR),
    "object that wraps one of JAX": lambda x: named(x),
    "import of a value": _imports,
    "import of a module": _imports_module,
    "relative import": _imports_next_to_it,
    "import further inside": lambda x: (
        lambda: __import__("tests.transforms.models", fromlist=["_"]).imported_factor * x
    )(),
    "globals()": lambda x: x * globals()["FACTOR"],
    "eval": lambda x: x * eval("FACTOR"),
    "method of a class": lambda x: type("Again", (), {"f": staticmethod(helper)}).f(x),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_what_a_function_reads_by_name_is_read_at_each_call(reader, monkeypatch):
    def results():
        return [
            float(nnx.cond(True, lambda x: reader(x), lambda x: x, 1.0)),
            float(nnx.switch(1, [lambda x: x, reader], 1.0)),
            float(nnx.fori_loop(0, 1, lambda i, x: reader(x), 1.0)),
            float(nnx.while_loop(lambda x: x < 1.5, reader, 1.0)),
        ]

    monkeypatch.setattr(shared_models, "imported_factor", 2.0, raising=False)
    assert results() == results() == [2.0] * 4
    monkeypatch.setattr(shared_models, "imported_factor", 5.0)
    monkeypatch.setitem(globals(), "FACTOR", 5.0)
    monkeypatch.setitem(globals(), "helper", lambda x: x * 5.0)
    monkeypatch.setattr(Setting, "factor", 5.0)
    assert results() == results() == [5.0] * 4


def test_a_captured_variable_bound_again_is_read_anew():
    factor = 2.0

    def scale(i, x):
        return x * factor

    assert float(nnx.fori_loop(0, 1, scale, 1.0)) == 2
    factor = -0.0
    assert float(nnx.fori_loop(0, 1, scale, 1.0)) == 0
    assert np.signbit(nnx.fori_loop(0, 1, scale, 1.0))


def _uses_of(layer):
    """Calls that have a layer of treadle's among what their functions captured, which is callable itself."""
    return {
        "cond": lambda: nnx.cond(True, lambda x: layer(x), lambda x: x, jnp.ones(1)),
        "switch": lambda: nnx.switch(1, [lambda x: x, lambda x: layer(x)], jnp.ones(1)),
        "while_loop": lambda: nnx.while_loop(
            lambda c: c[0] < 1, lambda c: (c[0] + 1, layer(c[1])), (0, jnp.ones(1))
        )[1],
        "fori_loop": lambda: nnx.fori_loop(0, 1, lambda i, x: layer(x), jnp.ones(1)),
        "as the function": lambda: nnx.cond(
            True, functools.partial(layer), lambda x: x, jnp.ones(1)
        ),
    }


@pytest.mark.parametrize("use", list(_uses_of(None)))
def test_a_captured_layer_is_read_at_each_call_and_not_kept(use):
    layer = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0))
    for weight in (2.0, 3.0):
        layer.kernel.value = jnp.full((1, 1), weight)
        assert float(_uses_of(layer)[use]()[0]) == weight
    watch = weakref.ref(layer)
    del layer
    gc.collect()
    assert watch() is None


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("captured", [False, True])
def test_variables_as_bounds_of_a_loop(jitted, captured):
    m = nnx.Dict(low=nnx.Variable(jnp.array(2)), high=nnx.Variable(jnp.array(5)), n=nnx.Variable(3))
    # A captured layer keeps the loop from being compiled for all calls.
    layer = nnx.Linear(1, 1, rngs=nnx.Rngs(0)) if captured else None

    def add(i, c):
        return c + i if layer is None or layer.use_bias else c

    def run(m):
        return (
            nnx.fori_loop(0, m["high"], add, 0),
            nnx.fori_loop(m["low"], 5, add, 0),
            nnx.fori_loop(m["low"], m["high"], add, 0),
            nnx.fori_loop(0, m["n"], add, 0),
        )

    assert [int(x) for x in (nnx.jit(run) if jitted else run)(m)] == [10, 9, 9, 3]


def test_a_variable_as_bound_may_be_changed_by_the_loop():
    m = nnx.Dict(n=nnx.Variable(jnp.array(3)))

    def grow_bound(i, m):
        m["n"].value = m["n"].value + 1
        return m

    nnx.fori_loop(0, m["n"], grow_bound, m)
    assert int(m["n"].value) == 6


def test_a_variable_as_bound_of_an_unrolled_loop():
    n = nnx.Variable(4)
    assert int(nnx.fori_loop(0, n, lambda i, c: c + i, 0, unroll=2)) == 6
    n.value = jnp.array(5)
    assert int(nnx.fori_loop(0, n, lambda i, c: c + i, 0, unroll=True)) == 10

"""Bound methods, partials and transformed functions in a graph: structure, paths, rebuilding, guards."""

from __future__ import annotations

import functools
import gc
import pickle
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from treadle import _core


class Net(nnx.Module):
    """Has ways to be called."""

    def __init__(self, w: float = 2.0) -> None:
        self.w = nnx.Param(jnp.array(w))

    def scaled(self, x: Any) -> Any:
        return x * self.w.value

    def shifted(self, x: Any) -> Any:
        return x + self.w.value


def by_parts(net: Any, x: Any, *, factor: Any = None, table: Any = ()) -> Any:
    y = net.scaled(x)
    if factor is not None:
        y = y * factor.value
    for entry in table:
        y = y + entry.w.value
    return y


def holding(**attributes: Any) -> nnx.Module:
    made = nnx.Module()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


# -- paths -----------------------------------------------------------------------------------------


def test_what_is_found_elsewhere_has_its_path_there() -> None:
    inner = Net()
    outer = holding(a=[inner.scaled], b=holding(call=functools.partial(by_parts, inner)), c=inner)
    graphdef = nnx.graphdef(outer)
    assert graphdef.paths() == (("c", "w"),)
    assert set(graphdef.ref_paths()) == {(), ("b",), ("c",), ("c", "w")}
    assert list(nnx.state(outer).flat_state()) == [("c", "w")]
    assert dict(nnx.iter_graph(outer))["c", "w"] is inner.w


def test_what_only_a_callable_leads_to_has_its_path_through_it() -> None:
    method = holding(call=Net().scaled)
    assert nnx.graphdef(method).paths() == (("call", "__self__", "w"),)
    bound = holding(
        call=functools.partial(by_parts, Net(), factor=nnx.Param(jnp.array(3.0)), table=[Net()])
    )
    paths = [
        ("call", "args", 0, "w"),
        ("call", "keywords", "factor"),
        ("call", "keywords", "table", 0, "w"),
    ]
    assert sorted(nnx.graphdef(bound).paths(), key=str) == paths
    assert list(nnx.state(bound).flat_state()) == paths
    jitted = holding(call=nnx.jit(Net().scaled))
    assert nnx.graphdef(jitted).paths() == (("call", "__wrapped__", "__self__", "w"),)
    for model in (method, bound, jitted):
        visited = {path for path, value in nnx.iter_graph(model) if isinstance(value, nnx.Variable)}
        assert visited == set(nnx.graphdef(model).paths())


def test_a_method_of_a_method_of_one_found_later() -> None:
    """The one that is found by callables only leads on to what is found elsewhere, too."""
    shared = nnx.Param(jnp.array(1.0))
    hidden = holding(v=shared, call=Net().scaled)
    hidden.reader = functools.partial(lambda node: node.v.value, hidden)
    model = holding(a=functools.partial(lambda node: node.v.value, hidden), z=shared)
    assert ("z",) in nnx.graphdef(model).paths()
    copy = nnx.clone(model)
    copy.z.value = jnp.array(5.0)
    assert float(copy.a()) == 5.0
    assert float(model.a()) == 1.0
    assert copy.a.args[0].reader.args[0] is copy.a.args[0]


def test_the_text_of_the_structure() -> None:
    net = Net()
    net.call = net.scaled
    lines = repr(nnx.graphdef(net)).split("\n  ")[1:]
    assert lines[0] == "<root>: Net #0 (order: w, call)"
    assert lines[1] == "call: bound method"
    assert lines[2].startswith("call.__func__: <function Net.scaled")
    assert lines[3:] == ["call.__self__: shared Net #0", "w: Param #1"]


# -- structure -------------------------------------------------------------------------------------


def calls(net: Any) -> dict[str, Any]:
    return {
        "method": net.scaled,
        "other method": net.shifted,
        "partial": functools.partial(net.scaled),
        "partial of arguments": functools.partial(Net.scaled, net),
        "partial with a keyword": functools.partial(by_parts, net, factor=net.w),
        "jitted": nnx.jit(net.scaled),
        "jitted otherwise": nnx.jit(net.scaled, inline=True),
        "rematerialized": nnx.remat(net.scaled),
        "twice": nnx.remat(nnx.jit(net.scaled)),
        "in a dict": {"b": net.scaled, "a": (net.shifted,)},
        "jax's partial": jax.tree_util.Partial(net.scaled),
    }


def with_call(name: str) -> Any:
    net = Net()
    net.call = calls(net)[name]
    return net


NAMES = list(calls(Net()))


@pytest.mark.parametrize("name", NAMES)
def test_equal_if_made_alike_and_different_otherwise(name: str) -> None:
    ours = nnx.graphdef(with_call(name))
    for other in NAMES:
        theirs = nnx.graphdef(with_call(other))
        assert (ours == theirs) == (name == other), other
        assert name != other or hash(ours) == hash(theirs)
        assert (ours.difference(theirs) is None) == (name == other)


@pytest.mark.parametrize("name", NAMES)
def test_clones_are_of_the_same_structure_and_call_themselves(name: str) -> None:
    net = with_call(name)
    copy = nnx.clone(net)
    assert nnx.graphdef(copy) == nnx.graphdef(net)
    copy.w.value = jnp.array(10.0)
    call = copy.call["b"] if name == "in a dict" else copy.call
    assert float(call(1.0)) == (
        11.0 if name == "other method" else 100.0 if "keyword" in name else 10.0
    )


@pytest.mark.parametrize("name", [n for n in NAMES if "lambda" not in n])
def test_a_pickled_structure_is_rebuilt(name: str) -> None:
    net = with_call(name)
    graphdef = nnx.graphdef(net)
    loaded = pickle.loads(pickle.dumps(graphdef))
    assert loaded == graphdef
    copy = nnx.merge(loaded, nnx.state(net))
    assert copy.w is not net.w
    assert nnx.graphdef(copy) == graphdef


def test_models_made_alike_share_a_trace() -> None:
    step = nnx.jit(lambda m, x: m.call(x) if callable(m.call) else m.call["b"](x))
    for _ in range(2):
        for name in NAMES:
            step(with_call(name), jnp.ones(()))
    assert step.num_traces == len(NAMES)


def test_attributes_of_partials_are_kept() -> None:
    net = Net()
    net.call = functools.partial(by_parts, net)
    net.call.note = "mine"  # type: ignore[attr-defined]
    assert nnx.clone(net).call.note == "mine"
    other = Net()
    other.call = functools.partial(by_parts, other)
    assert nnx.graphdef(net) != nnx.graphdef(other)


def test_arrays_in_a_partial_over_nodes_are_leaves() -> None:
    net = Net()
    net.call = functools.partial(lambda v, a, x: x * v.value + a, net.w, jnp.array(3.0))
    assert nnx.graphdef(net).num_leaves == 2
    step = nnx.jit(lambda m: m.call(1.0))
    assert float(step(net)) == 5.0
    net.call = functools.partial(net.call.func, net.w, jnp.array(4.0))
    assert float(step(net)) == 6.0
    assert step.num_traces == 1


def test_partials_without_nodes_are_statics() -> None:
    model = holding(act=functools.partial(jax.nn.leaky_relu, negative_slope=0.1))
    assert nnx.graphdef(model).num_leaves == 0
    assert nnx.clone(model).act is model.act


# -- calls -----------------------------------------------------------------------------------------


def test_hot_calls_look_at_what_a_callable_is_made_of() -> None:
    net, other = Net(2.0), Net(5.0)
    net.call = net.scaled
    step = nnx.jit(lambda m, x: m.call(x))
    x = jnp.array(1.0)
    assert float(step(net, x)) == float(step(net, x)) == 2.0
    hot = step._counts["hot"]
    net.w.value = jnp.array(3.0)
    assert float(step(net, x)) == 3.0
    net.call = net.scaled  # another object, the same method
    assert float(step(net, x)) == 3.0
    assert step._counts["hot"] == hot + 2
    net.call = other.scaled
    assert float(step(net, x)) == 5.0
    net.call = net.shifted
    assert float(step(net, x)) == 4.0
    assert step.num_traces == 3


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_is_called_hot(name: str) -> None:
    net = with_call(name)
    step = nnx.jit(lambda m, x: m.call(x) if callable(m.call) else m.call["b"](x))
    x = jnp.ones(())
    first = step(net, x)
    net.w.value = net.w.value * 2
    assert float(step(net, x)) != float(first)
    assert step._counts["hot"] == 1
    assert step.num_traces == 1


def test_lists_and_keywords_of_a_partial_may_change_in_place() -> None:
    net = Net()
    table = [Net(1.0)]
    net.call = functools.partial(by_parts, net, table=table)
    step = nnx.jit(lambda m: m.call(1.0))
    assert float(step(net)) == float(step(net)) == 3.0
    table.append(Net(10.0))
    assert float(step(net)) == 13.0
    net.call.keywords["table"] = (Net(7.0),)
    assert float(step(net)) == 9.0
    net.call.keywords["factor"] = nnx.Param(jnp.array(2.0))
    assert float(step(net)) == 11.0


def test_explained_by_path() -> None:
    net = Net()
    net.call = net.scaled
    step = nnx.jit(lambda m: m.call(1.0))
    step(net)
    net.call = net.shifted
    step(net)
    assert "m.call.__func__: " in str(step.retraces[-1])


def test_what_a_call_stores_is_of_the_callers_objects() -> None:
    net = Net()

    @nnx.jit
    def f(m: Any) -> None:
        m.a = functools.partial(by_parts, m, factor=m.w)
        m.b = [m.scaled]
        m.c = nnx.remat(m.scaled)
        m.new = Net(4.0)
        m.d = m.new.scaled

    for _ in range(2):
        f(net)
        assert net.a.args[0] is net
        assert net.a.keywords["factor"] is net.w
        assert net.b[0].__self__ is net
        assert net.d.__self__ is net.new
        assert float(net.c(1.0)) == 2.0


def test_an_unchanged_callable_stays_the_callers() -> None:
    net = with_call("partial with a keyword")
    call = net.call

    @nnx.jit
    def f(m: Any) -> None:
        m.w.value = m.w.value + 1
        m.other = m.call

    f(net)
    assert net.call is call
    assert net.other.args[0] is net


def test_new_state_behind_a_callable_comes_out() -> None:
    made = nnx.jit(lambda: holding(call=Net(3.0).scaled))()
    assert float(made.call(2.0)) == 6.0
    assert float(nnx.vmap(lambda x: holding(call=Net(3.0).scaled).call(x))(jnp.ones(2))[0]) == 3.0


def test_structures_hold_no_node() -> None:
    net = with_call("method")
    step = nnx.jit(lambda m: m.call(1.0))
    step(net)
    graphdef = nnx.graphdef(net)
    gone = weakref.ref(net.w)
    del net
    gc.collect()
    assert gone() is None
    assert graphdef.num_leaves == 1


# -- what is refused -------------------------------------------------------------------------------


class Holder:
    """An object that treadle knows nothing of."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __call__(self, x: Any) -> Any:
        return x


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


def refused(net: Any) -> dict[str, Any]:
    return {
        "closure": lambda x: net.scaled(x),
        "closure of a closure": (lambda f: lambda x: f(x))(lambda x: net.scaled(x)),
        "default": eval("lambda x, net=net: net", {"net": net}),
        "keyword default": eval("lambda x, *, net=net: net", {"net": net}),
        "object": Holder(net),
        "object in an object": Holder([{"k": Holder(net.w)}]),
        "method of an object": Holder(net).__call__,
        "slots": Slotted(net),
        "jitted closure": nnx.jit(lambda x: net.scaled(x)),
        "jax.jit": jax.jit(net.scaled),
        "partial of a closure": functools.partial(lambda x: net.scaled(x)),
        "global": eval("lambda x: net", {"net": net}),
    }


@pytest.mark.parametrize("name", list(refused(Net())))
@pytest.mark.parametrize(
    "run", [nnx.clone, nnx.split, lambda m: nnx.jit(lambda m: None)(holding(inner=m))]
)
def test_other_holders_are_refused_by_path(name: str, run: Any) -> None:
    net = Net()
    net.call = refused(net)[name]
    with pytest.raises(
        nnx.StaticError, match=r"call\b.* holds a (Net|Param) of the same graph"
    ) as e:
        run(net)
    assert "functools.partial" in str(e.value)
    del net.call
    run(net)


@pytest.mark.parametrize("name", list(refused(Net())))
def test_nodes_from_elsewhere_are_constants(name: str) -> None:
    net = Net()
    net.call = refused(Net())[name]
    assert nnx.clone(net).call is net.call


def test_what_is_stored_inside_is_refused_and_nothing_changes() -> None:
    net = Net()

    @nnx.jit
    def f(m: Any) -> None:
        m.w.value = m.w.value + 1
        m.new = holding(call=lambda x: m.scaled(x))

    with pytest.raises(
        nnx.StaticError, match=r"m\.new\.call .*holds a Net of the same graph \(as 'm'\)"
    ):
        f(net)
    assert float(net.w.value) == 2.0
    assert not hasattr(net, "new")


def test_an_error_behind_a_callable_has_its_path() -> None:
    bad = holding(x={1, 2})
    bad.table = {1: 2, "a": 3}
    model = holding(call=functools.partial(by_parts, bad))
    with pytest.raises(nnx.GraphError, match=r"call\.args\[0\]\.table"):
        nnx.split(model)
    with pytest.raises(nnx.GraphError, match=r"m\.call\.args\[0\]\.table"):
        nnx.jit(lambda m: None)(model)


# -- depth -----------------------------------------------------------------------------------------


def test_long_chains_of_callables() -> None:
    depth = 3_000
    first = node = Net(1.0)
    for _ in range(depth):
        node.inner = Net(1.0)
        node.call = node.inner.scaled
        node = node.inner
    graphdef, state = nnx.split(first)
    assert graphdef.num_refs == 2 * (depth + 1)
    copy = nnx.merge(graphdef, state)
    assert copy.call.__self__ is copy.inner
    assert sum(1 for _ in nnx.iter_graph(first)) > depth

    hidden = Net(1.0)
    for _ in range(depth):
        outer = Net(1.0)
        outer.call = hidden.scaled
        hidden = outer
    assert nnx.graphdef(hidden).num_refs == 2 * (depth + 1)
    nnx.clone(hidden)
    partial: Any = hidden.scaled
    for _ in range(depth):
        partial = functools.partial(lambda f, x: f(x), partial)
    hidden.call = partial
    nnx.clone(hidden)
    np.testing.assert_equal(_core.holds_node(partial), True)


# -- text ------------------------------------------------------------------------------------------


def test_the_text_of_a_module_that_holds_its_method() -> None:
    net = Net()
    net.call = net.scaled
    net.calls = [functools.partial(by_parts, net)]
    text = repr(net)
    assert "call=method(" in text
    assert "__self__=Net(...)" in text
    assert text.count("Net(") == 3
    net.call = nnx.jit(net.scaled)
    assert repr(net).startswith("Net(")

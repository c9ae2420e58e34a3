"""Variables: values, operators, metadata, hooks, copies and the trace check."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


class Doubling(nnx.Variable[Any]):
    """Shows twice what it stores."""

    def on_get_value(self, value: Any) -> Any:
        return 2 * value

    def on_set_value(self, value: Any) -> Any:
        return value / 2

    def on_create_value(self, value: Any) -> Any:
        return value + 100


class Recording(nnx.Variable[Any]):
    """Notes the axes it gains and loses in its metadata."""

    def on_add_axis(self, index: int, name: str | None) -> None:
        self.seen = (*self._metadata.get("seen", ()), ("add", index, name))

    def on_remove_axis(self, index: int, name: str | None) -> None:
        self.seen = (*self._metadata.get("seen", ()), ("remove", index, name))


# -- value -----------------------------------------------------------------------------------------


def test_value_is_what_was_given() -> None:
    value = jnp.arange(3)
    variable = nnx.Param(value)
    assert variable.value is value
    assert variable.raw_value is value


def test_a_variable_given_as_value_is_unwrapped() -> None:
    inner = nnx.Param(jnp.ones(2))
    assert nnx.BatchStat(inner).value is inner.value


@pytest.mark.parametrize("value", [None, 3, 2.5, "text", (1, 2), {"a": 1}, [1, 2]])
def test_any_value_can_be_held(value: Any) -> None:
    variable = nnx.Variable(value)
    assert variable.value == value


def test_type_is_the_class() -> None:
    assert nnx.Param(0).type is nnx.Param


def test_type_hints_with_a_parameter_make_plain_variables() -> None:
    variable = nnx.Param[jax.Array](jnp.ones(2))
    assert type(variable) is nnx.Param
    assert variable.get_metadata() == {}


@pytest.mark.parametrize(
    "expression",
    [
        lambda v: v + 1,
        lambda v: 1 + v,
        lambda v: v - 2,
        lambda v: 2 - v,
        lambda v: v * 3,
        lambda v: 3 * v,
        lambda v: v / 2,
        lambda v: 2 / v,
        lambda v: v // 2,
        lambda v: 7 // v,
        lambda v: v % 2,
        lambda v: 7 % v,
        lambda v: v**2,
        lambda v: 2**v,
        lambda v: v @ v,
        lambda v: -v,
        lambda v: +v,
        lambda v: abs(v),
        lambda v: ~v,
        lambda v: v & 1,
        lambda v: 1 | v,
        lambda v: v ^ 3,
        lambda v: v << 1,
        lambda v: v >> 1,
        lambda v: v == 2,
        lambda v: v != 2,
        lambda v: v < 2,
        lambda v: v <= 2,
        lambda v: v > 2,
        lambda v: v >= 2,
        lambda v: v[1:],
        lambda v: v[0],
        lambda v: divmod(v, 2)[1],
        lambda v: divmod(7, v)[0],
        lambda v: v.sum(),
        lambda v: v.at[0].set(9),
        lambda v: v.astype(float).mean(),
        lambda v: jnp.stack([v, v]),
        lambda v: np.asarray(v),
        lambda v: np.arange(3) + v,
        lambda v: jnp.arange(3) * v,
    ],
)
def test_operators_act_on_the_value(expression: Any) -> None:
    value = jnp.array([1, 2, 3])
    np.testing.assert_array_equal(expression(nnx.Param(value)), expression(value))


@pytest.mark.parametrize("convert", [int, float, complex, bool, round, len, list])
def test_conversions_act_on_the_value(convert: Any) -> None:
    value = np.array([2.0, 3.0]) if convert in (len, list) else 2.0
    assert convert(nnx.Param(value)) == convert(value)


def test_a_variable_can_be_an_index() -> None:
    assert [10, 20, 30][nnx.Variable(1)] == 20
    assert 2 in nnx.Variable([1, 2])


def test_operators_between_variables_use_both_values() -> None:
    assert nnx.Param(3) - nnx.BatchStat(1) == 2


def test_in_place_operators_change_the_same_variable() -> None:
    variable = alias = nnx.Param(jnp.ones(2))
    variable += 1
    variable *= 3
    assert variable is alias
    np.testing.assert_array_equal(alias.value, [6.0, 6.0])


def test_item_assignment_changes_the_value_not_the_old_array() -> None:
    old = jnp.zeros(3)
    variable = nnx.Param(old)
    variable[1] = 5
    np.testing.assert_array_equal(variable.value, [0, 5, 0])
    np.testing.assert_array_equal(old, [0, 0, 0])


def test_item_assignment_copies_numpy_values_first() -> None:
    old = np.zeros(3)
    variable = nnx.Param(old)
    variable[1] = 5
    assert old[1] == 0
    assert variable.value[1] == 5


def test_hash_goes_by_identity_and_equality_by_value() -> None:
    a, b = nnx.Param(1), nnx.Param(1)
    assert hash(a) != hash(b)
    assert len({a, b}) == 2
    assert a == b
    assert {a: "a"}[a] == "a"


def test_unknown_attributes_are_errors_that_name_type_and_attribute() -> None:
    with pytest.raises(AttributeError, match=r"'Param'.*'nothing'"):
        _ = nnx.Param(1.0).nothing


# -- metadata --------------------------------------------------------------------------------------


def test_metadata_reads_and_writes_as_attributes() -> None:
    variable = nnx.Param(1.0, tag="a")
    variable.note = "b"
    assert (variable.tag, variable.note) == ("a", "b")
    assert variable.get_metadata() == {"tag": "a", "note": "b"}
    del variable.tag
    assert not variable.has_metadata("tag")


def test_metadata_goes_before_attributes_of_the_value() -> None:
    assert nnx.Param(jnp.ones(2), sharding=("data",)).sharding == ("data",)


def test_get_metadata_with_a_name_and_default() -> None:
    variable = nnx.Param(1.0, tag="a")
    assert variable.get_metadata("tag") == "a"
    assert variable.get_metadata("missing", 3) == 3
    with pytest.raises(KeyError, match="missing"):
        variable.get_metadata("missing")


def test_set_metadata_keeps_or_replaces() -> None:
    variable = nnx.Param(1.0, tag="a")
    variable.set_metadata(note="b")
    assert variable.get_metadata() == {"tag": "a", "note": "b"}
    variable.set_metadata({"only": 1})
    assert variable.get_metadata() == {"only": 1}


def test_returned_metadata_is_a_copy() -> None:
    variable = nnx.Param(1.0, tag="a")
    variable.get_metadata()["tag"] = "b"
    assert variable.tag == "a"


def test_with_metadata_reaches_the_variable_through_the_initializer() -> None:
    init = nnx.with_metadata(jax.nn.initializers.zeros, tag="kernel", note=1)
    made = init(jax.random.key(0), (2, 3), jnp.float32)
    assert isinstance(made, nnx.VariableMetadata)
    variable = nnx.Param(made, note=2)
    assert variable.shape == (2, 3)
    assert variable.get_metadata() == {"tag": "kernel", "note": 2}


def test_with_metadata_can_be_stacked() -> None:
    init = nnx.with_metadata(nnx.with_metadata(lambda: 1.0, a=1, b=1), b=2)
    assert nnx.Param(init()).get_metadata() == {"a": 1, "b": 2}


# -- hooks -----------------------------------------------------------------------------------------


def test_hook_methods_run_on_create_get_and_set() -> None:
    variable = Doubling(1.0)
    assert variable.raw_value == 101.0
    assert variable.value == 202.0
    variable.value = 10.0
    assert variable.raw_value == 5.0
    variable.raw_value = 1.0
    assert variable.value == 2.0


def test_metadata_hooks_run_after_methods_in_order() -> None:
    variable = Doubling(
        0.0,
        get_value_hooks=[lambda v, x: x + 1, lambda v, x: x * 10],
        set_value_hooks=lambda v, x: x - 1,
        create_value_hooks=lambda v, x: x * 2,
    )
    assert variable.raw_value == 200.0
    assert variable.value == (2 * 200.0 + 1) * 10
    variable.value = 10.0
    assert variable.raw_value == 4.0


def test_hooks_see_the_variable() -> None:
    variable = nnx.Param(1.0, scale=3.0, get_value_hooks=lambda v, x: x * v.scale)
    assert variable.value == 3.0
    variable.scale = 5.0
    assert variable.value == 5.0


def test_a_set_hook_that_raises_changes_nothing() -> None:
    def refuse(variable: Any, value: Any) -> Any:
        raise RuntimeError("no")

    variable = nnx.Param(1.0, set_value_hooks=refuse)
    with pytest.raises(RuntimeError, match="no"):
        variable.value = 2.0
    assert variable.raw_value == 1.0


def test_split_and_merge_run_no_hooks() -> None:
    model = nnx.Dict(v=Doubling(1.0))
    assert nnx.merge(*nnx.split(model)).v.raw_value == model.v.raw_value == 101.0


def test_axis_hooks_and_methods_run_and_sharding_follows() -> None:
    calls: list[Any] = []
    variable = Recording(
        jnp.ones((2, 3)),
        sharding=("a", "b"),
        add_axis_hooks=lambda v, index, name: calls.append(("added", index, name)),
        remove_axis_hooks=[lambda v, index, name: calls.append(("removed", index, name))],
    )
    variable.add_axis(1, "new")
    assert variable.sharding == ("a", "new", "b")
    variable.remove_axis(1, {nnx.PARTITION_NAME: "new"})
    assert variable.sharding == ("a", "b")
    assert variable.seen == (("add", 1, "new"), ("remove", 1, "new"))
    assert calls == [("added", 1, "new"), ("removed", 1, "new")]


@pytest.mark.parametrize(
    ("index", "expected"), [(0, "xab"), (1, "axb"), (2, "abx"), (-1, "abx"), (-3, "xab")]
)
def test_add_axis_counts_in_the_new_axes_and_remove_axis_undoes_it(
    index: int, expected: str
) -> None:
    variable = nnx.Param(0.0, sharding=("a", "b"))
    variable.add_axis(index, "x")
    assert "".join(variable.sharding) == expected
    variable.remove_axis(index, "x")
    assert variable.sharding == ("a", "b")


def test_add_axis_beyond_a_short_sharding_fills_with_none() -> None:
    variable = nnx.Param(jnp.ones((2, 3, 4)), sharding=("a",))
    variable.add_axis(2, "x")
    assert variable.sharding == ("a", None, "x")


def test_remove_axis_of_another_name_is_an_error_that_says_both() -> None:
    variable = nnx.Param(0.0, sharding=("a", "b"))
    with pytest.raises(ValueError, match=r"'x' at index 0 of sharding \('a', 'b'\)"):
        variable.remove_axis(0, "x")
    assert variable.sharding == ("a", "b")


def test_axes_without_a_name_leave_sharding_alone() -> None:
    variable = Recording(0.0, sharding=("a",))
    variable.add_axis(0, {})
    assert variable.sharding == ("a",)
    assert variable.seen == (("add", 0, None),)


# -- copies ----------------------------------------------------------------------------------------


def test_replace_makes_a_new_variable_and_runs_no_hook() -> None:
    variable = Doubling(1.0, tag="a")
    other = variable.replace(5.0, note="b")
    assert type(other) is Doubling
    assert (other.raw_value, other.get_metadata()) == (5.0, {"tag": "a", "note": "b"})
    assert (variable.raw_value, variable.get_metadata()) == (101.0, {"tag": "a"})


def test_replace_takes_the_value_of_a_variable_of_the_same_type_only() -> None:
    assert nnx.Param(1.0).replace(nnx.Param(2.0)).value == 2.0
    with pytest.raises(nnx.LeafTypeError, match=r"Param.*BatchStat"):
        nnx.Param(1.0).replace(nnx.BatchStat(2.0))


def test_copy_from_takes_value_and_metadata() -> None:
    a, b = nnx.Param(1.0), nnx.Param(2.0, tag="b")
    a.copy_from(b)
    assert (a.value, a.get_metadata()) == (2.0, {"tag": "b"})
    with pytest.raises(nnx.LeafTypeError, match=r"BatchStat into a Param"):
        a.copy_from(nnx.BatchStat(0.0))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda v: v.copy()])
def test_copies_have_their_own_value_and_metadata(duplicate: Any) -> None:
    variable = nnx.Param(jnp.ones(2), tag="a")
    other = duplicate(variable)
    other.value += 1
    other.tag = "b"
    assert type(other) is nnx.Param
    np.testing.assert_array_equal(variable.value, [1, 1])
    assert variable.tag == "a"


def test_pickle_keeps_type_value_and_metadata() -> None:
    variable = pickle.loads(pickle.dumps(nnx.Param(jnp.arange(3), tag="a")))
    assert type(variable) is nnx.Param
    np.testing.assert_array_equal(variable.value, [0, 1, 2])
    assert variable.get_metadata() == {"tag": "a"}


def test_typed_keys_pickle() -> None:
    key = jax.random.key(3)
    restored = pickle.loads(pickle.dumps(nnx.RngKey(key, tag="a")))
    assert bool(restored.value == key)


def test_state_round_trips() -> None:
    variable = nnx.BatchStat(1.0, tag="a")
    state = variable.state()
    assert state == nnx.VariableState(nnx.BatchStat, 1.0, tag="a")
    again = state.to_variable()
    assert type(again) is nnx.BatchStat
    assert (again.value, again.tag) == (1.0, "a")
    target = nnx.BatchStat(0.0)
    target.update_from_state(state)
    assert (target.value, target.tag) == (1.0, "a")
    with pytest.raises(nnx.LeafTypeError, match=r"Param from the state of a BatchStat"):
        nnx.Param(0.0).update_from_state(state)


def test_repr_shows_type_value_and_metadata() -> None:
    assert repr(nnx.Param(1.0, tag="a")) == "Param(\n  value=1.0,\n  tag='a'\n)"


def test_repr_describes_large_arrays() -> None:
    assert "Array(shape=(100, 2), dtype=float32)" in repr(nnx.Param(jnp.ones((100, 2))))


# -- trace level -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda v: setattr(v, "value", 1.0),
        lambda v: setattr(v, "raw_value", 1.0),
        lambda v: setattr(v, "tag", "b"),
        lambda v: delattr(v, "tag"),
        lambda v: v.set_metadata(a=1),
        lambda v: v.__iadd__(1),
        lambda v: v.__setitem__(0, 1.0),
        lambda v: v.copy_from(nnx.Param(1.0)),
        lambda v: v.update_from_state(nnx.VariableState(nnx.Param, 1.0)),
        lambda v: v.add_axis(0, "x"),
    ],
)
def test_changes_from_another_trace_level_are_refused(change: Any) -> None:
    variable = nnx.Param(np.zeros(2), tag="a", sharding=("b",))

    @jax.jit
    def traced() -> None:
        change(variable)

    with pytest.raises(nnx.TraceContextError, match="Cannot mutate 'Param' from different trace"):
        traced()
    np.testing.assert_array_equal(variable.raw_value, [0, 0])
    assert variable.get_metadata() == {"tag": "a", "sharding": ("b",)}


def test_a_variable_made_in_a_trace_can_be_changed_there() -> None:
    @jax.jit
    def traced(x: jax.Array) -> jax.Array:
        variable = nnx.Param(x)
        variable.value += 1
        return variable.value

    assert traced(jnp.array(1.0)) == 2.0


def test_variables_made_outside_can_be_read_in_a_trace() -> None:
    variable = nnx.Param(jnp.array(2.0))
    assert jax.jit(lambda x: x * variable)(3.0) == 6.0


def test_hooks_of_flaxs_names_run_in_place_of_the_methods() -> None:
    v = nnx.Param(
        1.0,
        on_create_value=lambda variable, value: value + 1,
        on_get_value=lambda variable, value: value * 10,
        on_set_value=[lambda variable, value: value + 1, lambda variable, value: value * 2],
        get_value_hooks=lambda variable, value: value + 0.5,
    )
    assert (v.raw_value, v.value) == (2.0, 20.5)
    v.value = 3.0
    assert v.raw_value == 8.0
    w = Doubling(1.0, on_get_value=lambda variable, value: value)
    assert (w.raw_value, w.value) == (101.0, 101.0)
    assert nnx.clone(v).value == v.value == v.copy().value
    assert pickle.loads(pickle.dumps(nnx.Param(1.0, on_get_value=_tenfold))).value == 10.0


def _tenfold(variable: Any, value: Any) -> Any:
    return value * 10


def test_hooks_of_flaxs_names_come_with_initializers_and_later() -> None:
    init = nnx.with_metadata(lambda: 1.0, on_get_value=_tenfold)
    v = nnx.Param(init())
    assert v.value == 10.0
    v.set_metadata(on_get_value=lambda variable, value: value + 1)
    assert v.value == 2.0
    v.on_get_value = None
    assert v.value == 1.0
    seen: list[Any] = []
    w = nnx.Param(
        jnp.ones(2),
        on_add_axis=lambda *args: seen.append(args[1:]),
        on_remove_axis=lambda *args: seen.append(args[1:]),
    )
    w.add_axis(0, "a")
    w.remove_axis(1)
    assert seen == [(0, "a"), (1, None)]


def test_hooks_of_flaxs_names_run_under_jit() -> None:
    v = nnx.Param(jnp.array(1.0), on_get_value=_tenfold, on_set_value=_tenfold)

    @nnx.jit
    def step(v: Any) -> Any:
        v.value = v.value + 1
        return v.value

    assert float(step(v)) == 1100.0
    assert float(v.raw_value) == 110.0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"hijax": True}, "hijax=True is a parameter of flax's Variables"),
        ({"ref": True}, "ref=True is a parameter"),
        ({"use_ref": True}, "use_ref=True is a parameter"),
        ({"eager_sharding": True}, "place the value with `jax.device_put`"),
        ({"out_sharding": ("a",)}, r"Pass sharding=\('a',\)"),
        ({"on_get_value": 3}, "on_get_value must be a function or a sequence of functions, got 3"),
        ({"set_value_hooks": [1]}, "set_value_hooks must be a function"),
    ],
)
def test_metadata_that_would_be_ignored_are_refused(metadata: Any, message: str) -> None:
    for make in (
        lambda: nnx.Param(1.0, **metadata),
        lambda: nnx.BatchStat(nnx.VariableMetadata(1.0, metadata)),
    ):
        with pytest.raises(TypeError, match=message):
            make()


def test_parameters_of_flax_that_ask_for_nothing_are_no_metadata() -> None:
    v = nnx.Param(1.0, hijax=False, use_ref=None, eager_sharding=False, ref="page 3")
    assert v.get_metadata() == {"ref": "page 3"}


# -- the value by name, as in flax ----------------------------------------------------------------


def test_values_by_name() -> None:
    v = nnx.Param(jnp.zeros(3), on_get_value=lambda _, x: x + 1, on_set_value=lambda _, x: x * 10)
    assert v.get_value().tolist() == [1, 1, 1]
    assert v.get_value(index=0) == 1
    assert v.get_raw_value().tolist() == [0, 0, 0]
    v.set_value(jnp.ones(3))
    assert v.get_raw_value().tolist() == [10, 10, 10]
    v.set_raw_value(jnp.ones(3))
    assert v.get_raw_value().tolist() == [1, 1, 1]
    v.set_value(nnx.Param(jnp.ones(3)))
    assert v.get_raw_value().tolist() == [10, 10, 10]


def test_setting_at_an_index() -> None:
    v = nnx.Param(jnp.zeros(3))
    v.set_value(5.0, index=1)
    v[2] = nnx.Param(jnp.float32(7.0))
    assert v.value.tolist() == [0, 5, 7]
    held = v.value
    assert v[...] is held
    d = nnx.Variable({"a": 1})
    d.set_value(2, index="b")
    del d["a"]
    assert d.value == {"b": 2}


def test_a_subclass_may_say_how_values_are_read_and_written() -> None:
    class Scaled(nnx.Param[Any]):
        def get_value(self, *, index: Any = ...) -> Any:
            return super().get_value() * 2

        def set_value(self, value: Any, **options: Any) -> None:
            super().set_value(value / 2, **options)

    v = Scaled(jnp.ones(2))
    assert v.value.tolist() == [2, 2]
    assert (v + 1).tolist() == [3, 3]
    assert v[0] == 2
    assert jnp.sum(v) == 4
    v.value = jnp.full(2, 8.0)
    assert v.raw_value.tolist() == [4, 4]
    v[0] = 2.0
    assert v.raw_value.tolist() == [1, 4]
    v += 2

    @nnx.jit
    def double(m: Any) -> Any:
        m.v.value = m.v.value * 2
        return m.v.value

    expected = v.value * 2
    assert jnp.allclose(double(nnx.Dict(v=v)), expected)
    assert jnp.allclose(v.value, expected)


def test_metadata_by_name() -> None:
    v = nnx.Param(1.0, tag="a")
    v.set_metadata("note", 1)
    assert v.get_metadata() == {"tag": "a", "note": 1}
    v.del_metadata("tag")
    assert not v.has_metadata("tag")
    with pytest.raises(KeyError):
        v.del_metadata("tag")
    with pytest.raises(TypeError, match="a name and an entry"):
        v.set_metadata({"a": 1}, 2)
    with pytest.raises(TypeError, match="hijax"):
        v.set_metadata(hijax=True)
    with pytest.raises(TypeError, match="sharding"):
        v.set_metadata("out_sharding", ("x",))
    v.set_metadata("on_get_value", lambda variable, value: value + 1)
    assert v.value == 2.0


def test_copies_with_other_content() -> None:
    v = nnx.Param(1.0, tag="a")
    w = v.copy(2.0, note="n")
    assert (w.value, w.tag, w.note, v.value) == (2.0, "a", "n", 1.0)
    assert v.var_type is nnx.Param
    assert f"{nnx.Param(0.5):.2f}" == "0.50"
    assert f"{v}" == str(v)

"""Bad data gets an error that names the place and the remedy, and changes nothing."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

from .record import Record


class Block(nnx.Module):
    """A module with one of most things."""

    def __init__(self) -> None:
        self.w = nnx.Param(jnp.ones((2, 2)), tag="decay")
        self.table = nnx.Dict(a=nnx.BatchStat(jnp.zeros(2)))
        self.w_again = self.w
        self.rate = 0.5
        self.bare = jnp.zeros(3)
        self.layers = [nnx.Param(jnp.ones(1)), (nnx.Param(jnp.ones(1)), "text")]


def flat(model: Any) -> dict[Any, Any]:
    """The state of a model as a plain dict by path."""
    return dict(nnx.state(model).flat_state())


def state_of(entries: dict[Any, Any]) -> Any:
    """A State from a plain dict by path."""
    return nnx.State.from_flat_state(entries)


# --- State ---------------------------------------------------------------------------------------


def test_merge_names_what_is_missing() -> None:
    graphdef, _ = nnx.split(Block())
    entries = flat(Block())
    del entries["table", "a"]
    with pytest.raises(nnx.GraphError, match=r"table\.a"):
        nnx.merge(graphdef, state_of(entries))


def test_merge_names_what_is_surplus() -> None:
    graphdef, _ = nnx.split(Block())
    entries = flat(Block())
    entries["table", "b"] = nnx.VariableState(nnx.Param, jnp.ones(1))
    with pytest.raises(nnx.GraphError, match=r"table\.b"):
        nnx.merge(graphdef, state_of(entries))


def test_update_names_what_is_surplus_and_changes_nothing() -> None:
    model = Block()
    before = Record(model)
    entries = flat(model)
    entries["w",] = entries["w",].replace(jnp.zeros((2, 2)))
    entries["zzz",] = nnx.VariableState(nnx.Param, jnp.ones(1))
    with pytest.raises(nnx.GraphError, match="zzz"):
        nnx.update(model, state_of(entries))
    before.assert_unchanged()


@pytest.mark.parametrize(
    "wrong", ["text", object(), [1, 2], {"a": 1}, lambda: None], ids=lambda v: type(v).__name__
)
def test_update_refuses_what_is_no_array_and_changes_nothing(wrong: Any) -> None:
    model = Block()
    before = Record(model)
    entries = flat(model)
    entries["table", "a"] = entries["table", "a"].replace(jnp.full(2, 9.0))
    entries["bare",] = wrong
    with pytest.raises((TypeError, ValueError), match="bare"):
        nnx.update(model, state_of(entries))
    before.assert_unchanged()


@pytest.mark.parametrize(
    ("path", "entry"),
    [
        (("w",), nnx.VariableState(nnx.BatchStat, jnp.zeros((2, 2)))),
        (("table", "a"), nnx.VariableState(nnx.Param, jnp.zeros(2))),
        (("bare",), nnx.VariableState(nnx.Param, jnp.zeros(3))),
    ],
)
def test_entries_of_another_variable_type_are_refused_by_path(path: Any, entry: Any) -> None:
    model = Block()
    before = Record(model)
    graphdef = nnx.graphdef(model)
    entries = flat(model)
    entries[path] = entry
    for wrong in (
        lambda: nnx.merge(graphdef, state_of(entries)),
        lambda: nnx.update(model, state_of(entries)),
    ):
        with pytest.raises(TypeError, match=r"\.".join(path)):
            wrong()
    before.assert_unchanged()


def test_entries_of_another_shape_are_taken_and_a_step_they_do_not_fit_changes_nothing() -> None:
    """Variables may change their shape; whether a function can use it is for JAX to say."""
    model = Block()
    entries = flat(model)
    entries["w",] = entries["w",].replace(jnp.ones(5))
    nnx.update(model, state_of(entries))
    assert model.w_again.value.shape == (5,)
    before = Record(model)
    with pytest.raises((TypeError, ValueError)):
        nnx.jit(lambda model: step(model, jnp.ones((2, 2))))(model)
    before.assert_unchanged()
    step(model, 1.0)
    assert jnp.array_equal(model.w.value, jnp.full(5, 2.0))


def test_update_with_a_part_only_changes_that_part() -> None:
    model = Block()
    nnx.update(model, nnx.state(model, nnx.BatchStat))
    entries = flat(model)
    part = {("w",): entries["w",].replace(jnp.zeros((2, 2)))}
    nnx.update(model, state_of(part))
    assert jnp.array_equal(model.w_again.value, jnp.zeros((2, 2)))
    assert jnp.array_equal(model.table.a.value, jnp.zeros(2))


def test_states_that_overlap_or_are_no_states_are_refused() -> None:
    graphdef, state = nnx.split(Block())
    for wrong in (3, "state", [state], None):
        with pytest.raises((TypeError, ValueError)):
            nnx.merge(graphdef, wrong)
    for wrong in (3, None, state, Block()):
        with pytest.raises((TypeError, ValueError)):
            nnx.merge(wrong, state)


# --- GraphDef ------------------------------------------------------------------------------------


def test_every_truncation_of_a_pickled_graphdef_is_an_error() -> None:
    data = pickle.dumps(nnx.graphdef(Block()))
    for n in range(len(data)):
        with pytest.raises(Exception):  # noqa: B017, PT011 - which one is pickle's choice
            pickle.loads(data[:n])


def _arguments(graphdef: Any) -> tuple[Any, tuple[Any, ...]]:
    constructor, arguments, *_ = graphdef.__reduce__()
    return constructor, arguments


def _mutations(value: Any, random_: random.Random) -> Any:
    """The same nested tuples with one part made wrong."""
    if isinstance(value, tuple | list) and len(value) and random_.random() < 0.9:
        parts = list(value)
        i = random_.randrange(len(parts))
        action = random_.random()
        if action < 0.1:
            del parts[i]
        elif action < 0.2:
            parts.insert(i, parts[i])
        else:
            parts[i] = _mutations(parts[i], random_)
        return type(value)(parts) if type(value) in (tuple, list) else tuple(parts)
    if isinstance(value, bytes) and value:
        at = random_.randrange(len(value))
        return value[:at] + bytes([random_.randrange(256)]) + value[at + 1 :]
    if isinstance(value, int):
        return random_.choice([-1, 0, value + 1, 2**31, 2**32 - 1, 2**63, "x", value ^ 1])
    return random_.choice([None, -1, "x", (), b"", object, 2**40])


def test_edited_pickles_are_refused_or_describe_a_sound_graph() -> None:
    """The tables come from outside: no index in them may be trusted."""
    graphdef = nnx.graphdef(Block())
    constructor, arguments = _arguments(graphdef)
    refused = 0
    for seed in range(4_000):
        edited = _mutations(arguments, random.Random(seed))
        try:
            wrong = constructor(*edited)
            hash(wrong)
            wrong.paths()
            wrong.ref_paths()
            wrong.difference(graphdef)
            repr(wrong)
            from treadle import _core

            _core.unflatten(wrong, [jnp.zeros(1)] * wrong.num_leaves)
        except Exception:
            refused += 1
    assert refused > 1_000


def test_flipped_bytes_in_a_pickle_never_crash() -> None:
    """Bytes that only carry the tables: opcodes and names of globals stay as they are."""
    data = pickle.dumps(nnx.graphdef(Block()), protocol=2)
    spots = [
        position + 1
        for opcode, argument, position in pickletools.genops(data)
        if opcode.name in ("BININT1", "BININT2", "BININT") and position is not None
    ]
    assert spots
    for spot in spots:
        for value in (0, 1, 127, 128, 255):
            edited = data[:spot] + bytes([value]) + data[spot + 1 :]
            try:
                nnx.merge(pickle.loads(edited), nnx.state(Block()))
            except Exception:
                continue


def test_a_pickle_of_another_version_says_so() -> None:
    constructor, (tables,) = _arguments(nnx.graphdef(Block()))
    version = tables[0]
    with pytest.raises(ValueError, match=f"format {version + 1}.*reads format {version}"):
        constructor((version + 1, *tables[1:]))


def test_loading_a_graphdef_calls_the_core_only() -> None:
    """Of the names in a pickle, one is a function; the others are the types of the graph."""

    class Names(pickle.Unpickler):
        found: ClassVar[dict[str, Any]] = {}

        def find_class(self, module: str, name: str) -> Any:
            self.found[f"{module}.{name}"] = found = super().find_class(module, name)
            return found

    loaded = Names(io.BytesIO(pickle.dumps(nnx.graphdef(Block())))).load()
    assert loaded == nnx.graphdef(Block())
    functions = {name for name, found in Names.found.items() if not isinstance(found, type)}
    assert functions == {"treadle.pickles.graphdef"}


# --- arrays --------------------------------------------------------------------------------------


@nnx.jit
def step(model: Block, x: Any = 0.0) -> None:
    model.w.value = model.w.value + x


def test_a_deleted_array_is_reported_with_its_path() -> None:
    @nnx.jit
    def total(model: Block) -> Any:
        return jnp.sum(model.w.value) + jnp.sum(model.table.a.value)

    model = Block()
    total(model)
    model.table.a.value = jnp.arange(2.0)
    model.table.a.value.delete()
    before = Record(model)
    for function in (total, nnx.jit(total), nnx.grad(total)):
        with pytest.raises((RuntimeError, ValueError), match=r"table\.a"):
            function(model)
    before.assert_unchanged()


def test_a_donated_array_is_reported_with_its_path() -> None:
    model, other = Block(), Block()
    other.w.value = model.w.value
    nnx.jit(lambda m: step(m, 1.0), donate_state=True)(model)
    if not other.w.value.is_deleted():
        other.w.value.delete()  # donation is the backend's to take or leave
    with pytest.raises((RuntimeError, ValueError), match=r"\bw\b"):
        step(other, 1.0)


def test_arguments_that_jax_cannot_take_are_refused_by_name() -> None:
    model = Block()
    before = Record(model)
    with pytest.raises(TypeError, match=r"x|text"):
        step(model, x="text")
    with pytest.raises(TypeError):
        step(model, object())
    before.assert_unchanged()


def test_a_text_in_a_variable_is_refused_by_path() -> None:
    model = Block()
    model.w.raw_value = "text"
    with pytest.raises(TypeError, match=r"\bw\b"):
        step(model)


def test_shapes_that_do_not_fit_leave_the_model_alone() -> None:
    model = Block()
    before = Record(model)
    with pytest.raises(TypeError):
        step(model, np.zeros((3, 3)))
    before.assert_unchanged()


def test_filters_out_of_order_and_without_end() -> None:
    model = Block()
    before = Record(model)
    with pytest.raises(ValueError, match="order"):
        nnx.split(model, ..., nnx.Param)
    with pytest.raises(ValueError, match=r"bare|table"):
        nnx.split(model, nnx.Param)
    with pytest.raises(ValueError, match="filter"):
        nnx.split(model, 3.5)
    before.assert_unchanged()


def test_node_types_registered_wrongly_say_so() -> None:
    with pytest.raises(TypeError):
        nnx.register_graph_node_type(
            3,
            flatten=len,
            create=len,
            set_key=len,
            pop_key=len,  # type: ignore[arg-type]
        )

    class Wrong:
        pass

    nnx.register_graph_node_type(
        Wrong,
        flatten=lambda node: 42,  # type: ignore[arg-type, return-value]
        create=lambda _: Wrong(),
        set_key=lambda *_: None,
        pop_key=lambda *_: None,
    )
    model = Block()
    model.wrong = Wrong()
    with pytest.raises(TypeError, match="wrong"):
        nnx.split(model)


@pytest.mark.parametrize(
    "items", [[("a",)], [("a", 1, 2)], ["ab", 3], [([], 1)], [("a", 1), ("a", 2)], None]
)
def test_node_types_whose_flatten_breaks_its_promise(items: Any) -> None:
    class Wrong:
        pass

    nnx.register_graph_node_type(
        Wrong,
        flatten=lambda node: (items, None),
        create=lambda _: Wrong(),
        set_key=lambda *_: None,
        pop_key=lambda *_: None,
    )
    model = Block()
    model.wrong = Wrong()
    with pytest.raises((TypeError, ValueError), match="wrong"):
        nnx.split(model)


def test_uncommitted_committed_and_sharded_arrays_mix() -> None:
    model = Block()
    model.w.value = jax.device_put(model.w.value, jax.devices()[0])
    step(model, 1.0)
    assert jnp.array_equal(model.w.value, jnp.full((2, 2), 2.0))

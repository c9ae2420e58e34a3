"""Error types are what users would catch, and paths read as Python."""

from __future__ import annotations

from typing import Any

import jax
import pytest

import treadle as nnx
from treadle.errors import format_path, format_paths


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), "model"),
        (("a",), "model.a"),
        (("blocks", 3, "norm", "scale"), "model.blocks[3].norm.scale"),
        (("table", "per cent"), "model.table['per cent']"),
        (("class",), "model['class']"),
        ((("x", 1),), "model[('x', 1)]"),
    ],
)
def test_paths_read_as_python(path: Any, text: str) -> None:
    assert format_path(path) == text


def test_many_paths_are_cut_short() -> None:
    assert format_paths([("a",), ("b",)]) == "model.a, model.b"
    assert format_paths([(i,) for i in range(4)], "s", limit=2) == "s[0], s[1] and 2 more"


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (nnx.GraphError, ValueError),
        (nnx.TraceContextError, ValueError),
        (nnx.FilterError, ValueError),
        (nnx.StateError, KeyError),
        (nnx.StaticError, TypeError),
        (nnx.LeafTypeError, TypeError),
        (nnx.NodeTypeError, TypeError),
    ],
)
def test_errors_are_graph_errors_and_builtins(error: type[Any], builtin: type[Any]) -> None:
    assert issubclass(error, nnx.GraphError)
    assert issubclass(error, builtin)


def test_state_errors_show_their_sentence_not_its_repr() -> None:
    assert str(nnx.StateError("it's missing")) == "it's missing"


@pytest.mark.parametrize(
    "change",
    [
        lambda model, state: nnx.update(model, state),
        lambda model, state: nnx.update(model, state.to_pure_dict()),
        lambda model, state: model.inner.set_attributes(nnx.Module, p=1),
        lambda model, state: nnx.pop(model, nnx.Param),
    ],
)
def test_a_change_at_another_trace_level_says_where_and_what_to_do(change: Any) -> None:
    model = nnx.Module()
    model.inner = nnx.Module()
    model.inner.p = nnx.Param(1.0)
    state = nnx.state(model)
    with pytest.raises(nnx.TraceContextError, match="Pass it to that function as an arg") as raised:
        jax.jit(lambda: change(model, state))()
    assert str(raised.value).startswith("model")
    assert ": Cannot mutate '" in str(raised.value)
    assert raised.value.path in ((), ("inner",), ("inner", "p"))
    assert model.inner.p.value == 1.0

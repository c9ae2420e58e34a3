"""Error types are what users would catch, and paths read as Python."""

from __future__ import annotations

from typing import Any

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

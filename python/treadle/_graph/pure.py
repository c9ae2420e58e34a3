"""Plain values in the place of Variables and State entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from treadle._graph.state import State
from treadle._objects.variable_state import VariableState
from treadle._objects.variables import Variable
from treadle._public import publish

__all__ = ["as_pure", "pure", "replace_by_pure_dict", "restore_int_paths", "to_pure_dict"]

T = TypeVar("T")


def to_pure_dict(state: State, extract_fn: Callable[[Any], Any] | None = None) -> dict[Any, Any]:
    """Nested plain dicts of a State's values, as checkpoints store them.

    Args:
        state: the State.
        extract_fn: makes what is stored of an entry; its value unless given.

    >>> import treadle as nnx
    >>> model = nnx.Dict(w=nnx.Param(2.0))
    >>> nnx.to_pure_dict(nnx.state(model))
    {'w': 2.0}
    >>> nnx.to_pure_dict(nnx.state(model), lambda entry: entry.type.__name__)
    {'w': 'Param'}
    """
    if extract_fn is not None:
        state = state.map(lambda path, entry: extract_fn(entry))
    return state.to_pure_dict()


def replace_by_pure_dict(
    state: State,
    pure_dict: Mapping[Any, Any],
    replace_fn: Callable[[Any, Any], Any] | None = None,
) -> None:
    """Put the values of nested plain dicts into a State, as `State.replace_by_pure_dict`.

    Args:
        state: what is changed in place; as it was if anything is wrong.
        pure_dict: values by nested keys, which may be the texts of indices; entries that it does
            not mention keep their value.
        replace_fn: makes the new entry from the old entry and the value.

    Raises:
        StateError: there is a value where the State has no entry.

    >>> import treadle as nnx
    >>> state = nnx.state(nnx.List([nnx.Param(1.0)]))
    >>> nnx.replace_by_pure_dict(state, {"0": 3.0})
    >>> state[0].value
    3.0
    """
    state.replace_by_pure_dict(pure_dict, replace_fn)


def restore_int_paths(pure_dict: Mapping[Any, Any]) -> dict[Any, Any]:
    """Nested dicts whose keys are numbers again where they are the texts of numbers.

    >>> import treadle as nnx
    >>> nnx.restore_int_paths({"layers": {"0": {"w": 1.0}, "1": {"w": 2.0}}})
    {'layers': {0: {'w': 1.0}, 1: {'w': 2.0}}}
    """
    restored: dict[Any, Any] = {}
    pending: list[tuple[Mapping[Any, Any], dict[Any, Any]]] = [(pure_dict, restored)]
    while pending:
        source, target = pending.pop()
        for key, value in source.items():
            restored_key = _number(key)
            if isinstance(value, Mapping):
                target[restored_key] = {}
                pending.append((value, target[restored_key]))
            else:
                target[restored_key] = value
    return restored


def _number(key: Any) -> Any:
    try:
        return int(key) if isinstance(key, str) else key
    except ValueError:
        return key


def as_pure(tree: T) -> T:
    """A pytree with the plain value in the place of each Variable and each entry of a State.

    Args:
        tree: any pytree of States, Variables and arrays.

    >>> import treadle as nnx
    >>> nnx.as_pure({"state": nnx.state(nnx.Dict(w=nnx.Param(1.0))), "variable": nnx.Param(2.0)})
    {'state': State({
      'w': 1.0
    }), 'variable': 2.0}
    """

    def holds_value(leaf: Any) -> bool:
        return isinstance(leaf, (Variable, VariableState))

    return jax.tree_util.tree_map(
        lambda leaf: leaf.value if holds_value(leaf) else leaf, tree, is_leaf=holds_value
    )


def pure(tree: T) -> T:
    """The earlier name of `as_pure`.

    >>> import treadle as nnx
    >>> nnx.pure([nnx.Param(2.0)])
    [2.0]
    """
    return as_pure(tree)


publish(__all__, globals())

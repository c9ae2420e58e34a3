"""What the oracle is told about Treadle: which objects are nodes and Variables, and how to read them.

Only public names are used, and `vars` for the attributes of a module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import treadle as nnx

from .model import Kinds, NodeKind, VariableKind

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

_registered: dict[type, NodeKind] = {}
_variables: dict[type, VariableKind] = {}
_mappings: dict[type, Callable[[Any], dict[Any, Any]]] = {dict: lambda value: value}


def teach(cls: type, kind: NodeKind) -> None:
    """Tell the oracle of a user-registered node type."""
    _registered[cls] = kind


def teach_variable(cls: type, kind: VariableKind) -> None:
    """Tell the oracle of another library's Variable type."""
    _variables[cls] = kind


def teach_mapping(cls: type, entries: Callable[[Any], dict[Any, Any]]) -> None:
    """Tell the oracle of another library's mapping, by the dict inside it."""
    _mappings[cls] = entries


def _assign_attributes(node: Any, children: list[tuple[Hashable, Any]]) -> None:
    vars(node).clear()
    vars(node).update(children)


def _assign_list(node: Any, children: list[tuple[Hashable, Any]]) -> None:
    del node[:]
    node.extend(child for _, child in children)


def _assign_dict(node: Any, children: list[tuple[Hashable, Any]]) -> None:
    for key in list(node):
        del node[key]
    for key, child in children:
        node[key] = child


def _nothing(_: Any) -> Hashable:
    return None


_kinds: tuple[tuple[type, NodeKind], ...] = (
    (nnx.List, NodeKind(enumerate, _nothing, lambda cls, _: cls([]), _assign_list)),
    (nnx.Dict, NodeKind(lambda n: n.items(), _nothing, lambda cls, _: cls(), _assign_dict)),
    (
        nnx.Object,
        NodeKind(
            lambda n: vars(n).items(), _nothing, lambda cls, _: cls.__new__(cls), _assign_attributes
        ),
    ),
)


def _node_kind(value: Any) -> NodeKind | None:
    found = _registered.get(type(value))
    if found is not None:
        return found
    return next((kind for cls, kind in _kinds if isinstance(value, cls)), None)


def _assign_variable(variable: Any, value: Any, metadata: Any) -> None:
    variable.raw_value = value
    variable._metadata = dict(metadata)


_own = VariableKind(
    metadata=lambda variable: variable._metadata,
    value=lambda variable: variable.raw_value,
    create=lambda cls, value, metadata: cls(value, **metadata),
    assign=_assign_variable,
)


def _variable_kind(cls: type) -> VariableKind:
    return _variables.get(cls, _own)


TREADLE = Kinds(
    node_kind=_node_kind,
    is_variable=lambda value: isinstance(value, nnx.Variable) or type(value) in _variables,
    metadata=lambda variable: _variable_kind(type(variable)).metadata(variable),
    value=lambda variable: _variable_kind(type(variable)).value(variable),
    create_variable=lambda cls, value, metadata: _variable_kind(cls).create(cls, value, metadata),
    assign_variable=lambda variable, value, metadata: _variable_kind(type(variable)).assign(
        variable, value, metadata
    ),
    entries=lambda value: _mappings[type(value)](value) if type(value) in _mappings else None,
)

"""How instances of another library's types keep what the engine reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeAlias, dataclass_transform

__all__ = ["Description", "MappingLayout", "NodeLayout", "Refused", "VariableLayout"]


@dataclass_transform(eq_default=False, kw_only_default=True)
class _Fields:
    """Attributes given by keyword. A dataclass each would be a tenth of the time that importing treadle takes."""

    def __init__(self, **fields: Any) -> None:
        kind = type(self)
        names = {name for name, hint in kind.__annotations__.items() if "ClassVar" not in hint}
        if not fields.keys() <= names or any(
            name not in fields and not hasattr(kind, name) for name in names
        ):
            raise TypeError(f"{kind.__name__} has the fields {sorted(names)}, got {sorted(fields)}")
        vars(self).update(fields)


class VariableLayout(_Fields):
    """Where instances of a Variable type keep what the engine reads and writes.

    Attributes:
        value: slot of the raw value.
        metadata: slot of the metadata, a dict of the Variable's own.
        trace: slot of the object that remembers the trace the Variable was made in.
        owner_path: attributes that lead from that object to the weak reference to the trace.
        make_trace: makes such an object for the current trace.
        counterpart: treadle's Variable type of the same meaning.
        refuse: from metadata, the reason why such a Variable cannot be walked, or None.
        refused_values: types of values that cannot be leaves, and
        refused_value_reason: why.
        sharding: metadata entry with the names of the axes.
        add_axis, remove_axis: ``(variable, index, transform_metadata)`` keeps the names of its axes.
    """

    kind: ClassVar[str] = "variable"
    value: str
    metadata: str
    trace: str
    owner_path: tuple[str, ...]
    make_trace: Callable[[], Any]
    counterpart: type[Any]
    refuse: Callable[[Mapping[str, Any]], str | None]
    refused_values: tuple[type[Any], ...]
    refused_value_reason: str
    sharding: str
    add_axis: Callable[[Any, int, Mapping[str, Any]], None]
    remove_axis: Callable[[Any, int, Mapping[str, Any]], None]


class NodeLayout(_Fields):
    """How instances of a node type, whose attributes are its ``__dict__``, keep their books.

    Attributes:
        state: attribute that is no child, with the memory of the trace.
        owner_path: attributes that lead from its value to the weak reference to the trace.
        make_trace: makes such a value for the current trace.
        marks: attribute that is no child, which says what attributes are data: numbers there are
            leaves. A frozenset of names, or an object with
        marks_field: an attribute that is a dict of bools.
        make_marks: makes the object from the dict.
        int_keys: names made of digits show as indices in paths.
        children: ``(key, child)`` for each child, sorted.
        set_key, pop_key: add or replace, and remove, a child.
    """

    kind: ClassVar[str] = "node"
    state: str
    owner_path: tuple[str, ...]
    make_trace: Callable[[], Any]
    marks: str
    marks_field: str | None
    make_marks: Callable[[Any], Any] | None
    int_keys: bool
    children: Callable[[Any], Iterable[tuple[Any, Any]]]
    set_key: Callable[[Any, Any, Any], None]
    pop_key: Callable[[Any, Any], Any]


class MappingLayout(_Fields):
    """A class around a plain dict, walked by value.

    Attributes:
        items: slot or attribute that is the dict.
        make: makes an instance from a dict, where setting the attribute is not enough.
    """

    kind: ClassVar[str] = "mapping"
    items: str
    make: Callable[[dict[Any, Any]], Any] | None = None


class Refused(_Fields):
    """Instances cannot be part of a graph, for a reason that an error can give after their path."""

    kind: ClassVar[str] = "refused"
    reason: str


Description: TypeAlias = VariableLayout | NodeLayout | MappingLayout | Refused

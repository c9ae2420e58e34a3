"""Names of collections, as flax.linen has them, for types of Variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from treadle._objects.variables import (
    BatchStat,
    Cache,
    Intermediate,
    Param,
    Perturbation,
    Variable,
)
from treadle._public import publish

__all__ = ["register_variable_name", "variable_name_from_type", "variable_type_from_name"]

V = TypeVar("V", bound=type[Variable[Any]])

_TYPES: dict[str, type[Variable[Any]]] = {
    "params": Param,
    "batch_stats": BatchStat,
    "cache": Cache,
    "intermediates": Intermediate,
    "perturbations": Perturbation,
}


@overload
def register_variable_name(name: str, typ: V, *, overwrite: bool = False) -> V: ...
@overload
def register_variable_name(name: str, *, overwrite: bool = False) -> Callable[[V], V]: ...
def register_variable_name(
    name: str, typ: type[Variable[Any]] | None = None, *, overwrite: bool = False
) -> Any:
    """Give a type of Variables the name of a collection.

    Args:
        name: the collection.
        typ: the type; left out, the result is a decorator of a class.
        overwrite: take the name from the type that has it.

    Returns:
        The type.

    Raises:
        ValueError: another type has the name.

    >>> import treadle as nnx
    >>> @nnx.register_variable_name("codes")
    ... class Code(nnx.Variable):
    ...     pass
    >>> nnx.variable_name_from_type(Code)
    'codes'
    """
    if typ is None:
        return lambda cls: register_variable_name(name, cls, overwrite=overwrite)
    known = _TYPES.get(name, typ)
    if known is not typ and not overwrite:
        raise ValueError(
            f"The name {name!r} is that of {known.__name__} already; give another name, or "
            "overwrite=True to take it."
        )
    _TYPES[name] = typ
    return typ


def variable_type_from_name(
    name: str, /, *, base: type[Variable[Any]] = Variable, allow_register: bool = False
) -> type[Variable[Any]]:
    """The type of Variables whose collection has this name.

    Args:
        name: the collection.
        base: what a new type derives from.
        allow_register: make a type of that name where there is none, and register it.

    Raises:
        ValueError: no type has the name.

    >>> import treadle as nnx
    >>> nnx.variable_type_from_name("params")
    <class 'treadle.Param'>
    """
    if name not in _TYPES:
        if not allow_register:
            raise ValueError(
                f"No type of Variables is registered as {name!r}. Call register_variable_name, or "
                "give allow_register=True to have one made."
            )
        _TYPES[name] = type(name, (base,), {})
    return _TYPES[name]


def variable_name_from_type(typ: type[Variable[Any]], /, *, allow_register: bool = False) -> str:
    """The name of the collection that a type of Variables stands for.

    Args:
        typ: the type itself; a base of it does not count.
        allow_register: register the type by its own name where it has none.

    Raises:
        ValueError: the type has no name, or its own name is another type's.

    >>> import treadle as nnx
    >>> nnx.variable_name_from_type(nnx.BatchStat)
    'batch_stats'
    """
    for name, known in _TYPES.items():
        if known is typ:
            return name
    if not allow_register:
        raise ValueError(
            f"{typ.__name__} is not registered under a name. Call register_variable_name, or give "
            "allow_register=True to register it as itself."
        )
    register_variable_name(typ.__name__, typ)
    return typ.__name__


publish(__all__, globals())

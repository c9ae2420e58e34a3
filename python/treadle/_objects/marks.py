"""Which attributes of a node are data and which are static, where somebody says so.

The marks of a node are two sets of names, attributes of its own or of its class, so that whatever
carries attributes carries them: clones, pickles, structures, transforms, JAX's tree functions. They
come to be when somebody marks something; the engine looks for them where it looks for names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, dataclass_transform, overload

import jax
import numpy as np

from treadle import _core
from treadle.errors import StaticError

__all__ = [
    "MARK_NAMES",
    "Mark",
    "data",
    "dataclass",
    "declare_marks",
    "forget_marks",
    "is_data",
    "static",
    "unmarked",
]

A = TypeVar("A")
C = TypeVar("C", bound="type[Any]")

# Attributes that are sets of names; the engine has the same two.
_DATA, _STATIC = MARK_NAMES = ("_data_names_", "_static_names_")
# The metadata entry of fields that says it, which `jax.tree_util.register_dataclass` reads as well.
_ENTRY = "static"
_MISSING: Any = dataclasses.MISSING


class Mark:
    """A value on its way to the attribute that it marks."""

    __slots__ = ("name", "value")

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value

    def __repr__(self) -> str:
        return f"treadle.{self.name}({self.value!r})"


@overload
def data(value: A, /) -> A: ...
@overload
def data(
    *,
    default: Any = ...,
    default_factory: Callable[[], Any] | None = None,
    init: bool = True,
    repr: bool = True,
    hash: bool | None = None,
    compare: bool = True,
    metadata: Mapping[str, Any] | None = None,
    kw_only: bool = ...,
) -> Any: ...
def data(value: Any = _MISSING, /, **options: Any) -> Any:
    """Mark an attribute of a node as data: numbers in it are leaves, as arrays are anyway.

    With a value, what is assigned to the attribute; without one, what the class declares, as a
    field of a dataclass or not. The options are those of `dataclasses.field`. The attribute stays
    data until it is deleted.

    Functions of JAX get all that is in the attribute as leaves, texts too; treadle's own take
    numbers and arrays, and leave everything else static.

    Raises:
        TypeError: a value and options are given; or, in an assignment, no value.
        ValueError: `metadata` has an entry "static", which this sets.

    >>> import jax
    >>> import treadle as nnx
    >>> class Scale(nnx.Pytree):
    ...     def __init__(self):
    ...         self.rate = nnx.data(0.5)
    ...         self.steps = 3
    >>> jax.tree.leaves(Scale())
    [0.5]
    >>> @nnx.dataclass
    ... class Point(nnx.Pytree):
    ...     x: float = nnx.data()
    ...     name: str = "p"
    >>> jax.tree.leaves(Point(1.5)), Point(1.5).x
    ([1.5], 1.5)
    """
    return _marked("data", value, options)


@overload
def static(value: A, /) -> A: ...
@overload
def static(
    *,
    default: Any = ...,
    default_factory: Callable[[], Any] | None = None,
    init: bool = True,
    repr: bool = True,
    hash: bool | None = None,
    compare: bool = True,
    metadata: Mapping[str, Any] | None = None,
    kw_only: bool = ...,
) -> Any: ...
def static(value: Any = _MISSING, /, **options: Any) -> Any:
    """Mark an attribute of a node as static: part of the structure, without arrays or state.

    Spelled as `data` is. Arrays, Variables and nodes cannot be static, at any depth of the value.
    What comes to hold one later is refused, by its path, where the node is walked.

    Raises:
        StaticError: on assignment, the value holds an array, a Variable or a node.
        TypeError: a value and options are given; or, in an assignment, no value.
        ValueError: `metadata` has an entry "static", which this sets.

    >>> import jax
    >>> import treadle as nnx
    >>> class Scale(nnx.Pytree):
    ...     def __init__(self, rate, name):
    ...         self.rate = nnx.data(rate)
    ...         self.name = nnx.static(name)
    >>> jax.tree.leaves(Scale(0.5, "slow"))
    [0.5]
    """
    return _marked("static", value, options)


def _marked(name: str, value: Any, options: dict[str, Any]) -> Any:
    if value is not _MISSING:
        if options:
            raise TypeError(
                f"treadle.{name}() takes a value, for an assignment, or options of "
                "dataclasses.field, for a declaration in a class; not both."
            )
        return Mark(name, value)
    metadata = options.pop("metadata", None) or {}
    if _ENTRY in metadata:
        raise ValueError(
            f"treadle.{name}(): metadata has an entry {_ENTRY!r}, which says whether an attribute is "
            "static; remove it."
        )
    if options.get("default_factory", _MISSING) is None:
        del options["default_factory"]
    return dataclasses.field(**options, metadata={**metadata, _ENTRY: name == "static"})


def is_data(value: Any, /) -> bool:
    """Whether a value is data by itself: an array, a Variable or a node.

    Numbers are not, unless `data` marks their attribute, nor are containers, whatever is in them:
    what treadle walks in a list or dict are its items.

    >>> import treadle as nnx
    >>> nnx.is_data(nnx.Param(1.0)), nnx.is_data(nnx.Module()), nnx.is_data(1), nnx.is_data([])
    (True, True, False, False)
    """
    return isinstance(value, (jax.Array, np.ndarray)) or _core.is_node(value)


@overload
def dataclass(cls: C, /) -> C: ...
@overload
def dataclass(
    *,
    init: bool = True,
    eq: bool = True,
    order: bool = False,
    unsafe_hash: bool = False,
    match_args: bool = True,
    kw_only: bool = False,
    slots: bool = False,
    weakref_slot: bool = False,
) -> Callable[[C], C]: ...
@dataclass_transform(field_specifiers=(dataclasses.field, data, static))
def dataclass(cls: Any = None, /, **options: Any) -> Any:
    """`dataclasses.dataclass` for nodes, which keep their own text and compare by identity.

    Fields may be declared by `data` and `static`. The standard library's decorator reads these as
    well; type checkers know them by this one.

    Raises:
        TypeError: a class that is no node marks fields, or has ``slots``, which nodes cannot have.

    >>> import treadle as nnx
    >>> @nnx.dataclass
    ... class Block(nnx.Module):
    ...     scale: nnx.Param
    ...     rate: float = nnx.static(default=0.1)
    >>> Block(nnx.Param(1.0)).rate
    0.1
    """
    if cls is None:
        return lambda cls: dataclass(cls, **options)
    made = dataclasses.dataclass(repr=False, **options)(cls)
    marked = [field.name for field in dataclasses.fields(made) if _ENTRY in field.metadata]
    if marked and not issubclass(made, _core.ObjectNode):
        raise TypeError(
            f"{made.__name__}.{marked[0]} is marked as data or static, but {made.__name__} is not a "
            "node. Derive it from treadle.Pytree or treadle.Module."
        )
    return made


def declare_marks(cls: type[Any]) -> None:
    """Collect what the body of a class of nodes declares, and its bases."""
    sets: list[set[str]] = [set(getattr(cls, name, ())) for name in MARK_NAMES]
    for name, value in vars(cls).items():
        if type(value) is not dataclasses.Field or _ENTRY not in value.metadata:
            continue
        is_static = value.metadata[_ENTRY]
        if not isinstance(is_static, bool):
            raise TypeError(
                f"{cls.__name__}.{name}: the metadata entry {_ENTRY!r} must be True or False, got "
                f"{is_static!r}."
            )
        if name in sets[not is_static]:
            raise TypeError(
                f"{cls.__name__}.{name} is declared {'static' if is_static else 'data'}, but a base "
                f"class declares it {'data' if is_static else 'static'}. Use another name."
            )
        sets[is_static].add(name)
    for name, names in zip(MARK_NAMES, sets, strict=True):
        if names:
            setattr(cls, name, frozenset(names))


def unmarked(node: Any, name: str, given: Any) -> Any:
    """The value of a mark, or of a field, that is assigned to an attribute, which is marked then.

    The engine calls this before it sets the attribute.
    """
    owner = f"{type(node).__name__}.{name}"
    if not isinstance(given, Mark):
        if _ENTRY not in given.metadata:
            return given
        word = "static" if given.metadata[_ENTRY] else "data"
        raise TypeError(
            f"{owner} is set to treadle.{word}() without a value, which declares attributes in a "
            f"class. Write treadle.{word}(value)."
        )
    value = given.value
    if isinstance(value, Mark):
        raise TypeError(f"{owner} is set to {given.name}({value.name}(...)). Mark it once.")
    if hasattr(type(getattr(type(node), name, None)), "__set__"):
        raise TypeError(f"{owner} is a property, which cannot be marked as {given.name}.")
    if given.name == "static":
        _refuse_data(owner, value)
    is_static = given.name == "static"
    for place, belongs in ((_DATA, not is_static), (_STATIC, is_static)):
        _set_mark(node, place, name, belongs)
    return value


def _refuse_data(owner: str, value: Any) -> None:
    for leaf in jax.tree.leaves(value, is_leaf=is_data):
        if is_data(leaf):
            raise StaticError(
                f"{owner} is marked as static, but its value holds a {type(leaf).__name__}, which is "
                "data. Leave the mark out."
            )


def forget_marks(node: Any, name: str) -> None:
    """Of an attribute that was deleted; the engine calls this."""
    for place in MARK_NAMES:
        _set_mark(node, place, name, False)


def _set_mark(node: Any, place: str, name: str, belongs: bool) -> None:
    known: frozenset[str] = getattr(node, place, frozenset())
    if (name in known) != belongs:
        vars(node)[place] = known | {name} if belongs else known - {name}

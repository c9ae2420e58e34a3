"""Filters: the small language in which users say which leaves of a graph they mean.

A filter is one of

- a type: Variables of that type or a subclass, and bare arrays that are instances of it;
- a string: Variables whose ``tag`` metadata is that string;
- a callable ``(path, value) -> bool``;
- ``...`` or ``True``: everything; ``None`` or ``False``: nothing;
- a list or tuple of filters: any of them;
- one of the classes below.

Filters are compiled to nested tuples that the C++ core matches without calling Python; only user
predicates are called back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from types import EllipsisType
from typing import Any, TypeAlias

from treadle import _core
from treadle._objects.adapters import adapt_filter
from treadle.errors import FilterError, format_paths

__all__ = [
    "All",
    "Any_",
    "Filter",
    "Not",
    "OfType",
    "PathContains",
    "WithTag",
    "to_filter_spec",
    "to_predicate",
]

Path: TypeAlias = tuple[Hashable, ...]
Predicate: TypeAlias = Callable[[Path, Any], bool]
Spec: TypeAlias = tuple[Any, ...]


class _Atom:
    """A filter with one constant; equal when its constant is equal."""

    __slots__ = ("constant",)
    _name: str

    def __init__(self, constant: Any, /) -> None:
        self.constant = constant

    def _spec(self) -> Spec:
        return (self._name, self.constant)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Atom) and self._spec() == other._spec()

    def __hash__(self) -> int:
        return hash(self._spec())

    def __repr__(self) -> str:
        shown = self.constant.__name__ if isinstance(self.constant, type) else repr(self.constant)
        return f"{type(self).__name__}({shown})"


class OfType(_Atom):
    """Selects Variables of a type (or a subclass) and bare leaves that are instances of it.

    >>> import treadle as nnx
    >>> is_param = nnx.to_predicate(nnx.OfType(nnx.Param))
    >>> is_param((), nnx.Param(1.0)), is_param((), nnx.BatchStat(1.0))
    (True, False)
    """

    __slots__ = ()
    _name = "type"


class WithTag(_Atom):
    """Selects Variables whose ``tag`` metadata equals the given tag.

    >>> import treadle as nnx
    >>> nnx.to_predicate(nnx.WithTag("frozen"))((), nnx.Param(1.0, tag="frozen"))
    True
    """

    __slots__ = ()
    _name = "tag"


class PathContains(_Atom):
    """Selects leaves that have the given key as one element of their path.

    >>> import treadle as nnx
    >>> nnx.to_predicate(nnx.PathContains("head"))(("head", "kernel"), None)
    True
    """

    __slots__ = ()
    _name = "path"


class _Combination:
    """A filter made of filters; equal when made of equal ones."""

    __slots__ = ("filters",)
    _name: str

    def __init__(self, *filters: Filter) -> None:
        self.filters = filters

    def _spec(self) -> Spec:
        return (self._name, tuple(to_filter_spec(f) for f in self.filters))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Combination) and self._spec() == other._spec()

    def __hash__(self) -> int:
        return hash(self._spec())

    def __repr__(self) -> str:
        return f"{type(self).__name__.rstrip('_')}({', '.join(map(repr, self.filters))})"


class All(_Combination):
    """Selects what every one of `filters` selects.

    >>> import treadle as nnx
    >>> f = nnx.to_predicate(nnx.All(nnx.Param, nnx.PathContains("head")))
    >>> f(("head", "kernel"), nnx.Param(1.0)), f(("stem", "kernel"), nnx.Param(1.0))
    (True, False)
    """

    __slots__ = ()
    _name = "all"


class Any_(_Combination):  # noqa: N801
    """Selects what at least one of `filters` selects.

    >>> import treadle as nnx
    >>> nnx.to_predicate(nnx.Any(nnx.Param, nnx.BatchStat))((), nnx.BatchStat(1.0))
    True
    """

    __slots__ = ()
    _name = "any"


# Its public name, which here is that of `typing.Any`.
Any_.__name__ = Any_.__qualname__ = "Any"


class Not(_Combination):
    """Selects what `filter` does not.

    >>> import treadle as nnx
    >>> nnx.to_predicate(nnx.Not(nnx.Param))((), nnx.BatchStat(1.0))
    True
    """

    __slots__ = ()
    _name = "not"

    def __init__(self, filter: Filter, /) -> None:
        super().__init__(filter)

    def _spec(self) -> Spec:
        return ("not", to_filter_spec(self.filters[0]))


_FilterAtom: TypeAlias = (
    type[Any] | str | Predicate | bool | EllipsisType | OfType | WithTag | PathContains | None
)
Filter: TypeAlias = "_FilterAtom | _Combination | Sequence[Filter]"


class _ByIdentity:
    """Makes an unhashable predicate usable in a hashable spec."""

    __slots__ = ("call",)

    def __init__(self, call: Predicate) -> None:
        self.call = call

    def __call__(self, path: Path, value: Any) -> bool:
        return self.call(path, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.call is self.call

    def __hash__(self) -> int:
        return id(self.call)


def to_filter_spec(filter: Filter) -> Spec:
    """Compile a filter to the hashable nested tuples that the C++ core matches.

    Raises:
        FilterError: `filter` is not a filter.

    >>> import treadle as nnx
    >>> nnx.to_filter_spec(["params", ...])
    ('any', (('tag', 'params'), ('true',)))
    """
    if filter is ... or filter is True:
        return ("true",)
    if filter is None or filter is False:
        return ("false",)
    if isinstance(filter, (_Atom, _Combination)):
        return filter._spec()
    if isinstance(filter, type):
        return ("type", filter)
    if isinstance(filter, str):
        return ("tag", filter)
    if isinstance(filter, (list, tuple)):
        return ("any", tuple(to_filter_spec(f) for f in filter))
    if callable(filter):
        same_meaning = adapt_filter(filter)
        if same_meaning is not filter:
            return to_filter_spec(same_meaning)
        try:
            hash(filter)
        except TypeError:
            return ("call", _ByIdentity(filter))
        return ("call", filter)
    raise FilterError(
        f"{filter!r} is not a filter. Use a Variable type, a tag string, a function "
        "(path, value) -> bool, `...`, `None`, a list of filters, or All, Any, Not, OfType, "
        "WithTag, PathContains."
    )


def _is_kind_of(value: Any, kind: type[Any]) -> bool:
    if isinstance(value, kind):
        return True
    declared = value.type if isinstance(value, _core.VariableState) else type(value)
    return issubclass(declared, kind) or issubclass(_core.counterpart(declared), kind)


def _metadata_of(value: Any) -> Any:
    if isinstance(value, _core.VariableState):
        return value._metadata
    return _core.metadata(value) if _core.is_variable(value) else {}


_PREDICATES: dict[str, Callable[..., Predicate]] = {
    "true": lambda: lambda path, value: True,
    "false": lambda: lambda path, value: False,
    "type": lambda kind: lambda path, value: _is_kind_of(value, kind),
    "tag": lambda tag: lambda path, value: _metadata_of(value).get("tag") == tag,
    "path": lambda key: lambda path, value: key in path,
    "call": lambda call: call,
    "any": lambda specs: _combined(any, specs),
    "all": lambda specs: _combined(all, specs),
    "not": lambda spec: _negated(predicate_of(spec)),
}


def _combined(combine: Callable[[Iterable[bool]], bool], specs: Sequence[Spec]) -> Predicate:
    predicates = [predicate_of(spec) for spec in specs]
    return lambda path, value: combine(p(path, value) for p in predicates)


def _negated(predicate: Predicate) -> Predicate:
    return lambda path, value: not predicate(path, value)


def predicate_of(spec: Spec) -> Predicate:
    """As `to_predicate`, of a compiled filter."""
    return _PREDICATES[spec[0]](*spec[1:])


def to_predicate(filter: Filter) -> Predicate:
    """Turn a filter into a function ``(path, value) -> bool``.

    `value` is a Variable, a `VariableState`, or a bare leaf.

    Raises:
        FilterError: `filter` is not a filter.

    >>> import treadle as nnx
    >>> nnx.to_predicate("params")(("rngs", "params", "key"), nnx.Variable(0, tag="params"))
    True
    """
    return predicate_of(to_filter_spec(filter))


def needs_path(spec: Spec) -> bool:
    """Whether a compiled filter looks at paths, so that they must be made for it."""
    kind, *arguments = spec
    if kind in ("any", "all"):
        return any(map(needs_path, arguments[0]))
    return needs_path(arguments[0]) if kind == "not" else kind in ("path", "call")


def compile_filters(filters: Sequence[Filter]) -> tuple[Spec, ...]:
    """Compile filters of which the first match wins; `...` may only come last.

    Raises:
        FilterError: one is not a filter, or one that selects everything precedes another.
    """
    specs = tuple(to_filter_spec(f) for f in filters)
    for position, spec in enumerate(specs):
        rest = specs[position + 1 :]
        if spec == ("true",) and any(later != ("true",) for later in rest):
            raise FilterError(
                f"Filters out of order: filter {position} (`...` or True) selects everything, so "
                f"{list(filters[position + 1 :])} after it can select nothing. Put it last."
            )
    return specs


@lru_cache(maxsize=512)
def _groups(assignment: tuple[int, ...], count: int) -> tuple[tuple[int, ...], ...]:
    groups: list[list[int]] = [[] for _ in range(count + 1)]
    for leaf, group in enumerate(assignment):
        groups[group].append(leaf)
    return tuple(map(tuple, groups))


def group_leaves(
    graphdef: _core.GraphDef,
    leaves: Sequence[Any],
    filters: Sequence[Filter],
    *,
    exhaustive: bool = True,
    root: str = "model",
) -> tuple[tuple[int, ...], ...]:
    """Leaf ids selected by each filter, first match wins, then those that no filter selects.

    Args:
        graphdef: structure whose leaves to group.
        leaves: the leaves, seen by user predicates.
        filters: the filters, tried in order.
        exhaustive: raise if some leaf is selected by no filter.
        root: name of the root in error messages.

    Returns:
        ``len(filters) + 1`` tuples of ascending leaf ids; the last is the remainder.

    Raises:
        FilterError: filters are out of order, or `exhaustive` and there is a remainder.
    """
    specs = compile_filters(filters)
    groups = _groups(graphdef.partition(specs, leaves), len(specs))
    if exhaustive and groups[-1]:
        paths = graphdef.paths()
        missed = format_paths((paths[i] for i in groups[-1]), root)
        raise FilterError(
            f"Non-exhaustive filters: none of {list(filters)} selects {missed}. "
            "Add a filter for them, or `...` as the last one to select all that is left."
        )
    return groups

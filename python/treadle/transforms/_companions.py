"""Nodes that a function brings along: the instance of a bound method, a module that is called.

``model.method`` reads the model as it is when it is called. So that a transform does the same, the model
comes along with each call as one more argument, by a name that no caller can give. Positions, axes and
keywords thereby are those of what the user passes, and walks, effects and messages treat the model as
any argument.

Nodes among the arguments of a `functools.partial` come along as well, and what a transformed function
brings is brought by what is made of it: ``jit(remat(model.method))``.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from treadle import _core
from treadle.errors import format_path
from treadle.transforms._arguments import (
    Function,
    companion_label,
    companion_name,
    function_name,
    is_companion,
    parameter_name,
)
from treadle.transforms._trees import flatten_with_paths, tree_flatten

Companions = dict[str, Any]
"""Nodes by the names under which they come along."""


class Brought(NamedTuple):
    """A function apart from the nodes that it brings along."""

    function: Function
    """Takes them by name."""
    companions: Companions


@functools.singledispatch
def bring(function: Any) -> Brought:
    """The nodes that a function brings along, apart from it.

    They are read now: a list that a partial holds may hold other nodes later. Other kinds of functions
    that bring nodes are registered where they are made.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> from treadle.transforms._companions import bring
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> function, companions = bring(model.__call__)
    >>> [*companions.values()] == [model], function(jnp.ones(2), **companions).shape
    (True, (3,))
    """
    if not _core.is_node(function) or isinstance(function, type):
        return Brought(function, {})
    name = _new_name("self", ())
    return Brought(_Instance(type(function), name), {name: function})


@bring.register
def _of_method(function: types.MethodType) -> Brought:
    if not _core.is_node(function.__self__):
        return Brought(function, {})
    inner, companions = bring(function.__func__)
    name = _new_name(parameter_name(inner, 0), companions)
    return Brought(_Method(inner, name), {name: function.__self__, **companions})


@bring.register
def _of_partial(function: functools.partial) -> Brought:  # type: ignore[type-arg]
    inner, companions = bring(function.func)
    bound = function.args, function.keywords
    leaves, structure = tree_flatten(bound)
    names: dict[int, str] = {}
    for place, (path, leaf) in enumerate(flatten_with_paths(bound)):
        if not _core.is_node(leaf):
            continue
        _, which, *rest = path
        root = parameter_name(inner, which) if isinstance(which, int) else str(which)
        names[place] = _new_name(format_path(rest, root), companions)
        companions = {**companions, names[place]: leaf}
        leaves[place] = _ABSENT
    if names:
        return Brought(_Partial(inner, names, leaves, structure), companions)
    if companions:
        return Brought(functools.partial(inner, *function.args, **function.keywords), companions)
    return Brought(function, {})


def bring_together(functions: Sequence[Function]) -> tuple[tuple[Function, ...], Companions]:
    """Several functions of the same arguments, apart from the nodes that any of them brings along."""
    brought = [bring(function) for function in functions]
    together: Companions = {}
    each = []
    for function, companions in brought:
        names: dict[str, str] = {}
        for inner, node in companions.items():
            outer = _new_name(companion_label(inner), together)
            names[outer], together[outer] = inner, node
        each.append(_OneOf(function, names))
    return (tuple(each), together) if together else (tuple(functions), together)


def apart(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Companions]:
    """Keyword arguments that a caller gave, and those by which nodes come along."""
    given: dict[str, Any] = {}
    companions: Companions = {}
    for name, value in kwargs.items():
        (companions if is_companion(name) else given)[name] = value
    return given, companions


def named_after(wrapper: Any, function: Any) -> Any:
    """`functools.update_wrapper`; a node's attributes are its state and stay with it."""
    updated = () if _core.is_node(function) else functools.WRAPPER_UPDATES
    return functools.update_wrapper(wrapper, function, updated=updated)


# Code of functions that wrap one that may bring nodes along.
_wrappers: set[types.CodeType] = set()


def bringing(wrapper: types.FunctionType, function: Function) -> Function:
    """`wrapper`, named after `function`; it brings along what that does, and takes it by name."""
    _wrappers.add(wrapper.__code__)
    return named_after(wrapper, function)


@bring.register
def _of_wrapper(function: types.FunctionType) -> Brought:
    # By code: attributes are copied by whoever wraps a wrapper.
    if function.__code__ not in _wrappers:
        return Brought(function, {})
    return Brought(function, bring(function.__wrapped__).companions)  # type: ignore[attr-defined]


def _new_name(label: str, taken: Collection[str]) -> str:
    name = companion_name(label, number := 0)
    while name in taken:
        name = companion_name(label, number := number + 1)
    return name


class _Absent:
    """In the place of a node."""

    def __repr__(self) -> str:
        return "..."


_ABSENT = _Absent()


class _With:
    """A function that takes nodes by name, and hands them to what they belong to; holds none.

    Args:
        like: the same with something else in the place of the nodes: has its name, source and signature.
    """

    def __init__(self, like: Function) -> None:
        self.__wrapped__ = like
        self.__name__ = function_name(like)
        self.__qualname__ = getattr(like, "__qualname__", self.__name__)
        self.__module__ = getattr(like, "__module__", __name__)
        self.__doc__ = like.__doc__


class _Method(_With):
    """A bound method.

    Args:
        function: what is bound.
        name: of the instance.
    """

    def __init__(self, function: Function, name: str) -> None:
        super().__init__(types.MethodType(function, _ABSENT))
        self._function, self._instance = function, name

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._function(kwargs.pop(self._instance), *args, **kwargs)


class _Instance(_With):
    """A node that is called.

    Args:
        kind: its type.
        name: what it is called.
    """

    def __init__(self, kind: type[Any], name: str) -> None:
        super().__init__(types.MethodType(kind.__call__, _ABSENT))
        self.__name__ = self.__qualname__ = kind.__name__
        self._instance = name

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return kwargs.pop(self._instance)(*args, **kwargs)


class _Partial(_With):
    """A partial over nodes.

    Args:
        function: what is called.
        names: of the nodes, by position among the leaves.
        leaves: of the bound arguments, without nodes.
        structure: of the bound arguments.
    """

    def __init__(
        self, function: Function, names: Mapping[int, str], leaves: Sequence[Any], structure: Any
    ) -> None:
        bound, named = jax.tree_util.tree_unflatten(structure, leaves)
        super().__init__(functools.partial(function, *bound, **named))
        self._function, self._names = function, names
        self._leaves, self._structure = leaves, structure

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        leaves = list(self._leaves)
        for place, name in self._names.items():
            leaves[place] = kwargs.pop(name)
        bound, named = jax.tree_util.tree_unflatten(self._structure, leaves)
        return self._function(*bound, *args, **{**named, **kwargs})


class _OneOf(_With):
    """One of several functions, which get the nodes of all.

    Args:
        function: what is called.
        names: for each of its own nodes what it is called among all, and by the function.
    """

    def __init__(self, function: Function, names: Mapping[str, str]) -> None:
        super().__init__(function)
        self._function, self._names = function, names

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        given, companions = apart(kwargs)
        own = {inner: companions[outer] for outer, inner in self._names.items()}
        return self._function(*args, **given, **own)

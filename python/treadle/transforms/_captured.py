"""Nodes that a function reads without being given them, which a compiled program takes as constants."""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

from jax._src import core as jax_core

from treadle import _core
from treadle.errors import CapturedNodeWarning
from treadle.transforms._arguments import Function, function_name
from treadle.transforms._warnings import warn

# Functions that are looked at, and entries of a container: what is read beyond is not told.
_MAX_FUNCTIONS = 500
_MAX_ENTRIES = 100

# What a package itself has among its globals are no nodes of the user's; its closures may hold functions.
_LIBRARIES = sys.stdlib_module_names | {"flax", "jax", "jaxlib", "numpy", "optax", "treadle"}

_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")


class Reported:
    """Says once, of one transformed function, which nodes a compiled program keeps as they are.

    Args:
        name: the transform.
        function: the user's function, apart from what it brings along.
    """

    __slots__ = ("_done",)

    def __init__(self) -> None:
        self._done = False

    def __call__(self, name: str, function: Function) -> None:
        """Look at `function`, if this is the first call outside of any trace.

        Inside of one, what is read belongs to that trace, which says so itself.
        """
        if self._done or not jax_core.trace_state_clean():  # type: ignore[attr-defined]
            return
        self._done = True
        found = next(captured_nodes(function), None)
        if found is not None:
            label, node, reader = found
            warn(
                f"{name} of {function_name(function)}: {reader} reads {label}, a "
                f"{type(node).__name__} that is no argument. The compiled program keeps its values "
                "as they are now: later changes are not seen, and changes made inside are an error. "
                f"Pass {label} as an argument.",
                CapturedNodeWarning,
            )


def captured_nodes(function: Function) -> Iterator[tuple[str, Any, str]]:
    """Nodes that a function, or one that it reads, closes over or has as a global or default.

    Yields:
        What the node is called there, the node, and the name of the function that reads it.

    >>> import treadle as nnx
    >>> from treadle.transforms._captured import captured_nodes
    >>> def scaled(model):
    ...     return lambda x: model(x)
    >>> [label for label, _, _ in captured_nodes(scaled(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))]
    ['model']
    """
    waiting: list[Any] = [function]
    met: set[int] = set()
    while waiting and len(met) < _MAX_FUNCTIONS:
        reader = _plain(waiting.pop())
        if reader is None or id(reader) in met:
            continue
        met.add(id(reader))
        is_library = _is_library(reader)
        for label, value in _read(reader, is_library):
            if not _core.is_node(value) or isinstance(value, type):
                waiting.append(value)
            elif not is_library:
                yield label, value, reader.__name__


def _plain(value: Any) -> types.FunctionType | None:
    """The function of Python code that a value ends in, if it is a function."""
    for _ in range(_MAX_ENTRIES):
        if isinstance(value, types.FunctionType):
            return value
        if isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, (types.MethodType, staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, _core.Dispatcher) or type(value).__module__.startswith("treadle."):
            value = getattr(value, "__wrapped__", None)
        else:
            return None
    return None


def _is_library(function: types.FunctionType) -> bool:
    there = function.__globals__
    root = str(there.get("__name__", "")).partition(".")[0]
    # Examples in docstrings run among a module's globals and are not in its file.
    return root in _LIBRARIES and function.__code__.co_filename == there.get("__file__")


def _read(function: types.FunctionType, is_library: bool) -> Iterator[tuple[str, Any]]:
    """What a function reads besides its arguments, by name; of containers also what is in them."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not bound yet
            continue
        yield from _with_entries(name, value)
    if is_library:
        return
    defaults = function.__defaults__ or ()
    given = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    for name, value in (
        *zip(given, defaults, strict=True),
        *(function.__kwdefaults__ or {}).items(),
    ):
        yield from _with_entries(name, value)
    for name in _globals_of(code, function.__globals__):
        yield from _with_entries(name, function.__globals__[name])


def _globals_of(code: types.CodeType, there: dict[str, Any]) -> Iterator[str]:
    """Names of the globals that code, and the code of functions defined inside, loads."""
    waiting = [code]
    while waiting:
        code = waiting.pop()
        waiting += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        names = {name for name in code.co_names if name in there}
        if not all(_plain(there[name]) is not None for name in names):
            # Attributes are among the names. Instructions, which take long to list, tell them apart.
            names &= {i.argval for i in dis.get_instructions(code) if i.opname in _LOADS}
        yield from sorted(names)


def _with_entries(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield name, value
    if type(value) in (list, tuple):
        yield from ((f"{name}[{i}]", entry) for i, entry in enumerate(value[:_MAX_ENTRIES]))
    elif type(value) is dict and len(value) <= _MAX_ENTRIES:
        yield from ((f"{name}[{key!r}]", entry) for key, entry in value.items())

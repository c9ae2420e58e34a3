"""Which calls outside of any trace may reuse what an earlier call with such functions compiled."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import core as jax_core

__all__ = ["compiles_once"]

_CONSTANTS = (bool, int, float, complex, str, bytes, type(None), type(...), type, types.ModuleType)
# What a function of theirs reads besides its arguments does not change.
_PURE_PACKAGES = frozenset({"builtins", "jax", "jaxlib", "numpy", "math", "functools", "optax"})


def compiles_once(*functions: Any) -> bool:
    """True where a program compiled for such functions serves later calls too.

    It does outside of any trace, if the functions read nothing that may change but their arguments.
    A function that captured a node, a Variable or an array has to be traced anew: a compiled
    program would go on with the value that it had when it was traced.

    Args:
        *functions: the functions that a program is made from.
    """
    if jax.config.jax_disable_jit or not jax_core.trace_state_clean():  # type: ignore[attr-defined]
        return False
    seen: set[int] = set()
    waiting: list[Any] = [*functions]
    if not all(isinstance(f, (types.FunctionType, functools.partial)) for f in waiting):
        return False
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, _CONSTANTS):
            continue
        seen.add(id(value))
        parts = _parts(value)
        if parts is None:
            return False
        waiting.extend(parts)
    return True


def _parts(value: Any) -> list[Any] | None:
    """What a value is made from, as far as a traced function may read it; None if it may change."""
    if type(value) is tuple or type(value) is frozenset:
        return list(value)
    if _from_pure_package(value):
        return []
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.FunctionType):
        return [*_captured(value)]
    return None


def _from_pure_package(value: Any) -> bool:
    """True for functions and transformed functions of JAX and the like, not for their data."""
    if isinstance(value, types.BuiltinFunctionType):
        return getattr(value, "__self__", None) is None or isinstance(
            value.__self__, types.ModuleType
        )
    if not callable(value) or isinstance(value, functools.partial):
        return False
    module = getattr(value, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in _PURE_PACKAGES


def _captured(function: types.FunctionType) -> Iterator[Any]:
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from function.__dict__.values()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for code in _codes(function.__code__):
        for name in code.co_names:
            if name in function.__globals__:
                yield function.__globals__[name]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of the functions defined inside it."""
    waiting = [code]
    while waiting:
        code = waiting.pop()
        yield code
        waiting.extend(c for c in code.co_consts if isinstance(c, types.CodeType))

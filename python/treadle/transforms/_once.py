"""Which calls outside of any trace may reuse what an earlier call with such functions compiled."""

from __future__ import annotations

import dis
import functools
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import jax
from jax._src import core as jax_core

__all__ = ["Program", "program_of"]

_CONSTANTS = (bool, int, float, complex, str, bytes, type(None), type(...))
# Their functions read nothing that changes but their arguments and what they captured.
_PURE_PACKAGES = frozenset(
    [
        "builtins",
        "jax",
        "jaxlib",
        "numpy",
        "math",
        "functools",
        "operator",
        "itertools",
        "optax",
        "treadle",
    ]
)
_CLASSES = (type, jax.numpy.ufunc)
# Objects of the types in these hold what they like, such as results that were remembered.
_STANDARD = frozenset(["builtins", "functools", "operator", "itertools"])
# Builtins that lead to variables which code does not name.
_REACHING = frozenset(["globals", "locals", "vars", "eval", "exec", "__import__"])
# Those that may find a global; the second and third in bodies of classes.
_GLOBAL_LOADS = frozenset(["LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"])
_IMPORT_NAME = dis.opmap["IMPORT_NAME"]
_UNKNOWN = object()
_MAX_PROGRAMS = 1024


class Program:
    """Functions as the static argument of a jitted call: equal content, same object.

    `functions` are those of the current call. Whichever trace reads them, they read the same
    values, since what they read is the key under which the program is known.
    """

    __slots__ = ("functions",)

    functions: tuple[Callable[..., Any], ...]


_programs: OrderedDict[Hashable, Program] = OrderedDict()
_lock = threading.Lock()


def program_of(*functions: Any) -> Program | None:
    """The program of such functions, or None if each call has to trace them anew.

    What is compiled for a program serves all calls with it. There is one outside of any trace, if
    all that the functions read besides their arguments is constant at the moment: scalars, texts,
    other such functions, and what known packages define. Rebinding a variable that they read makes
    another program. A function that reads a node, an array or an attribute of the user's own object
    has none: compiled code would go on with the value that was there when it was traced.

    Args:
        *functions: the functions that a program is made from.
    """
    if jax.config.jax_disable_jit or not jax_core.trace_state_clean():  # type: ignore[attr-defined]
        return None
    if not all(isinstance(f, (types.FunctionType, partial)) for f in functions):
        return None
    key = _fingerprint(functions)
    if key is None:
        return None
    with _lock:
        program = _programs.pop(key, None) or Program()
        _programs[key] = program
        while len(_programs) > _MAX_PROGRAMS:
            _programs.popitem(last=False)
    program.functions = functions
    return program


def _fingerprint(functions: tuple[Any, ...]) -> Hashable | None:
    """All that the functions are made from and read, in order; None if some of it may change."""
    found: list[Hashable] = []
    numbers: dict[int, int] = {}
    waiting: list[Any] = [*functions]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _CONSTANTS):
            # As text, so that -0.0 is not 0.0 and True is not 1.
            found.append((type(value), repr(value)))
            continue
        if id(value) in numbers:
            found.append(numbers[id(value)])
            continue
        numbers[id(value)] = len(numbers)
        if type(value) is tuple:
            found.append((tuple, len(value)))
            waiting.extend(value)
        elif isinstance(value, partial):
            found.append((partial, len(value.args), *value.keywords))
            waiting.extend((value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, types.FunctionType):
            parts = dict(_parts(value))
            found.append((value.__code__, value.__module__, *parts))
            waiting.extend(parts.values())
        elif _is_pure(value) and isinstance(value, Hashable):
            found.append(value)
        else:
            return None
    return tuple(found)


def _is_pure(value: Any) -> bool:
    """True for modules, classes, functions and transformed functions of JAX and the like."""
    if isinstance(value, types.ModuleType):
        return _in_pure_package(value.__name__)
    if isinstance(value, types.BuiltinFunctionType):
        # Bound to a module, or to an object that may change.
        owner = getattr(value, "__self__", None)
        return owner is None or isinstance(owner, types.ModuleType)
    if isinstance(value, _CLASSES):
        return _in_pure_package(getattr(value, "__module__", None))
    # An instance that only its class places in a package, such as a layer of treadle's, holds what it likes; and one
    # that only names a package may have copied that from a function that it wraps.
    return (
        callable(value)
        and _in_pure_package(type(value).__module__, _PURE_PACKAGES - _STANDARD)
        and _in_pure_package(getattr(value, "__dict__", {}).get("__module__"))
    )


def _in_pure_package(name: Any, packages: frozenset[str] = _PURE_PACKAGES) -> bool:
    return isinstance(name, str) and name.partition(".")[0] in packages


def _parts(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function captured and the globals that it reads, by name."""
    for i, value in enumerate(function.__defaults__ or ()):
        yield f"default {i}", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"default {name}", value
    for name, value in function.__dict__.items():
        yield f"attribute {name}", value
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"captured {name}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    # What the function says of itself may be copied from one that it wraps; its globals come with its code.
    if _in_pure_package(function.__globals__.get("__name__")):
        return
    imports, reaching = _instructions(function.__code__)
    if imports or not reaching <= function.__globals__.keys():
        yield "any variable", _UNKNOWN
    for code in _codes(function.__code__):
        for name in code.co_names:
            if name in function.__globals__:
                yield f"global {name}", function.__globals__[name]


@functools.lru_cache(_MAX_PROGRAMS)
def _instructions(code: types.CodeType) -> tuple[bool, frozenset[str]]:
    """Whether code imports what may change, and which globals or builtins of `_REACHING` it looks up."""
    imports, reaching = False, set[str]()
    for inner in _codes(code):
        if _IMPORT_NAME not in inner.co_code[::2] and _REACHING.isdisjoint(inner.co_names):
            continue  # listing instructions takes long
        # An import follows the level of its package, 0 for absolute names, and the names that it takes.
        level = last = None
        for instruction in dis.get_instructions(inner):
            operation, argument = instruction.opname, instruction.argval
            if operation == "EXTENDED_ARG":
                continue
            if operation == "IMPORT_NAME":
                imports = imports or level != 0 or not _in_pure_package(argument)
            elif operation in _GLOBAL_LOADS and argument in _REACHING:
                reaching.add(argument)
            level, last = last, argument
    return imports, frozenset(reaching)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of the functions defined inside it."""
    waiting = [code]
    while waiting:
        code = waiting.pop()
        yield code
        waiting.extend(c for c in code.co_consts if isinstance(c, types.CodeType))

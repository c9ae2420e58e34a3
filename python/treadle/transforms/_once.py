"""Which calls outside of any trace may reuse what an earlier call with such functions compiled."""

from __future__ import annotations

import threading
import types
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax._src import core as jax_core

from treadle import _core

__all__ = ["Program", "program_of"]

_MAX_PROGRAMS = 1024


class Program:
    """Functions as the static argument of a jitted call: equal content, same object.

    `functions` are those of the current call. Whichever trace reads them, they read the same
    values, since what they read is the key under which the program is known.
    """

    __slots__ = ("functions",)

    functions: tuple[Callable[..., Any], ...]


_programs: OrderedDict[tuple[_core.Fingerprint, str], Program] = OrderedDict()
_lock = threading.Lock()


def program_of(*functions: Any, operands: tuple[Any, ...]) -> Program | None:
    """The program of such functions, or None if each call has to trace them anew.

    What is compiled for a program serves all calls with it. There is one outside of any trace, if
    all that the functions read besides their arguments is constant at the moment: scalars, texts,
    other such functions, and what known packages define. Rebinding a variable that they read makes
    another program. A function that reads a node, an array or an attribute of the user's own object
    has none: compiled code would go on with the value that was there when it was traced. What the
    operands bring along is read as well: methods of their classes, functions in their attributes.

    Args:
        *functions: the functions that a program is made from.
        operands: what they will be called with.
    """
    if jax.config.jax_disable_jit or not jax_core.trace_state_clean():  # type: ignore[attr-defined]
        return None
    if not all(isinstance(f, (types.FunctionType, partial)) for f in functions):
        return None
    try:
        flat = _core.flatten_call(operands, {}, frozenset(), frozenset())
    except Exception:  # The call without a program fails likewise, and says it better.
        return None
    fingerprint = _core.fingerprint(*functions, *flat.graphdef.callables())
    if fingerprint is None:
        return None
    # What keys are made of is in no key of JAX's own.
    key = fingerprint, str(jax.config.jax_default_prng_impl)  # type: ignore[attr-defined]
    with _lock:
        program = _programs.pop(key, None) or Program()
        _programs[key] = program
        while len(_programs) > _MAX_PROGRAMS:
            _programs.popitem(last=False)
    program.functions = functions
    return program

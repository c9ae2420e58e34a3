"""`jit` over graph nodes: the C++ dispatcher around `jax.jit`."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from treadle import _core
from treadle._graph.filters import Filter
from treadle._graph.state import State
from treadle._public import publish
from treadle.transforms._companions import Brought, bring, named_after
from treadle.transforms._decorator import jit_transform
from treadle.transforms._jit.compiler import Compiler
from treadle.transforms._jit.copying import Recipe
from treadle.transforms._jit.jax_internals import UNSPECIFIED, plan_caches
from treadle.transforms._jit.options import Options
from treadle.transforms._jit.retraces import Retrace
from treadle.transforms._jit.stages import Lowered, Traced
from treadle.transforms._parameters import Index, Names

__all__ = ["JitWrapped", "cached_partial", "jit"]

P = ParamSpec("P")
Rest = ParamSpec("Rest")
R = TypeVar("R")
T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
R_co = TypeVar("R_co", covariant=True)

# Structures remembered per function. Beyond it the one not used for longest is forgotten.
_CAPACITY = 256


class _Compilable(Protocol[R_co]):
    """What a jitted function has beside being called."""

    # `jax.ShapeDtypeStruct` may stand for arrays, so these take more than a call does.
    def lower(self, *args: Any, **kwargs: Any) -> Lowered[R_co]:
        """Trace and lower for these arguments, without running; the result can be compiled."""
        ...

    def trace(self, *args: Any, **kwargs: Any) -> Traced[R_co]:
        """Trace for these arguments, without lowering."""
        ...

    def eval_shape(self, *args: Any, **kwargs: Any) -> R_co:
        """The result with `jax.ShapeDtypeStruct` in the place of arrays; changes nothing."""
        ...

    @property
    def retraces(self) -> tuple[Retrace, ...]:
        """Traces after the first, with the first difference that caused each; the last 1000."""
        ...

    @property
    def num_traces(self) -> int:
        """How often the function was traced."""
        ...

    def clear_cache(self) -> None:
        """Forget all compiled programs of this function."""
        ...


class _JitMethod(_Compilable[R_co], Protocol[P, R_co]):
    """A jitted method of an instance. What is beside the call is the function's: it takes `self`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the compiled function on the instance."""
        ...


class JitWrapped(_Compilable[R_co], Protocol[P, R_co]):
    """What `jit` returns: a function, or a method if it stands in a class."""

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        """The user's function."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the compiled function."""
        ...

    @overload
    def __get__(self, instance: None, owner: Any, /) -> JitWrapped[P, R_co]: ...
    @overload
    def __get__(
        self: JitWrapped[Concatenate[T, Rest], R], instance: T, owner: Any, /
    ) -> _JitMethod[Rest, R]: ...


@jit_transform
def jit(
    fun: Callable[P, R],
    *,
    in_shardings: Any = UNSPECIFIED,
    out_shardings: Any = UNSPECIFIED,
    static_argnums: Index = None,
    static_argnames: Names = None,
    donate_argnums: Index = None,
    donate_argnames: Names = None,
    keep_unused: bool = False,
    device: Any = None,
    backend: str | None = None,
    inline: bool = False,
    abstracted_axes: Any = None,
    donate_state: Filter = False,
    constrain_state: bool | Callable[[State], State] = False,
) -> JitWrapped[P, R]:
    """Compile a function whose arguments and results may be or contain graph nodes.

    Over `jax.jit`. What `fun` changes in its arguments reaches the caller's own objects; nodes in
    the result that were arguments are those very objects. The function is traced again only if the
    structure (including static attributes), a static argument, or the shape, dtype, weak type or
    sharding of an array is new; never because other objects of the same structure are passed.

    Args:
        fun: function to compile; a method, and ``__init__``, too.
        in_shardings: sharding, `jax.sharding.PartitionSpec`, `StateSharding` or None for each
            positional argument that is not static, or a pytree prefix of them. A node's entry holds
            for all its leaves, which keep it on the way out. Calls cannot have keyword arguments
            then.
        out_shardings: the same for the result.
        static_argnums: positions of arguments that are compile-time constants, which must be
            hashable.
        static_argnames: names of such arguments. If only one of the two is given, the other follows
            from the signature.
        donate_argnums: positions of arguments whose buffers the call may reuse. For a node these
            are all leaves it reaches; it holds new arrays afterwards, also where nothing changed.
        donate_argnames: names of such arguments.
        keep_unused: keep arguments in the compiled program that `fun` does not use.
        device: the device to run on, as in `jax.jit`.
        backend: the backend to run on, as in `jax.jit`.
        inline: inline the function into enclosing programs.
        abstracted_axes: as in the jax versions that have it; an error elsewhere.
        donate_state: donate the leaves of all graph nodes among the arguments; or a filter that
            selects them by path, type and metadata. An array that somebody else holds too (a clone, a
            State, a variable of yours) is copied instead, with a warning once.
        constrain_state: constrain the sharding of state, on the way in and out: True by the
            Variables' ``sharding`` metadata, or a function from a State to a constrained State.

    Returns:
        A callable with the signature of `fun`, and ``lower``, ``trace``, ``eval_shape``,
        ``retraces``, ``num_traces`` and ``clear_cache``. ``lower(...).compile()`` gives a program
        that is called with such arguments and is never traced again.

    Raises:
        ValueError: parameters that contradict each other, that name arguments which the function
            does not have, or that the installed jax lacks; from the call, if `in_shardings` does
            not fit its arguments.
        GraphError: from the call, for a static value that cannot be hashed.
        TypeError: from the call, for an argument that JAX cannot take.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> class Counter(nnx.Module):
    ...     def __init__(self):
    ...         self.count = nnx.Variable(jnp.array(0))
    >>> @nnx.jit
    ... def advance(counter, by):
    ...     counter.count.value += by
    ...     return counter.count.value * 10
    >>> counter = Counter()
    >>> int(advance(counter, 2)), int(counter.count.value)
    (20, 2)
    """
    settings = {name: value for name, value in locals().items() if name != "fun"}
    function, companions = bring(fun)
    options = Options(function, settings)
    compiler = Compiler(function, companions, options, _CAPACITY, Recipe(jit, settings))
    dispatcher = _core.Dispatcher(compiler, *options.static, _CAPACITY, companions)
    compiler.dispatcher = weakref.ref(dispatcher)
    named_after(dispatcher, fun)
    plan_caches.add(compiler)
    return cast("JitWrapped[P, R]", dispatcher)


@bring.register
def _of_dispatcher(function: _core.Dispatcher) -> Brought:
    return Brought(function, function.companions)


@overload
def cached_partial(f: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def cached_partial(f: Callable[Concatenate[T, Rest], R], a: T, /) -> Callable[Rest, R]: ...
@overload
def cached_partial(
    f: Callable[Concatenate[T, T1, Rest], R], a: T, b: T1, /
) -> Callable[Rest, R]: ...
@overload
def cached_partial(
    f: Callable[Concatenate[T, T1, T2, Rest], R], a: T, b: T1, c: T2, /
) -> Callable[Rest, R]: ...
@overload
def cached_partial(
    f: Callable[Concatenate[T, T1, T2, T3, Rest], R], a: T, b: T1, c: T2, d: T3, /
) -> Callable[Rest, R]: ...
@overload
def cached_partial(
    f: Callable[..., R], a: Any, b: Any, c: Any, d: Any, e: Any, /, *rest: Any
) -> Callable[..., R]: ...
def cached_partial(f: Callable[..., Any], *cached_args: Any) -> Callable[..., Any]:
    """Bind the first arguments of a jitted function, such as model and optimizer.

    Elsewhere in the NNX family this is how per-call costs of a graph are avoided. Here the jitted
    function recognizes the objects by itself, so binding is all that is left to do, and nothing is
    promised in return: the bound objects may change in any way between calls.

    Args:
        f: a function, jitted or not.
        *cached_args: its first positional arguments.

    Returns:
        A function of the remaining arguments.

    Raises:
        TypeError: `f` is not callable.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> counter = nnx.Dict(count=nnx.Variable(jnp.array(0)))
    >>> @nnx.jit
    ... def advance(counter, by):
    ...     counter.count.value += by
    >>> step = nnx.cached_partial(advance, counter)
    >>> step(2), step(3), int(counter.count.value)
    (None, None, 5)
    """
    if not callable(f):
        raise TypeError(f"cached_partial expects a function as its first argument, got {f!r}.")
    return functools.partial(f, *cached_args)


publish(__all__, globals())

"""A jitted function on its way to a program: traced, lowered, compiled ahead of the first call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from jax.core import Tracer

from treadle import _core
from treadle.transforms._arguments import Function, function_name
from treadle.transforms._companions import Companions
from treadle.transforms._jit.retraces import leaf_type, shown, structure_difference, type_difference

__all__ = ["Compiled", "Lowered", "Traced"]

R_co = TypeVar("R_co", covariant=True)


class Compiler(Protocol):
    """The Python side of the dispatcher of the jitted function that a stage comes from."""

    function: Function
    companions: Companions

    def copy(self, array: Any, /) -> Any: ...
    def on_copies(
        self, graphdef: _core.GraphDef, leaves: Sequence[int], values: Sequence[Any], /
    ) -> None: ...
    def on_error(
        self, graphdef: _core.GraphDef | None, leaves: Sequence[Any], error: Exception
    ) -> Exception | None: ...


class Arguments(NamedTuple):
    """The arguments that a stage was made for: static ones as they are, of others what they were."""

    graphdef: _core.GraphDef
    types: tuple[str, ...]
    static_args: dict[int, Any]
    static_kwargs: dict[str, Any]


def arguments_of(
    graphdef: _core.GraphDef,
    leaves: Sequence[Any],
    static: tuple[frozenset[int], frozenset[str]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Arguments:
    """Describe a call's arguments, of which those named by `static` are static."""
    positions, names = static
    return Arguments(
        graphdef,
        tuple(map(leaf_type, leaves)),
        {i: args[i] for i in sorted(positions) if i < len(args)},
        {name: kwargs[name] for name in sorted(names) if name in kwargs},
    )


class _Stage(Generic[R_co]):
    """One of JAX's stages over the leaves, whose attributes it has, and what it was made for."""

    def __init__(self, stage: Any, compiler: Compiler, plan: Any, arguments: Arguments) -> None:
        self._stage = stage
        self._compiler = compiler
        self._plan = plan
        self._arguments = arguments

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.__dict__["_stage"], name)

    def _next(self, kind: Callable[..., Any], stage: Any) -> Any:
        return kind(stage, self._compiler, self._plan, self._arguments)


class Traced(_Stage[R_co]):
    """What ``trace`` of a jitted function returns.

    Has the attributes of `jax.stages.Traced` (``jaxpr``, ``out_info``, ...), which are about the flat
    arrays that the program takes and returns.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> counter = nnx.Dict(count=nnx.Variable(jnp.array(1)))
    >>> @nnx.jit
    ... def double(counter):
    ...     counter.count.value *= 2
    >>> double.trace(counter).jaxpr.jaxpr.eqns[0].primitive
    mul
    """

    def lower(self, **options: Any) -> Lowered[R_co]:
        """Lower to StableHLO, with the options of `jax.stages.Traced.lower`."""
        return self._next(Lowered, self._stage.lower(**options))


class Lowered(_Stage[R_co]):
    """What ``lower`` of a jitted function returns.

    Has the attributes of `jax.stages.Lowered` (``as_text``, ``cost_analysis``, ...), which are about
    the flat arrays that the program takes and returns.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> counter = nnx.Dict(count=nnx.Variable(jnp.array(1)))
    >>> @nnx.jit
    ... def double(counter):
    ...     counter.count.value *= 2
    >>> "multiply" in double.lower(counter).as_text()
    True
    """

    def compile(self, compiler_options: dict[str, Any] | None = None) -> Compiled[R_co]:
        """Compile, with XLA's options by name, as in `jax.stages.Lowered.compile`."""
        return self._next(Compiled, self._stage.compile(compiler_options))


class Compiled(_Stage[R_co]):
    """A program compiled ahead of its first call, for arguments like those it was lowered for.

    Called with arguments of the same structure and types, it does what the jitted function does: what
    changes reaches the caller's own objects. It is never traced again. As with `jax.stages.Compiled`,
    whose other attributes it has, static arguments are left out of the call.

    Raises:
        TypeError: from the call, for arguments of another structure, or arrays of another shape or
            dtype, than it was lowered for, which names the first difference; for static ones.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> @nnx.jit(static_argnames="times")
    ... def advance(counter, by, times):
    ...     counter.count.value += by * times
    >>> counter = nnx.Dict(count=nnx.Variable(jnp.zeros(())))
    >>> compiled = advance.lower(counter, jnp.ones(2), times=10).compile()
    >>> compiled(counter, jnp.ones(2))
    >>> counter.count.value.tolist(), advance.num_traces
    ([10.0, 10.0], 1)
    >>> compiled(counter, jnp.ones(2))
    Traceback (most recent call last):
        ...
    TypeError: advance was compiled ahead for counter.count: float32[], and called with float32[2]. ...
    """

    def __init__(self, stage: Any, compiler: Compiler, plan: Any, arguments: Arguments) -> None:
        super().__init__(stage, compiler, plan, arguments)
        only = _OnePlan(compiler, plan._replace(function=stage), arguments)
        positions, names = arguments.static_args, arguments.static_kwargs
        self._dispatcher = _core.Dispatcher(
            only, frozenset(positions), frozenset(names), 1, compiler.companions
        )

    def __call__(self, *args: Any, **kwargs: Any) -> R_co:
        """Run the program on arguments like those it was compiled for, without the static ones."""
        _, _, static_args, static_kwargs = self._arguments
        if static_args:
            positional = [*args]
            for i, value in static_args.items():
                positional.insert(i, value)
            args = tuple(positional)
        if static_kwargs:
            given = [name for name in static_kwargs if name in kwargs]
            if given:
                raise TypeError(
                    f"{function_name(self._compiler.function)} was compiled ahead for "
                    f"{given[0]}={static_kwargs[given[0]]!r}. Leave static arguments out of the call."
                )
            kwargs = {**kwargs, **static_kwargs}
        return self._dispatcher(*args, **kwargs)


class _OnePlan:
    """The Python side of a dispatcher that knows one structure, and traces no other."""

    def __init__(self, compiler: Compiler, plan: Any, arguments: Arguments) -> None:
        self._compiler = compiler
        self._plan = plan
        self._arguments = arguments
        self.copy, self.on_copies = compiler.copy, compiler.on_copies

    def plan(self, graphdef: _core.GraphDef, leaves: Sequence[Any]) -> Any:
        known = self._arguments.graphdef
        # The hash covers what functions among the statics read.
        if hash(known) == hash(graphdef) and known == graphdef:
            return self._plan
        difference = structure_difference(self._compiler.function, [known], graphdef)
        assert difference is not None
        raise self._refusal(*difference)

    def on_error(
        self, graphdef: _core.GraphDef | None, leaves: Sequence[Any], error: Exception
    ) -> Exception | None:
        traced = any(isinstance(leaf, Tracer) for leaf in leaves)
        if graphdef is not None and isinstance(error, TypeError) and not traced:
            types = tuple(map(leaf_type, leaves))
            if types != self._arguments.types:
                return self._refusal(
                    *type_difference(
                        self._compiler.function, graphdef, self._arguments.types, types
                    )
                )
        return self._compiler.on_error(graphdef, leaves, error)

    def _refusal(self, path: str, before: Any, after: Any) -> TypeError:
        static = self._arguments.static_args
        hint = f" Arguments {[*static]} are static: leave them out of the call." if static else ""
        return TypeError(
            f"{function_name(self._compiler.function)} was compiled ahead for {path}: "
            f"{shown(before)}, and called with {shown(after)}. Lower and compile it for these "
            f"arguments as well, or call the jitted function itself.{hint}"
        )

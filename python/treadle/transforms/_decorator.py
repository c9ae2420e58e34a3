"""How a transform is spelled: ``transform(f, ...)``, or ``transform(...)`` as a decorator.

`transform` and its siblings make that of a function whose first parameter is the user's function. The
protocols say it to type checkers. Each has the two spellings as overloads, over the parameters of the
user's function (`P`) and the transform's options (`Options`), so that both are checked and signatures
are kept.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from treadle import _core
from treadle.transforms._arguments import Function

if TYPE_CHECKING:
    from jax.experimental.checkify import Error

    from treadle.transforms._custom_vjp import CustomVjp
    from treadle.transforms._grad_types import GradTransform, ValueAndGradTransform
    from treadle.transforms._jit.jit import JitWrapped

Options = ParamSpec("Options")
P = ParamSpec("P")
R = TypeVar("R")

if TYPE_CHECKING:
    Checked = tuple[Error, R]


class _Keep(Protocol):
    def __call__(self, f: Callable[P, R], /) -> Callable[P, R]: ...


class Transform(Protocol[Options]):
    """A transform whose result is called like the function itself."""

    @overload
    def __call__(
        self, f: Callable[P, R], /, *args: Options.args, **kwargs: Options.kwargs
    ) -> Callable[P, R]: ...
    @overload
    def __call__(self, *args: Options.args, **kwargs: Options.kwargs) -> _Keep: ...


class _Jit(Protocol):
    def __call__(self, f: Callable[P, R], /) -> JitWrapped[P, R]: ...


class JitTransform(Protocol[Options]):
    """A transform whose result has what a jitted function has beside."""

    @overload
    def __call__(
        self, f: Callable[P, R], /, *args: Options.args, **kwargs: Options.kwargs
    ) -> JitWrapped[P, R]: ...
    @overload
    def __call__(self, *args: Options.args, **kwargs: Options.kwargs) -> _Jit: ...


class _Check(Protocol):
    def __call__(self, f: Callable[P, R], /) -> Callable[P, Checked[R]]: ...


class CheckTransform(Protocol[Options]):
    """A transform whose result returns what was found wrong beside the function's own result."""

    @overload
    def __call__(
        self, f: Callable[P, R], /, *args: Options.args, **kwargs: Options.kwargs
    ) -> Callable[P, Checked[R]]: ...
    @overload
    def __call__(self, *args: Options.args, **kwargs: Options.kwargs) -> _Check: ...


class _Opaque(Protocol):
    def __call__(self, f: Callable[P, Any], /) -> Callable[P, Any]: ...


class OpaqueTransform(Protocol[Options]):
    """A transform whose result is called like the function, and gives what no type here can say."""

    @overload
    def __call__(
        self, f: Callable[P, Any], /, *args: Options.args, **kwargs: Options.kwargs
    ) -> Callable[P, Any]: ...
    @overload
    def __call__(self, *args: Options.args, **kwargs: Options.kwargs) -> _Opaque: ...


class _CustomRule(Protocol):
    def __call__(self, f: Callable[P, R], /) -> CustomVjp[P, R]: ...


class CustomRuleTransform(Protocol[Options]):
    """A transform whose result waits for a derivative rule."""

    @overload
    def __call__(
        self, f: Callable[P, R], /, *args: Options.args, **kwargs: Options.kwargs
    ) -> CustomVjp[P, R]: ...
    @overload
    def __call__(self, *args: Options.args, **kwargs: Options.kwargs) -> _CustomRule: ...


def _spelled(define: Function) -> Any:
    name = getattr(define, "__name__", "transform")
    signature = inspect.signature(define)
    first = next(iter(signature.parameters))

    @functools.wraps(define)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not args and first not in kwargs:
            # A misspelt option is to be found here, not when the function is decorated.
            signature.bind_partial(**kwargs)
            return functools.partial(wrapper, **kwargs)
        f = args[0] if args else kwargs[first]
        if not callable(f):
            raise TypeError(f"{name} expects a function as its first argument, got {f!r}.")
        made = define(*args, **kwargs)
        if _core.holds_node(f):
            options = tuple(item for item in kwargs.items() if item[0] != first)
            # So that the engine finds what was transformed, and can do it again to another.
            _core.mark_lifted(made, (name, args[1:], options), f)
        return made

    return wrapper


def transform(define: Callable[Concatenate[Function, Options], Function]) -> Transform[Options]:
    """Let `define`, whose first parameter is a function, be used without it as a decorator.

    The function can be passed by position or by the parameter's name. What `define` returns is called
    like the function it was given; for other results there are the siblings below, which differ in
    what they say to type checkers.
    """
    return _spelled(define)


def jit_transform(
    define: Callable[Concatenate[Function, Options], Function],
) -> JitTransform[Options]:
    """As `transform`, for what returns a jitted function."""
    return _spelled(define)


def check_transform(
    define: Callable[Concatenate[Function, Options], Function],
) -> CheckTransform[Options]:
    """As `transform`, for what returns a function of a pair."""
    return _spelled(define)


def opaque_transform(
    define: Callable[Concatenate[Function, Options], Function],
) -> OpaqueTransform[Options]:
    """As `transform`, for what returns a function of another result."""
    return _spelled(define)


def custom_rule_transform(
    define: Callable[Concatenate[Function, Options], Function],
) -> CustomRuleTransform[Options]:
    """As `transform`, for what returns a `CustomVjp`."""
    return _spelled(define)


def grad_transform(define: Function) -> GradTransform:
    """As `transform`, for a function with the parameters of `grad`."""
    return _spelled(define)


def value_and_grad_transform(define: Function) -> ValueAndGradTransform:
    """As `transform`, for a function with the parameters of `value_and_grad`."""
    return _spelled(define)

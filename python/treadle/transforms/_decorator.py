"""How a transform is spelled: ``transform(f, ...)``, or ``transform(...)`` as a decorator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from treadle.transforms._arguments import Function

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class Transform(Protocol, Generic[P, R_co]):
    """A transform of functions: ``transform(f, ...)``, or ``transform(...)`` as a decorator."""

    @overload
    def __call__(self, f: Function, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Callable[[Function], R_co]: ...


def transform(define: Callable[Concatenate[Function, P], R_co]) -> Transform[P, R_co]:
    """Let `define`, whose first parameter is a function, be used without it as a decorator.

    The function can be passed by position or by the parameter's name.
    """
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
        return define(*args, **kwargs)

    return cast("Transform[P, R_co]", wrapper)

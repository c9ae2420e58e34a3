"""What `grad` and `value_and_grad` give, for type checkers, as far as overloads can say it.

The gradient of a node is a State, that of an array is an array, that of a plain tuple, list or dict of
arrays is another such. What is not said here (containers of nodes, other positions than the first two,
options that are known at run time only) is Any.

What is given is told apart when the result is called, not when the function is passed: there a lambda
would have to have one of these types.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    overload,
)

import jax

if TYPE_CHECKING:
    from typing import TypedDict, Unpack

    from treadle._core import ObjectNode
    from treadle._graph.filters import Filter
    from treadle._graph.state import State
    from treadle.transforms._axes import DiffState

    class _Options(TypedDict, total=False):
        holomorphic: bool
        allow_int: bool
        reduce_axes: Sequence[Hashable]
        wrt: Filter

    class _AuxOptions(_Options):
        has_aux: Literal[True]

    class _ValueOptions(_Options, total=False):
        has_aux: bool

    # No protocol of sequences or mappings: the containers that are nodes fit those too.
    _Arrays: TypeAlias = jax.Array | tuple[jax.Array, ...] | list[jax.Array] | dict[Any, jax.Array]
    _Which: TypeAlias = int | DiffState | Sequence[int | DiffState]
    _Both: TypeAlias = tuple[Literal[0], Literal[1]]

P = ParamSpec("P")
Rest = ParamSpec("Rest")
S = TypeVar("S")
T = TypeVar("T")
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)
Aux = TypeVar("Aux")
N = TypeVar("N", bound="ObjectNode")
M = TypeVar("M", bound="ObjectNode")
X = TypeVar("X", bound="_Arrays")
Y = TypeVar("Y", bound="_Arrays")


class _Gradient(Protocol[P]):
    @overload
    def __call__(
        self: _Gradient[Concatenate[X, Rest]], a: X, /, *args: Rest.args, **kwargs: Rest.kwargs
    ) -> X: ...
    @overload
    def __call__(
        self: _Gradient[Concatenate[N, Rest]], a: N, /, *args: Rest.args, **kwargs: Rest.kwargs
    ) -> State: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any: ...
    @overload
    def __get__(self, instance: None, owner: Any, /) -> _Gradient[P]: ...
    @overload
    def __get__(
        self: _Gradient[Concatenate[N, Rest]], instance: N, owner: Any, /
    ) -> Callable[Rest, State]: ...
    @overload
    def __get__(
        self: _Gradient[Concatenate[S, Rest]], instance: S, owner: Any, /
    ) -> Callable[Rest, Any]: ...


class _GradientSecond(Protocol[P]):
    @overload
    def __call__(
        self: _GradientSecond[Concatenate[T, X, Rest]],
        a: T,
        b: X,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> X: ...
    @overload
    def __call__(
        self: _GradientSecond[Concatenate[T, N, Rest]],
        a: T,
        b: N,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> State: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any: ...
    @overload
    def __get__(self, instance: None, owner: Any, /) -> _GradientSecond[P]: ...
    @overload
    def __get__(
        self: _GradientSecond[Concatenate[S, Rest]], instance: S, owner: Any, /
    ) -> Callable[Rest, Any]: ...


class _GradientBoth(Protocol[P]):
    @overload
    def __call__(
        self: _GradientBoth[Concatenate[X, Y, Rest]],
        a: X,
        b: Y,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[X, Y]: ...
    @overload
    def __call__(
        self: _GradientBoth[Concatenate[X, N, Rest]],
        a: X,
        b: N,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[X, State]: ...
    @overload
    def __call__(
        self: _GradientBoth[Concatenate[N, X, Rest]],
        a: N,
        b: X,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[State, X]: ...
    @overload
    def __call__(
        self: _GradientBoth[Concatenate[N, M, Rest]],
        a: N,
        b: M,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[State, State]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Any, Any]: ...
    @overload
    def __get__(self, instance: None, owner: Any, /) -> _GradientBoth[P]: ...
    @overload
    def __get__(
        self: _GradientBoth[Concatenate[S, Rest]], instance: S, owner: Any, /
    ) -> Callable[Rest, tuple[Any, Any]]: ...


class _GradientAux(Protocol[P, V_co]):
    @overload
    def __call__(
        self: _GradientAux[Concatenate[X, Rest], V],
        a: X,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[X, V]: ...
    @overload
    def __call__(
        self: _GradientAux[Concatenate[N, Rest], V],
        a: N,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[State, V]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Any, V_co]: ...
    @overload
    def __get__(self, instance: None, owner: Any, /) -> _GradientAux[P, V_co]: ...
    @overload
    def __get__(
        self: _GradientAux[Concatenate[N, Rest], V], instance: N, owner: Any, /
    ) -> Callable[Rest, tuple[State, V]]: ...
    @overload
    def __get__(
        self: _GradientAux[Concatenate[S, Rest], V], instance: S, owner: Any, /
    ) -> Callable[Rest, tuple[Any, V]]: ...


class _GradientAuxSecond(Protocol[P, V_co]):
    @overload
    def __call__(
        self: _GradientAuxSecond[Concatenate[T, X, Rest], V],
        a: T,
        b: X,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[X, V]: ...
    @overload
    def __call__(
        self: _GradientAuxSecond[Concatenate[T, N, Rest], V],
        a: T,
        b: N,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[State, V]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Any, V_co]: ...
    @overload
    def __get__(self, instance: None, owner: Any, /) -> _GradientAuxSecond[P, V_co]: ...
    @overload
    def __get__(
        self: _GradientAuxSecond[Concatenate[S, Rest], V], instance: S, owner: Any, /
    ) -> Callable[Rest, tuple[Any, V]]: ...


class _GradientAuxBoth(Protocol[P, V_co]):
    @overload
    def __call__(
        self: _GradientAuxBoth[Concatenate[X, Y, Rest], V],
        a: X,
        b: Y,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[tuple[X, Y], V]: ...
    @overload
    def __call__(
        self: _GradientAuxBoth[Concatenate[X, N, Rest], V],
        a: X,
        b: N,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[tuple[X, State], V]: ...
    @overload
    def __call__(
        self: _GradientAuxBoth[Concatenate[N, X, Rest], V],
        a: N,
        b: X,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[tuple[State, X], V]: ...
    @overload
    def __call__(
        self: _GradientAuxBoth[Concatenate[N, M, Rest], V],
        a: N,
        b: M,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[tuple[State, State], V]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> tuple[tuple[Any, Any], V_co]: ...
    @overload
    def __get__(self, instance: None, owner: Any, /) -> _GradientAuxBoth[P, V_co]: ...
    @overload
    def __get__(
        self: _GradientAuxBoth[Concatenate[S, Rest], V], instance: S, owner: Any, /
    ) -> Callable[Rest, tuple[tuple[Any, Any], V]]: ...


class _Value(Protocol[P, V_co]):
    @overload
    def __call__(
        self: _Value[Concatenate[X, Rest], V], a: X, /, *args: Rest.args, **kwargs: Rest.kwargs
    ) -> tuple[V, X]: ...
    @overload
    def __call__(
        self: _Value[Concatenate[N, Rest], V], a: N, /, *args: Rest.args, **kwargs: Rest.kwargs
    ) -> tuple[V, State]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> tuple[V_co, Any]: ...
    @overload
    def __get__(self, instance: None, owner: Any, /) -> _Value[P, V_co]: ...
    @overload
    def __get__(
        self: _Value[Concatenate[N, Rest], V], instance: N, owner: Any, /
    ) -> Callable[Rest, tuple[V, State]]: ...
    @overload
    def __get__(
        self: _Value[Concatenate[S, Rest], V], instance: S, owner: Any, /
    ) -> Callable[Rest, tuple[V, Any]]: ...


class _ValueSecond(Protocol[P, V_co]):
    @overload
    def __call__(
        self: _ValueSecond[Concatenate[T, X, Rest], V],
        a: T,
        b: X,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[V, X]: ...
    @overload
    def __call__(
        self: _ValueSecond[Concatenate[T, N, Rest], V],
        a: T,
        b: N,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[V, State]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> tuple[V_co, Any]: ...
    @overload
    def __get__(self, instance: None, owner: Any, /) -> _ValueSecond[P, V_co]: ...
    @overload
    def __get__(
        self: _ValueSecond[Concatenate[S, Rest], V], instance: S, owner: Any, /
    ) -> Callable[Rest, tuple[V, Any]]: ...


class _ValueBoth(Protocol[P, V_co]):
    @overload
    def __call__(
        self: _ValueBoth[Concatenate[X, Y, Rest], V],
        a: X,
        b: Y,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[V, tuple[X, Y]]: ...
    @overload
    def __call__(
        self: _ValueBoth[Concatenate[X, N, Rest], V],
        a: X,
        b: N,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[V, tuple[X, State]]: ...
    @overload
    def __call__(
        self: _ValueBoth[Concatenate[N, X, Rest], V],
        a: N,
        b: X,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[V, tuple[State, X]]: ...
    @overload
    def __call__(
        self: _ValueBoth[Concatenate[N, M, Rest], V],
        a: N,
        b: M,
        /,
        *args: Rest.args,
        **kwargs: Rest.kwargs,
    ) -> tuple[V, tuple[State, State]]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> tuple[V_co, tuple[Any, Any]]: ...
    @overload
    def __get__(self, instance: None, owner: Any, /) -> _ValueBoth[P, V_co]: ...
    @overload
    def __get__(
        self: _ValueBoth[Concatenate[S, Rest], V], instance: S, owner: Any, /
    ) -> Callable[Rest, tuple[V, tuple[Any, Any]]]: ...


class _AnyGradient(Protocol):
    def __call__(self, f: Callable[P, Any], /) -> Callable[P, Any]: ...


class _MakeGradient(Protocol):
    def __call__(self, f: Callable[P, Any], /) -> _Gradient[P]: ...


class _MakeGradientAux(Protocol):
    def __call__(self, f: Callable[P, tuple[Any, Aux]], /) -> _GradientAux[P, Aux]: ...


class _MakeValue(Protocol):
    def __call__(self, f: Callable[P, V], /) -> _Value[P, V]: ...


class GradTransform(Protocol):
    """`grad`: its result returns gradients, with `has_aux` a pair of them and the rest."""

    @overload
    def __call__(
        self, f: Callable[P, Any], /, argnums: Literal[0] = 0, **options: Unpack[_Options]
    ) -> _Gradient[P]: ...
    @overload
    def __call__(
        self,
        f: Callable[P, tuple[Any, Aux]],
        /,
        argnums: Literal[0] = 0,
        **options: Unpack[_AuxOptions],
    ) -> _GradientAux[P, Aux]: ...
    @overload
    def __call__(
        self, f: Callable[P, Any], /, argnums: Literal[1], **options: Unpack[_Options]
    ) -> _GradientSecond[P]: ...
    @overload
    def __call__(
        self,
        f: Callable[P, tuple[Any, Aux]],
        /,
        argnums: Literal[1],
        **options: Unpack[_AuxOptions],
    ) -> _GradientAuxSecond[P, Aux]: ...
    @overload
    def __call__(
        self, f: Callable[P, Any], /, argnums: _Both, **options: Unpack[_Options]
    ) -> _GradientBoth[P]: ...
    @overload
    def __call__(
        self, f: Callable[P, tuple[Any, Aux]], /, argnums: _Both, **options: Unpack[_AuxOptions]
    ) -> _GradientAuxBoth[P, Aux]: ...
    @overload
    def __call__(self, **options: Unpack[_Options]) -> _MakeGradient: ...
    @overload
    def __call__(self, **options: Unpack[_AuxOptions]) -> _MakeGradientAux: ...
    @overload
    def __call__(
        self,
        f: Callable[P, Any],
        /,
        argnums: _Which = 0,
        has_aux: bool = False,
        holomorphic: bool = False,
        allow_int: bool = False,
        reduce_axes: Sequence[Hashable] = (),
        *,
        wrt: Filter = ...,
    ) -> Callable[P, Any]: ...
    @overload
    def __call__(
        self, *, argnums: _Which = 0, **options: Unpack[_ValueOptions]
    ) -> _AnyGradient: ...


class ValueAndGradTransform(Protocol):
    """`value_and_grad`: its result returns what the function returns, and gradients."""

    @overload
    def __call__(
        self, f: Callable[P, V], /, argnums: Literal[0] = 0, **options: Unpack[_ValueOptions]
    ) -> _Value[P, V]: ...
    @overload
    def __call__(
        self, f: Callable[P, V], /, argnums: Literal[1], **options: Unpack[_ValueOptions]
    ) -> _ValueSecond[P, V]: ...
    @overload
    def __call__(
        self, f: Callable[P, V], /, argnums: _Both, **options: Unpack[_ValueOptions]
    ) -> _ValueBoth[P, V]: ...
    @overload
    def __call__(self, **options: Unpack[_ValueOptions]) -> _MakeValue: ...
    @overload
    def __call__(
        self,
        f: Callable[P, Any],
        /,
        argnums: _Which = 0,
        has_aux: bool = False,
        holomorphic: bool = False,
        allow_int: bool = False,
        reduce_axes: Sequence[Hashable] = (),
        *,
        wrt: Filter = ...,
    ) -> Callable[P, tuple[Any, Any]]: ...
    @overload
    def __call__(
        self, *, argnums: _Which = 0, **options: Unpack[_ValueOptions]
    ) -> _AnyGradient: ...

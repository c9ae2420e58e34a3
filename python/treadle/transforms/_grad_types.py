"""What `grad` and `value_and_grad` give, for type checkers, as far as overloads can say it.

The gradient of a node is a State, that of an array is an array, that of a plain tuple, list or dict of
arrays is another such. What an overload here does not know (containers of nodes, more than two
arguments at once, options that are known at run time only) is Any.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    cast,
    overload,
)

import jax

from treadle.transforms._decorator import transform

if TYPE_CHECKING:
    from typing import Unpack

    from treadle._core import ObjectNode
    from treadle._graph.filters import Filter
    from treadle._graph.state import State
    from treadle.transforms.axes import DiffState

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
U = TypeVar("U")
Aux = TypeVar("Aux")
N = TypeVar("N", bound="ObjectNode")
M = TypeVar("M", bound="ObjectNode")
X = TypeVar("X", bound="jax.Array | Sequence[jax.Array] | Mapping[Any, jax.Array]")
Y = TypeVar("Y", bound="jax.Array | Sequence[jax.Array] | Mapping[Any, jax.Array]")

Function = Callable[..., Any]


if TYPE_CHECKING:
    # Functions by what the first arguments are.
    _Of1 = Callable[Concatenate[T, P], R]
    _Of2 = Callable[Concatenate[T, U, P], R]
    # Options by their value.
    _0 = Literal[0]
    _1 = Literal[1]
    _01 = tuple[Literal[0], Literal[1]]


class _Options(TypedDict, total=False):
    holomorphic: bool
    allow_int: bool
    reduce_axes: Sequence[Hashable]
    wrt: Filter


class _AuxOptions(_Options):
    has_aux: Literal[True]


class _Unknown(Protocol):
    def __call__(self, f: Callable[P, Any], /) -> Callable[P, Any]: ...


class _GradientAlone(Protocol):
    @overload
    def __call__(self, f: _Of1[N, P, R], /) -> _Of1[N, P, State]: ...
    @overload
    def __call__(self, f: _Of1[X, P, R], /) -> _Of1[X, P, X]: ...
    @overload
    def __call__(self, f: Callable[P, Any], /) -> Callable[P, Any]: ...


class _GradientWithAux(Protocol):
    @overload
    def __call__(self, f: _Of1[N, P, tuple[R, Aux]], /) -> _Of1[N, P, tuple[State, Aux]]: ...
    @overload
    def __call__(self, f: _Of1[X, P, tuple[R, Aux]], /) -> _Of1[X, P, tuple[X, Aux]]: ...
    @overload
    def __call__(self, f: Callable[P, Any], /) -> Callable[P, Any]: ...


class GradTransform(Protocol):
    """`grad`, whose result returns gradients, with `has_aux` a pair of them and the rest."""

    @overload
    def __call__(
        self, f: _Of1[N, P, R], /, argnums: _0 = 0, **options: Unpack[_Options]
    ) -> _Of1[N, P, State]: ...
    @overload
    def __call__(
        self, f: _Of1[X, P, R], /, argnums: _0 = 0, **options: Unpack[_Options]
    ) -> _Of1[X, P, X]: ...
    @overload
    def __call__(
        self, f: _Of1[N, P, tuple[R, Aux]], /, argnums: _0 = 0, **options: Unpack[_AuxOptions]
    ) -> _Of1[N, P, tuple[State, Aux]]: ...
    @overload
    def __call__(
        self, f: _Of1[X, P, tuple[R, Aux]], /, argnums: _0 = 0, **options: Unpack[_AuxOptions]
    ) -> _Of1[X, P, tuple[X, Aux]]: ...
    @overload
    def __call__(
        self, f: _Of2[T, N, P, R], /, argnums: _1, **options: Unpack[_Options]
    ) -> _Of2[T, N, P, State]: ...
    @overload
    def __call__(
        self, f: _Of2[T, X, P, R], /, argnums: _1, **options: Unpack[_Options]
    ) -> _Of2[T, X, P, X]: ...
    @overload
    def __call__(
        self, f: _Of2[T, N, P, tuple[R, Aux]], /, argnums: _1, **options: Unpack[_AuxOptions]
    ) -> _Of2[T, N, P, tuple[State, Aux]]: ...
    @overload
    def __call__(
        self, f: _Of2[T, X, P, tuple[R, Aux]], /, argnums: _1, **options: Unpack[_AuxOptions]
    ) -> _Of2[T, X, P, tuple[X, Aux]]: ...
    @overload
    def __call__(
        self, f: _Of2[N, M, P, R], /, argnums: _01, **options: Unpack[_Options]
    ) -> _Of2[N, M, P, tuple[State, State]]: ...
    @overload
    def __call__(
        self, f: _Of2[N, X, P, R], /, argnums: _01, **options: Unpack[_Options]
    ) -> _Of2[N, X, P, tuple[State, X]]: ...
    @overload
    def __call__(
        self, f: _Of2[X, N, P, R], /, argnums: _01, **options: Unpack[_Options]
    ) -> _Of2[X, N, P, tuple[X, State]]: ...
    @overload
    def __call__(
        self, f: _Of2[X, Y, P, R], /, argnums: _01, **options: Unpack[_Options]
    ) -> _Of2[X, Y, P, tuple[X, Y]]: ...
    @overload
    def __call__(
        self, f: _Of2[N, M, P, tuple[R, Aux]], /, argnums: _01, **options: Unpack[_AuxOptions]
    ) -> _Of2[N, M, P, tuple[tuple[State, State], Aux]]: ...
    @overload
    def __call__(
        self, f: _Of2[N, X, P, tuple[R, Aux]], /, argnums: _01, **options: Unpack[_AuxOptions]
    ) -> _Of2[N, X, P, tuple[tuple[State, X], Aux]]: ...
    @overload
    def __call__(
        self, f: _Of2[X, N, P, tuple[R, Aux]], /, argnums: _01, **options: Unpack[_AuxOptions]
    ) -> _Of2[X, N, P, tuple[tuple[X, State], Aux]]: ...
    @overload
    def __call__(
        self, f: _Of2[X, Y, P, tuple[R, Aux]], /, argnums: _01, **options: Unpack[_AuxOptions]
    ) -> _Of2[X, Y, P, tuple[tuple[X, Y], Aux]]: ...
    @overload
    def __call__(self, **options: Unpack[_Options]) -> _GradientAlone: ...
    @overload
    def __call__(self, **options: Unpack[_AuxOptions]) -> _GradientWithAux: ...
    # Anything else.
    @overload
    def __call__(
        self,
        f: Callable[P, Any],
        /,
        argnums: int | DiffState | Sequence[int | DiffState] = 0,
        has_aux: bool = False,
        holomorphic: bool = False,
        allow_int: bool = False,
        reduce_axes: Sequence[Hashable] = (),
        *,
        wrt: Filter = ...,
    ) -> Callable[P, Any]: ...
    @overload
    def __call__(
        self,
        *,
        argnums: int | DiffState | Sequence[int | DiffState] = 0,
        has_aux: bool = False,
        **options: Unpack[_Options],
    ) -> _Unknown: ...


class _ValueAlone(Protocol):
    @overload
    def __call__(self, f: _Of1[N, P, R], /) -> _Of1[N, P, tuple[R, State]]: ...
    @overload
    def __call__(self, f: _Of1[X, P, R], /) -> _Of1[X, P, tuple[R, X]]: ...
    @overload
    def __call__(self, f: Callable[P, Any], /) -> Callable[P, Any]: ...


class _ValueWithAux(Protocol):
    @overload
    def __call__(
        self, f: _Of1[N, P, tuple[R, Aux]], /
    ) -> _Of1[N, P, tuple[tuple[R, Aux], State]]: ...
    @overload
    def __call__(self, f: _Of1[X, P, tuple[R, Aux]], /) -> _Of1[X, P, tuple[tuple[R, Aux], X]]: ...
    @overload
    def __call__(self, f: Callable[P, Any], /) -> Callable[P, Any]: ...


class ValueAndGradTransform(Protocol):
    """`value_and_grad`, whose result returns a pair of the value and the gradients."""

    @overload
    def __call__(
        self, f: _Of1[N, P, R], /, argnums: _0 = 0, **options: Unpack[_Options]
    ) -> _Of1[N, P, tuple[R, State]]: ...
    @overload
    def __call__(
        self, f: _Of1[X, P, R], /, argnums: _0 = 0, **options: Unpack[_Options]
    ) -> _Of1[X, P, tuple[R, X]]: ...
    @overload
    def __call__(
        self, f: _Of1[N, P, tuple[R, Aux]], /, argnums: _0 = 0, **options: Unpack[_AuxOptions]
    ) -> _Of1[N, P, tuple[tuple[R, Aux], State]]: ...
    @overload
    def __call__(
        self, f: _Of1[X, P, tuple[R, Aux]], /, argnums: _0 = 0, **options: Unpack[_AuxOptions]
    ) -> _Of1[X, P, tuple[tuple[R, Aux], X]]: ...
    @overload
    def __call__(
        self, f: _Of2[T, N, P, R], /, argnums: _1, **options: Unpack[_Options]
    ) -> _Of2[T, N, P, tuple[R, State]]: ...
    @overload
    def __call__(
        self, f: _Of2[T, X, P, R], /, argnums: _1, **options: Unpack[_Options]
    ) -> _Of2[T, X, P, tuple[R, X]]: ...
    @overload
    def __call__(
        self, f: _Of2[T, N, P, tuple[R, Aux]], /, argnums: _1, **options: Unpack[_AuxOptions]
    ) -> _Of2[T, N, P, tuple[tuple[R, Aux], State]]: ...
    @overload
    def __call__(
        self, f: _Of2[T, X, P, tuple[R, Aux]], /, argnums: _1, **options: Unpack[_AuxOptions]
    ) -> _Of2[T, X, P, tuple[tuple[R, Aux], X]]: ...
    @overload
    def __call__(
        self, f: _Of2[N, M, P, R], /, argnums: _01, **options: Unpack[_Options]
    ) -> _Of2[N, M, P, tuple[R, tuple[State, State]]]: ...
    @overload
    def __call__(
        self, f: _Of2[N, X, P, R], /, argnums: _01, **options: Unpack[_Options]
    ) -> _Of2[N, X, P, tuple[R, tuple[State, X]]]: ...
    @overload
    def __call__(
        self, f: _Of2[X, N, P, R], /, argnums: _01, **options: Unpack[_Options]
    ) -> _Of2[X, N, P, tuple[R, tuple[X, State]]]: ...
    @overload
    def __call__(
        self, f: _Of2[X, Y, P, R], /, argnums: _01, **options: Unpack[_Options]
    ) -> _Of2[X, Y, P, tuple[R, tuple[X, Y]]]: ...
    @overload
    def __call__(
        self, f: _Of2[N, M, P, tuple[R, Aux]], /, argnums: _01, **options: Unpack[_AuxOptions]
    ) -> _Of2[N, M, P, tuple[tuple[R, Aux], tuple[State, State]]]: ...
    @overload
    def __call__(
        self, f: _Of2[N, X, P, tuple[R, Aux]], /, argnums: _01, **options: Unpack[_AuxOptions]
    ) -> _Of2[N, X, P, tuple[tuple[R, Aux], tuple[State, X]]]: ...
    @overload
    def __call__(
        self, f: _Of2[X, N, P, tuple[R, Aux]], /, argnums: _01, **options: Unpack[_AuxOptions]
    ) -> _Of2[X, N, P, tuple[tuple[R, Aux], tuple[X, State]]]: ...
    @overload
    def __call__(
        self, f: _Of2[X, Y, P, tuple[R, Aux]], /, argnums: _01, **options: Unpack[_AuxOptions]
    ) -> _Of2[X, Y, P, tuple[tuple[R, Aux], tuple[X, Y]]]: ...
    @overload
    def __call__(self, **options: Unpack[_Options]) -> _ValueAlone: ...
    @overload
    def __call__(self, **options: Unpack[_AuxOptions]) -> _ValueWithAux: ...
    # Anything else.
    @overload
    def __call__(
        self,
        f: Callable[P, Any],
        /,
        argnums: int | DiffState | Sequence[int | DiffState] = 0,
        has_aux: bool = False,
        holomorphic: bool = False,
        allow_int: bool = False,
        reduce_axes: Sequence[Hashable] = (),
        *,
        wrt: Filter = ...,
    ) -> Callable[P, Any]: ...
    @overload
    def __call__(
        self,
        *,
        argnums: int | DiffState | Sequence[int | DiffState] = 0,
        has_aux: bool = False,
        **options: Unpack[_Options],
    ) -> _Unknown: ...


def grad_transform(define: Function) -> GradTransform:
    """As `transform`, for a function with the parameters of `grad`."""
    return cast("GradTransform", transform(define))


def value_and_grad_transform(define: Function) -> ValueAndGradTransform:
    """As `transform`, for a function with the parameters of `value_and_grad`."""
    return cast("ValueAndGradTransform", transform(define))

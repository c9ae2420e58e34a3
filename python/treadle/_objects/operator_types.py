"""What the operators of a Variable give, for type checkers; nothing here is imported at run time.

An operator of a ``Variable[jax.Array]`` gives an array. For a Variable of any other value the result
is Any, since it depends on the operand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

import jax

if TYPE_CHECKING:
    from treadle._objects.variables import Variable

A = TypeVar("A")


class _Unary(Generic[A]):
    @overload
    def __call__(self: _Unary[jax.Array]) -> jax.Array: ...
    @overload
    def __call__(self) -> Any: ...
    def __call__(self) -> Any: ...


class _Binary(Generic[A]):
    @overload
    def __call__(self: _Binary[jax.Array], other: Any, /) -> jax.Array: ...
    @overload
    def __call__(self, other: Any, /) -> Any: ...
    def __call__(self, other: Any, /) -> Any: ...


class UnaryOperator(Protocol):
    """An operator of the value alone, as it stands in the class `Variable`."""

    def __get__(self, variable: Variable[A], owner: Any = ..., /) -> _Unary[A]: ...


class BinaryOperator(Protocol):
    """An operator of the value and an operand, as it stands in the class `Variable`."""

    def __get__(self, variable: Variable[A], owner: Any = ..., /) -> _Binary[A]: ...

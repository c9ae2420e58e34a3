"""Carrying values that are no arrays out of functions that JAX traces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax


class _Indistinct:
    """Holds a value of which JAX need not know whether it is equal to another."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Indistinct)

    def __hash__(self) -> int:
        return hash(_Indistinct)


@jax.tree_util.register_pytree_node_class
class Aside:
    """A leafless pytree that carries a value out of a traced function.

    JAX keeps it with the traced program, so when the program is reused the value comes along.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def tree_flatten(self) -> tuple[tuple[()], Any]:
        """No leaves; the value is structure."""
        return (), _Indistinct(self.value)

    @classmethod
    def tree_unflatten(cls, held: Any, leaves: Iterable[Any]) -> Aside:
        """Rebuild from the structure."""
        return cls(held.value)

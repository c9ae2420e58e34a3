"""What the rules of all differentiating transforms share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from treadle import _core
from treadle._graph.filters import Filter
from treadle.transforms._call import Call
from treadle.transforms._driver import Body, Rule
from treadle.transforms._inside import Inside
from treadle.transforms._messages import returned, type_of
from treadle.transforms._selection import Argnums, Selection, checked_argnums, wanted
from treadle.transforms._trees import tree_leaves

Split = Callable[[str, bool, Any], tuple[Any, Any]]


class Differentiated(Rule):
    """Differentiates the leaves of nodes that a filter selects, and arrays outside nodes.

    Args:
        name: the transform.
        wrt: the filter.
        argnums: positions of the differentiated arguments; None: all of them.
        has_aux: whether the function returns a pair.
        holomorphic, allow_int: as in `grad`.
    """

    remedy: ClassVar[str] = (
        "leave others out of what is differentiated, or bind them beforehand, for example with "
        "functools.partial"
    )

    def __init__(
        self,
        name: str,
        wrt: Filter,
        argnums: Argnums | None = None,
        *,
        has_aux: bool = False,
        holomorphic: bool = False,
        allow_int: bool = False,
    ) -> None:
        self.name = name
        self.wrt = wrt
        self.argnums = None if argnums is None else checked_argnums(name, argnums)
        self.has_aux = has_aux
        self.options: dict[str, Any] = {"holomorphic": holomorphic, "allow_int": allow_int}

    def inputs(self, call: Call) -> Selection:
        """The differentiated leaves."""
        argnums = range(len(call.args)) if self.argnums is None else self.argnums
        chosen = wanted(call, argnums, self.wrt)
        selection = Selection(call, chosen)
        selection.check_not_empty(wrt for _, wrt in chosen)
        return selection

    def seen(self, call: Call, inputs: Selection | None) -> Iterable[int]:
        """JAX is given the differentiated leaves; the others are as they are."""
        return () if inputs is None else inputs.leaves

    def body(self, call: Call, inputs: Selection) -> Any:
        """The function of the differentiated leaves."""
        inputs.check_dtypes(**self.options)
        return DifferentiatedBody(inputs, self.split, self.has_aux)

    @staticmethod
    def split(where: str, has_aux: bool, result: Any) -> tuple[Any, Any]:
        """What is differentiated, and the rest, of what the function returned.

        Raises:
            TypeError: the result holds nodes, or is no pair.
        """
        out, aux = pair(where, has_aux, result, "(out, aux)")
        for leaf in tree_leaves(out):
            if _core.is_node(leaf):
                raise TypeError(
                    f"{where}: the differentiated result holds a {type(leaf).__name__}. Return its "
                    "arrays (or nnx.state of it), or return it as aux with has_aux=True."
                )
        return out, aux

    def gathered(self, selection: Selection, values: Sequence[Any]) -> Any:
        """Values of the differentiated leaves as the user sees them: a State for a node."""
        trees = selection.gather(values)
        several = self.argnums is None or isinstance(self.argnums, Sequence)
        return tuple(trees) if several else trees[0]


class DifferentiatedBody(Body[None]):
    """The user's function over the differentiated leaves; its head is what is differentiated."""

    def __init__(self, selection: Selection, split: Split, has_aux: bool) -> None:
        super().__init__(selection.call)
        self.selection = selection
        self._split, self._has_aux = split, has_aux

    def __call__(self, values: Sequence[Any]) -> Any:
        """Run the function over the values of the differentiated leaves."""
        return super().__call__(self.selection.substitute(values))

    def split(self, inside: Inside, result: Any) -> tuple[Any, Any]:
        """What is differentiated, and the rest."""
        return self._split(self.outline.where, self._has_aux, result)


def pair(where: str, has_aux: bool, result: Any, names: str) -> tuple[Any, Any]:
    """The two parts of a result that has an aux; None for it otherwise."""
    if not has_aux:
        return result, None
    if not (isinstance(result, (tuple, list)) and len(result) == 2):
        raise TypeError(
            f"{where} with has_aux=True: the function must return a pair {names}, "
            f"got {returned(result)}."
        )
    out, aux = result
    return out, aux


def split_loss(where: str, has_aux: bool, result: Any) -> tuple[Any, Any]:
    """A scalar loss, and the rest, of what the function returned.

    Raises:
        TypeError: the loss is no scalar, or the result is no pair.
    """
    loss, aux = pair(where, has_aux, result, "(loss, aux)")
    try:
        shape = np.shape(loss)
        is_number = hasattr(loss, "dtype") or isinstance(loss, (int, float, complex))
    except Exception:
        shape, is_number = (), False
    if not is_number:
        hint = " Pass has_aux=True to return more than the loss." if not has_aux else ""
        raise TypeError(
            f"{where}: the function must return a scalar loss, got {returned(loss)}.{hint}"
        )
    if shape != ():
        raise TypeError(
            f"{where}: the function must return a scalar loss, got {type_of(loss)}. "
            "Reduce it, for example with jnp.mean or jnp.sum."
        )
    return loss, aux


def refuse_init(name: str, function: Any) -> None:
    """Raise a TypeError for a constructor, which returns nothing that could be differentiated."""
    if getattr(function, "__name__", None) == "__init__":
        raise TypeError(
            f"{name} of {getattr(function, '__qualname__', '__init__')}: an __init__ returns no "
            f"value to differentiate. Use {name} on a function that makes the object and "
            "computes with it."
        )


def check_reduce_axes(name: str, reduce_axes: Sequence[Hashable] | None) -> None:
    """Raise a ValueError for what JAX no longer does."""
    if reduce_axes is not None and tuple(reduce_axes):
        raise ValueError(
            f"{name}: reduce_axes={tuple(reduce_axes)!r} asks JAX to sum gradients over axes, "
            "which it no longer does. Leave reduce_axes empty and sum the result instead: "
            "jax.lax.psum(grads, axis_name)."
        )

"""Checks on what loops carry from iteration to iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from weft import _core
from weft.transforms._lift import (
    Call,
    Function,
    argument_label,
    part_label,
    plain_path,
    structure_text,
    tree_flatten,
    type_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Carried:
    """One argument that a loop carries, as structure only.

    Args:
        where: transform and function, for messages.
        call: the walked call.
        position: of the carried argument.
    """

    def __init__(self, where: str, call: Call, position: int) -> None:
        self.where = where
        self.function = call.function
        self.position = position
        self.ref_paths = call.graphdef.ref_paths()
        self.items = dict(call.argument_items())[position]
        found, self.structure = jax.tree_util.tree_flatten_with_path(
            call.args[position], is_leaf=_core.is_node
        )
        self.labels = [
            argument_label(call.function, (position, *plain_path(path))) for path, _ in found
        ]

    def continued(self, refs: Sequence[Any], leaves: Sequence[Any], returned: Any) -> list[int]:
        """Leaf ids that the arrays of the returned carry continue, in its pytree order.

        Raises:
            TypeError: the returned carry is not like the one that came in.
        """
        after, structure = tree_flatten(returned)
        if structure != self.structure:
            raise TypeError(
                f"{self.where}: the carry {argument_label(self.function, (self.position,))} must "
                f"come back with the structure it came in, {self.structure}, but the function "
                f"returned {structure}."
            )
        continued = []
        for (is_object, number), label, now in zip(self.items, self.labels, after, strict=True):
            if not is_object and not _core.is_node(now):
                check_type(self.where, label, leaves[number], now)
                continued.append(number)
            elif not is_object or now is not refs[number]:
                was = type(refs[number]).__name__ if is_object else type_of(leaves[number])
                raise TypeError(
                    f"{self.where}: the carry {label} is {was}; the function must return "
                    f"{'that same object' if is_object else 'an array'}, but it returned "
                    f"{self._other(now, refs)}. Update the object it was given, for example with "
                    "nnx.update, and return that."
                )
        return continued

    def _other(self, now: Any, refs: Sequence[Any]) -> str:
        for ref, known in enumerate(refs):
            if known is now:
                return argument_label(self.function, self.ref_paths[ref])
        return f"another {type(now).__name__}" if _core.is_node(now) else type_of(now)


def structure_of(refs: Sequence[Any], numbers: Iterable[int]) -> Any:
    """Structure of some of the rebuilt objects, to compare later."""
    return _core.flatten([refs[number] for number in numbers]).graphdef


def check_structure(
    where: str,
    function: Function,
    graphdef: _core.GraphDef,
    numbers: Sequence[int],
    before: _core.GraphDef,
    refs: Sequence[Any],
) -> None:
    """Raise a TypeError if objects that a loop carries changed their structure."""
    difference = before.difference(structure_of(refs, numbers))
    if difference is None:
        return
    path, was, now = difference
    which = cast("int", path[0])
    label = argument_label(function, (*graphdef.ref_paths()[numbers[which]], *path[1:]))
    raise TypeError(
        f"{where}: {label} is carried from iteration to iteration, so its structure must stay the "
        f"same, but it changes from {was!r} to {now!r}. Make the change before the loop, or keep "
        "what changes in a Variable."
    )


def check_type(where: str, label: str, was: Any, now: Any) -> None:
    """Raise a TypeError if a carried leaf changed its shape or dtype.

    The value of a Variable may be a pytree; then its structure must stay the same, too.
    """
    if was is None and now is None:
        return
    if was is None or now is None:
        raise TypeError(
            f"{where}: {label} is carried from iteration to iteration, but it changes from "
            f"{type_of(was)} to {type_of(now)}. Give it its first value before the loop."
        )
    before, structure = jax.tree_util.tree_flatten(was)
    after, structure_now = jax.tree_util.tree_flatten(now)
    if structure != structure_now:
        raise TypeError(
            f"{where}: {label} is carried from iteration to iteration, so its structure must stay "
            f"the same, but it changes from {structure_text(was)} to {structure_text(now)}. Give "
            "it its whole structure before the loop."
        )
    for number, (part, part_now) in enumerate(zip(before, after, strict=True)):
        name = label if part is was else part_label(label, was, number)
        _check_array(where, name, part, part_now)


def _check_array(where: str, label: str, was: Any, now: Any) -> None:
    try:
        now_dtype = jnp.result_type(now)
    except TypeError:
        raise TypeError(
            f"{where}: {label} is carried, but comes back as a {type(now).__name__}, which is not "
            "an array."
        ) from None
    # JAX itself widens a carry that started as a Python number.
    same_dtype = jnp.result_type(was) == now_dtype or getattr(was, "weak_type", False)
    if np.shape(was) != np.shape(now) or not same_dtype:
        raise TypeError(
            f"{where}: {label} is carried from iteration to iteration, so its shape and dtype must "
            f"stay the same, but it changes from {type_of(was)} to {type_of(now)}. Convert what "
            "the function returns, or what it is given at first."
        )

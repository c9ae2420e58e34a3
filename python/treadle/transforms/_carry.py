"""Checks on what loops carry from iteration to iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from treadle import _core
from treadle._bootstrap import is_array
from treadle._objects.node_types import holds_graph, iter_children, static_part
from treadle.transforms._arguments import Function, Path, argument_label
from treadle.transforms._call import Call
from treadle.transforms._inside import Inside
from treadle.transforms._messages import part_label, structure_text, type_of
from treadle.transforms._trees import flatten_with_paths, tree_flatten

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence


class Carried:
    """One argument that a loop carries, as structure only.

    Args:
        call: the walked call.
        position: of the carried argument.
    """

    def __init__(self, call: Call, position: int) -> None:
        self.where = call.where
        self.function = call.function
        self.position = position
        self.graphdef = call.graphdef
        _, argument, self.items = call.argument_items()[position]
        _, self.structure = tree_flatten(argument)
        self.labels = [
            argument_label(call.function, (position, *path))
            for path, _ in flatten_with_paths(argument)
        ]

    def continued(self, inside: Inside, returned: Any) -> list[int]:
        """Leaf ids that the arrays of the returned carry continue, in its pytree order.

        Raises:
            TypeError: the returned carry is not like the one that came in.
        """
        refs, leaves = inside.refs, inside.leaves
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
        return _object_label(self.function, self.graphdef, refs, now) or type_of(now)


def _object_label(
    function: Function, graphdef: _core.GraphDef, refs: Sequence[Any], found: Any
) -> str | None:
    """What a message calls an object found where another belongs; None for what is no object."""
    for ref, known in enumerate(refs):
        if known is found:
            return argument_label(function, graphdef.ref_path(ref))
    return f"another {type(found).__name__}" if _core.is_node(found) else None


class CarriedObjects:
    """The objects among a call's arguments that a loop carries from iteration to iteration.

    JAX carries leaves only. Each iteration is given the objects as they were at first, so what else
    the function does to them would be lost on the next one.

    Args:
        where: transform and function, for messages.
        function: the user's function.
        graphdef: structure of its call.
        whole: reference ids of the objects in the carry itself: nothing is added to them.
        partly: reference ids of other arguments that hold carried leaves: the rest may change.
        holding: of the objects below these, the ids of those that have to do with what is carried.
    """

    def __init__(
        self,
        where: str,
        function: Function,
        graphdef: _core.GraphDef,
        whole: Sequence[int],
        partly: Sequence[int] = (),
        holding: Iterable[int] = (),
    ) -> None:
        self.where = where
        self.function = function
        self.graphdef = graphdef
        self.whole = tuple(whole)
        self.partly = tuple(partly)
        self.holding = tuple(holding)

    def enter(self, refs: Sequence[Any]) -> list[tuple[int, Any, _core.Flat]]:
        """What there is to compare with when the function has run on the rebuilt objects."""
        shown: dict[int, Any] = {}
        for number in self.holding:
            ref = refs[number]
            shown[id(ref)] = ref if _core.is_variable(ref) else _Part(ref, shown)
        roots = [(number, refs[number]) for number in self.whole]
        roots += [(number, shown[id(refs[number])]) for number in self.partly]
        return [(number, root, _core.flatten(root)) for number, root in roots]

    def check(self, entered: Sequence[tuple[int, Any, _core.Flat]], refs: Sequence[Any]) -> None:
        """Compare the objects with what `enter` gave.

        Raises:
            TypeError: their structure changed, or another object is in the place of one.
        """
        for number, root, before in entered:
            after = _core.flatten(root)
            difference = before.graphdef.difference(after.graphdef)
            if difference is not None:
                path, was, now = difference
                label = argument_label(self.function, (*self.graphdef.ref_path(number), *path))
                raise TypeError(
                    f"{self.where}: {label} is carried from iteration to iteration, so its "
                    f"structure must stay the same, but it changes from {_type_at(before, path, was)!r} "
                    f"to {_type_at(after, path, now)!r}. Make the change before the loop, or keep what "
                    "changes in a Variable."
                )
            # Objects of equal structures have equal numbers.
            for ref, (was, now) in enumerate(zip(before.refs, after.refs, strict=True)):
                if was is not now:
                    inner = before.graphdef.ref_path(ref)
                    label = argument_label(self.function, (*self.graphdef.ref_path(number), *inner))
                    there = _object_label(self.function, self.graphdef, refs, _whole(now))
                    raise TypeError(
                        f"{self.where}: {label} is carried from iteration to iteration, so it must "
                        f"stay the same object, but the function puts {there} in its place. Change "
                        "the values of Variables, for example with nnx.update, and leave the objects "
                        "where they are."
                    )


class _Part:
    """Stands for a node of which a loop carries a part, and is walked in its place.

    Its children are the statics that the node had when it was first walked and the objects that
    have to do with what is carried. All else may change in each iteration, as it is mapped or made
    anew. So are statics that the function adds: the same in every iteration.

    Args:
        node: the node.
        shown: what to show for objects below it, by their ids; objects not in it are left out.
    """

    __slots__ = ("node", "places", "shown", "statics")

    def __init__(self, node: Any, shown: dict[int, Any]) -> None:
        self.node = node
        self.shown = shown
        # Where such objects have stood: what is put there instead shows too.
        self.places: set[Path] = set()
        self.statics: set[Path] | None = None

    def flatten(self) -> tuple[list[tuple[Hashable, Any]], Hashable]:
        """Children and static part, as a registered node type gives them."""
        found: set[Path] = set()
        children = list(self._kept(self.node, (), found).items())
        if self.statics is None:
            self.statics = found
        return children, static_part(self.node)

    def _kept(self, holder: Any, at: Path, found: set[Path]) -> dict[Hashable, Any]:
        kept: dict[Hashable, Any] = {}
        for key, child in iter_children(holder):
            place = (*at, key)
            if _core.is_node(child):
                if id(child) in self.shown:
                    kept[key] = self.shown[id(child)]
                    self.places.add(place)
                elif place in self.places:
                    kept[key] = child if _core.is_variable(child) else _Part(child, self.shown)
            elif holds_graph(child):
                # A pytree, some entries of which may have to be left out.
                if inner := self._kept(child, place, found):
                    kept[key] = inner
            elif not is_array(child) and (
                self.statics is None or place in self.statics or place in self.places
            ):
                found.add(place)
                kept[key] = child
        return kept


def _never(*_: Any) -> Any:
    raise NotImplementedError("parts of nodes are only walked")


_core.register_node_type(_Part, _Part.flatten, _never, _never, _never)


def _whole(found: Any) -> Any:
    return found.node if isinstance(found, _Part) else found


def _type_at(flat: _core.Flat, path: Path, shown: Any) -> Any:
    """What a message shows for a structure's entry: for parts of nodes the type of the node."""
    if shown == f"shared {_Part.__name__}":
        return "shared node"
    if shown is not _Part:
        return shown
    return type(_whole(flat.refs[flat.graphdef.ref_paths().index(path)]))


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

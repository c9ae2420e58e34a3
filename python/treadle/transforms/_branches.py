"""cond and switch over graph nodes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

import jax
import numpy as np

from treadle import _core
from treadle._objects.node_types import iter_children
from treadle._public import publish
from treadle.transforms._arguments import (
    Function,
    Path,
    argument_label,
    function_name,
    output_label,
)
from treadle.transforms._call import Call
from treadle.transforms._companions import bring_together
from treadle.transforms._driver import Rule, apply
from treadle.transforms._eager import run_program
from treadle.transforms._inside import Inside
from treadle.transforms._jit.jit import jit
from treadle.transforms._messages import jax_type
from treadle.transforms._once import Program, program_of
from treadle.transforms._trees import walk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["cond", "switch"]

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class _Branches:
    """Branches over one set of operands, made to agree on what they change.

    JAX hands out what one of them returned only, so what they did is kept here, for one call.
    """

    def __init__(self, call: Call, functions: Sequence[Function]) -> None:
        self.outline = call.outline()
        self.functions = functions
        # What each branch traced so far left behind: structure, and outputs with their types.
        self.structures: dict[int, _core.GraphDef] = {}
        self.outputs: dict[int, list[tuple[str, int, Path, str]]] = {}
        self.changed: set[int] = set()
        self.effects: Any = None

    def run(self, index: int, leaves: tuple[Any, ...]) -> tuple[Any, ...]:
        """Branch number `index` over flat leaves: all leaves in, all leaves and results out."""
        inside = Inside(self.outline.of(self.functions[index]), leaves)
        result = inside.run()
        rows = inside.leave(result, keep=False)
        out = tuple(inside.values)
        self.outputs[index] = [(row.kind, row.leaf, row.path, jax_type(row.value)) for row in rows]
        self.changed.update(
            row.leaf for row in rows if row.kind == "leaf" and row.value is not leaves[row.leaf]
        )
        self.structures[index] = walk(inside.refs, result).graphdef
        self._compare(index)
        inside.leave(result, [leaf not in self.changed for leaf in range(len(leaves))])
        self.effects = inside.effects
        return out

    def _compare(self, index: int) -> None:
        for other, structure in self.structures.items():
            if other == index:
                continue
            names = f"{self._name(other)} and {self._name(index)}"
            difference = structure.difference(self.structures[index])
            if difference is not None:
                path, there, here = difference
                self._compare_objects(other, index, names, path)
                raise TypeError(
                    f"{self.outline.name}: the branches {names} leave {self._label(path)} with different "
                    f"structure: {there!r} and {here!r}. All branches must make the same changes "
                    "to structure and static attributes, and return results of one structure."
                )
            self._compare_types(other, index, names)

    def _compare_objects(self, other: int, index: int, names: str, path: Path) -> None:
        """Name the objects at `path`, if what differs is which of several is there."""
        there, here = (_place(self.structures[number], path) for number in (other, index))
        if there is None or here is None or there == here:
            return
        # All objects of the operands are walked by their former places first.
        moved = path[0] == 0 and len(path) == 2
        what = f"what was {self._label(path)} at" if moved else f"{self._label(path)} with"
        raise TypeError(
            f"{self.outline.name}: the branches {names} leave {what} different "
            f"{'places' if moved else 'objects'}: {self._label(there)} and {self._label(here)}. All "
            "branches must leave the same objects in the same places and return the same ones; "
            "let them choose between values instead."
        )

    def _compare_types(self, other: int, index: int, names: str) -> None:
        rows = zip(self.outputs[other], self.outputs[index], strict=True)
        for (kind, item, path, there), (_, _, _, here) in rows:
            if there == here:
                continue
            raise TypeError(
                f"{self.outline.name}: the branches {names} give "
                f"{output_label(self.outline.function, kind, item, path)} different types: {there} and "
                f"{here}. Convert one of them."
            )

    def _name(self, index: int) -> str:
        return f"{index} ({function_name(self.functions[index])})"

    def _label(self, path: Path) -> str:
        if path[:1] == (0,) and len(path) > 1:
            graphdef, which = self.outline.graphdef, path[1]
            assert isinstance(which, int)
            if which < graphdef.num_refs:
                at = graphdef.ref_path(which)
                return argument_label(self.outline.function, (*at, *path[2:]))
        return output_label(self.outline.function, "result", -1, path[1:])

    def finish(self, call: Call, out: Sequence[Any]) -> Any:
        """Carry the chosen branch's outputs over to the caller's objects."""
        rows = iter(zip(next(iter(self.outputs.values())), out, strict=True))
        chosen = []
        for kind, leaf, _ in self.effects.outputs():
            # Both list outputs in one order; here those that no branch changes are passed over.
            for (full_kind, full_leaf, *_), value in rows:
                if full_kind == kind and (kind != "leaf" or full_leaf == leaf):
                    chosen.append(value)
                    break
        return call.finish(self.effects, chosen)


def _place(structure: _core.GraphDef, path: Path) -> Path | None:
    """Where the walk first met the object that is at `path` of a structure; None if none is."""
    numbers = [np.asarray(leaf) for leaf in range(structure.num_leaves)]
    (value, _), refs = _core.unflatten(structure, numbers)
    for key in path:
        value = dict(iter_children(value)).get(key)
    return next(
        (met for ref, met in zip(refs, structure.ref_paths(), strict=True) if ref is value), None
    )


class _Choice(Rule):
    """One of several functions.

    Args:
        name: the transform.
        functions: the functions.
        choose: calls one of a list of functions of flat leaves.
    """

    def __init__(self, name: str, functions: Sequence[Function], choose: Function) -> None:
        self.name = name
        self.functions = functions
        self.choose = choose

    def body(self, call: Call, inputs: None) -> _Branches:
        return _Branches(call, self.functions)

    def run(self, call: Call, inputs: None, body: _Branches) -> Any:
        branches = [partial(body.run, index) for index in range(len(self.functions))]
        return None, self.choose(branches, tuple(call.leaves))

    def finish(self, call: Call, body: _Branches, tail: Any) -> Any:
        return body.finish(call, tail)


def cond(
    pred: Any, true_fun: Callable[[*Ts], R], false_fun: Callable[[*Ts], R], *operands: *Ts
) -> R:
    """Run one of two functions, chosen by a value that may be traced.

    Over `jax.lax.cond`. Both functions may change the nodes in `operands`; the changes of the one
    that runs reach the caller's objects. They may differ in which values they change, but must
    leave the same structure and return results of one structure.

    Args:
        pred: boolean scalar.
        true_fun: runs if `pred` is true.
        false_fun: runs otherwise.
        *operands: their arguments, which may be or contain graph nodes.

    Returns:
        What the function that ran returned.

    Raises:
        TypeError: the functions leave different structures, or values of different types.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> def grow(m):
    ...     m["w"].value = m["w"].value + 1
    >>> m = nnx.Dict(w=nnx.Param(jnp.array(1.0)))
    >>> nnx.cond(jnp.array(True), grow, lambda m: None, m)
    >>> float(m["w"].value)
    2.0
    """
    if program := program_of(true_fun, false_fun, operands=operands):
        run = partial(_compiled_cond, program, pred, *operands)
        return run_program(run, "cond", true_fun, operands)
    return _cond(true_fun, false_fun, pred, *operands)


def _cond(true_fun: Function, false_fun: Function, pred: Any, /, *operands: Any) -> Any:
    def choose(branches: Sequence[Function], leaves: tuple[Any, ...]) -> Any:
        return jax.lax.cond(pred, *branches, leaves)

    functions, companions = bring_together((true_fun, false_fun))
    return apply(_Choice("cond", functions, choose), functions[0], operands, companions)


@partial(jit, static_argnums=0)
def _compiled_cond(program: Program, pred: Any, /, *operands: Any) -> Any:
    true_fun, false_fun = program.functions
    return _cond(true_fun, false_fun, pred, *operands)


def switch(index: Any, branches: Sequence[Callable[[*Ts], R]], *operands: *Ts) -> R:
    """Run one of several functions, chosen by an index that may be traced.

    Over `jax.lax.switch`; otherwise as `cond`.

    Args:
        index: integer scalar, clamped to the number of branches.
        branches: the functions.
        *operands: their arguments, which may be or contain graph nodes.

    Returns:
        What the function that ran returned.

    Raises:
        ValueError: there are no branches.
        TypeError: the functions leave different structures, or values of different types.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> def scale(by):
    ...     def scaled(m):
    ...         m["w"].value = m["w"].value * by
    ...     return scaled
    >>> m = nnx.Dict(w=nnx.Param(jnp.array(1.0)))
    >>> nnx.switch(jnp.array(2), [scale(2.0), scale(3.0), scale(5.0)], m)
    >>> float(m["w"].value)
    5.0
    """
    if not branches:
        raise ValueError("switch needs at least one branch.")
    if program := program_of(*branches, operands=operands):
        run = partial(_compiled_switch, program, index, *operands)
        return run_program(run, "switch", branches[0], operands)
    return _switch(tuple(branches), index, *operands)


def _switch(branches: tuple[Function, ...], index: Any, /, *operands: Any) -> Any:
    def choose(branches: Sequence[Function], leaves: tuple[Any, ...]) -> Any:
        # JAX calls a single branch without tracing it; what it captures could not be told from what it makes.
        choices = branches if len(branches) > 1 else [jax.jit(branches[0])]
        return jax.lax.switch(index, choices, leaves)

    functions, companions = bring_together(branches)
    return apply(_Choice("switch", functions, choose), functions[0], operands, companions)


@partial(jit, static_argnums=0)
def _compiled_switch(program: Program, index: Any, /, *operands: Any) -> Any:
    return _switch(program.functions, index, *operands)


publish(__all__, globals())

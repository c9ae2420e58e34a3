"""cond, switch, while_loop and fori_loop over graph nodes.

Called outside of any transform, each runs through `jit`, with its functions as static arguments: they
compare by code and closure, so a loop of such calls compiles once.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

import jax
import jax.numpy as jnp
import numpy as np

from treadle import _core
from treadle._objects.node_types import iter_children
from treadle.errors import GraphError
from treadle.transforms._carry import Carried, CarriedObjects, check_type
from treadle.transforms._lift import (
    Call,
    Function,
    Path,
    argument_label,
    function_name,
    is_jax_value,
    trace,
    tree_leaves,
    type_of,
)
from treadle.transforms._mapping import output_label
from treadle.transforms._once import Program, program_of
from treadle.transforms.jit import jit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["cond", "fori_loop", "switch", "while_loop"]

R = TypeVar("R")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def _run_program(run: Function, name: str, function: Function, inputs: tuple[Any, ...]) -> Any:
    """Run a compiled program; what is wrong with `inputs` is said in the words of `function`.

    The program has parameters of its own, which the caller has not written.
    """
    try:
        return run()
    except (GraphError, TypeError) as error:
        better = Call.collect(name, function, inputs, {}).explained()
        if better is None:
            raise
        raise better from error.__cause__


def _jax_type(value: Any) -> str:
    """What JAX takes a leaf for: dtype and shape, also of a Python number."""
    return repr(jax.tree_util.tree_map(_Typed, value))


class _Typed:
    def __init__(self, value: Any) -> None:
        self.text = type_of(
            jax.api_util.shaped_abstractify(value) if is_jax_value(value) else value
        )

    def __repr__(self) -> str:
        return self.text


class _Branches:
    """Branches over one set of operands, made to agree on what they change."""

    def __init__(self, name: str, functions: Sequence[Function], operands: tuple[Any, ...]) -> None:
        self.name = name
        self.functions = functions
        self.call = Call.collect(name, functions[0], operands, {})
        # What each branch traced so far left behind: structure, and outputs with their types.
        self.structures: dict[int, _core.GraphDef] = {}
        self.outputs: dict[int, list[tuple[str, int, Path, str]]] = {}
        self.changed: set[int] = set()
        self.effects: Any = None

    def branch(self, index: int) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
        """Branch number `index` over flat leaves: all leaves in, all leaves and results out."""

        def run(leaves: tuple[Any, ...]) -> tuple[Any, ...]:
            left: Any = None

            def leave(refs: list[Any], arguments: Any, result: Any) -> Any:
                nonlocal left
                left = refs, result
                return result

            graphdef, function = self.call.graphdef, self.functions[index]
            effects, out = trace(function, graphdef, leaves, leave=leave, keep=False)
            refs, result = left
            rows = list(zip(effects.outputs(), out, strict=True))
            self.outputs[index] = [(*row, _jax_type(value)) for row, value in rows]
            self.changed.update(
                leaf
                for (kind, leaf, _), value in rows
                if kind == "leaf" and value is not leaves[leaf]
            )
            self.structures[index] = _core.flatten_call(
                (refs, result), {}, frozenset(), frozenset()
            ).graphdef
            self._compare(index)
            keep = [leaf not in self.changed for leaf in range(len(leaves))]
            self.effects, _ = _core.trace_effects(refs, graphdef, leaves, result, keep)
            return tuple(out)

        return run

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
                    f"{self.name}: the branches {names} leave {self._label(path)} with different "
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
            f"{self.name}: the branches {names} leave {what} different "
            f"{'places' if moved else 'objects'}: {self._label(there)} and {self._label(here)}. All "
            "branches must leave the same objects in the same places and return the same ones; "
            "let them choose between values instead."
        )

    def _compare_types(self, other: int, index: int, names: str) -> None:
        rows = zip(self.outputs[other], self.outputs[index], strict=True)
        for (kind, _, path, there), (_, _, _, here) in rows:
            if there == here:
                continue
            raise TypeError(
                f"{self.name}: the branches {names} give "
                f"{output_label(self.call.function, kind, path)} different types: {there} and "
                f"{here}. Convert one of them."
            )

    def _name(self, index: int) -> str:
        return f"{index} ({function_name(self.functions[index])})"

    def _label(self, path: Path) -> str:
        if path[:1] == (0,) and len(path) > 1:
            refs = self.call.graphdef.ref_paths()
            which = path[1]
            assert isinstance(which, int)
            if which < len(refs):
                return argument_label(self.call.function, (*refs[which], *path[2:]))
        return output_label(self.call.function, "result", path[1:])

    def finish(self, out: Sequence[Any]) -> Any:
        """Carry the chosen branch's outputs over to the caller's objects."""
        rows = iter(zip(next(iter(self.outputs.values())), out, strict=True))
        chosen = []
        for kind, leaf, _ in self.effects.outputs():
            # Both list outputs in one order; here those that no branch changes are passed over.
            for (full_kind, full_leaf, *_), value in rows:
                if full_kind == kind and (kind != "leaf" or full_leaf == leaf):
                    chosen.append(value)
                    break
        return self.call.finish(self.effects, chosen)


def _place(structure: _core.GraphDef, path: Path) -> Path | None:
    """Where the walk first met the object that is at `path` of a structure; None if none is."""
    numbers = [np.asarray(leaf) for leaf in range(structure.num_leaves)]
    (value, _), refs = _core.unflatten(structure, numbers)
    for key in path:
        value = dict(iter_children(value)).get(key)
    return next(
        (met for ref, met in zip(refs, structure.ref_paths(), strict=True) if ref is value), None
    )


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
    if program := program_of(true_fun, false_fun):
        run = partial(_compiled_cond, program, pred, *operands)
        return _run_program(run, "cond", true_fun, operands)
    return _cond(true_fun, false_fun, pred, *operands)


def _cond(true_fun: Function, false_fun: Function, pred: Any, /, *operands: Any) -> Any:
    branches = _Branches("cond", (true_fun, false_fun), operands)
    leaves = tuple(branches.call.leaves)
    out = branches.call.run(jax.lax.cond, pred, branches.branch(0), branches.branch(1), leaves)
    return branches.finish(out)


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
    if program := program_of(*branches):
        run = partial(_compiled_switch, program, index, *operands)
        return _run_program(run, "switch", branches[0], operands)
    return _switch(tuple(branches), index, *operands)


def _switch(branches: tuple[Function, ...], index: Any, /, *operands: Any) -> Any:
    lifted = _Branches("switch", branches, operands)
    leaves = tuple(lifted.call.leaves)
    functions = [lifted.branch(i) for i in range(len(branches))]
    out = lifted.call.run(jax.lax.switch, index, functions, leaves)
    return lifted.finish(out)


@partial(jit, static_argnums=0)
def _compiled_switch(program: Program, index: Any, /, *operands: Any) -> Any:
    return _switch(program.functions, index, *operands)


class _Loop:
    """The body of a loop over flat leaves, all of them carried.

    Args:
        name: the transform.
        function: the user's body.
        before: leading arguments that JAX gives to the body (a loop counter).
        init_val: what the loop starts with.
    """

    def __init__(self, name: str, function: Function, before: tuple[Any, ...], init: Any) -> None:
        self.call = Call.collect(name, function, (*before, init), {})
        self.where = f"{name} of {function_name(function)}"
        self.skipped = len(before)
        self.carried = Carried(self.where, self.call, len(before))
        numbers = sorted({ref for is_object, ref in self.carried.items if is_object})
        self.objects = CarriedObjects(self.where, function, self.call.graphdef, numbers)
        self.effects: Any = None
        self.sources: list[int] = []

    def start(self) -> tuple[Any, ...]:
        """The leaves that the loop starts with."""
        return tuple(self.call.leaves[self.skipped :])

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        *before, carry = args
        call, graphdef = self.call, self.call.graphdef
        leaves = [*before, *carry]
        entered: Any = None
        continued: list[int] = []

        def enter(refs: list[Any]) -> None:
            nonlocal entered
            entered = self.objects.enter(refs)

        def leave(refs: list[Any], arguments: Any, result: Any) -> Any:
            nonlocal continued
            self.objects.check(entered, refs)
            continued = self.carried.continued(refs, leaves, result)
            return result

        effects, out = trace(call.function, graphdef, leaves, enter=enter, leave=leave)
        results = iter(continued)
        following = list(leaves)
        self.sources = []
        for (kind, leaf, path), value in zip(effects.outputs(), out, strict=True):
            if kind == "result":
                leaf = next(results)
            else:
                label = argument_label(call.function, path)
                check_type(self.where, label, leaves[leaf], value)
            following[leaf] = value
            self.sources.append(leaf - self.skipped)
        self.effects = effects
        return tuple(following[self.skipped :])

    def finish(self, final: Sequence[Any]) -> Any:
        """Carry the loop's last leaves over to the caller's objects; return the last carry."""
        if self.effects is None:
            # JAX ran the loop itself, without tracing the body, and there was no iteration.
            return self.call.args[self.skipped]
        return self.call.finish(self.effects, [final[source] for source in self.sources])


def while_loop(cond_fun: Callable[[T], Any], body_fun: Callable[[T], T], init_val: T) -> T:
    """Run `body_fun` as long as `cond_fun` holds.

    Over `jax.lax.while_loop`. Nodes in `init_val` are changed in place and must come back as the
    same objects, with the same structure and the same objects inside.

    Args:
        cond_fun: takes the carry, returns a boolean scalar; must not change anything.
        body_fun: takes the carry, returns the next.
        init_val: first carry, which may be or contain graph nodes.

    Returns:
        The last carry; nodes in it are those of `init_val`.

    Raises:
        TypeError: the carry changes its structure, shape or dtype, `body_fun` swaps or replaces
            objects inside it, or `cond_fun` changes something or returns no boolean scalar.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> def double(m):
    ...     m["w"].value = m["w"].value * 2
    ...     return m
    >>> m = nnx.Dict(w=nnx.Param(jnp.array(1.0)))
    >>> nnx.while_loop(lambda m: m["w"].value < 100, double, m) is m
    True
    >>> float(m["w"].value)
    128.0
    """
    if program := program_of(cond_fun, body_fun):
        run = partial(_compiled_while, program, init_val)
        return _run_program(run, "while_loop", body_fun, (init_val,))
    return _while(cond_fun, body_fun, init_val)


def _while(cond_fun: Function, body_fun: Function, init_val: Any, /) -> Any:
    loop = _Loop("while_loop", body_fun, (), init_val)
    where = f"while_loop of {function_name(cond_fun)}"

    def test(leaves: tuple[Any, ...]) -> Any:
        def leave(refs: list[Any], arguments: Any, result: Any) -> Any:
            if any(map(_core.is_node, tree_leaves(result))):
                remedy = " Return its value." if _core.is_variable(result) else ""
                raise TypeError(
                    f"{where}: cond_fun must return a boolean scalar, it returned a "
                    f"{type(result).__name__}.{remedy}"
                )
            return result

        effects, out = trace(cond_fun, loop.call.graphdef, leaves, leave=leave)
        rows = effects.outputs()
        changed = [path for kind, _, path in rows if kind != "result"]
        if changed or effects.changes_structure:
            label = argument_label(cond_fun, changed[0]) if changed else "its argument's structure"
            raise TypeError(
                f"{where}: cond_fun changes {label}, but it may only look. Make the change in "
                "body_fun."
            )
        if len(out) != 1 or np.shape(out[0]) != () or jnp.result_type(out[0]) != np.dtype("bool"):
            shown = ", ".join(map(type_of, out)) or "nothing"
            raise TypeError(f"{where}: cond_fun must return a boolean scalar, it returned {shown}.")
        return out[0]

    return loop.finish(loop.call.run(jax.lax.while_loop, test, loop, loop.start()))


@partial(jit, static_argnums=0)
def _compiled_while(program: Program, init_val: Any, /) -> Any:
    cond_fun, body_fun = program.functions
    return _while(cond_fun, body_fun, init_val)


def fori_loop(
    lower: Any,
    upper: Any,
    body_fun: Callable[[Any, T], T],
    init_val: T,
    *,
    unroll: int | bool | None = None,
) -> T:
    """Run `body_fun` for each integer from `lower` up to, without, `upper`.

    Over `jax.lax.fori_loop`; otherwise as `while_loop`.

    Args:
        lower: first integer, or a Variable that holds it.
        upper: where to stop, likewise.
        body_fun: takes the integer and the carry, returns the next carry.
        init_val: first carry, which may be or contain graph nodes.
        unroll: how many iterations to compile as one (or True for all); needs a number of
            iterations that is known when tracing.

    Returns:
        The last carry; nodes in it are those of `init_val`.

    Raises:
        TypeError: the carry changes its structure, shape or dtype, or `body_fun` swaps or replaces
            objects inside it.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> def add(i, m):
    ...     m["w"].value = m["w"].value + i
    ...     return m
    >>> m = nnx.Dict(w=nnx.Param(jnp.array(0.0)))
    >>> m = nnx.fori_loop(0, 5, add, m)
    >>> float(m["w"].value)
    10.0
    """
    lower, upper = _bound(lower), _bound(upper)
    # Unrolling needs bounds that are known when tracing; otherwise one program serves all.
    known = isinstance(lower, int) and isinstance(upper, int)
    if (unroll is None or known) and (program := program_of(body_fun)):
        compiled = _compiled_fori if unroll is None else _compiled_fori_unrolled
        run = partial(compiled, program, unroll, lower, upper, init_val)
        return _run_program(run, "fori_loop", body_fun, (0, init_val))
    return _fori(body_fun, unroll, lower, upper, init_val)


def _bound(value: Any) -> Any:
    """A bound of a loop, which a Variable may hold."""
    return value.__jax_array__() if _core.is_variable(value) else value


def _fori(body_fun: Function, unroll: Any, lower: Any, upper: Any, init_val: Any, /) -> Any:
    loop = _Loop("fori_loop", body_fun, (jnp.asarray(lower),), init_val)
    run = partial(jax.lax.fori_loop, unroll=unroll)
    return loop.finish(loop.call.run(run, lower, upper, loop, loop.start()))


def _fori_program(program: Program, unroll: Any, lower: Any, upper: Any, init_val: Any, /) -> Any:
    (body_fun,) = program.functions
    return _fori(body_fun, unroll, lower, upper, init_val)


_compiled_fori = jit(_fori_program, static_argnums=(0, 1))
_compiled_fori_unrolled = jit(_fori_program, static_argnums=(0, 1, 2, 3))

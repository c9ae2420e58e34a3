"""while_loop and fori_loop over graph nodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from treadle import _core
from treadle._public import publish
from treadle.transforms._arguments import Function, argument_label, is_companion
from treadle.transforms._call import Call, Outline
from treadle.transforms._carry import Carried, CarriedObjects, check_type
from treadle.transforms._companions import bring_together
from treadle.transforms._driver import Rule, apply
from treadle.transforms._eager import run_program
from treadle.transforms._inside import Inside
from treadle.transforms._jit.jit import jit
from treadle.transforms._messages import type_of
from treadle.transforms._once import Program, program_of
from treadle.transforms._trees import tree_leaves

__all__ = ["fori_loop", "while_loop"]

T = TypeVar("T")


class _Body:
    """The body of a loop over flat leaves, all of them carried.

    JAX hands out the carry only, and may not even look at a body that never runs, so what the body
    did is kept here, for one call.

    Args:
        call: the walked arguments of the body; the last positional one is the carry.
    """

    def __init__(self, call: Call) -> None:
        self.outline = call.outline()
        self.skipped = len(call.args) - 1
        self.carried = Carried(call, self.skipped)
        companions = (items for which, _, items in call.argument_items() if is_companion(which))
        items = itertools.chain(self.carried.items, *companions)
        numbers = sorted({ref for is_object, ref in items if is_object})
        self.objects = CarriedObjects(call.where, call.function, call.graphdef, numbers)
        self.effects: Any = None
        self.sources: list[int] = []

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        *before, carry = args
        inside = Inside(self.outline, [*before, *carry])
        entered = self.objects.enter(inside.refs)
        result = inside.run()
        self.objects.check(entered, inside.refs)
        results = iter(self.carried.continued(inside, result))
        following = list(inside.leaves)
        self.sources = []
        for row in inside.leave(result):
            leaf = next(results) if row.kind == "result" else row.leaf
            if row.kind != "result":
                where, label = self.outline.where, inside.label(row)
                check_type(where, label, inside.leaves[leaf], row.value)
            following[leaf] = row.value
            self.sources.append(leaf - self.skipped)
        self.effects = inside.effects
        return tuple(following[self.skipped :])


class _Loop(Rule):
    """A loop.

    Args:
        name: the transform.
        loop: runs a body over flat leaves.
    """

    def __init__(self, name: str, loop: Function) -> None:
        self.name = name
        self.loop = loop

    def body(self, call: Call, inputs: None) -> _Body:
        return _Body(call)

    def run(self, call: Call, inputs: None, body: _Body) -> Any:
        return None, self.loop(body, tuple(call.leaves[body.skipped :]))

    def finish(self, call: Call, body: _Body, tail: Any) -> Any:
        if body.effects is None:
            # JAX ran the loop itself, without tracing the body, and there was no iteration.
            return call.args[body.skipped]
        return call.finish(body.effects, [tail[source] for source in body.sources])


def _test(outline: Outline, leaves: tuple[Any, ...]) -> Any:
    """The condition of a `while_loop` over flat leaves: it may only look."""
    inside = Inside(outline, leaves)
    result = inside.run()
    where = outline.where
    if any(map(_core.is_node, tree_leaves(result))):
        remedy = " Return its value." if _core.is_variable(result) else ""
        raise TypeError(
            f"{where}: cond_fun must return a boolean scalar, it returned a "
            f"{type(result).__name__}.{remedy}"
        )
    rows = inside.leave(result)
    changed = [row.path for row in rows if row.kind != "result"]
    if changed or inside.effects.changes_structure:
        label = (
            argument_label(outline.function, changed[0]) if changed else "its argument's structure"
        )
        raise TypeError(
            f"{where}: cond_fun changes {label}, but it may only look. Make the change in body_fun."
        )
    out = inside.values
    if len(out) != 1 or np.shape(out[0]) != () or jnp.result_type(out[0]) != np.dtype("bool"):
        shown = ", ".join(map(type_of, out)) or "nothing"
        raise TypeError(f"{where}: cond_fun must return a boolean scalar, it returned {shown}.")
    return out[0]


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
    if program := program_of(cond_fun, body_fun, operands=(init_val,)):
        run = partial(_compiled_while, program, init_val)
        return run_program(run, "while_loop", body_fun, (init_val,))
    return _while(cond_fun, body_fun, init_val)


def _while(cond_fun: Function, body_fun: Function, init_val: Any, /) -> Any:
    (test, step), companions = bring_together((cond_fun, body_fun))

    def loop(body: _Body, leaves: tuple[Any, ...]) -> Any:
        return jax.lax.while_loop(partial(_test, body.outline.of(test)), body, leaves)

    return apply(_Loop("while_loop", loop), step, (init_val,), companions)


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
    if (unroll is None or known) and (program := program_of(body_fun, operands=(init_val,))):
        compiled = _compiled_fori if unroll is None else _compiled_fori_unrolled
        run = partial(compiled, program, unroll, lower, upper, init_val)
        return run_program(run, "fori_loop", body_fun, (0, init_val))
    return _fori(body_fun, unroll, lower, upper, init_val)


def _bound(value: Any) -> Any:
    """A bound of a loop, which a Variable may hold."""
    return value.__jax_array__() if _core.is_variable(value) else value


def _fori(body_fun: Function, unroll: Any, lower: Any, upper: Any, init_val: Any, /) -> Any:
    loop = partial(jax.lax.fori_loop, lower, upper, unroll=unroll)
    return apply(_Loop("fori_loop", loop), body_fun, (jnp.asarray(lower), init_val), {})


def _fori_program(program: Program, unroll: Any, lower: Any, upper: Any, init_val: Any, /) -> Any:
    (body_fun,) = program.functions
    return _fori(body_fun, unroll, lower, upper, init_val)


_compiled_fori = jit(_fori_program, static_argnums=(0, 1))
_compiled_fori_unrolled = jit(_fori_program, static_argnums=(0, 1, 2, 3))


publish(__all__, globals())

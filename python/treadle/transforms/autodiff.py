"""Differentiation: grad, value_and_grad, vjp, jvp and custom_vjp over graph nodes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, TypeVarTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from treadle import _core
from treadle._graph.filters import All, Filter
from treadle._objects.variables import Param
from treadle.errors import format_path
from treadle.transforms._decorator import (
    custom_rule_transform,
    grad_transform,
    value_and_grad_transform,
)
from treadle.transforms._lift import (
    Call,
    Function,
    Path,
    argument_label,
    function_name,
    normalize_argnums,
    part_label,
    plain_path,
    structure_text,
    trace,
    tree_flatten,
    type_of,
)
from treadle.transforms.axes import DiffState

__all__ = ["CustomVjp", "custom_vjp", "grad", "jvp", "value_and_grad", "vjp"]

P = ParamSpec("P")
Rest = ParamSpec("Rest")
R = TypeVar("R")
T = TypeVar("T")
Aux = TypeVar("Aux")
Ts = TypeVarTuple("Ts")

Argnums = int | DiffState | Sequence[int | DiffState]


class Selection:
    """The leaves of a call that are differentiated, and how gradients are made of them.

    Args:
        call: the walked call.
        wanted: position and filter of each argument to differentiate; the filter selects leaves of
            nodes, values outside nodes are always selected.
    """

    __slots__ = ("arguments", "call", "leaves", "positions")

    def __init__(self, call: Call, wanted: Iterable[tuple[int, Filter]]) -> None:
        self.call = call
        by_position = call.argument_items()
        partitions: dict[int, tuple[int, ...]] = {}
        # For each argument its position, its structure and, per item, the object's reference id
        # and leaves.
        self.arguments: list[tuple[int, Any, list[tuple[int | None, list[int]]]]] = []
        chosen: set[int] = set()
        for position, wrt in wanted:
            _, items = by_position[position]
            _, structure = tree_flatten(call.args[position])
            described: list[tuple[int | None, list[int]]] = []
            for is_object, which in items:
                if not is_object:
                    described.append((None, [which]))
                    chosen.add(which)
                    continue
                if id(wrt) not in partitions:
                    partitions[id(wrt)] = call.partition((wrt,))
                selected = partitions[id(wrt)]
                ids = [leaf for leaf in call.graphdef.reachable(which) if selected[leaf] == 0]
                described.append((which, ids))
                chosen.update(ids)
            self.arguments.append((position, structure, described))
        self.leaves = tuple(sorted(chosen))
        self.positions = {leaf: position for position, leaf in enumerate(self.leaves)}

    def values(self) -> tuple[Any, ...]:
        """The selected leaves' values."""
        return tuple(self.call.leaves[leaf] for leaf in self.leaves)

    def substitute(self, values: Sequence[Any]) -> list[Any]:
        """All leaves of the call, the selected ones replaced."""
        leaves = list(self.call.leaves)
        for leaf, value in zip(self.leaves, values, strict=True):
            leaves[leaf] = value
        return leaves

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """One pytree per argument, nodes in it replaced by States, of values of selected leaves."""
        gathered = []
        for _, structure, described in self.arguments:
            parts = []
            for ref, ids in described:
                if ref is None:
                    parts.append(values[self.positions[ids[0]]])
                else:
                    parts.append(
                        self.call.state(ref, {leaf: values[self.positions[leaf]] for leaf in ids})
                    )
            gathered.append(jax.tree_util.tree_unflatten(structure, parts))
        return gathered

    def scatter(
        self, trees: Sequence[Any], values: Sequence[Any], what: str, *, add_up: bool
    ) -> tuple[Any, ...]:
        """Tangents of the selected leaves, from one pytree per argument as `gather` makes them.

        What is missing is zero. What is given for a leaf in two places (a shared Variable) is added
        up, or must be the same object.

        Args:
            trees: what is given; None in it counts as missing.
            values: the selected leaves' values.
            what: `trees` in words, for messages.
            add_up: `trees` are gradients: add up what is given twice, and let JAX judge the dtypes,
                as it lets gradients have another one.

        Raises:
            ValueError: `trees` does not fit the arguments.
            TypeError: an entry is not an array, or of another dtype than its leaf.
        """
        # A value may be a pytree, so each has a list of arrays.
        flat = [jax.tree_util.tree_flatten(value) for value in values]
        found: list[list[Any]] = [[None] * len(arrays) for arrays, _ in flat]
        places: dict[tuple[int, int], Path] = {}
        for place, leaf, value in self._entries(trees, what):
            position = self.positions[leaf]
            arrays, structure = flat[position]
            try:
                entries = structure.flatten_up_to(value)
            except ValueError as error:
                raise ValueError(
                    f"{self._where()}: {what} must have the structure of {self.call.label(leaf)}, "
                    f"which is {structure_text(values[position])}. {error}"
                ) from error
            known = found[position]
            for number, (array, entry) in enumerate(zip(arrays, entries, strict=True)):
                if entry is None or (add_up and not _has_gradient(array)):
                    continue  # JAX does not look at gradients of integers.
                problem = _misfit(array, entry, any_dtype=add_up)
                if problem is not None:
                    kind, text = problem
                    label = part_label(self._place(place), values[position], number)
                    raise kind(f"{self._where()}: {what} must fit {label}, which is {text}")
                if known[number] is None:
                    known[number] = entry
                    places[position, number] = place
                elif add_up:
                    known[number] = known[number] + entry
                elif known[number] is not entry:
                    first, second = (
                        part_label(self._place(which), values[position], number)
                        for which in (places[position, number], place)
                    )
                    raise ValueError(
                        f"{self._where()}: {first} and {second} are one and the same, but {what} "
                        "have a different entry for each. Pass the shared object once, or give its "
                        "tangent in one place and None in the other."
                    )
        return tuple(
            jax.tree_util.tree_unflatten(
                structure,
                [
                    _zero_tangent(array) if entry is None else entry
                    for array, entry in zip(arrays, entries, strict=True)
                ],
            )
            for (arrays, structure), entries in zip(flat, found, strict=True)
        )

    def _entries(self, trees: Sequence[Any], what: str) -> Iterator[tuple[Path, int, Any]]:
        """Path from the arguments, leaf and value of each entry of `trees` that is not None."""
        for (position, structure, described), tree in zip(self.arguments, trees, strict=True):
            if tree is None:
                continue
            try:
                parts = structure.flatten_up_to(tree)
            except ValueError as error:
                raise ValueError(
                    f"{self._where()}: {what} must have the structure of the arguments, with a "
                    f"State for each node. {error}"
                ) from error
            numbered = jax.tree_util.tree_unflatten(structure, range(len(parts)))
            keys, _ = jax.tree_util.tree_flatten_with_path(numbered)
            for (key, _), (ref, ids), part in zip(keys, described, parts, strict=True):
                if part is None:
                    continue
                place = (position, *plain_path(key))
                if ref is None:
                    yield place, ids[0], part
                    continue
                for path, leaf, entry in self._state_entries(ref, ids, part, what):
                    yield (*place, *path), leaf, entry

    def _state_entries(
        self, ref: int, ids: Sequence[int], state: Any, what: str
    ) -> Iterator[tuple[Path, int, Any]]:
        paths = self.call.relative_paths(ref)
        by_path = {paths[leaf]: leaf for leaf in ids}
        for path, entry in _state_entries(state, by_path):
            if path not in by_path:
                raise ValueError(
                    f"{self._where()}: {what} has an entry at {path!r} that is not a "
                    "differentiated leaf of the argument. "
                    f"Differentiated: {sorted(map(str, by_path))}."
                )
            if entry is not None:
                yield path, by_path[path], entry

    def check_dtypes(self, allow_int: bool, holomorphic: bool) -> None:
        """Raise a TypeError naming a selected leaf that cannot be differentiated."""
        for leaf in self.leaves:
            for number, part in enumerate(jax.tree_util.tree_leaves(self.call.leaves[leaf])):
                self._check_dtype(leaf, number, part, allow_int, holomorphic)

    def _check_dtype(
        self, leaf: int, number: int, array: Any, allow_int: bool, holomorphic: bool
    ) -> None:
        try:
            dtype = jnp.result_type(array)
        except TypeError:
            raise TypeError(
                f"{self._where()} differentiates {self._label(leaf, number)}, which is not an "
                f"array: got {array!r}. Leave it out of argnums."
            ) from None
        inexact = jnp.issubdtype(dtype, np.inexact)
        if holomorphic and not jnp.issubdtype(dtype, np.complexfloating):
            raise TypeError(
                f"{self._where()} with holomorphic=True needs complex inputs, "
                f"{self._label(leaf, number)} is {type_of(array)}."
            )
        if not inexact and not allow_int:
            raise TypeError(
                f"{self._where()} differentiates {self._label(leaf, number)}, which is "
                f"{type_of(array)}: only floating-point and complex values have gradients. "
                "Leave it out of argnums or wrt, or pass allow_int=True."
            )

    def _label(self, leaf: int, number: int) -> str:
        return part_label(self.call.label(leaf), self.call.leaves[leaf], number)

    def _place(self, path: Path) -> str:
        return argument_label(self.call.function, path)

    def _where(self) -> str:
        return f"{self.call.name} of {function_name(self.call.function)}"


def _state_entries(
    state: Any, leaves: Container[Path], path: Path = ()
) -> Iterator[tuple[Path, Any]]:
    """Path and bare value of each entry of a State or of nested dicts; a single value is at ().

    What is at a path in `leaves` is one entry: the value of a Variable may be a mapping itself.
    """
    if isinstance(state, Mapping) and path not in leaves:
        for key, entry in state.items():
            yield from _state_entries(entry, leaves, (*path, key))
    else:
        yield path, _bare(state)


def _bare(entry: Any) -> Any:
    if _core.is_variable(entry):
        return _core.raw_value(entry)
    return entry.value if isinstance(entry, _core.VariableState) else entry


def _wanted(
    call: Call, argnums: Argnums, wrt: Filter, parameter: str = "argnums"
) -> list[tuple[int, Filter]]:
    entries = list(argnums) if isinstance(argnums, Sequence) else [argnums]
    numbers = [e.argnum if isinstance(e, DiffState) else e for e in entries]
    normal = normalize_argnums(call.name, parameter, numbers, call.function, len(call.args))
    filters = [e.filter if isinstance(e, DiffState) else wrt for e in entries]
    return list(zip(normal, filters, strict=True))


def _check_argnums(name: str, argnums: Any) -> None:
    entries = argnums if isinstance(argnums, Sequence) else (argnums,)
    for entry in entries:
        if isinstance(entry, bool) or not (
            isinstance(entry, DiffState) or hasattr(entry, "__index__")
        ):
            raise TypeError(
                f"{name}: argnums takes positions of arguments (int), DiffState(position, filter), "
                f"or a sequence of these; got {entry!r}."
            )


def _check_reduce_axes(name: str, reduce_axes: Sequence[Hashable]) -> None:
    if tuple(reduce_axes):
        raise ValueError(
            f"{name}: reduce_axes={tuple(reduce_axes)!r} asks JAX to sum gradients over axes, "
            "which it no longer does. Leave reduce_axes empty and sum the result instead: "
            "jax.lax.psum(grads, axis_name)."
        )


def _split_loss(call: Call, has_aux: bool, result: Any) -> tuple[Any, Any]:
    where = f"{call.name} of {function_name(call.function)}"
    loss, aux = result, None
    if has_aux:
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                f"{where} with has_aux=True: the function must return a pair (loss, aux), "
                f"got {_described(result)}."
            )
        loss, aux = result
    try:
        shape = np.shape(loss)
        is_number = hasattr(loss, "dtype") or isinstance(loss, (int, float, complex))
    except Exception:
        shape, is_number = (), False
    if not is_number:
        hint = " Pass has_aux=True to return more than the loss." if not has_aux else ""
        raise TypeError(
            f"{where}: the function must return a scalar loss, got {_described(loss)}.{hint}"
        )
    if shape != ():
        raise TypeError(
            f"{where}: the function must return a scalar loss, got {type_of(loss)}. "
            "Reduce it, for example with jnp.mean or jnp.sum."
        )
    return loss, aux


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"a value of type {type(value).__name__}"


def _gradients(
    name: str,
    f: Function,
    argnums: Argnums,
    has_aux: bool,
    holomorphic: bool,
    allow_int: bool,
    reduce_axes: Sequence[Hashable],
    wrt: Filter,
) -> Callable[..., tuple[Any, Any, Any]]:
    """A function returning (loss, aux, gradients) and carrying out the state updates of `f`."""
    _check_argnums(name, argnums)
    _check_reduce_axes(name, reduce_axes)
    single = not isinstance(argnums, Sequence)

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
        call = Call.collect(name, f, args, kwargs)
        selection = Selection(call, _wanted(call, argnums, wrt))
        selection.check_dtypes(allow_int, holomorphic)
        effects: Any = None

        def loss_of(values: tuple[Any, ...]) -> tuple[Any, list[Any]]:
            nonlocal effects
            loss: Any = None

            def take_loss(refs: list[Any], arguments: Any, result: Any) -> Any:
                nonlocal loss
                loss, aux = _split_loss(call, has_aux, result)
                return aux

            leaves = selection.substitute(values)
            effects, out = trace(f, call.graphdef, leaves, leave=take_loss)
            return loss, out

        differentiated = jax.value_and_grad(
            loss_of, has_aux=True, holomorphic=holomorphic, allow_int=allow_int
        )
        (loss, out), gradients = differentiated(selection.values())
        trees = selection.gather(gradients)
        aux = call.finish(effects, out)
        return loss, aux, trees[0] if single else tuple(trees)

    return run


@grad_transform
def grad(
    f: Function,
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Hashable] = (),
    *,
    wrt: Filter = Param,
) -> Function:
    """A function that computes the gradient of `f`, whose arguments may be or contain graph nodes.

    The gradient of a node is a `State` with just the leaves that `wrt` selects, as `VariableState`
    of the Variable's type and metadata. A Variable that is reachable in several ways is
    differentiated once and its gradient is the sum over its uses. Other arguments have the
    gradients that `jax.grad` gives them. Whatever `f` changes in its arguments (batch statistics,
    RNG counts, the differentiated Variables too) reaches the caller's objects.

    Args:
        f: function to differentiate; returns a scalar (shape ``()``), floating-point unless
            `holomorphic`.
        argnums: position or positions of the arguments to differentiate. Several positions give a
            tuple of gradients. An entry ``DiffState(position, filter)`` selects the argument's
            leaves by its own filter instead of `wrt`.
        has_aux: `f` returns ``(loss, aux)``; then the result is ``(gradients, aux)``.
        holomorphic: `f` is holomorphic; inputs and output are complex.
        allow_int: allow integer inputs; their gradients have dtype ``float0``.
        reduce_axes: must be empty: JAX no longer sums gradients over named axes by itself.
        wrt: filter that selects the differentiated leaves of nodes.

    Returns:
        A function with the arguments of `f` that returns the gradients.

    Raises:
        TypeError: the loss is not a scalar, or a selected leaf has no gradient.
        ValueError: `argnums` is out of range, or `reduce_axes` is not empty.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> m = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((1, 2))
    >>> y = jnp.ones((1, 3))
    >>> loss_fn = lambda m, x, y: jnp.mean((m(x) - y) ** 2)
    >>> grad_fn = nnx.grad(loss_fn, wrt=nnx.Param)
    >>> grads = grad_fn(m, x, y)
    >>> jax.tree_util.tree_map(jnp.shape, grads)
    State({
      'bias': VariableState(
        type=Param,
        value=(3,)
      ),
      'kernel': VariableState(
        type=Param,
        value=(2, 3)
      )
    })
    """
    run = _gradients("grad", f, argnums, has_aux, holomorphic, allow_int, reduce_axes, wrt)

    @functools.wraps(f)
    def grad_wrapper(*args: Any, **kwargs: Any) -> Any:
        _, aux, gradients = run(args, kwargs)
        return (gradients, aux) if has_aux else gradients

    return grad_wrapper


@value_and_grad_transform
def value_and_grad(
    f: Function,
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Hashable] = (),
    *,
    wrt: Filter = Param,
) -> Function:
    """As `grad`, and the value of `f` with it.

    Returns:
        A function that returns ``(loss, gradients)``, or ``((loss, aux), gradients)`` with
        `has_aux`.

    Raises:
        TypeError, ValueError: as `grad`.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> model = nnx.Dict(w=nnx.Param(jnp.array(3.0)))
    >>> loss, grads = nnx.value_and_grad(lambda m: m["w"] ** 2)(model)
    >>> float(loss), float(grads["w"].value)
    (9.0, 6.0)
    """
    run = _gradients(
        "value_and_grad", f, argnums, has_aux, holomorphic, allow_int, reduce_axes, wrt
    )

    @functools.wraps(f)
    def value_and_grad_wrapper(*args: Any, **kwargs: Any) -> Any:
        loss, aux, gradients = run(args, kwargs)
        return ((loss, aux) if has_aux else loss), gradients

    return value_and_grad_wrapper


@overload
def vjp(
    f: Callable[[*Ts], R],
    *primals: *Ts,
    has_aux: Literal[False] = False,
    reduce_axes: Sequence[Hashable] = (),
    wrt: Filter = Param,
) -> tuple[R, Callable[[R], tuple[Any, ...]]]: ...
@overload
def vjp(
    f: Callable[[*Ts], tuple[R, Aux]],
    *primals: *Ts,
    has_aux: Literal[True],
    reduce_axes: Sequence[Hashable] = (),
    wrt: Filter = Param,
) -> tuple[R, Callable[[R], tuple[Any, ...]], Aux]: ...
def vjp(
    f: Function,
    *primals: Any,
    has_aux: bool = False,
    reduce_axes: Sequence[Hashable] = (),
    wrt: Filter = Param,
) -> Any:
    """Run `f` and return its result with the function that pulls cotangents back through it.

    Args:
        f: function of `primals`, which may be or contain graph nodes. Its changes to them reach the
            caller's objects; its result holds arrays only.
        *primals: the arguments.
        has_aux: `f` returns ``(out, aux)``.
        reduce_axes: must be empty, as for `grad`.
        wrt: filter that selects the differentiated leaves of nodes.

    Returns:
        ``(out, pull_back)``, or ``(out, pull_back, aux)`` with `has_aux`. ``pull_back(cotangent)``
        returns a tuple with one entry per primal: a State for a node.

    Raises:
        TypeError: the result of `f` holds nodes, or a selected leaf has no gradient.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> model = nnx.Dict(w=nnx.Param(jnp.array(3.0)))
    >>> out, pull_back = nnx.vjp(lambda m, x: m["w"] * x, model, jnp.array(2.0))
    >>> of_model, of_x = pull_back(jnp.array(1.0))
    >>> float(out), float(of_model["w"].value), float(of_x)
    (6.0, 2.0, 3.0)
    """
    _check_reduce_axes("vjp", reduce_axes)
    call = Call.collect("vjp", f, primals, {})
    selection = Selection(call, [(position, wrt) for position in range(len(primals))])
    selection.check_dtypes(allow_int=True, holomorphic=False)
    effects: Any = None

    def flat(values: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        nonlocal effects
        out: Any = None

        def take(refs: list[Any], arguments: Any, result: Any) -> Any:
            nonlocal out
            out, aux = _split_output(call, has_aux, result)
            return aux

        effects, changed = trace(f, call.graphdef, selection.substitute(values), leave=take)
        return out, changed

    out, flat_pull_back, changed = jax.vjp(flat, selection.values(), has_aux=True)
    aux = call.finish(effects, changed)

    def pull_back(cotangent: Any) -> tuple[Any, ...]:
        (gradients,) = flat_pull_back(cotangent)
        return tuple(selection.gather(gradients))

    return (out, pull_back, aux) if has_aux else (out, pull_back)


def _split_output(call: Call, has_aux: bool, result: Any) -> tuple[Any, Any]:
    where = f"{call.name} of {function_name(call.function)}"
    out, aux = result, None
    if has_aux:
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                f"{where} with has_aux=True: the function must return a pair (out, aux), "
                f"got {_described(result)}."
            )
        out, aux = result
    leaves, _ = tree_flatten(out)
    for leaf in leaves:
        if _core.is_node(leaf):
            raise TypeError(
                f"{where}: the differentiated result holds a {type(leaf).__name__}. Return its "
                "arrays (or nnx.state of it), or return it as aux with has_aux=True."
            )
    return out, aux


@overload
def jvp(
    f: Callable[[*Ts], R],
    primals: tuple[*Ts],
    tangents: Sequence[Any],
    *,
    has_aux: Literal[False] = False,
    wrt: Filter = Param,
) -> tuple[R, R]: ...
@overload
def jvp(
    f: Callable[[*Ts], tuple[R, Aux]],
    primals: tuple[*Ts],
    tangents: Sequence[Any],
    *,
    has_aux: Literal[True],
    wrt: Filter = Param,
) -> tuple[R, R, Aux]: ...
@overload
def jvp(
    f: Callable[..., Any],
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    has_aux: bool = False,
    wrt: Filter = Param,
) -> tuple[Any, ...]: ...
def jvp(
    f: Function,
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    has_aux: bool = False,
    wrt: Filter = Param,
) -> Any:
    """Run `f` and push tangents forward through it.

    Args:
        f: function of `primals`, which may be or contain graph nodes. Its changes to them reach the
            caller's objects; its result holds arrays only.
        primals: the arguments.
        tangents: one per primal, of its structure, shapes and dtypes; for a node a State (or nested
            dict) with tangents of leaves that `wrt` selects. Leaves without an entry, and None,
            count as zero. A Variable that several primals hold has one tangent: it is given in one
            place, or as the same object in each.
        has_aux: `f` returns ``(out, aux)``.
        wrt: filter that selects the leaves of nodes that may have tangents.

    Returns:
        ``(out, out_tangent)``, or ``(out, out_tangent, aux)`` with `has_aux`.

    Raises:
        ValueError: `tangents` does not fit `primals`, or has two entries for one Variable.
        TypeError: a tangent is of another dtype than its primal, or the result of `f` holds nodes.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> model = nnx.Dict(w=nnx.Param(jnp.array(3.0)))
    >>> out, tangent = nnx.jvp(
    ...     lambda m, x: m["w"] * x,
    ...     (model, jnp.array(2.0)),
    ...     ({"w": jnp.array(1.0)}, jnp.array(0.0)),
    ... )
    >>> float(out), float(tangent)
    (6.0, 2.0)
    """
    primals, tangents = tuple(primals), tuple(tangents)
    if len(primals) != len(tangents):
        raise ValueError(
            f"jvp of {function_name(f)}: needs one tangent per primal, got {len(primals)} primals "
            f"and {len(tangents)} tangents."
        )
    call = Call.collect("jvp", f, primals, {})
    selection = Selection(call, [(position, wrt) for position in range(len(primals))])
    selection.check_dtypes(allow_int=True, holomorphic=False)
    values = selection.values()
    filled = selection.scatter(tangents, values, "tangents", add_up=False)
    effects: Any = None

    def flat(values: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        nonlocal effects
        out: Any = None

        def take(refs: list[Any], arguments: Any, result: Any) -> Any:
            nonlocal out
            out, aux = _split_output(call, has_aux, result)
            return aux

        effects, changed = trace(f, call.graphdef, selection.substitute(values), leave=take)
        return out, changed

    out, out_tangent, changed = jax.jvp(flat, (values,), (filled,), has_aux=True)
    aux = call.finish(effects, changed)
    return (out, out_tangent, aux) if has_aux else (out, out_tangent)


def _zero_tangent(array: Any) -> Any:
    """Zero of the tangent space of `array`: ``float0`` where it has no derivative."""
    if _has_gradient(array):
        return jnp.zeros_like(array)
    return np.zeros(np.shape(array), jax.dtypes.float0)


def _has_gradient(array: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(array), np.inexact)


def _misfit(
    array: Any, tangent: Any, any_dtype: bool
) -> tuple[type[TypeError] | type[ValueError], str] | None:
    """Why `tangent` cannot be one of `array`: the exception to raise and what to say, or None."""
    if isinstance(tangent, jax.custom_derivatives.SymbolicZero):
        return None
    expected = jax.typeof(array)
    try:
        given = jax.typeof(tangent)
    except (TypeError, ValueError):
        return TypeError, (
            f"{type_of(expected)}; got {_described(tangent)}. Give an array, or None for zero."
        )
    if np.shape(given) != np.shape(expected):
        return ValueError, (
            f"{type_of(expected)}; got {type_of(given)}. Give an array of shape "
            f"{np.shape(expected)}, or None for zero."
        )
    dtype = expected.dtype if _has_gradient(array) else jax.dtypes.float0
    if any_dtype or given.dtype == dtype:
        return None
    if dtype is jax.dtypes.float0:
        advice = "It has no derivative: give None."
    else:
        advice = f"Cast it to {dtype}, or give None for zero."
    return TypeError, f"{type_of(expected)}; got {type_of(given)}. {advice}"


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") or isinstance(value, (bool, int, float, complex))


def _is_jax_value(value: Any) -> bool:
    """Whether a leaf's value is an array, or a pytree of arrays, of which there is at least one."""
    if _is_array(value):
        return True
    parts = jax.tree_util.tree_leaves(value)
    return bool(parts) and all(map(_is_array, parts))


class CustomVjp(Generic[P, R]):
    """A function with its own rule for reverse-mode differentiation; see `custom_vjp`."""

    def __init__(
        self, fun: Callable[P, R], nondiff_argnums: Sequence[int | DiffState], wrt: Filter
    ) -> None:
        functools.update_wrapper(self, fun)
        self._fun = fun
        self._nondiff_argnums = tuple(nondiff_argnums)
        self._wrt = wrt
        self._rule: tuple[Function, Function] | None = None

    @overload
    def __get__(self, instance: None, owner: Any = ..., /) -> CustomVjp[P, R]: ...
    @overload
    def __get__(
        self: CustomVjp[Concatenate[T, Rest], R], instance: T, owner: Any = ..., /
    ) -> Callable[Rest, R]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def defvjp(self, fwd: Function, bwd: Function) -> None:
        """Set the rule.

        Args:
            fwd: takes the arguments of the function by position, those left to their defaults too;
                returns ``(out, residual)``. Both may refer to the nodes it was given.
            bwd: takes the arguments named by integers in `nondiff_argnums`, the residual, and
                ``(inputs_g, out_g)``: cotangents of the updates that the function made to its
                differentiated arguments (a State for a node, zero where nothing was updated), and
                of its result. Returns a tuple with the gradient of each differentiated argument, a
                State for a node; None and missing entries count as zero.
        """
        self._rule = fwd, bwd

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function; differentiating it uses the rule."""
        if self._rule is None:
            raise AttributeError(
                f"No derivative rule defined for custom_vjp function {function_name(self._fun)}: "
                "call its defvjp(fwd, bwd) first."
            )
        positional = _positional(self._fun, args, kwargs)
        return _CustomVjpCall(self._fun, self._rule, positional).run(
            self._nondiff_argnums, self._wrt
        )


def _positional(fun: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """All arguments of a call by position, with defaults, as `jax.custom_vjp` binds them.

    Defaults of keyword-only parameters are left to `fun`. A `functools.partial` or a function
    without a readable signature is called by position only.

    Raises:
        TypeError: the arguments do not fit `fun`, or one cannot be given by position.
    """
    unbound = list(kwargs)
    try:
        signature = None if isinstance(fun, functools.partial) else inspect.signature(fun)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"custom_vjp of {function_name(fun)}: {error}.") from error
        bound.apply_defaults()
        args = bound.args
        unbound = [name for name in kwargs if name in bound.kwargs]
    if unbound:
        names = ", ".join(map(repr, unbound))
        raise TypeError(
            f"custom_vjp of {function_name(fun)}: its rule takes arguments by position, and "
            f"{names} cannot be given so. Give {function_name(fun)} a signature with positional "
            "parameters in their place, or close over the values."
        )
    return args


class _CustomVjpCall:
    """One call of a `CustomVjp`, over flat leaves."""

    def __init__(
        self,
        fun: Function,
        rule: tuple[Function, Function],
        args: tuple[Any, ...],
    ) -> None:
        self.fun = fun
        self.fwd, self.bwd = rule
        self.call = Call.collect("custom_vjp", fun, args, {})
        self.effects: Any = None
        self.out_structure: Any = None

    def run(self, nondiff: tuple[int | DiffState, ...], wrt: Filter) -> Any:
        call = self.call
        skipped = [n for n in nondiff if not isinstance(n, DiffState)]
        skipped = list(
            normalize_argnums(call.name, "nondiff_argnums", skipped, call.function, len(call.args))
        )
        filters = dict.fromkeys(range(len(call.args)), wrt)
        for entry in nondiff:
            if isinstance(entry, DiffState):
                (position,) = normalize_argnums(
                    call.name, "nondiff_argnums", [entry.argnum], call.function, len(call.args)
                )
                filters[position] = entry.filter
        self.skipped = skipped
        wanted = [(p, All(_differentiable, f)) for p, f in filters.items() if p not in skipped]
        self.selection = Selection(call, wanted)
        self._check_values()
        chosen = self.selection.positions
        self.rest = [
            leaf
            for leaf, value in enumerate(call.leaves)
            if leaf not in chosen and _is_jax_value(value)
        ]
        values = self.selection.values(), tuple(call.leaves[leaf] for leaf in self.rest)
        # A traced program keeps the rule, and with it this object.
        kept = [None if _is_jax_value(value) else value for value in call.leaves]
        self.call = self.selection.call = call.outline(kept)
        flat = jax.custom_vjp(self._primal)
        flat.defvjp(self._forward, self._backward)
        out = flat(*values)
        return call.finish(self.effects, out)

    def _check_values(self) -> None:
        for leaf in self.selection.leaves:
            if not _is_jax_value(value := self.call.leaves[leaf]):
                raise TypeError(
                    f"custom_vjp of {function_name(self.fun)}: {self.call.label(leaf)} is not an "
                    f"array: got {value!r}. Name the argument's position in nondiff_argnums."
                )

    def _leaves(self, chosen: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
        leaves = self.selection.substitute(chosen)
        for leaf, value in zip(self.rest, rest, strict=True):
            leaves[leaf] = value
        return leaves

    def _take_result(self, result: Any) -> Any:
        out, _ = _split_output(self.call, False, result)
        _, self.out_structure = tree_flatten(out)
        return out

    def _primal(self, chosen: Sequence[Any], rest: Sequence[Any]) -> tuple[Any, ...]:
        self.effects, out = trace(
            self.fun,
            self.call.graphdef,
            self._leaves(chosen, rest),
            leave=lambda refs, arguments, result: self._take_result(result),
        )
        return tuple(out)

    def _forward(self, chosen: Sequence[Any], rest: Sequence[Any]) -> Any:
        residual: Any = None

        def take(refs: list[Any], arguments: Any, result: Any) -> Any:
            nonlocal residual
            if not (isinstance(result, tuple) and len(result) == 2):
                raise TypeError(
                    f"custom_vjp of {function_name(self.fun)}: fwd must return a pair "
                    f"(out, residual), got {_described(result)}."
                )
            args, _ = arguments
            out, kept = result
            residual = _core.flatten_call(
                (kept, [args[position] for position in self.skipped]),
                {},
                frozenset(),
                frozenset(),
            )
            return self._take_result(out)

        effects, out = trace(self.fwd, self.call.graphdef, self._leaves(chosen, rest), leave=take)
        if self.effects is not None and self.effects.outputs() != effects.outputs():
            raise ValueError(
                f"custom_vjp of {function_name(self.fun)}: fwd must return and update what the "
                "function itself does. The function gives "
                f"{_output_paths(self.effects)}, fwd gives {_output_paths(effects)}."
            )
        self.effects = effects
        arrays = [i for i, leaf in enumerate(residual.leaves) if _is_jax_value(leaf)]
        self.residual_template = residual.graphdef, list(residual.leaves), arrays
        kept = tuple(residual.leaves[i] for i in arrays)
        for i in arrays:
            self.residual_template[1][i] = None
        return tuple(out), (kept, chosen)

    def _backward(self, saved: Any, cotangents: Sequence[Any]) -> Any:
        kept, chosen = saved
        graphdef, template, arrays = self.residual_template
        leaves = list(template)
        for i, value in zip(arrays, kept, strict=True):
            leaves[i] = value
        ((residual, skipped), _), _ = _core.unflatten(graphdef, leaves)
        updates = list(jax.tree_util.tree_map(_zero_tangent, chosen))
        results = []
        for (kind, leaf, _), cotangent in zip(self.effects.outputs(), cotangents, strict=True):
            if kind == "result":
                results.append(cotangent)
            elif leaf in self.selection.positions:
                updates[self.selection.positions[leaf]] = cotangent
        inputs_g = tuple(self.selection.gather(updates))
        out_g = jax.tree_util.tree_unflatten(self.out_structure, results)
        gradients = self.bwd(*skipped, residual, (inputs_g, out_g))
        if not isinstance(gradients, (tuple, list)) or len(gradients) != len(inputs_g):
            raise TypeError(
                f"custom_vjp of {function_name(self.fun)}: bwd must return a tuple with the "
                f"gradient of each of the {len(inputs_g)} differentiated arguments, "
                f"got {_described(gradients)}."
            )
        filled = self.selection.scatter(gradients, chosen, "the result of bwd", add_up=True)
        return filled, None


def _output_paths(effects: Any) -> list[str]:
    return [f"{kind} {format_path(path, '')}" for kind, _, path in effects.outputs()]


def _differentiable(path: Any, value: Any) -> bool:
    raw = getattr(value, "raw_value", getattr(value, "value", value))
    if not _is_jax_value(raw):
        return False
    parts = jax.tree_util.tree_leaves(raw)
    return any(jnp.issubdtype(jnp.result_type(part), np.inexact) for part in parts)


@custom_rule_transform
def custom_vjp(
    fun: Callable[P, R], *, nondiff_argnums: Sequence[int | DiffState] = (), wrt: Filter = ...
) -> CustomVjp[P, R]:
    """Give a function over graph nodes its own rule for reverse-mode differentiation.

    Args:
        fun: the function; its result holds arrays only.
        nondiff_argnums: positions, in the signature of `fun`, of arguments that are not
            differentiated. An entry ``DiffState(position, filter)`` says which leaves of that
            argument are.
        wrt: filter that selects the differentiated leaves of the other nodes; only floating-point
            and complex leaves are.

    Arguments given by keyword and defaults take their positions in the signature of `fun`, as with
    `jax.custom_vjp`; one that has no position (keyword-only, or in ``**kwargs``) cannot be given.

    Returns:
        A `CustomVjp`, whose ``defvjp(fwd, bwd)`` sets the rule.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> @nnx.custom_vjp
    ... def scaled(m, x):
    ...     return m["w"] * x
    >>> def fwd(m, x):
    ...     return scaled(m, x), (m, x)
    >>> def bwd(residual, g):
    ...     (m, x), (_, out_g) = residual, g
    ...     of_m = nnx.state(m)
    ...     of_m["w"].value = jnp.clip(out_g * x, -1.0, 1.0)
    ...     return of_m, out_g * m["w"].value
    >>> scaled.defvjp(fwd, bwd)
    >>> model = nnx.Dict(w=nnx.Param(jnp.array(3.0)))
    >>> grads = nnx.grad(scaled)(model, jnp.array(5.0))
    >>> float(grads["w"].value)
    1.0
    """
    return CustomVjp(fun, nondiff_argnums, wrt)

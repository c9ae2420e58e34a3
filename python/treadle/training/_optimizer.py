"""An optimizer over any optax transformation, whose state is part of the object graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from treadle import _core
from treadle._core import VariableState
from treadle._graph.splitting import is_graph_node
from treadle._graph.splitting import state as state_of
from treadle._graph.splitting import update as update_graph
from treadle._graph.state import State
from treadle._modules.module import Object
from treadle._objects.variables import OptState, OptVariable, Param
from treadle._public import publish
from treadle.errors import StateError, format_path

if TYPE_CHECKING:
    from treadle._graph.filters import Filter

__all__ = ["ModelAndOptimizer", "Optimizer"]

_NOT_GIVEN: Any = object()
# Hooks of a parameter act on its own value; its momentum is no such value.
_NOT_INHERITED = (
    *("get_value_hooks", "set_value_hooks", "create_value_hooks"),
    *("on_get_value", "on_set_value", "on_create_value"),
)


class Optimizer(Object):
    """Applies gradients to a model with an optax transformation.

    There are two ways to use it, told apart by whether `wrt` is given:

    - `Optimizer(model, tx, wrt=Param)` does not hold the model, which is passed at each
      `update(model, grads)`;
    - `Optimizer(model, tx)` holds the model as `optimizer.model`, so that a training step needs the
      optimizer alone: `update(grads)` or `update(grads=grads)`. `update(model, grads)` works too.
      The held model is a reference: a transform given both the model and the optimizer sees one
      model.

    `ModelAndOptimizer(model, tx, wrt=...)` holds the model and takes a filter.

    The optax transformation is given the `State` of the model that `wrt` selects. Its own state is
    kept in `opt_state` in the shape optax gave it, with two changes: each array lies in an
    `OptVariable` (where it belongs to a parameter, whose metadata such as sharding it carries) or
    an `OptState`; and each `State` is a nested dict, such as `opt_state[0].mu["dense"]["kernel"]`
    for `optax.adam`. To change a hyperparameter of `optax.inject_hyperparams` between steps, write
    to `opt_state.hyperparams["learning_rate"].value`.

    Args:
        model: the model, or any graph node.
        tx: an optax transformation.
        wrt: filter for the parameters that are optimized; if left out, `Param`, and the model is
            held.

    Attributes:
        step: `OptState`, uint32 scalar, the number of updates so far.
        opt_state: state of the transformation, see above.
        tx: the transformation.
        wrt: the filter.
        model: the model, if it is held.

    Raises:
        ImportError: optax is not installed.
        TypeError: `tx` is not an optax transformation.
        ValueError: `wrt` selects nothing in the model.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    >>> grads = nnx.grad(lambda m: jnp.mean(m(jnp.ones((1, 2))) ** 2))(model)
    >>> optimizer.update(model, grads)
    >>> int(optimizer.step.value), optimizer.opt_state[0].mu["kernel"].value.shape
    (1, (2, 3))
    """

    model: Any

    def __init__(self, model: Any, tx: Any, wrt: Filter = _NOT_GIVEN) -> None:
        holds_model = wrt is _NOT_GIVEN
        self._create(model, tx, Param if holds_model else wrt, holds_model=holds_model)

    def _create(self, model: Any, tx: Any, wrt: Filter, *, holds_model: bool) -> None:
        _require_transformation(tx)
        # Statics must be hashable, which a list of filters is not.
        wrt = tuple(wrt) if isinstance(wrt, list) else wrt
        params = state_of(model, wrt)
        if not len(params):
            raise ValueError(
                f"wrt={wrt!r} selects nothing in {type(model).__name__}: there is nothing to "
                "optimize. Check the filter, or that the model has such Variables"
            )
        self.step = OptState(jnp.array(0, jnp.uint32))
        self.opt_state = _into_variables(tx.init(params), params)
        self.tx = tx
        self.wrt = wrt
        if holds_model:
            self.model = model

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise AttributeError(_no_model(self))
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def update(self, *args: Any, grads: Any = _NOT_GIVEN, **kwargs: Any) -> None:
        """Apply gradients: `update(model, grads)`, or `update(grads)` where the model is held.

        The number of positional arguments tells the two apart. If anything raises, neither the
        model nor the optimizer has changed.

        Args:
            *args: the model and the gradients, or the gradients alone.
            grads: the gradients by keyword; then `args` is the model, or nothing.
            **kwargs: passed to the transformation's `update`, such as the `value` that some
                transformations of optax need.

        Raises:
            TypeError: another number of arguments, gradients that are neither a State nor a model of
                gradients, as plain `jax.grad` gives them, or keywords that the transformation does
                not know.
            ValueError: the optimizer holds no model and none is given.
            StateError: the gradients are not those of the parameters that `wrt` selects, or these
                are no longer those that the optimizer keeps state for.

        >>> import jax.numpy as jnp
        >>> import optax
        >>> import treadle as nnx
        >>> optimizer = nnx.Optimizer(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), optax.sgd(0.1))
        >>> before = optimizer.model.bias.value
        >>> grads = nnx.grad(lambda m: m(jnp.ones(2)).sum())(optimizer.model)
        >>> optimizer.update(grads=grads)
        >>> (optimizer.model.bias.value - before).tolist()
        [-0.10000000149011612]
        """
        import optax

        model, grads = self._arguments(args, grads)
        if is_graph_node(grads):
            grads = state_of(grads, self.wrt)
        self.step._check_mutable()
        params = state_of(model, self.wrt)
        self._check_agreement(model, params)
        updates, opt_state = self.tx.update(
            _like_params(grads, params), _out_of_variables(self.opt_state, params), params, **kwargs
        )
        new_params = optax.apply_updates(params, updates)
        step = self.step.value + 1
        store = _storing(self.opt_state, opt_state)
        update_graph(model, new_params)
        self.step.value = step
        if store is None:
            self.opt_state = _into_variables(opt_state, params)
        else:
            store()

    def _check_agreement(self, model: Any, params: State) -> None:
        """Refuse parameters that are others by now than those that the state is for.

        What keeps no state for each parameter, such as plain `optax.sgd`, takes any.
        """
        kept = _kept_by_parameter(self.opt_state, params)
        problems: dict[tuple[Any, ...], str] = {}
        for levels in kept:
            for path, is_new in _differences(levels, params):
                found = "was added" if is_new else _what_became_of(path, model, self.wrt)
                problems.setdefault(path, found)
        if not problems and any(_has_other_shapes(levels, params) for levels in kept):
            problems = _changed_shapes(kept, self.tx, params)
        if problems:
            named = [f"{format_path(path, 'model')} {what}" for path, what in problems.items()]
            more = f", and {len(named) - 3} more" if len(named) > 3 else ""
            raise StateError(
                "the model's parameters are no longer those that the optimizer keeps state for: "
                f"{', '.join(named[:3])}{more}. Undo the change, or make a new "
                f"{type(self).__name__} for the changed model, whose state starts afresh"
            )

    def _arguments(self, args: tuple[Any, ...], grads: Any) -> tuple[Any, Any]:
        given = args if grads is _NOT_GIVEN else (*args, grads)
        if len(given) == 2:
            return given
        if len(given) == 1:
            if "model" not in vars(self):
                raise ValueError(_no_model(self))
            return self.model, given[0]
        raise TypeError(
            f"update takes (model, grads), or (grads) where the optimizer holds the model; "
            f"got {len(given)} of them"
        )


class ModelAndOptimizer(Optimizer):
    """An `Optimizer` that holds its model, with any filter.

    Args:
        model: the model, or any graph node.
        tx: an optax transformation.
        wrt: filter for the parameters that are optimized.

    Raises:
        ImportError: optax is not installed.
        TypeError: `tx` is not an optax transformation.
        ValueError: `wrt` selects nothing in the model.

    >>> import optax
    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> optimizer = nnx.ModelAndOptimizer(model, optax.sgd(0.1), wrt=nnx.PathContains("kernel"))
    >>> optimizer.model is model
    True
    """

    def __init__(self, model: Any, tx: Any, wrt: Filter = Param) -> None:
        self._create(model, tx, wrt, holds_model=True)


def _no_model(optimizer: Optimizer) -> str:
    return (
        f"this {type(optimizer).__name__} was made with `wrt` and does not hold its model: call "
        "update(model, grads), or make it with ModelAndOptimizer(model, tx, wrt=...)"
    )


def _require_transformation(tx: Any) -> None:
    try:
        import optax
    except ImportError as error:
        raise ImportError(
            "Optimizer needs optax: `pip install optax`, or `pip install treadle[train]`"
        ) from error
    # A transformation is a named tuple of two functions; look-alikes with both are as good.
    if not isinstance(tx, optax.GradientTransformation) and not (
        callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))
    ):
        raise TypeError(
            f"tx must be an optax transformation such as optax.adam(1e-3), got {type(tx).__name__}"
        )


def _is_state(value: Any) -> bool:
    return isinstance(value, State)


def _is_variable(value: Any) -> bool:
    # `isinstance` takes an entry of a State for one.
    return _core.is_variable(value)


def _is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, np.generic, bool, int, float, complex))


def _into_variables(tree: Any, params: State) -> Any:
    """The state of a transformation with every array in a Variable and every State a dict."""

    def convert(value: Any) -> Any:
        if isinstance(value, State):
            return _state_into_variables(value, params)
        return OptState(jnp.asarray(value)) if _is_array(value) else value

    return jax.tree.map(convert, tree, is_leaf=_is_state)


def _state_into_variables(state: State, params: Any) -> dict[Any, Any]:
    return {
        key: _state_into_variables(entry, _below(params, key))
        if isinstance(entry, State)
        else _entry_into_variables(entry, _entry_value(_below(params, key)))
        for key, entry in state.items()
    }


def _below(params: Any, key: Any) -> Any:
    # A transformation may make up a State of its own, with other entries than the model's.
    return params[key] if isinstance(params, State) and key in params else ()


def _entry_into_variables(entry: Any, param: Any) -> Any:
    # A parameter's value may be a pytree of arrays.
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(param)}
    metadata: dict[str, Any] = {}
    if isinstance(entry, VariableState):
        metadata = {k: v for k, v in entry._metadata.items() if k not in _NOT_INHERITED}

    def convert(leaf: Any) -> Any:
        if not _is_array(leaf):
            return leaf
        leaf = jnp.asarray(leaf)
        kept = metadata
        if leaf.shape not in shapes:
            # The sharding names axes of the parameter, which this array does not have.
            kept = {k: v for k, v in metadata.items() if k != "sharding"}
        return OptVariable(leaf, **kept)

    return jax.tree.map(convert, _entry_value(entry))


def _out_of_variables(tree: Any, params: State) -> Any:
    """Back to what the transformation made: values for Variables, States for their dicts.

    A dict stands for a State if it has the keys of `params` at all levels.
    """

    def is_whole(value: Any) -> bool:
        return _is_variable(value) or (isinstance(value, dict) and _has_keys_of(value, params))

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return _merge_entries(value, params)
        return value.value if _is_variable(value) else value

    return jax.tree.map(convert, tree, is_leaf=is_whole)


def _has_keys_of(levels: Mapping[Any, Any], like: Any) -> bool:
    if levels.keys() != set(like):
        return False
    for key, entry in like.items():
        if isinstance(entry, State):
            below = levels[key]
            if not isinstance(below, dict) or not _has_keys_of(below, entry):
                return False
    return True


def _kept_by_parameter(tree: Any, params: State) -> list[dict[Any, Any]]:
    """The outermost dicts in the state of a transformation that stand for States of parameters."""

    def stands(value: Any) -> bool:
        return isinstance(value, dict) and (_holds_by_path(value) or _has_keys_of(value, params))

    leaves = jax.tree.leaves(tree, is_leaf=lambda v: _is_variable(v) or stands(v))
    return [leaf for leaf in leaves if stands(leaf)]


def _holds_by_path(value: Any) -> bool:
    # States of transformations are named tuples; a dict around one (`optax.multi_transform` has such)
    # is not itself a State.
    if isinstance(value, dict):
        return any(map(_holds_by_path, value.values()))
    if isinstance(value, list) or type(value) is tuple:
        return any(map(_holds_by_path, value))
    return isinstance(value, OptVariable)


def _differences(
    levels: Any, like: Any, path: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], bool]]:
    """Paths that one of the two lacks; True for those that the state does not know."""
    for key, entry in like.items():
        below = (*path, key)
        if key not in levels:
            yield from ((found, True) for found in _paths(entry, below))
        elif isinstance(entry, State) and isinstance(levels[key], dict):
            yield from _differences(levels[key], entry, below)
    for key in levels:
        if key not in like:
            yield from ((found, False) for found in _paths(levels[key], (*path, key)))


def _paths(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, (State, dict)):
        for key, entry in value.items():
            yield from _paths(entry, (*path, key))
    else:
        yield path


def _what_became_of(path: tuple[Any, ...], model: Any, wrt: Filter) -> str:
    entry = state_of(model).flat_state().get(path)
    if entry is None:
        return "was removed"
    kind = f"a {entry.type.__name__}" if isinstance(entry, VariableState) else "an array"
    return f"is now {kind}, which wrt={getattr(wrt, '__name__', wrt)} does not select"


def _shapes(value: Any) -> list[tuple[int, ...]]:
    return [jnp.shape(_value(leaf)) for leaf in jax.tree.leaves(value, is_leaf=_is_variable)]


def _shapes_by_path(levels: Any, like: State) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """For each parameter: its path, and the shapes of the state kept for it and of itself."""
    for path, entry in like.flat_state().items():
        kept = levels
        for key in path:
            kept = kept[key] if isinstance(kept, (dict, State)) and key in kept else ()
        yield path, _shapes(_entry_value(kept)), _shapes(_entry_value(entry))


def _has_other_shapes(levels: Any, params: State) -> bool:
    return any(kept and kept != own for _, kept, own in _shapes_by_path(levels, params))


def _changed_shapes(
    kept: list[dict[Any, Any]], tx: Any, params: State
) -> dict[tuple[Any, ...], str]:
    """Parameters whose state would have another shape, were it made now.

    Shapes need not be those of the parameters: some transformations keep sums over rows and columns.
    """
    try:
        made = jax.eval_shape(tx.init, params)
    except Exception:
        # A transformation that needs values to begin with cannot be asked.
        return {}
    fresh = [v for v in jax.tree.leaves(made, is_leaf=_is_state) if _is_state(v)]
    if len(fresh) != len(kept):
        return {}
    problems: dict[tuple[Any, ...], str] = {}
    for levels, state in zip(kept, fresh, strict=True):
        wanted = {path: shapes for path, shapes, _ in _shapes_by_path(state, params)}
        for path, found, own in _shapes_by_path(levels, params):
            if found and wanted[path] and found != wanted[path]:
                shape, old = (", ".join(map(str, shapes)) for shapes in (own, found))
                problems.setdefault(
                    path, f"has shape {shape} by now, but state of shape {old} is kept for it"
                )
    return problems


def _map_entries(state: State, convert: Callable[[Any], Any]) -> dict[Any, Any]:
    return {
        key: _map_entries(entry, convert) if isinstance(entry, State) else convert(entry)
        for key, entry in state.items()
    }


def _merge_entries(levels: Mapping[Any, Any], params: State) -> State:
    """A State like `params`, with the values of the Variables in `levels`."""

    def below(levels: Mapping[Any, Any], like: State) -> dict[Any, Any]:
        return {
            key: below(levels[key], entry)
            if isinstance(entry, State)
            else _with_value(entry, jax.tree.map(_value, levels[key], is_leaf=_is_variable))
            for key, entry in like.items()
        }

    return State(below(levels, params))


def _value(value: Any) -> Any:
    return value.value if _is_variable(value) else value


def _with_value(entry: Any, value: Any) -> Any:
    return entry._replace_value(value) if isinstance(entry, VariableState) else value


def _like_params(grads: Any, params: State) -> State:
    """The gradients as a State of exactly the structure of `params`."""
    if isinstance(grads, Mapping) and not isinstance(grads, State):
        grads = State(grads)
    if not isinstance(grads, State):
        raise TypeError(
            f"grads must be a State, as treadle.grad gives it for a model, got {type(grads).__name__}"
        )
    wanted, found = params.flat_state(), grads.flat_state()
    missing = [path for path in wanted if path not in found]
    surplus = [path for path in found if path not in wanted]
    if missing or surplus:
        problems = [
            f"{format_path(path, 'grads')} {what}"
            for paths, what in ((missing, "is missing"), (surplus, "is not optimized"))
            for path in paths[:3]
        ]
        more = len(missing) + len(surplus) - len(problems)
        raise StateError(
            f"the gradients are not those of the optimized parameters: {', '.join(problems)}"
            f"{f', and {more} more' if more else ''}. Give the optimizer and the gradient the same "
            "`wrt`"
        )
    return State.from_flat_state(
        {path: _with_value(entry, _entry_value(found[path])) for path, entry in wanted.items()}
    )


def _entry_value(entry: Any) -> Any:
    return entry.value if isinstance(entry, VariableState) else entry


def _storing(old: Any, new: Any) -> Callable[[], None] | None:
    """What writes the new state into the Variables of the old one; None if they do not fit."""
    # Flattening a State ends in its values, so both sides are the same leaves in the same order.
    variables, old_tree = jax.tree.flatten(_map_states(old), is_leaf=_is_variable)
    values, new_tree = jax.tree.flatten(_map_states(new))
    if old_tree != new_tree:
        return None
    pairs = [(v, x) for v, x in zip(variables, values, strict=True) if _is_variable(v)]

    def store() -> None:
        for variable, value in pairs:
            variable.value = jnp.asarray(value)

    return store


def _map_states(tree: Any) -> Any:
    return jax.tree.map(
        lambda value: _map_entries(value, _entry_value) if isinstance(value, State) else value,
        tree,
        is_leaf=lambda value: _is_state(value) or _is_variable(value),
    )


publish(__all__, globals())

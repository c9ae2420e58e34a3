"""One training step with Adam, as each library's users write it."""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

import treadle
from models import TrainModel, Tree

HAND_FLAT = "jax.jit, flat"
HAND_NESTED = "jax.jit, nested dicts"
HAND_DONATED = "jax.jit, flat, donated"
HAND_TURNS = "jax.jit, flat, states in turn"
TREADLE = "treadle.jit"
TREADLE_DONATED = "treadle.jit, donate_state"
FLAX_GRAPH = "flax nnx.jit, graph updates"
FLAX_TREE = "flax nnx.jit, tree mode"
FLAX_CACHED = "flax nnx.cached_partial"
FLAX_PARTIAL = "flax nnx.jit_partial"
EQUINOX = "equinox filter_jit"

HAS_FLAX = importlib.util.find_spec("flax") is not None
HAS_EQUINOX = importlib.util.find_spec("equinox") is not None


@dataclass
class Case:
    """One peer at work on one model.

    Attributes:
        name: the peer.
        step: runs one step on state that it keeps; returns what to wait for.
        values: all arrays of the state, in an order that depends on the model only.
        lower: the `jax.stages.Lowered` of the step, where the peer can tell.
        profile: where the time of the step goes, for Treadle's.
    """

    name: str
    step: Callable[[], Any]
    values: Callable[[], list[Any]]
    lower: Callable[[], Any] | None = None
    profile: Callable[[], treadle.Profile] | None = None


def identity(array: Any) -> Any:
    return array


class View:
    """A nested dict seen through attributes. Only used while tracing."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree

    def __getattr__(self, name: str) -> Any:
        return view(self._tree[name])

    def __getitem__(self, name: str) -> Any:
        return view(self._tree[name])


def view(tree: Any) -> Any:
    if isinstance(tree, dict):
        return View(tree)
    if isinstance(tree, list):
        return [view(item) for item in tree]
    return tree


def as_arrays(tree: Tree) -> Tree:
    return jax.tree.map(jnp.asarray, tree)


# -- hand-written --------------------------------------------------------------------------------------


def hand_step(model: TrainModel, tx: Any) -> Callable[..., Any]:
    def step(state: Any, x: Any, y: Any) -> Any:
        params, opt_state, count = state
        loss, grads = jax.value_and_grad(lambda p: model.loss(view(p), identity, x, y))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, count + 1), loss

    return step


def hand_state(model: TrainModel, tx: Any) -> Any:
    params = as_arrays(model.params())
    return params, tx.init(params), jnp.array(0, jnp.uint32)


def hand_nested(model: TrainModel) -> Case:
    tx = optax.adam(1e-3)
    state = hand_state(model, tx)
    x, y = map(jnp.asarray, model.batch())
    step = jax.jit(hand_step(model, tx))

    def run() -> Any:
        nonlocal state
        state, loss = step(state, x, y)
        return loss

    return Case(
        HAND_NESTED, run, lambda: jax.tree.leaves(state[0]), lambda: step.lower(state, x, y)
    )


def hand_flat(model: TrainModel, *, donate: bool = False, states: int = 1) -> Case:
    """The state as a flat tuple; or several states, each step on the next of them."""
    tx = optax.adam(1e-3)
    start = hand_state(model, tx)
    leaves, treedef = jax.tree.flatten(start)
    held = [
        tuple(jnp.copy(leaf) if donate or turn else leaf for leaf in leaves)
        for turn in range(states)
    ]
    turns = itertools.cycle(range(states))
    n_params = len(jax.tree.leaves(start[0]))
    x, y = map(jnp.asarray, model.batch())
    nested = hand_step(model, tx)

    def step(leaves: Any, x: Any, y: Any) -> Any:
        state, loss = nested(jax.tree.unflatten(treedef, leaves), x, y)
        return tuple(jax.tree.leaves(state)), loss

    compiled = jax.jit(step, donate_argnums=0 if donate else None)

    def run() -> Any:
        turn = next(turns)
        held[turn], loss = compiled(held[turn], x, y)
        return loss

    return Case(
        HAND_DONATED if donate else HAND_FLAT if states == 1 else HAND_TURNS,
        run,
        lambda: list(held[0][:n_params]),
        lambda: compiled.lower(held[0], x, y),
    )


# -- treadle ----------------------------------------------------------------------------------------------


class TreadleModule(treadle.Module):
    """A module with the attributes of a nested dict."""

    def __init__(self, tree: Tree, leaf: Callable[[Any], Any] = treadle.Param) -> None:
        for name, value in tree.items():
            setattr(self, name, self._child(value, leaf))

    @classmethod
    def _child(cls, value: Any, leaf: Callable[[Any], Any]) -> Any:
        if isinstance(value, dict):
            return cls(value, leaf)
        if isinstance(value, list):
            return [cls._child(item, leaf) for item in value]
        return leaf(value)


def treadle_get(variable: Any) -> Any:
    return variable.value


def treadle_train_step(model: TrainModel) -> Callable[..., Any]:
    def step(module: Any, optimizer: Any, x: Any, y: Any) -> Any:
        loss, grads = treadle.value_and_grad(lambda m: model.loss(m, treadle_get, x, y))(module)
        optimizer.update(module, grads)
        return loss

    return step


def treadle_state(model: TrainModel) -> tuple[Any, Any]:
    module = TreadleModule(as_arrays(model.params()))
    return module, treadle.Optimizer(module, optax.adam(1e-3), wrt=treadle.Param)


def treadle_jit(model: TrainModel, *, donate: bool = False) -> Case:
    module, optimizer = treadle_state(model)
    x, y = map(jnp.asarray, model.batch())
    step = treadle.jit(treadle_train_step(model), donate_state=donate)

    return Case(
        TREADLE_DONATED if donate else TREADLE,
        lambda: step(module, optimizer, x, y),
        lambda: jax.tree.leaves(treadle.state(module)),
        lambda: step.lower(module, optimizer, x, y),
        lambda: treadle.profile(step, module, optimizer, x, y),
    )


# -- flax ----------------------------------------------------------------------------------------------


@cache
def flax_module() -> Any:
    from flax import nnx

    class FlaxModule(nnx.Module):
        def __init__(self, tree: Tree, leaf: Callable[[Any], Any] = nnx.Param) -> None:
            for name, value in tree.items():
                setattr(self, name, self._child(value, leaf))

        @classmethod
        def _child(cls, value: Any, leaf: Callable[[Any], Any]) -> Any:
            if isinstance(value, dict):
                return cls(value, leaf)
            if isinstance(value, list):
                return nnx.List([cls._child(item, leaf) for item in value])
            return leaf(value)

    return FlaxModule


# The releases of flax for older versions of jax have neither `get_value` nor `set_value`, newer ones warn of `value`.
def flax_get(variable: Any) -> Any:
    return variable.get_value() if hasattr(variable, "get_value") else variable.value


def flax_set(variable: Any, value: Any) -> None:
    if hasattr(variable, "set_value"):
        variable.set_value(value)
    else:
        variable.value = value


def flax_train_step(model: TrainModel) -> Callable[..., Any]:
    from flax import nnx

    def step(module: Any, optimizer: Any, x: Any, y: Any) -> Any:
        loss, grads = nnx.value_and_grad(lambda m: model.loss(m, flax_get, x, y))(module)
        optimizer.update(module, grads)
        return loss

    return step


def flax_modes() -> dict[str, dict[str, Any]]:
    """Each way to jit that the installed flax has, and the settings of the mode it is meant for."""
    import inspect

    from flax import nnx

    parameters = inspect.signature(nnx.jit).parameters
    if "graph" not in parameters:
        modes = {FLAX_GRAPH: {}}
        if hasattr(nnx, "cached_partial"):
            modes[FLAX_CACHED] = {}
        return modes
    graph = {"graph": True, "graph_updates": True}
    modes = {FLAX_GRAPH: graph, FLAX_TREE: {"graph": False}}
    if hasattr(nnx, "cached_partial"):
        modes[FLAX_CACHED] = graph
    if hasattr(nnx, "jit_partial"):
        modes[FLAX_PARTIAL] = {"graph": False}
    return modes


class flax_mode:  # noqa: N801
    """Context in which flax traces and runs in one of its modes, also in nested transforms."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.entered: list[Any] = []

    def __enter__(self) -> None:
        from flax import nnx

        for name, value in self.settings.items():
            switch = getattr(nnx, f"set_{name}" if name == "graph_updates" else "set_graph_mode")
            context = switch(value)
            context.__enter__()
            self.entered.append(context)

    def __exit__(self, *error: Any) -> None:
        while self.entered:
            self.entered.pop().__exit__(*error)


def flax_jit(model: TrainModel, mode: str) -> Case:
    from flax import nnx

    settings = flax_modes()[mode]
    module = flax_module()(as_arrays(model.params()))
    optimizer = nnx.Optimizer(module, optax.adam(1e-3), wrt=nnx.Param)
    x, y = map(jnp.asarray, model.batch())
    function = flax_train_step(model)
    if mode == FLAX_PARTIAL:
        step = nnx.jit_partial(function, module, optimizer, **settings)
        bound: tuple[Any, ...] = ()
    else:
        step = nnx.jit(function, **settings)
        bound = (module, optimizer)
        if mode == FLAX_CACHED:
            with flax_mode(settings):
                step, bound = nnx.cached_partial(step, module, optimizer), ()
    # Nested transforms read the mode when they are traced, which is in the first call.
    with flax_mode(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(*bound, x, y)
    lower = (lambda: step.lower(*bound, x, y)) if hasattr(step, "lower") else None

    def in_mode(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with flax_mode(settings):
                return call()

        return run

    return Case(
        mode,
        lambda: step(*bound, x, y),
        lambda: jax.tree.leaves(nnx.state(module, nnx.Param)),
        in_mode(lower) if lower else None,
    )


# -- equinox -------------------------------------------------------------------------------------------


@cache
def _equinox_class(names: tuple[str, ...]) -> Any:
    import equinox

    return type("Block", (equinox.Module,), {"__annotations__": dict.fromkeys(names, Any)})


def equinox_module(tree: Any) -> Any:
    if isinstance(tree, dict):
        children = {name: equinox_module(value) for name, value in sorted(tree.items())}
        return _equinox_class(tuple(children))(**children)
    if isinstance(tree, list):
        return [equinox_module(item) for item in tree]
    return tree


def equinox_jit(model: TrainModel) -> Case:
    import equinox

    tx = optax.adam(1e-3)
    module = equinox_module(as_arrays(model.params()))
    opt_state = tx.init(equinox.filter(module, equinox.is_array))
    count = jnp.array(0, jnp.uint32)
    x, y = map(jnp.asarray, model.batch())

    def step(module: Any, opt_state: Any, count: Any, x: Any, y: Any) -> Any:
        loss, grads = equinox.filter_value_and_grad(lambda m: model.loss(m, identity, x, y))(module)
        updates, opt_state = tx.update(grads, opt_state, module)
        return equinox.apply_updates(module, updates), opt_state, count + 1, loss

    compiled = equinox.filter_jit(step)

    def run() -> Any:
        nonlocal module, opt_state, count
        module, opt_state, count, loss = compiled(module, opt_state, count, x, y)
        return loss

    return Case(
        EQUINOX,
        run,
        lambda: jax.tree.leaves(module),
        lambda: compiled.lower(module, opt_state, count, x, y),
    )


# -- all -----------------------------------------------------------------------------------------------


def makers(names: Iterable[str] | None = None) -> dict[str, Callable[[TrainModel], Case]]:
    """Every peer that is installed, by name."""
    known: dict[str, Callable[[TrainModel], Case]] = {
        HAND_FLAT: hand_flat,
        HAND_NESTED: hand_nested,
        TREADLE: treadle_jit,
        HAND_DONATED: lambda model: hand_flat(model, donate=True),
        TREADLE_DONATED: lambda model: treadle_jit(model, donate=True),
    }
    if HAS_FLAX:
        for mode in flax_modes():
            known[mode] = lambda model, mode=mode: flax_jit(model, mode)
    if HAS_EQUINOX:
        known[EQUINOX] = equinox_jit
    return known if names is None else {name: known[name] for name in names if name in known}

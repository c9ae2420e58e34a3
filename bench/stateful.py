"""Models whose call changes some of their state, and the peers that run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import treadle
from peers import (
    EQUINOX,
    FLAX_CACHED,
    FLAX_GRAPH,
    FLAX_PARTIAL,
    FLAX_TREE,
    HAND_FLAT,
    HAND_NESTED,
    HAS_EQUINOX,
    HAS_FLAX,
    TREADLE,
    Case,
    View,
    equinox_module,
    flax_get,
    flax_mode,
    flax_modes,
    flax_set,
    treadle_get,
    view,
)


@dataclass(frozen=True)
class Access:
    """How a peer's leaves are read and written, and random streams drawn from."""

    get: Callable[[Any], Any]
    put: Callable[[Any, Any], None]
    draw: Callable[[Any], Any]


@dataclass(frozen=True)
class Stream:
    """In a tree: a stream of random keys."""

    seed: int


@dataclass(frozen=True)
class StatefulModel:
    """A function over some trees of arrays, a few of which it changes.

    Attributes:
        trees: makes them; a `Stream` stands for a stream of random keys.
        function: called with an `Access`, the trees as a peer's objects, and an input.
        data: the input.
        donated: positions of the trees whose buffers the call may reuse; all their leaves change.
        containers: lists and dicts stay such, instead of becoming modules.
        pure: nothing changes, so that peers without mutable state can take part.
    """

    name: str
    trees: Callable[[], tuple[Any, ...]]
    function: Callable[..., Any]
    data: Callable[[], np.ndarray]
    donated: tuple[int, ...] = ()
    containers: bool = False
    pure: bool = False


def count_leaves(model: StatefulModel) -> int:
    leaves = jax.tree.leaves(model.trees(), is_leaf=lambda x: isinstance(x, Stream))
    return sum(2 if isinstance(leaf, Stream) else 1 for leaf in leaves)


# -- the models ----------------------------------------------------------------------------------------


def _random(seed: int, *shape: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.3).astype(np.float32)


def agent(modules: int) -> StatefulModel:
    """Actors and slowly following targets: many small modules, half of whose leaves change."""

    def trees() -> tuple[Any, ...]:
        def heads(seed: int) -> list[Any]:
            return [
                {"kernel": _random(seed + i, 4, 4), "bias": _random(seed - i - 1, 4)}
                for i in range(modules)
            ]

        return ({"actors": heads(1000), "targets": heads(5000)},)

    def function(access: Access, agent: Any, x: Any) -> Any:
        total = jnp.zeros(())
        for actor, target in zip(agent.actors, agent.targets, strict=True):
            kernel, bias = access.get(actor.kernel), access.get(actor.bias)
            total = total + jnp.tanh(x @ kernel + bias).sum()
            access.put(target.kernel, 0.99 * access.get(target.kernel) + 0.01 * kernel)
            access.put(target.bias, 0.99 * access.get(target.bias) + 0.01 * bias)
        return total

    return StatefulModel(
        f"RL agent of {2 * modules} small modules", trees, function, lambda: _random(3, 2, 4)
    )


def deep_containers(depth: int) -> StatefulModel:
    """A binary tree of dicts and lists with parameters at its leaves; read only."""

    def build(level: int) -> Any:
        if level == 0:
            return np.ones((), np.float32)
        children = [build(level - 1), build(level - 1)]
        return children if level % 2 else {"left": children[0], "right": children[1]}

    def total(access: Access, node: Any, level: int) -> Any:
        if level == 0:
            return access.get(node)
        keys = (0, 1) if level % 2 else ("left", "right")
        return sum(total(access, node[key], level - 1) for key in keys)

    def function(access: Access, model: Any, x: Any) -> Any:
        return x * total(access, model.tree, depth)

    return StatefulModel(
        f"containers nested {depth} deep",
        lambda: ({"tree": build(depth)},),
        function,
        lambda: _random(4, 2),
        containers=True,
        pure=True,
    )


def dropouts(depth: int, width: int = 4) -> StatefulModel:
    """A dropout with a stream of its own in each block."""

    def trees() -> tuple[Any, ...]:
        return (
            {
                "blocks": [
                    {"kernel": _random(i, width, width), "rngs": Stream(i)} for i in range(depth)
                ]
            },
        )

    def function(access: Access, model: Any, x: Any) -> Any:
        for block in model.blocks:
            mask = jax.random.bernoulli(access.draw(block.rngs), 0.9, x.shape)
            x = jnp.tanh(jnp.where(mask, x, 0) @ access.get(block.kernel))
        return x

    return StatefulModel(
        f"{depth} dropouts, each with its own stream", trees, function, lambda: _random(5, 2, width)
    )


def counters(leaves: int) -> StatefulModel:
    """Each leaf changes, with as little computation as can be."""

    def trees() -> tuple[Any, ...]:
        return ({"cells": [np.full((2,), i, np.float32) for i in range(leaves)]},)

    def function(access: Access, model: Any, x: Any) -> Any:
        for cell in model.cells:
            access.put(cell, -access.get(cell))
        return x + 1

    return StatefulModel(f"{leaves} leaves, all changed", trees, function, lambda: _random(6, 2))


def decoder(layers: int, width: int = 16, length: int = 32) -> StatefulModel:
    """One token through a transformer, with a donated cache of keys and values."""

    def trees() -> tuple[Any, ...]:
        def layer(i: int) -> Any:
            kernels = {name: _random(10 * i + j, width, width) for j, name in enumerate("qkvo")}
            return {
                **kernels,
                "up": _random(i, width, width),
                "down": _random(-i - 1 + 10**6, width, width),
            }

        cache = {
            "index": np.zeros((), np.int32),
            "layers": [
                {
                    "k": np.zeros((length, width), np.float32),
                    "v": np.zeros((length, width), np.float32),
                }
                for _ in range(layers)
            ],
        }
        return {"layers": [layer(i) for i in range(layers)]}, cache

    def function(access: Access, model: Any, cache: Any, x: Any) -> Any:
        get = access.get
        index = get(cache.index)
        for layer, kept in zip(model.layers, cache.layers, strict=True):
            place = (index % length, 0)
            keys = jax.lax.dynamic_update_slice(get(kept.k), (x @ get(layer.k))[None], place)
            values = jax.lax.dynamic_update_slice(get(kept.v), (x @ get(layer.v))[None], place)
            access.put(kept.k, keys)
            access.put(kept.v, values)
            weights = jax.nn.softmax(keys @ (x @ get(layer.q)))
            hidden = (weights @ values) @ get(layer.o)
            x = jnp.tanh(hidden @ get(layer.up)) @ get(layer.down)
        access.put(cache.index, index + 1)
        return x

    return StatefulModel(
        f"decoding with {layers} layers and a donated cache",
        trees,
        function,
        lambda: _random(7, width),
        donated=(1,),
    )


# -- hand-written --------------------------------------------------------------------------------------


class Cell:
    """Where hand-written code puts a new value while it is traced."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _draw_cells(stream: View) -> Any:
    key = jax.random.fold_in(stream.key.value, stream.count.value)
    stream.count.value = stream.count.value + 1
    return key


HAND_ACCESS = Access(lambda c: c.value, lambda c, v: setattr(c, "value", v), _draw_cells)


def _own_stream(stream: Stream) -> Any:
    return {"key": jax.random.key(stream.seed), "count": jnp.zeros((), jnp.uint32)}


def _arrays(tree: Any) -> Any:
    def convert(leaf: Any) -> Any:
        # A copy: jnp.asarray may alias the numpy buffer, which cannot be donated.
        return _own_stream(leaf) if isinstance(leaf, Stream) else jnp.array(leaf)

    return jax.tree.map(convert, tree, is_leaf=lambda x: isinstance(x, Stream))


def hand(model: StatefulModel, *, nested: bool) -> Case:
    """Over the leaves or over the trees; returns the changed leaves only, as the others do."""
    trees = [_arrays(tree) for tree in model.trees()]
    flat = [jax.tree.flatten(tree) for tree in trees]
    leaves = [tuple(part) for part, _ in flat]
    x = jnp.asarray(model.data())
    changed: list[list[int]] = []

    def step(*args: Any) -> Any:
        *given, x = args
        parts = [jax.tree.leaves(part) for part in given]
        cells = [[Cell(leaf) for leaf in part] for part in parts]
        objects = [
            view(jax.tree.unflatten(treedef, part))
            for (_, treedef), part in zip(flat, cells, strict=True)
        ]
        result = model.function(HAND_ACCESS, *objects, x)
        changed[:] = [
            [i for i, cell in enumerate(part) if cell.value is not before[i]]
            for part, before in zip(cells, parts, strict=True)
        ]
        new = [
            tuple(part[i].value for i in where) for part, where in zip(cells, changed, strict=True)
        ]
        return new, result

    compiled = jax.jit(step, donate_argnums=model.donated)

    def run() -> Any:
        given = leaves if not nested else trees
        new, result = compiled(*given, x)
        for i, (where, values) in enumerate(zip(changed, new, strict=True)):
            if not where:
                continue
            if len(where) == len(leaves[i]):
                leaves[i] = values
            else:
                part = list(leaves[i])
                for at, value in zip(where, values, strict=True):
                    part[at] = value
                leaves[i] = tuple(part)
            if nested:
                trees[i] = jax.tree.unflatten(flat[i][1], leaves[i])
        return result

    return Case(
        HAND_NESTED if nested else HAND_FLAT,
        run,
        lambda: [leaf for part in leaves for leaf in part],
        lambda: compiled.lower(*(trees if nested else leaves), x),
    )


# -- treadle ----------------------------------------------------------------------------------------------

TREADLE_ACCESS = Access(
    treadle_get, lambda v, value: setattr(v, "value", value), lambda r: r.dropout()
)


class TreadleTree(treadle.Module):
    """A module with the attributes of a dict; below it modules, or plain containers."""

    def __init__(self, tree: dict[str, Any], containers: bool) -> None:
        for name, value in tree.items():
            setattr(self, name, _treadle_child(value, containers))


def _treadle_child(value: Any, containers: bool) -> Any:
    if isinstance(value, Stream):
        return treadle.Rngs(dropout=value.seed)
    if isinstance(value, list):
        return [_treadle_child(item, containers) for item in value]
    if not isinstance(value, dict):
        return treadle.Variable(jnp.array(value))
    if containers:
        return {name: _treadle_child(item, containers) for name, item in value.items()}
    return TreadleTree(value, containers)


def treadle_objects(model: StatefulModel) -> list[Any]:
    return [TreadleTree(tree, model.containers) for tree in model.trees()]


def treadle_case(model: StatefulModel) -> Case:
    objects = treadle_objects(model)
    x = jnp.asarray(model.data())
    step = treadle.jit(
        lambda *args: model.function(TREADLE_ACCESS, *args), donate_argnums=model.donated or None
    )
    return Case(
        TREADLE,
        lambda: step(*objects, x),
        lambda: jax.tree.leaves([treadle.state(node) for node in objects]),
        lambda: step.lower(*objects, x),
        lambda: treadle.profile(step, *objects, x),
    )


# -- flax ----------------------------------------------------------------------------------------------


def _flax_child(value: Any, containers: bool) -> Any:
    from flax import nnx

    if isinstance(value, Stream):
        return nnx.Rngs(dropout=value.seed)
    if isinstance(value, list):
        return nnx.List([_flax_child(item, containers) for item in value])
    if not isinstance(value, dict):
        return nnx.Variable(jnp.array(value))
    node = nnx.Dict() if containers else nnx.Module()
    for name, item in value.items():
        setattr(node, name, _flax_child(item, containers))
    return node


def flax_case(model: StatefulModel, mode: str) -> Case:
    from flax import nnx

    settings = flax_modes()[mode]
    objects = []
    for tree in model.trees():
        root = nnx.Module()
        for name, value in tree.items():
            setattr(root, name, _flax_child(value, model.containers))
        objects.append(root)
    x = jnp.asarray(model.data())
    access = Access(flax_get, flax_set, lambda rngs: rngs.dropout())

    def function(*args: Any) -> Any:
        return model.function(access, *args)

    donate = model.donated or None
    bound = objects
    if mode == FLAX_PARTIAL:
        step = nnx.jit_partial(function, *objects, donate_argnums=donate, **settings)
        bound = []
    else:
        step = nnx.jit(function, donate_argnums=donate, **settings)
        if mode == FLAX_CACHED:
            with flax_mode(settings):
                step, bound = nnx.cached_partial(step, *objects), []
    with flax_mode(settings):
        step(*bound, x)
    return Case(
        mode,
        lambda: step(*bound, x),
        lambda: jax.tree.leaves([nnx.state(node) for node in objects]),
    )


# -- equinox -------------------------------------------------------------------------------------------


def equinox_case(model: StatefulModel) -> Case:
    import equinox

    objects = [equinox_module(_arrays(tree)) for tree in model.trees()]
    if model.containers:
        tree = _arrays(model.trees()[0])
        objects = [type(equinox_module({"tree": 0}))(tree=tree["tree"])]
    x = jnp.asarray(model.data())
    access = Access(lambda leaf: leaf, HAND_ACCESS.put, HAND_ACCESS.draw)
    step = equinox.filter_jit(lambda *args: model.function(access, *args))
    return Case(EQUINOX, lambda: step(*objects, x), lambda: jax.tree.leaves(objects))


def makers() -> dict[str, Callable[[StatefulModel], Case]]:
    """Every peer that is installed, by name."""
    known: dict[str, Callable[[StatefulModel], Case]] = {
        HAND_FLAT: lambda model: hand(model, nested=False),
        HAND_NESTED: lambda model: hand(model, nested=True),
        TREADLE: treadle_case,
    }
    if HAS_FLAX:
        for mode in flax_modes():
            known[mode] = lambda model, mode=mode: flax_case(model, mode)
    if HAS_EQUINOX:
        known[EQUINOX] = equinox_case
    return known


__all__ = ["FLAX_GRAPH", "FLAX_TREE", "Access", "StatefulModel", "makers"]

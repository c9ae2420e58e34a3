"""`constrain_state`: the sharding of state on the way into a jitted function and out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from treadle import _core
from treadle._core import VariableState
from treadle._graph.state import State
from treadle._sharding import partitions as spmd
from treadle.errors import format_path
from treadle.transforms._trees import tree_flatten
from treadle.transforms._warnings import warn


class Constraints:
    """Constrains the leaves of the nodes of a call.

    Args:
        change: a function from a State to a constrained one; True for what metadata say.
    """

    def __init__(self, change: bool | Callable[[State], State]) -> None:
        self._change = change if callable(change) else self._by_metadata
        self._said = False

    def enter(self, graphdef: _core.GraphDef, values: Sequence[Any]) -> list[Any]:
        """The leaves `values` of a call, constrained."""
        refs = _core.unflatten(graphdef, values)[1]
        flat = _walk(graphdef, refs)
        if not flat.leaves:
            return list(values)
        # One array may be the value of several Variables.
        by_owner = {
            id(refs[ref]): leaf for leaf, ref in enumerate(graphdef.leaf_refs()) if ref >= 0
        }
        bare = {id(value): leaf for leaf, value in enumerate(values)}
        owners = flat.graphdef.leaf_refs()
        out = list(values)
        for leaf, constrained in self._constrained(flat).items():
            ref = owners[leaf]
            place = by_owner[id(flat.refs[ref])] if ref >= 0 else bare[id(flat.leaves[leaf])]
            out[place] = constrained
        return out

    def leave(
        self, graphdef: _core.GraphDef, refs: Sequence[Any], values: Sequence[Any], result: Any
    ) -> None:
        """Constrain what changed in the arguments, and each node of the result that is new.

        Args:
            graphdef: structure of the call.
            refs: its objects, rebuilt over `values`, after the function ran on them.
            values: its leaves.
            result: what the function returned.
        """
        done = [*values]
        known = {id(value) for value in done}
        results = [leaf for leaf in tree_flatten(result)[0] if _core.is_node(leaf)]
        for flat in (_walk(graphdef, refs), *map(_core.flatten, results)):
            changed = [leaf for leaf, value in enumerate(flat.leaves) if id(value) not in known]
            if not changed:
                continue
            constrained = self._constrained(flat)
            changed = [leaf for leaf in changed if leaf in constrained]
            _core.set_leaves(flat, changed, [constrained[leaf] for leaf in changed])
            # Held, so that no other value gets the address of one of them.
            done += [*flat.leaves, *constrained.values()]
            known = {id(value) for value in done}

    def _constrained(self, flat: _core.Flat) -> dict[int, Any]:
        """Leaf values with their sharding constraints, by leaf of `flat`."""
        wanted = self._change(State._from_leaves(flat.graphdef, None, flat.leaves))
        if not isinstance(wanted, State):
            raise TypeError(
                f"jit: the constrain_state function returned {wanted!r} instead of a State. "
                "Return the State that it is given, with constrained values."
            )
        index = flat.graphdef.path_index()
        return {
            index[path]: getattr(entry, "value", entry)
            for path, entry in wanted.flat_state().items()
        }

    def _by_metadata(self, state: State) -> State:
        """Constrain each Variable by its ``sharding`` metadata."""
        constrained = jax.tree.map(
            _constrain,
            state,
            spmd.get_partition_spec(state),
            is_leaf=lambda leaf: isinstance(leaf, VariableState),
        )
        if not self._said and not spmd.has_context_mesh():
            self._say_without_mesh(state)
        return constrained

    def _say_without_mesh(self, state: State) -> None:
        entries = state.flat_state().items()
        found = [(path, e.get_metadata()) for path, e in entries if isinstance(e, VariableState)]
        if any(metadata.get("mesh") is not None for _, metadata in found):
            return
        self._said = True
        named = [path for path, metadata in found if metadata.get("sharding") is not None]
        which = f", such as that of {format_path(named[0], 'state')}," if named else ""
        warn(
            f"jit: constrain_state=True constrained nothing: there is no mesh. Names of mesh axes{which} "
            'need one: call within jax.set_mesh(mesh), or give Variables mesh=... beside "sharding".',
            UserWarning,
        )


def _walk(graphdef: _core.GraphDef, refs: Sequence[Any]) -> _core.Flat:
    """The node among the arguments, or all of them by position."""
    roots = dict.fromkeys(index for is_ref, index in graphdef.root_items() if is_ref)
    nodes = [refs[index] for index in roots]
    return _core.flatten(nodes[0] if len(nodes) == 1 else nodes)


def _constrain(entry: Any, specs: Any) -> Any:
    mesh = entry.get_metadata().get("mesh") if isinstance(entry, VariableState) else None
    return jax.tree.map(
        lambda spec, value: spmd.with_sharding_constraint(value, spec, mesh),
        specs,
        entry,
        is_leaf=lambda leaf: leaf is None or isinstance(leaf, jax.sharding.PartitionSpec),
    )

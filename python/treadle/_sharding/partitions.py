"""Sharding: how Variables say over which mesh axes their values are spread.

A Variable's ``sharding`` metadata has one entry for each axis of its value: the name of a mesh
axis, a tuple of names, or None. ``sharding_rules`` (pairs of a logical and a mesh axis name), from
the metadata or from `logical_axis_rules`, translate names; ``mesh`` is the mesh to use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from treadle import _core
from treadle._core import VariableState
from treadle._graph.splitting import flatten
from treadle._graph.splitting import state as state_of
from treadle._graph.state import State
from treadle._objects import variables
from treadle._objects.adapters import description_of
from treadle._objects.axis_names import PARTITION_NAME
from treadle._objects.descriptions import VariableLayout
from treadle._objects.variable_state import state_of_variable
from treadle._objects.variables import Variable, as_hooks, with_metadata
from treadle._public import publish
from treadle._sharding.rules import AxisName, Rules, rules_in_force, setting

__all__ = [
    "PARTITION_NAME",
    "add_axis",
    "get_named_sharding",
    "get_partition_spec",
    "logical_axis_rules",
    "remove_axis",
    "with_partitioning",
    "with_sharding_constraint",
]

F = TypeVar("F", bound=Callable[..., Any])
Sharding: TypeAlias = tuple[AxisName, ...]


def _each_variable(tree: Any, change: Callable[[Any], None]) -> Any:
    if isinstance(tree, State):
        changed = {}
        for path, entry in tree.flat_state().items():
            if isinstance(entry, VariableState):
                variable = entry.to_variable()
                change(variable)
                entry = state_of_variable(variable)
            changed[path] = entry
        return State.from_flat_state(changed)
    for obj in flatten(tree)[2]:
        if _core.is_variable(obj):
            change(obj)
    return tree


def add_axis(tree: Any, index: int, params: str | Mapping[str, Any]) -> Any:
    """Call `Variable.add_axis` for all Variables, after something stacked their values.

    Args:
        tree: a State (a new one is returned) or objects (changed in place).
        index: where the new axis is.
        params: its mesh axis name, or ``transform_metadata`` with `PARTITION_NAME`.

    Returns:
        The State, or `tree` itself.

    >>> import treadle as nnx
    >>> state = nnx.State({"w": nnx.VariableState(nnx.Param, 1.0, sharding=("model",))})
    >>> nnx.spmd.add_axis(state, 0, {nnx.PARTITION_NAME: "layers"}).w.sharding
    ('layers', 'model')
    """
    return _each_variable(tree, lambda variable: variables.add_axis(variable, index, params))


def remove_axis(tree: Any, index: int, params: str | Mapping[str, Any]) -> Any:
    """Call `Variable.remove_axis` for all Variables: undoes `add_axis` with equal arguments.

    Raises:
        ValueError: some sharding has another name at `index`.

    >>> import treadle as nnx
    >>> state = nnx.State({"w": nnx.VariableState(nnx.Param, 1.0, sharding=("layers", "model"))})
    >>> nnx.spmd.remove_axis(state, 0, "layers").w.sharding
    ('model',)
    """
    return _each_variable(tree, lambda variable: variables.remove_axis(variable, index, params))


# -- partition specs ---------------------------------------------------------------------------


@contextlib.contextmanager
def logical_axis_rules(rules: Rules) -> Iterator[None]:
    """Within the block, translate axis names of shardings by `rules`.

    A function that is compiled is traced again under other rules, and not under equal ones.

    Args:
        rules: pairs of a name used in ``sharding`` metadata and the mesh axis (or None) it stands
            for. A Variable's own ``sharding_rules`` come first.

    >>> import treadle as nnx
    >>> state = nnx.State({"w": nnx.VariableState(nnx.Param, 1.0, sharding=("embed", None))})
    >>> with nnx.logical_axis_rules([("embed", "data")]):
    ...     tuple(nnx.get_partition_spec(state).w.value)
    ('data', None)
    """
    own = ((name, tuple(axis) if isinstance(axis, list) else axis) for name, axis in rules)
    with setting((*own, *rules_in_force())):
        yield


def _spec_of(sharding: Any, rules: Rules | None) -> PartitionSpec:
    if isinstance(sharding, PartitionSpec):
        sharding = tuple(sharding)
    # The first rule for a name counts.
    table = dict(reversed((*(rules or ()), *rules_in_force())))

    def translate(name: AxisName) -> Any:
        if isinstance(name, tuple):
            return tuple(table.get(part, part) for part in name)
        return table.get(name, name) if name is not None else None

    return PartitionSpec(*map(translate, sharding))


def _entry_spec(
    value: Any, metadata: Mapping[str, Any], kind: type[Any] = Variable
) -> PartitionSpec | None:
    layout = description_of(kind)
    sharding = metadata.get(layout.sharding if isinstance(layout, VariableLayout) else "sharding")
    if sharding is not None:
        return _spec_of(sharding, metadata.get("sharding_rules"))
    return PartitionSpec() if hasattr(value, "shape") else None


def get_partition_spec(tree: Any) -> State:
    """Partition specs of all leaves, from the ``sharding`` metadata.

    Args:
        tree: a State, or objects (whose state is taken).

    Returns:
        A State of the same structure with a ``jax.sharding.PartitionSpec`` for each value. An array
        without sharding metadata gets the empty spec (replicated), any other value None.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> model = nnx.Dict(w=nnx.Param(jnp.ones((2, 3)), sharding=("data", None)))
    >>> tuple(nnx.get_partition_spec(model).w.value)
    ('data', None)
    """
    entries = (tree if isinstance(tree, State) else state_of(tree)).flat_state()
    return State.from_flat_state(
        {
            path: entry._replace_value(_entry_spec(entry.value, entry._metadata, entry.type))
            if isinstance(entry, VariableState)
            else _entry_spec(entry, {})
            for path, entry in entries.items()
        }
    )


def get_named_sharding(tree: Any, mesh: Mesh) -> State:
    """As `get_partition_spec`, with a ``jax.sharding.NamedSharding`` over `mesh` for each spec.

    >>> import jax, jax.numpy as jnp
    >>> import treadle as nnx
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> model = nnx.Dict(w=nnx.Param(jnp.ones((2, 3)), sharding=("data", None)))
    >>> tuple(nnx.get_named_sharding(model, mesh).w.value.spec)
    ('data', None)
    """
    specs = get_partition_spec(tree)
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


# -- constraints -------------------------------------------------------------------------------


def has_context_mesh() -> bool:
    """Whether a mesh was set by ``jax.set_mesh`` or ``with mesh:``."""
    return not jax.sharding.get_abstract_mesh().empty or _context_mesh() is not None


def _context_mesh() -> Mesh | None:
    """The mesh in context with its devices; None if there is none, or an abstract one."""
    from jax._src.mesh import get_concrete_mesh, thread_resources

    for mesh in (get_concrete_mesh(), thread_resources.env.physical_mesh):
        if isinstance(mesh, Mesh) and not mesh.empty:
            return mesh
    return None


def with_sharding_constraint(
    x: jax.Array,
    sharding: Sequence[AxisName] | PartitionSpec | None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
) -> jax.Array:
    """Ask the compiler to spread `x` as `sharding` says; its value is unchanged.

    Args:
        x: an array.
        sharding: one mesh axis name, tuple of names or None for each axis of `x`; None: do nothing.
        mesh: the mesh. Without it the mesh in context counts, and without that nothing is done.
        rules: axis rules that come before those of `logical_axis_rules`.

    Returns:
        `x`, constrained.

    Raises:
        ValueError: from jax, if names and mesh or shape do not fit.

    >>> import jax, jax.numpy as jnp
    >>> import treadle as nnx
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> y = nnx.with_sharding_constraint(jnp.ones((2, 3)), ("data", None), mesh)
    >>> tuple(y.sharding.spec)
    ('data', None)
    """
    if sharding is None or (mesh is None and not has_context_mesh()):
        return x
    if mesh is None and not isinstance(x, Tracer):
        # An array that is not on a mesh yet can be put on one with devices only.
        mesh = _context_mesh()
    spec = _spec_of(sharding, rules)
    target = spec if mesh is None else NamedSharding(mesh, spec)
    kinds = (mesh or jax.sharding.get_abstract_mesh()).axis_types
    if any(kind == jax.sharding.AxisType.Explicit for kind in kinds):
        return jax.sharding.reshard(x, target)
    return jax.lax.with_sharding_constraint(x, target)


def _constrain(variable: Variable[Any], value: Any) -> Any:
    """Hook that constrains a Variable's value as its metadata says, if it is an array."""
    if not isinstance(value, (jax.Array, np.ndarray)):
        return value
    metadata, array = variable._metadata, cast("jax.Array", value)
    return with_sharding_constraint(
        array, metadata.get("sharding"), metadata.get("mesh"), metadata.get("sharding_rules")
    )


def with_partitioning(
    initializer: F,
    sharding: Sequence[AxisName],
    mesh: Mesh | None = None,
    *,
    get_value_hooks: Any = (),
    create_value_hooks: Any = (),
    **metadata: Any,
) -> F:
    """Make an initializer whose Variables are partitioned.

    The value is constrained to its sharding when the Variable is made and whenever it is read, if
    there is a mesh, given here or in context.

    Args:
        initializer: any function that returns an array.
        sharding: one mesh axis name, tuple of names or None for each axis of the array.
        mesh: the mesh; the one in context by default.
        get_value_hooks: hooks that run before the constraint.
        create_value_hooks: hooks that run before the constraint.
        **metadata: more metadata for the Variable, ``sharding_rules`` for instance.

    Returns:
        A function with the arguments of `initializer` that returns a `VariableMetadata`.

    >>> import jax, jax.numpy as jnp
    >>> import treadle as nnx
    >>> init = nnx.with_partitioning(jax.nn.initializers.ones, ("data", None))
    >>> kernel = nnx.Param(init(jax.random.key(0), (2, 3), jnp.float32))
    >>> kernel.sharding
    ('data', None)
    """
    if mesh is not None:
        metadata["mesh"] = mesh
    return with_metadata(
        initializer,
        sharding=tuple(sharding),
        get_value_hooks=(*as_hooks(get_value_hooks), _constrain),
        create_value_hooks=(*as_hooks(create_value_hooks), _constrain),
        **metadata,
    )


publish(
    (
        "get_named_sharding",
        "get_partition_spec",
        "logical_axis_rules",
        "with_partitioning",
        "with_sharding_constraint",
    ),
    globals(),
)
publish(("add_axis", "remove_axis"), globals(), "treadle.spmd")

"""Sharding: how Variables say over which mesh axes their values are spread.

A Variable's ``sharding`` metadata has one entry for each axis of its value: the name of a mesh
axis, a tuple of names, or None. ``sharding_rules`` (pairs of a logical and a mesh axis name), from
the metadata or from `logical_axis_rules`, translate names; ``mesh`` is the mesh to use.
"""

from treadle._objects.axis_names import PARTITION_NAME
from treadle._sharding.partitions import (
    add_axis,
    get_named_sharding,
    get_partition_spec,
    logical_axis_rules,
    remove_axis,
    with_partitioning,
    with_sharding_constraint,
)

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

"""Names of axes in the sharding metadata of Variables, as transforms add and remove them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax.sharding import PartitionSpec

PARTITION_NAME = "partition_name"
"""Key of ``transform_metadata`` under which `vmap` and `scan` find the mapped axis' name."""


def partition_name(name: str | Mapping[str, Any] | None) -> str | None:
    """The axis name in ``transform_metadata``, or the name itself."""
    return name.get(PARTITION_NAME) if isinstance(name, Mapping) else name


def insert_axis_name(metadata: Mapping[str, Any], index: int, name: str | None) -> dict[str, Any]:
    """Metadata whose sharding has `name` inserted at `index` (of the new axes)."""
    sharding = metadata.get("sharding")
    if sharding is None or name is None:
        return dict(metadata)
    names = list(sharding)
    if index < 0:
        index += len(names) + 1
    # A sharding may leave out trailing axes.
    names += [None] * (index - len(names))
    names.insert(index, name)
    return {**metadata, "sharding": _with_names(sharding, names)}


def drop_axis_name(metadata: Mapping[str, Any], index: int, name: str | None) -> dict[str, Any]:
    """Metadata whose sharding has lost the axis at `index`, which must be called `name`.

    Raises:
        ValueError: the axis has another name.
    """
    sharding = metadata.get("sharding")
    if sharding is None or name is None:
        return dict(metadata)
    names = list(sharding)
    at = index + len(names) if index < 0 else index
    if not 0 <= at < len(names) or names[at] != name:
        raise ValueError(
            f"Expected axis {name!r} at index {index} of sharding {tuple(sharding)!r}. "
            f"Give the Variable a sharding that has it, or another {PARTITION_NAME!r}."
        )
    del names[at]
    return {**metadata, "sharding": _with_names(sharding, names)}


def _with_names(sharding: Any, names: list[Any]) -> Any:
    """A sharding with other axis names: a spec stays one, so that dropping undoes inserting."""
    if isinstance(sharding, PartitionSpec):
        return sharding.update(partitions=tuple(names))  # keeps what it says besides
    return tuple(names)

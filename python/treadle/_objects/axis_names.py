"""Names of axes in the sharding metadata of Variables, as transforms add and remove them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax.sharding import PartitionSpec

PARTITION_NAME = "partition_name"
"""Key of ``transform_metadata`` under which `vmap` and `scan` find the mapped axis' name."""


class _NoName:
    def __repr__(self) -> str:
        return "NO_NAME"


NO_NAME: Any = _NoName()
"""In the place of an axis name: none is given. An axis whose name is None has a place in shardings."""


def partition_name(name: Any) -> Any:
    """The axis name in ``transform_metadata``, or the name itself; `NO_NAME` if there is none."""
    return name.get(PARTITION_NAME, NO_NAME) if isinstance(name, Mapping) else name


def other_names(name: Any) -> dict[str, Any]:
    """The further entries of ``transform_metadata``: metadata with an entry per axis."""
    if not isinstance(name, Mapping):
        return {}
    return {key: value for key, value in name.items() if key != PARTITION_NAME}


def insert_axis_name(metadata: Mapping[str, Any], index: int, name: Any) -> dict[str, Any]:
    """Metadata whose sharding has an axis name inserted at `index` (of the new axes).

    Args:
        metadata: metadata of a Variable.
        index: where the new axis is.
        name: its name, or ``transform_metadata``, whose further entries go into the metadata of
            their names.
    """
    changed = dict(metadata)
    axis_name = partition_name(name)
    names = {} if axis_name is NO_NAME else {"sharding": axis_name}
    for key, entry in {**names, **other_names(name)}.items():
        if _has_entries(metadata.get(key), key):
            changed[key] = _inserted(metadata[key], index, entry)
    return changed


def drop_axis_name(metadata: Mapping[str, Any], index: int, name: Any) -> dict[str, Any]:
    """Metadata that has lost what `insert_axis_name` with equal arguments inserted.

    Raises:
        ValueError: the axis has another name.
    """
    changed = dict(metadata)
    axis_name = partition_name(name)
    names = {} if axis_name is NO_NAME else {"sharding": axis_name}
    for key, entry in {**names, **other_names(name)}.items():
        if _has_entries(metadata.get(key), key):
            changed[key] = _dropped(metadata[key], index, entry, key)
    return changed


def _has_entries(value: Any, key: str) -> bool:
    """Whether metadata has an entry per axis."""
    if key == "sharding":
        return value is not None
    return isinstance(value, tuple) and bool(value)


def _inserted(entries: Any, index: int, name: Any) -> Any:
    names = list(entries)
    if index < 0:
        index += len(names) + 1
    # Trailing axes may be left out.
    names += [None] * (index - len(names))
    names.insert(index, name)
    return _with_names(entries, names)


def _dropped(entries: Any, index: int, name: Any, key: str) -> Any:
    names = list(entries)
    at = index + len(names) if index < 0 else index
    if at >= len(names) and name is None:
        return entries  # an axis without a name at the end may be left out
    if not 0 <= at < len(names) or names[at] != name:
        raise ValueError(
            f"Expected axis {name!r} at index {index} of {key} {tuple(entries)!r}. "
            f"Give the Variable a {key} that has it, or another "
            f"{PARTITION_NAME if key == 'sharding' else key!r}."
        )
    del names[at]
    return _with_names(entries, names)


def _with_names(sharding: Any, names: list[Any]) -> Any:
    """A sharding with other axis names: a spec stays one, so that dropping undoes inserting."""
    if isinstance(sharding, PartitionSpec):
        return sharding.update(partitions=tuple(names))  # keeps what it says besides
    return tuple(names)

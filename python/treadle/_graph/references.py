"""Objects of a graph by number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from treadle._public import publish

__all__ = ["RefMap"]


class RefMap:
    """The nodes and Variables of a graph by reference id, and their ids.

    Ids count from 0 in the order of the walk. Objects of equal structure (`graphdef`) have the same
    ids in the same roles.

    >>> import treadle as nnx
    >>> weight = nnx.Param(1.0)
    >>> graphdef, state, refs = nnx.flatten(nnx.Dict(a=weight, b=weight))
    >>> len(refs), refs[refs.id_of(weight)] is weight
    (2, True)
    """

    __slots__ = ("_ids", "_objects")

    def __init__(self, objects: Iterable[Any]) -> None:
        self._objects = list(objects)
        self._ids: dict[int, int] | None = None

    def __reduce__(self) -> Any:
        return RefMap, (self._objects,)

    def __getitem__(self, ref: int) -> Any:
        return self._objects[ref]

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._objects)

    def __contains__(self, obj: object) -> bool:
        return self._lookup().get(id(obj)) is not None

    def id_of(self, obj: Any) -> int:
        """Reference id of an object.

        Raises:
            KeyError: the object is not part of the graph.

        >>> import treadle as nnx
        >>> model = nnx.Module()
        >>> nnx.flatten(model)[2].id_of(model)
        0
        """
        found = self._lookup().get(id(obj))
        if found is None:
            raise KeyError(f"This {type(obj).__name__} is not part of the graph")
        return found

    def _lookup(self) -> dict[int, int]:
        if self._ids is None:
            self._ids = {id(obj): ref for ref, obj in enumerate(self._objects)}
        return self._ids


publish(__all__, globals())

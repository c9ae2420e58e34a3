"""Containers that are graph nodes: unlike plain dicts and lists they have an identity.

Each keeps its items in the plain dict or list ``_items``; the walk shows them directly below the
container (`_transparent_`). Every change checks the trace level first.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any, Generic, Self, SupportsIndex, TypeVar, overload

from treadle._modules.methods import kept_method
from treadle._modules.module import Module
from treadle._public import publish

__all__ = ["Dict", "List", "Sequential"]

A = TypeVar("A")


class _Container(Module):
    """What containers share: a shallow copy has the same items, but is a container of its own."""

    _transparent_ = "_items"
    _items: Any

    def __copy__(self) -> Self:
        made = type(self).__new__(type(self))
        vars(made).update(vars(self), _items=copy.copy(self._items))
        return made


class Dict(_Container, MutableMapping[str, A]):
    """A mapping that is a graph node; items can also be reached as attributes.

    Args:
        *args: as for `dict`.
        **kwargs: as for `dict`.

    Raises:
        TraceContextError: on any change at a trace level other than the one it was made at.
        TypeError: an array is put in the place of a Variable; set the Variable's value.

    >>> import treadle as nnx
    >>> d = nnx.Dict(a=1)
    >>> d.b = 2
    >>> d["b"], list(d), d == {"a": 1}
    (2, ['a', 'b'], False)
    """

    _items: dict[str, A]

    @overload
    def __init__(self, items: Mapping[str, A], /, **kwargs: A) -> None: ...
    @overload
    def __init__(self, items: Iterable[tuple[str, A]], /, **kwargs: A) -> None: ...
    @overload
    def __init__(self, **kwargs: A) -> None: ...
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        vars(self)["_items"] = dict(*args, **kwargs)

    def __getitem__(self, key: str) -> A:
        return self._items[key]

    def __setitem__(self, key: str, value: A) -> None:
        self._check_item(key, self._items.get(key), value)
        self._items[key] = value

    def __delitem__(self, key: str) -> None:
        self._check_item(key)
        del self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set items, as `dict.update`: all of them or, if one is refused, none.

        >>> import treadle as nnx
        >>> d = nnx.Dict(a=1)
        >>> d.update({"b": 2}, a=3)
        >>> d.a, d.b
        (3, 2)
        """
        new: dict[str, A] = dict(*args, **kwargs)
        self._check_mutable()
        for key, value in new.items():
            self._check_item(key, self._items.get(key), value)
        self._items.update(new)

    def pop(self, key: str, *default: Any) -> Any:  # type: ignore[override]
        """Remove the item `key` and return it, as `dict.pop`; `treadle.pop` takes filters.

        Raises:
            KeyError: there is no such item and no default is given.

        >>> import treadle as nnx
        >>> d = nnx.Dict(a=1)
        >>> d.pop("a"), d.pop("a", None)
        (1, None)
        """
        self._check_item(key)
        return self._items.pop(key, *default)

    # A node is equal to itself only, also where a mapping would compare by content.
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __getattr__(self, name: str) -> A:
        # Copying and pickling look for protocol names before there are items.
        items = vars(self).get("_items", {})
        if name in items:
            return items[name]
        raise AttributeError(f"{type(self).__name__!r} has no attribute or item {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_items":
            super().__setattr__(name, value)
        elif hasattr(type(self), name):
            raise AttributeError(
                f"{type(self).__name__}.{name} is an attribute of the class, which hides an item of that name. "
                f"Set the item by [{name!r}]."
            )
        else:
            self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self._items:
            raise AttributeError(f"{type(self).__name__!r} has no item {name!r}")
        del self[name]


class List(_Container, MutableSequence[A], Generic[A]):
    """A list that is a graph node; its items have paths ``(0,)``, ``(1,)``, ….

    Args:
        items: what to start with.

    Raises:
        TraceContextError: on any change at a trace level other than the one it was made at.

    >>> import treadle as nnx
    >>> layers = nnx.List([1, 2])
    >>> layers.append(3)
    >>> layers[0], layers[1:], len(layers)
    (1, [2, 3], 3)
    """

    _items: list[A]

    def __init__(self, items: Iterable[A] = (), /) -> None:
        vars(self)["_items"] = list(items)

    @overload
    def __getitem__(self, index: SupportsIndex) -> A: ...
    @overload
    def __getitem__(self, index: slice) -> list[A]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._check_mutable()
        self._items[index] = value

    def __delitem__(self, index: Any) -> None:
        self._check_item(index)
        del self._items[index]

    def __iter__(self) -> Iterator[A]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def insert(self, index: int, value: A) -> None:
        """Put `value` before the item at `index`.

        >>> import treadle as nnx
        >>> layers = nnx.List([2])
        >>> layers.insert(0, 1)
        >>> list(layers)
        [1, 2]
        """
        self._check_mutable()
        self._items.insert(index, value)

    @kept_method
    def pop(self, index: SupportsIndex = -1) -> A:  # type: ignore[override]
        """Remove the item at `index` and return it, as `list.pop`; `treadle.pop` takes filters.

        Raises:
            IndexError: there is no such item.

        >>> import treadle as nnx
        >>> layers = nnx.List([1, 2])
        >>> layers.pop(), list(layers)
        (2, [1])
        """
        self._check_mutable()
        return self._items.pop(index)

    def sort(self, *, key: Any = None, reverse: bool = False) -> None:
        """Sort in place, as `list.sort`.

        >>> import treadle as nnx
        >>> layers = nnx.List([2, 1])
        >>> layers.sort()
        >>> list(layers)
        [1, 2]
        """
        self._check_mutable()
        self._items.sort(key=key, reverse=reverse)

    def __add__(self, other: Iterable[A]) -> List[A]:
        return List([*self, *other])

    def __radd__(self, other: Iterable[A]) -> List[A]:
        return List([*other, *self])

    def __mul__(self, count: int) -> List[A]:
        return List(self._items * count)

    __rmul__ = __mul__


class Sequential(List[Any]):
    """Calls its items one after the other, each with what the previous one returned.

    A tuple is passed on as positional arguments and a dict as keyword arguments; anything else is
    the one positional argument. The first item gets the arguments of the call.

    Args:
        *layers: functions or modules.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Sequential(nnx.Linear(2, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 3, rngs=rngs))
    >>> model(jnp.ones((5, 2))).shape
    (5, 3)
    """

    def __init__(self, *layers: Any) -> None:
        super().__init__(layers)

    def __call__(self, *args: Any, rngs: Any = None, **kwargs: Any) -> Any:
        """Call the layers in order.

        Args:
            *args: for the first layer.
            rngs: given to every layer that has a parameter of this name.
            **kwargs: for the first layer.

        Returns:
            What the last layer returns; without layers, the argument itself (or all, as a tuple).

        Raises:
            TypeError: an item cannot be called.

        >>> import treadle as nnx
        >>> nnx.Sequential(lambda x: (x, 2 * x), lambda a, b: a + b)(1)
        3
        """
        output: Any = args[0] if len(args) == 1 else args
        for index, layer in enumerate(self):
            if not callable(layer):
                raise TypeError(
                    f"Item {index} of Sequential, a {type(layer).__name__}, cannot be called."
                )
            if index > 0:
                args, kwargs = _as_arguments(output)
            if rngs is not None and _takes_rngs(layer):
                kwargs = {**kwargs, "rngs": rngs}
            output = layer(*args, **kwargs)
        return output


def _as_arguments(output: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(output, tuple):
        return output, {}
    if isinstance(output, dict):
        return (), output
    return (output,), {}


def _takes_rngs(layer: Any) -> bool:
    try:
        return "rngs" in inspect.signature(layer).parameters
    except (TypeError, ValueError):  # builtins without a signature
        return False


publish(__all__, globals())

"""Object and Module: graph nodes that are ordinary Python objects."""

from __future__ import annotations

import contextlib
import copy
import copyreg
import operator
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, overload

import jax
import jax.numpy as jnp

from treadle import _bootstrap as _bootstrap
from treadle import _core, pickles
from treadle._core import ObjectNode
from treadle._graph.filters import Filter, Path, needs_path, predicate_of, to_filter_spec
from treadle._graph.looking import visits
from treadle._graph.popping import pop
from treadle._modules.copying import as_they_are, copyable
from treadle._modules.methods import kept_method
from treadle._objects import pretty as _pretty
from treadle._objects.marks import MARK_NAMES, declare_marks
from treadle._objects.node_types import is_walked_callable
from treadle._objects.node_types import iter_children as children_of
from treadle._objects.variables import Perturbation, Variable
from treadle._public import publish
from treadle.errors import GraphError, LeafTypeError, TraceContextError, located

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from treadle._graph.state import State

__all__ = ["Module", "Object", "Pytree", "first_from", "iter_children", "iter_modules"]

A = TypeVar("A")
F = TypeVar("F", bound="Callable[..., Any]")


class Object(ObjectNode):
    """A node of the object graph: an object whose attributes are its children and statics.

    Attributes that are nodes, Variables or arrays (in tuples, lists and dicts too) are walked by
    treadle; every other attribute is static: part of the structure, compared to decide about
    retracing. Objects are equal only to themselves and hash by identity, dataclasses too. (A
    dataclass can be neither ``frozen`` nor have ``slots``, as nodes can be changed.)

    Setting or deleting an attribute at a trace level other than the one the object was made at
    raises `TraceContextError`.

    To the rest of JAX a node is a pytree, taken by value: its children are the distinct Variables
    and bare arrays below it, each under its full path, everything else is structure. A class
    defined with ``pytree=False`` is none, to JAX. `data` and `static` mark attributes.

    >>> import treadle as nnx
    >>> class Counter(nnx.Object):
    ...     def __init__(self):
    ...         self.count = nnx.Variable(0)
    >>> counter = Counter()
    >>> counter.count.value += 1
    >>> counter
    Counter(
      count=Variable(
        value=1
      )
    )
    """

    def __init_subclass__(cls, *, pytree: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._is_pytree_ = pytree
        declare_marks(cls)
        slots = cls.__dict__.get("__slots__", ())
        if slots and slots != "__weakref__":
            raise TypeError(
                f"{cls.__name__} must not have __slots__ ({slots!r}): the attributes of a graph "
                "node are found in its __dict__. Remove __slots__, or slots=True from @dataclass."
            )
        # @dataclass adds a comparison by fields, and takes hashing away, unless the class has its
        # own. A graph is made of identity, so every class gets "its own" before @dataclass looks.
        if "__eq__" not in cls.__dict__:
            cls.__eq__ = cls.__eq__
        if cls.__dict__.get("__hash__") is None:
            cls.__hash__ = object.__hash__  # type: ignore[assignment]

    def __repr__(self) -> str:
        return _repr(self, set())

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> Any:
        # Protocols 0 and 1 would make an object of the C++ base, which takes no part in them.
        reduced: Any = super().__reduce_ex__(max(operator.index(protocol), 2))
        if len(reduced) > 2:
            reduced = (*reduced[:2], copyable(reduced[2]), *reduced[3:])
        if reduced[:2] == (copyreg.__newobj__, (type(self),)):  # type: ignore[attr-defined]
            return (pickles.node, (pickles.VERSION, type(self)), *reduced[2:])
        return reduced

    # The C++ base has fields of its own, which generic copying and pickling must not worry about.
    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(as_they_are(state))


# flax has a base class for pytrees, which all nodes are here.
Pytree = Object


def _repr(node: Object, open_nodes: set[int]) -> str:
    """Text of a node; one inside itself, or very deep inside others, is shown by its type alone."""
    name = type(node).__name__
    if id(node) in open_nodes or len(open_nodes) == _pretty.MAX_DEPTH:
        return f"{name}(...)"
    open_nodes.add(id(node))
    try:
        transparent = getattr(type(node), "_transparent_", None)
        fields: list[tuple[str, str]] = []
        for key, value in vars(node).items():
            if key in MARK_NAMES:
                continue
            if key == transparent:
                items = value.items() if isinstance(value, dict) else enumerate(value)
                fields += [(_item_name(k), _value_repr(v, open_nodes)) for k, v in items]
            else:
                fields.append((key, _value_repr(value, open_nodes)))
        return _pretty.block(f"{name}(", fields, ")", "=")
    finally:
        open_nodes.discard(id(node))


def _item_name(key: Any) -> str:
    return key if isinstance(key, str) else f"[{key!r}]"


_BRACKETS: dict[type[Any], tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    dict: ("{", "}"),
}


def _value_repr(value: Any, open_nodes: set[int]) -> str:
    # A class with its own repr (a dataclass, say) guards itself against cycles.
    if isinstance(value, Object) and type(value).__repr__ is Object.__repr__:
        return _repr(value, open_nodes)
    container = type(value)
    if is_walked_callable(value):
        # Its own text would start anew at the object that it is bound to, which may be open.
        parts = _core.callable_parts(value)
        given = [(key, part) for key, part in parts if not _is_empty(part)]
        fields = [(key, _value_repr(part, open_nodes)) for key, part in given]
        return _pretty.block(f"{container.__name__}(", fields, ")", "=")
    items = _items_of(value)
    if not any(isinstance(item, ObjectNode) or is_walked_callable(item) for _, item in items):
        return _pretty.value(value)
    fields = [(key, _value_repr(item, open_nodes)) for key, item in items]
    opening, closing = _BRACKETS[container]
    return _pretty.block(opening, fields, closing, ": " if container is dict else "")


def _is_empty(part: Any) -> bool:
    return part is None or (type(part) in _BRACKETS and not part)


def _items_of(value: Any) -> list[tuple[str, Any]]:
    """Items of a plain container with the text of their keys; none for anything else."""
    if type(value) is dict:
        return [(repr(key), item) for key, item in value.items()]
    return [("", item) for item in value] if type(value) in _BRACKETS else []


def _append(values: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    return (*values, value)


class Module(Object):
    """Base of layers and models: an `Object` that can be trained, inspected and switched.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> class Scale(nnx.Module):
    ...     def __init__(self, size):
    ...         self.scale = nnx.Param(jnp.ones(size))
    ...     def __call__(self, x):
    ...         return x * self.scale
    >>> Scale(2)(jnp.array([1.0, 2.0]))
    Array([1., 2.], dtype=float32)
    """

    @kept_method
    def sow(
        self,
        variable_type: type[Variable[Any]],
        name: str,
        value: Any,
        reduce_fn: Callable[[Any, Any], Any] = _append,
        init_fn: Callable[[], Any] = tuple,
    ) -> None:
        """Put a value aside in the Variable attribute `name`, to be read or `pop`-ped later.

        Args:
            variable_type: type of the Variable, usually `Intermediate`.
            name: attribute to keep it under.
            value: the value.
            reduce_fn: ``reduce_fn(kept, value)`` gives what to keep; appends to a tuple by default.
            init_fn: what to start from.

        Raises:
            LeafTypeError: the attribute exists and is not a Variable of that type.
            TraceContextError: the module belongs to another trace level.

        >>> import treadle as nnx
        >>> m = nnx.Module()
        >>> m.sow(nnx.Intermediate, "seen", 1.0)
        >>> m.sow(nnx.Intermediate, "seen", 2.0)
        >>> m.seen.value
        (1.0, 2.0)
        """
        if not hasattr(self, name):
            setattr(self, name, variable_type(reduce_fn(init_fn(), value)))
            return
        variable = getattr(self, name)
        if type(variable) is not variable_type:
            raise LeafTypeError(
                f"Cannot sow {variable_type.__name__} {name!r} in {type(self).__name__}: that "
                f"attribute is a {type(variable).__name__}. Use another name."
            )
        variable.raw_value = reduce_fn(variable.raw_value, value)

    @kept_method
    def perturb(
        self, name: str, value: Any, variable_type: type[Variable[Any]] = Perturbation
    ) -> Any:
        """Add a zero Variable to `value`, so that the gradient of an intermediate can be taken.

        The first call makes the Variable, with the shape and dtype of `value`.

        Args:
            name: attribute to keep the zero under.
            value: array or pytree of arrays.
            variable_type: type of the Variable.

        Returns:
            `value` plus the Variable's value.

        Raises:
            LeafTypeError: the attribute exists and is not a Variable of that type.

        >>> import jax.numpy as jnp
        >>> import treadle as nnx
        >>> m = nnx.Module()
        >>> m.perturb("h", jnp.ones(2))
        Array([1., 1.], dtype=float32)
        >>> m.h.value
        Array([0., 0.], dtype=float32)
        """
        if not hasattr(self, name):
            setattr(self, name, variable_type(jax.tree.map(jnp.zeros_like, value)))
        variable = getattr(self, name)
        if not isinstance(variable, variable_type):
            raise LeafTypeError(
                f"Cannot perturb with {name!r} of {type(self).__name__}: that attribute is a "
                f"{type(variable).__name__}, not a {variable_type.__name__}. Use another name."
            )
        return jax.tree.map(jnp.add, value, variable.value)

    @overload
    def pop(self, filter: Filter, /) -> State: ...
    @overload
    def pop(self, a: Filter, b: Filter, /) -> tuple[State, State]: ...
    @overload
    def pop(self, a: Filter, b: Filter, c: Filter, /) -> tuple[State, State, State]: ...
    @overload
    def pop(
        self, a: Filter, b: Filter, c: Filter, d: Filter, /, *filters: Filter
    ) -> tuple[State, ...]: ...
    @kept_method
    def pop(self, *filters: Filter) -> Any:
        """Remove Variables from the module and return them as State; see `treadle.pop`.

        >>> import treadle as nnx
        >>> m = nnx.Module()
        >>> m.sow(nnx.Intermediate, "seen", 1.0)
        >>> m.pop(nnx.Intermediate).seen.value, hasattr(m, "seen")
        ((1.0,), False)
        """
        return pop(self, *filters)

    @kept_method
    def iter_modules(self) -> Iterator[tuple[Path, Module]]:
        """Each module in the graph once, with its path, sub-modules before the module itself.

        >>> import treadle as nnx
        >>> m = nnx.Module()
        >>> m.inner = nnx.Module()
        >>> [path for path, _ in m.iter_modules()]
        [('inner',), ()]
        """
        yield from iter_modules(self)

    @kept_method
    def iter_children(self) -> Iterator[tuple[Any, Module]]:
        """The attributes (or items, for containers) that are modules, in canonical order.

        >>> import treadle as nnx
        >>> m = nnx.Module()
        >>> m.b, m.a, m.rate = nnx.Module(), nnx.Module(), 0.1
        >>> [name for name, _ in m.iter_children()]
        ['a', 'b']
        """
        yield from iter_children(self)

    @kept_method
    def set_attributes(
        self, *filters: Filter, raise_if_not_found: bool = True, **attributes: Any
    ) -> None:
        """Set attributes of all modules in the graph that already have attributes of those names.

        Args:
            *filters: only modules that one of these selects; all modules if none is given.
            raise_if_not_found: raise if some name is found in no module.
            **attributes: names and new values.

        Raises:
            GraphError: some name was not found. Nothing is set then.
            TraceContextError: a module belongs to another trace level. Nothing is set then.
            Exception: whatever setting an attribute raises. The modules and their Variables are as
                before then.

        >>> import treadle as nnx
        >>> m = nnx.Module()
        >>> m.inner = nnx.Module()
        >>> m.inner.rate = 0.1
        >>> m.set_attributes(rate=0.5)
        >>> m.inner.rate
        0.5
        """
        found: list[tuple[Module, str]] = []
        foreign: TraceContextError | None = None
        for keys, module in selected_modules(self, filters or True):
            names = [name for name in attributes if hasattr(module, name)]
            if names:
                found += [(module, name) for name in names]
                foreign = foreign or _foreign(module, keys)
        missing = sorted(attributes.keys() - {name for _, name in found})
        if missing and raise_if_not_found:
            raise GraphError(
                f"No module in {type(self).__name__} has the attribute(s) {', '.join(missing)}. "
                "Check the spelling, or pass raise_if_not_found=False."
            )
        if foreign is not None:
            raise foreign
        with _undone_on_error(self):
            for module, name in found:
                setattr(module, name, attributes[name])

    @kept_method
    def train(self, **attributes: Any) -> None:
        """Switch all sub-modules to training: dropout drops, batch statistics are of the batch.

        Sets ``deterministic=False``, ``use_running_average=False`` and `attributes` wherever a
        module has attributes of these names.

        >>> import treadle as nnx
        >>> m = nnx.Dropout(0.5, deterministic=True, rngs=nnx.Rngs(0))
        >>> m.train()
        >>> m.deterministic
        False
        """
        self.set_attributes(
            deterministic=False, use_running_average=False, raise_if_not_found=False, **attributes
        )

    @kept_method
    def eval(self, **attributes: Any) -> None:
        """Switch all sub-modules to evaluation, the opposite of `train`.

        >>> import treadle as nnx
        >>> m = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        >>> m.eval()
        >>> m.deterministic
        True
        """
        self.set_attributes(
            deterministic=True, use_running_average=True, raise_if_not_found=False, **attributes
        )


def selected_modules(root: Any, filter: Filter) -> Iterator[tuple[Sequence[Hashable], Module]]:
    """The modules below `root` that a filter selects, each with its path, as `visits` has it."""
    spec = to_filter_spec(filter)
    selects, looks_at_path = predicate_of(spec), needs_path(spec)
    for keys, module in visits(root):
        if isinstance(module, Module) and selects(tuple(keys) if looks_at_path else (), module):
            yield keys, module


def iter_modules(node: Any, /) -> Iterator[tuple[Path, Module]]:
    """Each module in a graph once, with its path, sub-modules before the module itself.

    >>> import treadle as nnx
    >>> model = nnx.Dict(block=nnx.List([nnx.Module()]))
    >>> [(path, type(module).__name__) for path, module in nnx.iter_modules(model)]
    [(('block', 0), 'Module'), (('block',), 'List'), ((), 'Dict')]
    """
    for keys, value in visits(node):
        if isinstance(value, Module):
            yield tuple(keys), value


def iter_children(node: Any, /) -> Iterator[tuple[Any, Module]]:
    """The attributes of a node (or items, for containers) that are modules, in canonical order.

    >>> import treadle as nnx
    >>> model = nnx.Dict(b=nnx.Module(), a=nnx.Module(), rate=0.1)
    >>> [name for name, _ in nnx.iter_children(model)]
    ['a', 'b']
    """
    for key, child in children_of(node):
        if isinstance(child, Module):
            yield key, child


def _foreign(module: Module, keys: Sequence[Hashable]) -> TraceContextError | None:
    """The error that changing a module of another trace level is; `keys` lead to it."""
    try:
        module._check_mutable()
    except TraceContextError as error:
        return located(error, keys)
    return None


@contextlib.contextmanager
def _undone_on_error(root: Module) -> Iterator[None]:
    """If the block raises, give modules their attributes and Variables their values back.

    A property may do anything when it is set, so it is all of them, not the attributes named.
    """
    contents: list[tuple[Any, Any]] = []
    values: list[tuple[Any, Any]] = []
    for _, value in visits(root):
        if isinstance(value, Module):
            attributes = vars(value)
            held = attributes.get(getattr(type(value), "_transparent_", ""))
            contents += [(part, copy.copy(part)) for part in (attributes, held) if part is not None]
        elif _core.is_variable(value):
            values.append((value, _core.raw_value(value)))
    try:
        yield
    except BaseException:
        for part, before in contents:
            part.clear()
            (part.extend if isinstance(part, list) else part.update)(before)
        for variable, before in values:
            if _core.raw_value(variable) is not before:
                _core.set_raw_value(variable, before)
        raise


def first_from(*args: A | None, error_msg: str) -> A:
    """The first argument that is not None.

    Raises:
        ValueError: all are None; the message is `error_msg`.

    >>> import treadle as nnx
    >>> nnx.first_from(None, 0, 1, error_msg="no value")
    0
    """
    for arg in args:
        if arg is not None:
            return arg
    raise ValueError(error_msg)


publish(__all__, globals())

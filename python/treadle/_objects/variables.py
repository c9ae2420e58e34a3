"""Variables: the mutable cells that hold a model's arrays.

The storage, the trace check and the metadata are in C++ (`_core.VariableCell`); here are the public
class with its hooks and operators, and the types that filters tell apart.
"""

from __future__ import annotations

import copy as copy_module
import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast, overload

import jax
import numpy as np

from treadle import _bootstrap as _bootstrap
from treadle import pickles
from treadle._core import VariableCell, VariableState
from treadle._objects import pretty as _pretty
from treadle._objects.adapters import description_of
from treadle._objects.axis_names import (
    NO_NAME,
    PARTITION_NAME,
    drop_axis_name,
    insert_axis_name,
    partition_name,
)
from treadle._objects.descriptions import VariableLayout
from treadle.errors import LeafTypeError

if TYPE_CHECKING:
    import builtins

    from typing_extensions import TypeVar as DefaultTypeVar

    from treadle._objects.operator_types import BinaryOperator, UnaryOperator

__all__ = [
    "BatchStat",
    "Cache",
    "Intermediate",
    "OptState",
    "OptVariable",
    "Param",
    "Perturbation",
    "Variable",
    "VariableMetadata",
    "VariableState",
    "with_metadata",
]

if TYPE_CHECKING:
    # `Param` in an annotation means `Param[Any]`, also to checkers that ask for all type arguments.
    A = DefaultTypeVar("A", default=Any)
else:
    A = TypeVar("A")
B = TypeVar("B")
V = TypeVar("V", bound="Variable[Any]")
F = TypeVar("F", bound=Callable[..., Any])

ABSENT: Any = object()
"""What a parameter is that was not given."""
_MISSING = ABSENT

HOOK_NAMES = (
    "get_value_hooks",
    "set_value_hooks",
    "create_value_hooks",
    "add_axis_hooks",
    "remove_axis_hooks",
)
# Hooks that take the place of the method of that name, as in flax.
METHOD_HOOK_NAMES = (
    "on_get_value",
    "on_set_value",
    "on_create_value",
    "on_add_axis",
    "on_remove_axis",
)
# Parameters of flax's Variables for what is not done here, and what to do instead.
_REFUSED = {
    "hijax": "a Variable of treadle is a mutable cell in every transform",
    "ref": "hold the array itself; treadle's transforms write changes back",
    "use_ref": "hold the array itself; treadle's transforms write changes back",
    "eager_sharding": "place the value with `jax.device_put`, or jit with constrain_state=True",
}
# What flax calls metadata that have a meaning here under another name.
_RENAMED = {"out_sharding": "sharding", "sharding_names": "sharding"}


class VariableMetadata(Generic[A]):
    """A value together with the metadata that the Variable made from it shall have.

    Returned by initializers made with `with_metadata`.

    >>> import treadle as nnx
    >>> nnx.Param(nnx.VariableMetadata(1.0, {"tag": "scale"})).tag
    'scale'
    """

    __slots__ = ("metadata", "raw_value")

    def __init__(self, raw_value: A, metadata: Mapping[str, Any]) -> None:
        self.raw_value = raw_value
        self.metadata = dict(metadata)

    def __reduce__(self) -> Any:
        return VariableMetadata, (self.raw_value, self.metadata)

    def __repr__(self) -> str:
        return f"VariableMetadata({_pretty.value(self.raw_value)}, {self.metadata!r})"


def raw_of(other: Any) -> Any:
    """The value of a Variable or of an entry of a State; anything else as it is."""
    return other.value if isinstance(other, Variable) else other


def _item(value: Any, key: Any) -> Any:
    # A whole array needs no operation.
    return value if key is ... and isinstance(value, jax.Array) else value[raw_of(key)]


def with_item(value: Any, key: Any, item: Any) -> Any:
    """A copy of a value with another item at `key`."""
    key, item = raw_of(key), raw_of(item)
    if isinstance(value, jax.Array):
        return value.at[key].set(item)
    changed = copy_module.copy(value)
    changed[key] = item
    return changed


def _binary(op: Callable[[Any, Any], Any]) -> BinaryOperator:
    def apply(self: Variable[Any], other: Any) -> Any:
        return op(self.value, raw_of(other))

    return cast("BinaryOperator", apply)


def _reflected(op: Callable[[Any, Any], Any]) -> BinaryOperator:
    def apply(self: Variable[Any], other: Any) -> Any:
        return op(raw_of(other), self.value)

    return cast("BinaryOperator", apply)


def _in_place(op: Callable[[Any, Any], Any]) -> Callable[[V, Any], V]:
    def apply(self: V, other: Any) -> V:
        self.value = op(self.value, raw_of(other))
        return self

    return apply


def _conversion(to: Callable[[Any], B]) -> Callable[[Variable[Any]], B]:
    def apply(self: Variable[Any]) -> B:
        return to(self.value)

    return apply


def _unary(op: Callable[[Any], Any]) -> UnaryOperator:
    def apply(self: Variable[Any]) -> Any:
        return op(self.value)

    return cast("UnaryOperator", apply)


def _checked_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata as they are kept: hooks as tuples, and nothing that would be ignored in silence."""
    for name in (*HOOK_NAMES, *METHOD_HOOK_NAMES):
        if name in metadata:
            metadata[name] = as_hooks(metadata[name], name)
    for name in metadata.keys() & _REFUSED.keys():
        if metadata[name] is True:
            raise TypeError(
                f"{name}=True is a parameter of flax's Variables that treadle's do not have: "
                f"{_REFUSED[name]}. Remove it."
            )
        if metadata[name] is None or metadata[name] is False:
            del metadata[name]
    for name in metadata.keys() & _RENAMED.keys():
        raise TypeError(
            f"{name}={metadata[name]!r} is what flax calls the metadata that are named "
            f"`{_RENAMED[name]}` here. Pass {_RENAMED[name]}={metadata[name]!r}."
        )
    return metadata


def merged_metadata(
    old: Mapping[str, Any], metadata: Any, entry: Any, entries: Mapping[str, Any]
) -> dict[str, Any]:
    """What `set_metadata` makes of what it is given."""
    if entry is not _MISSING:
        if not isinstance(metadata, str) or entries:
            raise TypeError(
                "set_metadata takes a name and an entry, a mapping that replaces all metadata, or "
                f"entries by keyword; got {metadata!r} and {entry!r}."
            )
        return {**old, metadata: entry}
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"set_metadata: expected a mapping, got {metadata!r}.")
    return {**(old if metadata is None else metadata), **entries}


def as_hooks(hooks: Any, name: str = "hooks") -> tuple[Callable[..., Any], ...]:
    """One hook, a sequence of hooks or None, as a tuple."""
    if hooks is None:
        return ()
    if callable(hooks):
        return (hooks,)
    if not isinstance(hooks, (tuple, list)) or not all(map(callable, hooks)):
        raise TypeError(f"{name} must be a function or a sequence of functions, got {hooks!r}.")
    return tuple(hooks)


class Variable(VariableCell, Generic[A]):
    """A mutable cell that holds a value and metadata, and has an identity in the graph.

    Args:
        value: what to hold, usually an array (any shape and dtype); a Variable (its value is
            taken), or a `VariableMetadata`, whose metadata is added to `metadata`.
        **metadata: anything worth knowing about the value, readable as attributes. Metadata is part
            of a graph's structure and must be hashable where a transform compares it. These names
            have a meaning: ``tag`` (for string filters), ``sharding`` and ``mesh`` (see
            `treadle.spmd`), and the hooks ``get_value_hooks``, ``set_value_hooks``,
            ``create_value_hooks`` (each ``hook(variable, value) -> value``), ``add_axis_hooks`` and
            ``remove_axis_hooks`` (each ``hook(variable, index, name) -> None``). A hook may be one
            function or a sequence of them. A subclass can define the methods ``on_get_value``,
            ``on_set_value``, ``on_create_value``, ``on_add_axis`` and ``on_remove_axis`` instead;
            they run before the hooks from the metadata. Metadata of these five names take the place
            of the methods, as in flax.

    Reading an attribute that a Variable does not have looks in the metadata and then at the value,
    so ``v.shape`` and ``v.at[0].set(1)`` do what they do for an array. Setting one sets metadata.

    Operators act on the value and give plain values; ``v += 1`` changes the Variable. Functions of
    ``jax.numpy`` and ``jax.nn`` take a Variable for its value; primitives such as ``jax.lax.exp``
    take arrays only: pass ``v[...]``. A Variable is a JAX pytree with the value as its one child.
    Comparisons,
    ``==`` included, are comparisons of the values, elementwise for arrays; ``is`` tells whether two
    names mean the same Variable, and hashing goes by identity too, so Variables can be dictionary
    keys.

    Raises:
        TypeError: hooks that are no functions; parameters of flax's Variables that ask for what
            treadle's do not do (``hijax=True``, ``ref=True``, ``eager_sharding=True``).
        TraceContextError: on any change at a trace level other than the one it was made at.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> v = nnx.Param(jnp.ones(2), tag="scale")
    >>> v.value = v * 3
    >>> v.tag, v.shape, float(v[0])
    ('scale', (2,), 3.0)
    """

    __slots__ = ("__weakref__",)

    if TYPE_CHECKING:
        raw_value: A
        value: A

    # Defining __eq__ would otherwise take hashing away.
    __hash__ = object.__hash__
    # numpy arrays leave binary operators to whoever has the higher priority.
    __array_priority__ = 100

    def __init__(self, value: VariableMetadata[A] | Variable[A] | A, **metadata: Any) -> None:
        if isinstance(value, VariableMetadata):
            metadata = value.metadata | metadata
            value = value.raw_value
        if isinstance(value, Variable):
            value = cast("A", value.raw_value)
        if metadata:
            metadata = _checked_metadata(metadata)
        self._init_cell(value, metadata)
        created = self._run_value_hooks("on_create_value", "create_value_hooks", value)
        if created is not value:
            self._init_cell(created, metadata)

    # -- hooks ---------------------------------------------------------------------------------

    def _hooks(self, method: str, hooks: str) -> tuple[Callable[..., Any], ...]:
        metadata = self._metadata
        if method in metadata:
            first = as_hooks(metadata[method], method)
        else:
            first = as_hooks(getattr(type(self), method, None), method)
        return first + as_hooks(metadata.get(hooks), hooks)

    def _run_value_hooks(self, method: str, hooks: str, value: Any) -> Any:
        for hook in self._hooks(method, hooks):
            value = hook(self, value)
        return value

    # The engine calls these two where the class or the metadata have something to say.

    def _get_hooked(self, raw: Any) -> Any:
        if type(self).get_value is not Variable.get_value:
            return self.get_value()
        return self._run_value_hooks("on_get_value", "get_value_hooks", raw)

    def _set_hooked(self, value: Any) -> Any:
        if type(self).set_value is not Variable.set_value:
            self.set_value(value)
            return self.raw_value
        return self._run_value_hooks("on_set_value", "set_value_hooks", value)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._own_access = (
            cls.get_value is not Variable.get_value or cls.set_value is not Variable.set_value
        )

    # -- the value by name ---------------------------------------------------------------------

    def get_value(self, *, index: Any = _MISSING) -> Any:
        """The value through the get hooks, or what it has at `index`.

        A subclass may override this; reading ``value`` then means ``get_value()``.

        >>> import jax.numpy as jnp
        >>> import treadle as nnx
        >>> v = nnx.Param(jnp.array([1.0, 2.0]))
        >>> v.get_value(index=1).item()
        2.0
        """
        value = self._run_value_hooks("on_get_value", "get_value_hooks", self.raw_value)
        return value if index is _MISSING else _item(value, index)

    def set_value(self, value: Any, *, index: Any = _MISSING) -> None:
        """Set the value through the set hooks, or only what it has at `index`.

        A subclass may override this; setting ``value`` then means ``set_value(value)``.

        Raises:
            TraceContextError: the Variable belongs to another trace level.

        >>> import jax.numpy as jnp
        >>> import treadle as nnx
        >>> v = nnx.Param(jnp.zeros(2))
        >>> v.set_value(3.0, index=0)
        >>> v.value.tolist()
        [3.0, 0.0]
        """
        self._check_mutable()
        value = raw_of(value)
        if index is not _MISSING:
            value = with_item(self.raw_value, index, value)
        self.raw_value = self._run_value_hooks("on_set_value", "set_value_hooks", value)

    def get_raw_value(self) -> Any:
        """The stored value; no hook runs.

        >>> import treadle as nnx
        >>> nnx.Param(1.0, on_get_value=lambda variable, value: 2 * value).get_raw_value()
        1.0
        """
        return self.raw_value

    def set_raw_value(self, value: Any) -> None:
        """Store a value; no hook runs.

        Raises:
            TraceContextError: the Variable belongs to another trace level.

        >>> import treadle as nnx
        >>> v = nnx.Param(1.0, on_set_value=lambda variable, value: 2 * value)
        >>> v.set_raw_value(5.0)
        >>> v.value
        5.0
        """
        self.raw_value = value

    def _run_axis_hooks(self, method: str, hooks: str, index: int, given: Any) -> None:
        found = partition_name(given)
        name = None if found is NO_NAME else found
        for hook in self._hooks(method, hooks):
            hook(self, index, name)

    def add_axis(self, index: int, name: str | Mapping[str, Any] | None = NO_NAME) -> None:
        """Note that the value got a new axis: adjust the ``sharding`` metadata and run the hooks.

        Args:
            index: where the axis is; negative counts from the end of the new shape.
            name: name of the mesh axis to shard it over, None for an axis that is not sharded, or
                a ``transform_metadata`` mapping that has it under `treadle.PARTITION_NAME`. Without
                a name the sharding stays as it is. Each further key of a mapping names metadata
                that is a tuple with an entry per axis, and holds the entry of the new axis.

        >>> import jax.numpy as jnp
        >>> import treadle as nnx
        >>> v = nnx.Param(jnp.ones((5, 2)), sharding=("model",))
        >>> v.add_axis(0, "layers")
        >>> v.sharding
        ('layers', 'model')
        """
        self._metadata = insert_axis_name(self._metadata, index, name)
        self._run_axis_hooks("on_add_axis", "add_axis_hooks", index, name)

    def remove_axis(self, index: int, name: str | Mapping[str, Any] | None = NO_NAME) -> None:
        """Note that the value lost the axis that `add_axis` with equal arguments had added.

        Raises:
            ValueError: the sharding metadata has another name at `index`.

        >>> import jax.numpy as jnp
        >>> import treadle as nnx
        >>> v = nnx.Param(jnp.ones(2), sharding=("layers", "model"))
        >>> v.remove_axis(0, "layers")
        >>> v.sharding
        ('model',)
        """
        self._metadata = drop_axis_name(self._metadata, index, name)
        self._run_axis_hooks("on_remove_axis", "remove_axis_hooks", index, name)

    # -- metadata and copies -------------------------------------------------------------------

    @property
    def type(self) -> builtins.type[Any]:
        """The type that filters see: the class of the Variable."""
        return self.__class__

    var_type = type

    @overload
    def get_metadata(self) -> dict[str, Any]: ...
    @overload
    def get_metadata(self, name: str, default: Any = ...) -> Any: ...
    def get_metadata(self, name: str | None = None, default: Any = _MISSING) -> Any:
        """All metadata as a new dict, or the entry `name`.

        Raises:
            KeyError: there is no entry `name` and no `default` is given.

        >>> import treadle as nnx
        >>> nnx.Param(1.0, tag="scale").get_metadata()
        {'tag': 'scale'}
        """
        if name is None:
            return dict(self._metadata)
        if default is _MISSING:
            return self._metadata[name]
        return self._metadata.get(name, default)

    @overload
    def set_metadata(
        self, metadata: Mapping[str, Any] | None = None, /, **entries: Any
    ) -> None: ...
    @overload
    def set_metadata(self, name: str, entry: Any, /) -> None: ...
    def set_metadata(self, metadata: Any = None, entry: Any = _MISSING, /, **entries: Any) -> None:
        """Set the given metadata entries and keep the others.

        With a mapping as the positional argument, that mapping *replaces* all metadata; with a name
        and an entry, that entry is set.

        Raises:
            TraceContextError: the Variable belongs to another trace level.
            TypeError: the arguments are none of these, or an entry is refused by `Variable`.

        >>> import treadle as nnx
        >>> v = nnx.Param(1.0, tag="scale")
        >>> v.set_metadata(trainable=False)
        >>> v.get_metadata()
        {'tag': 'scale', 'trainable': False}
        """
        self._metadata = _checked_metadata(
            merged_metadata(self._metadata, metadata, entry, entries)
        )

    def del_metadata(self, name: str) -> None:
        """Remove the metadata entry `name`.

        Raises:
            KeyError: there is none.
            TraceContextError: the Variable belongs to another trace level.

        >>> import treadle as nnx
        >>> v = nnx.Param(1.0, tag="scale")
        >>> v.del_metadata("tag")
        >>> v.get_metadata()
        {}
        """
        self._check_mutable()
        metadata = dict(self._metadata)
        del metadata[name]
        self._metadata = metadata

    def has_metadata(self, name: str) -> bool:
        """Whether there is a metadata entry `name`.

        >>> import treadle as nnx
        >>> nnx.Param(1.0, tag="scale").has_metadata("tag")
        True
        """
        return name in self._metadata

    def replace(self, value: Any = _MISSING, **metadata: Any) -> Self:
        """A new Variable of the same type with another value or other metadata; no hook runs.

        Args:
            value: the new value (same value if left out), or a Variable whose value is taken.
            **metadata: entries to set.

        Raises:
            LeafTypeError: `value` is a Variable of another type.

        >>> import treadle as nnx
        >>> v = nnx.Param(1.0, tag="scale")
        >>> w = v.replace(2.0)
        >>> w.value, w.tag, v.value
        (2.0, 'scale', 1.0)
        """
        if isinstance(value, Variable):
            if value.type is not type(self):
                raise LeafTypeError(
                    f"Cannot replace the value of a {type(self).__name__} by a "
                    f"{value.type.__name__}: pass its `.value`."
                )
            value = value.raw_value
        new = VariableCell.__new__(type(self))
        new._init_cell(
            self.raw_value if value is _MISSING else value, {**self._metadata, **metadata}
        )
        return new

    def copy(self, value: Any = _MISSING, **metadata: Any) -> Self:
        """A new Variable with the same value and metadata, or others; as `replace`.

        >>> import treadle as nnx
        >>> v = nnx.Param(1.0)
        >>> v.copy() is v, v.copy().value, v.copy(2.0, tag="scale").tag
        (False, 1.0, 'scale')
        """
        return self.replace(value, **metadata)

    def copy_from(self, other: Variable[A]) -> None:
        """Take over the value and metadata of a Variable of the same type.

        Raises:
            LeafTypeError: `other` is of another type.

        >>> import treadle as nnx
        >>> v = nnx.Param(1.0)
        >>> v.copy_from(nnx.Param(2.0, tag="scale"))
        >>> v.value, v.tag
        (2.0, 'scale')
        """
        if not isinstance(other, Variable) or other.type is not type(self):
            raise LeafTypeError(
                f"Cannot copy a {type(other).__name__} into a {type(self).__name__}: "
                "assign its `.value` instead."
            )
        self.raw_value = other.raw_value
        self._metadata = dict(other._metadata)

    def state(self) -> VariableState:
        """Type, value and metadata as a `VariableState`, detached from this Variable.

        >>> import treadle as nnx
        >>> nnx.Param(1.0).state()
        VariableState(
          type=Param,
          value=1.0
        )
        """
        return VariableState(type(self), self.raw_value, **self._metadata)

    to_state = state

    def update_from_state(self, state: VariableState) -> None:
        """Take over value and metadata of a `VariableState` of the same type.

        Raises:
            LeafTypeError: `state` is of another type.

        >>> import treadle as nnx
        >>> v = nnx.Param(1.0)
        >>> v.update_from_state(nnx.VariableState(nnx.Param, 2.0))
        >>> v.value
        2.0
        """
        if state.type is not type(self):
            raise LeafTypeError(
                f"Cannot update a {type(self).__name__} from the state of a {state.type.__name__}."
            )
        self.raw_value = state.value
        self._metadata = dict(state._metadata)

    def __copy__(self) -> Self:
        return self.replace()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = VariableCell.__new__(type(self))
        memo[id(self)] = new
        # Metadata describes (meshes, hooks, names): it is shared, never copied.
        new._init_cell(copy_module.deepcopy(self.raw_value, memo), dict(self._metadata))
        return new

    def __reduce__(self) -> Any:
        return pickles.variable, (
            pickles.VERSION,
            type(self),
            self.raw_value,
            dict(self._metadata),
        )

    def __repr__(self) -> str:
        fields = _pretty.cell_fields(self.raw_value, self._metadata)
        return _pretty.block(f"{type(self).__name__}(", fields, ")", "=")

    # -- the value as users of arrays see it ---------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # Reached only when neither the type nor the metadata has it. Protocol names (`__array_...`,
        # `__fspath__`) must not be found by accident on the value.
        if name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        metadata = self._metadata
        if name in metadata:
            return metadata[name]
        try:
            return getattr(self.value, name)
        except AttributeError:
            raise AttributeError(
                f"{type(self).__name__!r} has no attribute, metadata or value attribute {name!r}"
            ) from None

    @property
    def __orig_class__(self) -> Any:
        # `Param[T](x)` offers its alias to every instance; without this it would become metadata.
        raise AttributeError("__orig_class__")

    def __jax_array__(self) -> Any:
        return self.value

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        array = np.asarray(self.value, dtype=dtype)
        return array.copy() if copy else array

    @overload
    def __getitem__(self: Variable[jax.Array], key: Any) -> jax.Array: ...
    @overload
    def __getitem__(self, key: Any) -> Any: ...
    def __getitem__(self, key: Any) -> Any:
        return _item(cast("Any", self.value), key)

    def __setitem__(self, key: Any, item: Any) -> None:
        self._check_mutable()
        if type(self).set_value is not Variable.set_value:
            self.set_value(item, index=key)
        else:
            self.value = with_item(self.value, key, item)

    def __delitem__(self, key: Any) -> None:
        self._check_mutable()
        changed = copy_module.copy(cast("Any", self.value))
        del changed[raw_of(key)]
        self.value = changed

    @overload
    def __iter__(self: Variable[jax.Array]) -> Iterator[jax.Array]: ...
    @overload
    def __iter__(self) -> Iterator[Any]: ...
    def __iter__(self) -> Iterator[Any]:
        return iter(cast("Any", self.value))

    def __len__(self) -> int:
        return len(cast("Any", self.value))

    def __contains__(self, item: Any) -> bool:
        return raw_of(item) in cast("Any", self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else str(self)

    def __round__(self, digits: int = 0) -> Any:
        return round(cast("Any", self.value), digits)

    __bool__ = _conversion(bool)
    __int__ = _conversion(int)
    __float__ = _conversion(float)
    __complex__ = _conversion(complex)
    __index__ = _conversion(operator.index)
    __neg__ = _unary(operator.neg)
    __pos__ = _unary(operator.pos)
    __invert__ = _unary(operator.invert)

    if TYPE_CHECKING:

        @overload
        def __abs__(self: Variable[jax.Array]) -> jax.Array: ...
        @overload
        def __abs__(self) -> Any: ...
        def __abs__(self) -> Any: ...

        # What `object` declares would hide what an operator made by `_binary` gives.
        @overload  # type: ignore[override]
        def __eq__(self: Variable[jax.Array], other: object, /) -> jax.Array: ...
        @overload
        def __eq__(self, other: object, /) -> Any: ...
        def __eq__(self, other: object, /) -> Any: ...
        @overload  # type: ignore[override]
        def __ne__(self: Variable[jax.Array], other: object, /) -> jax.Array: ...
        @overload
        def __ne__(self, other: object, /) -> Any: ...
        def __ne__(self, other: object, /) -> Any: ...
    else:
        __abs__ = _unary(operator.abs)
        __eq__ = _binary(operator.eq)
        __ne__ = _binary(operator.ne)

    __lt__ = _binary(operator.lt)
    __le__ = _binary(operator.le)
    __gt__ = _binary(operator.gt)
    __ge__ = _binary(operator.ge)

    __add__ = _binary(operator.add)
    __sub__ = _binary(operator.sub)
    __mul__ = _binary(operator.mul)
    __matmul__ = _binary(operator.matmul)
    __truediv__ = _binary(operator.truediv)
    __floordiv__ = _binary(operator.floordiv)
    __mod__ = _binary(operator.mod)
    __divmod__ = _binary(divmod)
    __pow__ = _binary(operator.pow)
    __lshift__ = _binary(operator.lshift)
    __rshift__ = _binary(operator.rshift)
    __and__ = _binary(operator.and_)
    __xor__ = _binary(operator.xor)
    __or__ = _binary(operator.or_)

    __radd__ = _reflected(operator.add)
    __rsub__ = _reflected(operator.sub)
    __rmul__ = _reflected(operator.mul)
    __rmatmul__ = _reflected(operator.matmul)
    __rtruediv__ = _reflected(operator.truediv)
    __rfloordiv__ = _reflected(operator.floordiv)
    __rmod__ = _reflected(operator.mod)
    __rdivmod__ = _reflected(divmod)
    __rpow__ = _reflected(operator.pow)
    __rlshift__ = _reflected(operator.lshift)
    __rrshift__ = _reflected(operator.rshift)
    __rand__ = _reflected(operator.and_)
    __rxor__ = _reflected(operator.xor)
    __ror__ = _reflected(operator.or_)

    __iadd__ = _in_place(operator.add)
    __isub__ = _in_place(operator.sub)
    __imul__ = _in_place(operator.mul)
    __imatmul__ = _in_place(operator.matmul)
    __itruediv__ = _in_place(operator.truediv)
    __ifloordiv__ = _in_place(operator.floordiv)
    __imod__ = _in_place(operator.mod)
    __ipow__ = _in_place(operator.pow)
    __ilshift__ = _in_place(operator.lshift)
    __irshift__ = _in_place(operator.rshift)
    __iand__ = _in_place(operator.and_)
    __ixor__ = _in_place(operator.xor)
    __ior__ = _in_place(operator.or_)


_BINARY = (
    *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow"),
    *("lshift", "rshift", "and", "xor", "or"),
)
# Methods that ask a Variable for nothing but its value.
VALUE_OPERATORS = (
    *(f"__{name}__" for name in _BINARY),
    *(f"__r{name}__" for name in _BINARY),
    *(f"__i{name}__" for name in _BINARY if name != "divmod"),
    *("__lt__", "__le__", "__gt__", "__ge__", "__neg__", "__pos__", "__invert__", "__abs__"),
    *("__bool__", "__int__", "__float__", "__complex__", "__index__", "__round__"),
    *("__getitem__", "__iter__", "__len__", "__contains__", "__array__", "__jax_array__"),
    "__format__",
)


def add_axis(variable: Any, index: int, params: Any) -> None:
    """`Variable.add_axis` for a Variable of any library; `params` as there."""
    layout = description_of(type(variable))
    if isinstance(layout, VariableLayout):
        layout.add_axis(variable, index, _axis_metadata(params))
    else:
        variable.add_axis(index, params)


def remove_axis(variable: Any, index: int, params: Any) -> None:
    """`Variable.remove_axis` for a Variable of any library; `params` as there."""
    layout = description_of(type(variable))
    if isinstance(layout, VariableLayout):
        layout.remove_axis(variable, index, _axis_metadata(params))
    else:
        variable.remove_axis(index, params)


def _axis_metadata(params: Any) -> Mapping[str, Any]:
    return params if isinstance(params, Mapping) else {PARTITION_NAME: params}


class Param(Variable[A]):
    """A value that training learns.

    >>> import treadle as nnx
    >>> nnx.Param(1.0)
    Param(
      value=1.0
    )
    """

    __slots__ = ()


class BatchStat(Variable[A]):
    """A running statistic, such as those of batch normalization.

    >>> import treadle as nnx
    >>> nnx.BatchStat(0.0).value
    0.0
    """

    __slots__ = ()


class Cache(Variable[A]):
    """What a layer remembers between calls, such as the keys and values of autoregressive decoding.

    >>> import treadle as nnx
    >>> nnx.Cache(0.0).value
    0.0
    """

    __slots__ = ()


class Intermediate(Variable[A]):
    """A value put aside for inspection by `Module.sow`.

    >>> import treadle as nnx
    >>> nnx.Intermediate((1.0, 2.0)).value
    (1.0, 2.0)
    """

    __slots__ = ()


class Perturbation(Intermediate[A]):
    """A zero added to an intermediate value, so that its gradient can be asked for.

    >>> import treadle as nnx
    >>> isinstance(nnx.Perturbation(0.0), nnx.Intermediate)
    True
    """

    __slots__ = ()


class OptState(Variable[A]):
    """State of an optimizer.

    >>> import treadle as nnx
    >>> nnx.OptState(0).value
    0
    """

    __slots__ = ()


class OptVariable(OptState[A]):
    """State of an optimizer that belongs to one Variable of the model, such as its momentum.

    >>> import treadle as nnx
    >>> isinstance(nnx.OptVariable(0.0), nnx.OptState)
    True
    """

    __slots__ = ()


def with_metadata(initializer: F, **metadata: Any) -> F:
    """Make an initializer whose values carry metadata to the Variable they are stored in.

    Args:
        initializer: any function that returns an array.
        **metadata: metadata for the Variable; ``get_value_hooks`` and the other hooks included.

    Returns:
        A function with the arguments of `initializer` that returns a `VariableMetadata`.

    >>> import jax, jax.numpy as jnp
    >>> import treadle as nnx
    >>> init = nnx.with_metadata(jax.nn.initializers.ones, sharding=("data", None))
    >>> kernel = nnx.Param(init(jax.random.key(0), (2, 3), jnp.float32))
    >>> kernel.get_metadata("sharding")
    ('data', None)
    """

    @functools.wraps(initializer)
    def wrapper(*args: Any, **kwargs: Any) -> VariableMetadata[Any]:
        made = initializer(*args, **kwargs)
        if isinstance(made, VariableMetadata):
            return VariableMetadata(made.raw_value, made.metadata | metadata)
        return VariableMetadata(made, metadata)

    return cast("F", wrapper)

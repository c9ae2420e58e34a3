"""The C++ module as Python sees it.

`_core` walks graphs of Python objects; it knows nodes, Variables, leaves and filters, and nothing of
training. Everything here is private to treadle: public names live in the modules that import it.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, final

from typing_extensions import TypeVar

N = TypeVar("N", default=Any)
Path = tuple[Hashable, ...]

class VariableCell:
    """Base of `treadle.Variable`: a mutable cell with identity.

    Instances have no ``__dict__``. Attribute *reads* of unknown names fall back to the metadata;
    attribute *writes* of names that are not descriptors of the type store metadata (copy-on-write).
    Every write checks the trace level and raises `TraceContextError`.
    """

    raw_value: Any
    """The stored value, no hooks. Writing checks the trace level."""
    value: Any
    """Reading calls ``self._get_hooked(raw_value)`` and writing ``self._set_hooked(value)`` when the type or
    the metadata has hooks (see `_core.configure`), otherwise the same as `raw_value`."""
    _metadata: Mapping[str, Any]
    """Metadata dict. Treat as immutable: assign a new dict to change it (assigning checks the trace level)."""
    def _init_cell(self, value: Any, metadata: dict[str, Any]) -> None:
        """Set value and metadata without running hooks and without a trace check (used by `__init__`)."""
    def _check_mutable(self) -> None:
        """Raise `TraceContextError` if the cell belongs to another trace level."""

class ObjectNode:
    """Base of `treadle.Object`: a graph node whose attributes are its ``__dict__``.

    Setting and deleting attributes checks the trace level. `__new__` records the trace level.
    A subclass may define the class attribute ``_transparent_ = "name"``: the children of the plain list or
    dict stored under that attribute then appear in paths directly below the node (`List`, `Dict`).
    """

    def _check_mutable(self) -> None: ...
    def _check_item(self, key: Any, current: Any = ..., value: Any = ..., /) -> None:
        """Raise unless a container may set its item `key` from `current` to `value`, or remove it."""

@final
class VariableState:
    """A Variable's value, type and metadata, detached from the Variable: one entry of a State."""

    def __init__(self, type: type[Any], value: Any, /, **metadata: Any) -> None: ...
    type: type[Any]
    value: Any
    raw_value: Any
    _metadata: Mapping[str, Any]
    def _replace_value(self, value: Any, /) -> VariableState: ...
    # Added in Python, by treadle._objects.variable_state:
    def replace(self, value: Any = ..., **metadata: Any) -> VariableState: ...
    def copy(self, value: Any = ..., **metadata: Any) -> VariableState: ...
    def to_variable(self) -> Any: ...
    def get_metadata(self, name: str = ..., default: Any = ...) -> Any: ...
    def set_metadata(self, metadata: Any = ..., entry: Any = ..., /, **entries: Any) -> None: ...
    def has_metadata(self, name: str) -> bool: ...
    def get_value(self, *, index: Any = ...) -> Any: ...
    def set_value(self, value: Any, *, index: Any = ...) -> None: ...
    def get_raw_value(self) -> Any: ...
    def set_raw_value(self, value: Any) -> None: ...
    def __add__(self, other: Any, /) -> Any: ...
    def __radd__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __rsub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __matmul__(self, other: Any, /) -> Any: ...
    def __rmatmul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...
    def __rtruediv__(self, other: Any, /) -> Any: ...
    def __floordiv__(self, other: Any, /) -> Any: ...
    def __rfloordiv__(self, other: Any, /) -> Any: ...
    def __mod__(self, other: Any, /) -> Any: ...
    def __rmod__(self, other: Any, /) -> Any: ...
    def __divmod__(self, other: Any, /) -> Any: ...
    def __rdivmod__(self, other: Any, /) -> Any: ...
    def __pow__(self, other: Any, /) -> Any: ...
    def __rpow__(self, other: Any, /) -> Any: ...
    def __lshift__(self, other: Any, /) -> Any: ...
    def __rlshift__(self, other: Any, /) -> Any: ...
    def __rshift__(self, other: Any, /) -> Any: ...
    def __rrshift__(self, other: Any, /) -> Any: ...
    def __and__(self, other: Any, /) -> Any: ...
    def __rand__(self, other: Any, /) -> Any: ...
    def __xor__(self, other: Any, /) -> Any: ...
    def __rxor__(self, other: Any, /) -> Any: ...
    def __or__(self, other: Any, /) -> Any: ...
    def __ror__(self, other: Any, /) -> Any: ...
    def __lt__(self, other: Any, /) -> Any: ...
    def __le__(self, other: Any, /) -> Any: ...
    def __gt__(self, other: Any, /) -> Any: ...
    def __ge__(self, other: Any, /) -> Any: ...
    def __neg__(self) -> Any: ...
    def __pos__(self) -> Any: ...
    def __invert__(self) -> Any: ...
    def __abs__(self) -> Any: ...
    def __jax_array__(self) -> Any: ...
    def __iadd__(self, other: Any, /) -> VariableState: ...
    def __isub__(self, other: Any, /) -> VariableState: ...
    def __imul__(self, other: Any, /) -> VariableState: ...
    def __imatmul__(self, other: Any, /) -> VariableState: ...
    def __itruediv__(self, other: Any, /) -> VariableState: ...
    def __ifloordiv__(self, other: Any, /) -> VariableState: ...
    def __imod__(self, other: Any, /) -> VariableState: ...
    def __ipow__(self, other: Any, /) -> VariableState: ...
    def __ilshift__(self, other: Any, /) -> VariableState: ...
    def __irshift__(self, other: Any, /) -> VariableState: ...
    def __iand__(self, other: Any, /) -> VariableState: ...
    def __ixor__(self, other: Any, /) -> VariableState: ...
    def __ior__(self, other: Any, /) -> VariableState: ...
    def __round__(self, digits: int = ...) -> Any: ...
    def __array__(self, dtype: Any = ..., copy: bool | None = ...) -> Any: ...
    __array_priority__: int
    def __getitem__(self, key: Any, /) -> Any: ...
    def __setitem__(self, key: Any, item: Any, /) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...
    def __contains__(self, item: Any, /) -> bool: ...
    def __bool__(self) -> bool: ...
    def __int__(self) -> int: ...
    def __float__(self) -> float: ...
    def __complex__(self) -> complex: ...
    def __index__(self) -> int: ...
    def __getattr__(self, name: str) -> Any: ...

@final
class VariableStateAux:
    """Type and metadata of a Variable or a `VariableState`, as JAX compares them between trees."""

    def __init__(self, type: type[Any], metadata: dict[str, Any] | None, /) -> None: ...

def _flatten_variable_state(state: VariableState, /) -> tuple[tuple[Any], VariableStateAux]:
    """Children and structure, as JAX's pytree registry asks for them."""

def _flatten_variable_state_with_keys(
    state: VariableState, /
) -> tuple[tuple[tuple[Any, Any]], VariableStateAux]: ...
def _unflatten_variable_state(
    structure: VariableStateAux, children: Iterable[Any], /
) -> VariableState: ...
def _flatten_variable(variable: VariableCell, /) -> tuple[tuple[Any], VariableStateAux]: ...
def _flatten_variable_with_keys(
    variable: VariableCell, /
) -> tuple[tuple[tuple[Any, Any]], VariableStateAux]: ...
def _unflatten_variable(
    structure: VariableStateAux, children: Iterable[Any], /
) -> VariableCell: ...
def _unpickle_variable_state(
    version: int, type: type[Any], value: Any, metadata: dict[str, Any] | None, /
) -> VariableState: ...

@final
class Fingerprint:
    """All that functions read, as far as constants, to be compared with that of others."""

    def __hash__(self) -> int: ...
    def __eq__(self, other: object) -> bool: ...

def definitions_below(root: Any) -> tuple[Any, ...]:
    """Names and values of what the classes of a node and of those below define, but for known packages' own."""

def fingerprint(*functions: Any) -> Fingerprint | None:
    """What such functions read now, at any depth. None if nobody can tell whether some of it will be the same."""

@final
class GraphDef(Generic[N]):
    """Immutable structure of a graph: root expression, node table, attribute table, variable table.

    `N` is what `merge` makes of it; at run time ``GraphDef[Model]`` is an alias as for any generic class.
    """

    num_leaves: int
    num_refs: int
    def paths(self) -> tuple[Path, ...]:
        """Path of each leaf (the first one met in canonical order). Computed once, cached."""
    def paths_length(self) -> int:
        """Keys of all leaves' paths together: in a deep graph far more than it has leaves. Linear."""
    def ref_paths(self) -> tuple[Path, ...]:
        """Path of each reference (node or Variable), indexed by reference id: of square size in a deep graph."""
    def ref_path(self, ref: int, /) -> Path:
        """Path of one reference."""
    def leaf_refs(self) -> tuple[int, ...]:
        """For each leaf the reference id of its Variable, or -1 for a bare array."""
    def leaf_types(self) -> tuple[type[Any] | None, ...]:
        """For each leaf its Variable type, or None for a bare array."""
    def leaf_metadata(self) -> tuple[Mapping[str, Any] | None, ...]: ...
    def path_index(self) -> Mapping[Path, int]:
        """Path -> leaf id, cached."""
    def partition(self, filters: tuple[Any, ...], leaves: Sequence[Any]) -> tuple[int, ...]:
        """Index of the first matching filter per leaf, or -1. `filters` are compiled specs (see filters.py)."""
    def reachable(self, ref: int) -> tuple[int, ...]:
        """Ids of all leaves reachable from reference `ref`, ascending."""
    def root_items(self) -> tuple[tuple[bool, int], ...]:
        """The root expression's leaves in pytree order: (True, reference id) or (False, leaf id)."""
    def callables(self) -> tuple[Any, ...]:
        """Classes of nodes and of static objects, and the functions and classes that statics and metadata hold."""
    def difference(self, other: GraphDef) -> tuple[Path, Any, Any] | None:
        """First difference as (path, value here, value there), None if equal."""
    def __hash__(self) -> int: ...
    def __eq__(self, other: object) -> bool: ...
    def __copy__(self) -> GraphDef[N]: ...
    def __deepcopy__(self, memo: Any, /) -> GraphDef[N]: ...
    def __reduce__(self) -> Any: ...

def _unpickle_graphdef(tables: Any, /) -> GraphDef: ...

@final
class Flat:
    """Result of a walk: structure, leaves and the objects met."""

    graphdef: GraphDef
    leaves: list[Any]
    refs: list[Any]
    """Node and Variable objects, indexed by reference id."""
    def ref_id(self, obj: Any) -> int:
        """Reference id of `obj`, -1 if it was not met."""

def flatten(root: Any, /) -> Flat:
    """Walk a graph whose root is a node, a Variable, or a pytree holding some."""

def flatten_call(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    static_argnums: frozenset[int],
    static_argnames: frozenset[str],
    /,
) -> Flat:
    """Walk the arguments of a call: outside nodes scalars and arrays are leaves, statics are compared."""

def unflatten(graphdef: GraphDef, leaves: Sequence[Any], /) -> tuple[Any, list[Any]]:
    """Build fresh objects: (root, objects by reference id). For a call the root is (args, kwargs)."""

def _flatten_node(node: Any, /) -> tuple[list[Any], GraphDef]:
    """A node as JAX's pytree: its distinct Variables and bare arrays, and a structure that has them as leaves."""

def _unflatten_node(structure: GraphDef, children: Sequence[Any], /) -> Any:
    """The inverse. Anything may stand for a child, and is one when the node is flattened again."""

def _child_paths(structure: GraphDef, /) -> list[Path]:
    """The path of each child, the first where it is shared."""

def set_leaves(flat: Flat, indices: Sequence[int], values: Sequence[Any], /) -> None:
    """Write leaf values into the walked objects: all or nothing."""

def nest(paths: Sequence[Path], values: Sequence[Any], /) -> dict[Any, Any]:
    """Nested dict of `values` by `paths` (keys sorted as in the walk)."""

@final
class Effects:
    """What a call did to its graph: an immutable description that carries no arrays and no objects.

    Output leaves are numbered; unchanged leaves are not output.
    """

    num_out: int
    before: GraphDef
    """The structure that was changed."""
    changes_structure: bool
    def same_as(self, other: Effects) -> bool:
        """True if both say the same of calls of one structure."""
    def outputs(self) -> tuple[tuple[str, int, Path], ...]:
        """For each output leaf: ("leaf", input leaf id, path) for a changed input leaf,
        ("new", item, path) for a leaf of a new Variable or a new bare array in state, `item` counting the
        arrays and objects of the result in pytree order, -1 where an argument reaches it,
        ("result", position, path) for a leaf of the function's result in pytree order."""
    def output_types(self) -> tuple[type[Any] | None, ...]: ...
    def output_metadata(self) -> tuple[Mapping[str, Any] | None, ...]: ...

def trace_effects(
    inner_refs: Sequence[Any],
    graphdef: GraphDef,
    in_leaves: Sequence[Any],
    result: Any,
    keep: bool | Sequence[bool],
    /,
) -> tuple[Effects, list[Any]]:
    """Walk again after the user's function ran on the objects `inner_refs` (from `unflatten(graphdef, in_leaves)`):
    what changed against `graphdef`, and the output leaves. Where `keep` is False (for all leaves, or
    leaf by leaf) a leaf is output even if it did not change."""

def apply_effects(
    effects: Effects, refs: Sequence[Any], in_leaves: Sequence[Any], out_leaves: Sequence[Any], /
) -> Any:
    """Scatter into the caller's objects `refs` and return the rebuilt result: all or nothing."""

@final
class Outputs:
    """Pytree node that carries output leaves through a JAX transform, with its Effects as aux data."""

    def __init__(self, effects: Effects, leaves: Sequence[Any]) -> None: ...
    effects: Effects
    leaves: tuple[Any, ...]

def _flatten_outputs(outputs: Outputs, /) -> tuple[tuple[Any, ...], Effects]: ...
def _unflatten_outputs(effects: Effects, leaves: Sequence[Any], /) -> Outputs: ...
def separate(flat: Flat, donated: Iterable[int], /) -> tuple[list[int], list[int]]:
    """Of the leaves to be donated, those in nodes whose arrays others hold as well, and all that need a
    copy. To be asked where the walk and one list of its leaves hold them."""

@final
class Dispatcher:
    """The callable that `treadle.jit` returns: verify, gather, call, scatter.

    `api` is its Python side: `plan(graphdef, leaves)` gives the compiled function, the donated leaves
    and a list that the first trace puts its effects into, `on_error(graphdef, leaves, error)` a better
    error or None, `copy(array)` a copy; attributes the dispatcher lacks are looked up there.
    `companions` are nodes that each call has as arguments by name, unless its caller gives others.
    """

    def __init__(
        self,
        api: Any,
        static_argnums: frozenset[int],
        static_argnames: frozenset[str],
        capacity: int,
        companions: dict[str, Any] = ...,
    ) -> None: ...
    def __getattr__(self, name: str) -> Any: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def __get__(self, instance: Any, owner: Any = ..., /) -> Any:
        """As a method: bound to the instance."""

    def __dir__(self) -> list[str]:
        """Its own attributes, and those that `api.attributes` names for users."""

    def _timed(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], /
    ) -> tuple[Any, dict[str, Any]]:
        """Call, and report nanoseconds, leaf counts and the class of the call."""

    def _clear_plans(self) -> None: ...
    _counts: dict[str, int]
    _structures: list[GraphDef]

def is_variable(obj: Any, /) -> bool:
    """True for Variables, of treadle's and of libraries that an adapter describes."""

# The following take a Variable of any library; others are a TypeError.

def raw_value(variable: Any, /) -> Any: ...
def set_raw_value(variable: Any, value: Any, /) -> None:
    """Store a value without hooks; checks the trace level."""

def metadata(variable: Any, /) -> Mapping[str, Any]:
    """Metadata as it is now. Treat as immutable."""

def set_metadata(variable: Any, entries: Mapping[str, Any], /) -> None:
    """Replace all metadata; checks the trace level."""

def new_variable(type: type[Any], value: Any, metadata: Mapping[str, Any], /) -> Any:
    """A Variable of the current trace level, without running `__init__` or hooks."""

def check_mutable(obj: Any, /) -> None:
    """Raise `TraceContextError` if a Variable or node, of any library, belongs to another trace level."""

def counterpart(type: type[Any], /) -> type[Any]:
    """Treadle's Variable type of the same meaning; other types, and treadle's own, stand for themselves."""

def register_node_type(
    type: type[Any],
    flatten: Callable[[Any], tuple[Iterable[tuple[Hashable, Any]], Hashable]],
    create: Callable[[Hashable], Any],
    set_key: Callable[[Any, Hashable, Any], None],
    pop_key: Callable[[Any, Hashable], None],
    /,
) -> None: ...
def is_node(obj: Any, /) -> bool:
    """True for graph nodes and Variables."""

def holds_node(value: Any) -> bool:
    """True for a node, and for a plain container or a callable made of others that leads to one."""

def mark_lifted(
    made: Any, recipe: tuple[str, tuple[Any, ...], tuple[Any, ...]], function: Any
) -> None:
    """Say of what a transform made that it is of a function, by the transform's name and options."""

def recipe_of(value: Any) -> tuple[str, tuple[Any, ...], tuple[Any, ...]] | None:
    """What `mark_lifted` said of a transformed function: the transform's name, arguments and options."""

def callable_parts(value: Any) -> list[tuple[str, Any]]:
    """What a bound method, a partial or a transformed function was made of; nothing for others."""

def configure(**settings: Any) -> None:
    """Called once by the package: error types, JAX's pytree registry, trace source, array predicate, adapters."""

__file__: str
__version__: str
"""Version of treadle that the extension was built from."""

def build_info() -> str:
    """How the extension was compiled, in one line."""

def _live_counts() -> dict[str, int]:
    """How many objects of each class of the core there are. Only in debug builds."""

def _fail_allocation(n: int) -> bool:
    """Make the n-th C++ allocation of this thread from now fail, none if 0. Only in debug builds for Linux.

    True if the failure asked for before has not happened yet.
    """

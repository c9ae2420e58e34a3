"""Modules that run another module under a transform: Vmap, Scan, Remat, Jit and Grad."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, TypeVar

from treadle import _core, pickles
from treadle._modules.module import Module
from treadle._public import publish
from treadle.transforms._arguments import Function
from treadle.transforms._axes import Carry, StateAxes
from treadle.transforms._driver import apply
from treadle.transforms._frozen import DEFAULT_STATE_AXES, ByDefault, FrozenDict, given
from treadle.transforms._grad import grad
from treadle.transforms._jit.jit import jit
from treadle.transforms._remat import remat
from treadle.transforms._scan import scan, scanned
from treadle.transforms._spelling import MapOptions
from treadle.transforms._vmap import VmapRule, vmap, vmapped

if TYPE_CHECKING:
    from treadle._graph.filters import Filter

__all__ = ["Grad", "Jit", "LiftedConstructor", "Remat", "Scan", "Vmap"]

if TYPE_CHECKING:
    import typing_extensions as extensions

    P = extensions.ParamSpec("P", default=...)
    L = extensions.TypeVar("L", bound="Lifted", default=Any)
else:
    P = ParamSpec("P")
    L = TypeVar("L")


class Options:
    """Keyword arguments of a transform, comparable and hashable."""

    __slots__ = ("arguments",)

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = {
            name: _frozen(value) if name in _MAPPINGS else value
            for name, value in arguments.items()
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Options) or self.arguments.keys() != other.arguments.keys():
            return False
        return all(
            _same_option(value, other.arguments[name]) for name, value in self.arguments.items()
        )

    def __hash__(self) -> int:
        return hash(_hashable(self.arguments))

    def __repr__(self) -> str:
        return f"Options({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"

    def __reduce__(self) -> Any:
        plain: dict[str, Any] = {}
        by_default = []
        for name, value in self.arguments.items():
            if isinstance(value, ByDefault):
                value = int(value)
                by_default.append(name)
            elif isinstance(value, FrozenDict):
                if value is DEFAULT_STATE_AXES:
                    by_default.append(name)
                value = dict(value)
            plain[name] = value
        return pickles.options, (pickles.VERSION, plain, tuple(by_default))

    @classmethod
    def loaded(cls, arguments: Mapping[str, Any], by_default: tuple[str, ...]) -> Options:
        """Those of a pickle."""
        defaults = {
            name: ByDefault(value) if isinstance(value, int) else DEFAULT_STATE_AXES
            for name, value in arguments.items()
            if name in by_default
        }
        return cls({**arguments, **defaults})


def _frozen(value: Any) -> Any:
    # The default stays what it is: it can be told from equal axes that are given.
    if value is DEFAULT_STATE_AXES or not isinstance(value, Mapping):
        return value
    return FrozenDict(value)


_MAPPINGS = frozenset({"state_axes", "transform_metadata"})


def _same_option(a: Any, b: Any) -> bool:
    """Whether two options mean the same.

    That is stricter than ``==``: `unroll=True` is not `unroll=1`, and of two mappings from filters
    the order counts, since the first filter that selects a leaf decides.
    """
    if type(a) is not type(b):
        return False
    if isinstance(a, Mapping):
        a, b = tuple(a.items()), tuple(b.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same_option, a, b))
    return bool(a == b)


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Mapping) and not isinstance(value, StateAxes):
        return frozenset((key, _hashable(entry)) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    try:
        hash(value)
    except TypeError:
        return type(value).__name__
    return value


@dataclass(frozen=True)
class LiftedConstructor(Generic[P, L]):
    """What `Vmap(Block, ...)` and its siblings give: called with the arguments of Block, it builds.

    Args:
        kind: `Vmap`, `Scan`, `Remat`, `Jit` or `Grad`.
        module_constructor: class or function that makes the module to be wrapped.
        options: parameters of the transform.

    >>> import treadle as nnx
    >>> make = nnx.Vmap(nnx.Linear, axis_size=4)
    >>> make(2, 3, rngs=nnx.Rngs(0)).vmap_module.kernel.shape
    (4, 2, 3)
    """

    kind: type[L]
    module_constructor: Callable[P, Any]
    options: Options

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> L:
        """Build the module from the wrapped module's own arguments."""
        arguments = self.options.arguments
        wrapped = self.kind._create(self.module_constructor, arguments, args, kwargs)
        instance = self.kind.__new__(self.kind)
        setattr(instance, self.kind._attribute, wrapped)
        instance._options = self.options
        return instance


class _LiftedType(type):
    """Makes ``Vmap(Block, ...)`` mean ``Vmap.constructor(Block, ...)``."""

    if TYPE_CHECKING:

        def __call__(
            cls: type[L],  # pyright: ignore[reportGeneralTypeIssues]
            module_constructor: Callable[P, Any],
            *args: Any,
            **options: Any,
        ) -> LiftedConstructor[P, L]: ...

    else:

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return cls.constructor(*args, **kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        return cls._signature  # type: ignore[attr-defined]


def _constructor_signature(
    transform: Function, defaults: Mapping[str, Any], keyword_only: bool
) -> inspect.Signature:
    """The parameters of a transform, with the maker of a module in the place of the function."""
    signature = inspect.signature(transform)
    first, *others = signature.parameters.values()
    parameters = [first.replace(name="module_constructor", annotation=Callable[..., Any])]
    for parameter in others:
        default = defaults.get(parameter.name, parameter.default)
        kind = parameter.kind if keyword_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(parameter.replace(default=default, kind=kind))
    return signature.replace(parameters=parameters, return_annotation=LiftedConstructor)


class _Delayed:
    """``instance.call.method``: attributes to be looked up on the wrapped module, inside."""

    __slots__ = ("_lifted", "_path")

    def __init__(self, lifted: Lifted, path: tuple[tuple[str, Any], ...]) -> None:
        self._lifted = lifted
        self._path = path

    def __getattr__(self, name: str) -> _Delayed:
        return _Delayed(self._lifted, (*self._path, ("attribute", name)))

    def __getitem__(self, key: Any) -> _Delayed:
        return _Delayed(self._lifted, (*self._path, ("item", key)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        lifted = self._lifted
        module = getattr(lifted, lifted._attribute)
        run = _lifted_call(
            type(lifted),
            lifted._options,
            self._path,
            _method(type(module), self._path),
            _Classes(module),
        )
        return run(module, *args, **kwargs)


def _method(kind: type[Any], path: tuple[tuple[str, Any], ...]) -> Function | None:
    """The method of the wrapped module that a path leads to, if it is one of its class."""
    if len(path) > 1:
        return None
    how, name = path[0] if path else ("attribute", "__call__")
    method = getattr(kind, name, None) if how == "attribute" else None
    return method if inspect.isfunction(method) else None


class _Classes:
    """What the classes of a module and of those below define, object by object.

    A method that is patched or an attribute that is set on a class makes it another one, so that
    nothing which was traced before serves it.
    """

    __slots__ = ("_defined", "_hash")

    def __init__(self, module: Any) -> None:
        self._defined = _core.definitions_below(module)
        self._hash = hash(tuple(map(id, self._defined)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Classes)
            and len(self._defined) == len(other._defined)
            and all(map(operator.is_, self._defined, other._defined))
        )

    def __hash__(self) -> int:
        return self._hash


@functools.lru_cache(maxsize=256)
def _lifted_call(
    kind: type[Lifted],
    options: Options,
    path: tuple[tuple[str, Any], ...],
    method: Function | None,
    classes: _Classes,
) -> Function:
    """Made anew where `classes` differ: a program is kept with the function."""

    def call(module: Any, /, *args: Any, **kwargs: Any) -> Any:
        target = module
        for how, key in path:
            target = getattr(target, key) if how == "attribute" else target[key]
        return target(*args, **kwargs)

    call.__name__ = str(path[-1][1]) if path else "__call__"
    if method is not None:
        # What the user calls the arguments, and where keywords have their places.
        call.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    return kind._transform(call, options.arguments)


class Lifted(Module, metaclass=_LiftedType):
    """A module that holds another one and runs its methods under a transform.

    A subclass names the transform, whose parameters its constructor takes, and defaults that differ.
    """

    _attribute: ClassVar[str]
    _signature: ClassVar[inspect.Signature]
    _options: Options

    if TYPE_CHECKING:
        # For checkers that pass over the metaclass: its call takes the same.
        def __init__(
            self, module_constructor: Callable[..., Any], *args: Any, **options: Any
        ) -> None: ...

    def __init_subclass__(
        cls,
        transform: Function | None = None,
        defaults: Mapping[str, Any] | None = None,
        keyword_only: bool = True,
    ) -> None:
        super().__init_subclass__()
        if transform is not None:
            cls._signature = _constructor_signature(transform, defaults or {}, keyword_only)

    @classmethod
    def constructor(cls, *args: Any, **kwargs: Any) -> LiftedConstructor:
        """The same as calling the class, as in ``Vmap(module_constructor, ...)``.

        >>> import treadle as nnx
        >>> make = nnx.Vmap.constructor(nnx.Linear, axis_size=5)
        >>> make == nnx.Vmap(nnx.Linear, axis_size=5)
        True
        """
        bound = cls._signature.bind(*args, **kwargs)
        cls._complete(bound)
        options = dict(bound.arguments)
        module_constructor = options.pop("module_constructor")
        if not callable(module_constructor):
            raise TypeError(
                f"{cls.__name__} wraps a class or function that makes a module, got "
                f"{module_constructor!r}."
            )
        made = LiftedConstructor(cls, module_constructor, Options(options))
        # Wrong options are to be found here, not when the module is called.
        cls._transform(module_constructor, made.options.arguments)
        return made

    @classmethod
    def _complete(cls, bound: inspect.BoundArguments) -> None:
        """Fill in what is not given, so that constructors which mean the same are equal."""
        bound.apply_defaults()

    @classmethod
    def _create(
        cls,
        module_constructor: Callable[..., Any],
        options: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Make the wrapped module."""
        return module_constructor(*args, **kwargs)

    @classmethod
    def _transform(cls, call: Function, options: Mapping[str, Any]) -> Function:
        """The transformed `call`, a function of the wrapped module and its arguments."""
        raise NotImplementedError

    @property
    def call(self) -> Any:
        """The wrapped module as callable: ``instance.call.method(x)`` runs a method transformed."""
        return _Delayed(self, ())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the wrapped module's ``__call__`` under the transform."""
        return self.call(*args, **kwargs)


def _module_axes(options: Mapping[str, Any]) -> Mapping[Filter, int | None]:
    """Axes of the wrapped module's own state: how it is stacked when it is made."""
    in_axes = options["in_axes"]
    entry = in_axes[0] if isinstance(in_axes, (tuple, list)) and in_axes else in_axes
    if isinstance(entry, StateAxes):
        axes = zip(entry.filters, entry.axes, strict=True)
        return FrozenDict({f: None if axis is Carry else axis for f, axis in axes})
    return options["state_axes"]


def _create_stacked(
    name: str,
    parameter: str,
    module_constructor: Callable[..., Any],
    options: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    **names: Any,
) -> Any:
    """Make a module mapped over split random streams; everything else is the same in each slice."""

    def create(**nodes: Any) -> Any:
        inner_args, inner_kwargs = nodes["arguments"]
        return module_constructor(*inner_args, **inner_kwargs)

    create.__name__ = getattr(module_constructor, "__name__", type(module_constructor).__name__)
    map_options = MapOptions(
        name,
        of_class=True,
        in_axes=None,
        in_axes_kwargs=None,
        state_axes=_module_axes(options),
        split_rngs=options["split_rngs"],
        transform_metadata=options["transform_metadata"],
        input_state_axes=FrozenDict({}),
    )
    rule = VmapRule(map_options, options[parameter], parameter, **names)
    return apply(rule, create, (), {"arguments": (args, kwargs)})


class Vmap(Lifted, transform=vmap):
    """A stack of modules that are called all at once, mapped by `vmap`.

    ``Vmap(Block, axis_size=5, ...)`` gives a constructor with the arguments of ``Block``. Calling
    it makes the blocks, mapped over split random streams with all other arguments the same, and
    returns an instance that holds them stacked as ``vmap_module``.

    Args:
        module_constructor: class or function that makes the module.
        in_axes, out_axes, axis_name, axis_size, spmd_axis_name, in_axes_kwargs, state_axes,
        split_rngs, transform_metadata: as in `vmap`. The wrapped module is positional argument 0.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> stack = nnx.Vmap(nnx.Linear, axis_size=5)(2, 3, rngs=nnx.Rngs(0))
    >>> stack.vmap_module.kernel.shape, stack(jnp.ones((5, 2))).shape
    ((5, 2, 3), (5, 3))
    """

    _attribute = "vmap_module"
    vmap_module: Any

    @classmethod
    def _create(
        cls,
        module_constructor: Callable[..., Any],
        options: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        names = {name: options[name] for name in ("axis_name", "spmd_axis_name")}
        return _create_stacked(
            "Vmap", "axis_size", module_constructor, options, args, kwargs, **names
        )

    @classmethod
    def _transform(cls, call: Function, options: Mapping[str, Any]) -> Function:
        return vmapped(call, given=given(options), of_class=True, **options)


class Scan(Lifted, transform=scan, defaults={"carry_argnum": ByDefault(1)}):
    """A stack of modules that are called one after the other, by `scan`.

    ``Scan(Block, length=5, ...)`` gives a constructor with the arguments of ``Block``. Calling it
    makes the blocks, mapped over split random streams with all other arguments the same, and
    returns an instance that holds them stacked as ``scan_module``. State that no filter of
    `state_axes` selects is made once and carried from block to block.

    Args:
        module_constructor: class or function that makes the module.
        length, reverse, unroll, _split_transpose, in_axes, in_axes_kwargs, out_axes, carry_argnum,
        state_axes, split_rngs, transform_metadata, scan_output: as in `scan`. The wrapped module is
        positional argument 0, so the carry is the first argument of the call.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> class Block(nnx.Module):
    ...     def __init__(self, rngs):
    ...         self.linear = nnx.Linear(3, 3, rngs=rngs)
    ...     def __call__(self, x):
    ...         return nnx.relu(self.linear(x)), x.sum()
    >>> stack = nnx.Scan(Block, length=5)(rngs=nnx.Rngs(0))
    >>> x, sums = stack(jnp.ones((1, 3)))
    >>> stack.scan_module.linear.kernel.shape, x.shape, sums.shape
    ((5, 3, 3), (1, 3), (5,))
    """

    _attribute = "scan_module"
    scan_module: Any

    @classmethod
    def _create(
        cls,
        module_constructor: Callable[..., Any],
        options: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        return _create_stacked("Scan", "length", module_constructor, options, args, kwargs)

    @classmethod
    def _transform(cls, call: Function, options: Mapping[str, Any]) -> Function:
        return scanned(call, given=given(options), of_class=True, **options)


class Remat(Lifted, transform=remat, keyword_only=False):
    """A module whose intermediate values are computed again in the backward pass, by `remat`.

    Args:
        module_constructor: class or function that makes the module, kept as ``remat_module``.
        prevent_cse, static_argnums, policy: as in `remat`. The wrapped module is positional
            argument 0.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.Remat(nnx.Linear)(2, 3, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 2))).shape, layer.remat_module.kernel.shape
    ((1, 3), (2, 3))
    """

    _attribute = "remat_module"
    remat_module: Any

    @classmethod
    def _transform(cls, call: Function, options: Mapping[str, Any]) -> Function:
        return remat(call, **options)


class Jit(Lifted, transform=jit):
    """A module whose methods run compiled, by `jit`.

    Args:
        module_constructor: class or function that makes the module, kept as ``jit_module``.
        **options: parameters of `jit`. The wrapped module is positional argument 0.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.Jit(nnx.Linear)(2, 3, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 2))).shape, layer.jit_module.kernel.shape
    ((1, 3), (2, 3))
    """

    _attribute = "jit_module"
    jit_module: Any

    @classmethod
    def _complete(cls, bound: inspect.BoundArguments) -> None:
        """`jit` tells options that are not given from such as have their default."""

    @classmethod
    def _transform(cls, call: Function, options: Mapping[str, Any]) -> Function:
        return jit(call, **options)


class Grad(Lifted, transform=grad):
    """A module that returns the gradient of what the wrapped one returns, by `grad`.

    Args:
        module_constructor: class or function that makes the module, kept as ``grad_module``.
        argnums, has_aux, holomorphic, allow_int, reduce_axes, wrt: as in `grad`. The wrapped module
            is positional argument 0.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> class Loss(nnx.Module):
    ...     def __init__(self):
    ...         self.w = nnx.Param(jnp.array(3.0))
    ...     def __call__(self, x):
    ...         return self.w * x
    >>> grads = nnx.Grad(Loss)()(jnp.array(2.0))
    >>> float(grads["w"].value)
    2.0
    """

    _attribute = "grad_module"
    grad_module: Any

    @classmethod
    def _transform(cls, call: Function, options: Mapping[str, Any]) -> Function:
        return grad(call, **options)


publish(__all__, globals())

"""Dense layers: `Linear`, `LinearGeneral` and `Einsum`.

Initializers are used at construction and not kept: a module then stays picklable, and has fewer
statics to compare at each call.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from treadle._modules.module import Module
from treadle._modules.rngs import Rngs
from treadle._objects.variables import Param, VariableMetadata
from treadle._public import publish
from treadle.nn import initializers
from treadle.nn._dtypes import promote_dtype as default_promote_dtype
from treadle.nn._options import (
    Initializer,
    PromoteDtype,
    as_tuple,
    check_bias,
    held,
    make_param,
    normalize_axes,
)

__all__ = ["Einsum", "Linear", "LinearGeneral"]

default_kernel_init = initializers.lecun_normal()
default_bias_init = initializers.zeros

NO_METADATA: Mapping[str, Any] = {}


def _op_options(**options: Any) -> dict[str, Any]:
    # User-supplied products need not know options that nobody asked for.
    return {name: value for name, value in options.items() if value is not None}


class Linear(Module):
    """A linear map of the last axis, `y = x @ kernel + bias`.

    Args:
        in_features: size of the last axis of the inputs.
        out_features: size of the last axis of the outputs.
        use_bias: whether to add a bias.
        dtype: dtype of the computation; None: the common dtype of inputs and parameters.
        param_dtype: dtype the parameters are created in.
        precision: precision of the product, see `jax.lax.Precision`.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.
        dot_general: the product, with the signature of `jax.lax.dot_general`.
        promote_dtype: casts inputs and parameters to the dtype of the computation.
        preferred_element_type: dtype the product accumulates in, see `jax.lax.dot_general`.
        rngs: draws the initial parameters, from the stream `params`.
        kernel_metadata: metadata of the kernel's `Param`.
        bias_metadata: metadata of the bias's `Param`.

    Attributes:
        kernel: `Param` of shape `(in_features, out_features)`.
        bias: `Param` of shape `(out_features,)`, or None.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((5, 2))).shape
    (5, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Any = None,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        dot_general: Callable[..., jax.Array] = lax.dot_general,
        promote_dtype: PromoteDtype = default_promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        self.kernel = make_param(
            self, kernel_init, rngs, (in_features, out_features), param_dtype, kernel_metadata
        )
        self.bias: Param[jax.Array] | None = None
        if use_bias:
            self.bias = make_param(
                self, bias_init, rngs, (out_features,), param_dtype, bias_metadata
            )
        self.in_features = in_features
        self.out_features = out_features
        self.use_bias = use_bias
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.dot_general = dot_general
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Apply the map.

        Args:
            inputs: `(..., in_features)`; on a shard, as many as the kernel has rows.

        Returns:
            `(..., out_features)`, in the dtype of the computation.

        Raises:
            ValueError: the last axis does not have as many entries as the kernel has rows, or
                kernel and bias do not fit each other.
        """
        kernel, bias = held(self.kernel), held(self.bias)
        if kernel.ndim != 2:
            raise ValueError(
                f"Linear has a kernel of shape {kernel.shape} instead of (in_features, "
                "out_features); call a stack of layers through vmap or scan"
            )
        if inputs.ndim == 0 or inputs.shape[-1] != kernel.shape[0]:
            raise ValueError(
                f"Linear expects inputs of shape (..., {kernel.shape[0]}), got {inputs.shape}; its "
                f"kernel has shape {kernel.shape}"
            )
        check_bias(self, bias, kernel.shape[1:], kernel)
        inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        out = self.dot_general(
            inputs,
            kernel,
            (((inputs.ndim - 1,), (0,)), ((), ())),
            precision=self.precision,
            **_op_options(preferred_element_type=self.preferred_element_type),
        )
        if bias is not None:
            out = out + bias
        return out


class LinearGeneral(Module):
    """A linear map of any axes of the inputs to any number of new axes.

    Args:
        in_features: sizes of the axes that are mapped, one number or several.
        out_features: sizes of the axes that replace them, at the end of the outputs.
        axis: which axes of the inputs are mapped, as many as `in_features`. The order makes no
            difference: `in_features` are the sizes of the axes from front to back.
        batch_axis: leading axes that have a kernel of their own, as `{axis: size}`.
        use_bias: whether to add a bias.
        dtype: dtype of the computation; None: the common dtype of inputs and parameters.
        param_dtype: dtype the parameters are created in.
        kernel_init: initializer; it sees the kernel as a matrix of the products of the sizes.
        bias_init: initializer of the bias, which it sees as a vector.
        precision: precision of the product, see `jax.lax.Precision`.
        promote_dtype: casts inputs and parameters to the dtype of the computation.
        dot_general: the product, with the signature of `jax.lax.dot_general`.
        preferred_element_type: dtype the product accumulates in, see `jax.lax.dot_general`.
        rngs: draws the initial parameters, from the stream `params`.
        kernel_metadata: metadata of the kernel's `Param`.
        bias_metadata: metadata of the bias's `Param`.

    Attributes:
        kernel: `Param` of shape `(*batch sizes, *in_features, *out_features)`.
        bias: `Param` of shape `(*batch sizes, *out_features)`, or None.

    Raises:
        ValueError: as many axes as `in_features` are not given, or the batch axes are not
            0, 1, 2, and so on.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.LinearGeneral((2, 3), (4, 5), axis=(1, -1), rngs=nnx.Rngs(0))
    >>> layer.kernel.value.shape, layer(jnp.ones((7, 2, 6, 3))).shape
    ((2, 3, 4, 5), (7, 6, 4, 5))
    """

    # Over 60 lines: the signature is the interface, so each parameter is spelled out.
    def __init__(
        self,
        in_features: int | Sequence[int],
        out_features: int | Sequence[int],
        *,
        axis: int | Sequence[int] = -1,
        batch_axis: Mapping[int, int] = {},
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        precision: Any = None,
        promote_dtype: PromoteDtype = default_promote_dtype,
        dot_general: Callable[..., jax.Array] | None = None,
        preferred_element_type: DTypeLike | None = None,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        self.in_features = as_tuple(in_features)
        self.out_features = as_tuple(out_features)
        self.axis = as_tuple(axis)
        self.batch_axis = tuple(sorted((int(a), int(n)) for a, n in batch_axis.items()))
        self.use_bias = use_bias
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.promote_dtype = promote_dtype
        self.dot_general = lax.dot_general if dot_general is None else dot_general
        self.preferred_element_type = preferred_element_type
        if len(self.axis) != len(self.in_features):
            raise ValueError(
                f"axis={self.axis} names {len(self.axis)} axes for in_features={self.in_features}; "
                "give one axis per entry of in_features"
            )
        if tuple(a for a, _ in self.batch_axis) != tuple(range(len(self.batch_axis))):
            raise ValueError(
                f"batch_axis={dict(self.batch_axis)} must name the leading axes 0, 1, ... in turn"
            )

        batch = tuple(n for _, n in self.batch_axis)
        rows = math.prod(batch) * math.prod(self.in_features)
        columns = math.prod(self.out_features)

        def matrix_init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> Any:
            return _reshaped(kernel_init(key, (rows, columns), dtype), shape)

        def vector_init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> Any:
            return _reshaped(bias_init(key, (math.prod(shape),), dtype), shape)

        self.kernel = make_param(
            self,
            matrix_init,
            rngs,
            batch + self.in_features + self.out_features,
            param_dtype,
            kernel_metadata,
        )
        self.bias: Param[jax.Array] | None = None
        if use_bias:
            self.bias = make_param(
                self, vector_init, rngs, batch + self.out_features, param_dtype, bias_metadata
            )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Apply the map.

        Args:
            inputs: an array whose axes `axis` have the sizes `in_features`; on a shard, those that
                the kernel has.

        Returns:
            The batch axes, then the other axes of the inputs in order, then `out_features`.

        Raises:
            ValueError: axes of the inputs that do not have the kernel's sizes, or kernel and bias
                do not fit each other.
        """
        ndim = inputs.ndim
        kernel, bias = held(self.kernel), held(self.bias)
        contract = normalize_axes(self.axis, ndim)
        batch = tuple(a for a, _ in self.batch_axis)
        axes = batch + contract
        if kernel.ndim != len(axes) + len(self.out_features):
            raise ValueError(
                f"LinearGeneral has a kernel of shape {kernel.shape}, which has other axes than "
                f"the {len(axes) + len(self.out_features)} it was made with; call a stack of "
                "layers through vmap or scan"
            )
        wanted = tuple(kernel.shape[: len(axes)])
        out_features = tuple(kernel.shape[len(axes) :])
        if tuple(inputs.shape[a] for a in axes) != wanted:
            raise ValueError(
                f"LinearGeneral expects sizes {wanted} on axes {axes} of its inputs, got shape "
                f"{inputs.shape}; its kernel has shape {kernel.shape}"
            )
        check_bias(self, bias, wanted[: len(batch)] + out_features, kernel)
        kept = tuple(inputs.shape[a] if a in batch else 1 for a in range(ndim) if a not in contract)
        inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        kernel_contract = tuple(range(len(batch), len(axes)))
        out = self.dot_general(
            inputs,
            kernel,
            ((contract, kernel_contract), (batch, batch)),
            precision=self.precision,
            **_op_options(preferred_element_type=self.preferred_element_type),
        )
        if bias is not None:
            out = out + jnp.reshape(bias, kept + out_features)
        return out


class Einsum(Module):
    """An Einstein summation of the inputs with a kernel, plus an optional bias.

    Args:
        einsum_str: the summation, `"inputs,kernel->outputs"`.
        kernel_shape: shape of the kernel.
        bias_shape: shape of the bias, one number for each output axis that the kernel has too, in
            the order of the outputs (those of an ellipsis in the kernel are such axes); None: no
            bias.
        dtype: dtype of the computation; None: the common dtype of inputs and parameters.
        param_dtype: dtype the parameters are created in.
        precision: precision of the product, see `jax.lax.Precision`.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.
        promote_dtype: casts inputs and parameters to the dtype of the computation.
        einsum_op: the summation, with the signature of `jax.numpy.einsum`.
        preferred_element_type: dtype the product accumulates in, see `jax.numpy.einsum`.
        rngs: draws the initial parameters, from the stream `params`.
        kernel_metadata: metadata of the kernel's `Param`.
        bias_metadata: metadata of the bias's `Param`.

    Attributes:
        kernel: `Param` of shape `kernel_shape`.
        bias: `Param` of shape `bias_shape`, or None.

    Raises:
        ValueError: the string does not have two operands and an output.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.Einsum("nta,hab->nthb", (8, 2, 4), (8, 4), rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((16, 11, 2))).shape
    (16, 11, 8, 4)
    """

    def __init__(
        self,
        einsum_str: str,
        kernel_shape: Sequence[int],
        bias_shape: Sequence[int] | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Any = None,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        promote_dtype: PromoteDtype = default_promote_dtype,
        einsum_op: Callable[..., jax.Array] = jnp.einsum,
        preferred_element_type: DTypeLike | None = None,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        self.einsum_str = _checked_einsum(einsum_str)
        self.kernel_shape = as_tuple(kernel_shape)
        self.bias_shape = None if bias_shape is None else as_tuple(bias_shape)
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.promote_dtype = promote_dtype
        self.einsum_op = einsum_op
        self.preferred_element_type = preferred_element_type
        self.kernel = make_param(
            self, kernel_init, rngs, self.kernel_shape, param_dtype, kernel_metadata
        )
        self.bias: Param[jax.Array] | None = None
        if self.bias_shape is not None:
            self.bias = make_param(
                self, bias_init, rngs, self.bias_shape, param_dtype, bias_metadata
            )

    def __call__(self, inputs: jax.Array, einsum_str: str | None = None) -> jax.Array:
        """Apply the summation.

        Args:
            inputs: the first operand.
            einsum_str: another summation for this call; None: the module's own.

        Returns:
            The result of the summation, in the dtype of the computation.

        Raises:
            ValueError: a string without two operands and an output, or a bias that does not fit
                the outputs.
        """
        einsum_str = self.einsum_str if einsum_str is None else _checked_einsum(einsum_str)
        kernel, bias = held(self.kernel), held(self.bias)
        if bias is not None:
            bias = _spread(bias, einsum_str, inputs.ndim, kernel.shape)
        inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        out = self.einsum_op(
            einsum_str,
            inputs,
            kernel,
            precision=self.precision,
            **_op_options(preferred_element_type=self.preferred_element_type),
        )
        if bias is not None:
            out = out + bias
        return out


def _spread(bias: Any, einsum_str: str, ndim: int, kernel_shape: tuple[int, ...]) -> Any:
    """The bias with a 1 for every output axis that comes from the inputs alone.

    Args:
        bias: the bias.
        einsum_str: the summation, without spaces.
        ndim: rank of the inputs.
        kernel_shape: shape of the kernel.

    Raises:
        ValueError: another number of entries than the kernel gives those axes.
    """
    operands, output = einsum_str.split("->")
    inputs_text, kernel_text = operands.split(",")
    inputs_labels = _axis_labels(inputs_text, ndim)
    kernel_labels = _axis_labels(kernel_text, len(kernel_shape))
    # Ellipses of several operands are aligned at their ends; the output has the longest.
    rank = max(sum(isinstance(a, int) for a in b) for b in (inputs_labels, kernel_labels))
    output_labels = _axis_labels(output, len(output.replace("...", "")) + rank)
    sizes = dict(zip(kernel_labels, kernel_shape, strict=False))
    shape = tuple(sizes.get(label, 1) for label in output_labels)
    if math.prod(bias.shape) != math.prod(shape):
        raise ValueError(
            f"bias_shape={tuple(bias.shape)} does not fit the outputs of {einsum_str!r}: the kernel "
            f"of shape {tuple(kernel_shape)} needs a bias that reshapes to {shape}"
        )
    return jnp.reshape(bias, shape)


def _axis_labels(text: str, ndim: int) -> list[str | int]:
    """A label for each axis; those of an ellipsis are numbers that count back from its end."""
    before, dots, after = text.partition("...")
    rank = ndim - len(before) - len(after) if dots else 0
    return [*before, *range(-max(rank, 0), 0), *after]


def _checked_einsum(einsum_str: str) -> str:
    found = einsum_str.replace(" ", "")
    if found.count(",") != 1 or found.count("->") != 1:
        raise ValueError(
            f"einsum_str={einsum_str!r} must have two operands and an output, "
            "such as 'inputs,kernel->outputs'"
        )
    return found


def _reshaped(value: Any, shape: tuple[int, ...]) -> Any:
    """Reshape what an initializer made, also when it carries metadata around the array."""
    if isinstance(value, VariableMetadata):
        return VariableMetadata(jnp.reshape(value.raw_value, shape), value.metadata)
    return jnp.reshape(value, shape)


publish(__all__, globals())

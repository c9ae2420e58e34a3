"""Convolutions over channels-last arrays: `Conv` and `ConvTranspose`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from treadle._modules.module import Module
from treadle._public import publish
from treadle.nn._dtypes import promote_dtype as default_promote_dtype
from treadle.nn._linear import NO_METADATA, default_bias_init, default_kernel_init
from treadle.nn._options import (
    Initializer,
    PromoteDtype,
    as_tuple,
    check_bias,
    held,
    make_param,
    per_dimension,
)

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from treadle._modules.rngs import Rngs
    from treadle._objects.variables import Param

__all__ = ["Conv", "ConvTranspose"]

Padding = str | int | Sequence[int | tuple[int, int]]

# Paddings that are not XLA's, and the `jnp.pad` mode that makes them.
_PADDED_BY_HAND = {"CIRCULAR": "wrap", "REFLECT": "reflect", "CAUSAL": "constant"}


class Conv(Module):
    """A convolution over the spatial axes of channels-last inputs.

    Args:
        in_features: channels of the inputs.
        out_features: channels of the outputs.
        kernel_size: size of the kernel, one number per spatial dimension; a bare number means one
            dimension.
        strides: steps of the window.
        padding: `"SAME"`, `"VALID"`, `"CIRCULAR"`, `"REFLECT"`, `"CAUSAL"` (one dimension only), a
            number, or per dimension a number or a pair `(low, high)`.
        input_dilation: dilation of the inputs; more than 1 gives a transposed convolution.
        kernel_dilation: dilation of the kernel, known as atrous convolution.
        feature_group_count: number of groups into which the channels are divided.
        use_bias: whether to add a bias.
        mask: multiplied with the kernel before use; shape of the kernel or broadcastable to it.
        dtype: dtype of the computation; None: the common dtype of inputs and parameters.
        param_dtype: dtype the parameters are created in.
        precision: precision of the product, see `jax.lax.Precision`.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.
        conv_general_dilated: the convolution, with the signature of
            `jax.lax.conv_general_dilated`.
        promote_dtype: casts inputs and parameters to the dtype of the computation.
        preferred_element_type: dtype the product accumulates in.
        rngs: draws the initial parameters, from the stream `params`.
        kernel_metadata: metadata of the kernel's `Param`.
        bias_metadata: metadata of the bias's `Param`.

    Attributes:
        kernel: `Param` of shape `(*kernel_size, in_features // feature_group_count, out_features)`.
        bias: `Param` of shape `(out_features,)`, or None.

    Raises:
        ValueError: sizes that do not match the number of spatial dimensions, channels that the
            groups do not divide, or an unknown padding.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.Conv(1, 4, kernel_size=(3, 3), padding="VALID", rngs=nnx.Rngs(0))
    >>> layer.kernel.value.shape, layer(jnp.ones((2, 8, 8, 1))).shape
    ((3, 3, 1, 4), (2, 6, 6, 4))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        padding: Padding = "SAME",
        input_dilation: int | Sequence[int] | None = 1,
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        mask: jax.Array | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Any = None,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        conv_general_dilated: Callable[..., jax.Array] = lax.conv_general_dilated,
        promote_dtype: PromoteDtype = default_promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        self.kernel_size = as_tuple(kernel_size)
        ndim = len(self.kernel_size)
        if in_features % feature_group_count or out_features % feature_group_count:
            raise ValueError(
                f"feature_group_count={feature_group_count} must divide in_features={in_features} "
                f"and out_features={out_features}"
            )
        self.kernel_shape = (*self.kernel_size, in_features // feature_group_count, out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.strides = per_dimension("strides", strides, ndim)
        self.padding = _canonical_padding(padding, ndim, ("SAME", "VALID", *_PADDED_BY_HAND))
        self.input_dilation = per_dimension("input_dilation", input_dilation, ndim)
        self.kernel_dilation = per_dimension("kernel_dilation", kernel_dilation, ndim)
        self.feature_group_count = feature_group_count
        self.use_bias = use_bias
        self.mask = _checked_mask(mask, self.kernel_shape)
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.conv_general_dilated = conv_general_dilated
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type
        # Only now, so that wrong options leave the streams as they are.
        self.kernel = make_param(
            self, kernel_init, rngs, self.kernel_shape, param_dtype, kernel_metadata
        )
        self.bias: Param[jax.Array] | None = None
        if use_bias:
            self.bias = make_param(
                self, bias_init, rngs, (out_features,), param_dtype, bias_metadata
            )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolve.

        Args:
            inputs: `(*batch, *spatial, in_features)`, with any number of batch axes, also none; on a
                shard, as many channels as the kernel takes.

        Returns:
            `(*batch, *spatial', out_features)`, in the dtype of the computation.

        Raises:
            ValueError: inputs of another rank or number of channels, or kernel, mask and bias do
                not fit each other.
        """
        kernel, bias = _kernel_and_bias(self)
        out_features = kernel.shape[-1]
        groups = _groups(self, out_features)
        flat, batch = _with_one_batch_axis(self, inputs, kernel, kernel.shape[-2] * groups)
        check_bias(self, bias, (out_features,), kernel)
        flat, kernel, bias = self.promote_dtype((flat, kernel, bias), dtype=self.dtype)
        padding = self.padding
        if isinstance(padding, str) and padding in _PADDED_BY_HAND:
            flat = _pad_by_hand(flat, padding, kernel.shape[:-2], self.kernel_dilation)
            padding = "VALID"
        options: dict[str, Any] = {}
        if self.preferred_element_type is not None:
            options["preferred_element_type"] = self.preferred_element_type
        out = self.conv_general_dilated(
            flat,
            kernel,
            self.strides,
            padding,
            lhs_dilation=self.input_dilation,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=_channels_last(flat.ndim),
            feature_group_count=groups,
            precision=self.precision,
            **options,
        )
        if bias is not None:
            out = out + bias
        return jnp.reshape(out, batch + out.shape[1:])


class ConvTranspose(Module):
    """A transposed convolution, the gradient of a convolution with respect to its inputs.

    Args:
        in_features: channels of the inputs.
        out_features: channels of the outputs.
        kernel_size: size of the kernel, one number per spatial dimension; a bare number means one
            dimension.
        strides: factor by which each spatial dimension grows.
        padding: `"SAME"`, `"VALID"`, a number, or per dimension a number or a pair `(low, high)`.
        kernel_dilation: dilation of the kernel.
        use_bias: whether to add a bias.
        mask: multiplied with the kernel before use; shape of the kernel or broadcastable to it.
        dtype: dtype of the computation; None: the common dtype of inputs and parameters.
        param_dtype: dtype the parameters are created in.
        precision: precision of the product, see `jax.lax.Precision`.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.
        transpose_kernel: flip the kernel and swap its channels, so that the layer is the exact
            transpose of a `Conv` with the same kernel.
        promote_dtype: casts inputs and parameters to the dtype of the computation.
        preferred_element_type: dtype the product accumulates in.
        rngs: draws the initial parameters, from the stream `params`.
        kernel_metadata: metadata of the kernel's `Param`.
        bias_metadata: metadata of the bias's `Param`.

    Attributes:
        kernel: `Param` of shape `(*kernel_size, in_features, out_features)`, the channels swapped
            with `transpose_kernel`.
        bias: `Param` of shape `(out_features,)`, or None.

    Raises:
        ValueError: sizes that do not match the number of spatial dimensions, or another padding.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.ConvTranspose(3, 4, kernel_size=(3,), strides=2, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 8, 3))).shape
    (1, 16, 4)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = None,
        *,
        padding: Padding = "SAME",
        kernel_dilation: int | Sequence[int] | None = None,
        use_bias: bool = True,
        mask: jax.Array | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Any = None,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        transpose_kernel: bool = False,
        promote_dtype: PromoteDtype = default_promote_dtype,
        preferred_element_type: DTypeLike | None = None,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        self.kernel_size = as_tuple(kernel_size)
        ndim = len(self.kernel_size)
        channels = (out_features, in_features) if transpose_kernel else (in_features, out_features)
        self.kernel_shape = self.kernel_size + channels
        self.in_features = in_features
        self.out_features = out_features
        self.strides = per_dimension("strides", strides, ndim)
        self.padding = _canonical_padding(padding, ndim, ("SAME", "VALID"))
        self.kernel_dilation = per_dimension("kernel_dilation", kernel_dilation, ndim)
        self.use_bias = use_bias
        self.mask = _checked_mask(mask, self.kernel_shape)
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.transpose_kernel = transpose_kernel
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type
        # Only now, so that wrong options leave the streams as they are.
        self.kernel = make_param(
            self, kernel_init, rngs, self.kernel_shape, param_dtype, kernel_metadata
        )
        self.bias: Param[jax.Array] | None = None
        if use_bias:
            self.bias = make_param(
                self, bias_init, rngs, (out_features,), param_dtype, bias_metadata
            )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolve.

        Args:
            inputs: `(*batch, *spatial, in_features)`, with any number of batch axes, also none; on a
                shard, as many channels as the kernel takes.

        Returns:
            `(*batch, *spatial', out_features)`, in the dtype of the computation.

        Raises:
            ValueError: inputs of another rank or number of channels, or kernel, mask and bias do
                not fit each other.
        """
        kernel, bias = _kernel_and_bias(self)
        channels = kernel.shape[-2:]
        taken, made = reversed(channels) if self.transpose_kernel else channels
        flat, batch = _with_one_batch_axis(self, inputs, kernel, taken)
        check_bias(self, bias, (made,), kernel)
        flat, kernel, bias = self.promote_dtype((flat, kernel, bias), dtype=self.dtype)
        out = lax.conv_transpose(
            flat,
            kernel,
            self.strides,
            self.padding,
            rhs_dilation=self.kernel_dilation,
            transpose_kernel=self.transpose_kernel,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )
        if bias is not None:
            out = out + bias
        return jnp.reshape(out, batch + out.shape[1:])


def _canonical_padding(padding: Padding, ndim: int, names: tuple[str, ...]) -> Any:
    if isinstance(padding, str):
        found = padding.upper()
        if found not in names:
            raise ValueError(f"padding={padding!r} is not one of {', '.join(names)}")
        if found == "CAUSAL" and ndim != 1:
            raise ValueError("padding='CAUSAL' works on one spatial dimension only")
        return found
    entries = (padding,) * ndim if isinstance(padding, int) else tuple(padding)
    if len(entries) != ndim:
        raise ValueError(f"padding={padding!r} needs one entry for each of {ndim} dimension(s)")
    return tuple(
        (entry, entry) if isinstance(entry, int) else (int(entry[0]), int(entry[1]))
        for entry in entries
    )


def _checked_mask(mask: jax.Array | None, kernel_shape: tuple[int, ...]) -> jax.Array | None:
    if mask is not None:
        tail = kernel_shape[len(kernel_shape) - mask.ndim :] if mask.ndim else ()
        sizes = zip(mask.shape, tail, strict=False)
        if mask.ndim > len(kernel_shape) or any(m not in (1, k) for m, k in sizes):
            raise ValueError(
                f"mask of shape {mask.shape} does not fit the kernel of shape {kernel_shape}"
            )
    return mask


def _groups(layer: Conv, out_features: int) -> int:
    """Groups of channels in a kernel of `out_features`; those of a shard are fewer, or part of one.

    Raises:
        ValueError: whole groups and a part of one.
    """
    size = layer.out_features // layer.feature_group_count
    if out_features % size and size % out_features:
        raise ValueError(
            f"Conv has {out_features} output channels on this shard of its kernel, which cuts its "
            f"groups of {size} channels; shard by whole groups"
        )
    return max(1, out_features // size)


def _with_one_batch_axis(
    layer: Conv | ConvTranspose, inputs: jax.Array, kernel: Any, channels: int
) -> tuple[jax.Array, tuple[int, ...]]:
    spatial = kernel.ndim - 2
    outer = inputs.ndim - spatial - 1
    if outer < 0 or inputs.shape[-1] != channels:
        dims = ", ".join(["...", *["spatial"] * spatial, str(channels)])
        raise ValueError(
            f"{type(layer).__name__} expects inputs of shape ({dims}), got {inputs.shape}; its "
            f"kernel has shape {kernel.shape}"
        )
    batch = inputs.shape[:outer]
    return jnp.reshape(inputs, (-1, *inputs.shape[outer:])), batch


def _kernel_and_bias(layer: Conv | ConvTranspose) -> tuple[Any, Any]:
    kernel = held(layer.kernel)
    if kernel.ndim != len(layer.kernel_size) + 2:
        raise ValueError(
            f"{type(layer).__name__} has a kernel of shape {kernel.shape}, which has other axes "
            f"than the {len(layer.kernel_size) + 2} it was made with; call a stack of layers "
            "through vmap or scan"
        )
    mask = _checked_mask(held(layer.mask), kernel.shape)
    return kernel if mask is None else kernel * mask, held(layer.bias)


def _pad_by_hand(
    inputs: jax.Array, padding: str, kernel_size: tuple[int, ...], dilation: tuple[int, ...]
) -> jax.Array:
    extra = [(size - 1) * step for size, step in zip(kernel_size, dilation, strict=True)]
    if padding == "CAUSAL":
        sides = [(e, 0) for e in extra]
    else:
        sides = [(e // 2, e - e // 2) for e in extra]
    return jnp.pad(inputs, [(0, 0), *sides, (0, 0)], mode=_PADDED_BY_HAND[padding])


def _channels_last(ndim: int) -> lax.ConvDimensionNumbers:
    images = (0, ndim - 1, *range(1, ndim - 1))
    kernels = (ndim - 1, ndim - 2, *range(ndim - 2))
    return lax.ConvDimensionNumbers(images, kernels, images)


publish(__all__, globals())

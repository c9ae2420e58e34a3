"""Normalization layers: `BatchNorm`, `LayerNorm`, `RMSNorm`, `GroupNorm` and `InstanceNorm`.

Statistics are computed in float32 at least, whatever the dtype of the inputs.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from treadle._modules.module import Module
from treadle._modules.rngs import Rngs
from treadle._objects.variables import BatchStat, Param
from treadle._public import publish
from treadle.nn import initializers
from treadle.nn._dtypes import computation_dtype
from treadle.nn._linear import NO_METADATA
from treadle.nn._options import (
    Initializer,
    as_tuple,
    first_given,
    held,
    make_param,
    normalize_axes,
)

__all__ = ["BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"]

IndexGroups = Sequence[Sequence[int]] | None


def _as_index_groups(groups: IndexGroups) -> tuple[tuple[int, ...], ...] | None:
    return None if groups is None else tuple(as_tuple(group) for group in groups)


def _squared_magnitude(x: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


def _statistics(
    x: jax.Array,
    axes: tuple[int, ...],
    *,
    dtype: DTypeLike | None,
    axis_name: Any,
    axis_index_groups: tuple[tuple[int, ...], ...] | None,
    use_mean: bool = True,
    use_fast_variance: bool = True,
    mask: jax.Array | None = None,
) -> tuple[jax.Array | None, jax.Array]:
    """Mean (None without `use_mean`) and variance over `axes`, which are kept with size 1.

    The fast variance is E[|x|^2] - |E[x]|^2, which needs one pass and one collective, but may lose
    digits where the mean is large; it is clipped at zero. Without a mean, the second moment.
    """
    x = jnp.asarray(x, jnp.promote_types(x.dtype if dtype is None else dtype, jnp.float32))

    def mean(values: jax.Array) -> jax.Array:
        return jnp.mean(values, axes, keepdims=True, where=mask)

    def across(*values: jax.Array) -> tuple[jax.Array, ...]:
        if axis_name is None:
            return values
        return lax.pmean(values, axis_name, axis_index_groups=axis_index_groups)

    if not use_mean:
        (second_moment,) = across(mean(_squared_magnitude(x)))
        return None, second_moment
    if use_fast_variance:
        mu, second_moment = across(mean(x), mean(_squared_magnitude(x)))
        return mu, jnp.maximum(0.0, second_moment - _squared_magnitude(mu))
    (mu,) = across(mean(x))
    (variance,) = across(mean(_squared_magnitude(x - mu)))
    return mu, variance


def _normalize(
    x: jax.Array,
    mean: jax.Array | None,
    variance: jax.Array,
    scale: Param[jax.Array] | None,
    bias: Param[jax.Array] | None,
    feature_shape: tuple[int, ...],
    *,
    epsilon: float,
    dtype: DTypeLike | None,
) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, with all of them broadcast to `x`."""
    gain, offset = held(scale), held(bias)
    out_dtype = computation_dtype(x, gain, offset, dtype=dtype)
    factor = lax.rsqrt(variance + epsilon)
    if gain is not None:
        factor = factor * jnp.reshape(gain, feature_shape)
    y = (x if mean is None else x - mean) * factor
    if offset is not None:
        y = y + jnp.reshape(offset, feature_shape)
    return jnp.asarray(y, out_dtype)


def _shape_on_axes(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """`shape` with a 1 on every axis but `axes`."""
    return tuple(size if axis in axes else 1 for axis, size in enumerate(shape))


# Parameters that all constructors have and that instances keep as they are.
_KEPT = (
    "num_features",
    "epsilon",
    "dtype",
    "param_dtype",
    "use_bias",
    "use_scale",
    "axis_name",
    "use_fast_variance",
)


class _Norm(Module):
    """What normalization layers have in common: a scale, a bias and how statistics are made."""

    num_features: int
    epsilon: float
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    use_bias: bool
    use_scale: bool
    axis_name: str | None
    axis_index_groups: tuple[tuple[int, ...], ...] | None
    use_fast_variance: bool
    scale: Param[jax.Array] | None
    bias: Param[jax.Array] | None

    def _create(self, parameters: Mapping[str, Any], **fixed: Any) -> None:
        """Keep what the constructors of all norms take, and make scale and bias.

        Args:
            parameters: what the constructor was called with, by name.
            **fixed: the same of what it does not offer.
        """
        given = {**parameters, **fixed}
        for name in _KEPT:
            setattr(self, name, given[name])
        self.axis_index_groups = _as_index_groups(given["axis_index_groups"])
        self.scale = self._made("scale", given)
        self.bias = self._made("bias", given)

    def _made(self, name: str, given: Mapping[str, Any]) -> Param[jax.Array] | None:
        if not given[f"use_{name}"]:
            return None
        rngs, shape = given["rngs"], (given["num_features"],)
        initializer, metadata = given[f"{name}_init"], given[f"{name}_metadata"]
        return make_param(self, initializer, rngs, shape, given["param_dtype"], metadata)

    def _check_features(self, x: jax.Array, axes: Sequence[int]) -> None:
        found = math.prod(x.shape[axis] for axis in axes)
        kept = {name: getattr(self, name, None) for name in ("scale", "bias", "mean", "var")}
        shapes = {name: jnp.shape(held(value)) for name, value in kept.items() if value is not None}
        what = f"{type(self).__name__} with num_features={self.num_features}"
        but = f"but its inputs of shape {x.shape} have {found} on axes {tuple(axes)}"
        for name, shape in shapes.items():
            if math.prod(shape) != found:
                raise ValueError(f"{what} has a {name} of shape {shape}, {but}")
        # Nothing is held that would tell a shard from a mistake; shards are of equal sizes.
        if not shapes and (found == 0 or self.num_features % found):
            raise ValueError(f"{what} has no scale and no bias, {but}")

    def _statistics(
        self,
        x: jax.Array,
        axes: tuple[int, ...],
        mask: jax.Array | None,
        *,
        use_mean: bool = True,
    ) -> tuple[jax.Array | None, jax.Array]:
        return _statistics(
            x,
            axes,
            dtype=self.dtype,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            use_mean=use_mean,
            use_fast_variance=self.use_fast_variance,
            mask=mask,
        )

    def _normalize(
        self,
        x: jax.Array,
        mean: jax.Array | None,
        variance: jax.Array,
        feature_axes: Sequence[int],
    ) -> jax.Array:
        return _normalize(
            x,
            mean,
            variance,
            self.scale,
            self.bias,
            _shape_on_axes(x.shape, feature_axes),
            epsilon=self.epsilon,
            dtype=self.dtype,
        )


class BatchNorm(_Norm):
    """Normalizes each feature over the batch, and remembers a running mean and variance.

    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
    Covariate Shift", 2015.

    Args:
        num_features: size of the feature axis.
        use_running_average: normalize with the running statistics and leave them alone.
            `model.train()` and `model.eval()` set it; None: each call must say.
        axis: the feature axis; statistics are taken over all others.
        momentum: the running statistics become `momentum * old + (1 - momentum) * new`.
        epsilon: added to the variance.
        dtype: dtype of the outputs; None: the common dtype of inputs and parameters.
        param_dtype: dtype the parameters are created in.
        use_bias: whether to add a bias.
        use_scale: whether to multiply with a scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        axis_name: mapped axis over which the statistics are averaged too, see `jax.lax.pmean`.
        axis_index_groups: groups of indices of that axis that are averaged separately.
        use_fast_variance: compute the variance in one pass, which is less exact.
        rngs: draws the initial parameters, from the stream `params`.
        bias_metadata: metadata of the bias's `Param`.
        scale_metadata: metadata of the scale's `Param`.

    Attributes:
        scale: `Param` of shape `(num_features,)`, or None.
        bias: `Param` of shape `(num_features,)`, or None.
        mean: `BatchStat` of shape `(num_features,)`, float32.
        var: `BatchStat` of shape `(num_features,)`, float32.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.BatchNorm(1, momentum=0.5, rngs=nnx.Rngs(0))
    >>> layer(jnp.array([[1.0], [3.0]])).round(3).tolist()
    [[-1.0], [1.0]]
    >>> layer.mean.value.tolist(), layer.var.value.tolist()
    ([1.0], [1.0])
    >>> layer(jnp.array([[1.0]]), use_running_average=True).tolist()
    [[0.0]]
    """

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = initializers.zeros,
        scale_init: Initializer = initializers.ones,
        axis_name: str | None = None,
        axis_index_groups: IndexGroups = None,
        use_fast_variance: bool = True,
        rngs: Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        self._create(locals())
        self.mean = BatchStat(jnp.zeros((num_features,), jnp.float32))
        self.var = BatchStat(jnp.ones((num_features,), jnp.float32))
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Normalize.

        Args:
            x: an array with `num_features` entries on axis `axis`.
            use_running_average: goes before the module's own setting.
            mask: True where `x` counts for the statistics; broadcastable to `x`.

        Returns:
            An array of the shape of `x`.

        Raises:
            ValueError: the feature axis has another size, or neither the call nor the module says
                whether to use the running averages.
        """
        use_running = first_given(
            self, "use_running_average", use_running_average, self.use_running_average
        )
        (feature_axis,) = normalize_axes(self.axis, x.ndim)
        self._check_features(x, (feature_axis,))
        feature_shape = _shape_on_axes(x.shape, (feature_axis,))
        if use_running:
            mean = jnp.reshape(held(self.mean), feature_shape)
            variance = jnp.reshape(held(self.var), feature_shape)
        else:
            axes = tuple(a for a in range(x.ndim) if a != feature_axis)
            mean, variance = self._statistics(x, axes, mask)
            assert mean is not None
            self._remember("mean", mean)
            self._remember("var", variance)
        return self._normalize(x, mean, variance, (feature_axis,))

    def _remember(self, name: str, new: jax.Array) -> None:
        running = getattr(self, name)
        old = held(running)
        blended = self.momentum * old + (1.0 - self.momentum) * jnp.reshape(new, old.shape)
        # Inputs of a wider dtype must not change the structure of the model.
        blended = jnp.asarray(blended, old.dtype)
        if isinstance(running, BatchStat):
            running.value = blended
        else:
            setattr(self, name, blended)


class LayerNorm(_Norm):
    """Normalizes each example over its features.

    Ba, Kiros and Hinton, "Layer Normalization", 2016.

    Args:
        num_features: number of features, the product of the sizes of `feature_axes`.
        epsilon: added to the variance.
        dtype: dtype of the outputs; None: the common dtype of inputs and parameters.
        param_dtype: dtype the parameters are created in.
        use_bias: whether to add a bias.
        use_scale: whether to multiply with a scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        reduction_axes: axes over which statistics are taken.
        feature_axes: axes along which scale and bias vary.
        axis_name: mapped axis over which the statistics are averaged too, see `jax.lax.pmean`.
        axis_index_groups: groups of indices of that axis that are averaged separately.
        use_fast_variance: compute the variance in one pass, which is less exact.
        rngs: draws the initial parameters, from the stream `params`.
        bias_metadata: metadata of the bias's `Param`.
        scale_metadata: metadata of the scale's `Param`.

    Attributes:
        scale: `Param` of shape `(num_features,)`, or None.
        bias: `Param` of shape `(num_features,)`, or None.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.LayerNorm(2, rngs=nnx.Rngs(0))
    >>> layer(jnp.array([[1.0, 3.0]])).round(3).tolist()
    [[-1.0, 1.0]]
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = initializers.zeros,
        scale_init: Initializer = initializers.ones,
        reduction_axes: int | Sequence[int] = -1,
        feature_axes: int | Sequence[int] = -1,
        axis_name: str | None = None,
        axis_index_groups: IndexGroups = None,
        use_fast_variance: bool = True,
        rngs: Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        self._create(locals())
        self.reduction_axes = as_tuple(reduction_axes)
        self.feature_axes = as_tuple(feature_axes)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalize.

        Args:
            x: an array with `num_features` entries on the feature axes.
            mask: True where `x` counts for the statistics; broadcastable to `x`.

        Returns:
            An array of the shape of `x`.

        Raises:
            ValueError: the feature axes have other sizes.
        """
        features = normalize_axes(self.feature_axes, x.ndim)
        self._check_features(x, features)
        axes = normalize_axes(self.reduction_axes, x.ndim)
        mean, variance = self._statistics(x, axes, mask)
        return self._normalize(x, mean, variance, features)


class RMSNorm(_Norm):
    """Divides each example by the root mean square of its features.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.

    Args:
        num_features: number of features, the product of the sizes of `feature_axes`.
        epsilon: added to the mean square.
        dtype: dtype of the outputs; None: the common dtype of inputs and parameters.
        param_dtype: dtype the parameters are created in.
        use_scale: whether to multiply with a scale.
        scale_init: initializer of the scale.
        reduction_axes: axes over which the mean square is taken.
        feature_axes: axes along which the scale varies.
        axis_name: mapped axis over which the mean square is averaged too, see `jax.lax.pmean`.
        axis_index_groups: groups of indices of that axis that are averaged separately.
        use_fast_variance: accepted for likeness with the other layers; a mean square has no mean
            to subtract, so both settings are the same computation.
        rngs: draws the initial parameters, from the stream `params`.
        scale_metadata: metadata of the scale's `Param`.

    Attributes:
        scale: `Param` of shape `(num_features,)`, or None.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.RMSNorm(4, rngs=nnx.Rngs(0))
    >>> layer(jnp.array([[0.0, -6.0, 0.0, 0.0]])).round(3).tolist()
    [[0.0, -2.0, 0.0, 0.0]]
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_scale: bool = True,
        scale_init: Initializer = initializers.ones,
        reduction_axes: int | Sequence[int] = -1,
        feature_axes: int | Sequence[int] = -1,
        axis_name: str | None = None,
        axis_index_groups: IndexGroups = None,
        use_fast_variance: bool = True,
        rngs: Rngs,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        self._create(
            locals(), use_bias=False, bias_init=initializers.zeros, bias_metadata=NO_METADATA
        )
        self.reduction_axes = as_tuple(reduction_axes)
        self.feature_axes = as_tuple(feature_axes)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalize.

        Args:
            x: an array with `num_features` entries on the feature axes.
            mask: True where `x` counts for the mean square; broadcastable to `x`.

        Returns:
            An array of the shape of `x`.

        Raises:
            ValueError: the feature axes have other sizes.
        """
        features = normalize_axes(self.feature_axes, x.ndim)
        self._check_features(x, features)
        axes = normalize_axes(self.reduction_axes, x.ndim)
        mean, mean_square = self._statistics(x, axes, mask, use_mean=False)
        return self._normalize(x, mean, mean_square, features)


class GroupNorm(_Norm):
    """Normalizes each example over groups of features.

    Wu and He, "Group Normalization", 2018.

    Args:
        num_features: size of the last axis.
        num_groups: number of groups; None where `group_size` is given.
        group_size: number of features in a group; None where `num_groups` is given.
        epsilon: added to the variance.
        dtype: dtype of the outputs; None: the common dtype of inputs and parameters.
        param_dtype: dtype the parameters are created in.
        use_bias: whether to add a bias.
        use_scale: whether to multiply with a scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        reduction_axes: axes over which statistics are taken, the last among them; None: all but
            the first, which then is the batch.
        axis_name: mapped axis over which the statistics are averaged too, see `jax.lax.pmean`.
        axis_index_groups: groups of indices of that axis that are averaged separately.
        use_fast_variance: compute the variance in one pass, which is less exact.
        rngs: draws the initial parameters, from the stream `params`.
        bias_metadata: metadata of the bias's `Param`.
        scale_metadata: metadata of the scale's `Param`.

    Attributes:
        scale: `Param` of shape `(num_features,)`, or None.
        bias: `Param` of shape `(num_features,)`, or None.

    Raises:
        ValueError: not exactly one of `num_groups` and `group_size` is given, or it does not
            divide `num_features`.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
    >>> layer(jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(3).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = 32,
        group_size: int | None = None,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = initializers.zeros,
        scale_init: Initializer = initializers.ones,
        reduction_axes: int | Sequence[int] | None = None,
        axis_name: str | None = None,
        axis_index_groups: IndexGroups = None,
        use_fast_variance: bool = True,
        rngs: Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        if (num_groups is None) == (group_size is None):
            raise ValueError(
                f"GroupNorm takes either num_groups or group_size, got num_groups={num_groups} and "
                f"group_size={group_size}; set the other to None"
            )
        divisor = num_groups if group_size is None else group_size
        if not divisor or divisor < 0 or num_features % divisor:
            name = "num_groups" if group_size is None else "group_size"
            raise ValueError(f"{name}={divisor} does not divide num_features={num_features}")
        self._create(locals())
        self.num_groups = divisor if group_size is None else num_features // divisor
        self.group_size = num_features // self.num_groups
        self.reduction_axes = None if reduction_axes is None else as_tuple(reduction_axes)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalize.

        Args:
            x: `(*batch, *others, num_features)`.
            mask: True where `x` counts for the statistics; broadcastable to `x`.

        Returns:
            An array of the shape of `x`.

        Raises:
            ValueError: the last axis has another size or cuts a group, or `reduction_axes` leaves
                it out.
        """
        last = x.ndim - 1
        self._check_features(x, (last,))
        if self.reduction_axes is None:
            axes = tuple(range(1, x.ndim))
        else:
            axes = normalize_axes(self.reduction_axes, x.ndim)
        if last not in axes:
            raise ValueError(
                f"reduction_axes={self.reduction_axes} must include the last axis of inputs of "
                f"shape {x.shape}"
            )
        groups, size = self._groups(x.shape)
        grouped_shape = (*x.shape[:-1], groups, size)
        if mask is not None:
            mask = jnp.reshape(jnp.broadcast_to(mask, x.shape), grouped_shape)
        mean, variance = self._statistics(jnp.reshape(x, grouped_shape), (*axes[:-1], x.ndim), mask)
        assert mean is not None

        def per_feature(value: jax.Array) -> jax.Array:
            spread = jnp.broadcast_to(value, (*value.shape[:-1], size))
            return jnp.reshape(spread, (*value.shape[:-2], groups * size))

        return self._normalize(x, per_feature(mean), per_feature(variance), (last,))

    def _groups(self, shape: Sequence[int]) -> tuple[int, int]:
        """Number and size of the groups that inputs of `shape` have; a shard has some of them.

        A group may also lie on several devices, over which the statistics are then averaged.
        """
        features, size = shape[-1], self.group_size
        if features % size == 0:
            return features // size, size
        spans = features and size % features == 0 and self.axis_name is not None
        if spans and (self.num_groups == 1 or self.axis_index_groups is not None):
            return 1, features
        raise ValueError(
            f"GroupNorm has groups of {size} features, which inputs of shape {tuple(shape)} cut; "
            "where a group lies on several devices, give axis_name, and in axis_index_groups the "
            "devices of each group"
        )


class InstanceNorm(_Norm):
    """Normalizes each feature of each example over all axes but the first and the feature axes.

    Ulyanov, Vedaldi and Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", 2016.

    Args:
        num_features: number of features, the product of the sizes of `feature_axes`.
        epsilon: added to the variance.
        dtype: dtype of the outputs; None: the common dtype of inputs and parameters.
        param_dtype: dtype the parameters are created in.
        use_bias: whether to add a bias.
        use_scale: whether to multiply with a scale.
        bias_init: initializer of the bias.
        scale_init: initializer of the scale.
        feature_axes: axes of the features, the batch axis 0 not among them.
        axis_name: mapped axis over which the statistics are averaged too, see `jax.lax.pmean`.
        axis_index_groups: groups of indices of that axis that are averaged separately.
        use_fast_variance: compute the variance in one pass, which is less exact.
        rngs: draws the initial parameters, from the stream `params`.
        bias_metadata: metadata of the bias's `Param`.
        scale_metadata: metadata of the scale's `Param`.

    Attributes:
        scale: `Param` of shape `(num_features,)`, or None.
        bias: `Param` of shape `(num_features,)`, or None.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.InstanceNorm(1, rngs=nnx.Rngs(0))
    >>> layer(jnp.array([[[1.0], [3.0]]])).round(3).tolist()
    [[[-1.0], [1.0]]]
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = initializers.zeros,
        scale_init: Initializer = initializers.ones,
        feature_axes: int | Sequence[int] = -1,
        axis_name: str | None = None,
        axis_index_groups: IndexGroups = None,
        use_fast_variance: bool = True,
        rngs: Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        self._create(locals())
        self.feature_axes = as_tuple(feature_axes)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalize.

        Args:
            x: `(batch, ...)`, with `num_features` entries on the feature axes.
            mask: True where `x` counts for the statistics; broadcastable to `x`.

        Returns:
            An array of the shape of `x`.

        Raises:
            ValueError: the feature axes have other sizes, or include axis 0.
        """
        features = normalize_axes(self.feature_axes, x.ndim)
        if 0 in features:
            raise ValueError(
                f"feature_axes={self.feature_axes} of InstanceNorm must leave out the batch axis 0"
            )
        self._check_features(x, features)
        axes = tuple(a for a in range(1, x.ndim) if a not in features)
        mean, variance = self._statistics(x, axes, mask)
        return self._normalize(x, mean, variance, features)


publish(__all__, globals())

"""Metrics: running summaries of training, kept in Variables so that transforms can update them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from treadle._modules.module import Object
from treadle._objects.variables import A, Variable
from treadle._public import publish

__all__ = ["Metric", "MultiMetric"]


class MetricState(Variable[A]):
    """State of a metric, such as a sum or a count.

    >>> import treadle as nnx
    >>> isinstance(nnx.metrics.Average().total, nnx.metrics.MetricState)
    True
    """


class Metric(Object):
    """Base of metrics: `update` takes values, `compute` gives the result so far, `reset` forgets.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> class Largest(nnx.Metric):
    ...     def __init__(self):
    ...         self.largest = nnx.metrics.MetricState(jnp.array(-jnp.inf))
    ...     def reset(self):
    ...         self.largest.value = jnp.array(-jnp.inf)
    ...     def update(self, *, values, **_):
    ...         self.largest.value = jnp.maximum(self.largest.value, values.max())
    ...     def compute(self):
    ...         return self.largest.value
    >>> largest = Largest()
    >>> largest.update(values=jnp.array([1.0, 5.0, 2.0]))
    >>> float(largest.compute())
    5.0
    """

    def reset(self) -> None:
        """Forget everything.

        Raises:
            TypeError: the class does not define it.
        """
        raise self._undefined("reset")

    def update(self, **kwargs: Any) -> None:
        """Take in values, by keyword. Keywords meant for other metrics are passed over.

        Raises:
            TypeError: the class does not define it.
        """
        raise self._undefined("update")

    def compute(self) -> Any:
        """The result so far.

        Raises:
            TypeError: the class does not define it.
        """
        raise self._undefined("compute")

    def _undefined(self, method: str) -> TypeError:
        return TypeError(
            f"{type(self).__name__} does not define `{method}`: a metric needs `reset`, `update` "
            "and `compute`"
        )


class Average(Metric):
    """The mean of all values seen.

    Args:
        argname: the keyword of `update` that brings the values.

    Attributes:
        total: `MetricState`, float32 scalar, the sum.
        count: `MetricState`, int32 scalar, the number of values.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> loss = nnx.metrics.Average("loss")
    >>> loss.update(loss=jnp.array([1.0, 2.0]))
    >>> loss.update(loss=6.0)
    >>> float(loss.compute())
    3.0
    >>> loss.reset()
    >>> float(loss.compute())
    nan
    """

    def __init__(self, argname: str = "values") -> None:
        self.argname = argname
        self.total = MetricState(jnp.array(0, jnp.float32))
        self.count = MetricState(jnp.array(0, jnp.int32))

    def reset(self) -> None:
        """Forget everything."""
        self.total.value = jnp.array(0, jnp.float32)
        self.count.value = jnp.array(0, jnp.int32)

    def update(self, *, mask: jax.Array | None = None, **kwargs: Any) -> None:
        """Take in values.

        Args:
            mask: True where a value counts; broadcastable to the values. None: all count.
            **kwargs: `argname` brings a number or an array of any shape; the others are passed
                over.

        Raises:
            TypeError: `argname` is not among the keywords.
        """
        if self.argname not in kwargs:
            raise TypeError(
                f"{type(self).__name__} expects the keyword '{self.argname}', "
                f"got {sorted(kwargs) or 'none'}"
            )
        values = jnp.asarray(kwargs[self.argname])
        self._add(values, mask)

    def _add(self, values: jax.Array, mask: jax.Array | None) -> None:
        count: Any = values.size
        if mask is not None:
            mask = jnp.broadcast_to(jnp.asarray(mask, bool), values.shape)
            count = jnp.sum(mask, dtype=jnp.int32)
        total = jnp.sum(values, dtype=jnp.float32, where=mask)
        self.total.value = self.total.value + total
        self.count.value = self.count.value + count

    def compute(self) -> jax.Array:
        """The mean so far, a float32 scalar; NaN before the first value."""
        return self.total.value / self.count.value


class Accuracy(Average):
    """The share of right predictions.

    Args:
        threshold: for binary labels: what the logit must exceed to mean 1. None: the prediction is
            the largest logit.

    Raises:
        TypeError: `threshold` is not a number.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> accuracy = nnx.metrics.Accuracy()
    >>> logits = jnp.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    >>> accuracy.update(logits=logits, labels=jnp.array([1, 0, 0, 0]))
    >>> float(accuracy.compute())
    0.75
    """

    def __init__(self, threshold: float | None = None) -> None:
        if threshold is not None and not isinstance(threshold, (int, float)):
            raise TypeError(f"threshold must be a number or None, got {threshold!r}")
        super().__init__("logits")
        self.threshold = threshold

    def update(  # type: ignore[override]
        self, *, logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None, **_: Any
    ) -> None:
        """Take in predictions.

        Args:
            logits: `(..., classes)`; with a threshold: the shape of the labels.
            labels: integers of shape `(...)`.
            mask: True where an example counts; broadcastable to the labels. None: all count.
            **_: keywords meant for other metrics.

        Raises:
            ValueError: shapes that do not match.
            TypeError: labels that are not integers.
        """
        expected = logits.shape if self.threshold is not None else logits.shape[:-1]
        if (self.threshold is None and logits.ndim == 0) or labels.shape != expected:
            shape = "(..., classes)" if self.threshold is None else "(...)"
            raise ValueError(
                f"Accuracy expects logits of shape {shape} and labels of shape (...), "
                f"got {logits.shape} and {labels.shape}"
            )
        if not jnp.issubdtype(labels.dtype, jnp.integer) and labels.dtype != jnp.bool_:
            raise TypeError(f"Accuracy expects integer labels, got {labels.dtype}")
        if self.threshold is not None:
            predicted = logits > self.threshold
            right = predicted == labels.astype(bool)
        else:
            right = jnp.argmax(logits, axis=-1) == labels
        self._add(right, mask)


class Statistics(NamedTuple):
    """What `Welford` computes: float32 scalars."""

    mean: jax.Array
    standard_error_of_mean: jax.Array
    standard_deviation: jax.Array


class Welford(Metric):
    """Mean and spread of all values seen, in one pass.

    Combines batches by the pairwise form of Welford's update (Chan, Golub and LeVeque, "Updating
    Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979), which does not lose
    digits where the mean is large.

    Args:
        argname: the keyword of `update` that brings the values.

    Attributes:
        count: `MetricState`, int32 scalar, the number of values.
        mean: `MetricState`, float32 scalar.
        m2: `MetricState`, float32 scalar, the sum of squared distances to the mean.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> spread = nnx.metrics.Welford("loss")
    >>> spread.update(loss=jnp.array([1.0, 3.0]))
    >>> spread.update(loss=jnp.array([1.0, 3.0]))
    >>> float(spread.compute().mean), float(spread.compute().standard_deviation)
    (2.0, 1.0)
    """

    def __init__(self, argname: str = "values") -> None:
        self.argname = argname
        self.count = MetricState(jnp.array(0, jnp.int32))
        self.mean = MetricState(jnp.array(0, jnp.float32))
        self.m2 = MetricState(jnp.array(0, jnp.float32))

    def reset(self) -> None:
        """Forget everything."""
        self.count.value = jnp.array(0, jnp.int32)
        self.mean.value = jnp.array(0, jnp.float32)
        self.m2.value = jnp.array(0, jnp.float32)

    def update(self, **kwargs: Any) -> None:
        """Take in values.

        Args:
            **kwargs: `argname` brings a number or an array of any shape, not empty; the others are
                passed over.

        Raises:
            TypeError: `argname` is not among the keywords.
        """
        if self.argname not in kwargs:
            raise TypeError(
                f"Welford expects the keyword '{self.argname}', got {sorted(kwargs) or 'none'}"
            )
        values = jnp.asarray(kwargs[self.argname], jnp.float32)
        new_mean = values.mean()
        new_m2 = jnp.sum(jnp.square(values - new_mean))
        old_count, old_mean = self.count.value, self.mean.value
        count = old_count + values.size
        delta = new_mean - old_mean
        self.m2.value = self.m2.value + new_m2 + delta * delta * old_count * values.size / count
        self.mean.value = old_mean + delta * values.size / count
        self.count.value = count

    def compute(self) -> Statistics:
        """Mean, its standard error, and the standard deviation (of the population, 1/n)."""
        count = self.count.value
        deviation = jnp.sqrt(self.m2.value / count)
        return Statistics(self.mean.value, deviation / jnp.sqrt(count), deviation)


class MultiMetric(Metric):
    """Several metrics under one name, updated together.

    Args:
        **metrics: the metrics, which become attributes of these names.

    Raises:
        TypeError: something that is not a `Metric`.
        ValueError: a name that `MultiMetric` itself uses.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> metrics = nnx.MultiMetric(
    ...     accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss")
    ... )
    >>> metrics.update(logits=jnp.eye(2), labels=jnp.array([0, 1]), loss=0.5)
    >>> {name: float(value) for name, value in metrics.compute().items()}
    {'accuracy': 1.0, 'loss': 0.5}
    """

    def __init__(self, **metrics: Metric) -> None:
        for name, metric in metrics.items():
            if not isinstance(metric, Metric):
                raise TypeError(
                    f"metric {name!r} is a {type(metric).__name__}; give an instance of a Metric"
                )
            if hasattr(MultiMetric, name):
                raise ValueError(f"a metric cannot be called {name!r}: choose another name")
        for name, metric in metrics.items():
            setattr(self, name, metric)

    def _metrics(self) -> dict[str, Metric]:
        # Sorted as in the graph, so that results have one order however the object was rebuilt.
        found = {name: value for name, value in vars(self).items() if isinstance(value, Metric)}
        return dict(sorted(found.items()))

    def reset(self) -> None:
        """Reset every metric."""
        for metric in self._metrics().values():
            metric.reset()

    def update(self, **kwargs: Any) -> None:
        """Update every metric, each with all the keywords.

        Raises:
            TypeError: a metric misses a keyword.
        """
        for metric in self._metrics().values():
            metric.update(**kwargs)

    def compute(self) -> dict[str, Any]:
        """The result of every metric by name, sorted by name."""
        return {name: metric.compute() for name, metric in self._metrics().items()}


publish(__all__, globals())

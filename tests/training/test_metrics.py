from __future__ import annotations

import flax.nnx as flax_nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from treadle import metrics

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(3, 16, 5)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 5, (3, 16)), jnp.int32)
MASK = jnp.asarray(RNG.integers(0, 2, (3, 16)), bool)


@pytest.mark.parametrize("masked", [False, True])
def test_average_and_accuracy_compute_what_flax_does(masked):
    ours = nnx.MultiMetric(accuracy=metrics.Accuracy(), mean=metrics.Average("loss"))
    theirs = flax_nnx.MultiMetric(
        accuracy=flax_nnx.metrics.Accuracy(), mean=flax_nnx.metrics.Average("loss")
    )
    for batch in range(3):
        given = {
            "logits": LOGITS[batch],
            "labels": LABELS[batch],
            "loss": LOGITS[batch, :, 0],
        }
        ours.update(**given, mask=MASK[batch] if masked else None)
        # The oldest flax that is tested with takes no mask: it gets only what the mask keeps.
        kept = MASK[batch] if masked else slice(None)
        theirs.update(**{name: values[kept] for name, values in given.items()})
    found, expected = ours.compute(), theirs.compute()
    assert list(found) == ["accuracy", "mean"]
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


def test_binary_accuracy_compares_with_the_threshold():
    accuracy = metrics.Accuracy(threshold=0.5)
    accuracy.update(logits=jnp.array([0.1, 0.9, 0.6]), labels=jnp.array([0, 1, 0]))
    assert float(accuracy.compute()) == pytest.approx(2 / 3)


def test_welford_agrees_with_numpy_even_far_from_zero():
    spread = metrics.Welford()
    values = RNG.normal(size=(10, 50)).astype(np.float32) + 1000
    for batch in values:
        spread.update(values=batch)
    found = spread.compute()
    exact = values.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.standard_deviation, exact.std(), rtol=1e-3)
    np.testing.assert_allclose(found.standard_error_of_mean, exact.std() / 500**0.5, rtol=1e-3)


@pytest.mark.parametrize("make", [metrics.Average, metrics.Welford])
def test_reset_forgets(make):
    metric, fresh = make(), make()
    metric.update(values=jnp.ones(3))
    metric.reset()
    assert nnx.state(metric) == nnx.state(fresh)


def test_metrics_are_updated_and_reset_inside_jit_without_retracing():
    metric = nnx.MultiMetric(accuracy=metrics.Accuracy(), loss=metrics.Average("loss"))
    traces = []

    @nnx.jit
    def step(metric, logits, labels):
        traces.append(1)
        metric.update(logits=logits, labels=labels, loss=logits.sum())

    for _ in range(2):
        for batch in range(3):
            step(metric, LOGITS[batch], LABELS[batch])
        expected = (LOGITS.argmax(-1) == LABELS).mean()
        np.testing.assert_allclose(metric.compute()["accuracy"], expected, rtol=1e-6)
        assert int(metric.loss.count.value) == 3
        nnx.jit(lambda m: m.reset())(metric)
        assert int(metric.loss.count.value) == 0
        metric.reset()
    assert len(traces) == 1


def test_values_may_be_numbers_and_half_precision_is_summed_in_float32():
    average = metrics.Average()
    average.update(values=2)
    average.update(values=4.0)
    assert float(average.compute()) == 3.0
    many = metrics.Average()
    many.update(values=jnp.ones(4096, jnp.bfloat16))
    assert float(many.total.value) == 4096.0


def test_state_of_metrics_is_metric_state():
    metric = nnx.MultiMetric(a=metrics.Average(), w=metrics.Welford())
    types = {entry.type for entry in nnx.state(metric).flat_state().values()}
    assert types == {metrics.MetricState}
    assert not nnx.state(metric, nnx.Param).flat_state()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.Average("loss").update(values=1), TypeError, "keyword 'loss'"),
        (lambda: metrics.Welford("loss").update(values=1), TypeError, "keyword 'loss'"),
        (lambda: metrics.Accuracy(threshold="0.5"), TypeError, "threshold"),
        (lambda: nnx.MultiMetric(a=1), TypeError, "'a' is a int"),
        (lambda: nnx.MultiMetric(update=metrics.Average()), ValueError, "'update'"),
        (lambda: nnx.Metric().compute(), TypeError, "does not define `compute`"),
        (
            lambda: metrics.Accuracy().update(logits=LOGITS[0], labels=LABELS[0, :3]),
            ValueError,
            r"\(16, 5\) and \(3,\)",
        ),
        (
            lambda: metrics.Accuracy().update(logits=LOGITS[0], labels=LOGITS[0, :, 0]),
            TypeError,
            "integer labels",
        ),
    ],
)
def test_bad_arguments_are_explained(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_metric_can_be_mapped_and_scanned():
    metric = metrics.Average()
    graphdef, state = nnx.split(metric)

    def body(state, value):
        inner = nnx.merge(graphdef, state)
        inner.update(values=value)
        return nnx.state(inner), None

    state, _ = jax.lax.scan(body, state, jnp.arange(4.0))
    nnx.update(metric, state)
    assert float(metric.compute()) == 1.5

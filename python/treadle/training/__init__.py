"""Optimizer (over optax) and metrics."""

from treadle._public import publish
from treadle.training import metrics as metrics
from treadle.training._optimizer import ModelAndOptimizer as ModelAndOptimizer
from treadle.training._optimizer import Optimizer as Optimizer
from treadle.training.metrics import Metric as Metric
from treadle.training.metrics import MultiMetric as MultiMetric

__all__ = ["Metric", "ModelAndOptimizer", "MultiMetric", "Optimizer", "metrics"]

publish(__all__, globals())

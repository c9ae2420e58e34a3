"""Optimizer (over optax) and metrics."""

from treadle.training import metrics as metrics
from treadle.training.metrics import Metric as Metric
from treadle.training.metrics import MultiMetric as MultiMetric
from treadle.training.optimizer import ModelAndOptimizer as ModelAndOptimizer
from treadle.training.optimizer import Optimizer as Optimizer

__all__ = ["Metric", "ModelAndOptimizer", "MultiMetric", "Optimizer", "metrics"]

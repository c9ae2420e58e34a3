"""Optimizer (over optax) and metrics."""

from weft.training import metrics as metrics
from weft.training.metrics import Metric as Metric
from weft.training.metrics import MultiMetric as MultiMetric
from weft.training.optimizer import ModelAndOptimizer as ModelAndOptimizer
from weft.training.optimizer import Optimizer as Optimizer

__all__ = ["Metric", "ModelAndOptimizer", "MultiMetric", "Optimizer", "metrics"]

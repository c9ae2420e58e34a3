"""Optimizer (over optax) and metrics."""

from typing import TYPE_CHECKING

from treadle._public import later

if TYPE_CHECKING:
    from treadle.training import metrics as metrics
    from treadle.training._optimizer import ModelAndOptimizer as ModelAndOptimizer
    from treadle.training._optimizer import Optimizer as Optimizer
    from treadle.training.metrics import Metric as Metric
    from treadle.training.metrics import MultiMetric as MultiMetric

__all__ = ["Metric", "ModelAndOptimizer", "MultiMetric", "Optimizer", "metrics"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = later(
        __name__,
        __all__,
        {
            "metrics": ("metrics", "Metric", "MultiMetric"),
            "_optimizer": ("ModelAndOptimizer", "Optimizer"),
        },
    )

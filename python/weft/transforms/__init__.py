"""JAX's transforms over graph nodes: public names, nothing else."""

from weft.transforms.autodiff import CustomVjp, custom_vjp, grad, jvp, value_and_grad, vjp
from weft.transforms.axes import Carry, DiffState, StateAxes, StateSharding
from weft.transforms.eval_shape import eval_shape
from weft.transforms.remat import remat
from weft.transforms.scan import scan
from weft.transforms.vmap import vmap

__all__ = [
    "Carry",
    "CustomVjp",
    "DiffState",
    "StateAxes",
    "StateSharding",
    "custom_vjp",
    "eval_shape",
    "grad",
    "jvp",
    "remat",
    "scan",
    "value_and_grad",
    "vjp",
    "vmap",
]

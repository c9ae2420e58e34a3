"""JAX's transforms over graph nodes: public names, nothing else."""

from weft.transforms.autodiff import CustomVjp, custom_vjp, grad, jvp, value_and_grad, vjp
from weft.transforms.axes import Carry, DiffState, StateAxes, StateSharding
from weft.transforms.checkify import checkify
from weft.transforms.control_flow import cond, fori_loop, switch, while_loop
from weft.transforms.eval_shape import eval_shape
from weft.transforms.jit import JitWrapped, cached_partial, jit
from weft.transforms.lifted import Grad, Jit, LiftedConstructor, Remat, Scan, Vmap
from weft.transforms.parallel import pmap, shard_map
from weft.transforms.profile import Profile, profile
from weft.transforms.remat import remat
from weft.transforms.retraces import Retrace, TooManyTracesError, explain_retraces, max_traces
from weft.transforms.scan import scan
from weft.transforms.split_rngs import SplitBackups, split_rngs
from weft.transforms.vmap import vmap

__all__ = [
    "Carry",
    "CustomVjp",
    "DiffState",
    "Grad",
    "Jit",
    "JitWrapped",
    "LiftedConstructor",
    "Profile",
    "Remat",
    "Retrace",
    "Scan",
    "SplitBackups",
    "StateAxes",
    "StateSharding",
    "TooManyTracesError",
    "Vmap",
    "cached_partial",
    "checkify",
    "cond",
    "custom_vjp",
    "eval_shape",
    "explain_retraces",
    "fori_loop",
    "grad",
    "jit",
    "jvp",
    "max_traces",
    "pmap",
    "profile",
    "remat",
    "scan",
    "shard_map",
    "split_rngs",
    "switch",
    "value_and_grad",
    "vjp",
    "vmap",
    "while_loop",
]

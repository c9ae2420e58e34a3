"""JAX's transforms over graph nodes: public names, nothing else."""

from treadle._public import publish
from treadle.transforms.autodiff import CustomVjp, custom_vjp, grad, jvp, value_and_grad, vjp
from treadle.transforms.axes import Carry, DiffState, StateAxes, StateSharding
from treadle.transforms.checkify import checkify
from treadle.transforms.control_flow import cond, fori_loop, switch, while_loop
from treadle.transforms.eval_shape import eval_shape
from treadle.transforms.jit import JitWrapped, cached_partial, jit
from treadle.transforms.lifted import Grad, Jit, LiftedConstructor, Remat, Scan, Vmap
from treadle.transforms.parallel import pmap, shard_map
from treadle.transforms.profile import Profile, profile
from treadle.transforms.remat import remat
from treadle.transforms.retraces import Retrace, TooManyTracesError, explain_retraces, max_traces
from treadle.transforms.scan import scan
from treadle.transforms.split_rngs import SplitBackups, split_rngs
from treadle.transforms.vmap import vmap

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

publish(__all__, globals())

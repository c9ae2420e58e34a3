"""JAX's transforms over graph nodes: public names, nothing else."""

from typing import TYPE_CHECKING

from treadle._public import later

if TYPE_CHECKING:
    from treadle.transforms._axes import Carry, DiffState, StateAxes, StateSharding
    from treadle.transforms._branches import cond, switch
    from treadle.transforms._checkify import checkify
    from treadle.transforms._custom_vjp import CustomVjp, custom_vjp
    from treadle.transforms._eval_shape import eval_shape
    from treadle.transforms._grad import grad, value_and_grad
    from treadle.transforms._jacobians import jacfwd, jacrev
    from treadle.transforms._jit.jit import JitWrapped, cached_partial, jit
    from treadle.transforms._jit.profiling import Profile, profile
    from treadle.transforms._jit.retraces import (
        Retrace,
        TooManyTracesError,
        explain_retraces,
        max_traces,
    )
    from treadle.transforms._lifted import Grad, Jit, LiftedConstructor, Remat, Scan, Vmap
    from treadle.transforms._loops import fori_loop, while_loop
    from treadle.transforms._pmap import pmap
    from treadle.transforms._remat import remat
    from treadle.transforms._scan import scan
    from treadle.transforms._shard_map import shard_map
    from treadle.transforms._split_rngs import (
        SplitBackups,
        fork_rngs,
        reseed,
        restore_rngs,
        split_rngs,
    )
    from treadle.transforms._vjp import jvp, vjp
    from treadle.transforms._vmap import vmap

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
    "fork_rngs",
    "grad",
    "jacfwd",
    "jacrev",
    "jit",
    "jvp",
    "max_traces",
    "pmap",
    "profile",
    "remat",
    "reseed",
    "restore_rngs",
    "scan",
    "shard_map",
    "split_rngs",
    "switch",
    "value_and_grad",
    "vjp",
    "vmap",
    "while_loop",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = later(
        __name__,
        __all__,
        {
            "_axes": ("Carry", "DiffState", "StateAxes", "StateSharding"),
            "_branches": ("cond", "switch"),
            "_checkify": ("checkify",),
            "_custom_vjp": ("CustomVjp", "custom_vjp"),
            "_eval_shape": ("eval_shape",),
            "_grad": ("grad", "value_and_grad"),
            "_jacobians": ("jacfwd", "jacrev"),
            "_jit.jit": ("JitWrapped", "cached_partial", "jit"),
            "_jit.profiling": ("Profile", "profile"),
            "_jit.retraces": ("Retrace", "TooManyTracesError", "explain_retraces", "max_traces"),
            "_lifted": ("Grad", "Jit", "LiftedConstructor", "Remat", "Scan", "Vmap"),
            "_loops": ("fori_loop", "while_loop"),
            "_pmap": ("pmap",),
            "_remat": ("remat",),
            "_scan": ("scan",),
            "_shard_map": ("shard_map",),
            "_split_rngs": ("SplitBackups", "fork_rngs", "reseed", "restore_rngs", "split_rngs"),
            "_vjp": ("jvp", "vjp"),
            "_vmap": ("vmap",),
        },
    )

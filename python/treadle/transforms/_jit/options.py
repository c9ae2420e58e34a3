"""The parameters of one `jit`, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from treadle._graph.filters import Filter, compile_filters
from treadle._graph.state import State
from treadle.transforms._arguments import Function, function_name
from treadle.transforms._jit.jax_internals import JIT_PARAMETERS
from treadle.transforms._parameters import Index, Names, Parameters, Selected

# Parameters that come and go with versions of JAX, and what does the same where one is gone.
_REPLACEMENTS = {
    "device": "use in_shardings=jax.sharding.SingleDeviceSharding(device).",
    "backend": "use jax.default_device, or in_shardings with a device of that backend.",
    "abstracted_axes": "call the function with concrete shapes; each is compiled once.",
}


class Options:
    """What `jit` was told.

    Args:
        function: the function to compile.
        settings: the parameters of `jit` by name.

    Raises:
        ValueError: they contradict each other, name arguments that the function does not have, or
            the installed jax lacks one.
        TypeError: an argument's position is no int, or its name no text.
    """

    static: Selected
    donated: Selected
    # The filter that selects state to donate; None selects none.
    donate_state: Filter | None
    constrain_state: bool | Callable[[State], State]
    in_shardings: Any
    out_shardings: Any
    # What goes to `jax.jit` as it is.
    passed: dict[str, Any]

    def __init__(self, function: Function, settings: Mapping[str, Any]) -> None:
        self.static = _select(
            function, "static", settings["static_argnums"], settings["static_argnames"]
        )
        self.donated = _select(
            function, "donate", settings["donate_argnums"], settings["donate_argnames"]
        )
        both = [
            *(self.static.positions & self.donated.positions),
            *(self.static.names & self.donated.names),
        ]
        if both:
            raise ValueError(
                f"jit: arguments {sorted(map(str, both))} are both static and "
                f"donated; a static argument has no buffer to donate."
            )
        donate_state = settings["donate_state"]
        self.donate_state = None if donate_state is False else donate_state
        compile_filters((self.donate_state,))
        self.constrain_state = settings["constrain_state"]
        self.in_shardings = settings["in_shardings"]
        self.out_shardings = settings["out_shardings"]
        self.passed = {name: settings[name] for name in ("keep_unused", "inline")}
        for name, replacement in _REPLACEMENTS.items():
            value = settings[name]
            if value is None:
                continue
            if name not in JIT_PARAMETERS:
                raise ValueError(
                    f"jit: the installed jax {jax.__version__} has no `{name}` any more; "
                    f"{replacement}"
                )
            self.passed[name] = value


def _select(function: Function, what: str, nums: Index, names: Names) -> Selected:
    if nums is None and names is None:  # the usual case, without reading the signature
        return Selected()
    return Parameters(function, function_name(function)).select("jit", what, nums, names)

"""Control flow outside of any transform runs compiled.

Each call runs through `jit`, with its functions as static arguments: they compare by code and
closure, so a loop of such calls compiles once.
"""

from __future__ import annotations

from typing import Any

from treadle.errors import GraphError
from treadle.transforms._arguments import Function
from treadle.transforms._call import Call
from treadle.transforms._messages import explain_call_error


def run_program(run: Function, name: str, function: Function, inputs: tuple[Any, ...]) -> Any:
    """Run a compiled program; what is wrong with `inputs` is said in the words of `function`.

    The program has parameters of its own, which the caller has not written.
    """
    try:
        return run()
    except (GraphError, TypeError, RuntimeError) as error:
        call = Call(name, function, inputs, {})
        better = explain_call_error(error, call.label, call.graphdef, call.leaves)
        if better is None:
            raise
        raise better from error.__cause__

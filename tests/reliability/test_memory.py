"""When memory runs out, at whatever allocation, there is a MemoryError and nothing has changed.

Python's allocator is made to fail by a helper of CPython's own test suite, in a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """
    import gc, sys
    import _testcapi
    import jax.numpy as jnp
    import treadle as nnx
    from treadle import _core
    from tests.reliability.faults import Model
    from tests.reliability.record import Record

    model = Model()
    state = nnx.state(model)
    graphdef = nnx.graphdef(model)
    flat = _core.flatten(model)
    root, inner = _core.unflatten(flat.graphdef, flat.leaves)
    root.stat.value, root.weight.value = root.weight.value, jnp.ones(5)
    root.new, root.counter = nnx.Param(jnp.ones(1)), 7
    del root.tied
    root.layers.append(nnx.Dict(x=root.stat))
    effects, out = _core.trace_effects(inner, flat.graphdef, flat.leaves, root.stat, True)

    def undo():
        model.tied, model.counter = model.weight, 0
        vars(model).pop("new", None)
        del model.layers[2:]
        nnx.update(model, state)

    OPERATIONS = {
        "flatten": lambda: _core.flatten(model),
        "unflatten": lambda: _core.unflatten(flat.graphdef, flat.leaves),
        "set leaves": lambda: _core.set_leaves(flat, range(len(flat.leaves)), flat.leaves),
        "effects": lambda: _core.trace_effects(inner, flat.graphdef, flat.leaves, root.stat, True),
        "apply": lambda: _core.apply_effects(effects, flat.refs, flat.leaves, out),
        "split": lambda: nnx.split(model, nnx.BatchStat, ...),
        "merge": lambda: nnx.merge(graphdef, state),
        "equality": lambda: graphdef == _core.flatten(model).graphdef,
        "paths": lambda: _core.flatten(model).graphdef.paths(),
    }
    faults = 0
    for name, operation in OPERATIONS.items():
        operation()
        if name == "apply":
            undo()
        n = 0
        while True:
            before = Record(model)
            gc.disable()
            _testcapi.set_nomemory(n, n + 1)
            try:
                operation()
            except MemoryError:
                failed = True
            except (RuntimeError, SystemError, TypeError, ValueError, AttributeError):
                failed = True  # some code below turned it into its own error
            else:
                failed = False
            finally:
                _testcapi.remove_mem_hooks()
                gc.enable()
            if failed:
                before.assert_unchanged()
                faults += 1
            elif name == "apply":
                undo()
            n += 1
            if n > 400 or (not failed and n > 60):
                break
    assert faults > 150, faults
    print(faults)
"""


# No code of ours: CPython 3.13.0 crashes when an allocation in a generator expression fails.
PROBE = """
import _testcapi

def pair(value):
    return ("pair", value)

def build(values):
    return tuple(pair(value) for value in values)

for n in range(60):
    _testcapi.set_nomemory(n, n + 1)
    try:
        build((1, 2))
    except MemoryError:
        pass
    finally:
        _testcapi.remove_mem_hooks()
"""


def interpreter_survives() -> bool:
    """Whether Python itself stands failing allocations."""
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, check=False)
    return probe.returncode == 0


@pytest.mark.skipif(
    importlib.util.find_spec("_testcapi") is None,
    reason="this Python was built without its test modules",
)
@pytest.mark.skipif(
    not interpreter_survives(), reason="this Python crashes by itself when allocations fail"
)
def test_every_failing_allocation_is_survived() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(PROGRAM)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]

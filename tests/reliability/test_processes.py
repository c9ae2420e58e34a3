"""Shutdown, fork, and travel between processes."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import textwrap
from typing import Any

import cloudpickle
import jax.numpy as jnp
import pytest

import treadle as nnx

MODEL = """
    import gc, threading
    import jax, jax.numpy as jnp, treadle as nnx
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(2))
            self.layers = nnx.List([nnx.Dict(a=nnx.BatchStat(jnp.ones(2)))])
            self.me = self
    @nnx.jit
    def step(model):
        model.w.value = model.w.value + 1
        return model.w.value
    model = Model()
    step(model); step(model)
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter that shows every complaint."""
    source = textwrap.dedent(MODEL) + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", source],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=False,
    )


BODIES = {
    "live models": "flat = nnx.split(model)",
    "a cycle through the function": "model.step = step",
    "a hook at exit": "import atexit; atexit.register(lambda: step(model))",
    "a destructor that walks": """
        class Last:
            def __init__(self, m): self.m = m
            def __del__(self):
                try: nnx.split(self.m)
                except Exception: pass
        keep = Last(model); gc.disable()
    """,
    "a thread that never ends": """
        step(model)
        threading.Thread(target=lambda m: threading.Event().wait(), args=(model,), daemon=True).start()
    """,
    "an exception on the way out": "raise SystemExit(0)",
    "a module in sys": "import sys; sys.kept = (model, step, *nnx.split(model))",
}


@pytest.mark.parametrize("body", BODIES)
def test_interpreter_shutdown_is_silent(body: str) -> None:
    done = run(BODIES[body])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_graph_functions_work_in_a_forked_child() -> None:
    """JAX itself does not promise to compute after a fork; graphs are only objects."""
    done = run("""
        import os, sys
        child = os.fork()
        if child == 0:
            copied = nnx.merge(*nnx.split(model))
            ok = copied.me is copied and hash(nnx.graphdef(copied)) == hash(nnx.graphdef(model))
            os._exit(0 if ok else 1)
        _, status = os.waitpid(child, 0)
        step(model)
        sys.exit(os.waitstatus_to_exitcode(status))
    """)
    assert done.returncode == 0, done.stderr


class Model(nnx.Module):
    """Picklable by name."""

    def __init__(self) -> None:
        self.w = nnx.Param(jnp.arange(3.0), tag="decay")
        self.layers = nnx.List([nnx.Dict(a=nnx.BatchStat(jnp.ones(2)))])
        self.tied = self.w
        self.me = self


def assert_equal_model(copied: Any, model: Any) -> None:
    assert copied is not model
    assert copied.me is copied
    assert copied.tied is copied.w
    assert copied.w.tag == "decay"
    assert nnx.graphdef(copied) == nnx.graphdef(model)
    assert jnp.array_equal(copied.w.value, model.w.value)
    copied.w.value = copied.w.value + 1
    copied.layers.append(nnx.Dict())
    copied.new = 3
    assert len(model.layers) == 1


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_models_pickle_at_every_protocol(protocol: int) -> None:
    model = Model()
    assert_equal_model(pickle.loads(pickle.dumps(model, protocol)), model)


def test_models_deepcopy_and_cloudpickle() -> None:
    model = Model()
    assert_equal_model(copy.deepcopy(model), model)
    assert_equal_model(cloudpickle.loads(cloudpickle.dumps(model)), model)


def test_classes_of_the_main_program_travel_by_cloudpickle() -> None:
    class Local(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.zeros(2))

        def __call__(self, x: Any) -> Any:
            return x + self.w.value

    loaded = cloudpickle.loads(cloudpickle.dumps(Local()))
    assert jnp.array_equal(nnx.jit(lambda m: m(1.0))(loaded), jnp.ones(2))


def test_states_and_structures_pickle() -> None:
    graphdef, state = nnx.split(Model())
    graphdef, state = pickle.loads(pickle.dumps((graphdef, state)))
    assert_equal_model(nnx.merge(graphdef, state), Model())
    assert copy.deepcopy(graphdef) == graphdef
    variable_state = nnx.VariableState(nnx.Param, 1.0, tag="x")
    loaded = pickle.loads(pickle.dumps(variable_state))
    assert (loaded.type, loaded.value, loaded.tag) == (nnx.Param, 1.0, "x")


def scale(model: Model) -> Any:
    return model.w.value * 2


jitted_scale = nnx.jit(scale)


def test_jitted_functions_are_copied_or_refuse_clearly() -> None:
    for travel in (copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))):
        try:
            other = travel(jitted_scale)
        except TypeError as error:
            assert "pickle" in str(error) or "copy" in str(error)  # noqa: PT017
        else:
            assert jnp.array_equal(other(Model()), jnp.arange(3.0) * 2)


def test_a_model_sent_to_another_process_computes_the_same() -> None:
    """Structures are equal in both processes, although hashes of strings differ."""
    done = run("""
        import pickle, sys, subprocess
        code = '''
        import sys, pickle, treadle as nnx
        graphdef, other = pickle.load(sys.stdin.buffer)
        assert graphdef == other and hash(graphdef) == hash(other)
        '''
        import textwrap
        from treadle import Dict, Param
        d = Dict(a=Param(jnp.ones(1)), text="static", f=jnp.sum)
        data = pickle.dumps((nnx.graphdef(d), nnx.graphdef(nnx.clone(d))))
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], input=data, check=True)
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("core", ["is dropped", "stays"])
def test_a_second_import_is_refused_and_harms_nothing(core: str) -> None:
    """As notebooks and test runners do that empty `sys.modules`."""
    done = run(f"""
        import sys
        for name in [name for name in sys.modules if name.split(".")[0] == "treadle"]:
            if name != "treadle._core" or {core == "is dropped"}:
                del sys.modules[name]
        for _ in range(2):
            try:
                import treadle
            except ImportError as error:
                print(error)
        print(float(step(model)[0]), len(nnx.split(model)), step._counts["hot"])
    """)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *refused, works = done.stdout.splitlines()
    assert len(refused) == 2
    assert all("cannot be imported a second time" in line for line in refused)
    assert works == "4.0 2 2"


def test_modules_may_be_loaded_again_in_place() -> None:
    """As a notebook's automatic reload does; what is bound to JAX says that it cannot be."""
    done = run("""
        import importlib, sys
        importlib.reload(nnx)
        importlib.reload(sys.modules["treadle._graph.filters"])
        try:
            importlib.reload(sys.modules["treadle._bootstrap"])
        except ImportError as error:
            print(error)
        print(float(step(model)[0]), float(nnx.jit(lambda m: m.w.value)(model)[0]))
    """)
    assert done.returncode == 0, done.stderr
    refused, works = done.stdout.splitlines()
    assert "cannot be imported a second time" in refused
    assert works == "4.0 4.0"

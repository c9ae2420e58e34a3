"""Other libraries are described when their objects turn up, and not before."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest

import treadle
from treadle._objects import adapters as _adapters
from treadle._objects.adapters import adapt

nnx: Any = pytest.importorskip("flax.nnx", reason="flax has no release for this Python")


def test_those_who_do_not_use_flax_do_not_pay_for_it() -> None:
    program = """
import sys
import jax.numpy as jnp
import treadle
model = treadle.Linear(2, 3, rngs=treadle.Rngs(0))
treadle.jit(lambda model, x: model(x))(model, jnp.ones((1, 2)))
assert not [name for name in sys.modules if name.startswith(("flax", "treadle.integrations"))]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_type_is_described_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from treadle.integrations import flax as adapter

    asked: list[type] = []
    describe = adapter.describe
    monkeypatch.setattr(adapter, "describe", lambda kind: asked.append(kind) or describe(kind))

    class Mine(nnx.Module):
        pass

    for _ in range(3):
        treadle.jit(lambda m: None)(Mine())
    assert asked.count(Mine) == 1


def test_subclasses_in_other_modules_are_known_and_other_types_are_not() -> None:
    class Weight(nnx.Param):
        pass

    class Mine(nnx.Module):
        pass

    assert adapt(Mine).kind == "node"
    assert adapt(Weight).kind == "variable"
    assert adapt(Weight).counterpart is treadle.Param
    assert adapt(nnx.RngCount).counterpart is treadle.RngCount
    assert adapt(nnx.Variable).counterpart is treadle.Variable
    assert adapt(dict) is None
    assert adapt(treadle.Module) is None


def test_an_adapter_that_knows_nothing_of_a_type_leaves_it_to_those_of_its_bases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = SimpleNamespace(describe=lambda kind: None, adapt_filter=lambda filter: filter)
    monkeypatch.setitem(sys.modules, "silent_adapter", silent)
    monkeypatch.setitem(_adapters._ADAPTERS, __name__.partition(".")[0], "silent_adapter")

    class Mine(nnx.Module):
        pass

    assert adapt(Mine).kind == "node"


def test_a_flax_type_cannot_be_registered_again() -> None:
    with pytest.raises(treadle.NodeTypeError, match="is a graph node type already"):
        treadle.register_graph_node_type(
            nnx.Linear, lambda n: ((), None), lambda s: None, lambda *a: None, lambda *a: None
        )


def test_a_variable_backed_by_a_ref_is_an_error_that_names_it() -> None:
    option = "ref" if hasattr(nnx.Variable, "ref") else "use_ref"
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    model.bias = nnx.Param(jnp.ones(2), **{option: True})
    with pytest.raises(treadle.GraphError, match=r"model\.bias is .* backed by a jax\.Ref"):
        treadle.jit(lambda model: None)(model)


@pytest.mark.skipif(not hasattr(nnx.Variable, "hijax"), reason="this flax has no hijax Variables")
def test_a_hijax_variable_is_an_error_that_names_it() -> None:
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    model.bias = nnx.Param(jnp.ones(2), hijax=True)
    with pytest.raises(treadle.GraphError, match=r"model\.bias is .* hijax mode"):
        treadle.jit(lambda model: None)(model)
    with pytest.raises(treadle.GraphError, match=r"variable is .* hijax mode"):
        treadle.jit(lambda variable: None)(model.bias)


def test_a_module_of_the_bridge_is_an_error_that_names_it() -> None:
    class Bridged(nnx.bridge.Module):
        pass

    with pytest.raises(treadle.GraphError, match=r"model is a flax\.nnx\.bridge\.Module"):
        treadle.jit(lambda model: None)(Bridged())

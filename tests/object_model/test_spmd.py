"""Sharding metadata: partition specs, named shardings, constraints and rules."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import treadle as nnx


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request: Any) -> Mesh:
    return jax.make_mesh((1, 1), ("data", "model"), axis_types=(request.param,) * 2)


def model() -> nnx.Dict[Any]:
    return nnx.Dict(
        kernel=nnx.Param(jnp.ones((2, 3)), sharding=("data", None)),
        both=nnx.Param(jnp.ones((2, 3)), sharding=(("data", "model"), None)),
        bias=nnx.Param(jnp.ones(3)),
        name=nnx.Variable("text"),
        bare=jnp.ones(2),
    )


def test_partition_specs_come_from_metadata() -> None:
    specs = nnx.get_partition_spec(model())
    assert specs.kernel.value == PartitionSpec("data", None)
    assert specs.both.value == PartitionSpec(("data", "model"), None)
    assert specs.bias.value == PartitionSpec()
    assert specs.name.value is None
    assert specs.bare == PartitionSpec()
    assert specs.kernel.type is nnx.Param


@pytest.mark.parametrize(
    "sharding", [("layers", "x"), PartitionSpec("layers", "x")], ids=["tuple", "spec"]
)
def test_axis_names_come_and_go_without_a_trace(sharding: Any) -> None:
    params = {nnx.PARTITION_NAME: "layers"}
    stack = nnx.Dict(w=nnx.Param(jnp.ones((2, 3)), sharding=sharding))
    before = nnx.graphdef(stack)
    seen = []

    def look(layer: nnx.Dict[Any]) -> None:
        seen.append(layer.w.sharding)

    nnx.vmap(look, transform_metadata=params)(stack)
    assert (type(seen[0]), list(seen[0])) == (type(sharding), ["x"])
    assert (type(stack.w.sharding), stack.w.sharding) == (type(sharding), sharding)
    assert nnx.graphdef(stack) == before


def test_partition_specs_of_a_state_are_those_of_its_objects() -> None:
    assert nnx.get_partition_spec(nnx.state(model())) == nnx.get_partition_spec(model())


def test_partition_specs_need_no_arrays() -> None:
    state = jax.eval_shape(lambda: nnx.state(nnx.Dict(w=nnx.Param(jnp.ones(2), sharding=("a",)))))
    assert nnx.get_partition_spec(state).w.value == PartitionSpec("a")


def test_rules_translate_names() -> None:
    state = nnx.State(
        {
            "own": nnx.VariableState(
                nnx.Param, 1.0, sharding=("embed", "mlp"), sharding_rules=(("embed", "data"),)
            ),
            "plain": nnx.VariableState(nnx.Param, 1.0, sharding=(("embed", "mlp"), None)),
        }
    )
    with nnx.logical_axis_rules([("embed", "model"), ("mlp", None), ("embed", "late")]):
        specs = nnx.get_partition_spec(state)
        assert specs.own.value == PartitionSpec("data", None)
        assert specs.plain.value == PartitionSpec(("model", None), None)
        with nnx.logical_axis_rules([("mlp", "inner")]):
            assert nnx.get_partition_spec(state).own.value == PartitionSpec("data", "inner")
    assert nnx.get_partition_spec(state).own.value == PartitionSpec("data", "mlp")


def test_named_shardings_are_over_the_mesh(mesh: Mesh) -> None:
    shardings = nnx.get_named_sharding(nnx.state(model(), nnx.Param), mesh)
    assert shardings.kernel.value == NamedSharding(mesh, PartitionSpec("data", None))
    placed = jax.device_put(nnx.state(model(), nnx.Param), shardings)
    assert placed.kernel.value.sharding == shardings.kernel.value


@pytest.mark.parametrize("in_jit", [False, True])
def test_constraints_with_a_mesh(mesh: Mesh, in_jit: bool) -> None:
    def constrain(x: jax.Array) -> jax.Array:
        return nnx.with_sharding_constraint(x, ("data", None), mesh)

    y = (jax.jit(constrain) if in_jit else constrain)(jnp.ones((2, 3)))
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("data", None)), 2)


def test_constraints_with_the_mesh_in_context(mesh: Mesh) -> None:
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: nnx.with_sharding_constraint(x, ("data", None)))(jnp.ones((2, 3)))
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("data", None)), 2)


def test_without_a_mesh_nothing_happens() -> None:
    x = jnp.ones((2, 3))
    assert nnx.with_sharding_constraint(x, ("data", None)) is x
    assert nnx.with_sharding_constraint(x, None) is x


def test_with_partitioning_sets_metadata_and_constrains(mesh: Mesh) -> None:
    init = nnx.with_partitioning(
        jax.nn.initializers.ones, ("data", None), mesh, tag="kernel", get_value_hooks=scale_by_two
    )
    kernel = nnx.Param(init(jax.random.key(0), (2, 3), jnp.float32))
    assert (kernel.sharding, kernel.mesh, kernel.tag) == (("data", None), mesh, "kernel")
    assert float(kernel.raw_value[0, 0]) == 1.0
    assert float(kernel.value[0, 0]) == 2.0
    expected = NamedSharding(mesh, PartitionSpec("data", None))
    assert kernel.raw_value.sharding.is_equivalent_to(expected, 2)
    assert kernel.value.sharding.is_equivalent_to(expected, 2)
    assert nnx.get_partition_spec(nnx.Dict(k=kernel)).k.value == PartitionSpec("data", None)


def test_values_that_are_no_arrays_are_left_alone(mesh: Mesh) -> None:
    init = nnx.with_partitioning(lambda: jax.ShapeDtypeStruct((2,), jnp.float32), ("data",), mesh)
    assert nnx.Param(init()).value == jax.ShapeDtypeStruct((2,), jnp.float32)


def scale_by_two(variable: Any, value: Any) -> Any:
    return 2 * value


def test_a_constraint_that_does_not_fit_is_jaxs_error(mesh: Mesh) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        nnx.with_sharding_constraint(jnp.ones((2, 3)), ("nowhere", None), mesh)


@pytest.mark.parametrize("as_state", [False, True])
def test_axes_are_added_and_removed_everywhere(as_state: bool) -> None:
    objects = model()
    tree: Any = nnx.state(objects) if as_state else objects
    params = {nnx.PARTITION_NAME: "layers"}
    tree = nnx.spmd.add_axis(tree, 0, params)
    assert tree.kernel.sharding == ("layers", "data", None)
    assert not tree.bias.get_metadata()
    tree = nnx.spmd.remove_axis(tree, 0, params)
    assert tree.kernel.sharding == ("data", None)
    with pytest.raises(ValueError, match="Expected axis 'layers' at index 0"):
        nnx.spmd.remove_axis(tree, 0, params)


def test_values_are_spread_over_devices() -> None:
    program = """
        import jax, jax.numpy as jnp
        import treadle as nnx
        assert len(jax.devices()) == 4
        mesh = jax.make_mesh((2, 2), ("data", "model"))
        init = nnx.with_partitioning(jax.nn.initializers.ones, ("data", "model"), mesh)
        kernel = nnx.Param(init(jax.random.key(0), (4, 6), jnp.float32))
        assert kernel.value.addressable_shards[0].data.shape == (2, 3)
        model = nnx.Dict(w=nnx.Param(jnp.ones((4, 6)), sharding=(None, "data")))
        state = nnx.state(model)
        nnx.update(model, jax.device_put(state, nnx.get_named_sharding(state, mesh)))
        assert model.w.value.addressable_shards[0].data.shape == (4, 3)
    """
    environment = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    environment["JAX_PLATFORMS"] = "cpu"
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, env=environment, timeout=300
    )

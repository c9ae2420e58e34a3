"""Data-parallel training on 8 virtual CPU devices; run by `test_eight_devices`."""

from __future__ import annotations

import functools
import re
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import treadle as nnx
from tests.transforms.models import assert_same

STEPS = 4
BATCH = 16


class Model(nnx.Module):
    """Two layers, with statistics in between that need the whole batch."""

    def __init__(
        self, rngs: nnx.Rngs, axis_name: str | None = None, partitioned: bool = False
    ) -> None:
        def init(names):
            make = nnx.initializers.lecun_normal()
            return nnx.with_partitioning(make, names) if partitioned else make

        self.up = nnx.Linear(4, 8, kernel_init=init((None, "model")), rngs=rngs)
        self.norm = nnx.BatchNorm(8, axis_name=axis_name, rngs=rngs)
        self.down = nnx.Linear(8, 2, kernel_init=init(("model", None)), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.relu(self.norm(self.up(x))))


def loss_fn(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def step(model, optimizer, x, y, axis_name=None):
    loss, grads = nnx.value_and_grad(loss_fn)(model, x, y)
    if axis_name is not None:
        loss, grads = jax.lax.pmean((loss, grads), axis_name)
    optimizer.update(model, grads)
    return loss


def setup(axis_name=None, partitioned=False):
    model = Model(nnx.Rngs(0), axis_name, partitioned)
    return model, nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)


def batches():
    keys = jax.random.split(jax.random.key(1), STEPS)
    return [
        (jax.random.normal(k, (BATCH, 4)), jax.random.normal(jax.random.fold_in(k, 1), (BATCH, 2)))
        for k in keys
    ]


@functools.cache
def on_one_device():
    model, optimizer = setup()
    jitted = nnx.jit(step)
    losses = [float(jitted(model, optimizer, x, y)) for x, y in batches()]
    return losses, nnx.state(model)


def check(losses, model):
    expected, state = on_one_device()
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert_same(
        jax.tree.map(np.asarray, nnx.state(model)),
        jax.tree.map(np.asarray, state),
        rtol=1e-3,
        atol=1e-5,
    )


def test_there_are_eight_devices():
    assert jax.device_count() == 8


def test_shard_map():
    model, optimizer = setup("data")
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = nnx.shard_map(
        functools.partial(step, axis_name="data"),
        mesh=mesh,
        in_specs=(P(), P(), P("data"), P("data")),
        out_specs=P(),
        check_vma=False,
    )
    jitted = nnx.jit(sharded)
    losses = [float(jitted(model, optimizer, x, y)) for x, y in batches()]
    check(losses, model)


def test_shard_map_specs_by_filter_axis_names_and_check_vma():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    m = nnx.Dict(w=nnx.Param(jnp.arange(8.0)), s=nnx.BatchStat(jnp.zeros(2)))
    specs = nnx.StateSharding({nnx.Param: P("model"), ...: P("data")})

    def f(m, x):
        assert m["w"].shape == (2,)
        assert m["s"].shape == (1,)
        m["w"].value = m["w"].value + 1
        m["s"].value = m["s"].value + jax.lax.psum(x.sum(), "model")
        m["new"] = nnx.Param(m["w"].value * 2)
        return nnx.Dict(out=nnx.Param(m["w"].value)), x * 2

    run = nnx.shard_map(
        f, mesh=mesh, in_specs=(specs, P("data", "model")), out_specs=(specs, P("data", "model"))
    )
    made, out = run(m, jnp.ones((2, 4)))
    np.testing.assert_allclose(m["w"].value, jnp.arange(8.0) + 1)
    np.testing.assert_allclose(m["s"].value, [4, 4])
    np.testing.assert_allclose(m["new"].value, (jnp.arange(8.0) + 1) * 2)
    np.testing.assert_allclose(made["out"].value, jnp.arange(8.0) + 1)
    np.testing.assert_allclose(out, jnp.full((2, 4), 2.0))
    assert m["w"].value.sharding.spec == P("model")

    def unequal(m, x):
        m["w"].value = m["w"].value + x
        return x

    arguments = {"mesh": mesh, "in_specs": (P(), P("data")), "out_specs": P("data")}
    with pytest.raises(ValueError, match=r"replicat|vary|out_specs"):
        nnx.shard_map(unequal, **arguments)(nnx.Dict(w=nnx.Param(jnp.ones(1))), jnp.ones(2))
    nnx.shard_map(unequal, check_vma=False, **arguments)(
        nnx.Dict(w=nnx.Param(jnp.ones(1))), jnp.ones(2)
    )

    def manual(x):
        with pytest.raises(Exception, match="model"):
            jax.lax.axis_index("model")
        return x + jax.lax.axis_index("data")

    partial = nnx.shard_map(
        manual, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"}
    )
    np.testing.assert_allclose(nnx.jit(partial)(jnp.zeros(2)), [0, 1])


def test_shard_map_errors():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    m = nnx.Dict(w=nnx.Param(jnp.ones(8)))
    run = nnx.shard_map(lambda a, b: None, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    with pytest.raises(ValueError, match="reached under two different axes"):
        run(m, nnx.Dict(v=m["w"]))
    with pytest.raises(TypeError, match=r"positional arguments only.*got b by keyword"):
        run(m, b=m)
    with pytest.raises(TypeError, match="specs are PartitionSpec"):
        nnx.shard_map(lambda a: a, mesh=mesh, in_specs=0, out_specs=P())
    specs = nnx.StateSharding({nnx.BatchStat: P()})
    run = nnx.shard_map(lambda a: None, mesh=mesh, in_specs=(specs,), out_specs=P())
    with pytest.raises(ValueError, match=r"no filter of StateSharding.* selects a\.w"):
        run(m)


def test_pmap():
    model, optimizer = setup("data")
    mapped = nnx.pmap(
        functools.partial(step, axis_name="data"),
        axis_name="data",
        in_axes=(None, None, 0, 0),
        out_axes=None,
        state_axes={},
    )
    losses = []
    for x, y in batches():
        loss = mapped(model, optimizer, x.reshape(8, -1, 4), y.reshape(8, -1, 2))
        losses.append(float(loss))
    check(losses, model)


def test_pmap_parameters():
    m = nnx.Dict(w=nnx.Param(jnp.arange(16.0).reshape(2, 8)), r=nnx.Rngs(0))

    def f(m, x, name, *, k):
        assert name == "static"
        m["w"].value = m["w"].value * 2
        return x + k + jax.lax.axis_index("i"), jax.random.key_data(m["r"]())

    run = nnx.pmap(
        f,
        "i",
        in_axes=(None, 1, None),
        in_axes_kwargs=None,
        out_axes=(1, 0),
        state_axes={nnx.Param: 1},
        static_broadcasted_argnums=2,
        donate_argnums=0,
        devices=jax.devices()[::-1],
    )
    w = m["w"].value
    x, keys = run(m, jnp.zeros((3, 8)), "static", k=1.0)
    np.testing.assert_allclose(x, np.tile(np.arange(1.0, 9.0), (3, 1)))
    np.testing.assert_allclose(m["w"].value, np.arange(16.0).reshape(2, 8) * 2)
    expected = [
        jax.random.key_data(jax.random.fold_in(k, 0))
        for k in jax.random.split(jax.random.key(0), 8)
    ]
    np.testing.assert_array_equal(keys, np.stack(expected))
    assert m["w"].value is not w
    first = next(s for s in x.addressable_shards if s.index[1].start in (0, None))
    assert first.device == jax.devices()[-1]
    size = nnx.pmap(lambda: jax.lax.axis_index("i"), "i", axis_size=4, backend="cpu")
    assert size().tolist() == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match=r"[Bb]ackend"):
        nnx.pmap(lambda x: x, backend="abacus")(jnp.ones(8))
    names = {nnx.PARTITION_NAME: "layers"}
    make = nnx.pmap(
        lambda r: nnx.Dict(w=nnx.Param(jnp.ones(2), sharding=("a",))),
        axis_size=8,
        transform_metadata=names,
        split_rngs=False,
    )
    made = make(nnx.Rngs(0))
    assert made["w"].shape == (8, 2)
    assert made["w"].sharding == ("layers", "a")


def test_pmap_donates_the_buffers_it_is_told_to():
    mesh = Mesh(np.array(jax.devices()), ("i",))

    def after(holding=False, **parameters):
        value = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, P("i")))
        m = nnx.Dict(w=nnx.Param(value), kept=nnx.Param(value + 1))
        was = weakref.ref(value)
        if not holding:
            del value
        run = nnx.pmap(lambda m, x: x, **parameters)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(m, jnp.ones(8))
        np.testing.assert_allclose(m["w"].value, np.arange(8.0))
        np.testing.assert_allclose(m["kept"].value, np.arange(8.0) + 1)
        if holding:
            np.testing.assert_allclose(value, np.arange(8.0))
        said = [str(w.message) for w in caught if w.category is nnx.DonationWarning]
        return m["w"].value is was(), said

    assert after() == (True, [])
    # What is donated comes back as another array.
    assert after(donate_argnums=0) == (False, [])
    came_back, (said,) = after(holding=True, donate_argnums=0)
    assert not came_back
    assert "copies m.w (32 bytes)" in said


def test_shard_map_uses_the_current_mesh():
    with jax.set_mesh(Mesh(np.array(jax.devices()), ("data",))):
        run = nnx.shard_map(lambda x: x.shape[0] * x, in_specs=P("data"), out_specs=P("data"))
        np.testing.assert_allclose(nnx.jit(run)(jnp.ones(16)), np.full(16, 2.0))


def test_custom_vjp_that_leaves_state_out_inside_shard_map():
    @nnx.custom_vjp(wrt=nnx.Param)
    def f(m, x):
        m["s"].value = m["w"].value * x
        return x * m["w"].value

    def bwd(residual, g):
        (w, x), ((of_m, _), of_out) = residual, g
        of_m["w"].value = jax.lax.psum((of_out * x).sum(), "i")
        return of_m, of_out * w

    f.defvjp(lambda m, x: (f(m, x), (m["w"].value, x)), bwd)
    mesh = Mesh(np.array(jax.devices()), ("i",))
    run = nnx.shard_map(
        lambda m, x: nnx.grad(lambda m, x: f(m, x).sum())(m, x)["w"].value,
        mesh=mesh,
        in_specs=(nnx.StateSharding({nnx.Param: P(), ...: P("i")}), P("i")),
        out_specs=P(),
    )
    m = nnx.Dict(w=nnx.Param(jnp.array(3.0)), s=nnx.BatchStat(jnp.zeros(8)))
    assert float(run(m, jnp.arange(8.0))) == 28.0
    np.testing.assert_allclose(m["s"].value, 3 * np.arange(8.0))


def test_pmap_compiles_once():
    traces = []

    def f(m, x):
        traces.append(1)
        return m["w"].value * x

    run = nnx.pmap(f, state_axes={})
    for value in range(3):
        run(nnx.Dict(w=nnx.Param(jnp.array(float(value)))), jnp.ones(8))
    assert len(traces) == 1


def test_jit_with_state_sharding():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    replicated, by_batch = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    state = nnx.StateSharding({...: replicated})
    model, optimizer = setup()
    jitted = nnx.jit(
        step, in_shardings=(state, state, by_batch, by_batch), out_shardings=replicated
    )
    losses = [float(jitted(model, optimizer, x, y)) for x, y in batches()]
    check(losses, model)
    assert model.up.kernel.value.sharding.is_equivalent_to(replicated, 2)


def test_jit_with_constrained_state():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    model, optimizer = setup(partitioned=True)
    with jax.set_mesh(mesh):
        jitted = nnx.jit(step, constrain_state=True)
        losses = [float(jitted(model, optimizer, x, y)) for x, y in batches()]
    check(losses, model)
    up, down = model.up.kernel.value.sharding, model.down.kernel.value.sharding
    assert up.is_equivalent_to(NamedSharding(mesh, P(None, "model")), 2)
    assert down.is_equivalent_to(NamedSharding(mesh, P("model", None)), 2)


def test_retraces_tell_meshes_and_explicit_shardings():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    m = nnx.Dict(w=nnx.Param(jnp.arange(8.0)), c=nnx.Variable(jnp.zeros(())))
    step = nnx.jit(lambda m: m["w"].value * m["c"].value)
    step(m)
    with jax.set_mesh(mesh):
        for spec in (P("x"), P(None)):
            m["w"].value = jax.device_put(m["w"].value, NamedSharding(mesh, spec))
            assert step(m).sharding.spec == spec
    first, second = map(str, step.retraces)
    assert "m.w: float32[8] -> float32[8] by " in first
    assert first.endswith("on mesh {'x': 8}")
    assert re.search(r"m\.w: .*'x'.* -> .*None.* on mesh {'x': 8}$", second)


class Spread(nnx.Module):
    """One weight that says where it belongs."""

    def __init__(self, rows: int = 8, **metadata) -> None:
        self.w = nnx.Param(jnp.ones((rows, 4)), sharding=("data", None), **metadata)


@pytest.mark.parametrize("constrain", [True, "function"])
def test_constrain_state_reaches_what_the_function_makes(constrain):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, P("data"))
    if constrain == "function":
        constrain = lambda state: jax.tree.map(  # noqa: E731
            lambda x: jax.lax.with_sharding_constraint(x, rows), state
        )
    kept = nnx.Dict()

    def make(kept):
        kept.added = Spread()
        return {"made": Spread(), "added": kept.added}

    with jax.set_mesh(mesh):
        out = nnx.jit(make, constrain_state=constrain)(kept)
        alone = nnx.jit(Spread, constrain_state=constrain)()
    assert out["added"] is kept.added
    for model in (out["made"], kept.added, alone):
        assert model.w.value.sharding.is_equivalent_to(rows, 2)


def test_constrain_state_takes_the_mesh_of_the_metadata():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    model = Spread(mesh=mesh)

    @nnx.jit(constrain_state=True)
    def grow(model):
        model.w.value = model.w.value + 1

    grow(model)
    assert model.w.value.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 2)


def test_out_shardings_that_cannot_be_are_refused_by_path():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, P("data"))
    with pytest.raises(ValueError, match=r"out_shardings cannot place result\['a'\]: .*divide"):
        nnx.jit(lambda: {"a": jnp.ones((7, 4))}, out_shardings=rows)()
    for sharding in (rows, nnx.StateSharding({nnx.Param: rows, ...: None})):
        with pytest.raises(
            ValueError, match=r"out_shardings cannot place result\[1\]\.w: .*divide"
        ):
            nnx.jit(lambda: (1.0, Spread(7)), out_shardings=(None, sharding))()


def test_shardings_choose_the_memory():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    host = NamedSharding(mesh, P("data"), memory_kind="pinned_host")
    moved = jax.jit(lambda x: jax.device_put(x, host))(jnp.ones(8))
    if moved.sharding.memory_kind != "pinned_host":
        pytest.skip("jax before 0.10 computes in one memory on CPUs")
    assert nnx.jit(lambda x: x + 1, out_shardings=host)(jnp.ones(8)).sharding == host
    made = nnx.jit(Spread, out_shardings=nnx.StateSharding({nnx.Param: host, ...: None}))()
    assert made.w.value.sharding.memory_kind == "pinned_host"
    assert made.w.value.sharding.is_equivalent_to(host, 2)

    @nnx.jit(in_shardings=nnx.StateSharding({nnx.Param: host, ...: None}))
    def grow(model):
        on_device = jax.device_put(model.w.value, host.with_memory_kind("device"))
        model.w.value = on_device + 1

    grow(made)
    grow(made)
    assert made.w.value.sharding.memory_kind == "pinned_host"
    np.testing.assert_array_equal(np.asarray(made.w.value), np.full((8, 4), 3.0))


# -- what JAX says about leaves on devices names them ----------------------------------------------


def test_leaves_on_other_devices_than_the_rest_are_named():
    first, second = jax.devices()[:2]
    net = nnx.Dict(w=nnx.Param(jax.device_put(jnp.ones(2), first)))
    x = jax.device_put(jnp.ones(2), second)
    with pytest.raises(ValueError, match="incompatible devices") as error:
        nnx.jit(lambda net, x: net.w.value + x)(net, x)
    assert re.search(r"argument net\.w of .*argument x of", str(error.value), re.DOTALL)


def test_a_leaf_that_its_sharding_does_not_divide_is_named():
    mesh = Mesh(np.array(jax.devices()), ("d",))
    net = nnx.Dict(parts=[nnx.Param(jnp.ones(8)), nnx.Param(jnp.ones(3))])
    with pytest.raises(ValueError, match=r"in_shardings cannot place net\.parts\[1\]: "):
        nnx.jit(lambda net: net.parts[0].value, in_shardings=NamedSharding(mesh, P("d")))(net)


def test_a_leaf_that_lies_elsewhere_than_a_program_was_compiled_for_is_named():
    mesh = Mesh(np.array(jax.devices()), ("d",))
    split = jax.device_put(jnp.ones(8), NamedSharding(mesh, P("d")))
    whole = jax.device_put(jnp.ones(8), NamedSharding(mesh, P()))
    step = nnx.jit(lambda net: net.w.value.sum())
    compiled = step.lower(nnx.Dict(w=nnx.Param(split))).compile()
    with pytest.raises(ValueError, match=r"(?i)arg(ument)? net\.w\b"):
        compiled(nnx.Dict(w=nnx.Param(whole)))

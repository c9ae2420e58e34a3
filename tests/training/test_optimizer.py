from __future__ import annotations

import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import treadle as nnx


class MLP(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        # In front: behind a layer it would leave that layer's bias without a gradient.
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](nnx.tanh(self.layers[0](self.norm(x))))


X = jax.random.normal(jax.random.key(0), (8, 3))
Y = jax.random.normal(jax.random.key(1), (8, 2))


def loss_fn(model, x=X, y=Y):
    return jnp.mean((model(x) - y) ** 2)


def is_kernel(tree):
    return jax.tree.map(lambda p: p.ndim > 1, tree)


def labels(tree):
    return jax.tree.map(lambda p: "kernel" if p.ndim > 1 else "other", tree)


TRANSFORMATIONS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1, mask=is_kernel),
    "clip and schedule": lambda: optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.sgd(optax.linear_schedule(0.1, 0.0, 5)),
    ),
    "masked": lambda: optax.masked(optax.adam(1e-2), is_kernel),
    "nothing masked in": lambda: optax.masked(
        optax.adam(1e-2), lambda tree: jax.tree.map(lambda _: False, tree)
    ),
    "partition": lambda: optax.partition(
        {"kernel": optax.adam(1e-2), "other": optax.set_to_zero()}, labels
    ),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "factored": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2),
    "several steps": lambda: optax.MultiSteps(
        optax.adam(1e-2), every_k_schedule=2
    ).gradient_transformation(),
    "finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
    "named": lambda: optax.named_chain(("scale", optax.scale_by_adam()), ("lr", optax.scale(-0.1))),
    "lookahead free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
}


def train_plainly(tx, steps):
    """The same training with nested dicts and optax alone."""
    model = MLP(rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(pure):
        replaced = params.copy()
        replaced.replace_by_pure_dict(pure)
        return loss_fn(nnx.merge(graphdef, replaced, rest))

    @jax.jit
    def step(pure, state):
        updates, state = tx.update(jax.grad(loss)(pure), state, pure)
        return optax.apply_updates(pure, updates), state

    pure = params.to_pure_dict()
    state = tx.init(pure)
    for _ in range(steps):
        pure, state = step(pure, state)
    return pure, state


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_updates_are_those_of_optax(name):
    tx = TRANSFORMATIONS[name]()
    model = MLP(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss_fn)(model))

    variables = jax.tree.leaves(optimizer.opt_state, is_leaf=lambda v: isinstance(v, nnx.Variable))
    for _ in range(3):
        step(model, optimizer)
    pure, state = train_plainly(tx, 3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        nnx.state(model, nnx.Param).to_pure_dict(),
        pure,
    )
    found = jax.tree.leaves(optimizer.opt_state, is_leaf=lambda v: isinstance(v, nnx.Variable))
    assert [id(v) for v in found] == [id(v) for v in variables]
    expected = jax.tree.leaves(state)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours, nnx.OptState)
        np.testing.assert_allclose(ours.value, theirs, rtol=1e-4, atol=1e-6)
    assert int(optimizer.step.value) == 3


def test_state_mirrors_the_model_in_nested_dicts():
    model = MLP(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    adam = optimizer.opt_state[0]
    assert type(adam).__name__ == "ScaleByAdamState"
    assert type(adam.count) is nnx.OptState
    assert type(adam.mu["layers"][0]["kernel"]) is nnx.OptVariable
    assert adam.mu["norm"]["scale"].value.shape == (3,)
    paths = nnx.state(optimizer, nnx.OptVariable).flat_state()
    assert ("opt_state", 0, "mu", "layers", 0, "kernel") in paths


def test_state_carries_the_metadata_of_its_parameter_but_not_its_hooks():
    def double(variable, value):
        return value * 2

    model = nnx.Linear(
        2,
        3,
        kernel_metadata={"sharding": ("a", "b"), "get_value_hooks": double},
        rngs=nnx.Rngs(0),
    )
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    assert optimizer.opt_state[0].mu["kernel"].get_metadata() == {"sharding": ("a", "b")}
    factored = nnx.Optimizer(model, optax.adafactor(1e-3, min_dim_size_to_factor=2), wrt=nnx.Param)
    nested = jax.tree.leaves(factored.opt_state, is_leaf=lambda v: isinstance(v, nnx.Variable))
    of_other_shape = [v for v in nested if v.value.shape != (2, 3)]
    assert not any(v.has_metadata("sharding") for v in of_other_shape)
    v_row = factored.opt_state[0].v_row["kernel"]
    assert v_row.value.ndim == 1
    assert not v_row.has_metadata("sharding")


@pytest.mark.parametrize("value", [(jnp.ones((3, 2)), jnp.ones((2, 2))), {"a": jnp.ones((3, 2))}])
def test_a_parameter_may_be_a_pytree(value):
    model = nnx.Dict(w=nnx.Param(value, sharding=("data", None)))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)

    def loss(model):
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(model["w"].value))

    expected, tx = value, optax.adam(0.1)
    state = tx.init(value)
    for _ in range(2):
        optimizer.update(model, nnx.grad(loss)(model))
        updates, state = tx.update(jax.tree.map(lambda x: 2 * x, expected), state, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(np.testing.assert_allclose, model["w"].value, expected)
    moments = jax.tree.leaves(
        optimizer.opt_state[0].mu, is_leaf=lambda x: isinstance(x, nnx.Variable)
    )
    assert [m.sharding for m in moments] == [("data", None)] * len(moments)


def test_the_transformation_sees_the_state_of_the_model():
    seen = []

    def init(params):
        seen.append(params)
        return optax.EmptyState()

    model = MLP(rngs=nnx.Rngs(0))
    tx = optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))
    nnx.Optimizer(model, tx, wrt=nnx.Param)
    assert seen[0] == nnx.state(model, nnx.Param)


def test_a_mask_made_from_the_state_beforehand_fits():
    model = MLP(rngs=nnx.Rngs(0))
    mask = is_kernel(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, optax.masked(optax.adam(1e-2), mask), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(loss_fn)(model))
    assert set(optimizer.opt_state.inner_state[0].mu["layers"][0]) == {"bias", "kernel"}
    assert len(jax.tree.leaves(optimizer.opt_state.inner_state[0].mu)) == 2


def one_object_forms():
    return {
        "positional": lambda o, m, g: o.update(g),
        "keyword": lambda o, m, g: o.update(grads=g),
        "two": lambda o, m, g: o.update(m, g),
        "two, keyword": lambda o, m, g: o.update(m, grads=g),
    }


@pytest.mark.parametrize("form", one_object_forms())
def test_an_optimizer_that_holds_its_model_takes_both_forms(form):
    model = MLP(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1))
    assert optimizer.model is model
    before = model.layers[0].kernel.value
    grads = nnx.grad(loss_fn)(model)
    one_object_forms()[form](optimizer, model, grads)
    expected = before - 0.1 * grads["layers"][0]["kernel"].value
    np.testing.assert_allclose(model.layers[0].kernel.value, expected, rtol=1e-5)


def test_a_step_may_take_the_optimizer_alone():
    model = MLP(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2))
    traces = []

    @nnx.jit
    def step(optimizer, x, y):
        traces.append(1)
        loss, grads = nnx.value_and_grad(loss_fn)(optimizer.model, x, y)
        optimizer.update(grads=grads)
        return loss

    losses = [float(step(optimizer, X, Y)) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert optimizer.model is model
    assert len(traces) == 1


def test_a_transform_given_model_and_optimizer_sees_one_model():
    model = MLP(rngs=nnx.Rngs(0))
    holding = nnx.Optimizer(model, optax.sgd(0.1))
    apart = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    leaves = nnx.graphdef((model, holding)).num_leaves
    assert leaves == nnx.graphdef((model, apart)).num_leaves
    same = []

    @nnx.jit
    def step(model, optimizer):
        same.append(optimizer.model is model)
        optimizer.update(model, nnx.grad(loss_fn)(model))

    step(model, holding)
    assert same == [True]


def test_with_a_filter_the_model_is_not_held_and_the_message_says_so():
    model = MLP(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    assert all(t in (nnx.OptState, nnx.OptVariable) for t in types_of(optimizer))
    with pytest.raises(AttributeError, match="does not hold its model"):
        _ = optimizer.model
    with pytest.raises(ValueError, match=r"update\(model, grads\)"):
        optimizer.update(nnx.grad(loss_fn)(model))


def types_of(node):
    return [entry.type for entry in nnx.state(node).flat_state().values()]


def test_model_and_optimizer_holds_the_model_with_any_filter():
    model = MLP(rngs=nnx.Rngs(0))
    kernels = nnx.All(nnx.Param, nnx.PathContains("kernel"))
    optimizer = nnx.ModelAndOptimizer(model, optax.sgd(0.1), wrt=kernels)
    bias = model.layers[0].bias.value
    optimizer.update(nnx.grad(loss_fn, wrt=kernels)(model))
    assert optimizer.model is model
    assert model.layers[0].bias.value is bias


def test_only_what_the_filter_selects_is_changed():
    model = MLP(rngs=nnx.Rngs(0))
    wrt = [nnx.PathContains("norm"), nnx.PathContains("nothing")]
    wrt = nnx.All(nnx.Param, nnx.Any(*wrt))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=wrt)
    before = nnx.state(model)
    optimizer.update(model, nnx.grad(loss_fn, wrt=wrt)(model))
    after = nnx.state(model)
    changed = {
        path
        for path, entry in after.flat_state().items()
        if not np.array_equal(entry.value, before.flat_state()[path].value)
    }
    assert ("norm", "scale") in changed
    assert not any(path[0] == "layers" for path in changed)


def test_a_list_of_filters_stays_hashable():
    model = MLP(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=[nnx.Param])
    assert optimizer.wrt == (nnx.Param,)
    hash(nnx.graphdef(optimizer))


def test_shared_parameters_are_updated_once():
    shared = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    model = nnx.List([shared, shared])
    optimizer = nnx.Optimizer(model, optax.sgd(1.0), wrt=nnx.Param)

    def loss(model):
        return model[1](model[0](jnp.ones(2))).sum()

    before = shared.kernel.value
    grads = nnx.grad(loss)(model)
    optimizer.update(model, grads)
    entry = grads[0]["kernel"] if 0 in grads else grads["0"]["kernel"]
    np.testing.assert_allclose(shared.kernel.value, before - entry.value, rtol=1e-6)


def test_remaking_an_equal_optimizer_does_not_retrace():
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)
        optimizer.update(model, nnx.grad(loss_fn)(model))

    for _ in range(3):
        model = MLP(rngs=nnx.Rngs(0))
        step(model, nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param))
    assert len(traces) == 1


def test_injected_hyperparameters_can_be_changed_between_steps():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model, optax.inject_hyperparams(optax.sgd)(learning_rate=1.0), wrt=nnx.Param
    )
    grads = jax.tree.map(jnp.ones_like, nnx.state(model))
    optimizer.opt_state.hyperparams["learning_rate"].value = jnp.array(0.25)
    before = model.bias.value
    optimizer.update(model, grads)
    np.testing.assert_allclose(model.bias.value, before - 0.25)


def test_further_keywords_reach_the_transformation():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    tx = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(patience=1, factor=0.5))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = jax.tree.map(jnp.zeros_like, nnx.state(model))
    for _ in range(4):
        optimizer.update(model, grads, value=jnp.array(1.0))
    assert float(optimizer.opt_state[1].scale.value) < 1
    tx = optax.GradientTransformation(lambda p: (), lambda u, state, p=None: (u, state))
    plain = nnx.Optimizer(model, tx, wrt=nnx.Param)
    with pytest.raises(TypeError, match="surplus"):
        plain.update(model, grads, surplus=1)


def test_parameters_keep_their_dtype():
    model = nnx.Linear(2, 1, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model)))
    assert model.kernel.value.dtype == jnp.bfloat16


def test_gradients_of_other_parameters_are_refused_by_name():
    model = MLP(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.PathContains("kernel"))
    grads = nnx.grad(loss_fn)(model)
    with pytest.raises(nnx.GraphError, match=r"grads\.layers\[0\]\.bias is not optimized.*wrt"):
        optimizer.update(model, grads)
    del grads["layers"][0]["bias"], grads["layers"][1], grads["norm"]
    with pytest.raises(nnx.GraphError, match=r"grads\.layers\[1\]\.kernel is missing"):
        optimizer.update(model, grads)
    assert int(optimizer.step.value) == 0


class Marked(nnx.Param):
    pass


def added(model):
    model.extra = nnx.Param(jnp.ones(2))


def removed(model):
    model.layers[0].bias = None


def retyped(model):
    model.layers[0].kernel = nnx.Variable(model.layers[0].kernel.value)


def made_an_array(model):
    value = model.layers[0].kernel.value
    del model.layers[0].kernel
    model.layers[0].kernel = value


def reshaped(model):
    model.norm = nnx.LayerNorm(1, rngs=nnx.Rngs(0))


CHANGES = {
    added: r"model\.extra was added",
    removed: r"model\.layers\[0\]\.bias was removed",
    retyped: r"model\.layers\[0\]\.kernel is now a Variable, which wrt=Param does not select",
    made_an_array: r"model\.layers\[0\]\.kernel is now an array, which wrt=Param",
    reshaped: r"model\.norm\.bias has shape \(1,\) by now, but state of shape \(\d+,\)",
}
KEEPING = {
    "adam": optax.adam(1e-2),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "factored": optax.adafactor(1e-2),
    "masked": optax.masked(optax.adam(1e-2), is_kernel),
    "several": optax.multi_transform(
        {True: optax.adam(1e-2), False: optax.sgd(0.1, momentum=0.9)}, is_kernel
    ),
    "injected": optax.inject_hyperparams(optax.adamw)(1e-3),
    "accumulated": optax.MultiSteps(optax.adam(1e-2), 2),
}


# Where a mask leaves out what was reshaped, nothing is kept for it.
@pytest.mark.parametrize(
    ("name", "change"),
    [(n, c) for n in KEEPING for c in CHANGES if (n, c) != ("masked", reshaped)],
)
def test_a_model_with_other_parameters_is_refused_by_path(name, change):
    model = MLP(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, KEEPING[name], wrt=nnx.Param)
    change(model)
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    before = [id(v) for v in jax.tree.leaves(nnx.state((model, optimizer)))]
    with pytest.raises(nnx.GraphError, match=f"{CHANGES[change]}.*make a new Optimizer"):
        optimizer.update(model, grads)
    assert [id(v) for v in jax.tree.leaves(nnx.state((model, optimizer)))] == before


def test_the_change_is_named_inside_of_jit_and_before_gradients_that_do_not_fit():
    model = MLP(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2))
    grads = nnx.state(model, nnx.Param)
    added(model)
    with pytest.raises(nnx.GraphError, match=r"model\.extra was added"):
        nnx.jit(lambda o, g: o.update(g))(optimizer, grads)
    assert int(optimizer.step.value) == 0


def test_what_agrees_goes_on():
    # A subtype that the filter selects too; and state that no parameter has a part in.
    for tx in (optax.adam(1e-2), optax.sgd(0.1)):
        model = MLP(rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        model.layers[0].kernel = Marked(model.layers[0].kernel.value)
        if tx.init({}) == optax.sgd(0.1).init({}):
            added(model)
        before = model.layers[0].kernel.value
        optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
        assert (model.layers[0].kernel.value < before).all()
        assert isinstance(model.layers[0].kernel, Marked)


def test_a_failed_update_changes_nothing():
    def update(updates, state, params=None):
        raise RuntimeError("broken")

    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    good = optax.adam(1e-3)
    optimizer = nnx.Optimizer(model, optax.GradientTransformation(good.init, update), wrt=nnx.Param)
    before = [id(v) for v in jax.tree.leaves(nnx.state((model, optimizer)))]
    with pytest.raises(RuntimeError, match="broken"):
        optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model)))
    assert [id(v) for v in jax.tree.leaves(nnx.state((model, optimizer)))] == before


def test_an_optimizer_of_another_trace_level_is_refused_before_the_model_changes():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model):
        kernel = model.kernel.value
        with pytest.raises(nnx.TraceContextError):
            optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model)))
        assert model.kernel.value is kernel

    step(model)
    assert int(optimizer.step.value) == 0


def test_a_state_that_changes_its_structure_is_kept():
    def update(updates, state, params=None):
        return updates, (*state, jnp.zeros(()))

    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    tx = optax.GradientTransformation(lambda params: (), update)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.state(model)
    optimizer.update(model, grads)
    optimizer.update(model, grads)
    assert [type(v) for v in optimizer.opt_state] == [nnx.OptState, nnx.OptState]


def test_optimizers_split_merge_and_pickle():
    model = MLP(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    merged_model, merged = nnx.merge(*nnx.split((model, optimizer)))
    merged.update(merged_model, nnx.grad(loss_fn)(merged_model))
    assert int(merged.step.value) == 1
    assert int(optimizer.step.value) == 0
    state = nnx.state(merged)
    nnx.update(optimizer, pickle.loads(pickle.dumps(state)))
    assert int(optimizer.step.value) == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: nnx.Optimizer(m, "adam"), TypeError, "optax transformation"),
        (lambda m: nnx.Optimizer(m, optax.adam), TypeError, "optax transformation"),
        (lambda m: nnx.Optimizer(m, optax.sgd(1), wrt=nnx.Cache), ValueError, "selects nothing"),
        (lambda m: nnx.Optimizer(m, optax.sgd(1)).update(), TypeError, "got 0 of them"),
        (lambda m: nnx.Optimizer(m, optax.sgd(1)).update(1, 2, 3), TypeError, "got 3 of them"),
        (lambda m: nnx.Optimizer(m, optax.sgd(1)).update(3.0), TypeError, "must be a State"),
    ],
)
def test_bad_arguments_are_explained(call, error, message):
    with pytest.raises(error, match=message):
        call(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))


def test_optax_is_imported_only_when_an_optimizer_is_made():
    code = (
        "import sys, treadle; treadle.Optimizer; assert 'optax' not in sys.modules;"
        "m = treadle.Linear(1, 1, rngs=treadle.Rngs(0)); sys.modules['optax'] = None\n"
        "try: treadle.Optimizer(m, None)\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert "pip install" in done.stdout

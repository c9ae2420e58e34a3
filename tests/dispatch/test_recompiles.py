"""A compiled function is reused whenever it can be, and each retrace is explained."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import treadle as nnx
from tests.dispatch import models as shared_models
from tests.dispatch.models import Tower, train, training

X = jnp.ones(2)


def test_making_model_and_optimizer_anew_every_epoch_compiles_once() -> None:
    step = nnx.jit(train)
    for _ in range(4):
        model, optimizer = training(depth=1)
        for _ in range(2):
            step(model, optimizer, jnp.ones((3, 2)))
    assert step.num_traces == 1
    assert step._counts["warm"] == 3


def test_another_learning_rate_compiles_again_and_says_why() -> None:
    step = nnx.jit(train)
    model = Tower(1)
    for rate in (1e-3, 1e-3, 1e-2):
        optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)
        step(model, optimizer, jnp.ones((3, 2)))
    assert step.num_traces == 2
    assert step.retraces[0].path.startswith("optimizer.tx")


class Activated(nnx.Module):
    def __init__(self, activation: Any) -> None:
        self.activation = activation
        self.scale = nnx.Param(jnp.ones(2))

    def scaled(self, x: Any) -> Any:
        return x * self.scale.value


def _lambda(factor: float) -> Any:
    return lambda x: x * factor


def _defaults(factor: float) -> Any:
    def activation(x: Any, factor: float = factor, *, shift: float = factor) -> Any:
        return x * factor + shift - shift

    return activation


def _nested(factor: float) -> Any:
    inner = _lambda(factor)
    return lambda x: inner(x)


def _method_of_tuple(factor: float) -> Any:
    get = (factor,).__getitem__
    return lambda x: x * get(0)


def _method_of_config(factor: float) -> Any:
    times = Fixed(factor).times
    return lambda x: times(x)


MAKERS = {
    "lambda with a closure": _lambda,
    "defaults": _defaults,
    "function in a closure": _nested,
    "method of a tuple": _method_of_tuple,
    "method of a frozen object": _method_of_config,
    "partial": lambda factor: functools.partial(jnp.multiply, factor),
    "partial of a lambda": lambda factor: functools.partial(_lambda(factor)),
    "tuple of functions": lambda factor: (_lambda(factor), _defaults(factor)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_functions_made_anew_compare_by_what_they_are(make: Any) -> None:
    @nnx.jit
    def apply(model: Activated, x: Any) -> Any:
        activation = model.activation
        return (activation[0] if isinstance(activation, tuple) else activation)(x)

    assert [float(apply(Activated(make(2.0)), X)[0]) for _ in range(3)] == [2, 2, 2]
    assert apply.num_traces == 1
    assert float(apply(Activated(make(3.0)), X)[0]) == 3
    assert apply.num_traces == 2


def test_functions_of_other_code_compile_again() -> None:
    apply = nnx.jit(lambda model, x: model.activation(x))
    assert float(apply(Activated(lambda x: x + 1), X)[0]) == 2
    assert float(apply(Activated(lambda x: x + 2), X)[0]) == 3
    assert apply.num_traces == 2


def test_a_closure_whose_content_changed_compiles_again() -> None:
    factor = 2.0

    def activation(x: Any) -> Any:
        return x * factor

    apply = nnx.jit(lambda model, x: model.activation(x))
    model = Activated(activation)
    assert float(apply(model, X)[0]) == 2
    factor = 5.0
    # A function object seen before is taken at its word, as jax.jit takes a captured value; a new one is compared.
    assert float(apply(Activated(_lambda(5.0)), X)[0]) == 5


RATE = 2.0


def _reads_global() -> Any:
    return lambda x: x * RATE


def _reads_cell() -> tuple[Any, Any]:
    factor = 2.0

    def make() -> Any:
        return lambda x: x * factor

    def change() -> None:
        nonlocal factor
        factor = 5.0

    return make, change


def _reads_content(content: Any, change: Any, read: Any) -> tuple[Any, Any]:
    return lambda: lambda x: x * read(content), lambda: change(content)


class _Settings:
    factor = 2.0

    def read(self) -> float:
        return self.factor

    @classmethod
    def read_class(cls) -> float:
        return cls.factor

    def __neg__(self) -> float:
        return self.factor


def _set_factor(settings: Any) -> None:
    settings.factor = 5.0


def _reads_method(settings: Any, get: Any) -> tuple[Any, Any]:
    method = get(settings)
    return lambda: lambda x: x * method(), lambda: _set_factor(settings)


def _reads_method_of_layer() -> tuple[Any, Any]:
    layer = Activated(lambda x: x)
    layer.scale.value = jnp.full(2, 2.0)
    method = layer.scaled

    def change() -> None:
        layer.scale.value = jnp.full(2, 5.0)

    return lambda: lambda x: method(x), change


@functools.lru_cache
def _remembered() -> list[float]:
    return []


def _reads_what_is_remembered() -> tuple[Any, Any]:
    _remembered()[:] = [2.0]
    remembered = _remembered
    return lambda: lambda x: x * remembered()[0], lambda: remembered().__setitem__(0, 5.0)


def _reads_context() -> tuple[Any, Any]:
    factor = contextvars.ContextVar("factor", default=2.0)
    return lambda: lambda x: x * factor.get(), lambda: factor.set(5.0)


class _Held(_Settings):
    """Equal to others of its kind, as are weak references to it."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held)

    def __hash__(self) -> int:
        return 1


def _reads_reference(settings: Any) -> tuple[Any, Any]:
    reference = weakref.ref(settings)
    return lambda: lambda x: x * reference().factor, lambda: _set_factor(settings)


_kept, _kept_equal = _Settings(), _Held()


CHANGES = {
    "variable around it": _reads_cell,
    "list": lambda: _reads_content([2.0], lambda c: c.__setitem__(0, 5.0), lambda c: c[0]),
    "dict": lambda: _reads_content({"k": 2.0}, lambda c: c.update(k=5.0), lambda c: c["k"]),
    "numpy array": lambda: _reads_content(np.full(1, 2.0), lambda c: c.fill(5.0), lambda c: c[0]),
    "Variable": lambda: _reads_content(
        nnx.Param(jnp.array(2.0)), lambda c: setattr(c, "value", jnp.array(5.0)), lambda c: c.value
    ),
    "node": lambda: _reads_content(
        nnx.Dict(w=nnx.Param(jnp.array(2.0))),
        lambda c: setattr(c["w"], "value", jnp.array(5.0)),
        lambda c: c["w"].value,
    ),
    "object": lambda: _reads_content(_Settings(), _set_factor, lambda c: c.factor),
    "class": lambda: _reads_content(
        type("Config", (), {"factor": 2.0}), _set_factor, lambda c: c.factor
    ),
    "method": lambda: _reads_method(_Settings(), lambda c: c.read),
    "method of a class": lambda: _reads_method(
        type("Config", (_Settings,), {}), lambda c: c.read_class
    ),
    "slot of an object": lambda: _reads_method(_Settings(), lambda c: c.__neg__),
    "method of a layer": _reads_method_of_layer,
    "method of a dict": lambda: _reads_content(
        {"k": 2.0}.get, lambda get: get.__self__.update(k=5.0), lambda get: get("k")
    ),
    "method of a list": lambda: _reads_content(
        [2.0].__getitem__, lambda get: get.__self__.__setitem__(0, 5.0), lambda get: get(0)
    ),
    "iterator": lambda: _reads_content(iter([2.0, 2.0, 5.0, 5.0]), lambda c: None, next),
    "cache": _reads_what_is_remembered,
    "context variable": _reads_context,
    "weak reference": lambda: _reads_reference(_kept),
    "weak reference to an equal object": lambda: _reads_reference(_kept_equal),
}


@pytest.mark.parametrize("how", CHANGES.values(), ids=CHANGES)
def test_a_new_function_reads_what_is_there_now(how: Any) -> None:
    make, change = how()
    apply = nnx.jit(lambda model, x: model.activation(x))
    by_static = nnx.jit(lambda function, x: function(x), static_argnums=0)
    assert float(apply(Activated(make()), X)[0]) == float(by_static(make(), X)[0]) == 2
    change()
    assert float(apply(Activated(make()), X)[0]) == float(by_static(make(), X)[0]) == 5


def test_a_new_function_reads_globals_bound_again(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = nnx.jit(lambda model, x: model.activation(x))
    for rate in (2.0, 5.0, 2.0):
        monkeypatch.setitem(globals(), "RATE", rate)
        assert float(apply(Activated(_reads_global()), X)[0]) == rate
    # Back at a value that it was compiled for.
    assert apply.num_traces == 2
    where = "_reads_global.<locals>.<lambda> with"
    assert str(apply.retraces[-1]).endswith(f"model.activation: {where} 2.0 -> {where} 5.0")


def _imports_value() -> Any:
    def activation(x: Any) -> Any:
        # Under a name that is no global here.
        from tests.dispatch.models import imported_rate

        return x * imported_rate

    return activation


def _imports_further_inside() -> Any:
    def activation(x: Any) -> Any:
        def rate() -> Any:
            import tests.dispatch.models as elsewhere

            return elsewhere.imported_rate

        return x * rate()

    return activation


def _imports_next_to_it() -> Any:
    def activation(x: Any) -> Any:
        from .models import imported_rate

        return x * imported_rate

    return activation


def _evaluates_in_class() -> Any:
    def activation(x: Any) -> Any:
        class Here:
            rate = eval("RATE")

        return x * Here.rate

    return activation


REACHING = {
    "import of a value": _imports_value,
    "import further inside": _imports_further_inside,
    "relative import": _imports_next_to_it,
    "__import__": lambda: (
        lambda x: x * __import__("tests.dispatch.models", fromlist=["_"]).imported_rate
    ),
    "globals()": lambda: lambda x: x * globals()["RATE"],
    "eval": lambda: lambda x: x * eval("RATE"),
    "eval in a class": _evaluates_in_class,
}


@pytest.mark.parametrize("make", REACHING.values(), ids=REACHING)
def test_a_new_function_reads_variables_that_it_does_not_name(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = nnx.jit(lambda model, x: model.activation(x))
    for rate in (2.0, 5.0, 2.0):
        monkeypatch.setitem(globals(), "RATE", rate)
        monkeypatch.setattr(shared_models, "imported_rate", rate, raising=False)
        assert float(apply(Activated(make()), X)[0]) == rate
    # A function object seen before is taken at its word.
    activation = make()
    for _ in range(2):
        apply(Activated(activation), X)
    assert apply.num_traces == 4


def _imports_from_jax() -> Any:
    def activation(x: Any) -> Any:
        import jax.numpy as jnp
        from jax import nn

        return nn.relu(jnp.abs(x))

    return activation


def _names_attributes() -> Any:
    return lambda x: x if isinstance(x, jax.Array) else x.eval() + x.vars + x.globals


def vars(x: Any) -> Any:
    """Hides the builtin."""
    return x


@pytest.mark.parametrize("make", [_imports_from_jax, _names_attributes, lambda: lambda x: vars(x)])
def test_imports_from_known_packages_and_names_that_hide_builtins_compile_once(make: Any) -> None:
    apply = nnx.jit(lambda model, x: model.activation(x))
    for _ in range(3):
        apply(Activated(make()), X)
    assert apply.num_traces == 1


def _scaled(function: Any) -> Any:
    @functools.wraps(function)
    def activation(x: Any) -> Any:
        return function(x) * RATE

    return activation


@pytest.mark.parametrize("functions", [(jnp.abs, jnp.abs), (jnp.abs, lambda x: x)])
def test_a_function_that_wraps_one_of_jax_reads_globals(
    functions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = nnx.jit(lambda model, x: model.activation(x))
    apply(Activated(_scaled(functions[0])), X)
    for rate in (2.0, 5.0, 2.0):
        monkeypatch.setitem(globals(), "RATE", rate)
        assert float(apply(Activated(_scaled(functions[1])), X)[0]) == rate


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Equal by content, which cannot change."""

    factor: float

    def times(self, x: Any) -> Any:
        return x * self.factor


def _rebound(values: list[Any], read: Any = lambda value: value) -> list[Any]:
    """Makers of functions that share one variable, each to be called when the variable has its value."""
    current: Any = None

    def bind(value: Any) -> Any:
        nonlocal current
        current = value
        return lambda x: x * read(current)

    return [functools.partial(bind, value) for value in values]


REBOUND = {
    # Equal hashes in Python.
    "numbers": _rebound([-1, -2, 2**61 - 1, 0], float),
    "configs in one variable": _rebound([Fixed(rate) for rate in range(6)], lambda c: c.factor),
    "arrays": _rebound([jnp.full((), rate) for rate in range(4)]),
    "lists": _rebound([[1], [2], [True], [1, 2]], lambda c: sum(c) + 4 * (type(c[0]) is bool)),
    "dicts, in order": _rebound(
        [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1}],
        lambda c: 10 * next(iter(c.values())) + len(c),
    ),
    "signs of zero": _rebound([0.0, -0.0], lambda c: jnp.copysign(1.0, c)),
}


@pytest.mark.parametrize("makers", REBOUND.values(), ids=REBOUND)
def test_a_new_function_reads_a_variable_bound_again(makers: Any) -> None:
    apply = nnx.jit(lambda model, x: model.activation(x))
    for _ in range(2):
        for make in makers:
            activation = make()
            assert float(apply(Activated(activation), X)[0]) == float(activation(X)[0])
    assert apply.num_traces == len(makers)


def test_globals_whose_forerunners_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = nnx.jit(lambda model, x: model.activation(x))
    for rate in range(8):
        monkeypatch.setitem(globals(), "FIXED", Fixed(rate))
        assert float(apply(Activated(lambda x: x * FIXED.factor), X)[0]) == rate


FIXED = Fixed(0.0)


def test_functions_are_compared_however_deep_they_read() -> None:
    def wrapped(function: Any, times: int) -> Any:
        for _ in range(times):
            function = (lambda inner: lambda x: inner(x))(function)
        return function

    apply = nnx.jit(lambda model, x: model.activation(x))
    for depth in (1, 5, 20):
        for make in _rebound([0.0, 1.0, 2.0]) * 2:
            activation = wrapped(make(), depth)
            assert float(apply(Activated(activation), X)[0]) == float(activation(X)[0])
    assert apply.num_traces == 9


def test_what_functions_share_is_read_once() -> None:
    # A tree of calls with 2**40 paths.
    function: Any = lambda x: x  # noqa: E731
    for _ in range(40):
        function = (lambda inner, other: lambda x: inner(x))(function, function)
    apply = nnx.jit(lambda model, x: x)
    for _ in range(2):
        apply(Activated(function), X)
    assert apply.num_traces == 1


def _of_list() -> Any:
    rates = [0.5, {"a": (2.0,)}]
    return lambda x: x * rates[0] * rates[1]["a"][0]


def _of_default_list() -> Any:
    def activation(x: Any, rates: Any = [1.0]) -> Any:  # noqa: B006
        return x * rates[0]

    return activation


def _of_itself() -> Any:
    held: list[Any] = []

    def activation(x: Any) -> Any:
        return x * len(held)

    held.append(activation)
    held.append(held)
    return activation


@pytest.mark.parametrize("make", [_of_list, _of_default_list, _of_itself])
def test_functions_made_anew_compare_by_the_lists_they_hold(make: Any) -> None:
    apply = nnx.jit(lambda model, x: model.activation(x))
    for _ in range(3):
        assert float(apply(Activated(make()), X)[0]) == float(make()(X)[0])
    assert apply.num_traces == 1


def test_a_list_that_changed_after_it_was_compiled_for() -> None:
    def make(rates: list[float]) -> Any:
        return lambda x: x * rates[0]

    apply = nnx.jit(lambda model, x: model.activation(x))
    rates = [2.0]
    activation = make(rates)
    assert float(apply(Activated(activation), X)[0]) == 2
    rates[0] = 5.0
    assert float(apply(Activated(make([5.0])), X)[0]) == 5
    assert float(apply(Activated(make(rates)), X)[0]) == 5
    assert float(apply(Activated(make([2.0])), X)[0]) == 2
    # Compiled once for each, and the function object that was captured is taken at its word.
    apply(Activated(activation), X)
    assert apply.num_traces == 2


def test_functions_that_note_what_they_are_called_with() -> None:
    seen: list[Any] = []

    def activation(x: Any) -> Any:
        seen.append(jnp.shape(x))
        return x

    apply = nnx.jit(lambda model, x: model.activation(x))
    for _ in range(2):
        for n in (2, 3):
            apply(Activated(activation), jnp.ones(n))
    assert seen == [(2,), (3,)]


SCHEDULES = {
    "warm-up and cosine": lambda: optax.adamw(
        optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100)
    ),
    "join": lambda: optax.adam(
        optax.join_schedules([optax.linear_schedule(0, 1, 10), optax.constant_schedule(1.0)], [10])
    ),
    "piecewise": lambda: optax.sgd(optax.piecewise_constant_schedule(1e-3, {10: 0.1})),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
    "by label": lambda: optax.multi_transform(
        {"a": optax.adam(1e-3)}, lambda params: jax.tree.map(lambda _: "a", params)
    ),
}


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_optimizers_that_hold_lists_and_dicts_compile_once(make: Any) -> None:
    step = nnx.jit(train)
    for _ in range(3):
        model = Tower(1)
        optimizer = nnx.Optimizer(model, make(), wrt=nnx.Param)
        step(model, optimizer, jnp.ones((3, 2)))
    assert step.num_traces == 1


def test_a_retrace_names_what_an_optimizer_reads() -> None:
    step = nnx.jit(train)
    model = Tower(1)
    for peak in (1e-3, 1e-2):
        schedule = optax.warmup_cosine_decay_schedule(0.0, peak, 10, 100)
        step(model, nnx.Optimizer(model, optax.sgd(schedule), wrt=nnx.Param), jnp.ones((3, 2)))
    assert "with 0.001 ->" in str(step.retraces[0])
    assert str(step.retraces[0]).endswith("with 0.01")


@pytest.mark.parametrize(
    ("tags", "change"),
    [
        ([2.0], lambda tags: tags.append(1.0)),
        ({"k": 2.0}, lambda tags: tags.update(j=1.0)),
        ({2.0}, lambda tags: tags.add(1.0)),
        ([[2.0]], lambda tags: tags[0].append(1.0)),
        (([2.0],), lambda tags: tags[0].append(1.0)),
        (bytearray(b"a"), lambda tags: tags.extend(b"b")),
    ],
)
def test_containers_in_metadata_that_change_in_place_are_noticed(tags: Any, change: Any) -> None:
    def count(model: Any) -> Any:
        tags = model.w.tags
        while len(tags) == 1 and isinstance(tags, list | tuple) and not isinstance(tags[0], float):
            tags = tags[0]
        return model.w.value * len(tags)

    read = nnx.jit(count)
    model = nnx.Module()
    model.w = nnx.Param(jnp.ones(()), tags=tags)
    assert [float(read(model)) for _ in range(3)] == [1, 1, 1]
    change(tags)
    assert [float(read(model)) for _ in range(3)] == [2, 2, 2]
    assert read.num_traces == 2


@dataclasses.dataclass(unsafe_hash=True)
class Config:
    """Equal by content, which may change."""

    factor: float


class Noted(nnx.Module):
    """Its Variable has metadata that a program reads."""

    def __init__(self, config: Config) -> None:
        self.w = nnx.Param(jnp.ones(()), config=config)


def test_metadata_that_change_in_place_are_noticed() -> None:
    read = nnx.jit(lambda model: model.w.value * model.w.config.factor)
    config = Config(2.0)
    model = Noted(config)
    assert [float(read(model)) for _ in range(2)] == [2, 2]
    config.factor = 5.0
    assert [float(read(model)), float(read(Noted(Config(5.0))))] == [5, 5]
    assert float(read(Noted(Config(2.0)))) == 2


@pytest.mark.parametrize(
    "wrap", [lambda c: functools.partial(_by, c), lambda c: functools.partial(_by, config=c)]
)
def test_arguments_of_partials_that_change_in_place_are_noticed(wrap: Any) -> None:
    apply = nnx.jit(lambda model, x: model.activation(x=x))
    config = Config(2.0)
    assert float(apply(Activated(wrap(config)), X)[0]) == 2
    config.factor = 5.0
    assert float(apply(Activated(wrap(config)), X)[0]) == 5
    assert float(apply(Activated(wrap(Config(5.0))), X)[0]) == 5
    assert apply.num_traces == 2


def _by(config: Config, x: Any) -> Any:
    return x * config.factor


@pytest.mark.parametrize("wrap", [lambda c: (c,), lambda c: ((1, c),), lambda c: c])
def test_statics_that_change_inside_of_a_tuple_are_noticed(wrap: Any) -> None:
    def factor(config: Any) -> Any:
        while isinstance(config, tuple):
            config = config[-1]
        return config.factor

    scale = nnx.jit(lambda config, x: x * factor(config), static_argnums=0)
    config = Config(2.0)
    static = wrap(config)
    assert [float(scale(static, X)[0]) for _ in range(3)] == [2, 2, 2]
    config.factor = 5.0
    assert [float(scale(static, X)[0]) for _ in range(3)] == [5, 5, 5]
    assert float(scale(wrap(config), X)[0]) == 5


def test_equal_statics_that_are_not_identical_do_not_retrace() -> None:
    step = nnx.jit(lambda model, x: x * model.activation[0])
    for _ in range(3):
        assert float(step(Activated((2.5, "a" * 3, ("b", 1))), X)[0]) == 2.5
    assert step.num_traces == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: float("nan"),
        lambda: complex("nan+1j"),
        lambda: complex("1+nanj"),
        lambda: (1, float("nan")),
        lambda: functools.partial(pow, float("nan")),
        lambda: _lambda(float("nan")),
    ],
)
def test_nan_made_anew_is_the_same_static(make: Any) -> None:
    attribute = nnx.jit(lambda model, x: x)
    argument = nnx.jit(lambda x, static: x, static_argnums=1)
    metadata = nnx.jit(lambda variable, x: x)
    for _ in range(3):
        attribute(Activated(make()), X)
        argument(X, make())
        metadata(nnx.Param(X, tag=make()), X)
    assert [f.num_traces for f in (attribute, argument, metadata)] == [1, 1, 1]
    # Other numbers are others.
    argument(X, 0.0)
    argument(X, complex("nan"))
    argument(X, complex("nan+2j"))
    assert argument.num_traces == 4


def test_insertion_order_retraces_in_nodes_and_says_so() -> None:
    def build(names: str) -> nnx.Module:
        module = nnx.Module()
        for name in names:
            setattr(module, name, nnx.Param(jnp.ones(2)))
        module.table = dict.fromkeys(names, 1)
        return module

    step = nnx.jit(lambda m, d: m.a.value + m.b.value + d["y"])
    step(build("ab"), {"x": X, "y": X})
    step(build("ab"), {"y": X, "x": X})
    assert step.num_traces == 1
    model = build("ba")
    step(model, {"x": X, "y": X})
    assert step.num_traces == 2
    assert str(step.retraces[-1]).endswith("m: the order a, b, table -> the order b, a, table")
    # A hot call sees it as well.
    model.table["b"] = model.table.pop("b")
    step(model, {"x": X, "y": X})
    assert str(step.retraces[-1]).endswith("m.table: the order b, a -> the order a, b")
    before = step._counts["hot"]
    step(model, {"x": X, "y": X})
    assert step._counts["hot"] == before + 1
    model.b = model.__dict__.pop("b")
    step(model, {"x": X, "y": X})
    assert str(step.retraces[-1]).endswith("m: the order b, a, table -> the order a, table, b")


# -- explanations --------------------------------------------------------------------------------------


def difference(
    first: tuple[Any, ...], second: tuple[Any, ...], **settings: Any
) -> tuple[str, str, str]:
    step = nnx.jit(lambda model, x=0.0, n=0: jnp.zeros(()), **settings)
    step(*first)
    step(*second)
    (retrace,) = step.retraces
    return retrace.path, str(retrace.before), str(retrace.after)


def test_a_static_attribute_is_named() -> None:
    assert difference((Activated(0.1),), (Activated(0.2),)) == ("model.activation", "0.1", "0.2")


def test_a_shape_is_named() -> None:
    path, before, after = difference((Tower(1), jnp.ones((8, 4))), (Tower(1), jnp.ones((9, 4))))
    assert (path, before, after) == ("x", "float32[8,4]", "float32[9,4]")


def test_a_dtype_inside_a_model_is_named() -> None:
    other = Tower(1)
    other.blocks[0].bias.value = other.blocks[0].bias.value.astype(jnp.bfloat16)
    path, before, after = difference((Tower(1),), (other,))
    assert (path, before, after) == ("model.blocks[0].bias", "float32[2]", "bfloat16[2]")


def test_a_weak_type_is_named() -> None:
    path, before, after = difference((Tower(1), jnp.float32(1)), (Tower(1), 1.0))
    assert path == "x"
    assert (before, after) == ("float32[]", "weak float32[]")


def test_a_static_argument_is_named() -> None:
    path, before, after = difference((Tower(1), X, 1), (Tower(1), X, 2), static_argnums=2)
    assert (path, before, after) == ("n", "1", "2")


def test_an_added_attribute_is_named() -> None:
    other = Tower(1)
    other.extra = nnx.Param(jnp.ones(1))
    path, _, _ = difference((Tower(1),), (other,))
    assert path == "model.extra"


def test_explain_retraces_collects_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    step = nnx.jit(lambda x: x)
    with nnx.explain_retraces() as retraces:
        step(jnp.ones(2))
        step(jnp.ones(3))
    step(jnp.ones(4))
    assert [(r.path, r.before, r.after) for r in retraces] == [("x", "float32[2]", "float32[3]")]
    assert "x: float32[2] -> float32[3]" in capsys.readouterr().err
    assert len(step.retraces) == 2


def test_explain_retraces_is_a_switch_too(capsys: pytest.CaptureFixture[str]) -> None:
    step = nnx.jit(lambda x: x)
    nnx.explain_retraces(True)
    try:
        step(jnp.ones(2))
        step(jnp.ones(3))
    finally:
        nnx.explain_retraces(False)
    step(jnp.ones(4))
    assert capsys.readouterr().err.count("traced again") == 1


@pytest.mark.parametrize("inside", [False, True], ids=["above jit", "below jit"])
def test_max_traces_raises_with_the_explanation_and_leaves_objects_alone(inside: bool) -> None:
    def advance(model: Tower, x: Any) -> None:
        model.blocks[0].bias.value = model.blocks[0].bias.value + x.sum()

    limit = nnx.max_traces(1)
    step = nnx.jit(limit(advance)) if inside else limit(nnx.jit(advance))
    model = Tower(1)
    step(model, jnp.ones(2))
    with pytest.raises(nnx.TooManyTracesError, match=r"x: float32\[2\] -> float32\[3\]"):
        step(model, jnp.ones(3))
    assert float(model.blocks[0].bias.value[0]) == 2
    step(model, jnp.ones(2))
    assert float(model.blocks[0].bias.value[0]) == 4


def test_max_traces_needs_a_positive_limit() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        nnx.max_traces(0)


def test_structures_that_return_do_not_trace_again() -> None:
    step = nnx.jit(lambda x, n: x * n, static_argnums=1)
    for n in (1, 2, 1, 2, 3, 1):
        step(X, n)
    assert step.num_traces == 3


def test_the_same_structure_with_other_shapes_may_have_other_results() -> None:
    @nnx.jit
    def step(model: Tower, x: jax.Array) -> Any:
        if x.shape[0] > 2:
            model.large = nnx.Param(x.sum())
            return x, x
        return x

    model = Tower(1)
    assert step(model, jnp.ones(2)).shape == (2,)
    assert not hasattr(model, "large")
    assert len(step(model, jnp.ones(3))) == 2
    assert float(model.large.value) == 3
    assert step(Tower(1), jnp.ones(2)).shape == (2,)
    assert step.num_traces == 2


def test_a_function_taken_at_its_word_does_not_pass_on_what_it_reads_now() -> None:
    """The same object counts as unchanged; a new one is compared with what was traced."""
    scale = [2.0]

    def make() -> Any:
        return lambda x: x * scale[0]

    def model(activation: Any) -> Any:
        made = nnx.Dict(w=nnx.Param(jnp.ones(())))
        made.activation = activation
        return made

    step = nnx.jit(lambda model: model.activation(model.w.value))
    first = make()
    assert float(step(model(first))) == 2
    scale[0] = 3.0
    assert float(step(model(first))) == 2
    assert float(step(model(make()))) == 3
    assert float(step(model(make()))) == 3
    assert step.num_traces == 2

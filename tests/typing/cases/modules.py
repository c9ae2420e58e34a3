"""Constructors and attributes: of modules, layers, containers, random streams, optimizers, metrics."""

from dataclasses import dataclass
from typing import Any, reveal_type

import jax

import treadle as nnx


class MLP(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(width, 2, rngs=rngs)])
        self.named = nnx.Dict(first=nnx.Embed(2, width, rngs=rngs))
        self.head = nnx.Sequential(self.linear, nnx.relu)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.linear(x))


class Child(MLP):
    pass


class Plain(nnx.Module):
    pass


@dataclass
class Settings(nnx.Module):
    rate: float
    name: str = ""


rngs = nnx.Rngs(0, dropout=1)
model = MLP(3, rngs=rngs)

reveal_type(model)  # MLP
reveal_type(Child(3, rngs=rngs))  # Child
reveal_type(Plain())  # Plain
reveal_type(nnx.Module())  # Module
reveal_type(nnx.Object())  # Object
reveal_type(Settings(0.1))  # Settings
reveal_type(Settings(0.1).rate)  # float

MLP(3)  # error: reportCallIssue // call-arg
MLP("3", rngs=rngs)  # error: reportArgumentType // arg-type
Child(3, rngs=0)  # error: reportArgumentType // arg-type
Plain(3)  # error: reportCallIssue // call-arg
Settings(name="")  # error: reportCallIssue // call-arg

reveal_type(model.linear)  # Linear
reveal_type(model.linear.kernel)  # Param[Array]
reveal_type(model.linear.bias)  # Param[Array] | None
reveal_type(model.linear(rngs()))  # Array
reveal_type(model.norm)  # BatchNorm
reveal_type(model(rngs()))  # Array
model.lineer  # error: reportAttributeAccessIssue, reportUnknownMemberType // attr-defined
model("x")  # error: reportArgumentType // arg-type
model.linear = model.norm  # error: reportAttributeAccessIssue // assignment

nnx.Linear(2, 3)  # error: reportCallIssue // call-arg
nnx.Linear(2, 3, rngs=rngs, use_bais=True)  # error: reportCallIssue // call-arg
nnx.Lineer(2, 3, rngs=rngs)  # error: reportAttributeAccessIssue, reportUnknownMemberType // attr-defined

reveal_type(model.layers)  # List[Linear]
reveal_type(model.layers[0])  # Linear
reveal_type(model.layers[0:1])  # list[Linear]
reveal_type(model.layers.pop())  # Linear
reveal_type(model.named)  # Dict[Embed]
reveal_type(model.named["first"])  # Embed
reveal_type(model.named.first)  # Embed
reveal_type(model.head)  # Sequential
model.layers.append(model.norm)  # error: reportArgumentType // arg-type
for layer in model.layers:
    reveal_type(layer)  # Linear

reveal_type(rngs)  # Rngs
reveal_type(rngs.dropout)  # RngStream
reveal_type(rngs["dropout"])  # RngStream
reveal_type(rngs.dropout())  # Array
reveal_type(rngs.dropout.key)  # RngKey[Array]
reveal_type(rngs.dropout.count.value)  # Array
reveal_type(rngs.fork(split=3))  # Rngs
nnx.Rngs(0, params="seed")  # error: reportArgumentType // arg-type

reveal_type(nnx.Dropout(0.5, rngs=rngs))  # Dropout
reveal_type(nnx.MultiHeadAttention(2, 4, rngs=rngs))  # MultiHeadAttention


def train(tx: Any, values: jax.Array) -> None:
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    reveal_type(optimizer)  # Optimizer
    reveal_type(optimizer.step)  # OptState[Array]
    reveal_type(nnx.ModelAndOptimizer(model, tx))  # ModelAndOptimizer
    nnx.Optimizer(model)  # error: reportCallIssue // call-arg
    nnx.Optimizer(model, tx, wrt=0.1)  # error: reportArgumentType // arg-type
    average = nnx.metrics.Average("loss")
    reveal_type(average)  # Average
    reveal_type(average.total)  # MetricState[Array]
    reveal_type(average.compute())  # Array
    average.update(loss=values)
    nnx.metrics.Average(argname=1)  # error: reportArgumentType // arg-type
    reveal_type(nnx.MultiMetric(loss=average, accuracy=nnx.metrics.Accuracy()))  # MultiMetric


# What is inherited keeps its type.
model.train()
reveal_type(model.pop(nnx.Intermediate))  # State
for _, child in model.iter_modules():
    reveal_type(child)  # Module


@nnx.dataclass
class Marked(nnx.Pytree):
    size: float = nnx.data()
    kind: str = nnx.static(default="euler")
    parts: list[int] = nnx.data(default_factory=list, kw_only=True)


@nnx.dataclass(kw_only=True)
class Keyword(nnx.Pytree):
    size: float = nnx.data()


class Assigned(nnx.Pytree, pytree=False):
    def __init__(self, rate: float) -> None:
        self.rate = nnx.data(rate)
        self.kind = nnx.static("a")


reveal_type(Marked(1.0, parts=[1]))  # Marked
reveal_type(Marked(1.0).size)  # float
reveal_type(Keyword(size=1.0).size)  # float
reveal_type(Assigned(1.0).rate)  # float
reveal_type(Assigned(1.0).kind)  # str
reveal_type(nnx.is_data(1))  # bool
Marked()  # error: reportCallIssue // call-arg
Marked("1")  # error: reportArgumentType // arg-type
Keyword(1.0)  # error: reportCallIssue // call-arg
nnx.data(1, default=2)  # error: reportCallIssue // call-overload
nnx.static(defualt=2)  # error: reportCallIssue // call-overload

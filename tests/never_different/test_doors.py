"""What comes in through a door is checked before anything is touched (point 18)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import treadle as nnx
from tests.on_devices import run_script


class Net(nnx.Module):
    def __init__(self, width=2):
        self.w = nnx.Param(jnp.ones(width))
        self.inner = nnx.Dict(v=nnx.Param(jnp.zeros(width)))


def graph(node):
    return nnx.graphdef(node), [float(jnp.sum(x)) for x in jax.tree.leaves(nnx.state(node))]


def collected(objects, change=lambda objects: None):
    """The updates of some objects of a structure, collected at top level."""
    with nnx.UpdateContext() as ctx:
        merged = ctx.merge(*ctx.split(objects))
        change(merged)
        return ctx.collect()


# AddressSanitizer sees the read; without it the process may survive or not, so it is not ours.
SCRIPT = """
import jax.numpy as jnp, treadle as nnx
class Net(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones(2))
        self.inner = nnx.Dict(v=nnx.Param(jnp.zeros(2)))
with nnx.UpdateContext() as ctx:
    merged = ctx.merge(*ctx.split([nnx.Param(jnp.ones(2)), Net()]))
    merged[0].value = jnp.full(2, 5.0)
    merged[1].added = nnx.Param(jnp.ones(3))
    del merged[1].inner
    updates = ctx.collect()
net, v = Net(), nnx.Param(jnp.ones(2))
with nnx.UpdateContext() as ctx:
    ctx.split([net, v])
    try:
        ctx.update(updates)
    except (ValueError, nnx.errors.GraphError) as error:
        print("refused", type(error).__name__)
assert [k for k in vars(net) if not k.startswith("_")] == ["w", "inner"], list(vars(net))
assert type(net.w) is nnx.Param and type(net.inner) is nnx.Dict
assert float(net.w.value.sum()) == 2.0 and float(v.value.sum()) == 2.0
assert float(nnx.clone(net).w.value.sum()) == 2.0
print("whole")
"""


def test_updates_of_another_structure():
    done = run_script(SCRIPT)
    assert "refused" in done.stdout, done.stdout + done.stderr
    assert "whole" in done.stdout, done.stdout + done.stderr


OTHERS = {
    "fewer objects": lambda: [Net()],
    "more objects": lambda: [Net(), nnx.Param(jnp.ones(2)), Net()],
    "a Variable for a node": lambda: [nnx.Param(jnp.ones(2)), nnx.Param(jnp.ones(2))],
    "another class": lambda: [nnx.Dict(w=nnx.Param(jnp.ones(2))), nnx.Param(jnp.ones(2))],
}
DOORS = """
import jax.numpy as jnp, treadle as nnx
from tests.never_different.test_doors import Net, OTHERS, collected, graph
def change(objects):
    objects[0].added = nnx.Param(jnp.ones(3))
    objects[0].w.value = objects[0].w.value * 2
    objects[1].value = objects[1].value * 3
updates = collected([Net(), nnx.Param(jnp.ones(2))], change)
target = OTHERS[{name!r}]()
before = graph(target)
with nnx.UpdateContext() as ctx:
    ctx.split(target)
    try:
        ctx.update(updates)
    except (ValueError, nnx.errors.GraphError):
        print("refused")
assert graph(target) == before
print("whole")
"""


@pytest.mark.parametrize("name", OTHERS)
def test_updates_for_other_objects(name):
    done = run_script(DOORS.format(name=name))
    assert done.stdout.split() == ["refused", "whole"], done.stdout + done.stderr


def test_updates_of_an_equal_structure_are_taken():
    updates = collected([Net(), nnx.Param(jnp.ones(2))], lambda o: setattr(o[0], "k", 3))
    target = [Net(), nnx.Param(jnp.ones(2))]
    with nnx.UpdateContext() as ctx:
        ctx.split(target)
        ctx.update(updates)
    assert target[0].k == 3


def test_leaves_that_were_lost_are_missed():
    updates = collected(
        [Net(), nnx.Param(jnp.ones(2))], lambda o: setattr(o[1], "value", jnp.zeros(2))
    )
    short = type(updates)(updates.effects, ())
    target = [Net(), nnx.Param(jnp.ones(2))]
    before = graph(target)
    with nnx.UpdateContext() as ctx:
        ctx.split(target)
        with pytest.raises((ValueError, nnx.errors.GraphError)):
            ctx.update(short)
    assert graph(target) == before


def test_a_state_of_another_structure_is_refused_by_merge():
    graphdef, _ = nnx.split(Net())
    other = nnx.state(nnx.Dict(a=nnx.Param(1.0)))
    with pytest.raises((nnx.StateError, ValueError)):
        nnx.merge(graphdef, other)


def test_a_state_of_another_structure_is_refused_by_update():
    net = Net()
    before = graph(net)
    with pytest.raises((nnx.StateError, ValueError), match="unknown"):
        nnx.update(net, nnx.state(nnx.Dict(w=nnx.Param(jnp.full(2, 7.0)), unknown=nnx.Param(1.0))))
    assert graph(net) == before


def test_a_state_of_another_structure_is_refused_by_unflatten():
    flat = nnx.flatten(Net())
    with pytest.raises((TypeError, ValueError, nnx.errors.GraphError)):
        nnx.unflatten(flat[0], nnx.state(nnx.Dict(a=nnx.Param(1.0))))

"""The driver under all transforms: a rule says what happens to each leaf, everything else is here.

One call of a lifted function:

1. `Call` walks the arguments: one structure, a flat list of leaves, each object once. Nodes that the
   function brings along, such as the instance of a bound method, are among them (`_companions`).
2. `Rule.inputs` says what each leaf gets: an axis, a spec, whether it is differentiated.
3. `Rule.run` hands a `Body` to the JAX transform. Inside, the body rebuilds fresh objects over the
   tracers, runs the user's function, walks again, and returns the leaves that changed, in groups
   by what `Body.outputs` says that each gets.
4. `Rule.finish` scatters them into the caller's own objects and rebuilds the result, of which
   `Rule.result` makes what the lifted function returns.

The caller's objects are touched by step 4 only, so whatever raises before it changes nothing.
Whatever JAX raises about a leaf in steps 2 and 3 is said again with the leaf's path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from treadle import _core
from treadle.transforms._arguments import Function
from treadle.transforms._aside import Aside
from treadle.transforms._bounded import Bounded
from treadle.transforms._call import Call, Outline
from treadle.transforms._captured import Reported
from treadle.transforms._companions import apart, bring, bringing
from treadle.transforms._inside import Inside, Output
from treadle.transforms._messages import BIND, explain_call_error

S = TypeVar("S")

_MAX_BODIES = 64

Groups = tuple[tuple[Any, ...], ...]
Tail = tuple[Aside, Groups]
"""What leaves a body beside its head: the effects, and the output leaves in groups."""


class _Held(NamedTuple):
    """What a body hands out beside the leaves."""

    effects: _core.Effects
    members: list[list[int]]
    """For each group the numbers of its output leaves."""


class Body(Generic[S]):
    """What JAX transforms: values of the leaves in, ``(head, tail)`` out.

    The head is what the transform itself looks at, such as a loss; None if there is none.

    Args:
        outline: structure and function of the call. JAX may keep the body: it knows no more.
        candidates: every entry that an output may get; the groups of the tail, in their order.
        keep: whether a leaf that did not change is left out; or this for each leaf.
    """

    def __init__(
        self,
        outline: Outline,
        candidates: Sequence[S | None] = (None,),
        keep: bool | Sequence[bool] = True,
    ) -> None:
        self.outline = outline
        self.candidates = candidates
        self.keep = keep

    def __call__(self, leaves: Sequence[Any]) -> Any:
        """Run the user's function over the leaves of its call."""
        inside = Inside(self.outline, leaves)
        return self.leave(inside, *self.split(inside, self.run(inside)))

    def run(self, inside: Inside) -> Any:
        """Run the user's function on what is `inside`; names of axes come off and on around it."""
        return inside.run()

    def split(self, inside: Inside, result: Any) -> tuple[Any, Any]:
        """The head, and what counts as the function's result."""
        return None, result

    def leave(self, inside: Inside, head: Any, result: Any) -> Any:
        """What the body returns to JAX."""
        rows = inside.leave(result, self.keep)
        return head, tail_of(inside, self.candidates, self.outputs(inside, rows))

    def outputs(self, inside: Inside, rows: Sequence[Output]) -> Sequence[S | None]:
        """What each output gets: one of the candidates."""
        return (None,) * len(rows)


def tail_of(inside: Inside, candidates: Sequence[Any], entries: Sequence[Any]) -> Tail:
    """The output leaves, in groups by their entries."""
    members = [
        [i for i, entry in enumerate(entries) if entry == candidate] for candidate in candidates
    ]
    groups = tuple(tuple(inside.values[i] for i in group) for group in members)
    return Aside(_Held(inside.effects, members)), groups


def read_tail(tail: Tail) -> tuple[_core.Effects, list[Any]]:
    """Effects and output leaves, in their own order."""
    aside, groups = tail
    held: _Held = aside.value
    out: list[Any] = [None] * held.effects.num_out
    for group, values in zip(held.members, groups, strict=True):
        for number, value in zip(group, values, strict=True):
            out[number] = value
    return held.effects, out


class Rule(ABC):
    """What one transform of one function does to the leaves of a call. Stateless.

    A subclass overrides `run`, and what else differs from: each leaf goes in as it is, and comes
    out as it is.
    """

    name: str
    remedy: ClassVar[str] = BIND
    """What to do with an argument that is no array, for messages."""
    reuses: ClassVar[bool] = False
    """Whether a body serves all calls of one structure and equal inputs, so that JAX, which keeps
    programs by the function that they were made from, need not trace again."""

    def arrange(
        self, function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """The arguments of a call, where some that came by keyword may count as positional."""
        return args, kwargs

    def static(self, function: Function, count: int) -> Iterable[int]:
        """Positions, of `count`, of arguments that are compared instead of traced."""
        return ()

    def inputs(self, call: Call) -> Any:
        """What the leaves of the call get; hashable if the rule `reuses` bodies."""
        return None

    def seen(self, call: Call, inputs: Any) -> Iterable[int]:
        """The leaves that JAX is given."""
        return range(call.graphdef.num_leaves)

    def body(self, call: Call, inputs: Any) -> Any:
        """What `run` runs, of what is the same for all calls of the structure."""
        return Body(call.outline())

    @abstractmethod
    def run(self, call: Call, inputs: Any, body: Any) -> tuple[Any, Any]:
        """Have JAX transform and run the body: what it gives besides, and the tail."""

    def explain(self, call: Call, inputs: Any, body: Any, error: Exception) -> Exception | None:
        """What is wrong with the call, if it is what only this transform asks of arguments."""
        return None

    def finish(self, call: Call, body: Any, tail: Any) -> Any:
        """Scatter what came out into the caller's objects; return the function's result."""
        return call.finish(*read_tail(tail))

    def result(self, call: Call, inputs: Any, besides: Any, result: Any) -> Any:
        """What the lifted function returns."""
        return result


def apply(
    rule: Rule,
    function: Function,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    bodies: Bounded[Any, Any] | None = None,
    reported: Reported | None = None,
) -> Any:
    """Call `function` under a rule. Nodes that it brings along come with the arguments."""
    function, companions = bring(function)
    given, passed = apart(kwargs)
    if reported is not None and rule.reuses:
        reported(rule.name, function)
    args, given = rule.arrange(function, args, given)
    given = {**given, **companions, **passed}
    call = Call(rule.name, function, args, given, frozenset(rule.static(function, len(args))))
    inputs: Any = None
    body: Any = None
    try:
        inputs = rule.inputs(call)
        if bodies is None or not rule.reuses:
            body = rule.body(call, inputs)
        else:
            body = bodies.get((call.graphdef, inputs), lambda: rule.body(call, inputs))
        besides, tail = rule.run(call, inputs, body)
    except (TypeError, ValueError, RuntimeError) as error:
        better = explain_call_error(
            error,
            call.label,
            call.graphdef,
            call.leaves,
            seen=rule.seen(call, inputs),
            remedy=rule.remedy,
        ) or rule.explain(call, inputs, body, error)
        if better is None:
            raise
        raise better from error
    return rule.result(call, inputs, besides, rule.finish(call, body, tail))


def lift(function: Function, rule: Rule) -> Function:
    """The function that calls `function` under a rule, with its name and signature."""
    # JAX reuses the trace of a loop body or checkpointed function when it gets the same function
    # object again. A body must therefore depend on its key only, and never on one call's leaves.
    bodies: Bounded[Any, Any] = Bounded(_MAX_BODIES)
    reported = Reported()

    def lifted(*args: Any, **kwargs: Any) -> Any:
        return apply(rule, function, args, kwargs, bodies, reported)

    return bringing(lifted, function)


def as_arrays(tail: Tail) -> Tail:
    """Outputs that jax evaluated outside of a trace, as arrays with the dtypes that `jax.jit` gives them.

    There, `jax.checkpoint` and `checkify` return a value that does not depend on the arguments as
    the number or the constant that their program holds, not as an array. An output may be a pytree,
    as the value of a Variable may.
    """
    aside, groups = tail
    return aside, jax.tree_util.tree_map(_as_array, groups)


def _as_array(value: Any) -> Any:
    return value if isinstance(value, jax.Array) else jnp.asarray(value)

"""What the fuzzer checks of one input. Needs no fuzzer: the tests run the corpus through it.

The bytes say what graph to build, what a program does to it, and how its pickle is damaged. The
first of them says whether objects of another library are among what the graph is made of. The engine
must agree with the oracle wherever that has an answer, and otherwise raise an exception.
"""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import treadle as nnx
from tests.reference.kinds import TREADLE
from tests.reference.model import first_difference, walk
from treadle import _core

from .dispatch import check_dispatch
from .graphs import MIXED, OWN, Graph, Palette, build, build_argument
from .outcome import assert_same_leaves, assert_same_outcome, pickled
from .programs import run
from .source import Source


def check_walk(graph: Graph, twin: Graph) -> Any:
    """Leaves, references, paths and equality are the oracle's."""
    expected = walk(graph.root, TREADLE)
    flat = _core.flatten(graph.root)
    assert [id(x) for x in flat.leaves] == [id(x) for x in expected.leaves]
    assert [id(x) for x in flat.refs] == [id(x) for x in expected.refs]
    assert flat.graphdef.paths() == tuple(expected.leaf_paths)
    other = _core.flatten(twin.root).graphdef
    assert other == flat.graphdef
    assert hash(other) == hash(flat.graphdef)
    return flat


def check_order(graph: Graph, shuffled: Graph) -> None:
    """Filled in another order it is another structure, unless no order differs after all."""
    a, b = _core.flatten(graph.root), _core.flatten(shuffled.root)
    expected = first_difference(walk(graph.root, TREADLE).root, walk(shuffled.root, TREADLE).root)
    difference = a.graphdef.difference(b.graphdef)
    assert (a.graphdef == b.graphdef) == (expected is None) == (difference is None)
    # The oracle takes indices in names for what they are.
    assert expected is None or [*map(str, difference[0])] == [*map(str, expected)]
    # Twins share their arrays.
    assert all(x is y or x == y for x, y in zip(a.leaves, b.leaves, strict=True))
    assert a.graphdef.paths() == b.graphdef.paths()


def check_rebuild(graph: Graph) -> None:
    """A rebuilt graph is equal and has no object in common."""
    copied = nnx.merge(*nnx.split(graph.root))
    ours, theirs = walk(copied, TREADLE), walk(graph.root, TREADLE)
    assert first_difference(ours.root, theirs.root) is None
    assert_same_leaves(ours.leaves, theirs.leaves)
    assert not {id(ref) for ref in ours.refs} & {id(ref) for ref in theirs.refs}


def check_update(lifted: Graph, plain: Graph, program: bytes, palette: Palette) -> None:
    """A program's effects, taken from stand-ins and applied to the originals, are the program's."""
    expected = run(plain.root, Source(program), palette)
    flat = _core.flatten(lifted.root)
    inner_root, inner = _core.unflatten(flat.graphdef, flat.leaves)
    result = run(inner_root, Source(program), palette)
    effects, out = _core.trace_effects(inner, flat.graphdef, flat.leaves, result, True)
    seen = _core.apply_effects(effects, flat.refs, flat.leaves, out)
    assert_same_outcome(lifted, seen, plain, expected)


def check_pickle(graphdef: Any) -> None:
    """A pickled structure comes back equal."""
    data = pickled(graphdef)
    if data is None:
        return
    loaded = pickle.loads(data)
    assert loaded == graphdef
    assert hash(loaded) == hash(graphdef)
    assert loaded.paths() == graphdef.paths()


def damage(value: Any, source: Source) -> Any:
    """The same nested tuples and byte strings with one part changed."""
    if isinstance(value, tuple) and value:
        at = source.below(len(value))
        match source.below(8):
            case 6:
                return value[:at] + value[at + 1 :]
            case 7:
                return (*value[:at], value[at], *value[at:])
        return (*value[:at], damage(value[at], source), *value[at + 1 :])
    if isinstance(value, bytes) and value:
        at = (source.byte() * 256 + source.byte()) % len(value)
        return value[:at] + bytes([source.byte()]) + value[at + 1 :]
    if isinstance(value, int):
        return source.pick((0, -1, 1, value + 1, value - 1, 2**31, 2**32 - 1, 2**32, 2**64, True))
    return source.pick((None, (), b"", "x", object, 1.5, {}))


def check_damaged_pickle(graphdef: Any, source: Source) -> None:
    """Damaged tables are refused, or describe some sound graph."""
    constructor, arguments, *_ = graphdef.__reduce__()
    with contextlib.suppress(Exception):  # whichever part of it notices
        wrong = constructor(*damage(arguments, source))
        wrong.paths()
        wrong.ref_paths()
        repr(wrong)
        root, _ = _core.unflatten(wrong, [0.0] * wrong.num_leaves)
        _core.flatten(root)
        wrong.difference(graphdef)


def check(data: bytes) -> None:
    """All checks of one input."""
    if len(data) < 4:
        return
    cut = len(data) * (data[0] % 4 + 1) // 6
    palette = MIXED if data[0] >= 128 else OWN
    shape, program = data[1 : 1 + cut], data[1 + cut :]

    def fresh() -> Graph:
        return build(Source(shape), palette=palette)

    graph = fresh()
    flat = check_walk(graph, fresh())
    check_order(graph, build(Source(shape), shuffle=len(data), palette=palette))
    check_rebuild(graph)
    check_pickle(flat.graphdef)
    check_damaged_pickle(flat.graphdef, Source(program))
    check_update(fresh(), fresh(), program, palette)
    lifted, plain = (build_argument(Source(shape), palette) for _ in range(2))
    check_dispatch(lifted, plain, program, palette)

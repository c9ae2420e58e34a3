"""Functions made anew: programs that rebind and change what they read, against calls without a transform."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp

import treadle as nnx


@dataclasses.dataclass(frozen=True)
class Fixed:
    value: Any


@dataclasses.dataclass(unsafe_hash=True)
class Loose:
    value: int


ARRAYS = [jnp.full((), float(i)) for i in range(3)]
NUMBERS = st.sampled_from([-2, -1, 0, 1, True, 0.0, -0.0, 1.0, 2.5, 2**61 - 1, 1j])
ATOMS = st.one_of(
    NUMBERS,
    st.none(),
    st.sampled_from(["", "a", b"a", jnp.float32, len, *ARRAYS]),
    st.builds(Fixed, st.integers(-2, 2)),
    # Objects that change in place are known by their hash, and -1 and -2 have the same.
    st.builds(Loose, st.integers(0, 4)),
)
CONTENTS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(["a", "b", 1]), inner, max_size=3),
        st.lists(inner, max_size=2).map(lambda items: functools.partial(dict, items=items)),
    ),
    max_leaves=6,
)


def digest(content: Any) -> str:
    """All that a program can see of the content, as text."""
    if isinstance(content, jax.Array):
        return f"array {float(content)}"
    if isinstance(content, functools.partial):
        return f"partial {digest(content.args)} {digest(content.keywords)}"
    if isinstance(content, Fixed | Loose):
        return f"{type(content).__name__} {content.value!r}"
    if isinstance(content, dict):
        return f"dict {[(key, digest(value)) for key, value in content.items()]}"
    if isinstance(content, list | tuple):
        return f"{type(content).__name__} {[digest(item) for item in content]}"
    return f"{type(content).__name__} {content!r}"


def change(content: Any, value: Any) -> bool:
    """Change something in place, if it can be."""
    if isinstance(content, Loose):
        content.value += 1
        return True
    if isinstance(content, functools.partial):
        return change(content.keywords["items"], value)
    if isinstance(content, list):
        content.append(value)
        return True
    if isinstance(content, dict):
        content["a"] = value
        return True
    return isinstance(content, tuple) and any(change(item, value) for item in content)


GLOBAL: Any = None


def in_cell(content: Any) -> Callable[[], str]:
    return lambda: digest(content)


def in_default(content: Any) -> Callable[[], str]:
    def function(content: Any = content) -> str:
        return digest(content)

    return function


def in_keyword_default(content: Any) -> Callable[[], str]:
    def function(*, content: Any = content) -> str:
        return digest(content)

    return function


def in_partial(content: Any) -> Callable[[], str]:
    return functools.partial(digest, content)


def in_attribute(content: Any) -> Callable[[], str]:
    def function() -> str:
        return digest(function.content)  # type: ignore[attr-defined]

    function.content = content  # type: ignore[attr-defined]
    return function


def in_inner_function(content: Any) -> Callable[[], str]:
    inner = in_cell(content)
    return lambda: inner() + inner()


def in_function_in_list(content: Any) -> Callable[[], str]:
    inner = [in_cell(content)]
    return lambda: inner[0]()


def in_builtin_method(content: Any) -> Callable[[], str]:
    get = [content].__getitem__
    return lambda: digest(get(0))


def in_global(content: Any) -> Callable[[], str]:
    globals()["GLOBAL"] = content
    return lambda: digest(GLOBAL)


def in_one_variable() -> Callable[[Any], Callable[[], str]]:
    current: Any = None

    def make(content: Any) -> Callable[[], str]:
        nonlocal current
        current = content
        return lambda: digest(current)

    return make


MAKERS = [
    in_cell,
    in_default,
    in_keyword_default,
    in_partial,
    in_attribute,
    in_inner_function,
    in_function_in_list,
    in_builtin_method,
    in_global,
    in_one_variable(),
]
STEPS = st.lists(
    st.tuples(st.sampled_from(["new", "again", "change"]), CONTENTS, NUMBERS),
    min_size=2,
    max_size=6,
)


# Each step may compile.
@hypothesis.settings(max_examples=hypothesis.settings().max_examples // 4)
@hypothesis.given(make=st.sampled_from(MAKERS), steps=STEPS)
def test_a_new_function_is_traced_once_for_what_it_reads(make: Any, steps: Any) -> None:
    traced: list[str] = []

    def run(function: Callable[[], str], x: Any) -> Any:
        traced.append(function())
        return x + (len(traced) - 1)

    run = nnx.jit(run, static_argnums=0)
    contents: list[Any] = []
    for what, content, number in steps:
        if what == "change" and contents and change(contents[-1], number):
            content = contents[-1]
        elif what == "again" and contents:
            content = contents[0]
        contents.append(content)
        function = make(content)
        # The program that ran is of a trace that saw the same.
        assert traced[int(run(function, 0.0))] == function()
    # An object that has changed is not what was compiled for, nor equal to what it was.
    if "Loose" not in str(traced):
        assert len(set(traced)) == len(traced)

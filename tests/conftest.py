"""Ways to run the whole suite that look for what no single test looks for.

``--checking-leaks`` runs every test under `jax.checking_leaks`: no tracer may outlive its trace.
``--growth`` runs every test up to five times: no object of the core and no array may be left over by
each further run. It needs a debug build, whose core counts its objects (``make sanitize
SANITIZE_ARGS=--growth``).
"""

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

RUNS = 4

# Half of the suite's time is XLA compiling small programs, most of which other tests, processes and runs compile too.
# Before anything imports jax, and for the scripts that tests run as well.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).resolve().parents[1] / "build" / "compiled"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("treadle")
    group.addoption(
        "--checking-leaks", action="store_true", help="run each test under jax.checking_leaks()"
    )
    group.addoption(
        "--growth", action="store_true", help="run each test again and look for what is left over"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    checker: Any = contextlib.nullcontext()
    if item.config.getoption("--checking-leaks") and not item.get_closest_marker("keeps_tracers"):
        import jax

        checker = jax.checking_leaks()
    with checker:
        result = yield
        if item.config.getoption("--growth"):
            assert_nothing_grows(item)
    return result


def assert_nothing_grows(item: pytest.Item) -> None:
    """What a test makes is gone when it has run, caches that fill up once aside."""
    try:
        item.runtest()
    except Exception:
        # It asks for something that happens once in a process: no growth to be seen.
        item.add_report_section("call", "growth", "this test cannot be run again")
        return
    marker = item.get_closest_marker("others_keep")
    kept = marker.args if marker else ()
    before = counts()
    for run in range(RUNS):
        item.runtest()
        # JAX's own caches keep a bounded number of what compiled functions returned.
        after = counts(forget=run > 0)
        grown = {
            name: n - before[name]
            for name, n in after.items()
            if n > before[name] and name not in kept
        }
        if not grown:
            return
        before = after
    pytest.fail(f"each run of this test leaves objects behind: {grown}", pytrace=False)


def counts(*, forget: bool = False) -> dict[str, int]:
    """The objects of the core, and JAX's arrays; after JAX's caches are cleared, if they should."""
    import jax

    from treadle import _core

    if not hasattr(_core, "_live_counts"):
        pytest.exit("--growth needs a debug build: make sanitize SANITIZE_ARGS=--growth")
    if forget:
        jax.clear_caches()
    gc.collect()
    return {**_core._live_counts(), "array": len(jax.live_arrays())}

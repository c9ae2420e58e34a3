"""Says in one sentence why treadle cannot be imported, where it cannot. Imported before everything else.

Checked are the jax version, the parts of jax's internals that the core reads, and the extension itself.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from treadle._version import __version__

MIN_JAX = (0, 8, 0)
"""The oldest jax the suite is run on; pyproject.toml asks for the same."""


def _version_text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _first_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `0.10.2.dev3` gives `(0, 10, 2)`."""
    numbers = []
    for part in version.split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def jax_problem(jax: Any, jax_core: Any) -> str | None:
    """Why this jax cannot be used, or None.

    Args:
        jax: the `jax` module.
        jax_core: its `jax._src.core` module.
    """
    version = jax.__version__
    if _first_numbers(version) < MIN_JAX:
        return (
            f"treadle {__version__} needs jax {_version_text(MIN_JAX)} or later, and jax {version} is installed: "
            "run `pip install --upgrade jax`"
        )
    registry = getattr(jax.tree_util, "default_registry", None)
    known = {
        "current trace": any(hasattr(jax_core, n) for n in ("trace_state_strong_ref", "trace_ctx")),
        "pytree registry": hasattr(registry, "flatten_one_level_with_keys"),
    }
    missing = [name for name, found in known.items() if not found]
    if missing:
        return (
            f"treadle {__version__} does not know jax {version} yet (it finds no {' and no '.join(missing)} there): "
            "upgrade treadle, or install an older jax"
        )
    return None


def extension_problem(package: Path) -> str | None:
    """Why the extension cannot be used, or None.

    Args:
        package: the directory of the `treadle` package.
    """
    if importlib.util.find_spec("treadle._core") is not None:
        return None
    tag = f"CPython {sys.version_info.major}.{sys.version_info.minor}"
    if (package.parent.parent / "CMakeLists.txt").is_file():
        return (
            f"treadle's source tree has no extension built for {tag}: run `pip install -e .` in "
            f"{package.parent.parent}, or `make build` there and use its .venv"
        )
    return (
        f"treadle {__version__} was installed without an extension for {tag}: "
        "run `pip install --force-reinstall treadle` with the Python that imports it"
    )


def check() -> None:
    """Raise `ImportError` with one sentence, if treadle cannot run here."""
    try:
        import jax
    except ModuleNotFoundError as error:
        if error.name not in ("jax", "jaxlib"):
            raise
        raise ImportError(
            f"treadle {__version__} needs jax, which is not installed: run `pip install jax`"
        ) from None
    import jax._src.core as jax_core

    problem = jax_problem(jax, jax_core) or extension_problem(Path(__file__).parent)
    if problem is not None:
        raise ImportError(problem)


check()

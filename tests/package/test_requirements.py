"""Where treadle cannot be imported, it says why in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax._src.core as jax_core
import pytest

from treadle import _requirements


def fake_jax(version: str, **tree_util: object) -> SimpleNamespace:
    return SimpleNamespace(__version__=version, tree_util=SimpleNamespace(**tree_util))


def import_treadle_with(prelude: str) -> str:
    """The last line of what `import treadle` prints after `prelude`, in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-c", f"{prelude}\nimport treadle"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode != 0
    return process.stderr.strip().splitlines()[-1]


def test_the_installed_jax_is_accepted() -> None:
    assert _requirements.jax_problem(jax, jax_core) is None


@pytest.mark.parametrize("version", ["0.4.38", "0.7.2", "0.7.99.dev1"])
def test_an_old_jax_is_refused_with_the_version_that_is_needed(version: str) -> None:
    problem = _requirements.jax_problem(fake_jax(version), jax_core)
    assert problem is not None
    assert f"needs jax 0.8.0 or later, and jax {version} is installed" in problem
    assert "pip install --upgrade jax" in problem


@pytest.mark.parametrize("version", ["0.8.0", "0.8.1rc1", "0.12.0.1", "1.0"])
def test_a_newer_jax_is_accepted(version: str) -> None:
    fake = fake_jax(version, default_registry=jax.tree_util.default_registry)
    assert _requirements.jax_problem(fake, jax_core) is None


def test_a_jax_without_the_internals_names_what_is_missing() -> None:
    problem = _requirements.jax_problem(fake_jax("9.0"), SimpleNamespace())
    assert problem is not None
    assert "does not know jax 9.0 yet" in problem
    assert "no current trace and no pytree registry" in problem


def test_importing_with_an_old_jax_is_one_sentence_and_not_an_attribute_error() -> None:
    said = import_treadle_with("import jax; jax.__version__ = '0.4.30'")
    assert said.startswith("ImportError: treadle ")
    assert "jax 0.4.30 is installed" in said


def test_importing_without_jax_is_one_sentence() -> None:
    said = import_treadle_with("import sys; sys.modules['jax'] = None")
    assert said.startswith("ImportError: treadle ")
    assert "pip install jax" in said


def test_a_source_tree_without_its_extension_says_how_to_build_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    package = tmp_path / "python" / "treadle"
    installed = _requirements.extension_problem(package)
    assert installed is not None
    assert "pip install --force-reinstall treadle" in installed

    (tmp_path / "CMakeLists.txt").touch()
    source_tree = _requirements.extension_problem(package)
    assert source_tree is not None
    assert "pip install -e ." in source_tree
    assert str(tmp_path) in source_tree

"""`python -m treadle` tells about the installation and checks that it works."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import jax
import pytest

import treadle
from treadle import __main__ as main_module
from treadle import _core


def test_it_names_versions_build_and_devices_and_checks_itself() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "treadle"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    facts = dict(line.split(maxsplit=1) for line in process.stdout.splitlines() if line)
    assert facts["treadle"].startswith(treadle.__version__)
    assert "build" in facts["extension"]
    assert facts["jax"] == jax.__version__
    assert "cpu" in facts["devices"]
    assert "self-check passed" in process.stdout


def test_a_wrong_result_is_reported_with_a_failing_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main_module, "_step", lambda model, x: jax.numpy.asarray(0.0))
    assert main_module.main() == 1
    assert "self-check failed: RuntimeError: self-check, step 1: wrong" in capsys.readouterr().out


def test_the_extension_is_of_the_same_version() -> None:
    assert treadle.__version__ == _core.__version__


def test_the_metadata_is_of_the_same_version() -> None:
    try:
        installed = importlib.metadata.version("treadle")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(
            "treadle is used from its source tree and not installed, so there is no metadata"
        )
    assert treadle.__version__ == installed

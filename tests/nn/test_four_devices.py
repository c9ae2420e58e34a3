"""Runs `on_four_devices.py` where JAX sees 4 virtual devices, which it must know at its start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_on_four_virtual_devices():
    suite = Path(__file__).with_name("on_four_devices.py")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(suite)],
        cwd=suite.parents[2],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

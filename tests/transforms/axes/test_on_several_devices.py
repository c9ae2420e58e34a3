"""Runs `on_eight_devices.py` of this folder."""

from __future__ import annotations

from pathlib import Path

from tests.on_devices import run_on_eight_devices


def test_axes_on_eight_devices():
    run_on_eight_devices(Path(__file__).with_name("on_eight_devices.py"))

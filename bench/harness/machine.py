"""What the numbers were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = ("treadle", "jax", "jaxlib", "flax", "equinox", "optax", "numpy")


def describe() -> dict[str, Any]:
    """Versions, processor, devices and how busy the machine is."""
    import jax

    import treadle
    from treadle import _core

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions["treadle"] = treadle.__version__
    return {
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "build": _core.build_info(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "devices": [device.device_kind for device in jax.devices()],
        "platform": jax.default_backend(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _commit() -> str | None:
    try:
        here = Path(__file__).resolve().parent
        command = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(
            command, cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None

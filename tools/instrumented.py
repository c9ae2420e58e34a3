"""Builds of treadle that watch themselves, each in an environment of its own below build/.

Such an environment borrows all other packages from the one that runs the script: nothing is
downloaded, and the build that is developed on stays as it is.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(name: str, defines: Mapping[str, str], compiler: str | None = None) -> str:
    """Install a build with these CMake definitions; returns the Python to run it with."""
    env = ROOT / "build" / name / "env"
    python = str(env / "bin/python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    # A plain path, unlike a site directory, leaves out the borrowed environment's editable treadle.
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = [f"build-dir=build/{name}/cmake", "cmake.define.TREADLE_WERROR=ON"]
    options += [f"cmake.define.{key}={value}" for key, value in defines.items()]
    subprocess.run(
        [
            *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-build-isolation", "--force-reinstall", "--prefix", str(env)),
            *(part for option in options for part in ("-C", option)),
            str(ROOT),
        ],
        check=True,
        env=os.environ
        | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        | ({"CXX": compiler} if compiler else {}),
    )
    return python


def library(name: str) -> str:
    """Path of one of the compiler's runtime libraries."""
    compiler = os.environ.get("CXX", "c++")
    path = subprocess.run(
        [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"{compiler} has no {name}: install its sanitizer libraries")
    return os.path.realpath(path)

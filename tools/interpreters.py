"""Find CPython interpreters of given versions: on PATH, or as pyenv or uv keep them."""

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def find_interpreter(version: str) -> str:
    """Path of a CPython `X.Y` (a third number is ignored); exits with a hint if there is none."""
    wanted = ".".join(version.split(".")[:2])
    for candidate in _candidates(wanted):
        if _version_of(candidate) == wanted:
            return candidate
    sys.exit(
        f"CPython {wanted} is needed and was not found: put python{wanted} on PATH, or install it with pyenv or uv"
    )


def _candidates(wanted: str) -> Iterator[str]:
    if platform.python_version().startswith(f"{wanted}."):
        # Not the environment this runs in, but the interpreter that it was made from.
        yield str(Path(sys.base_prefix, "bin", f"python{wanted}"))
    on_path = shutil.which(f"python{wanted}")
    if on_path:
        yield on_path
    root = _output("pyenv", "root")
    if root:
        yield from map(
            str, sorted(Path(root, "versions").glob(f"{wanted}.*/bin/python"), reverse=True)
        )
    kept_by_uv = _output("uv", "python", "find", "--system", wanted)
    if kept_by_uv:
        yield kept_by_uv


def _version_of(python: str) -> str:
    return _output(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""

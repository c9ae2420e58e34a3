"""Run commands, showing them; those that download are tried again."""

import subprocess
import time
from pathlib import Path

PAUSES = (5, 30)
"""Seconds to wait before a download is tried again."""


def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command to its end; raises `subprocess.CalledProcessError` if it fails."""
    print("+", *command, flush=True)
    subprocess.run(command, cwd=cwd, env=env, check=True)


def run_retrying(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command that downloads: a connection that breaks off says nothing about the package."""
    for pause in PAUSES:
        try:
            return run(*command, cwd=cwd, env=env)
        except subprocess.CalledProcessError:
            print(f"failed; again in {pause} s", flush=True)
            time.sleep(pause)
    return run(*command, cwd=cwd, env=env)


def output(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What a command prints; raises `subprocess.CalledProcessError` if it fails."""
    done = subprocess.run(command, cwd=cwd, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()

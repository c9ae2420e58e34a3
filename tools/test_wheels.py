"""Install the wheels of dist/ in fresh environments and run the whole suite on what was installed.

Run by `make test-wheels`. No environment has a compiler on its PATH, and the suite runs from a copy that
holds tests and documentation but no source tree, so that `import treadle` can only find the installed package.
One more environment builds from the sdist, with a compiler, and runs part of the suite.
"""

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from commands import output, run, run_retrying
from interpreters import find_interpreter
from project import requirements, test_sources

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
SECTIONS = ("runtime", "test", "examples")
"""What is installed beside treadle, so that no test is skipped for want of a library."""
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "cmake", "ninja", "make", "zig")


@dataclass(frozen=True)
class Setup:
    """An environment: Python version, jax requirement, whether to build from the sdist, what to run."""

    python: str
    jax: str
    from_sdist: bool = False
    tests: tuple[str, ...] = ("tests", "--pyargs", "treadle")

    def __str__(self) -> str:
        source = "sdist" if self.from_sdist else "wheel"
        return f"Python {self.python}, {self.jax}, {source}"


SETUPS = (
    Setup("3.11", "jax==0.10.*"),
    Setup("3.12", "jax"),
    Setup("3.13", "jax"),
    Setup("3.11", "jax==0.8.0"),
    Setup("3.12", "jax==0.8.0"),
    # Only the build differs from the first, so what could show a bad build is enough here.
    Setup("3.11", "jax==0.10.*", from_sdist=True, tests=("tests/package", "tests/graph")),
)
HERE = Setup(".".join(platform.python_version_tuple()[:2]), "jax")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--here", action="store_true", help="only this Python with the newest jax")
    parser.add_argument("--jobs", default="2", help="pytest processes")
    parser.add_argument("--only", default="", help="only setups with this text in their name")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()
    setups = [s for s in ([HERE] if options.here else SETUPS) if options.only in str(s)]
    if not setups:
        sys.exit(f"no setup has {options.only!r} in its name: {'; '.join(map(str, SETUPS))}")

    results = {}
    for setup in setups:
        print(f"== {setup}", flush=True)
        with tempfile.TemporaryDirectory(prefix="treadle-test-") as scratch:
            try:
                results[setup] = test(setup, Path(scratch), options.jobs, options.pytest)
            except subprocess.CalledProcessError as error:
                results[setup] = False, f"`{shlex.join(error.cmd)}` failed"
    print("== Summary")
    for setup, (passed, closing) in results.items():
        print(f"{'passed' if passed else 'FAILED'}  {setup}: {closing}")
    sys.exit(0 if all(passed for passed, _ in results.values()) else 1)


def test(setup: Setup, scratch: Path, jobs: str, pytest_args: list[str]) -> tuple[bool, str]:
    """Run everything in one fresh environment: (passed, pytest's closing line)."""
    env = bare_environment(scratch, compiler=setup.from_sdist)
    python = str(scratch / "env/bin/python")
    run(find_interpreter(setup.python), "-m", "venv", str(scratch / "env"), cwd=scratch, env=env)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if setup.from_sdist:
        (package,) = DIST.glob("treadle-*.tar.gz")
        pick = [str(package)]
    else:
        pick = ["--no-index", "--find-links", str(DIST), "--no-deps", "treadle"]
    needed = [requirement for section in SECTIONS for requirement in requirements(section)]
    run_retrying(*install, setup.jax, *dict.fromkeys(needed), cwd=scratch, env=env)
    run_retrying(*install, *pick, cwd=scratch, env=env)
    run(python, "-m", "pip", "check", cwd=scratch, env=env)
    env["PATH"] = bare_path(scratch)

    for name in test_sources():
        source, target = ROOT / name, scratch / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, target)
    run(python, "-m", "treadle", cwd=scratch, env=env)
    installed = output(
        python, "-c", "import treadle; print(treadle.__file__)", cwd=scratch, env=env
    )
    if not Path(installed).is_relative_to(scratch / "env"):
        sys.exit(f"not the installed package: {installed}")

    command = [python, "-m", "pytest", "-q", "-n", jobs, "-p", "no:cacheprovider"]
    command += ["--doctest-modules", *(pytest_args or setup.tests)]
    process = subprocess.Popen(command, cwd=scratch, env=env, stdout=subprocess.PIPE, text=True)
    closing = ""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if re.search(r"\d+ (passed|failed|error)", line):
            closing = line.strip()
    return process.wait() == 0, closing or "pytest said nothing"


def bare_environment(scratch: Path, compiler: bool) -> dict[str, str]:
    """No PYTHONPATH, no active environment, and no compiler unless asked for."""
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CC", "CXX")
    }
    return env | {
        "PATH": os.environ["PATH"] if compiler else bare_path(scratch),
        "JAX_PLATFORMS": "cpu",
        "PYTHONDONTWRITEBYTECODE": "1",
        # The suite keeps compiled programs, here too for the next environment with the same jaxlib.
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / "build" / "compiled"),
    }


def bare_path(scratch: Path) -> str:
    """A PATH of one directory, holding the usual tools but nothing that compiles."""
    tools = scratch / "path"
    if not tools.exists():
        tools.mkdir()
        for directory in ("/bin", "/usr/bin"):
            for tool in Path(directory).iterdir():
                link = tools / tool.name
                if not link.exists() and not is_compiler(tool.name):
                    link.symlink_to(tool)
    for name in COMPILERS:
        if shutil.which(name, path=str(tools)):
            sys.exit(f"{name} is still on the PATH")
    return str(tools)


def is_compiler(name: str) -> bool:
    """True for `g++`, `x86_64-linux-gnu-gcc-12`, `c99` and their like."""
    return re.search(
        r"(^|-)(cc|c\+\+|cpp|gcc|g\+\+|clang|clang\+\+|c89|c99|ld|as)(-[\d.]+)?$", name
    ) is not None or (name in COMPILERS)


if __name__ == "__main__":
    main()

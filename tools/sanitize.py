"""Run the suite on a build with AddressSanitizer and UndefinedBehaviorSanitizer. Run by `make sanitize`.

The interpreter is not instrumented, so the sanitizer's runtime is preloaded. CPython's own allocator is
replaced by malloc, or the sanitizer would not see what happens inside its arenas. The build lies in an
environment of its own, which borrows all other packages from the one that runs this script.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNTIMES = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sanitizers", default="address,undefined", help="as -fsanitize takes them"
    )
    parser.add_argument("--jobs", default="2", help="pytest processes")
    parser.add_argument("--short", action="store_true", help="leave out the tests marked slow")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()

    python = build(options.sanitizers)
    command = [python, "-m", "pytest", "-q", "-n", options.jobs, "-p", "no:cacheprovider"]
    command += ["-m", "not slow"] if options.short else []
    command += options.pytest or ["tests"]
    sys.exit(
        subprocess.run(command, cwd=ROOT, env=runtime(options.sanitizers), check=False).returncode
    )


def build(sanitizers: str) -> str:
    """Install an instrumented build with assertions; returns the Python to run it with."""
    name = f"sanitize-{sanitizers.replace(',', '-')}"
    env = ROOT / "build" / name / "env"
    python = str(env / "bin/python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    # A plain path, unlike a site directory, leaves out the borrowed environment's editable weft.
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [
            *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-build-isolation", "--force-reinstall", "--prefix", str(env)),
            *("-C", f"build-dir=build/{name}/cmake", "-C", "cmake.define.WEFT_WERROR=ON"),
            *("-C", "cmake.define.WEFT_DEBUG=ON", "-C", f"cmake.define.WEFT_SANITIZE={sanitizers}"),
            str(ROOT),
        ],
        check=True,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    return python


def runtime(sanitizers: str) -> dict[str, str]:
    """The environment that an instrumented extension needs in a plain interpreter."""
    libraries = [library(RUNTIMES[name]) for name in sanitizers.split(",")]
    # Exceptions are thrown through jaxlib, which links libstdc++ itself: it has to be there when the
    # runtime looks for the functions that it intercepts.
    libraries.append(library("libstdc++.so.6"))
    return os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONMALLOC": "malloc",
        "JAX_PLATFORMS": "cpu",
        # CPython and jaxlib keep memory until the process ends: leaks are counted by the suite's own tests.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def library(name: str) -> str:
    """Path of one of the compiler's runtime libraries."""
    compiler = os.environ.get("CXX", "c++")
    path = subprocess.run(
        [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"{compiler} has no {name}: install its sanitizer libraries")
    return os.path.realpath(path)


if __name__ == "__main__":
    main()

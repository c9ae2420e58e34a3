"""Fuzz a build whose C++ guides the fuzzer, under AddressSanitizer. Run by `make fuzz`.

Needs Clang for the build (CLANG names another than ``clang++``) and atheris in the environment that
runs this script. All arguments go to `fuzz.graphs`.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from instrumented import ROOT, build, library


def main() -> None:
    compiler = os.environ.get("CLANG", "clang++")
    python = build("fuzz", {"TREADLE_SANITIZE": "address,fuzzer-no-link"}, compiler)
    # atheris brings libFuzzer and AddressSanitizer in one library, to be there before everything else.
    runtime = Path(sysconfig.get_path("purelib")) / "asan_with_fuzzer.so"
    if not runtime.exists():
        sys.exit("the fuzzer needs atheris: pip install atheris")
    done = subprocess.run(
        [python, "-m", "fuzz.graphs", *sys.argv[1:]],
        cwd=ROOT,
        env=os.environ
        | {
            "LD_PRELOAD": f"{runtime} {library('libstdc++.so.6')}",
            "PYTHONMALLOC": "malloc",
            "JAX_PLATFORMS": "cpu",
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        },
        check=False,
    )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()

"""Build the wheels and the sdist into dist/, repaired for manylinux and checked. Run by `make wheels`.

Each wheel is built from the sdist, twice and in different directories, and both builds must give the same
bytes. Zig's compiler links against the glibc that jaxlib's own wheels ask for, on any Linux host, and
cross-compiles for aarch64.
"""

import argparse
import hashlib
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from commands import output, run, run_retrying
from elftools.elf.elffile import ELFFile
from interpreters import find_interpreter
from project import requirements

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
GLIBC = "2.27"
"""What jaxlib's wheels are tagged with (manylinux_2_27)."""
MAX_BYTES = 1_000_000
PYTHONS = ("3.11", "3.12")
"""The 3.12 wheel uses the stable ABI and serves later versions too."""
ARCHES = ("x86_64", "aarch64")
SOURCE_DATE_EPOCH = "1735689600"
AUDITWHEEL = """
import platform, sys
from auditwheel.main import main
machine = sys.argv.pop(1)
platform.machine = lambda: machine
sys.exit(main())
"""
"""auditwheel audits wheels of every processor, but offers on its command line only this machine's tags."""
SHIPPED = ("treadle/__init__.py", "treadle/_core.pyi", "treadle/py.typed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", nargs="+", default=PYTHONS, help="versions to build with")
    parser.add_argument("--arch", nargs="+", default=ARCHES, choices=ARCHES)
    parser.add_argument(
        "--here", action="store_true", help="one wheel, for this Python and machine"
    )
    parser.add_argument("--once", action="store_true", help="do not build twice to compare")
    options = parser.parse_args()
    if options.here:
        options.python, options.arch = [platform.python_version()], [platform.machine()]

    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    sdist = build_sdist(DIST)
    with tempfile.TemporaryDirectory(prefix="treadle-needs-") as needs:
        os.environ |= downloaded(Path(needs))
        for version in options.python:
            for arch in options.arch:
                wheel = build_wheel(sdist, version, arch, DIST)
                check_wheel(wheel)
                if not options.once:
                    check_same_again(wheel, sdist, version, arch)
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(map(str, DIST.iterdir())))
    for file in sorted(DIST.iterdir()):
        print(f"{file.name}  {file.stat().st_size:,} bytes")


def downloaded(needs: Path) -> dict[str, str]:
    """What a build requires, fetched once; returns the settings with which every build uses just that."""
    run_retrying(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--dest", str(needs), *requirements("build")),
    )
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(needs)}


def build_sdist(into: Path) -> Path:
    """Build the sdist, twice, from the files that git does not ignore."""
    digests = set()
    for _ in range(2):
        run(
            *(sys.executable, "-m", "build", "--sdist", "--no-isolation"),
            *("--outdir", str(into), str(ROOT)),
            env=fixed(),
        )
        (sdist,) = into.glob("*.tar.gz")
        digests.add(digest(sdist))
    require(len(digests) == 1, f"{sdist.name}: two builds differ")
    return sdist


def build_wheel(sdist: Path, version: str, arch: str, into: Path) -> Path:
    """Build one wheel from the sdist and repair it; the result lies in `into`."""
    python = find_interpreter(version)
    with tempfile.TemporaryDirectory(prefix="treadle-wheel-") as scratch:
        raw = Path(scratch, "raw")
        run(
            *(python, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-cache-dir", "--wheel-dir", str(raw), str(sdist)),
            env=toolchain(Path(scratch), python, version, arch),
        )
        (unrepaired,) = raw.iterdir()
        repaired = Path(scratch, "repaired")
        run(
            *(sys.executable, "-c", AUDITWHEEL, arch, "repair", "--only-plat"),
            *("--plat", f"manylinux_{GLIBC.replace('.', '_')}_{arch}"),
            *("--wheel-dir", str(repaired), str(unrepaired)),
            env=fixed(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"),
        )
        (wheel,) = repaired.iterdir()
        return Path(shutil.move(wheel, into / wheel.name))


def toolchain(scratch: Path, python: str, version: str, arch: str) -> dict[str, str]:
    """Environment of a build: Zig as compiler, archiver and linker, for one target."""
    zig = scratch / "zig"
    zig.mkdir()
    tools = {
        "c++": (
            f"c++ -target {arch}-linux-gnu.{GLIBC} -mcpu=baseline -ffile-prefix-map={scratch}=."
            f" -isystem {debian_headers(scratch, python, arch)}"
        ),
        "ar": "ar",
        "ranlib": "ranlib",
    }
    for name, command in tools.items():
        script = zig / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang {command} "$@"\n')
        script.chmod(0o755)
    cmake = [
        f"-DCMAKE_{kind}={zig / name}"
        for kind, name in {"CXX_COMPILER": "c++", "AR": "ar", "RANLIB": "ranlib"}.items()
    ]
    # CMake's probes of the compiler need not link: to link a program, Zig first compiles all of libc++ another time.
    cmake += ["-DCMAKE_CXX_COMPILER_ID_TEST_FLAGS_FIRST=-c"]
    cmake += ["-DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY"]
    env = fixed(TMPDIR=str(scratch), ZIG_GLOBAL_CACHE_DIR=str(ROOT / "build" / "zig"))
    if arch != platform.machine():
        cmake += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={arch}"]
        env["_PYTHON_HOST_PLATFORM"] = f"linux-{arch}"
        tag = "".join(version.split(".")[:2])
        env["SETUPTOOLS_EXT_SUFFIX"] = f".cpython-{tag}-{arch}-linux-gnu.so"
    return env | {"CMAKE_ARGS": " ".join(cmake), "SKBUILD_CMAKE_DEFINE": "TREADLE_WERROR=ON"}


def debian_headers(scratch: Path, python: str, arch: str) -> Path:
    """Directory with what Debian's Python keeps among the C library's headers, empty for another Python.

    Zig brings the C library's headers itself and does not look among the system's. The header for aarch64
    is not installed, and says what x86_64's does.
    """
    ask = "import sysconfig; print(sysconfig.get_path('include'), sysconfig.get_config_var('MULTIARCH'))"
    include, multiarch = output(python, "-c", ask).split()
    ours = Path(include).parent / multiarch / Path(include).name
    theirs = scratch / "headers" / f"{arch}-linux-gnu" / Path(include).name
    theirs.parent.mkdir(parents=True)
    if ours.is_dir():
        theirs.symlink_to(ours)
    return scratch / "headers"


def check_wheel(wheel: Path) -> None:
    """Size, contents, stripped symbols, and that only the stable ABI is used where the name says so."""
    require(wheel.stat().st_size < MAX_BYTES, f"{wheel.name} is not under {MAX_BYTES:,} bytes")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        missing = [name for name in SHIPPED if name not in names]
        require(not missing, f"{wheel.name} lacks {missing}")
        extensions = [name for name in names if name.endswith(".so")]
        require(len(extensions) == 1, f"{wheel.name} should hold one extension: {extensions}")
        with archive.open(extensions[0]) as file:
            symbols = ELFFile(file).get_section_by_name(".symtab")
        require(symbols is None, f"{extensions[0]} is not stripped")
    run(sys.executable, "-m", "check_wheel_contents", str(wheel))
    if "-abi3-" in wheel.name:
        run(sys.executable, "-m", "abi3audit", "--strict", "--report", str(wheel))


def check_same_again(wheel: Path, sdist: Path, version: str, arch: str) -> None:
    """Build once more, elsewhere, and compare the bytes."""
    with tempfile.TemporaryDirectory(prefix="treadle-again-") as elsewhere:
        again = build_wheel(sdist, version, arch, Path(elsewhere))
        require(digest(again) == digest(wheel), f"{wheel.name}: two builds differ")
    print(f"{wheel.name}: two builds, same bytes, sha256 {digest(wheel)}")


def fixed(**extra: str) -> dict[str, str]:
    """The environment, with whatever would make two builds differ set to fixed values."""
    return os.environ | {"SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH, "PYTHONHASHSEED": "0"} | extra


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        sys.exit(otherwise)


if __name__ == "__main__":
    main()

"""Coverage-guided fuzzing of walk, rebuild, update, dispatch and pickle: ``python -m fuzz.graphs --help``.

Coverage comes from the oracle, and from the engine as well if it was built for fuzzing, as ``make fuzz``
does. Inputs that broke something are kept in ``tests/properties/corpus`` and become tests.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tests.reference", "tests.properties"]):
    from tests.properties import target

HERE = Path(__file__).parent


def main() -> None:
    """Fuzz until the time is over or something breaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="how long to fuzz")
    parser.add_argument("--max-len", type=int, default=400, help="longest input")
    parser.add_argument(
        "--corpus", type=Path, default=HERE / "build" / "corpus", help="working corpus"
    )
    options = parser.parse_args()
    options.corpus.mkdir(parents=True, exist_ok=True)
    artifacts = HERE / "build" / "found"
    artifacts.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0],
        f"-max_total_time={options.seconds}",
        f"-max_len={options.max_len}",
        f"-artifact_prefix={artifacts}/",
        "-len_control=5",
        "-timeout=120",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
        str(options.corpus),
        str(HERE.parent / "tests" / "properties" / "corpus"),
    ]
    print(f"fuzzing for {options.seconds} s from {time.strftime('%H:%M:%S')}")
    atheris.Setup(arguments, target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

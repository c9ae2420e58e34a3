"""The benchmarks are no package: their folder is put where Python looks."""

from __future__ import annotations

import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"

sys.path.append(str(BENCH))

"""Write the report: JSON, Markdown, one HTML page, and the plots that the documentation shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from page import plots
from page.html import page
from page.markdown import report


def write_report(results: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "report.md").write_text(report(results))
    (folder / "index.html").write_text(page(results))
    rows = results["suites"].get("scaling", {}).get("rows")
    for name, plot in plots.scaling(rows).items() if rows else ():
        (folder / f"{name}.svg").write_text(plot)

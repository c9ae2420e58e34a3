"""Write the report: JSON, Markdown, and one HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from page.html import page
from page.markdown import report


def write_report(results: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "report.md").write_text(report(results))
    (folder / "index.html").write_text(page(results))

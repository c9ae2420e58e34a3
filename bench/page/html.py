"""The report as one page that needs no other file."""

from __future__ import annotations

import html
import re
from typing import Any

from page import plots
from page.markdown import report

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-variant-numeric: tabular-nums; font-size: .9rem; }
td, th { border-bottom: 1px solid #ddd; padding: .2rem .7rem .2rem 0; text-align: left; vertical-align: top; }
h2 { margin-top: 2.5rem; border-bottom: 2px solid #d1495b; }
h3 { margin: 1.6rem 0 .2rem; font-size: 1rem; }
code { background: #f3f3f3; padding: 0 .2em; }
li { font-size: .85rem; color: #555; }
svg { max-width: 100%; height: auto; }
"""


def page(results: dict[str, Any]) -> str:
    body = convert(report(results), figures(results))
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>Treadle benchmarks</title>\n<style>{_STYLE}</style>\n{body}\n</html>\n"
    )


def figures(results: dict[str, Any]) -> dict[str, list[str]]:
    """Plots by the heading that they go below."""
    from suites import TITLES

    found: dict[str, list[str]] = {}

    def rows(suite: str) -> list[dict[str, Any]]:
        return [row for row in results["suites"].get(suite, {}).get("rows", []) if row["cases"]]

    for suite in ("training", "training-large", "state"):
        for row in rows(suite):
            found[row["name"]] = [plots.bars(row)]
    if rows("sweep"):
        found[TITLES["sweep"]] = [plots.leaf_counts(rows("sweep"))]
    for row in rows("breakdown"):
        if all("dispatch" in case for case in row["cases"].values()):
            found[row["name"]] = [plots.phases(row)]
    if rows("scaling"):
        found[TITLES["scaling"]] = list(plots.scaling(rows("scaling")).values())
    for row in rows("tail"):
        found[row["name"]] = [plots.latencies(row)]
    return found


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)


def convert(markdown: str, figures: dict[str, list[str]]) -> str:
    """The Markdown that `report` writes: headings, tables, lists and paragraphs."""
    out: list[str] = []
    for block in re.split(r"\n{2,}", markdown.strip()):
        lines = block.split("\n")
        if heading := re.match(r"(#+) (.*)", block):
            level, text = len(heading[1]), heading[2]
            out.append(f"<h{level}>{_inline(text)}</h{level}>")
            out += figures.get(text, [])
        elif block.startswith("|"):
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            cells = ["<tr>" + "".join(f"<th>{_inline(c)}</th>" for c in rows[0]) + "</tr>"]
            cells += [
                "<tr>" + "".join(f"<td>{_inline(c)}</td>" for c in row) + "</tr>"
                for row in rows[2:]
            ]
            out.append("<table>" + "\n".join(cells) + "</table>")
        elif block.startswith("- "):
            out.append(
                "<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>"
            )
        else:
            out.append(f"<p>{_inline(block)}</p>")
    return "\n".join(out)

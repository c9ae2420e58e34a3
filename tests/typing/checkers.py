"""Run type checkers over files and compare what they say with what stands in the files' comments.

    reveal_type(model.linear)  # Linear
    nnx.jit(step, bogus=1)  # error: reportCallIssue // call-overload

A comment gives the type that the line reveals, or the rules that it breaks, as the checkers call them;
what stands behind ``//`` is for mypy, where the two differ, and ``-`` is nothing. Types are written
without modules and defaults, as pyright does otherwise: ``(x: Array, n: int =) -> Array``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import treadle

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = Path(treadle.__file__).resolve().parents[1]
# An editable install is found through a hook of Python's, of which checkers know nothing.
EXTRA = [] if PACKAGES.name == "site-packages" else [str(PACKAGES)]

ERROR = "error: "


@dataclass(frozen=True)
class Said:
    """What a checker says of one line, or what is expected of it: ``("type", "Linear")``."""

    kind: str
    text: str


Report = Mapping[tuple[str, int], list[Said]]
"""By file name and line."""


def pyright(folders: Iterable[Path], scratch: Path) -> Report:
    """What strict pyright says."""
    # It looks at nothing outside the folder of its configuration.
    for folder in folders:
        shutil.copytree(folder, scratch / folder.name)
    config = {
        "include": [folder.name for folder in folders],
        "extraPaths": EXTRA,
        "typeCheckingMode": "strict",
        # A line that only shows a mistake need not do anything.
        "reportUnusedExpression": False,
        "reportUnusedCallResult": False,
    }
    path = scratch / "pyrightconfig.json"
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = _run([*command, "-p", str(path)])
    report: defaultdict[tuple[str, int], list[Said]] = defaultdict(list)
    for entry in json.loads(done)["generalDiagnostics"]:
        place = Path(entry["file"]).name, entry["range"]["start"]["line"] + 1
        revealed = re.fullmatch(r'Type of ".*" is "(.*)"', entry["message"], re.DOTALL)
        if entry["severity"] == "information" and revealed:
            report[place].append(Said("type", plain(revealed[1])))
        else:
            report[place].append(Said("error", entry.get("rule", entry["message"])))
    return report


def mypy(folders: Iterable[Path], _scratch: Path) -> Report:
    """What strict mypy says."""
    command = [sys.executable, "-m", "mypy", "--strict", "--output=json", "--follow-imports=silent"]
    # JAX takes longer than all else: the cache is kept.
    command += ["--config-file=", f"--cache-dir={ROOT / '.cache/mypy'}"]
    done = _run([*command, *map(str, folders)], MYPYPATH=os.pathsep.join(EXTRA))
    report: defaultdict[tuple[str, int], list[Said]] = defaultdict(list)
    for line in done.splitlines():
        entry = json.loads(line)
        place = Path(entry["file"]).name, entry["line"]
        revealed = re.fullmatch(r'Revealed type is "(.*)"', entry["message"], re.DOTALL)
        if revealed:
            report[place].append(Said("type", plain(revealed[1])))
        elif entry["severity"] == "error":
            report[place].append(Said("error", entry["code"]))
    return report


CHECKERS: Mapping[str, Callable[[Iterable[Path], Path], Report]] = {
    "pyright": pyright,
    "mypy": mypy,
}


def _run(command: list[str], **variables: str) -> str:
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    # 1 says that there are errors, as there are meant to be.
    if done.returncode > 1 or not done.stdout.strip():
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def plain(text: str) -> str:
    """A type in one spelling, whoever wrote it."""
    text = re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)
    text = re.sub(r"\bdef (?:\[[^\]]*\] )?(?=\()", "", text)
    text = re.sub(r" = [^,)\]]+", " =", text)
    # Parameter lists among type arguments: mypy has them in brackets.
    while (start := text.find("[[")) >= 0:
        end, depth = start + 1, 0
        while True:
            depth += {"[": 1, "]": -1}.get(text[end], 0)
            if depth == 0:
                break
            end += 1
        text = f"{text[: start + 1]}({text[start + 2 : end]}){text[end + 1 :]}"
    return text


def expected(folders: Iterable[Path], checker: str) -> Report:
    """What the comments in the files say."""
    report: defaultdict[tuple[str, int], list[Said]] = defaultdict(list)
    for path in sorted(path for folder in folders for path in folder.glob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code, found, comment = line.partition("  # ")
            if not found or not code.strip():
                continue
            for_pyright, _, for_mypy = comment.partition(" // ")
            wants_error = for_pyright.startswith(ERROR)
            if not wants_error and not code.strip().startswith("reveal_type("):
                continue
            text = for_mypy or for_pyright if checker == "mypy" else for_pyright
            wants_error = wants_error or text.startswith(ERROR)
            text = text.removeprefix(ERROR)
            parts = text.split(", ") if wants_error else [text]
            kind = "error" if wants_error else "type"
            report[path.name, number] += [Said(kind, part) for part in parts if part != "-"]
    return report


def differences(said: Report, wanted: Report) -> list[str]:
    """Where the two differ, one line each."""
    lines = []
    for place in sorted({*said, *wanted}):
        here, there = (
            sorted({f"{entry.kind} {entry.text}" for entry in report.get(place, ())})
            for report in (said, wanted)
        )
        if here != there:
            file, number = place
            lines.append(f"{file}:{number}: {here or 'nothing'}, expected {there or 'nothing'}")
    return lines

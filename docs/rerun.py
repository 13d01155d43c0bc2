"""Reruns figures of the docs that take minutes, and compares: `python docs/rerun.py` from a checkout, before a release.

Each check runs the command that its page names, and finds the same figures on the page and in what is printed. Exits
with status 1 if one differs.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


class Check(NamedTuple):
    """A command, and regular expressions for the text with its figures on a page and in the output."""

    page: str
    command: str
    told: str
    printed: str
    tolerance: float = 0.0


CHECKS = [
    Check(
        "README.md",
        "adapt train quickstart --out OUT --quiet",
        r"zero-shot +[\d.]+ %\n +adapted +[\d.]+ %",
        r"zero-shot +[\d.]+ %\nadapted +[\d.]+ %",
        0.5,
    ),
    Check(
        "docs/choosing.md",
        "adapt recommend emoji --shots 4 --backbone mini-clip --out none",
        r"Accuracy on the 694 test images, which played no part in the choice: [\d.]+ %",
        r"Accuracy on the 694 test images, which played no part in the choice: [\d.]+ %",
        0.5,
    ),
    Check(
        "docs/fewer_operations.md",
        "python -m benchmarks meter",
        r"are [\d.]+ % fewer operations, as in the paper; one and three\nare [\d.]+ %",
        r"(?<=2 image and 2 text fusion blocks skipped: )[\d.]+ %"
        r"|(?<=1 image and 3 text fusion blocks skipped: )[\d.]+ %",
    ),
    Check(
        "docs/questions.md",
        "python -m benchmarks vlora",
        r"[\d.]+ % of the operations that LLaVA's",
        r"(?<=T, )[\d.]+ %(?= \(by)",
    ),
    Check(
        "docs/faults.md",
        "python -m faults.peft_table",
        r"(?<=\| )40 \| .*(?= \|)",
        r"(?<=\| )40 \| .*(?= \|)",
    ),
]


def main() -> None:
    """Run all checks, or those of the pages that are given as arguments."""
    pages = sys.argv[1:]
    differ = [not _agrees(check) for check in CHECKS if not pages or check.page in pages]
    print(f"{sum(differ)} of {len(differ)} differ")
    sys.exit(int(any(differ)))


def _agrees(check: Check) -> bool:
    told = _figures(check.told, (ROOT / check.page).read_text(encoding="utf-8"))
    path = os.pathsep.join(str(ROOT / folder) for folder in ("", "tests", "tests/contract"))
    with TemporaryDirectory() as folder:
        words = shlex.split(check.command.replace("OUT", f"{folder}/run"))
        line = [sys.executable, *(["-m", *words] if words[0] == "adapt" else words[1:])]
        ran = subprocess.run(
            line, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, text=True, capture_output=True, check=False
        )
    printed = _figures(check.printed, ran.stdout)
    same = len(told) == len(printed) > 0 and all(abs(a - b) <= check.tolerance for a, b in zip(told, printed))
    print(f"{check.page}, {check.command}: {'same' if same else f'{told} there, {printed} here'}", flush=True)
    if ran.returncode:
        print(ran.stderr[-2000:])
    return same and not ran.returncode


def _figures(pattern: str, text: str) -> list[float]:
    """Return all numbers in the places where `pattern` is found."""
    numbers = [number for found in re.finditer(pattern, text) for number in _NUMBER.findall(found[0])]
    return [float(number.replace(",", "")) for number in numbers]


if __name__ == "__main__":
    main()

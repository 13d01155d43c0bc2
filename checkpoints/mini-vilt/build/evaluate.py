"""Measure the finished model through `adapt`, on the bundled questions."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import adapt
from adapt.data import Item
from adapt.evaluation.evaluate import evaluate

sys.path.append(str(Path(__file__).resolve().parents[2] / "mini-clip" / "build"))

import card

TARGET = Path(__file__).resolve().parents[1]
UNSEEN = "emoji-questions@fluent-3d"
PARTS = (("emoji-questions", "val"), ("emoji-questions", "test"), (UNSEEN, "test"))


def save(folder: Path) -> None:
    """Write `results.json`: accuracy in per cent, by part and question; fill the card's table with it."""
    results = {f"{spec} {part}": measured(getattr(adapt.data.load(spec), part), spec) for spec, part in PARTS}
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    page = folder / "README.md"
    if page.is_file():
        page.write_text(card.filled(page.read_text(), "results", table(results)))
    print(table(results))


def measured(items: tuple[Item, ...], spec: str) -> dict[str, float | int]:
    """Accuracy over all items and over those of each question, and the number of items."""
    backbone = adapt.load_backbone("mini-vilt")
    model = adapt.wrap(backbone, adapt.methods.ZeroShot(), adapt.data.load(spec).class_names)
    right = evaluate(model, items, workers=0).right
    row: dict[str, float | int] = {"questions": len(items), "all": percent(right)}
    for question in sorted({item.question for item in items}):
        row[question] = percent([hit for hit, item in zip(right, items, strict=True) if item.question == question])
    return row


def percent(right: Sequence[bool]) -> float:
    """The share that is true."""
    return round(100 * sum(right) / len(right), 1)


def table(results: dict[str, dict[str, float | int]]) -> str:
    """Questions as rows, parts as columns, in Markdown."""
    rows = [["question", *results], ["---"] * (len(results) + 1)]
    for title in next(iter(results.values())):
        unit = "" if title == "questions" else " %"
        rows.append([title, *(f"{row[title]}{unit}" for row in results.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

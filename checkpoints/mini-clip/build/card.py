"""Keep the card's results table and its list of held-out concepts in step with what was measured."""

import re
from pathlib import Path

from concepts import Concept

TARGET = Path(__file__).resolve().parents[1]  # the bundled checkpoint and its card


def filled(card: str, marker: str, body: str) -> str:
    """Replace what stands between `<!-- marker -->` and `<!-- end -->`."""
    pattern = f"(<!-- {marker} -->\n).*?(<!-- end -->)"
    card, count = re.subn(pattern, lambda match: f"{match[1]}{body}\n{match[2]}", card, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the card has {count} places marked {marker!r}, one is needed")
    return card


def table(results: dict) -> str:
    """The zero-shot results as a Markdown table."""
    lines = ["| images of | top-1 | top-5 | names | images |", "| --- | --- | --- | --- | --- |"]
    for section in ("zero-shot over names", "zero-shot over classes"):
        for title, row in results[section].items():
            lines.append(f"| {title} | {row['top1']} % | {row['top5']} % | {row['names']} | {row['images']} |")
    return "\n".join(lines)


def update(file: Path, results: dict, concepts: list[Concept]) -> None:
    """Write the results into the card, and the list where it has a place for it."""
    card = filled(file.read_text(), "results", table(results))
    if "<!-- held out -->" in card:
        names = ", ".join(sorted(concept.name for concept in concepts if concept.held_out))
        card = filled(card, "held out", f"{names}.")
    file.write_text(card)

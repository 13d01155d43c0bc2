"""Base to new on the bundled set by the shipped recipes: `python base_to_new.py WORK`.

It fills the card and docs/protocols.md, and draws the plot. Runs that exist in the work folder are not
repeated, so an interrupted measurement goes on.
"""

import argparse
import json
from pathlib import Path

import card

from adapt.protocols.plots import base_against_new
from adapt.protocols.protocol import base_to_new, run_protocol
from adapt.protocols.tables import as_markdown, table
from adapt.recipe import read_recipe

TARGET = Path(__file__).resolve().parents[1]
RECIPES = (
    "coop",
    "cocoop",
    "ctp_tft",
    "kgcoop",
    "tcp",
    "ogen",
    "ivlp",
    "maple",
    "prompt_src",
    "mma",
    "dpl",
    "gda",
    "prolip",
    "two_stage",
)
SEEDS = (1, 2, 3)


def main() -> None:
    """Measure what is missing, then write the figures, the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="the work folder of make.py")
    work = parser.parse_args().work / "base-to-new"
    protocols = [base_to_new(read_recipe(name, data="emoji", protocol="base_to_new"), SEEDS) for name in RECIPES]
    results = [run_protocol(protocol, work / protocol.recipe.method["name"], progress=print) for protocol in protocols]
    figures = [
        {"recipe": name, "runs": each["runs"], "summary": each["summary"]}
        for name, each in zip(RECIPES, results, strict=True)
    ]
    (TARGET / "base_to_new.json").write_text(json.dumps(figures, indent=2) + "\n")
    base_against_new(results).savefig(TARGET / "base_to_new.png", dpi=130)
    cells = table(results)
    for file in (TARGET / "README.md", TARGET.parents[1] / "docs" / "protocols.md"):
        file.write_text(card.filled(file.read_text(), "base-to-new", as_markdown(cells)))
    print(as_markdown(cells))


if __name__ == "__main__":
    main()

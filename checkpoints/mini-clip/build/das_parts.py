"""What each setting of the DAS recipe gives: `python das_parts.py WORK` fills the card.

Runs that exist are not repeated.
"""

import argparse
import json
import statistics
from pathlib import Path

import card
import torch
from das import BLOCKS, SEEDS, TARGET, chosen, run, spread

from adapt.protocols.tables import as_markdown

SKIPPED = 2
NO_DISTILL = ("train.terms={}", "method.gate_lr=1")  # the rate goes with the size of the loss
WITHOUT = {
    "as the recipe says": (),
    "without `imitate`": ("method.imitate=0",),
    "without `distill`": NO_DISTILL,
    "without both": (*NO_DISTILL, "method.imitate=0"),
    "without both, at the published reduction of 8": (*NO_DISTILL, "method.imitate=0", "method.reduction=8"),
}


def both(work: Path, changes: tuple[str, ...]) -> tuple[list[dict], list[dict]]:
    """The runs of all seeds with all blocks, where there is nothing to imitate, and with two skipped."""
    whole = [change for change in changes if not change.startswith("method.imitate")]
    return [run(work, 0, seed, *whole) for seed in SEEDS], [run(work, SKIPPED, seed, *changes) for seed in SEEDS]


def table(results: dict[str, tuple[list[dict], list[dict]]]) -> list[list[str]]:
    """A row for each set of changes."""
    rows = [["settings", f"0 of {BLOCKS} skipped", f"{SKIPPED} of {BLOCKS} skipped", "cost", "chosen, by seed"]]
    for name, runs in results.items():
        whole, skipped = ([each["accuracy"] for each in each_runs] for each_runs in runs)
        cost = statistics.mean(whole) - statistics.mean(skipped)
        rows.append([name, spread(whole), spread(skipped), f"{cost:.1f}", chosen(runs[1])])
    return rows


def main() -> None:
    """Measure what is missing, then write the figures and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="the work folder of make.py")
    work = parser.parse_args().work / "das"
    torch.set_num_threads(1)  # runs in other processes may go on beside this one
    results = {name: both(work, changes) for name, changes in WITHOUT.items()}
    (TARGET / "das_parts.json").write_text(json.dumps(results, indent=2) + "\n")
    cells = as_markdown(table(results))
    file = TARGET / "README.md"
    file.write_text(card.filled(file.read_text(), "das parts", cells))
    print(cells)


if __name__ == "__main__":
    main()

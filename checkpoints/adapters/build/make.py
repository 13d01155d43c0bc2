"""Train the bundled adapters by the shipped recipes: `python checkpoints/adapters/build/make.py WORK`.

Runs that exist in the work folder are not repeated. Each adapter gets its model card beside it, and README.md its row.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import torch

import adapt
from adapt.evaluation.intervals import in_percent
from adapt.formats.adapter import read_header
from adapt.formats.model_card import model_card
from adapt.protocols.tables import as_markdown
from adapt.recipe import read_recipe
from adapt.training.run_recipe import run_recipe

TARGET = Path(__file__).resolve().parents[1]
RECIPES = {  # by the file's name: the recipe and its data
    "coop": ("coop", "emoji"),
    "maple": ("maple", "emoji"),
    "lora": ("lora/few_shot", "emoji"),
    "tip_adapter_f": ("tip_adapter/trained", "emoji"),
    "das": ("das", "emoji"),
    "vlora": ("vlora/questions", "emoji-questions"),
}


def made(name: str, work: Path) -> dict:
    """Train the adapter `name` unless `work` has it, copy it with its card, and return the run's metrics."""
    recipe, data = RECIPES[name]
    out = work / name
    if not (out / "metrics.json").exists():
        run_recipe(read_recipe(recipe, data=data), out, resume=(out / "recipe.yaml").exists())
    file = TARGET / f"{name}.safetensors"
    shutil.copyfile(out / "adapter.safetensors", file)
    header, kind = read_header(file), adapt.load(file).backbone.kind
    card = model_card(header, kind, address=f"checkpoints/adapters/{file.name}", place=name, license="apache-2.0")
    about, _, of_the_hub = card.partition("## Without adapt")
    file.with_suffix(".md").write_text(f"{about}## Licence{of_the_hub.partition('## Licence')[2]}\n")
    return json.loads((out / "metrics.json").read_text())


def row(name: str, metrics: dict) -> list[str]:
    """The adapter's row: its recipe, its size and what it answers right of the test images, with 95 % intervals."""
    recipe, data = RECIPES[name]
    size = (TARGET / f"{name}.safetensors").stat().st_size
    return [
        f"[{name}]({name}.md)",
        f"`adapt train {recipe} --data {data}`",
        metrics["backbone"],
        f"{size / 1024:.1f} KiB",
        *(figure(metrics.get(model)) for model in ("zero_shot", "adapted")),
    ]


def figure(scores: dict | None) -> str:
    """Accuracy in per cent with its interval."""
    return "" if scores is None else f"{100 * scores['accuracy']:.1f} % ({in_percent(scores['intervals']['accuracy'])})"


def main() -> None:
    """Make what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="the folder of the runs")
    work = parser.parse_args().work
    torch.set_num_threads(1)  # the same figures whatever runs beside it
    rows = [row(name, made(name, work)) for name in RECIPES]
    cells = as_markdown([["adapter", "made by", "backbone", "size", "before", "adapted"], *rows])
    card = TARGET / "README.md"
    filled = re.sub("(<!-- adapters -->\n).*(<!-- end -->)", rf"\1{cells}\n\2", card.read_text(), flags=re.DOTALL)
    card.write_text(filled)
    print(cells)


if __name__ == "__main__":
    main()

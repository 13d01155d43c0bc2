"""VLoRA against the projector on questions about emoji: `python compare.py WORK` fills the card and the README.

Both recipes are trained, unless WORK holds their runs, and measured side by side in one process.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

import adapt
from adapt.bench.measure import by_turns
from adapt.evaluation.flops import flops
from adapt.evaluation.tables import as_markdown
from adapt.recipe import find_recipe, read_recipe
from adapt.speaking import SpeakingModel
from adapt.training.run_recipe import run_recipe

sys.path.append(str(Path(__file__).resolve().parents[2] / "mini-clip" / "build"))

import card

TARGET = Path(__file__).resolve().parents[1]
METHODS = ("projector", "vlora")
REPEATS = 40


def main() -> None:
    """Train what is missing, then write the figures and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    runs = {method: trained(method, work / method) for method in METHODS}
    models = {method: adapt.load(run / "adapter.safetensors") for method, run in runs.items()}
    figures = {method: measured(models[method], runs[method]) for method in METHODS}
    for method, seconds in side_by_side(models).items():
        figures[method]["seconds"] = seconds
    (TARGET / "compare.json").write_text(json.dumps(figures, indent=2) + "\n")
    cells = table(figures)
    for file in (TARGET / "README.md", TARGET.parents[1] / "README.md"):
        file.write_text(card.filled(file.read_text(), "vlora", as_markdown(cells)))
    print(as_markdown(cells))


def trained(method: str, run: Path) -> Path:
    """The run of the method's recipe."""
    if not (run / "metrics.json").is_file():
        run_recipe(read_recipe(find_recipe(f"{method}/emoji_questions")), run, resume=run.exists())
    return run


def measured(model: SpeakingModel, run: Path) -> dict:
    """What training found, and what one question costs before its answer."""
    metrics = json.loads((run / "metrics.json").read_text())
    image, question = example(model)
    model.requires_grad_(False)
    tower = flops(lambda: model.backbone.patches(image))
    return {
        "accuracy": metrics["adapted"]["accuracy"],
        "alone": metrics["zero_shot"]["accuracy"],
        "trained_parameters": metrics["trainable_parameters"],
        "training_seconds": metrics["seconds"],
        "tokens": model(image, [question]).shape[1],
        "operations": flops(lambda: model(image, [question])) - tower,
        "vision_operations": tower,
    }


def example(model: SpeakingModel) -> tuple[torch.Tensor, str]:
    """An image of the test part and a question about it."""
    item = adapt.data.load("emoji-questions").test[0]
    return model.backbone.transform(train=False)(adapt.data.open_image(item))[None], item.question


def side_by_side(models: dict[str, SpeakingModel]) -> dict[str, float]:
    """The median seconds of an answer, by turns."""
    image, question = example(models[METHODS[0]])
    answers = [lambda model=model: model.generate(image, [question]) for model in models.values()]
    return dict(zip(models, by_turns(answers, REPEATS)))


def table(figures: dict[str, dict]) -> list[list[str]]:
    """The rows of the table, the head first."""
    head = ["", "accuracy", "tokens before the answer", "operations, vision tower apart", "an answer takes"]
    rows = [["language model alone", f"{100 * figures[METHODS[0]]['alone']:.1f} %", "", "", ""]]
    for method, each in figures.items():
        accuracy, operations = f"{100 * each['accuracy']:.1f} %", f"{each['operations'] / 1e6:.0f} M"
        rows.append([method, accuracy, str(each["tokens"]), operations, f"{each['seconds']:.3f} s"])
    return [head, *rows]


if __name__ == "__main__":
    main()

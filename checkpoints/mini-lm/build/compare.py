"""VLoRA, MQT and ADEM-VL against the projector on questions about emoji: `python compare.py WORK` fills card and guide.

Each recipe is trained on three seeds, unless WORK holds the runs, and the models of the first are measured side by side
in one process.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

import adapt
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.flops import flops
from adapt.models.vision_llm import SpeakingModel
from adapt.protocols.tables import as_markdown
from adapt.recipe import read_recipe
from adapt.training.run_recipe import run_recipe

sys.path.append(str(Path(__file__).resolve().parents[3]))  # benchmarks are in no package
sys.path.append(str(Path(__file__).resolve().parents[2] / "mini-clip" / "build"))

import card

from benchmarks.measure import by_turns
from benchmarks.vlora import large

TARGET = Path(__file__).resolve().parents[1]
CASES = {  # a recipe, and its settings at use
    "projector": ("projector", {}),
    "mqt, all 64 tokens": ("mqt", {}),
    "mqt, 4 tokens": ("mqt", {"tokens": 4}),
    "mqt, 1 token": ("mqt", {"tokens": 1}),
    "adem_vl": ("adem_vl", {}),
    "vlora": ("vlora", {}),
}
AT_7B = {"mqt, all 64 tokens": {"tokens": 256}}  # as many as published
SEEDS = (1, 2, 3)
REPEATS = 40


def main() -> None:
    """Train what is missing, then write the figures and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    runs = {case: [trained(method, seed, work) for seed in SEEDS] for case, (method, _) in CASES.items()}
    models = {case: loaded(runs[case][0], at_use) for case, (_, at_use) in CASES.items()}
    figures = {case: measured(models[case], runs[case], at_use) for case, (_, at_use) in CASES.items()}
    for case, seconds in side_by_side(models).items():
        figures[case]["seconds"] = seconds
    for case, (method, at_use) in CASES.items():
        figures[case]["operations_7b"] = large(method, **AT_7B.get(case, at_use))
    (TARGET / "compare.json").write_text(json.dumps(figures, indent=2) + "\n")
    body = f"{as_markdown(table(figures))}\n\n{ratios(figures)}"
    for file in (TARGET / "README.md", TARGET.parents[1] / "docs" / "questions.md"):
        file.write_text(card.filled(file.read_text(), "vlora", body))
    print(body)


def trained(method: str, seed: int, work: Path) -> Path:
    """The run of the method's recipe with that seed."""
    run = work / f"{method}-{seed}"
    if not (run / "metrics.json").is_file():
        recipe = read_recipe(method, (f"seed={seed}",))
        run_recipe(recipe, run, resume=run.exists())
    return run


def loaded(run: Path, at_use: dict[str, int]) -> SpeakingModel:
    """The model of a run, with its settings at use."""
    model = adapt.load(run / "adapter.safetensors")
    if at_use:
        model.set_at_use(**at_use)
    return model


def accuracy(run: Path, metrics: dict, at_use: dict[str, int]) -> float:
    """The share of right answers on the test part, measured anew where a setting differs from training's."""
    if not at_use:
        return metrics["adapted"]["accuracy"]
    return evaluate(loaded(run, at_use), adapt.data.load("emoji-questions").test).accuracy


def measured(model: SpeakingModel, runs: list[Path], at_use: dict[str, int]) -> dict:
    """What training found, and what one question costs before its answer."""
    metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
    image, question = example(model)
    model.requires_grad_(False)
    tower = flops(lambda: model.backbone.patches(image))
    return {
        "accuracy": [accuracy(run, each, at_use) for run, each in zip(runs, metrics, strict=True)],
        "alone": metrics[0]["zero_shot"]["accuracy"],
        "trained_parameters": metrics[0]["trainable_parameters"],
        "training_seconds": [each["seconds"] for each in metrics],
        "tokens": model(image, [question]).shape[1],
        "operations": flops(lambda: model(image, [question])) - tower,
        "vision_operations": tower,
    }


def example(model: SpeakingModel) -> tuple[torch.Tensor, str]:
    """An image of the test part and a question about it."""
    item = adapt.data.load("emoji-questions").test[0]
    return model.backbone.transform(train=False)(adapt.data.open_image(item))[None], item.label.question


def side_by_side(models: dict[str, SpeakingModel]) -> dict[str, float]:
    """The median seconds of an answer, by turns."""
    image, question = example(next(iter(models.values())))
    answers = [lambda model=model: model.generate(image, [question]) for model in models.values()]
    return dict(zip(models, by_turns(answers, REPEATS)))


def table(figures: dict[str, dict]) -> list[list[str]]:
    """The rows of the table, the head first."""
    head = ["", "accuracy", "numbers", "tokens before the answer", "operations, vision tower apart", "an answer takes"]
    head.append("operations at 7B")
    rows = [["language model alone", f"{100 * figures['projector']['alone']:.1f} %", *[""] * 5]]
    for case, each in figures.items():
        percents = [100 * accuracy for accuracy in each["accuracy"]]
        share = f"{statistics.mean(percents):.1f} ± {statistics.stdev(percents):.1f} %"
        operations = f"{each['operations'] / 1e6:.0f} M"
        cost = [operations, f"{each['seconds']:.4f} s", f"{each['operations_7b'] / 1e12:.2f} T"]
        rows.append([case, share, f"{each['trained_parameters']:,}", str(each["tokens"]), *cost])
    return [head, *rows]


def ratios(figures: dict[str, dict]) -> str:
    """What vlora has of the projector's accuracy and seconds, and adem_vl of vlora's seconds."""
    projector, vlora, adem = (figures[case] for case in ("projector", "vlora", "adem_vl"))
    share = 100 * statistics.mean(vlora["accuracy"]) / statistics.mean(projector["accuracy"])
    seconds = 100 * vlora["seconds"] / projector["seconds"]
    return (
        f"VLoRA has {share:.1f} % of the projector's accuracy, and an answer takes {seconds:.1f} % of its time; one of "
        f"ADEM-VL takes {100 * adem['seconds'] / vlora['seconds']:.1f} % of VLoRA's."
    )


if __name__ == "__main__":
    main()

"""Learn minimal pairs by S-VCO, and the same scenes by their answers alone, seeds 1, 2, 3: `python contrast.py WORK`.

Writes `contrast.json`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import compare
import torch

import adapt
from adapt import tasks
from adapt.data import Item, Split
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.inference import Inference
from adapt.models.svco import margins
from adapt.models.wrap import Model
from adapt.recipe import read_recipe
from adapt.training.fit import fit_plan
from adapt.training.run_recipe import build, plan_of, run_recipe

PAIRS, QUESTIONS = "emoji-contrasts@fluent-3d", "emoji-questions@fluent-3d"
SIDES = "what is on the left?"


def answers(split: Split) -> Split:
    """The images of minimal pairs as conversations of their own, each with its answer."""

    def items(pairs: tuple[Item, ...]) -> tuple[Item, ...]:
        made = []
        for pair in pairs:
            chats = pair.task.chats(pair, "")
            for path, chat in zip(pair.paths, chats, strict=True):
                label = tasks.reading(frozenset({"chat"})).read({"chat": chat}, path)
                made.append(replace(pair, paths=(path,), label=label))
        return tuple(made)

    return replace(split, train=items(split.train), val=(), test=())


def trained(case: str, work: Path, seed: int) -> Model:
    """The model of one case and seed."""
    run = work / f"{case}-{seed}"
    recipe = read_recipe("lora/contrasts", [f"seed={seed}"])
    if case == "svco":
        if not (run / "metrics.json").exists():
            run_recipe(recipe, run, resume=run.exists(), progress=False)
        return adapt.load(run)
    file = run.with_suffix(".safetensors")
    if not file.exists():
        split = answers(adapt.data.load(PAIRS))
        model = build(recipe, (), adapt.load_backbone("mini-vlm"))
        fit_plan(plan_of(recipe, model, split), None)
        work.mkdir(exist_ok=True, parents=True)
        model.save(file)
    return adapt.load(file)


def measured(model: Model) -> dict[str, float]:
    """Images that prefer the other's answer, pairs that are not both right, and right answers in words."""
    items = adapt.data.load(PAIRS).test
    sums = torch.cat(list(Inference(0).of_batches(model.eval(), items, lambda step: step.sums.cpu())))
    sides = sums[[item.text == SIDES for item in items]]
    confused = torch.cat([sides[:, 0] <= sides[:, 1], sides[:, 3] <= sides[:, 2]])
    return {
        "confused": float(confused.double().mean()),
        "wrong_pairs": float((margins(sides) <= 0).double().mean()),
        "wrong_pairs_of_all": float((margins(sums) <= 0).double().mean()),
        "right_in_words": evaluate(model, adapt.data.load(QUESTIONS).test, workers=0).accuracy,
    }


def main() -> None:
    """Train, measure, and write the figures."""
    start = adapt.wrap(adapt.load_backbone("mini-vlm"), adapt.methods.find("zero_shot")())
    found: dict[str, list[dict[str, float]]] = {"before": [measured(start)]}
    for case in ("answers", "svco"):
        found[case] = [measured(trained(case, Path(sys.argv[1]), seed)) for seed in compare.SEEDS]
    for case, runs in found.items():
        for key in runs[0]:
            values = [100 * run[key] for run in runs]
            print(f"{case} {key}: {mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else ""))
    (compare.TARGET / "contrast.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

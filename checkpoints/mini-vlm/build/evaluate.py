"""Measure the model on the bundled conversations and questions: `python evaluate.py`. Writes `results.json`."""

import json
from pathlib import Path

import torch

import adapt
from adapt.evaluation.evaluate import evaluate
from adapt.methods import ZeroShot

TARGET = Path(__file__).resolve().parents[1]
DATA = ("emoji-chats", "emoji-chats@fluent-3d", "emoji-questions", "emoji-questions@fluent-3d")


def measured() -> dict[str, dict[str, float]]:
    """The figures of the test items of each data set, by its name."""
    torch.set_num_threads(1)
    model = adapt.wrap(adapt.load_backbone("mini-vlm", "cpu"), ZeroShot()).eval()
    results = {}
    for name in DATA:
        figures = evaluate(model, adapt.data.load(name).test, workers=0).figures()
        results[name] = {key: round(value, 4) for key, value in figures.items() if isinstance(value, int | float)}
        print(name, results[name], flush=True)
    return results


if __name__ == "__main__":
    (TARGET / "results.json").write_text(json.dumps(measured(), indent=1) + "\n")

"""Boxes against pycocotools, torchvision and the official readers: average precision, overlap, thousandths, answers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

import published
import pytest
import torch
from torch import Tensor

from adapt.backbones.box_texts import THOUSANDTHS, Edges
from adapt.evaluation import boxes
from adapt.evaluation.boxes import matched, overlaps


def _edges(corners: Any) -> Edges:
    x0, y0, x1, y1 = map(float, corners)
    return x0, y0, x1, y1


def _of_class(data: Any, category: int, found: list[Any]) -> list[Any]:
    true, answered, sure = (defaultdict[int, list[Any]](list) for _ in range(3))
    for each in data["annotations"]:
        x, y, width, height = each["bbox"]
        if each["category_id"] == category:
            true[each["image_id"]].append((x, y, x + width, y + height))
    for each in found:
        x, y, width, height = each["bbox"]
        if each["category_id"] == category:
            answered[each["image_id"]].append((x, y, x + width, y + height))
            sure[each["image_id"]].append(each["score"])
    return [(true[image["id"]], answered[image["id"]], sure[image["id"]], ()) for image in data["images"]]


def _reward(solution: str, completion: str) -> float:
    """The overlaps of boxes by their confidence, doubled ones once, over the larger number of boxes."""
    true, answered = (
        json.loads(text.removeprefix("<answer>").removesuffix("</answer>")) for text in (solution, completion)
    )
    answered = {tuple(each["Position"]): each for each in sorted(answered, key=lambda each: each["Confidence"])}
    sure = sorted(answered.values(), key=lambda each: -each["Confidence"])
    shared = overlaps([_edges(each["Position"]) for each in sure], [_edges(each["Position"]) for each in true])
    return sum(matched(shared, 0.5)) / max(shared.shape)


def _coco(data: Any, found: list[Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The twelve scores of pycocotools, which has -1 where no box is of a size."""

    def means(size: str = "", most: int = 100) -> Tensor:
        monkeypatch.setattr(boxes, "MOST", most)
        names = [each["id"] for each in data["categories"]]
        each = [boxes.average_precision(_of_class(data, name, found), boxes.AREAS[size]) for name in names]
        return torch.stack(each).nanmean(0).nan_to_num(-1)

    scores = {"AP50": float(means()[0, 0]), "AP75": float(means()[0, 5])}
    for size in boxes.AREAS:
        scores[f"AP{size}"], scores[f"AR{size or 100}"] = means(size).mean(1).tolist()
    return scores | {f"AR{most}": float(means(most=most)[1].mean()) for most in (1, 10)}


def _in_order(stored: dict[str, float], names: Iterable[str]) -> Tensor:
    return torch.tensor([stored[name] for name in names])


def test_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case("boxes")
    shared = torch.stack(
        [overlaps([_edges(one)], [_edges(other)])[0, 0] for one, other in zip(expected["predicted"], expected["true"])]
    )
    expected.scaled("iou", shared.float())

    data, found = settings["coco"], settings["detections"]
    names = [each["id"] for each in data["categories"]]
    values = torch.stack([boxes.average_precision(_of_class(data, name, found))[0] for name in names])
    settings.scaled("ap_by_class", values.mean(1), torch.tensor, 1e-6)
    for key, scores in {"coco_scores": found, "scores_if_all_sure": [each | {"score": 1} for each in found]}.items():
        ours = _coco(data, scores, monkeypatch)
        settings.equal(key, {*ours}, set)
        settings.scaled(key, torch.tensor([*ours.values()]), partial(_in_order, names=ours), 1e-6)

    rewards = [_reward(each["solution"], each["completion"]) for each in settings["rewards"]]
    settings.scaled(
        "rewards", torch.tensor(rewards), lambda stored: torch.tensor([row["iou_reward"] for row in stored])
    )

    answers = [THOUSANDTHS.read(answer, (1000, 1000), (1000, 1000)) for answer in settings["answers"]]
    settings.equal(
        "read",
        [None if each is None else [[*each[0].edges[:2]], [*each[0].edges[2:]]] for each in answers],
        lambda stored: [*stored[:4], stored[0], *stored[5:]],  # ours reads an answer that goes on
    )
    pairs = zip(settings["pixels"], settings["sizes"], strict=True)
    written = [THOUSANDTHS.write("", [_edges(box)], tuple(size), tuple(size)) for box, size in pairs]
    settings.equal("thousandths", written, lambda stored: [str([round(value) for value in row]) for row in stored])

"""The memory of patches against AnomalyDINO and PatchCore: turned images, distances, scores, maps, a coreset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import published
import pytest
import torch
from torch import Tensor

import adapt
from adapt.data import Item
from adapt.engine import vision
from adapt.evaluation.maps import auroc, region_overlap
from adapt.methods import PatchMemory, patch_memory
from adapt.methods.base import ImageStep


class Given:
    """A training whose images are all good."""

    def __init__(self, model: adapt.AdaptedModel, images: Tensor) -> None:
        self.model, self.images, self.noted = model, images, dict[str, Any]()

    def items(self, part: str) -> list[Any]:
        return [Item.of(path=str(number), label="normal") for number in range(len(self.images)) if part == "train"]

    def steps(self, part: str) -> Iterator[ImageStep]:
        assert part == "train"
        yield ImageStep(self.model, self.images, torch.zeros(len(self.images), dtype=torch.long))

    def note(self, **figures: Any) -> None:
        self.noted |= figures


@pytest.mark.parametrize("name", ["anomalydino", "anomalydino_k", "anomalydino_l2"])
def test_distances_of_patches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published masks grow along the flat list of patches, and are given."""
    settings, expected = published.case(name)
    side, (rows, columns) = settings["patch"], settings["grid"]

    def tokens(backbone: object, images: Tensor, block: int) -> Tensor:
        whole = images[..., : rows * side, : columns * side].unfold(2, side, side).unfold(3, side, side)
        return (whole / 255 - 0.5).permute(0, 2, 3, 1, 4, 5).flatten(3) @ expected["patch_embedding"].T

    monkeypatch.setattr(vision, "patch_features", tokens)
    monkeypatch.setattr(patch_memory, "KEPT_AS", torch.float32)
    metric = {"L2_normalized": "cosine", "L2": "euclidean"}[settings["metric"]]
    mask = "object" if settings["masking_of_test_images"] else "none"
    method = PatchMemory(neighbours=settings["neighbours"], metric=metric, mask=mask)
    model = adapt.wrap(published.backbone("open_clip"), method, ("normal", "abnormal"))
    references = _images(expected["reference_images"])
    if settings["rotation"]:
        [first] = references
        turned = [patch_memory.turned(first[None], angle)[0] for angle in settings["angles"]]
        off = (torch.stack(turned) - _images(expected["rotated_images"])).abs()
        assert off.max() < 1  # grey levels, which are stored rounded
        expected.equal("rotated_images", len(turned), len)
        references = _images(expected["rotated_images"])
    elif settings["masking_of_references"]:
        kept_of = expected["reference_kept"].flatten()
    images = _images(expected["test_images"])
    if mask == "object":
        kept = expected["kept"].unflatten(1, (rows, columns))
        component = patch_memory.principal(tokens(None, images, -1))
        expected.scaled("first_component", component.abs(), torch.abs)
        monkeypatch.setattr(patch_memory, "foreground", lambda patches: kept[: len(patches)])
    method.prepare(Given(model, references))  # type: ignore[arg-type]
    if settings["masking_of_references"]:
        method._hold(method.memory[kept_of], method.good)
    step = ImageStep(model, images)
    maps = method.anomalies(step)
    assert step.compared is not None
    distances, scores = step.compared
    expected.scaled("distances", distances)
    expected.scaled("scores", scores)
    expected.scaled("maps", maps)
    masks = expected["masks"]
    settings.scaled("image_auroc", torch.tensor(auroc(scores, expected["labels"] > 0)), torch.tensor)
    settings.scaled("pixel_auroc", torch.tensor(auroc(maps.flatten(), masks.flatten())), torch.tensor)
    settings.scaled("au_pro_0.3", torch.tensor(region_overlap(maps, masks)), torch.tensor)


def _images(stored: Tensor) -> Tensor:
    return stored.permute(0, 3, 1, 2).float()


def test_images_against_all_others() -> None:
    """Which distances lie below the quantile hangs on the last bit: the stored ones are 6e-5 from those of fp64."""
    settings, expected = published.case("anomalydino_batch")
    tokens, method = expected["tokens"], PatchMemory(quantile=settings["quantile"])
    others = [torch.cat([*tokens[:place], *tokens[place + 1 :]]) for place in range(len(tokens))]
    memories = [torch.nn.functional.normalize(each, dim=-1) for each in others]
    distances = torch.cat([method.distances(own[None, None], each) for own, each in zip(tokens, memories, strict=True)])
    expected.relative("distances", distances[:, 0], within=2e-4)
    expected.scaled("scores", patch_memory.image_scores(distances))


def test_patchcore() -> None:
    settings, expected = published.case("patchcore")
    projected, first = expected["projected"], int(expected["picked"][0])
    picked = patch_memory.coreset(projected, round(settings["ratio"] * len(projected)), first)
    expected.equal("picked", picked)
    for count in (1, 3, 9):
        method = PatchMemory(metric="euclidean", weighed=None if count == 1 else count)
        distances, scores = method.compared(expected["test"][:, None], expected["bank"][picked])
        expected.scaled("patch_scores", distances[:, 0])
        expected.scaled(f"scores.{count}", scores)
    _, nearest = torch.cdist(expected["test"], expected["bank"][picked]).min(-1)
    expected.equal("locations", nearest)


def test_thresholds_and_normalised_scores() -> None:
    """The published threshold is the lowest score that is called abnormal, and ours lies below it, above the next."""
    _, expected = published.case("thresholds")
    for name in ("both", "overlap", "abnormal_only"):
        scores, labels = (expected[f"{name}.{part}"] for part in ("scores", "labels"))
        cut = patch_memory.best_f1(scores[labels == 0], scores[labels == 1])
        expected.scaled(f"{name}.threshold", scores[scores > cut].min())
    good = expected["normal_only.scores"]  # of good images alone, the largest score, which promises 1 / (n + 1)
    method = PatchMemory(false_alarms=1 / (len(good) + 1))
    method._hold(good[:, None], good.expand(2, -1))
    cut = method.threshold()
    assert cut is not None
    expected.scaled("normal_only.threshold", cut)
    expected.equal("normal_only.decided", good > cut)
    expected.equal("normal_only.labels", torch.zeros(len(good)))
    for name in ("both", "overlap", "normal_only", "abnormal_only"):  # a score at the threshold does not pass it
        scores = expected[f"{name}.scores"]
        found = patch_memory.normalised(scores, expected[f"{name}.threshold"], *scores.aminmax())
        expected.scaled(f"{name}.normalised", found)
        expected.equal(f"{name}.decided", found > 0.5)

"""A memory of patches of good images: what it remembers, its thresholds and their promises, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import tiny_vision
import torch
from PIL import Image
from torch import Generator, Tensor

import adapt
from adapt import AdaptError
from adapt.data import Item, load
from adapt.data.decoding.images import open_image
from adapt.data.decoding.masks import check_masks
from adapt.engine import vision
from adapt.evaluation.evaluate import evaluate
from adapt.formats.export import export, forms
from adapt.methods import PatchMemory, patch_memory

CLASSES = ("normal", "abnormal")


def trained(images: int = 4, apart: int = 0, backbone: adapt.Backbone | None = None, **settings: Any) -> Any:
    """A memory of some pieces of the bundled product, and what its training told."""
    split = load("emoji-product")
    model: Any = adapt.wrap(backbone or tiny_backbones.backbone("open_clip"), PatchMemory(**settings), CLASSES)
    val = split.train[images : images + apart]
    result = adapt.fit(model, split.train[:images], val_set=val, progress=False)
    return model, result.metrics["memory"]


def test_a_remembered_image_is_as_good_as_can_be_and_a_strange_one_is_found() -> None:
    model, told = trained(4)
    assert (told["images"], told["patches"], told["bytes"]) == (4, 4 * 16, 4 * 16 * 192 * 2)
    known, *_ = load("emoji-product").train
    strange = Image.effect_noise((64, 64), 90).convert("RGB")
    good, bad = model.predict([known, strange])
    assert (good.class_name, bad.class_name) == CLASSES
    assert (good.p_value, bad.p_value) == (1, pytest.approx(1 / 5))
    maps = model.anomaly_maps([known, strange])
    assert maps[0].max() < 1e-3  # of what half precision leaves of a distance of zero
    assert maps[1].max() > 0.05
    assert "p_value" in bad.plain()


def test_the_weight_of_a_score_falls_where_patches_around_the_nearest_are_near_too() -> None:
    """PatchCore's score by hand: at distance 3 from the nearest of the memory, and 4 from its only neighbour of two."""
    memory, patches = torch.tensor([[0.0, 0.0], [0.0, 1.0], [50.0, 0.0]]), torch.tensor([[[0.0, -3.0], [0.0, 0.0]]])
    distances = torch.tensor([[[3.0, 0.0]]])
    found = patch_memory.weighed_scores(distances, patches[:, None], memory, 2)
    assert found.tolist() == pytest.approx([3 * (1 - math.exp(3) / (math.exp(3) + math.exp(4)))])
    plain, weighed = (trained(4, metric="euclidean", weighed=each)[0] for each in (None, 9))
    assert (weighed.method.good[0] < plain.method.good[0]).all()
    assert torch.equal(weighed.method.good[1], plain.method.good[1])  # of maps, which stay


def test_one_image_decides_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, told = trained(1)
    assert told["good"] == []
    assert "nothing is decided" in told["promise"]
    [answer] = model.predict([load("emoji-product").test[0]])
    assert (answer.class_name, answer.label, answer.p_value) == ("none", None, None)
    assert (answer.probability, answer.top) == (0.0, (("none", 0.0),))
    images = load("emoji-product").test[:2]
    model.answers = replace(model.answers, pooling="logits")
    [item] = model.predict_items([images])
    assert (item.class_name, item.top, [each.probability for each in item.images]) == ("none", answer.top, [0, 0])
    with pytest.raises(AdaptError, match="decides nothing that could be explained: leave explain out"):
        model.decisive_maps([load("emoji-product").test[0]])
    monkeypatch.setattr(forms, "read_runtime", lambda folder: None)
    with pytest.raises(AdaptError, match="so that its logits decide nothing, and a page would call every image normal"):
        export(model, tmp_path / "page", "html")
    export(model, tmp_path / "graph", "torch")
    assert "call every image normal: read the map alone" in caplog.text
    with pytest.raises(AdaptError, match=r"false_alarms 0.5 needs 1 or more good images, .*there are 0: give more"):
        trained(1, false_alarms=0.5)


def test_images_kept_apart_give_the_threshold_of_split_conformal_prediction() -> None:
    model, told = trained(2, apart=9, false_alarms=0.2)
    assert len(told["good"]) == 9
    assert float(model.method.threshold()) == sorted(told["good"])[-2]  # k = ceil(10 * 0.8) = 8 of 9
    assert told["promise"].startswith("of 9 good images kept apart, 1 scored above")
    assert told["promise"].endswith("expect up to 2 false alarms in 10 good images of the same camera and light")


@pytest.mark.parametrize(
    ("images", "apart", "settings", "message"),
    [
        (4, 0, {"false_alarms": 0.19}, r"false_alarms 0.19 needs 5 or more good images, and there are 4: give more"),
        (9, 4, {"false_alarms": 0.1}, r"false_alarms 0.1 needs 9 or more good images, and there are 4"),
        (4, 0, {"coreset": 0.5, "false_alarms": 0.2}, "needs 4 or more good images among the validation images"),
    ],
)
def test_what_cannot_be_promised_is_refused(images: int, apart: int, settings: Any, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        trained(images, apart, **settings)


def test_a_probability_by_the_range_of_scores_is_linear_and_decides_alike(tmp_path: Path) -> None:
    items = [*load("emoji-product").test][:12]
    odds, linear = (trained(6, probability=each)[0] for each in ("odds", "range"))
    good, threshold = linear.method.good[0], linear.method.threshold()
    step = linear.step(torch.stack([linear.backbone.transform(train=False)(open_image(item.path)) for item in items]))
    with torch.no_grad():
        found = linear.method.logits(step).softmax(-1)[:, 1]
    expected = ((step.compared[1] - threshold) / (good.max() - good.min()) + 0.5).clamp(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert [each.class_name for each in linear.predict(items)] == [each.class_name for each in odds.predict(items)]
    again: Any = adapt.load(linear.save(tmp_path / "a.safetensors"), linear.backbone)
    assert torch.equal(again.method.ends, torch.stack(good.aminmax()))


def test_abnormal_images_give_the_threshold_of_the_best_f1(tmp_path: Path) -> None:
    split = load("emoji-product")
    strange = [item for item in split.test if item.answer != "normal"][:6]
    model: Any = adapt.wrap(tiny_backbones.backbone("open_clip"), PatchMemory(decide="f1"), CLASSES)
    items = [*split.train[:5], *(Item.of(path=item.path, label="abnormal", mask="") for item in strange)]
    told = adapt.fit(model, items, progress=False).metrics["memory"]
    assert (told["images"], len(told["good"])) == (5, 5)
    cut = float(model.method.threshold())
    scores = [float(patch_memory.image_scores(_distances(model, item)).amax()) for item in strange]
    assert cut == pytest.approx(float(patch_memory.best_f1(*map(torch.tensor, (told["good"], scores)))), abs=1e-6)
    found, false = sum(score > cut for score in scores), sum(score > cut for score in told["good"])
    assert f"has F1 {2 * found / (found + false + 6):.2f} (" in told["promise"]
    assert "on the 5 good and 6 abnormal images that it was chosen by" in told["promise"]
    called = [answer.class_name for answer in model.predict([item.path for item in strange])]
    assert called == ["abnormal" if score > cut else "normal" for score in scores]
    again = adapt.load(model.save(tmp_path / "a.safetensors"), model.backbone)
    assert torch.equal(again.method.cut, model.method.cut)
    assert float(told["promise"].split("(")[1].split(" to")[0]) < 2 * found / (found + false + 6)
    kept = [Item(item.paths, item.label) for item in split.train[:4]]
    apart: Any = adapt.wrap(tiny_backbones.backbone("open_clip"), PatchMemory(decide="f1"), CLASSES)
    of_both = adapt.fit(apart, items, val_set=kept, progress=False).metrics["memory"]
    assert "on the 4 good and 6 abnormal images" in of_both["promise"]  # those of training, which no memory has
    same = [*split.train[:3], *(Item.of(path=item.path, label="abnormal", mask="") for item in split.train[:3])]
    blind: Any = adapt.wrap(tiny_backbones.backbone("open_clip"), PatchMemory(decide="f1"), CLASSES)
    with pytest.raises(AdaptError, match="are no higher than good ones, and calling all abnormal is best"):
        adapt.fit(blind, same, progress=False)
    with pytest.raises(AdaptError, match="decide is f1, with 5 good images out of the memory and 0 abnormal"):
        trained(5, decide="f1")
    with pytest.raises(AdaptError, match=r"false_alarms is 0\.5, but decide is f1"):
        trained(5, decide="f1", false_alarms=0.5)


def _distances(model: Any, item: Item) -> Tensor:
    patches = vision.patch_features(model.backbone, _pixels(model, item)[None], -1)
    distances: Tensor = model.method.distances(patches, model.method.memory)
    return distances


def test_a_memory_that_does_not_only_grow_leaves_no_image_out() -> None:
    model, told = trained(4, coreset=0.25)
    assert told["good"] == []
    assert len(model.method.memory) == told["patches"] == 16
    assert model.method.threshold() is None


def test_a_quantile_compares_each_image_with_all_others() -> None:
    """Its mean is not of a memory that only grows, and so no image that is left out promises anything."""
    model, told = trained(4, quantile=0.1)
    assert (told["good"], model.method.threshold()) == ([], None)
    scores = list(told["left_out"].values())
    assert scores == sorted(scores, reverse=True)
    split = load("emoji-product")
    items = split.train[:4]
    assert {*told["left_out"]} == {item.kept_with for item in items}
    patches = [vision.patch_features(model.backbone, _pixels(model, item)[None], -1) for item in items]
    flat = [torch.nn.functional.normalize(each, dim=-1).flatten(0, 2) for each in patches]
    near = 1 - flat[0] @ torch.cat(flat[1:]).half().float().T
    expected = near.sort(-1).values[:, : int(0.1 * 3 * 16) - 1].mean(-1).max()
    assert told["left_out"][items[0].kept_with] == pytest.approx(float(expected), abs=1e-6)
    assert any(line.startswith("farthest from the others: ") for line in PatchMemory.lines({"memory": told}))
    for more in ({"coreset": 0.5}, {"megabytes": 1}, {"neighbours": 2}):
        with pytest.raises(AdaptError, match="leave out coreset, megabytes and neighbours"):
            PatchMemory(quantile=0.1, **more)
    with pytest.raises(AdaptError, match="as a coreset or a quantile leaves none out, and there are 0"):
        trained(4, quantile=0.1, false_alarms=0.5)


def test_a_memory_takes_no_more_than_its_megabytes() -> None:
    whole, _ = trained(4)
    model, told = trained(4, megabytes=20 * 192 * 2 / 2**20)
    assert (told["patches"], told["bytes"], told["good"]) == (20, 20 * 192 * 2, [])
    assert torch.equal(model.method.memory, whole.method.memory[patch_memory.coreset(whole.method.memory.float(), 20)])
    model, told = trained(4, megabytes=1)
    assert torch.equal(model.method.memory, whole.method.memory)
    assert len(told["good"]) == 4


def test_images_of_one_group_leave_the_memory_together() -> None:
    split = load("emoji-product")
    pairs = [Item(item.paths, item.label, group=str(number // 2)) for number, item in enumerate(split.train[:6])]
    model: Any = adapt.wrap(tiny_backbones.backbone("open_clip"), PatchMemory(), CLASSES)
    metrics = adapt.fit(model, pairs, progress=False).metrics
    assert len(metrics["memory"]["good"]) == 3
    alone: Any = adapt.wrap(tiny_backbones.backbone("open_clip"), PatchMemory(), CLASSES)
    adapt.fit(alone, pairs[2:], progress=False)
    patches = vision.patch_features(alone.backbone, torch.stack([_pixels(alone, item) for item in pairs[:2]]), -1)
    expected = patch_memory.image_scores(alone.method.distances(patches, alone.method.memory)).amax()
    assert metrics["memory"]["good"][0] == pytest.approx(float(expected), abs=1e-6)


def _pixels(model: Any, item: Item) -> Tensor:
    pixels: Tensor = model.transform()(open_image(item))
    return pixels


def worlds(kind: str, count: int, images: int, draws: Generator) -> Tensor:
    """Patches `(count, images, 8, 4)` of images of one kind: parts of their own, parts of a few kinds, or skewed."""
    noise = torch.randn(count, images, 8, 4, generator=draws)
    if kind == "kinds":
        return noise / 4 + torch.randint(0, 3, (count, images, 1, 1), generator=draws)
    if kind == "skewed":
        return noise * torch.randn(count, images, 1, 1, generator=draws).exp()
    return noise + torch.randn(count, images, 1, 4, generator=draws)


@pytest.mark.parametrize("kind", ["own", "kinds", "skewed"])
@pytest.mark.parametrize(("images", "place"), [(2, 1), (4, 1), (8, 1), (8, 2), (16, 3)])
def test_images_left_out_promise_what_they_hold(kind: str, images: int, place: int) -> None:
    """The image to come passes the m-th largest score with a probability of at most (2m - 1) / (n + 1)."""
    count, draws = 4000, Generator().manual_seed(images + place)
    world = worlds(kind, count, images + 1, draws)
    flat = world.flatten(1, 2)
    table = torch.cdist(flat, flat).unflatten(2, (images + 1, 8)).amin(-1)  # of each patch to each image
    table = table.unflatten(1, (images + 1, 8)).masked_fill(torch.eye(images + 1).bool()[:, None], math.inf)
    good = table[:, :images, :, :images].amin(-1).amax(-1)
    new = table[:, images, :, :images].amin(-1).amax(-1)
    bound = (2 * place - 1) / (images + 1)
    assert patch_memory.rank(bound, images, left_out=True) == place
    alarms = new > good.sort(descending=True).values[:, place - 1]
    error = 3 * math.sqrt(bound * (1 - bound) / count)
    assert alarms.float().mean() < bound + error
    assert alarms.float().mean() > (place - 0.5) / (images + 1) - error  # and gives no more away than it must


def test_the_rank_of_a_threshold() -> None:
    ranks = [patch_memory.rank(share, 19, left_out) for share in (0.04, 0.05, 0.1, 0.15, 0.2) for left_out in (0, 1)]
    assert ranks == [0, 0, 1, 1, 2, 1, 3, 2, 4, 2]


@pytest.mark.parametrize("left_out", [False, True])
def test_an_image_is_abnormal_where_its_p_value_is_at_most_the_false_alarms(left_out: bool) -> None:
    method = PatchMemory(false_alarms=0.2, rows=1, scores=19, left_out=left_out)
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), method, ("bad", "normal", "worse"))
    method.good = torch.rand(2, 19, generator=Generator().manual_seed(0))
    step = adapt.methods.base.ImageStep(model, torch.zeros(40, 3, 32, 32))
    scores = torch.cat([torch.rand(21, generator=Generator().manual_seed(1)), method.good[0]])
    step.compared = scores[:, None, None], scores
    flagged = method.logits(step).argmax(-1) != 1
    assert (flagged == (method.p_values(step) <= 0.2 + 1e-6)).all()
    assert flagged.any()
    assert not flagged.all()


@pytest.mark.parametrize("kind", ["dinov2_with_registers", "timm_vit", "timm_mean", "siglip", "timm_convnext"])
def test_patches_of_backbones_of_images_alone(kind: str) -> None:
    backbone: Any = tiny_vision.backbone(kind)
    pixels = torch.randn(2, 3, 32, 32, generator=Generator().manual_seed(0))
    found = vision.patch_features(backbone, pixels, -1 if kind != "timm_convnext" else -2)
    rows = {"dinov2_with_registers": 4, "timm_convnext": 2}.get(kind, 2)
    assert found.shape[:3] == (2, rows, rows)
    mixed = pixels.clone()
    mixed[:, :, :, 16:] = 0
    changed = (vision.patch_features(backbone, mixed, 0) - vision.patch_features(backbone, pixels, 0)).norm(dim=-1)
    columns = changed.shape[2]
    assert changed[:, :, columns // 2 :].mean() > 2 * changed[:, :, : columns // 2].mean()
    with pytest.raises(AdaptError, match="block is 9, but the images pass"):
        adapt.wrap(backbone, PatchMemory(block=9), CLASSES)


def test_a_backbone_without_patches_is_refused() -> None:
    for backbone in map(tiny_vision.backbone, ("convnext", "radio", "last")):
        with pytest.raises(AdaptError, match="has no patch features: use a ViT, or a convolutional network of timm"):
            adapt.wrap(backbone, PatchMemory(), CLASSES)


def test_training_and_maps_on_a_backbone_of_images_alone(tmp_path: Path) -> None:
    split = load("emoji-product")
    model, told = trained(4, backbone=tiny_vision.backbone("timm_vit"), rotate=True)
    assert told["patches"] == 4 * 8 * 4
    scores = evaluate(model, split.test[:8], workers=0)
    assert {"false_alarms", "found", "image_auroc", "pixel_auroc"} <= scores.figures().keys()
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), model.backbone)
    assert torch.equal(loaded.anomaly_maps(split.test[:2]), model.anomaly_maps(split.test[:2]))


def test_an_object_is_apart_from_its_background() -> None:
    draws = Generator().manual_seed(0)
    ground, thing = torch.randn(2, 8, generator=draws)
    inside = torch.zeros(1, 12, 14, dtype=torch.bool)
    inside[:, 3:8, 3:9] = True
    patches = torch.where(inside[..., None], thing, ground) + 0.1 * torch.randn(1, 12, 14, 8, generator=draws)
    grown = torch.zeros_like(inside)
    grown[:, 2:9, 2:10] = True
    assert torch.equal(patch_memory.foreground(patches), grown)
    assert torch.equal(patch_memory.foreground(-patches), grown)
    method = PatchMemory(mask="object")
    distances = method.distances(patches, torch.nn.functional.normalize(ground[None], dim=-1))
    assert (distances[~grown] == 0).all()
    assert (distances[inside] > 0).all()


def test_good_images_alone_are_a_data_set(tmp_path: Path) -> None:
    for number, item in enumerate(load("emoji-product").train[:5]):
        open_image(item).save(tmp_path / f"{number}.png")
    split = load(f"defects:{tmp_path}")
    assert (len(split.train), split.val, split.test, split.class_names) == (5, (), (), CLASSES)
    assert {item.answer for item in split.train} == {"normal"}


def test_the_product_is_one_drawing_varied() -> None:
    split = load("emoji-product")
    spoilt = [item for item in split.test if item.label.files]
    assert (len(split.train), len(split.val), len(split.test), len(spoilt)) == (20, 0, 40, 20)
    pictures = torch.stack(
        [
            _pixels(adapt.wrap(adapt.load_backbone("mini-clip", "cpu"), PatchMemory(), CLASSES), item)
            for item in split.train[:4]
        ]
    )
    off = (pictures[1:] - pictures[0]).abs().mean()
    assert 0 < off < 0.5
    check_masks(spoilt[:4])
    assert load("emoji-product").fingerprint == split.fingerprint
    assert load("emoji-product@fluent-3d").train[0].domain == "fluent-3d"

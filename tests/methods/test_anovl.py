"""Where images look damaged: what is said of states, maps of patches, learning on one image, and masks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_backbones
import torch
import torch.nn.functional as F
from checks import scaled
from PIL import Image
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, methods
from adapt.data import Item, Split, checks, load, read_csv, read_defect_folder
from adapt.data.decoding.masks import blank_masks, check_masks, marks_none, mask_of
from adapt.engine import vision
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.maps import MapScores, auroc, region_overlap
from adapt.methods.base.traits import normal_label
from adapt.prompts import of_text
from adapt.recipe import read_recipe
from adapt.training.run_recipe import run_recipe

STATES = ("normal", "abnormal")


def wrapped(kind: str = "open_clip", **settings: object) -> AdaptedModel:
    return adapt.wrap(tiny_backbones.backbone(kind), methods.AnoVL(**settings), STATES).eval()


def test_without_smoothing_a_corner_of_the_map_is_its_patch(images: Tensor) -> None:
    model = wrapped(smoothing=1)
    maps = model.logits_and_maps(images)[1]
    assert maps.shape == (len(images), *images.shape[-2:])
    patches = F.normalize(vision.local_features(model.backbone, images)[0], dim=-1)
    expected = (patches @ F.normalize(model.class_features(), dim=-1).T).softmax(-1)[..., 1]
    for corner in (0, -1):
        assert torch.allclose(maps[:, corner, corner], expected[:, corner, corner].detach(), atol=1e-6)


def test_the_side_stream_leaves_the_features_of_images_as_they_are(images: Tensor) -> None:
    model = wrapped()
    before = model.backbone.encode_image(images)
    vision.local_features(model.backbone, images)
    assert torch.equal(model.backbone.encode_image(images), before)


@pytest.mark.parametrize("kind", ["open_clip", "hf_clip"])
def test_one_pass_gives_the_class_and_the_map(kind: str, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = wrapped(kind), []
    alone = model(images)
    entered = vision.entered

    def counted(*arguments: Any) -> Tensor:
        passes.append(len(arguments[2]))
        return entered(*arguments)

    monkeypatch.setattr(vision, "entered", counted)
    logits, _ = model.logits_and_maps(images)
    assert passes == [len(images)]
    assert scaled(logits, alone) < 1e-5


def test_a_step_at_test_time_changes_maps_and_no_parameter_and_each_image_alone(images: Tensor) -> None:
    learning = wrapped(steps=2, lr=0.05)
    with torch.inference_mode():
        together = learning.logits_and_maps(images)[1]
        alone = torch.cat([learning.logits_and_maps(image[None])[1] for image in images])
    assert torch.allclose(together, alone, atol=1e-6)
    assert (together - wrapped().logits_and_maps(images)[1]).abs().max() > 1e-3
    assert not learning.method.state_dict()


def test_states_are_said_of_the_object() -> None:
    method = methods.AnoVL(object="screw", states={"normal": ["clean {}"], "abnormal": ["rusty {}", "{} with rust"]})
    tokenizer = tiny_backbones.backbone("open_clip").tokenizer
    assert [len(method.prompts(tokenizer, name)) for name in (*STATES, "bent")] == [66, 132, 66]
    assert method.prompts(tokenizer, "bent")[0] == of_text(tokenizer, "a cropped industrial photo of the bent screw")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smoothing": 2}, "smoothing.*an odd number is expected"),
        ({"states": {"normal": ["clean"]}}, "has no {}: write {} for the object's name"),
    ],
)
def test_settings_that_draw_no_map_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        methods.AnoVL(**settings)


def test_without_a_normal_class_there_is_no_map(images: Tensor) -> None:
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.AnoVL(), ("good", "abnormal"))
    assert model(images).shape == (len(images), 2)
    with pytest.raises(AdaptError, match=r"no class is called 'normal'; .*Set method.normal"):
        model.anomaly_maps(list(images))
    assert normal_label(methods.AnoVL(normal="good"), ("bad", "good")) == 1


@pytest.mark.parametrize("kind", ["open_clip_resnet", "hf_siglip"])
def test_a_tower_without_a_class_token_gives_no_maps(kind: str, images: Tensor) -> None:
    with pytest.raises(AdaptError, match=r"has no patch features: .* Use a CLIP with a ViT"):
        wrapped(kind).logits_and_maps(images)


def test_other_methods_draw_no_maps(images: Tensor) -> None:
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.ZeroShot(), STATES)
    with pytest.raises(AdaptError, match="zero_shot classifies images and draws no anomaly maps"):
        model.anomaly_maps(list(images))


def test_areas_are_those_that_hands_count() -> None:
    assert auroc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True])) == 0.75
    assert auroc(torch.tensor([0.5, 0.5]), torch.tensor([False, True])) == 0.5
    assert auroc(torch.ones(2), torch.tensor([True, True])) is None
    masks = torch.zeros(1, 4, 5, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 2:, 2:4] = True  # two regions, of 1 and 4 pixels, and 15 intact ones
    assert region_overlap(masks.float(), masks) == 1.0
    small = torch.zeros(1, 4, 5)
    small[0, 0, 0] = 1.0  # one of both regions; then all pixels at once, found from a half to 1 as false goes 0 to 1
    assert region_overlap(small, masks) == pytest.approx((0.5 + 0.65) / 2)
    assert region_overlap(1 - masks.float(), masks) == pytest.approx(0.0)


def test_the_overlap_counts_regions_and_not_pixels() -> None:
    """Against the definition, threshold by threshold."""
    draws = torch.Generator().manual_seed(3)
    maps, masks = torch.rand(2, 6, 6, generator=draws), torch.zeros(2, 6, 6, dtype=torch.bool)
    masks[0, :2, :2] = masks[1, 4, 4] = masks[0, 5, 3:] = True
    regions = [(0, slice(0, 2), slice(0, 2)), (1, slice(4, 5), slice(4, 5)), (0, slice(5, 6), slice(3, 6))]
    points = [(0.0, 0.0)]
    for threshold in maps.flatten().sort(descending=True).values:
        said = maps >= threshold
        points.append((float(said[~masks].float().mean()), float(np.mean([said[r].float().mean() for r in regions]))))
    false, found = np.array(points).T
    grid = np.linspace(0, 0.3, 200001)
    at = np.searchsorted(false, grid, side="right") - 1
    share = (grid - false[at]) / np.maximum(false[at + 1] - false[at], 1e-12)
    curve = found[at] + share * (found[at + 1] - found[at])
    assert region_overlap(maps, masks) == pytest.approx(float(np.trapezoid(curve, grid)) / 0.3, abs=1e-4)


def picture(path: Path, size: tuple[int, int] = (32, 32), value: int = 200, box: tuple[int, ...] = ()) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = Image.new("L", size, 0 if box else value)
    if box:
        drawn.paste(value, box)
    drawn.save(path)
    return str(path)


@pytest.fixture
def screws(tmp_path: Path) -> Path:
    for place in ("train/good/0", "test/good/0", "test/bent/0"):
        picture(tmp_path / f"screw/{place}.png")
    picture(tmp_path / "screw/ground_truth/bent/0_mask.png", box=(4, 4, 12, 12))
    return tmp_path / "screw"


def test_a_folder_of_defects(screws: Path) -> None:
    split = load(f"defects:{screws}")
    assert (split.class_names, len(split.train), len(split.val), split.task.name) == (STATES, 1, 0, "maps")
    bent, good = split.test
    assert (bent.answer, bent.domain, good.answer, good.label.mask) == ("abnormal", "bent", "normal", "")
    assert bent.label.mask.endswith("ground_truth/bent/0_mask.png")
    scores = evaluate(wrapped(), split.test, workers=0)
    assert isinstance(scores, MapScores)
    assert {"image_auroc", "pixel_auroc", "pro", "accuracy"} <= scores.figures().keys()


def test_a_defect_without_a_mask_is_refused(screws: Path) -> None:
    (screws / "ground_truth/bent/0_mask.png").unlink()
    with pytest.raises(AdaptError, match="is an image of a defect without a mask: add it"):
        read_defect_folder(screws)


def test_a_folder_of_defects_without_masks_is_measured_by_images_alone(screws: Path) -> None:
    shutil.rmtree(screws / "ground_truth")
    (screws / "test").rename(screws / "Test")
    split = load(f"defects:{screws}")
    assert [(item.answer, item.label.mask) for item in split.test] == [("abnormal", ""), ("normal", "")]
    scores = evaluate(wrapped(), split.test, workers=0)
    assert {"image_auroc", "map_auroc"} == scores.figures().keys() & {"image_auroc", "map_auroc", "pixel_auroc", "pro"}


def test_maps_of_class_folders_are_compared_with_the_classes(screws: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both images are the same grey, so that the maps say nothing."""
    split = load(screws / "test")
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.AnoVL(normal="good"), split.class_names).eval()
    scores = evaluate(model, [*split.items()], workers=0)
    assert scores.figures()["map_auroc"] == 0.5
    assert "do not trust the maps" in [*scores.lines("2 images")][-1]
    unnamed = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.AnoVL(), split.class_names).eval()
    assert "map_auroc" not in evaluate(unnamed, [*split.items()], workers=0).figures()
    assert "draws no maps here: no class is called 'normal'; set method.normal" in caplog.text


def test_masks_of_some_defects_alone_are_refused(screws: Path) -> None:
    table = screws / "screws.csv"
    picture(screws / "test/bent/1.png")
    rows = ["test/bent/0.png,abnormal,test,ground_truth/bent/0_mask.png", "test/bent/1.png,abnormal,test,"]
    table.write_text("\n".join(["path,label,split,mask", "test/good/0.png,normal,test,", *rows]))
    with pytest.raises(AdaptError, match=r"bent/1.png' is of the class 'abnormal' and has no mask, but other images"):
        evaluate(wrapped(), read_csv(table).test, workers=0)


def test_a_csv_with_a_column_mask(screws: Path) -> None:
    table = screws / "screws.csv"
    lines = "path,label,split,mask\ntest/good/0.png,normal,test,\ntest/bent/0.png,abnormal,test,{}\n"
    table.write_text(lines.format("ground_truth/bent/0_mask.png"))
    split = read_csv(table)
    assert [Path(item.label.mask).name for item in split.test] == ["", "0_mask.png"]
    before = split.fingerprint
    table.write_text(lines.format("other_mask.png"))
    assert read_csv(table).fingerprint != before


def test_masks_of_another_size_are_refused_by_name(tmp_path: Path) -> None:
    mask = picture(tmp_path / "m.png", (16, 32), box=(0, 0, 4, 4))
    item = Item.of(path=picture(tmp_path / "a.png"), label="abnormal", mask=mask)
    with pytest.raises(AdaptError, match=r"m.png' is 16 x 32 pixels, but its image .*a.png' is 32 x 32; expected the"):
        check_masks([item])
    with pytest.raises(AdaptError, match=r"m.png' is 16 x 32 pixels"):
        evaluate(wrapped(), [item], workers=0)


def test_blank_masks_of_damaged_images_are_problems_in_the_check_and_in_training(
    screws: Path, model_folder: Path
) -> None:
    for number in range(1, 5):
        picture(screws / f"test/bent/{number}.png", value=40 * number)
        picture(screws / f"ground_truth/bent/{number}_mask.png", value=0)
    source = f"defects:{screws}"
    looked = checks.look(source, *checks.read_leniently(source, None))
    blank = [finding.line.replace(f"{screws}/", "") for finding in checks.found_in(looked) if finding.stops]
    assert blank == [
        f"the mask 'ground_truth/bent/{number}_mask.png' marks no pixel, but its image 'test/bent/{number}.png' is of "
        "the class 'abnormal'. Mark the defect, or remove the image from the data"
        for number in range(1, 5)
    ]
    for name in ("anovl", "zero_shot"):
        recipe = read_recipe(name, [f"backbone={model_folder}"], data=source)
        with pytest.raises(AdaptError, match=r"4 of 7 images .* and 1 more\. List all") as refused:
            run_recipe(recipe, None, progress=False)
        assert "/1_mask.png' marks no pixel, but its image" in str(refused.value)
    recipe = read_recipe("zero_shot", [f"backbone={model_folder}", "data.broken=skip"], data=source)
    assert run_recipe(recipe, None, progress=False).metrics["adapted"]["images"] == 2


def test_blank_masks_of_intact_images_are_none(tmp_path: Path) -> None:
    mask, blank = picture(tmp_path / "m.png", box=(0, 0, 4, 4)), picture(tmp_path / "blank.png", value=0)
    labels = [("good", blank), ("bent", mask), ("bent", blank), ("good", blank)]
    items = [Item.of(path=picture(tmp_path / f"{i}.png"), label=a, mask=b) for i, (a, b) in enumerate(labels)]
    is_blank = {path: marks_none(path) for path in (mask, blank)}
    assert is_blank == {mask: False, blank: True}
    assert not blank_masks(items[:2], is_blank)
    assert "2.png' is of the class 'bent'" in blank_masks(items, is_blank)[blank]
    assert not blank_masks(items, {mask: False})  # the other one could not be read


@pytest.mark.parametrize("value", [1, 255])
def test_a_mask_goes_where_its_image_goes(value: int, tmp_path: Path) -> None:
    """Of a wide image the middle is read, at half the size."""
    path = picture(tmp_path / "m.png", (128, 64), value, box=(32, 0, 64, 32))
    place = tiny_backbones.backbone("open_clip").preprocess.placing("nearest")
    mask = mask_of(Item.of(path="", label="abnormal", mask=path), place, (32, 32))
    assert mask.shape == (32, 32)
    assert mask[:16, :16].all()
    assert int(mask.sum()) == 256


def test_bundled_defects_are_where_their_masks_are() -> None:
    split = load("emoji-defects")
    assert not any(item.label.mask for item in split.train)
    spoilt = [item for item in split.test if item.label.mask]
    assert (len(split.test), len(spoilt)) == (694, 347)
    styles = [sum(item.domain == style for item in spoilt) for style in ("noto", "twemoji")]
    assert min(styles) > 60  # any style, not every other one
    check_masks(spoilt[:20])
    again: Split = load("emoji-defects")
    assert again.fingerprint == split.fingerprint


def test_a_mask_is_of_a_whole_image(screws: Path) -> None:
    table = screws / "screws.csv"
    line = '"test/bent/0.png#xywh=0,0,8,8",abnormal,test,ground_truth/bent/0_mask.png\n'
    table.write_text("path,label,split,mask\n" + line)
    with pytest.raises(AdaptError, match=r"line 2: .* is a region, but a mask is for a full image"):
        read_csv(table)


def test_what_maps_need_is_asked_before_any_image_is_encoded(screws: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = load(f"defects:{screws}")
    picture(screws / "ground_truth/bent/0_mask.png", (16, 32), box=(0, 0, 4, 4))
    monkeypatch.setattr("adapt.training.measures.before", lambda *_: pytest.fail("the baseline was measured"))
    with pytest.raises(AdaptError, match=r"0_mask.png' is 16 x 32 pixels"):
        adapt.fit(wrapped(), split.train, test_set=split.test, progress=False)


def test_which_method_is_best_for_classes_is_not_asked_of_maps() -> None:
    from adapt.choosing.candidates import candidates

    backbone, task = adapt.load_backbone("mini-clip"), load("emoji").task
    names = [each.name for each in candidates("emoji", {}, every=True, backbone=backbone, task=task)]
    assert "gda" in names
    assert "anovl" not in names


def test_what_is_said_of_no_class_is_refused_and_adapters_of_other_names_load(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="states has 'god', which is not a class; did you mean 'good'"):
        adapt.wrap(tiny_backbones.backbone("open_clip"), methods.AnoVL(states={"god": ["clean {}"]}), ("good", "bad"))
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.AnoVL(normal="good"), ("good", "bad"))
    path = model.save(tmp_path / "adapter.safetensors")
    again = adapt.load(path, model.backbone)
    assert torch.equal(again.class_features(), model.class_features())


def test_a_check_of_data_tells_of_masks_of_another_size(screws: Path) -> None:
    from adapt.data.check import broken_images

    assert broken_images(load(f"defects:{screws}").test) == {}
    small = picture(screws / "ground_truth/bent/0_mask.png", (16, 32), box=(0, 0, 4, 4))
    [problem] = broken_images(load(f"defects:{screws}").test).values()
    assert problem.startswith(f"the mask {small!r} is 16 x 32 pixels")

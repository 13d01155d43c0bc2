"""The watch: how often windows are an alarm and for what, what an adapter keeps of it, and where it is told."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from io import BytesIO
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.cli import main
from adapt.data import Split
from adapt.evaluation.watching import watch_of, windows_of
from adapt.formats import tensor_file
from adapt.formats.adapter import read_header
from adapt.models.watch import WINDOW, Watch, Windows, properties, summary
from adapt.serving.adapters import ServedAdapters
from adapt.serving.app import create_app

CENTRES = 2 * torch.randn(6, 32, generator=torch.Generator().manual_seed(5))
TINTS = torch.randn(6, 14, generator=torch.Generator().manual_seed(6))


def drawn(shares: Tensor, images: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return properties, features and labels of images of six classes, which differ in both."""
    labels = torch.multinomial(shares, images, replacement=True, generator=draw)
    noise = torch.randn(images, 46, generator=draw)
    features = CENTRES[labels] + 1.5 * noise[:, :32]
    return TINTS[labels] / 2 + noise[:, 32:], torch.nn.functional.normalize(features, dim=-1), labels


def alarms(watch: Watch, pixels: Tensor, features: Tensor, labels: Tensor) -> bool:
    return watch.compare(watch.look(pixels.double(), features, labels)).alarm


@pytest.mark.parametrize("images", [40, 400])
@pytest.mark.parametrize("look", ["pixels", "both"])
def test_false_alarms_are_rare_whatever_the_shares_of_the_classes(images: int, look: str) -> None:
    """One window in a hundred by the test's own count: at most 1.5 of a hundred over twenty draws of the training."""
    draw = torch.Generator().manual_seed(0)
    false, power = list[bool](), list[bool]()
    for _ in range(20):
        pixels, features, labels = drawn(torch.ones(6), images, draw)
        watch = Watch.of(pixels, features if look == "both" else None, labels, 6)
        for _ in range(20):
            shares = torch._sample_dirichlet(torch.ones(6), draw)
            window = drawn(shares, 64, draw)
            false.append(alarms(watch, *window))
            power.append(alarms(watch, window[0] + 1.4 * (torch.arange(14) == 3), *window[1:]))
    assert sum(false) / len(false) <= 0.015
    assert sum(power) / len(power) > 0.8


def pictures(kind: str, images: int, draw: torch.Generator) -> Tensor:
    """Pixels `(n, 3, 16, 16)` of 8-bit pictures of one source, where a backbone scales all channels alike."""
    coarse = torch.randn(images, 1, 8, 8, generator=draw)
    if kind == "one bit":
        levels = 255.0 * (torch.nn.functional.interpolate(coarse, 16) > 0)
    elif kind == "one colour each":
        levels = torch.randint(256, (images, 3, 1, 1), generator=draw).float()
    elif kind == "one colour":
        levels = torch.tensor([30.0, 120.0, 200.0])[:, None, None]
    else:
        levels = 128 + 40 * torch.nn.functional.interpolate(coarse, 16, mode="bilinear")
    return levels.expand(images, 3, 16, 16).round().clamp(0, 255) / 127.5 - 1


def looked_at(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Properties, features and labels of pictures."""
    pooled = torch.nn.functional.avg_pool2d(pixels, 4).flatten(1) + 0.5
    found = torch.cat([properties(each) for each in pixels.split(32)])  # in batches, which differ from one by rounding
    return found, torch.nn.functional.normalize(pooled, dim=-1), torch.zeros(len(pixels)).long()


SHIFTED = {
    "without blue": lambda pixels: pixels.minimum(torch.tensor([1.0, 1.0, -1.0])[:, None, None]),
    "dark": lambda pixels: pixels * 0.5 - 0.5,
    "noisy": lambda pixels: pixels + 0.1 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(3)),
}


@pytest.mark.parametrize("kind", ["grey", "one bit", "one colour each", "one colour"])
def test_properties_that_never_vary_raise_no_alarm(kind: str) -> None:
    """A thousand windows of four kinds of images that differ in few properties, whose stored means are rounded."""
    draw, false, seen = torch.Generator().manual_seed(0), 0, dict.fromkeys(SHIFTED, 0)
    for images in (40, 100, 160, 400, 1000):
        made = Watch.of(*looked_at(pictures(kind, images, draw)), 1)
        watch = Watch.from_tensors(made.tensors(), "an adapter")
        later = [each.split(64) for each in looked_at(pictures(kind, 50 * 64, draw))]
        false += sum(alarms(watch, *window) for window in zip(*later, strict=True))
        for shift, change in SHIFTED.items():
            seen[shift] += alarms(watch, *looked_at(change(pictures(kind, 64, draw))))
    assert false <= 250 * 0.01
    assert seen == dict.fromkeys(SHIFTED, 5)


def test_other_contents_are_seen_by_the_features() -> None:
    draw = torch.Generator().manual_seed(1)
    watch = Watch.of(*drawn(torch.tensor([1.0, 1, 1, 0, 0, 0]), 200, draw), 6)
    assert not alarms(watch, *drawn(torch.tensor([1.0, 1, 1, 0, 0, 0]), 64, draw))
    pixels, _, labels = drawn(torch.tensor([1.0, 1, 1, 0, 0, 0]), 64, draw)
    _, features, _ = drawn(torch.tensor([0.0, 0, 0, 1, 1, 1]), 64, draw)
    change = watch.compare(watch.look(pixels.double(), features, labels))
    assert change.differs == ("other contents",)


@pytest.fixture(scope="module")
def emoji() -> Split:
    return adapt.data.load("emoji")


@pytest.fixture(scope="module")
def model(emoji: Split) -> adapt.AdaptedModel:
    few = emoji.few_shot(shots=4, seed=1).train
    model = adapt.wrap(adapt.load_backbone("mini-clip", "cpu"), methods.GDA(), emoji.class_names)
    adapt.fit(model, few, progress=False, watch=True)
    return model


CHANGED = {
    "less colourful": lambda image: image.convert("L").convert("RGB"),
    "darker": lambda image: image.point(lambda value: value * 0.5),
    "less fine detail": lambda image: image.resize((24, 24)).resize(image.size),
}


@pytest.mark.parametrize("differs", CHANGED)
def test_a_change_is_found_and_named(model: adapt.AdaptedModel, emoji: Split, differs: str) -> None:
    images = [adapt.data.open_image(item).convert("RGB") for item in emoji.test[:66]]
    windows, usual = Windows(model.watch), Windows(model.watch)
    for number, image in enumerate(images):
        windows.add(model.predict(CHANGED[differs](image))[0].sighting, f"{number}.png")
        usual.add(model.predict(image)[0].sighting)
    assert windows.last is not None
    assert usual.last is not None
    assert differs in windows.last.differs
    assert windows.last.strangest[0].endswith(".png")
    assert windows.last.strangest[0] in summary([windows.last])
    assert not usual.last.alarm
    assert usual.last.images == WINDOW
    assert summary([usual.last]) == "the 64 images look like the training images"


def test_copies_count_once(model: adapt.AdaptedModel, emoji: Split) -> None:
    """One picture sent a hundred times is no alarm, but for one unlike all, as of a covered camera."""
    for picture, alarm in ((adapt.data.open_image(emoji.test[0]), False), (Image.new("RGB", (72, 72)), True)):
        [prediction] = model.predict(picture)
        windows = Windows(model.watch)
        [compared] = chain(*(windows.add(prediction.sighting) for _ in range(64)))
        assert compared.alarm == alarm
        assert compared.images == 64


def test_neighbours_are_parted_and_groups_count_once(model: adapt.AdaptedModel, emoji: Split) -> None:
    items = sorted(emoji.test, key=lambda item: (item.answer, item.group))
    compared = windows_of(model, items)
    assert [window.images for window in compared] == [64, 64, 62]  # 190 concepts
    assert sum(window.alarm for window in compared) == 0
    concepts = [item for item in emoji.train if item.group in {each.group for each in emoji.train[:8]}]
    assert len(concepts) > 16
    with pytest.raises(AdaptError, match=r"there are \d+ groups of training images; a watch needs 16 or more"):
        watch_of(model, concepts)


@pytest.mark.full
@pytest.mark.at_length
def test_false_alarms_are_rare_where_training_images_share_concepts(emoji: Split) -> None:
    """A watch of whole concepts, with four drawings each, and windows of one drawing of other concepts each."""
    backbone, false = adapt.load_backbone("mini-clip", "cpu"), list[bool]()
    everything = [*emoji.train, *emoji.val, *emoji.test]
    groups = sorted({item.group for item in everything})
    for seed in range(10):
        Random(seed).shuffle(groups)
        model = adapt.wrap(backbone, methods.ZeroShot(), emoji.class_names)
        model.watch = watch_of(model, [item for item in everything if item.group in groups[:60]])
        others = [item for item in everything if item.group in groups[60:]]
        false += [window.alarm for window in windows_of(model, others)]
    assert len(false) > 50
    assert sum(false) / len(false) <= 0.02


def test_properties_of_plain_pictures() -> None:
    flat = torch.zeros(1, 3, 64, 64)
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1.0
    top = torch.zeros(1, 3, 64, 64)
    top[:, :, :32] = 1.0
    red = torch.zeros(1, 3, 64, 64)
    red[:, 0] = 1.0
    seen = properties(torch.cat([flat, stripes, top, red])).numpy()
    assert seen.shape == (4, 14)
    np.testing.assert_allclose(seen[0, [0, 2, 4, 7, 8, 10, 12, 13]], 0, atol=1e-9)
    assert seen[1, 0] == pytest.approx(0.5)
    assert seen[1, 7] == pytest.approx(np.log(101), abs=1e-4)  # across against down, at steps of one
    assert seen[2, 12] == pytest.approx(1.0)
    assert seen[3, 2] == pytest.approx(1.0)
    assert seen[3, 4] == pytest.approx(-0.5)


def test_predictions_are_the_same_with_a_watch(model: adapt.AdaptedModel, emoji: Split) -> None:
    images = [adapt.data.open_image(item) for item in emoji.test[:5]]
    watch, model.watch = model.watch, None
    plain = model.predict(images)
    model.watch = watch
    for one, other in zip(model.predict(images), plain, strict=True):
        assert [name for name, _ in one.top] == [name for name, _ in other.top]
        assert one.probability == pytest.approx(other.probability, abs=1e-6)
        assert other.sighting is None
        assert "strangeness" not in other.plain()
        assert one.plain()["strangeness"] == one.sighting.strangeness > 0  # type: ignore[union-attr]


def test_several_adapters_over_one_pass_see_what_each_sees(model: adapt.AdaptedModel, emoji: Split) -> None:
    lora = adapt.wrap(model.backbone, methods.LoRA(towers=["vision"], blocks=(2, 3)), emoji.class_names)
    lora.watch = watch_of(lora, emoji.few_shot(shots=2, seed=1).train)
    assert lora.watch.features is None  # its tower is edited
    images = [adapt.data.open_image(item) for item in emoji.test[:4]]
    for own, side_by_side in zip(
        (model, lora), zip(*adapt.predict_many([model, lora], images), strict=True), strict=True
    ):
        for one, other in zip(own.predict(images), side_by_side, strict=True):
            assert one.sighting is not None
            assert other.sighting is not None
            torch.testing.assert_close(one.sighting.numbers, other.sighting.numbers, atol=1e-5, rtol=1e-5)
            assert one.sighting.strangeness == pytest.approx(other.sighting.strangeness, abs=1e-4)


def test_an_adapter_keeps_its_watch(model: adapt.AdaptedModel, emoji: Split, tmp_path: Path) -> None:
    file = model.save(tmp_path / "watched.safetensors")
    header = read_header(file)
    assert header.watch
    assert header.format == (2, 1)
    loaded = adapt.load(file, device="cpu")
    one, other = (windows_of(each, emoji.test[:64]) for each in (model, loaded))
    assert one[0].p == pytest.approx(other[0].p, rel=0.05)
    model.watch, kept = None, model.watch
    without = model.save(tmp_path / "without.safetensors")
    model.watch = kept
    assert read_header(without).format == (2, 0)
    assert read_header(without).watch is None
    assert file.stat().st_size - without.stat().st_size < 32_000
    assert adapt.load(without, device="cpu").watch is None


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("watch.counts"),
        lambda tensors: tensors.update({"watch.pixels.means": torch.zeros(3, 14)}),
        lambda tensors: tensors.update({"watch.features.means": torch.zeros(24, 7, 2)}),
        lambda tensors: tensors["watch.features.variance"].zero_(),
        lambda tensors: tensors.update({"watch.more": torch.zeros(1)}),
    ],
)
def test_a_damaged_watch_is_refused(model: adapt.AdaptedModel, tmp_path: Path, change: Any) -> None:
    file = model.save(tmp_path / "adapter.safetensors")
    tensors, described = tensor_file.read(file), tensor_file.describe(file)
    change(tensors)
    tensor_file.write(tensors, file, described.metadata)
    with pytest.raises(AdaptError, match="has a damaged watch: fetch or train the adapter again"):
        adapt.load(file, device="cpu")


def test_what_cannot_be_watched_is_refused(model: adapt.AdaptedModel, emoji: Split) -> None:
    few = emoji.few_shot(shots=4, seed=1).train
    with pytest.raises(AdaptError, match="there are 9 training images; a watch needs 16 or more"):
        watch_of(model, few[:9])
    bag = [replace(item, paths=item.paths * 2) for item in few]
    with pytest.raises(AdaptError, match="items of several images"):
        adapt.fit(adapt.wrap(model.backbone, methods.GDA(), emoji.class_names), bag, progress=False, watch=True)
    chat = adapt.wrap(adapt.load_backbone("mini-vlm", "cpu"), methods.ZeroShot(), emoji.class_names)
    with pytest.raises(AdaptError, match=r"mini-vlm.*cannot be watched"):
        watch_of(chat, few)
    many = adapt.wrap(model.backbone, methods.GDA(), [f"class {number}" for number in range(481)])
    with pytest.raises(AdaptError, match="there are 481 classes; a watch takes at most 480"):
        watch_of(many, few)


def test_a_watch_takes_at_most_32_kilobytes() -> None:
    labels = torch.arange(960) % 480
    for features in (None, torch.randn(960, 512)):
        kept = Watch.of(torch.randn(960, 14), features, labels, 480).tensors()
        assert sum(tensor.numel() * tensor.element_size() for tensor in kept.values()) < 33_000


def test_the_commands_tell(model: adapt.AdaptedModel, emoji: Split, tmp_path: Path, capfd: Any) -> None:
    from click.testing import CliRunner

    file, grey = model.save(tmp_path / "adapter.safetensors"), tmp_path / "grey"
    grey.mkdir()
    for number, item in enumerate(emoji.test[:70]):
        adapt.data.open_image(item).convert("L").save(grey / f"{number:03}.png")
    result = CliRunner().invoke(main, ["predict", str(file), str(grey), "--csv"])
    assert "warning: the 64 images look unlike the training images (less colourful" in result.stderr
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert list(rows[0]) == ["image", "class", "probability", "strangeness"]
    assert len(rows) == 70
    told = CliRunner().invoke(main, ["eval", str(file), "--data", "emoji"]).stdout
    assert "0 of 3 windows of images look unlike the training images\n" in told
    windows = json.loads(CliRunner().invoke(main, ["eval", str(file), "--data", "emoji", "--json"]).stdout)["windows"]
    assert [each["images"] for each in windows] == [64, 64, 62]
    assert not any(each["alarm"] for each in windows)
    assert "compared with the training images" in CliRunner().invoke(main, ["inspect", str(file)]).stdout


def test_the_server_tells(model: adapt.AdaptedModel, emoji: Split, tmp_path: Path) -> None:
    file = model.save(tmp_path / "drawings.safetensors")
    with TestClient(create_app(ServedAdapters([str(file)], device="cpu"))) as client:
        for start in range(0, 64, 16):
            files = []
            for item in emoji.test[start : start + 16]:
                content = BytesIO()
                adapt.data.open_image(item).convert("L").save(content, "png")
                files.append(("images", ("grey.png", content.getvalue())))
            answer = client.post("/predict", files=files).json()
            assert answer["results"][0]["answers"][0]["strangeness"] > 0
            assert bool(answer["alarms"]) == (start == 48)
        assert answer["alarms"]["drawings"] == answer["alarms"]["drawings"].rstrip(", ")
        assert answer["alarms"]["drawings"].startswith("the 64 images look unlike the training images (")
        metrics = client.get("/metrics").text
    assert 'adapt_windows_total{adapter="drawings"} 1.0' in metrics
    assert 'adapt_alarms_total{adapter="drawings"} 1.0' in metrics
    assert float(metrics.partition('adapt_window_p{adapter="drawings"} ')[2].split()[0]) < 0.01


def test_training_keeps_a_watch_if_asked(tmp_path: Path) -> None:
    from click.testing import CliRunner

    command = ["train", "gda", "--data", "emoji", "--set", "backbone=mini-clip", "--shots", "2", "--device", "cpu"]
    for name, options in (("with", ["--watch"]), ("without", [])):
        result = CliRunner().invoke(main, [*command, *options, "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.stderr
    assert read_header(tmp_path / "with/adapter.safetensors").watch
    assert read_header(tmp_path / "without/adapter.safetensors").format == (2, 0)
    recipes = [(tmp_path / name / "recipe.yaml").read_text() for name in ("with", "without")]
    assert recipes[0].replace("watch: true\n", "") == recipes[1] != recipes[0]
    again = adapt.wrap(adapt.load_backbone("mini-clip", "cpu"), methods.GDA(), adapt.data.load("emoji").class_names)
    again.watch = adapt.load(tmp_path / "with", device="cpu").watch
    adapt.fit(again, adapt.data.load("emoji").few_shot(shots=2, seed=1).train, progress=False)
    assert again.watch is None  # of other images

"""EXIF orientation: people's own photographs are turned, published ones stay as stored, and a model keeps to what it
learned."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from strange_folder import TURNED, encoded, held, noise

import adapt
from adapt.backbones.preprocess import transform_key
from adapt.common.errors import AdaptError
from adapt.data import Item, checks, load, open_image, read_folder
from adapt.data.check import broken_images
from adapt.data.decoding.masks import check_masks, mask_of
from adapt.formats.adapter import check_reading, read_header
from adapt.formats.export import described
from adapt.models.many import SideBySide
from adapt.recipe import read_recipe
from adapt.training.run_recipe import run_recipe

SIZE = (64, 40)


def photograph(upright: Image.Image) -> bytes:
    """A file whose pixels lie on their side, and whose EXIF turns them to `upright`."""
    return encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=held(TURNED))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two classes of photographs that were all taken with a camera held upright."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "own" / name / f"{number}.png").write_bytes(photograph(picture(10 * label + number)))
    return tmp_path / "own"


def picture(number: int) -> Image.Image:
    """Bright above and dark below, or the other way round from ten on: what turning changes."""
    bright = Image.new("L", SIZE, 230)
    bright.paste(20, (0, 20, *SIZE) if number < 10 else (0, 0, 64, 20))
    return Image.blend(bright.convert("RGB"), noise(number, SIZE), 0.2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_picture_is_turned_as_viewers_turn_it(orientation: int, form: str) -> None:
    content = encoded(noise(1), form, exif=held(orientation), **({"lossless": True} if form == "WEBP" else {}))
    turned = open_image(content, turned=True)
    with Image.open(io.BytesIO(content)) as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    assert (turned.size, turned.tobytes()) == (expected.size, expected.tobytes())
    assert open_image(turned, turned=True).tobytes() == turned.tobytes()  # once
    assert open_image(open_image(content), turned=True).size == turned.size  # a picture that somebody else opened


def test_pictures_are_turned_before_a_region_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photograph(noise(1, SIZE)))
    region = f"{tmp_path}/a.png#xywh=50,4,14,30"
    assert open_image(region, turned=True).tobytes() == noise(1, SIZE).crop((50, 4, 64, 34)).tobytes()
    with pytest.raises(AdaptError, match=r"its image, which is 40 x 64 pixels: the box has x from 50 to 64"):
        open_image(region)
    for turned, broken in ((True, set()), (False, {region})):
        assert broken_images([Item.of(path=region, label="a", turned=turned)]).keys() == broken


def test_large_grey_pictures_are_turned_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapt.data.decoding.pictures._BAND", 64)
    wide = Image.new("I;16", (30, 20), 0x4000)
    assert open_image(encoded(wide, "PNG", exif=held(TURNED)), turned=True).size == (20, 30)


def test_a_mask_goes_with_its_image_as_it_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photograph(noise(1, SIZE)))
    Image.new("L", SIZE).save(tmp_path / "shown.png")
    Image.new("L", SIZE[::-1]).save(tmp_path / "stored.png")
    shown, stored = (
        Item.of(path=f"{tmp_path}/a.png", label="a", mask=f"{tmp_path}/{name}.png") for name in ("shown", "stored")
    )
    check_masks([shown], turned=True)
    check_masks([stored], turned=False)
    with pytest.raises(AdaptError) as refused:
        check_masks([stored], turned=True)
    assert str(refused.value) == (
        f"the mask '{tmp_path}/stored.png' is 40 x 64 pixels, but its image '{tmp_path}/a.png' is 64 x 40 turned "
        "upright; expected the same size. Draw the mask on the image as it is shown, or set data.exif=stored, or "
        "remove the mask from the data"
    )
    with pytest.raises(AdaptError, match=r"the same size\. Draw the mask on the image as it is, or remove the mask"):
        check_masks([shown], turned=False)
    mask = Image.new("L", SIZE)
    mask.putpixel((63, 0), 255)
    (tmp_path / "shown.png").write_bytes(photograph(mask))
    assert mask_of(shown, lambda grey: grey, SIZE[::-1], turned=True)[0, 63]


def test_data_of_ones_own_is_turned_and_named_data_is_not(own: Path, tmp_path: Path) -> None:
    listed = tmp_path / "own/list.csv"
    listed.write_text("path,label\n" + "".join(f"{name}/{i}.png,{name}\n" for name in ("cat", "dog") for i in range(6)))
    (tmp_path / "split_zhou_own.json").write_text(
        '{"train": [["cat/0.png", 0, "cat"], ["dog/0.png", 1, "dog"]], "val": [], "test": []}'
    )
    for source, root in ((own, None), (listed, None), (tmp_path / "split_zhou_own.json", own)):
        assert load(source, root).turned, source
    assert read_folder(own).turned
    assert not load("emoji").turned
    assert not load("emoji-labels").turned
    assert read_recipe("zero_shot", data=str(own)).data.load().turned
    assert not read_recipe("zero_shot", ["data.exif=stored"], str(own)).data.load().turned
    assert read_recipe("zero_shot", ["data.exif=turned"], "emoji").data.load().turned


def test_published_sets_are_as_stored(published_root: Path) -> None:
    for name in ("eurosat", "fgvc_aircraft", "imagenet_a"):
        assert not load(name, published_root).turned


def test_features_of_turned_images_have_a_key_of_their_own() -> None:
    backbone = adapt.load_backbone("mini-clip")
    for train in (True, False):
        stored, turned = backbone.transform(train), backbone.turning(True).transform(train)
        assert type(stored).__name__ == ("Compose" if train else "Pillow")
        assert None not in (transform_key(stored), transform_key(turned))
        assert transform_key(stored) != transform_key(turned)
    assert backbone.reading()["turned"] is False
    assert backbone.turning(True).reading() == backbone.reading() | {"turned": True}
    assert backbone.turning(True).turning(False).sees == backbone.sees


@pytest.fixture
def probe() -> Any:
    def trained(own: Path, out: Path, *overrides: str) -> Path:
        run_recipe(
            read_recipe(
                "linear_probe",
                ["backbone=mini-clip", "device=cpu", "data.shots=null", "method.strength=1000", *overrides],
                str(own),
            ),
            out,
            False,
        )
        return out / "adapter.safetensors"

    return trained


def test_an_adapter_keeps_to_what_it_learned(own: Path, probe: Any, tmp_path: Path) -> None:
    paths = {}
    for number in (3, 13):
        paths[number] = tmp_path / f"{number}.png", tmp_path / f"{number}_rotated.png"
        paths[number][0].write_bytes(photograph(picture(number)))
        picture(number).save(paths[number][1])
    backbone = adapt.load_backbone("mini-clip")
    before = dict(vars(backbone))
    turned = adapt.load(probe(own, tmp_path / "turned"), backbone)
    stored = adapt.load(probe(own, tmp_path / "stored", "data.exif=stored"), backbone)
    assert {name: vars(backbone)[name] for name in before} == before  # the user's own backbone serves both
    for number, name in ((3, "cat"), (13, "dog")):
        file, rotated = turned.predict(list(paths[number]), features=True)
        assert file == rotated
        assert file.class_name == name
        assert torch.equal(file.features, rotated.features)
        lying, _ = stored.predict(list(paths[number]), features=True)
        assert lying.class_name == name  # it learned from such
        assert not torch.allclose(lying.features, file.features, atol=1e-3)
        many = adapt.predict_many([stored, turned], [paths[number][0]], features=True)
        assert torch.allclose(many[0][0].features, lying.features, atol=1e-6)
        assert torch.allclose(many[0][1].features, file.features, atol=1e-6)
    assert SideBySide([turned, stored]).turnings == {True, False}


def test_a_header_says_which_it_learned_from(own: Path, probe: Any, tmp_path: Path) -> None:
    adapters = probe(own, tmp_path / "turned"), probe(own, tmp_path / "stored", "data.exif=stored")
    read = [read_header(adapter).preprocess["turned"] for adapter in adapters]
    assert read == [True, False]
    together = adapt.load_many(adapters)
    assert [model.backbone.preprocess.turned for model in together] == read
    assert together[0].backbone.model is together[1].backbone.model  # loaded once
    backbone = adapt.load_backbone("mini-clip")
    with pytest.raises(AdaptError, match="trained with the preprocessing"):
        check_reading({"size": 64, "turned": True}, backbone, "other.safetensors")


def test_an_export_says_how_photographs_are_read() -> None:
    for turned in (True, False):
        model = adapt.wrap(adapt.load_backbone("mini-clip").turning(turned), adapt.methods.ZeroShot(), ["cat", "dog"])
        assert described(model, "onnx", "model.onnx", int8=False)["preprocess"]["turned"] is turned


def test_fit_in_python_follows_the_data(own: Path) -> None:
    backbone, split = adapt.load_backbone("mini-clip"), load(own)
    for data, turned in ((split, True), (split.turning(False), False)):
        model = adapt.wrap(backbone, adapt.methods.LinearProbe(strength=1.0), data.class_names)
        adapt.fit(model, data.train, data.test, progress=False)
        assert model.backbone.preprocess.turned is turned
    assert not backbone.preprocess.turned


def test_the_check_says_how_many_are_turned(own: Path) -> None:
    for turned, words in (
        (True, "12 files are turned upright by EXIF (data.exif=stored takes them as they are stored): "),
        (
            False,
            "12 files are stored sideways or mirrored by EXIF, and taken as stored, as published (data.exif=turned ",
        ),
    ):
        split = load(own).turning(turned)
        notes = [finding.line for finding in checks.found_in(checks.look(str(own), split)) if finding.list == "turned"]
        assert len(notes) == 1
        assert notes[0].startswith(words)

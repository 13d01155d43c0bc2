"""The fifteen data sets of the papers, each read from a miniature in its published layout."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import miniatures
import pytest
from checks import numbers

from adapt import Backbone
from adapt.common.errors import AdaptError
from adapt.data import Split, load
from adapt.data.readers import published
from adapt.prompts import from_template, with_context

# our name: CoOp's, classes, base and new half, images of train, val and test (papers.md), template
FACTS = {
    "imagenet": ("ImageNet", 1000, 500, 500, (1_281_167, 0, 50_000), "a photo of a {}."),
    "caltech101": ("Caltech101", 100, 50, 50, (4128, 1649, 2465), "a photo of a {}."),
    "oxford_pets": ("OxfordPets", 37, 19, 18, (2944, 736, 3669), "a photo of a {}, a type of pet."),
    "stanford_cars": ("StanfordCars", 196, 98, 98, (6509, 1635, 8041), "a photo of a {}."),
    "oxford_flowers": ("OxfordFlowers", 102, 51, 51, (4093, 1633, 2463), "a photo of a {}, a type of flower."),
    "food101": ("Food101", 101, 51, 50, (50_500, 20_200, 30_300), "a photo of {}, a type of food."),
    "fgvc_aircraft": ("FGVCAircraft", 100, 50, 50, (3334, 3333, 3333), "a photo of a {}, a type of aircraft."),
    "sun397": ("SUN397", 397, 199, 198, (15_880, 3970, 19_850), "a photo of a {}."),
    "dtd": ("DescribableTextures", 47, 24, 23, (2820, 1128, 1692), "{} texture."),
    "eurosat": ("EuroSAT", 10, 5, 5, (13_500, 5400, 8100), "a centered satellite photo of {}."),
    "ucf101": ("UCF101", 101, 51, 50, (7639, 1898, 3783), "a photo of a person doing {}."),
    "imagenet_v2": ("ImageNetV2", 1000, 500, 500, (0, 0, 10_000), "a photo of a {}."),
    "imagenet_sketch": ("ImageNetSketch", 1000, 500, 500, (0, 0, 50_889), "a photo of a {}."),
    "imagenet_a": ("ImageNetA", 200, 100, 100, (0, 0, 7500), "a photo of a {}."),
    "imagenet_r": ("ImageNetR", 200, 100, 100, (0, 0, 30_000), "a photo of a {}."),
}
every_set = pytest.mark.parametrize("name", FACTS)


def _sizes(split: Split) -> list[int]:
    return [len(split.train), len(split.val), len(split.test)]


def test_the_table_has_the_published_facts() -> None:
    table = {
        name: (each.coop_name, each.classes, -(-each.classes // 2), each.classes // 2, each.sizes, each.template)
        for name, each in published.sets().items()
    }
    assert table == FACTS


@every_set
def test_both_names_give_the_classes_template_and_halves(name: str, published_root: Path) -> None:
    registry, classes, base, new, sizes, template = FACTS[name]
    split = load(name, published_root)
    assert load(registry, published_root) == split
    assert (split.name, split.template, len(split.class_names)) == (name, template, classes)
    assert [len(split.only(half).class_names) for half in ("base", "new")] == [base, new]
    assert _sizes(split) == [
        classes if size else 0 for size in sizes
    ]  # one image of a class in each part that there is
    assert [item.path for item in split.items() if not os.path.isfile(item.path)] == []
    assert {item.answer for item in split.items()} == set(split.class_names)


def test_caltech_has_its_own_names_for_four_folders(published_root: Path) -> None:
    split = load("caltech101", published_root)
    assert split.class_names[:4] == ("face", "leopard", "motorbike", "airplane")
    assert [Path(item.path).parent.name for item in split.train[:4]] == ["Faces", "Leopards", "Motorbikes", "airplanes"]


def test_pets_lie_in_one_folder(published_root: Path) -> None:
    split = load("oxford_pets", published_root)
    assert split.class_names[5] == "breed_05"
    assert {Path(item.path).parent for item in split.items()} == {published_root / "oxford_pets/images"}


def test_cars_keep_two_folders_with_the_same_ids_apart(published_root: Path) -> None:
    split = load("stanford_cars", published_root)
    home = published_root / "stanford_cars"
    assert split.train[0].answer == split.class_names[13] == "2000 Audi Number 13"
    assert (split.train[0].path, split.test[0].path) == (f"{home}/cars_train/00014.jpg", f"{home}/cars_test/00014.jpg")
    assert split.root == str(home)
    assert numbers(split.few_shot(1, seed=1).train[:3], split.class_names) == [13, 0, 1]  # the order of the list


def test_flowers_keep_the_order_of_the_list_and_the_names_of_the_labels(published_root: Path) -> None:
    split = load("oxford_flowers", published_root)
    assert numbers(split.train[:3], split.class_names) == [76, 72, 87]
    assert (split.class_names[76], split.class_names[0]) == ("flower 25", "flower 101")


def test_sun_has_the_words_of_subfolders_in_front(published_root: Path) -> None:
    split = load("sun397", published_root)
    assert split.class_names[1] == "outdoor apartment_building"
    assert split.train[1].path.endswith("SUN397/a/apartment_building/outdoor/sun_1.jpg")


def test_textures_and_satellite_images_have_their_names(published_root: Path) -> None:
    assert load("dtd", published_root).class_names[0] == "polka-dotted"
    assert load("eurosat", published_root).class_names == tuple(miniatures.EUROSAT.values())


def test_ucf_is_read_from_middle_frames(published_root: Path) -> None:
    item = load("ucf101", published_root).test[1]
    assert item.path.endswith("UCF-101-midframes/Handstand_Pushups/v_HandStandPushups_g01_c01.jpg")
    assert item.answer == "Handstand_Pushups"


def test_aircraft_are_read_from_their_text_files(published_root: Path) -> None:
    split = load("fgvc_aircraft", published_root)
    assert split.class_names[:3] == ("707-320", "F/A-18", "Cessna 172")  # the order of variants.txt
    last = split.val[-1]
    assert (last.path, last.answer) == (str(published_root / "fgvc_aircraft/images/2000000.jpg"), "707-320")
    assert numbers(split.train[:2], split.class_names) == [99, 98]  # the order of images_variant_train.txt


def test_imagenet_is_numbered_by_wordnet_id_and_tested_on_its_validation_images(published_root: Path) -> None:
    split = load("imagenet", published_root)
    assert split.class_names[:2] == ("thing 0", "thing 1")
    synset = miniatures.SYNSETS[999]
    assert split.train[999].path.endswith(f"imagenet/images/train/{synset}/{synset}_train.JPEG")
    assert split.test[999].path.endswith(f"imagenet/images/val/{synset}/{synset}_val.JPEG")
    assert split.train[999].answer == split.test[999].answer == split.class_names[999]


def test_the_folders_of_v2_are_labels(published_root: Path) -> None:
    split = load("imagenet_v2", published_root)
    assert [Path(item.path).parent.name for item in split.test] == [str(label) for label in range(1000)]
    assert numbers(split.test, split.class_names) == list(range(1000))
    assert split.class_names == load("imagenet", published_root).class_names


@pytest.mark.parametrize(
    ("name", "synsets"), [("imagenet_a", miniatures.SUBSET), ("imagenet_r", miniatures.SYNSETS[600:800])]
)
def test_a_and_r_have_the_classes_that_there_are_folders_of(
    name: str, synsets: list[str], published_root: Path
) -> None:
    split = load(name, published_root)
    names = dict(zip(miniatures.SYNSETS, load("imagenet", published_root).class_names, strict=True))
    assert split.class_names == tuple(names[synset] for synset in synsets)
    assert [Path(item.path).parent.name for item in split.test] == synsets


def test_imagenets_repeated_names_are_told_apart_and_keep_the_published_prompt(
    published_root: Path, open_clip: Backbone
) -> None:
    names = load("imagenet", published_root).class_names
    assert [names[label] for label in miniatures.TWICE] == ["missile", "missile_", "sunglasses", "sunglasses_"]
    tokenizer = open_clip.tokenizer
    for one, other in (("missile", "missile_"), ("sunglasses", "sunglasses_")):
        for template in ("a photo of a {}.", "{} texture.", "a bad photo of the {}, too."):
            assert from_template(tokenizer, template, one) == from_template(tokenizer, template, other)
        assert with_context(tokenizer, "a photo of a", 4, one) == with_context(tokenizer, "a photo of a", 4, other)
        assert with_context(tokenizer, "", 16, one) == with_context(tokenizer, "", 16, other)


# ---- what is refused


@pytest.fixture
def copied(published_root: Path, tmp_path: Path) -> Path:
    """A root with three small data sets that a test may damage."""
    for folder in ("eurosat", "fgvc_aircraft", "imagenet-adversarial"):
        shutil.copytree(published_root / folder, tmp_path / folder)
    return tmp_path


def test_all_that_is_missing_is_named_with_what_to_fetch(copied: Path) -> None:
    (copied / "eurosat/split_zhou_EuroSAT.json").unlink()
    (copied / "eurosat/2750").rename(copied / "eurosat/EuroSAT_RGB")
    with pytest.raises(AdaptError) as caught:
        load("eurosat", copied)
    home = copied / "eurosat"
    assert str(caught.value) == (
        f"data 'eurosat': there is no folder {home}/2750 and no file {home}/split_zhou_EuroSAT.json. "
        "Fetch EuroSAT.zip and split_zhou_EuroSAT.json, as "
        "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md#eurosat says"
    )


def test_the_data_sets_own_folder_is_not_the_root(copied: Path) -> None:
    with pytest.raises(
        AdaptError, match=r"Give the folder that holds eurosat/ as root, not that folder itself\. Fetch"
    ):
        load("EuroSAT", copied / "eurosat")


def test_a_root_is_needed() -> None:
    with pytest.raises(
        AdaptError, match=r"'oxford_pets' needs a root: the folder that holds the published sets' own folders\."
    ):
        load("oxford_pets")


@pytest.mark.parametrize(("spec", "meant"), [("oxford_pet", "oxford_pets"), ("imagenet-a", "imagenet_a")])
def test_a_name_that_is_nearly_right(spec: str, meant: str, copied: Path) -> None:
    with pytest.raises(AdaptError, match=f"no data set this name; did you mean '{meant}'"):
        load(spec, copied)


def test_another_number_of_classes_is_refused(copied: Path) -> None:
    shutil.rmtree(copied / "imagenet-adversarial/imagenet-a" / miniatures.SUBSET[0])
    with pytest.raises(
        AdaptError, match=r"'imagenet_a' has 199 classes in .*; expected 200, as published\. Fetch imagenet-a.tar"
    ):
        load("imagenet_a", copied)


def test_a_folder_that_is_no_class(copied: Path) -> None:
    (copied / "imagenet-adversarial/imagenet-a/n99999999").mkdir()
    with pytest.raises(AdaptError, match=r"n99999999 in imagenet-a/ is not a class in classnames.txt"):
        load("imagenet_a", copied)


def test_a_variant_that_is_not_listed(copied: Path) -> None:
    listed = copied / "fgvc_aircraft/images_variant_val.txt"
    listed.write_text("1234567 Concorde\n" + listed.read_text())
    with pytest.raises(
        AdaptError,
        match=r"images_variant_val.txt' has the line '1234567 Concorde'; expected an image and a variant",
    ):
        load("fgvc_aircraft", copied)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda images: shutil.rmtree(images / "val" / "n10000000"), "images/val' lacks the class folders n10000000."),
        (lambda images: (images / "val" / "x").mkdir(), "images/val' should not have the class folders x."),
        (lambda images: (images / "val").rename(images / "v"), "there is no folder "),
    ],
)
def test_imagenet_with_other_folders(published_root: Path, tmp_path: Path, damage: object, message: str) -> None:
    images = tmp_path / "imagenet/images"
    for part in ("train", "val"):
        for synset in miniatures.SYNSETS[:8]:
            (images / part / synset).mkdir(parents=True)
    shutil.copy(published_root / "imagenet/classnames.txt", tmp_path / "imagenet")
    damage(images)  # type: ignore[operator]
    with pytest.raises(AdaptError, match=re.escape(message)):
        load("imagenet", tmp_path)

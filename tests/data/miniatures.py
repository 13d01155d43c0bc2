"""The fifteen published data sets in miniature: all their classes and the published layout, an image or two of each.

What is odd about a data set is kept: names that are not their folders', labels out of order, words put in front, stray
files, ids that two folders share.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}
SYNSETS = [f"n{10_000_000 + 37 * number}" for number in range(1000)]
TWICE = {657: "missile", 744: "missile", 836: "sunglasses", 837: "sunglasses"}
IMAGENET = [TWICE.get(number, f"thing {number}") for number in range(1000)]
SUBSET = SYNSETS[3::5]  # the 200 classes of ImageNet-A here; -R has others


def build(root: Path) -> Path:
    """All fifteen under `root`, which is returned."""
    _caltech(root / "caltech-101")
    _pets(root / "oxford_pets")
    _cars(root / "stanford_cars")
    _flowers(root / "oxford_flowers")
    _of_folders(root / "food-101", "Food101", "images", [f"pie_{i:03}" for i in range(101)])
    _of_folders(root / "dtd", "DescribableTextures", "images", ["polka-dotted", *(f"striped{i:02}" for i in range(46))])
    _of_folders(root / "eurosat", "EuroSAT", "2750", list(EUROSAT), list(EUROSAT.values()))
    _sun(root / "sun397")
    _ucf(root / "ucf101")
    _aircraft(root / "fgvc_aircraft")
    _imagenet(root)
    return root


def _picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 30, 30)).save(content, "PNG")
    return content.getvalue()


_CONTENT = _picture()


def _images(folder: Path, paths: Sequence[str]) -> None:
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_CONTENT)


def _split_file(folder: Path, registry: str, images: str, entries: Sequence[tuple[list[str], int, str]]) -> None:
    """`entries` are the train, val and test path of a class, its label and its name."""
    parts = {
        part: [[paths[number], label, name] for paths, label, name in entries]
        for number, part in enumerate(("train", "val", "test"))
    }
    _images(folder / images, [path for paths, _, _ in entries for path in paths])
    (folder / f"split_zhou_{registry}.json").write_text(json.dumps(parts))


def _of_folders(
    folder: Path, registry: str, images: str, classes: Sequence[str], names: Sequence[str] | None = None
) -> None:
    entries = [
        ([f"{name}/{name}_{i}.jpg" for i in (3, 1, 2)], label, (names or classes)[label])
        for label, name in enumerate(classes)
    ]
    _split_file(folder, registry, images, entries)


def _caltech(folder: Path) -> None:
    """Names that are not their folders', and two folders that are left out."""
    renamed = {"Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike", "airplanes": "airplane"}
    classes = [*renamed, *(f"object_{i:02}" for i in range(96))]
    _of_folders(folder, "Caltech101", "101_ObjectCategories", classes, [renamed.get(name, name) for name in classes])
    _images(folder / "101_ObjectCategories", ["BACKGROUND_Google/image_0001.jpg", "Faces_easy/image_0001.jpg"])


def _pets(folder: Path) -> None:
    """All images in one folder, among other files; names in lower case."""
    breeds = [f"Breed_{i:02}" for i in range(37)]
    entries = [([f"{name}_{i}.jpg" for i in (1, 2, 3)], label, name.lower()) for label, name in enumerate(breeds)]
    _split_file(folder, "OxfordPets", "images", entries)
    (folder / "images/Breed_00_1.mat").write_bytes(b"MATLAB")


def _cars(folder: Path) -> None:
    """Two folders with the same ids; the year in front; the first class in the list is 13."""
    entries = [
        ([f"cars_train/{label + 1:05}.jpg", f"cars_train/{label + 901:05}.jpg", f"cars_test/{label + 1:05}.jpg"],
         label, f"20{label % 13:02} Audi Number {label}")
        for label in [13, *(label for label in range(196) if label != 13)]
    ]  # fmt: skip
    _split_file(folder, "StanfordCars", "", entries)


def _flowers(folder: Path) -> None:
    """Labels in the order of image ids: 76, 72, 87, and so on."""
    order = [76, 72, 87, *(label for label in range(102) if label not in (76, 72, 87))]
    entries = [
        ([f"image_{100 * part + label:05}.jpg" for part in (1, 3, 5)], label, f"flower {101 - label}")
        for label in order
    ]
    _split_file(folder, "OxfordFlowers", "jpg", entries)


def _sun(folder: Path) -> None:
    """Folders in folders, whose words come first in the name."""
    places = ["abbey", "apartment_building/outdoor", *(f"place{i:03}" for i in range(395))]
    entries = [
        ([f"{place[0]}/{place}/sun_{i}.jpg" for i in (1, 2, 3)], label, " ".join(reversed(place.split("/"))))
        for label, place in enumerate(places)
    ]
    _split_file(folder, "SUN397", "SUN397", entries)


def _ucf(folder: Path) -> None:
    """The middle frame of each video; folder and file spell one class differently."""
    actions = ["Apply_Eye_Makeup", "Handstand_Pushups", *(f"Do_Action_{i:02}" for i in range(99))]
    entries = [
        ([f"{name}/v_{_file_name(name)}_g{i:02}_c01.jpg" for i in (8, 9, 1)], label, name)
        for label, name in enumerate(actions)
    ]
    _split_file(folder, "UCF101", "UCF-101-midframes", entries)


def _file_name(action: str) -> str:
    return "HandStandPushups" if action == "Handstand_Pushups" else action.replace("_", "")


def _aircraft(folder: Path) -> None:
    """No split file: lists of `IMAGE VARIANT`, and the variants in an order of their own."""
    variants = ["707-320", "F/A-18", "Cessna 172", *(f"A{300 + i}" for i in range(97))]
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")
    for number, part in enumerate(("train", "val", "test")):
        ids = [f"{1_000_000 * (number + 1) + label:07}" for label in range(100)]
        lines = [f"{image} {variants[label]}" for label, image in enumerate(ids)]
        (folder / f"images_variant_{part}.txt").write_text("\n".join(reversed(lines)) + "\n")
        _images(folder / "images", [f"{image}.jpg" for image in ids])


def _imagenet(root: Path) -> None:
    names = "".join(f"{synset} {name}\n" for synset, name in zip(SYNSETS, IMAGENET, strict=True))
    v2 = "imagenetv2-matched-frequency-format-val"
    images = {
        "imagenet": [f"images/{part}/{synset}/{synset}_{part}.JPEG" for part in ("train", "val") for synset in SYNSETS],
        "imagenetv2": [f"{v2}/{label}/0af3.jpeg" for label in range(1000)],
        "imagenet-sketch": [f"images/{synset}/sketch_0.JPEG" for synset in SYNSETS],
        "imagenet-adversarial": [f"imagenet-a/{synset}/0.1_fox.jpg" for synset in SUBSET],
        "imagenet-rendition": [f"imagenet-r/{synset}/art_0.jpg" for synset in SYNSETS[600:800]],
    }
    for folder, paths in images.items():
        _images(root / folder, paths)
        (root / folder / "classnames.txt").write_text(names)
    for stray in ("imagenet-adversarial/imagenet-a/README.txt", "imagenet-rendition/imagenet-r/README.txt"):
        (root / stray).write_text("What the folders are")

"""Write `adapt/data/emoji/emoji.zip`, the few-shot set: subgroups as classes, five styles, split by concept."""

import io
import json
import random
import zipfile
from pathlib import Path

from concepts import Concept, load
from PIL import Image
from render import Renders, on_white, open_renders
from sources import UNSEEN_STYLE

TARGET = Path(__file__).resolve().parents[3] / "adapt" / "data" / "emoji" / "emoji.zip"
SEED = 2309
SIDE = 64
STYLES = ["noto", "twemoji", "fluent-flat", "emojione", UNSEEN_STYLE]
SPLITS = {"train": 0.50, "val": 0.15, "test": 0.35}
MAX_CONCEPTS = 32  # of a class: the largest subgroups would otherwise take most of the file
MIN_TRAINING_IMAGES = 16
# Emoji One draws the insect as the game: byte for byte its drawing of "cricket game", a training image
MISDRAWN = {"emojione/1f997.png"}
# Subgroups of emoji-datasource whose members look like what they are called; the names are theirs, made readable.
CLASSES = {
    "animal-mammal": "animal mammal", "animal-bird": "animal bird", "animal-marine": "animal marine",
    "animal-bug": "animal bug", "plant-flower": "plant flower", "plant-other": "plant", "food-fruit": "food fruit",
    "food-vegetable": "food vegetable", "food-prepared": "food prepared", "food-asian": "food asian",
    "food-sweet": "food sweet", "drink": "drink", "place-building": "place building",
    "transport-ground": "transport ground", "transport-air": "transport air", "sky & weather": "sky and weather",
    "sport": "sport", "clothing": "clothing", "musical-instrument": "musical instrument", "tool": "tool",
    "household": "household", "office": "office", "face-concerned": "face concerned", "person-role": "person role",
}  # fmt: skip


def split_of(concepts: list[Concept]) -> dict[str, str]:
    """Concept code to split: each class is shuffled and cut, so that no concept is in two splits."""
    rng = random.Random(SEED)
    splits = {}
    for group in CLASSES:
        members = sorted(concept.code for concept in concepts if concept.group == group and len(concept.drawings) > 1)
        members = rng.sample(members, min(len(members), MAX_CONCEPTS))
        first, second = round(SPLITS["train"] * len(members)), round((SPLITS["train"] + SPLITS["val"]) * len(members))
        for place, code in enumerate(members):
            splits[code] = "train" if place < first else "val" if place < second else "test"
    return splits


def items_of(renders: Renders, concepts: list[Concept]) -> dict[int, dict]:
    """Row of a drawing to its entry: the classes' concepts, and all held-out ones, if need be without a class."""
    splits = split_of(concepts)
    items = {}
    for row, (number, style) in enumerate(zip(renders.concept, renders.style, strict=True)):
        concept = concepts[number]
        file = f"{style}/{concept.code}.png"
        if style not in STYLES or file in MISDRAWN or not (concept.code in splits or concept.held_out):
            continue
        items[row] = {
            "file": file,
            "concept": concept.name,
            "class": CLASSES[concept.group] if concept.code in splits else None,
            "style": str(style),
            "split": splits.get(concept.code, "test"),
            "held_out": concept.held_out,
        }
    return items


def check(items: list[dict]) -> None:
    """Refuse a set in which a class cannot give 16 shots over the seen styles."""
    for name in CLASSES.values():
        chosen = [item for item in items if item["class"] == name and item["split"] == "train"]
        count = sum(item["style"] != UNSEEN_STYLE for item in chosen)
        if count < MIN_TRAINING_IMAGES:
            raise ValueError(f"class {name!r} has {count} training images, {MIN_TRAINING_IMAGES} are needed")


def png(picture: Image.Image) -> bytes:
    """A palette of 128 colours: half the size, and no visible loss at 64 px."""
    buffer = io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save(work: Path) -> None:
    """Write the zip; members are stored, since PNG is compressed, with a fixed date, so that it is reproducible."""
    renders = open_renders(work)
    items = items_of(renders, load(work))
    check(list(items.values()))
    index = {"styles": STYLES, "classes": list(CLASSES.values()), "items": list(items.values())}
    files = {"index.json": json.dumps(index, indent=0).encode()}
    for row, item in items.items():
        files[item["file"]] = png(on_white(renders.images[row : row + 1], SIDE)[0])
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(TARGET, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    print(f"{len(items)} images, {TARGET.stat().st_size / 1e6:.2f} MB")

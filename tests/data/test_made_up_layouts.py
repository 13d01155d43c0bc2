"""Three hundred made-up folders: each is read as a person would read it, or refused; none otherwise in silence.

`LAYOUTS` says how a person reads each kind of layout. The readings are made beside the folders, without the reader.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import pytest
from listed import as_read, touch

from adapt.common.errors import AdaptError
from adapt.data import load

Reading = set[tuple[str, str, str]]  # part, or "" if the reader divides; class, or "" for none; path in the folder
Made = tuple[Reading | None, list[str]]  # the reading, or None for a refusal, and the paths of the files

NAMES = (
    "koala",
    "plate",
    "Emu 2",
    "crack_small",
    "x-ray",
    "Käfer",
    "trainer",
    "testudo",
    "valve",
    "1",
    "02",
    "bus stop",
)
USUAL = {
    "train": (
        "train",
        "Train",
        "TRAIN",
        "training",
        "Training_Set",
        "train_images",
        "trainset",
        "train2017",
        "01-train",
    ),
    "val": ("val", "Val", "valid", "VALID", "validation", "Validation Set", "dev", "val_data"),
    "test": ("test", "Test", "testing", "Testing", "TestSet", "test-images", "test_split", "3_test"),
}
UNUSUAL = ("trn", "tst", "seg_train", "my-test", "holdout", "evaluation", "fold_a", "old train", "pred", "Lernen")
WRAPPED = ("dataset", "upload", "photos_2024", "data", "Export (1)")
SEEDS = 16


def parted(draw: Random) -> dict[str, str]:
    """Usual names of the parts, always one for train."""
    wanted = ["train", *(part for part in ("val", "test") if draw.random() < 0.7)]
    return {part: draw.choice(USUAL[part]) for part in wanted}


def classes(draw: Random, least: int = 2) -> list[str]:
    return draw.sample(NAMES, draw.randint(least, 4))


def images(draw: Random) -> list[str]:
    return [f"{number}.{draw.choice(['jpg', 'JPG', 'png', 'webp'])}" for number in range(draw.randint(2, 4))]


def in_classes(draw: Random, names: Iterable[str], home: str = "", part: str = "", inner: str = "") -> Reading:
    """The reading of HOME/CLASS/INNER/IMAGE, in which `{}` of `inner` is the number of the class."""
    return {
        (part, name, os.path.join(home, name, inner.format(number), image))
        for number, name in enumerate(names)
        for image in images(draw)
    }


def in_parts(draw: Random, names: list[str], of: dict[str, str] | None = None, inner: str = "") -> Reading:
    parts = parted(draw) if of is None else of
    return set[tuple[str, str, str]]().union(
        *(in_classes(draw, names, home, part, inner) for part, home in parts.items())
    )


def read(reading: Reading) -> Made:
    return reading, [path for _, _, path in reading]


def refused(reading: Reading, *more: str) -> Made:
    return None, [*(path for _, _, path in reading), *more]


def moved(reading: Reading, home: str) -> Reading:
    return {(part, name, os.path.join(home, path)) for part, name, path in reading}


def plain(draw: Random) -> Made:
    return read(in_classes(draw, classes(draw)))


def divided(draw: Random) -> Made:
    return read(in_parts(draw, classes(draw, 1)))


def deep(draw: Random) -> Made:
    return read(in_classes(draw, classes(draw), inner=draw.choice(["of {0}", "{0}th/day {0}", "a{0}/b{0}/c{0}"])))


def deep_in_parts(draw: Random) -> Made:
    return read(in_parts(draw, classes(draw), inner="camera {}"))


def of_images(draw: Random) -> Made:
    inner = draw.choice(["images", "Images", "img", "photos"])
    names = classes(draw)
    return read(in_parts(draw, names, inner=inner) if draw.random() < 0.5 else in_classes(draw, names, inner=inner))


def shared_inner(draw: Random) -> Made:
    home = draw.choice(["front", "DCIM/100CANON", "2024", "{}/raw"])
    return refused(
        in_classes(draw, classes(draw), inner=home)
        if draw.random() < 0.5
        else in_parts(draw, classes(draw), inner=home)
    )


def unusual_parts(draw: Random) -> Made:
    names, homes = classes(draw), draw.sample(UNUSUAL, 2)
    if draw.random() < 0.5:  # beside a usual one
        homes[0] = draw.choice(USUAL[draw.choice(["train", "val", "test"])])
    return refused(in_classes(draw, names, homes[0]) | in_classes(draw, names, homes[1]))


def wrapped(draw: Random) -> Made:
    inner = in_classes(draw, classes(draw)) if draw.random() < 0.5 else in_parts(draw, classes(draw))
    home = os.path.join(*draw.sample(WRAPPED, draw.randint(1, 2)))
    return refused(moved(inner, home), *(["readme.txt"] if draw.random() < 0.5 else []))


def wrapped_in_parts(draw: Random) -> Made:
    names, home = classes(draw), draw.choice(WRAPPED)
    return refused(
        {each for part, own in parted(draw).items() for each in in_classes(draw, names, f"{own}/{home}", part)}
    )


def parts_in_classes(draw: Random) -> Made:
    names = classes(draw)
    return refused({each for own in parted(draw).values() for each in in_classes(draw, names, inner=own)})


def parts_in_names(draw: Random) -> Made:
    mark = draw.choice(["{}_{}", "{1} {0}", "{}-{}"])
    names = [mark.format(name, part) for name in classes(draw) for part in draw.sample(["train", "Val", "TEST"], 2)]
    return refused(in_classes(draw, names))


def parts_without_classes(draw: Random) -> Made:
    homes = [draw.choice(USUAL[part]) for part in draw.sample(["train", "val", "test"], draw.randint(1, 3))]
    beside = draw.random() < 0.5  # classes: then "train" may be one, but no other part
    homes = [home for home in homes if not beside or home not in USUAL["train"]] or ["test"]
    return refused(in_classes(draw, [*homes, *(classes(draw) if beside else [])]))


def part_without_classes(draw: Random) -> Made:
    homes = {"train": draw.choice(USUAL["train"]), "test": draw.choice(USUAL["test"])}
    flat = draw.choice([*homes])
    names = classes(draw)
    return refused(
        in_parts(draw, names, {part: home for part, home in homes.items() if part != flat}), f"{homes[flat]}/0.png"
    )


def beside_parts(draw: Random) -> Made:
    other = draw.choice(["extra", "koala", "raw/koala", "samples", "old/2023"])
    return refused(in_parts(draw, classes(draw)), f"{other}/9.jpg")


def unlabelled(draw: Random) -> Made:
    home = draw.choice(["unlabelled", "Unlabeled", "unlabelled images", "UNLABELLED/deep"])
    more = {("unlabelled", "", f"{home}/{image}") for image in images(draw)}
    names = classes(draw)
    return read((in_parts(draw, names) if draw.random() < 0.5 else in_classes(draw, names)) | more)


def a_train(draw: Random) -> Made:
    return read(in_classes(draw, [*classes(draw, 1), draw.choice(["train", "Train"])]))


def of_another_class(draw: Random) -> Made:
    names = classes(draw)
    return refused(in_classes(draw, names), os.path.join(names[0], names[1], "9.png"))


def capitals(draw: Random) -> Made:
    names = [name for name in classes(draw) if name.upper() != name] or ["koala"]
    twin = draw.choice(names)
    return refused(in_classes(draw, [*names, twin.swapcase()]))


def domains(draw: Random) -> Made:
    names = classes(draw)
    return refused({each for home in ("photo", "sketch", "art") for each in in_classes(draw, names, home)})


LAYOUTS: dict[str, Callable[[Random], Made]] = {
    "CLASS/IMAGE: the folders are the classes": plain,
    "PART/CLASS/IMAGE, by usual names in any case: parts": divided,
    "CLASS/ANY/IMAGE, other folders in each class: the upper folders are the classes": deep,
    "PART/CLASS/ANY/IMAGE: the same in parts": deep_in_parts,
    "CLASS/images/IMAGE, as in Tiny ImageNet: such folders are no classes": of_images,
    "CLASS/SAME/IMAGE: which folders are the classes cannot be known": shared_inner,
    "OTHER/CLASS/IMAGE, by names that are no usual parts: refused": unusual_parts,
    "WRAP/CLASS/IMAGE and WRAP/PART/CLASS/IMAGE: a folder too high": wrapped,
    "PART/WRAP/CLASS/IMAGE: refused": wrapped_in_parts,
    "CLASS/PART/IMAGE: refused": parts_in_classes,
    "CLASS_PART/IMAGE: refused": parts_in_names,
    "PART/IMAGE: no classes": parts_without_classes,
    "PART/CLASS/IMAGE beside PART/IMAGE: a part without classes": part_without_classes,
    "PART/CLASS/IMAGE beside OTHER/IMAGE: images that would be left out": beside_parts,
    "UNLABELLED/IMAGE besides: images without a class": unlabelled,
    "CLASS/IMAGE with a class called train: a class": a_train,
    "CLASS/OTHER CLASS/IMAGE: of which class?": of_another_class,
    "CLASS/IMAGE beside class/IMAGE: one class, or two?": capitals,
    "DOMAIN/CLASS/IMAGE: refused, as domains:FOLDER is another reader": domains,
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_layout_is_read_as_a_person_would_or_refused(kind: str, tmp_path: Path) -> None:
    for seed in range(SEEDS):
        draw = Random(f"{kind}/{seed}")
        reading, paths = LAYOUTS[kind](draw)
        root = touch(tmp_path / f"{seed}/set", *paths)
        _clutter(draw, root, sorted({path.partition("/")[0] for path in paths if "/" in path}))
        if reading is None:
            with pytest.raises(AdaptError, match=r"^image folder "):
                load(root)
            continue
        assert as_read(load(root), root) == reading, (kind, seed)


def _clutter(draw: Random, root: Path, tops: list[str]) -> None:
    """Add what changes no reading: files that are no images, hidden folders, and a link in place of a folder."""
    if draw.random() < 0.5:
        touch(root, "notes.txt", ".hidden/koala/1.jpg", "__MACOSX/koala/1.jpg", f"{draw.choice(tops)}/Thumbs.db")
    if draw.random() < 0.3:
        top = root / draw.choice(tops)
        target = root.parent / "elsewhere" / top.name
        target.parent.mkdir()
        top.rename(target)
        top.symlink_to(target)


def test_folders_inside_classes_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "animal/koala/1.jpg", "thing/plate/1.jpg", "thing/cone/1.jpg", "thing/@eaDir/1.jpg")
    with caplog.at_level("INFO", "adapt"):
        assert load(tmp_path).class_names == ("animal", "thing")
    assert caplog.messages == [
        f"image folder '{tmp_path}': images in folders inside a class are of the class, as those in 'koala' of 'animal'"
    ]


def test_domains_are_read_by_their_own_reader_which_takes_no_parts_for_classes(tmp_path: Path) -> None:
    for seed in range(SEEDS):
        draw = Random(f"domains/{seed}")
        names = classes(draw)
        root = touch(
            tmp_path / f"{seed}", *refused(in_classes(draw, names, "photo") | in_classes(draw, names, "art"))[1]
        )
        assert {(item.domain, item.answer) for item in load(f"domains:{root}").items()} == {
            (domain, name) for domain in ("photo", "art") for name in names
        }
        moved_into_parts = touch(
            tmp_path / f"{seed}-parts",
            *(path for own in ("Train", "test") for path in refused(in_classes(draw, names, f"photo/{own}"))[1]),
        )
        with pytest.raises(AdaptError, match=r"both have a folder|has a folder|is the only class"):
            load(f"domains:{moved_into_parts}")

"""The contact sheet: where images and names are, how small classes and broken images look."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from adapt.common.errors import AdaptError
from adapt.data import Item
from adapt.data.contact_sheet import contact_sheet
from adapt.tasks.classes import Class

_RED, _GREEN, _BLUE, _GREY, _WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (238, 238, 238), (255, 255, 255)


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Four red images and a broken one of class 0, a wide green one with blue sides of class 1, none of class 2."""
    for i in range(4):
        Image.new("RGB", (20, 20), _RED).save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"no image")
    wide = Image.new("RGB", (60, 20), _BLUE)
    wide.paste(_GREEN, (20, 0, 40, 20))
    wide.save(tmp_path / "wide.png")
    reds = [Item.of(path=str(tmp_path / f"{i}.png"), label="red_things") for i in (0, 4, 1, 2, 3)]
    return [*reds, Item.of(path=str(tmp_path / "wide.png"), label="green")]


def test_images_stand_in_rows_under_their_class(items: list[Item]) -> None:
    told: list[tuple[int, int]] = []
    sheet = contact_sheet(items, ("red_things", "green", "none"), 5, progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert sheet.size == (5 * 98 + 2 * 18, 3 * (96 + 17 + 18) + 18)  # one column of three classes
    first, second, third = (18 + 17 + row * 131 + 48 for row in range(3))  # the middles of the rows
    centres = [18 + place * 98 + 48 for place in range(5)]
    assert [sheet.getpixel((x, first)) for x in (*centres[:1], *centres[2:])] == [_RED] * 4
    assert [sheet.getpixel((x, third)) for x in centres] == [_GREY] * 5
    assert [sheet.getpixel((x, second)) for x in range(18 + 10, 18 + 86)] == [_GREEN] * 76  # the middle square only


def test_a_sheet_has_room_for_the_images_that_there_are(items: list[Item]) -> None:
    names = ("red_things", "green", "none")
    assert contact_sheet(items, names, 100_000).size == contact_sheet(items, names, 5).size


def test_a_broken_image_is_crossed_out(items: list[Item]) -> None:
    sheet = contact_sheet(items, ("red_things", "green", "none"), 5)
    left, top = 18 + 98, 18 + 17
    assert sheet.getpixel((left + 48, top + 48)) == (204, 51, 51)
    assert sheet.getpixel((left + 70, top + 30)) == _WHITE


def test_few_of_many_are_taken_from_the_whole_list(items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        "adapt.data.contact_sheet.open_image", lambda item, turned: opened.append(item) or Image.new("RGB", (4, 4))
    )
    contact_sheet(items, ("red_things", "green", "none"), 2)
    assert opened == [items[0], items[2], items[5]]


def test_names_are_written_over_their_images_and_cut_where_they_end(items: list[Item]) -> None:
    def ink(name: str) -> tuple[int, int]:
        """Dark pixels in the line above the image, and right of the image."""
        sheet = contact_sheet([items[0].labelled(Class(name))], (name,), 1).convert("L")
        above, beyond = sheet.crop((18, 18, 18 + 98, 18 + 15)), sheet.crop((18 + 98, 0, *sheet.size))
        return tuple(sum(value < 128 for value in part.tobytes()) for part in (above, beyond))  # type: ignore[return-value]

    assert 0 < ink("i")[0] < ink("green")[0] < ink("green things that have too long a name")[0]
    assert ink("green things that have too long a name")[1] == 0


@pytest.mark.parametrize(("classes", "side", "width"), [(24, 96, 1500), (400, 64, 4000), (1000, 64, 6300)])
def test_many_classes_make_a_sheet_of_a_screens_shape(items: list[Item], classes: int, side: int, width: int) -> None:
    sheet = contact_sheet(items, ["red_things", *map(str, range(classes - 2)), "green"], 4)
    assert 1.1 < sheet.width / sheet.height < 1.8
    assert 0.8 * width < sheet.width < width
    assert sheet.getpixel((18 + side // 2, 18 + 17 + side // 2)) == _RED


def test_nothing_to_draw(items: list[Item]) -> None:
    with pytest.raises(AdaptError, match="found 0 images, and per_class is"):
        contact_sheet([], ("a",))
    with pytest.raises(AdaptError, match="6 images, and per_class is 0"):
        contact_sheet(items, ("a", "b"), 0)


def test_letters_of_many_scripts_are_drawn(items: list[Item]) -> None:
    sheets = [contact_sheet([items[0].labelled(Class(name))], (name,), 1) for name in ("Ä", "Ж", "λ", "é")]
    drawn = {sheet.crop((18, 18, 40, 33)).tobytes() for sheet in sheets}
    assert len(drawn) == 4  # and not four times the box that stands for a letter that the font has not


def test_a_font_that_is_none(items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AdaptError, match=r"font '.*0.png' cannot be used: .* Expected a TrueType file"):
        contact_sheet(items, ("red_things", "green"), font=tmp_path / "0.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(AdaptError, match=r'matplotlib: pip install "adapt-vlm\[plot\]", or give a TrueType file'):
        contact_sheet(items, ("red_things", "green"))

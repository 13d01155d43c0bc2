"""Three hundred made-up CSV files: each is read as a person would read it, or refused; none otherwise in silence.

`LISTS` says how a person reads each kind of list. The readings are made beside the lists, without the reader.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from listed import as_read, told, touch

from adapt.common.errors import AdaptError
from adapt.data import load

Rows = list[dict[str, str]]
Reading = set[tuple[str, str, str]]  # part, or "" if the reader divides; label; path below the list's folder

CLASSES = ("koala", "plate, blue", 'a "plate"', "Käfer", "x;y", "1", "not a thing")
SEEDS = 25


def items(draw: Random, number: int = 12) -> list[tuple[str, str]]:
    """(path, label) of images in folders, two of each class at least."""
    names = draw.sample(CLASSES, draw.randint(2, 4))
    homes = draw.choice([("",), ("pictures",), ("a/b", "Ü c")])
    return [
        (
            os.path.join(draw.choice(homes), f"{place} {draw.choice('xyz')}.{draw.choice(['png', 'JPG'])}"),
            names[place % len(names)],
        )
        for place in range(number)
    ]


def written(draw: Random, rows: Rows, separator: str = "") -> bytes:
    """A list as some program writes it: any separator, encoding and end of line, and columns in any order."""
    columns = draw.sample(list(rows[0]), len(rows[0]))
    separator = separator or draw.choice([",", ",", ";", "\t"])
    text = io.StringIO()
    quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    table = csv.DictWriter(
        text, columns, delimiter=separator, quoting=quoting, lineterminator=draw.choice(["\n", "\r\n"])
    )
    table.writeheader()
    table.writerows(rows)
    said = f"sep={separator}\r\n" if draw.random() < 0.2 else ""
    start, encoding = draw.choice(
        [
            (b"", "utf-8"),
            (codecs.BOM_UTF8, "utf-8"),
            (codecs.BOM_UTF16_LE, "utf-16-le"),
            (codecs.BOM_UTF16_BE, "utf-16-be"),
        ]
    )
    return start + (said + text.getvalue()).encode(encoding)


def as_listed(draw: Random, listed: list[tuple[str, str]]) -> tuple[Reading, bytes]:
    return {("", label, path) for path, label in listed}, written(draw, [{"path": p, "label": n} for p, n in listed])


def plain(draw: Random) -> tuple[Reading, bytes]:
    return as_listed(draw, items(draw))


def divided(draw: Random) -> tuple[Reading, bytes]:
    listed = items(draw)
    words = {
        "train": ["train", "Training", "TRAIN"],
        "val": ["val", "Valid", "dev", "validation"],
        "test": ["test", "Testing"],
    }
    parts = ["train"] * 8 + [draw.choice(["val", "test"]) for _ in listed[8:]]
    rows = [
        {"path": path, "label": label, "split": draw.choice(words[part])} for (path, label), part in zip(listed, parts)
    ]
    return {(part, label, path) for (path, label), part in zip(listed, parts)}, written(draw, rows)


def of_unknown_parts(draw: Random) -> tuple[None, bytes]:
    rows = [{"path": path, "label": label, "split": draw.choice(["train", "test"])} for path, label in items(draw)]
    rows[draw.randrange(len(rows))]["split"] = draw.choice(
        ["fold1", "0", "", "trn", "holdout", "train/test", "evaluation"]
    )
    return None, written(draw, rows)


def of_windows(draw: Random) -> tuple[Reading, bytes]:
    listed = [(os.path.join("pictures", path), label) for path, label in items(draw)]
    start = draw.choice(["", ".\\"])
    rows = [{"path": start + path.replace("/", "\\"), "label": label} for path, label in listed]
    return {("", label, path) for path, label in listed}, written(draw, rows)


def of_a_drive(draw: Random) -> tuple[None, bytes]:
    start = draw.choice(["C:\\Users\\me\\", "d:\\", "E:/photos/", "\\\\server\\share\\", "/home/me/", "../"])
    return None, written(draw, [{"path": start + path, "label": label} for path, label in items(draw)])


def of_other_columns(draw: Random) -> tuple[None, bytes]:
    one, other = draw.choice([("file", "label"), ("path", "class"), ("Image", "Label"), ("path", "Labels"), ("x", "y")])
    return None, written(draw, [{one: path, other: label} for path, label in items(draw)])


def cut_short(draw: Random) -> tuple[None, bytes]:
    lines = [f"{path},{label}" for path, label in (("1.png", "koala"), ("2.png", "plate"), ("3.png", "koala"))]
    place = draw.randrange(3)
    lines[place] = draw.choice(
        [lines[place].partition(",")[0], lines[place] + ",more", lines[place] + "\0", '"' + lines[place]]
    )
    return None, "\n".join(["path,label", *lines]).encode()


def of_latin_1(draw: Random) -> tuple[None, bytes]:
    listed = [*items(draw), ("last.png", "Käfer")]
    text = "\n".join(["path\tlabel", *(f"{path}\t{label}" for path, label in listed)])
    return None, text.encode(draw.choice(["latin-1", "cp1252", "mac-roman"]))


def of_numbers(draw: Random) -> tuple[Reading, bytes]:
    listed = [(path, f"{draw.uniform(-5, 5):.{draw.randint(0, 3)}f}") for path, _ in items(draw)]
    separator = draw.choice([",", ";", "\t"])
    comma = separator != "," and draw.random() < 0.5  # as a spreadsheet in Germany writes them
    rows = [{"path": path, "target": target.replace(".", ",") if comma else target} for path, target in listed]
    return {("", str(float(target)), path) for path, target in listed}, written(draw, rows, separator)


def of_no_numbers(draw: Random) -> tuple[None, bytes]:
    rows = [{"path": path, "target": f"{draw.uniform(-5, 5):.2f}"} for path, _ in items(draw)]
    rows[draw.randrange(len(rows))]["target"] = draw.choice(["3,5,1", "1,2.5", "nan", "inf", "five", "5 mm", "1e999"])
    return None, written(draw, rows)


def several(draw: Random) -> tuple[Reading, bytes]:
    names = ["koala", "plate", "emu"]
    listed = [(path, names[: 1 + place % 3] if place % 4 else []) for place, (path, _) in enumerate(items(draw))]
    rows = [{"path": path, "labels": draw.choice(["|", " | "]).join(own)} for path, own in listed]
    return {("", "|".join(sorted(own)), path) for path, own in listed}, written(draw, rows)


def twice(draw: Random) -> tuple[None, bytes]:
    listed = items(draw)
    rows = [{"path": path, "label": label, "split": "train"} for path, label in listed]
    again = dict(rows[0], split="test") if draw.random() < 0.5 else dict(rows[0], label=rows[1]["label"])
    return None, written(draw, [*rows, again])


LISTS: dict[str, Callable[[Random], tuple[Reading | None, bytes]]] = {
    "path,label, as any spreadsheet writes it: the label is the class": plain,
    "path,label,split, with the usual words for parts: parts": divided,
    "a split that is no part, or empty in one line: refused": of_unknown_parts,
    "paths with backslashes: folders": of_windows,
    "paths of a drive, of another folder or of the root: refused": of_a_drive,
    "columns with other names: refused, with the name that is meant": of_other_columns,
    "a line that is cut, or longer than the first: refused": cut_short,
    "an encoding that is neither UTF-8 nor UTF-16: refused": of_latin_1,
    "path,target: numbers": of_numbers,
    "a target that is no number: refused": of_no_numbers,
    "path,labels: all classes of an image, or none": several,
    "an image in two parts, or of two classes: refused": twice,
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_is_read_as_a_person_would_or_refused(kind: str, tmp_path: Path) -> None:
    for seed in range(SEEDS):
        draw = Random(f"{kind}/{seed}")
        reading, content = LISTS[kind](draw)
        source = tmp_path / f"{seed}{draw.choice(['.csv', '.CSV', '.tsv'])}"
        source.write_bytes(content)
        if reading is None:
            with pytest.raises(AdaptError, match=r"CSV|data"):
                load(source)
            continue
        assert as_read(load(source), tmp_path) == reading, (kind, seed)


def test_a_path_of_windows_names_the_end_that_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "photos/koala/1.jpg", "b\\1.png", "b/1.png")
    (tmp_path / "a.csv").write_text("path,label\nC:\\Users\\me\\photos\\koala\\1.jpg,koala\n")
    with pytest.raises(AdaptError, match=r"on the drive 'C:'; .* There is 'photos/koala/1.jpg': write all paths from"):
        load(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("path,label,split\nb\\1.png,koala,train\n")  # a file of that very name
    assert [item.path for item in load(tmp_path / "b.csv").train] == [str(tmp_path / "b\\1.png")]


def test_thousands_are_read_beside_decimal_commas_and_told_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "adapt")
    (tmp_path / "a.csv").write_text("path;target\n1.png;1.271,5\n2.png;880,25\n")
    assert sorted(told(item.label) for item in load(tmp_path / "a.csv").items()) == ["1271.5", "880.25"]
    assert caplog.messages == []
    (tmp_path / "b.csv").write_text("path;target\n1.png;1.271\n2.png;880\n3.png;1.5\n4.png;2.100\n")
    load(tmp_path / "b.csv")
    [message] = caplog.messages
    assert message.endswith("line 2: 1.271 is read as a number with decimals")
    (tmp_path / "c.csv").write_text("path;target\n1.png;980\n2.png;0,125\n3.png;1,250\n")  # or one and a quarter
    load(tmp_path / "c.csv")
    assert caplog.messages[1].endswith("line 4: 1,250 is read as a number with decimals")


def test_utf_16_without_a_mark_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("path,label\n1.png,koala\n".encode("utf-16-le"))
    with pytest.raises(AdaptError, match="zero bytes, as UTF-16 without a byte order mark has: save it as UTF-8"):
        load(tmp_path / "a.csv")


def test_an_image_of_two_numbers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,target\n1.png,0\n2.png,3\n1.png,9\n")
    with pytest.raises(AdaptError, match=r"1.png' is of two labels, '0' and '9'. Keep one of the lines"):
        load(tmp_path / "a.csv")


def test_what_is_unusual_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("path;label\n1.png;Koala\n2.png;koala\n3.png;plate\n")
    with caplog.at_level("INFO", "adapt"):
        load(tmp_path / "a.csv")
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "the columns are separated by ';'",
        "the classes 'Koala' and 'koala' differ in capitals or kinds of characters",
    ]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["12.5", "3", "v3"], ""),  # versions
        (["1.0", "0.0"], ""),  # class numbers, as a table with empty cells has them
        (["1.5", "2.0"], "numbers such as 1.5 are classes. Call the column target to learn numbers"),
        (["fish|cod", "cat"], "'fish|cod' is one class. Call the column labels if it is several"),
        ([*map(str, range(20))], ""),
        ([*map(str, range(21))], "21 numbers are classes. Call the column target to learn numbers"),
        (["cafe\u0301", "caf\xe9"], "the classes 'cafe\u0301' and 'caf\xe9' differ in capitals or kinds of characters"),
        (
            ["a cat", "a\xa0cat"],
            "the classes 'a cat' and 'a\\xa0cat' differ in capitals or kinds of characters",
        ),
        (["NA", "Koala"], "'NA' is a class. Leave the cell empty if it stands for an unknown label"),
    ],
)
def test_names_that_may_be_none_are_told(
    names: list[str], told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.csv").write_text("path,label\n" + "".join(f"{i}.png,{name}\n" for i, name in enumerate(names)))
    assert set(load(tmp_path / "a.csv").class_names) == set(names)
    assert [message.partition(": ")[2] for message in caplog.messages] == [told] * bool(told)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"{number}.5" for number in range(21)], "21 numbers such as 0.5 are classes. Call the column target"),
        (["cat|dog", "cat"], r"the class 'cat\|dog' has another class in it. Call the column labels"),
    ],
)
def test_names_that_are_none_are_refused(names: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label\n" + "".join(f"{i}.png,{name}\n" for i, name in enumerate(names)))
    with pytest.raises(AdaptError, match=message):
        load(tmp_path / "a.csv")


def test_lines_are_counted_from_the_first_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\npath;label\n1.png;Koala\n../2.png;Koala\n")
    with pytest.raises(AdaptError, match="line 4: "):
        load(tmp_path / "a.csv")

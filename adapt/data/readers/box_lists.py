"""Boxes of things in images: COCO's JSON, YOLO's `data.yaml`, folders of Pascal VOC's XML, and regions in a CSV.

`coco:FILE`, `yolo:FILE` and `voc:FOLDER` are regions, each of which counts as an image of its class. Behind `boxes:`,
as in `boxes:coco:FILE` or `boxes:LIST.csv`, they are questions where in an image the things of a class are. Boxes of
COCO and VOC are of the image as stored, unless the size that they state is that of the upright one; YOLO's programs
read images upright. The header of each image is read.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import yaml

from adapt.backbones.box_texts import Edges
from adapt.common.errors import AdaptError
from adapt.common.grouping import grouped
from adapt.common.shown import brief, first_of
from adapt.data.decoding.files import open_file, parted, region, under
from adapt.data.decoding.pictures import opened, orientation, size_of, turned_edges
from adapt.data.item import Item
from adapt.data.readers import parts
from adapt.data.readers.base import Reader
from adapt.data.readers.csv_file import listed_in
from adapt.data.readers.folder import images_in
from adapt.data.readers.lines import numbered_lines, read_text, readable
from adapt.data.readers.rows import Listed, to_split, without_rows
from adapt.data.split import InconsistentError, Split

logger = logging.getLogger("adapt")
_SLACK = 0.5  # pixels by which programs round a box over an image's edge
_BOXES = "boxes:"


@dataclass
class _Picture:
    """An image with the boxes of things in it, in pixels of the upright image."""

    path: str
    part: str
    size: tuple[int, int]
    things: list[tuple[str, Edges]] = field(default_factory=list)
    crowds: dict[str, list[Edges]] = field(default_factory=dict)  # boxes around many, so that no thing is known
    turned: int = 1
    """The EXIF orientation of the image that boxes are given in."""

    @classmethod
    def opened(cls, path: str, part: str, stated: tuple[object, object] | None = None) -> _Picture:
        """Return an image without boxes, which are given in one of the size `stated`, by default the upright image."""
        with warnings.catch_warnings(), open_file(path) as file, opened(file, path) as image:
            warnings.simplefilter("ignore")  # Pillow's, about images that it can decode
            upright, stored = size_of(image, True), image.size
            if stated not in (None, stored, upright):
                raise AdaptError(
                    f"the size is {stated}, but {path!r} has {stored}: give the image that it was made for"
                )
            return cls(path, part, upright, turned=orientation(image) if stated == stored else 1)

    def add(self, name: object, edges: Sequence[float], crowd: bool = False) -> None:
        """Add the box of a thing or `crowd`. Raises AdaptError if empty, swapped, outside, no number, or nameless.

        Names are text or numbers, in which white space of any kind and length is one space.
        """
        width, height = size = self.size[::-1] if self.turned > 4 else self.size
        box = [min(max(edge, 0.0), side) for edge, side in zip(edges, size * 2, strict=True)]
        if not (box[0] < box[2] and box[1] < box[3] and all(abs(a - b) <= _SLACK for a, b in zip(box, edges))):
            raise AdaptError(
                f"the box has x from {edges[0]:g} to {edges[2]:g} and y from {edges[1]:g} to {edges[3]:g}; expected "
                f"0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}, the size of {self.path!r}"
            )
        name, upright = _words(name), turned_edges((box[0], box[1], box[2], box[3]), size, self.turned)
        if crowd:
            self.crowds[name].append(upright)
        else:
            self.things.append((name, upright))


def _words(name: object) -> str:
    """Return the name of what is in a box, with single spaces. Raises AdaptError for no text and no number."""
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        raise AdaptError(f"the name of what is in the box is {brief(name)}; expected text: put it in quotes")
    if not (words := " ".join(str(name).split())):
        raise AdaptError("the name of what is in the box is empty: fill it in")
    return words


@contextmanager
def _row(problems: list[str], where: str, row: object) -> Iterator[None]:
    """Add an error in the `with` block, which reads a `row`, to `problems`."""
    try:
        yield
    except AdaptError as error:
        problems.append(f"{where}: {error}")
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, ElementTree.ParseError) as error:
        problems.append(f"{where} is {brief(row)}, which cannot be read ({type(error).__name__}: {error})")


def _coco(source: str, root: str | None, problems: list[str]) -> list[_Picture]:
    """Return the images of COCO's annotations."""
    where, folder = f"COCO {source!r}", os.path.abspath(root or os.path.dirname(source))
    with readable(where):
        content = json.loads(read_text(source))
    match content:
        case {"images": [*images], "annotations": [*annotations], "categories": [*categories]}:
            names, pictures = dict[object, object](), dict[object, _Picture | None]()
        case _:
            raise AdaptError(f"{where} has {brief(content)}; expected the lists images, annotations and categories")
    for at, row in enumerate(categories, 1):
        with _row(problems, f"{where} category {at}", row):
            if row["id"] in names:
                raise AdaptError(f"the id {row['id']} is there twice: give each category an id of its own")
            names[row["id"]] = row["name"]
    for at, row in enumerate(images, 1):
        with _row(problems, line := f"{where} image {at}", row):
            if row["id"] in pictures:
                raise AdaptError(f"the id {row['id']} is there twice: give each image an id of its own")
            pictures[row["id"]] = None  # listed, even if it cannot be read
            path = under(folder, str(row["file_name"]), line)
            pictures[row["id"]] = _Picture.opened(path, "", (row["width"], row["height"]))
    for at, row in enumerate(annotations, 1):
        with _row(problems, f"{where} annotation {at}", row):
            for key, known in dict[str, Collection[object]](image_id=pictures, category_id=names).items():
                if row[key] not in known:
                    own, other = brief(row[key]), brief(next(iter(known), None))
                    raise AdaptError(f"{key} is {own}; expected an id that is listed, such as {other}, as it is there")
            if not (picture := pictures[row["image_id"]]):
                continue
            if crowd := int(row.get("iscrowd") or 0) > 0:
                picture.crowds.setdefault(_words(names[row["category_id"]]), [])
            if "bbox" in row:
                x, y, width, height = map(float, row["bbox"])
                picture.add(names[row["category_id"]], (x, y, x + width, y + height), crowd)
            elif not crowd:
                polygons = [value for polygon in row["segmentation"] for value in polygon]
                picture.add(names[row["category_id"]], _bounds(polygons))
    return [picture for picture in pictures.values() if picture]


def _yolo(source: str, root: str | None, problems: list[str]) -> list[_Picture]:
    """Return the images of a `data.yaml`; labels are in a folder `labels` in place of `images`, or beside the image."""
    with readable(where := f"YOLO {source!r}"):
        try:
            content = yaml.safe_load(read_text(source))
        except yaml.YAMLError as error:
            raise ValueError(error) from error
    if not (isinstance(content, dict) and content.get("train") and isinstance(content.get("names"), list | dict)):
        raise AdaptError(f"{where} has {brief(content)}; expected train and names, perhaps path, val and test")
    names = content["names"] if isinstance(content["names"], dict) else dict(enumerate(content["names"]))
    folder, pictures = root or os.path.join(os.path.dirname(source), str(content.get("path") or "")), list[_Picture]()
    folder = os.path.abspath(folder)
    for part, given in ((part, content.get(part) or []) for part in parts.NAMES):
        for own in given if isinstance(given, list) else [given]:
            start = under(folder, str(own).removeprefix("../"), f"{where} {part}")  # which some programs write
            listed = [under(folder, line, start) for _, line in numbered_lines(start)] if start.endswith(".txt") else ()
            for path in listed or images_in(start):
                before, images, behind = path.rpartition(f"{os.sep}images{os.sep}")
                labels = Path(f"{before}{os.sep}labels{os.sep}{behind}" if images else path).with_suffix(".txt")
                with _row(problems, f"{where} {part}", path):
                    pictures.append(picture := _Picture.opened(path, part))
                    for at, line in numbered_lines(labels) if labels.is_file() else ():
                        with _row(problems, f"{labels} line {at}", line):
                            key, values = line.split()[0], [float(cell) for cell in line.split()[1:]]
                            if len(values) == 4 or content.get("kpt_shape"):  # with points of a pose behind the box
                                x, y, width, height = values[:4]
                                edges: Edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
                            else:
                                edges = _bounds(values)
                            picture.add(names[int(key)], [a * b for a, b in zip(edges, picture.size * 2)])
    return pictures


def _voc(source: str, root: str | None, problems: list[str]) -> list[_Picture]:
    """Return the images of a folder of VOC, `Annotations/*.xml` with `JPEGImages`, or both kinds of files in one."""
    folder, pictures, part_of = Path(os.path.abspath(source)), list[_Picture](), dict[str, str]()
    notes, images = (own if (own := folder / name).is_dir() else folder for name in ("Annotations", "JPEGImages"))
    for part in parts.NAMES:
        if (listed := folder / "ImageSets" / "Main" / f"{part}.txt").is_file():
            part_of |= {line.split()[0]: part for _, line in numbered_lines(listed)}
    for file in sorted(notes.glob("*.xml")):
        if part_of and file.stem not in part_of:
            continue
        with _row(problems, str(file), file.name), readable(str(file)):
            text = read_text(file)
            if "<!ENTITY" in text:
                raise ValueError("it defines entities, as no annotation does")
            tree = ElementTree.fromstring(text)
            path = under(str(images), tree.findtext("filename") or "", str(file))
            width, height = (tree.findtext(f"size/{side}") for side in ("width", "height"))
            stated = (int(width), int(height)) if width and height else None
            pictures.append(picture := _Picture.opened(path, part_of.get(file.stem, ""), stated))
            for at, thing in enumerate(tree.iter("object"), 1):
                with _row(problems, f"{file} object {at}", thing.findtext("name")):
                    keys = ("xmin", "ymin", "xmax", "ymax")
                    x0, y0, x1, y1 = (float(thing.findtext(f"bndbox/{key}") or "nan") for key in keys)
                    picture.add(thing.findtext("name") or "", (x0 - 1, y0 - 1, x1, y1))  # from 1, inclusive
    known = [path for path in images_in(str(images)) if not part_of or Path(path).stem in part_of]
    if not problems and (bare := sorted({*known}.difference(picture.path for picture in pictures))):
        logger.warning("VOC %r: left out %d images without an XML: %s", source, len(bare), first_of(bare))
    return pictures


def _csv(source: str, root: str | None, problems: list[str]) -> list[_Picture]:
    """Return the images of a list of regions; one that is listed without a class has no boxes."""
    rows, others = listed_in(source, os.path.abspath(root or os.path.dirname(source)), {})
    problems += others
    pictures, bare = dict[str, _Picture](), "train" if any(row.part in parts.NAMES for row in rows) else ""
    for item, part, _ in rows:
        path, box = parted(item.path)
        with _row(problems, f"CSV {source!r}", item.path):
            has_none = part == parts.UNLABELLED
            if not has_none and item.task.needs != {"label"}:
                raise AdaptError(f"it has {item.task.title}; expected one class in the column label")
            own = bare if has_none else part
            if path not in pictures:
                pictures[path] = _Picture.opened(path, own)
            if pictures[path].part != own:
                raise AdaptError(f"the image is in two parts, {pictures[path].part!r} and {own!r}: keep it in one")
            if not has_none:
                pictures[path].add(item.answer, box or (0, 0, *pictures[path].size))
    return [*pictures.values()]


def _bounds(polygon: Sequence[float]) -> Edges:
    """Return the bounds of a polygon x0, y0, x1, y1, ..."""
    if len(polygon) < 6 or len(polygon) % 2:
        raise AdaptError(f"there are {len(polygon)} numbers; expected the four of a box, or the pairs of a polygon")
    return min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2])


_FORMATS = {"coco:": _coco, "yolo:": _yolo, "voc:": _voc}


def read_boxes(spec: str, root: str | None = None, ratios: Sequence[float] = parts.RATIOS, seed: int = 0) -> Split:
    """Return the regions, or behind `boxes:` the questions where things are, of a list of boxes in images.

    Images without a box are asked for a class that they lack, which alternates; as regions, they are left out. Images
    that are in no part are divided by `ratios` (train, val, test) and `seed`. Raises AdaptError, naming the row, for a
    box that is empty, swapped, outside its image, or no number.
    """
    inner, asks = spec.removeprefix(_BOXES), spec.startswith(_BOXES)
    prefix = next((prefix for prefix in _FORMATS if inner.startswith(prefix)), "")
    source, problems, rows = inner.removeprefix(prefix), list[str](), list[Listed]()
    pictures = _FORMATS.get(prefix, _csv)(source, root, problems)
    first = dict[str, _Picture]()
    for picture in pictures:
        if (one := first.setdefault(picture.path, picture)) is not picture:
            where = f", in {one.part} and in {picture.part}" * (one.part != picture.part)
            problems.append(f"{spec!r}: {picture.path!r} is there twice{where}: list an image once, with all its boxes")
    pictures = [*first.values()]
    names = sorted({name for picture in pictures for name, _ in picture.things})
    if not names:
        raise InconsistentError([*problems, f"{spec!r} has no box that can be used"], None, len(problems))
    for at, picture in enumerate(pictures):
        if asks:
            lacking = [name for name in names if name not in picture.crowds]
            none = {lacking[at % len(lacking)]: list[Edges]()} if lacking else {}
            for name, boxes in (grouped(picture.things) or none).items():
                cell = name, boxes, picture.size, picture.crowds.get(name, ())
                rows.append(Listed(Item.of(path=picture.path, group=picture.path, boxes=cell), picture.part))
        for name, edges in () if asks else picture.things:
            item = Item.of(path=region(picture.path, edges), group=picture.path, label=name)
            rows.append(Listed(item, picture.part))
    if not asks and (empty := sum(not picture.things for picture in pictures)):
        logger.info("%s: %d images without a box are no regions: boxes:%s asks about them", spec, empty, inner)
    name, folder = Path(source).stem or spec, os.path.abspath(root or os.path.dirname(source))
    return without_rows(problems, lambda: to_split(name, folder, rows, None, ratios, seed))


class BoxLists(Reader):
    name = "box_lists"
    takes = (
        "coco:FILE, yolo:FILE or voc:FOLDER, with boxes: before it, or before a .csv, for questions where things are"
    )
    reads = staticmethod(read_boxes)
    root = "may"

    def claims(self, spec: str) -> bool:
        return spec.startswith((_BOXES, *_FORMATS))

"""Scenes of emoji: random layouts of drawings on a small picture, which is only drawn when it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from random import Random
from typing import Literal, NamedTuple, TypeVar

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from adapt.data.decoding.images import open_image

Layout = Literal["one", "several", "pair", "mixed"]

SIDE = 64  # pixels
MOST = 4  # drawings, one in each cell of a grid of 2 x 2
_CELL = SIDE // 2
# Backgrounds: white as often as all others together, which are pale enough not to change a drawing's colours.
_WHITE = (255, 255, 255)
_PALE = ((255, 244, 214), (222, 238, 255), (226, 247, 226), (255, 228, 232), (238, 230, 252), (236, 236, 236))
_MARK, _NEARLY_WHITE = (1, 254, 3), 12  # a colour of no drawing; the tolerance for white, over all channels
_WHOLE_SIDES, _CELL_SIDES = (50, SIDE), (24, _CELL)  # from, to

T = TypeVar("T")


class Concept(NamedTuple):
    """A thing that drawings show, such as a dog; `colour` is "" if the drawings of a concept differ in colour."""

    name: str
    group: str
    colour: str


class Drawing(NamedTuple):
    """One drawing of a concept; `path` is an image path that `adapt.data.decoding.files` can read."""

    concept: Concept
    path: str


class Piece(NamedTuple):
    """A drawing in a scene, with its position, its side length in pixels, and whether the drawing is mirrored."""

    drawing: Drawing
    left: int
    top: int
    side: int
    mirrored: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The edges of what is drawn, without the paper around it: left, upper, right, lower, in pixels."""
        drawn = _fitted(_cut_out(self.drawing.path)[1], self).point(lambda paper: 255 * (paper < 128))
        left, top, right, bottom = drawn.getbbox() or (0, 0, self.side, self.side)
        return self.left + left, self.top + top, self.left + right, self.top + bottom


@dataclass(frozen=True)
class Scene:
    """A layout of drawings on a picture: one drawing, copies of a drawing, a pair (left, right), or a mixture."""

    kind: Layout
    pieces: tuple[Piece, ...]
    background: tuple[int, int, int] = _WHITE

    @property
    def concepts(self) -> list[Concept]:
        """The concept of each drawing in the scene."""
        return [piece.drawing.concept for piece in self.pieces]

    def draw(self) -> Image.Image:
        """Return a picture of the scene, in mode RGB and 64 pixels wide and high."""
        picture = Image.new("RGB", (SIDE, SIDE), self.background)
        for piece in self.pieces:
            place = (piece.left, piece.top, piece.left + piece.side, piece.top + piece.side)
            drawing, paper = (_fitted(image, piece) for image in _cut_out(piece.drawing.path))
            # Multiplied, white paper becomes the background, and so do the soft edges on it.
            behind = ImageChops.multiply(picture.crop(place), drawing)
            picture.paste(Image.composite(behind, drawing, paper), place)
        return picture

    def png(self) -> bytes:
        """Return a picture of the scene as the bytes of a PNG file."""
        file = BytesIO()
        self.draw().save(file, "PNG")
        return file.getvalue()


def scenes(drawings: Sequence[Sequence[Drawing]], per_kind: int, stream: Random) -> Iterator[Scene]:
    """Yield `per_kind` random scenes of each of three kinds in turn: one drawing, copies of a drawing, and a pair.

    `drawings` has a list of drawings for each concept. Within each kind of scene, every concept is used before any
    concept is used again. The number of copies cycles from one to four.
    """
    single, repeated, left, right = (_turns(drawings, stream) for _ in range(4))
    for number in range(per_kind):
        whole = (0, 0, SIDE, SIDE)
        yield Scene("one", (_placed(stream.choice(next(single)), whole, _WHOLE_SIDES, stream),), _background(stream))
        drawing = stream.choice(next(repeated))
        cells = _cells(stream, number % MOST + 1)
        copies = tuple(_placed(drawing, cell, _CELL_SIDES, stream) for cell in cells)
        yield Scene("several", copies, _background(stream))
        first = next(left)
        second = next(each for each in right if each is not first)
        halves = zip((stream.choice(first), stream.choice(second)), ((0, 0, _CELL, SIDE), (_CELL, 0, _CELL, SIDE)))
        pair = tuple(_placed(drawing, half, _CELL_SIDES, stream) for drawing, half in halves)
        yield Scene("pair", pair, _background(stream))


def minimal_pairs(drawings: Sequence[Sequence[Drawing]], per_kind: int, stream: Random) -> Iterator[Scene]:
    """Yield the scenes of `scenes`, each followed by one that differs from it in one thing.

    One drawing becomes another one, a drawing has a copy more (of four copies, one less), or two drawings change sides.
    """
    for scene in scenes(drawings, per_kind, stream):
        yield scene
        pieces = scene.pieces
        if scene.kind == "one":
            other = stream.choice([each for each in drawings if each[0].concept != pieces[0].drawing.concept])
            yield replace(scene, pieces=(pieces[0]._replace(drawing=stream.choice(other)),))
        elif scene.kind == "pair":
            left, right = pieces
            yield replace(scene, pieces=(left._replace(drawing=right.drawing), right._replace(drawing=left.drawing)))
        elif len(pieces) == MOST:
            yield replace(scene, pieces=pieces[:-1])
        else:
            taken = {(piece.left // _CELL * _CELL, piece.top // _CELL * _CELL) for piece in pieces}
            [free, *_] = [cell for cell in _cells(stream, MOST) if cell[:2] not in taken]
            yield replace(scene, pieces=(*pieces, _placed(pieces[0].drawing, free, _CELL_SIDES, stream)))


def mixtures(drawings: Sequence[Sequence[Drawing]], count: int, stream: Random) -> Iterator[Scene]:
    """Yield `count` random scenes of one to four different concepts, given the list of drawings of each concept."""
    turns = _turns(drawings, stream)
    for number in range(count):
        chosen: list[Sequence[Drawing]] = []
        while len(chosen) <= number % MOST:
            chosen.append(next(each for each in turns if each not in chosen))
        cells = _cells(stream, len(chosen))
        pieces = [_placed(stream.choice(each), cell, _CELL_SIDES, stream) for each, cell in zip(chosen, cells)]
        yield Scene("mixed", tuple(pieces), _background(stream))


def _cells(stream: Random, count: int) -> list[tuple[int, int, int, int]]:
    """Return `count` different random quarters of the picture, as boxes (left, top, width, height)."""
    return stream.sample([(left, top, _CELL, _CELL) for top in (0, _CELL) for left in (0, _CELL)], count)


def _placed(drawing: Drawing, box: tuple[int, int, int, int], sides: tuple[int, int], stream: Random) -> Piece:
    """Return `drawing` at a random position in `box` (left, top, width, height), with a random size from `sides`."""
    left, top, width, height = box
    side = stream.randint(*sides)
    across, down = stream.randint(0, width - side), stream.randint(0, height - side)
    return Piece(drawing, left + across, top + down, side, stream.random() < 0.5)


def _background(stream: Random) -> tuple[int, int, int]:
    return _WHITE if stream.random() < 0.5 else stream.choice(_PALE)


def _turns(members: Sequence[T], stream: Random) -> Iterator[T]:
    """Yield all `members` in random order, over and over without end, in a new order each time."""
    while True:
        yield from stream.sample(members, len(members))


@lru_cache(maxsize=512)
def _cut_out(path: str) -> tuple[Image.Image, Image.Image]:
    """Return a drawing, and a mask in mode L of the white paper around the drawing and of the drawing's outer edge."""
    drawing = open_image(path)
    framed = ImageOps.expand(drawing, 1, _WHITE)
    ImageDraw.floodfill(framed, (0, 0), _MARK, thresh=_NEARLY_WHITE)
    others = ImageChops.difference(framed, Image.new("RGB", framed.size, _MARK)).convert("L")
    paper = others.point(lambda value: 0 if value else 255).filter(ImageFilter.MaxFilter(3))
    return drawing, ImageOps.crop(paper, 1)


def _fitted(image: Image.Image, piece: Piece) -> Image.Image:
    scaled = image.resize((piece.side, piece.side), Image.Resampling.LANCZOS)
    return ImageOps.mirror(scaled) if piece.mirrored else scaled

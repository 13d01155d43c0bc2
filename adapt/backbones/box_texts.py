"""Boxes as words, as each family of native vision-language models writes them.

Inside adapt, a box is `Edges`: left, upper, right and lower edge in pixels of the upright picture. Sources: Qwen2-VL,
Qwen2.5-VL and Qwen3-VL as their maintainers say (QwenLM/Qwen3-VL issues 866, 1161, 1486), PaliGemma's 1,024 tokens of
places, InternVL's and LLaVA-1.5's papers. Other families have no form of their own, and get thousandths.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import NamedTuple

Edges = tuple[float, float, float, float]
Size = tuple[int, int]  # width and height
Boxed = tuple[Sequence[Edges], Size]  # the boxes of a thing in a picture, and the picture's size

_N = r"(-?\d+(?:\.\d+)?)"
_FOUR = re.compile(rf"{_N}[,\s]+{_N}[\])]?[,\s]+[\[(]?{_N}[,\s]+{_N}")  # with brackets of any kind around them
_FENCE = re.compile(r"```(?:json)?|\s+")
_BEYOND = 0.05  # of a picture's side: answers further outside are no boxes of it
_DIGITS, _POWERS = ("one", "two", "three", "four"), (16, 4, 1)
_TINY = 1e-6  # units, for edges that rounding moved over a boundary
_COLUMN = r"((?:(?:one|two|three|four)\s+){2}(?:one|two|three|four))"


class NamedBox(NamedTuple):
    """A box that a model answered, with the name that it gave, or "", and a probability if the box has one."""

    name: str
    edges: Edges
    probability: float | None = None

    def plain(self) -> dict[str, object]:
        """Return the box as data for JSON, with edges to a tenth of a pixel."""
        sure = {} if self.probability is None else {"probability": self.probability}
        return {"bbox": [round(float(edge), 1) for edge in self.edges], "label": self.name, **sure}


@dataclass(frozen=True)
class BoxForm:
    """How a family writes boxes: a template of a box, what stands between and around several, and the unit."""

    box: str = "[{}, {}, {}, {}]"
    pattern: str = rf"\[{_N},\s*{_N},\s*{_N},\s*{_N}\]"
    """Finds a box that the family wrote: four numbers, and the group `name` if it has a name."""
    between: str = ", "
    around: str = "{}"
    quoted: bool = False
    """Whether the name of a box is a string of JSON."""
    none: str = "nothing"
    """The answer if there is no box."""
    question: str = "where is the {}?"
    units: int = 1000
    """The units on each side of the picture; 0 for pixels of the picture as the model sees it."""
    rounding: str = "nearest"
    """`nearest` and `floor` to whole units; `within`: the first and the last unit in the box; `decimals`: three."""
    places: tuple[int, int, int, int] = (0, 1, 2, 3)
    """Which edges are written first to last."""
    padded: bool = False
    """Whether the picture is the middle of a square."""

    def write(self, name: str, boxes: Sequence[Edges], size: Size, seen: Size) -> str:
        """Return the words of an answer with `boxes` of the thing `name` in a picture of `size`, seen as `seen`."""
        scale, shift = self._scale(size, seen)
        name, written = json.dumps(name, ensure_ascii=False) if self.quoted else name, []
        for box in boxes:
            values = [(edge + shift[at % 2]) * scale[at % 2] for at, edge in enumerate(box)]
            written.append(self.box.format(*(self._number(values[at], at >= 2) for at in self.places), name=name))
        return self.around.format(self.between.join(written)) if boxes else self.none

    def read(self, answer: str, size: Size, seen: Size, strict: bool = False) -> tuple[NamedBox, ...] | None:
        """Return the boxes in an answer, inside the picture, or None if it has none that can be read.

        An answer in another form than the family's is read as four numbers in the family's units, unless `strict`.
        """
        if _FENCE.sub("", answer) == _FENCE.sub("", self.none):
            return ()
        own = list(re.finditer(self.pattern, answer))
        scale, shift = self._scale(size, seen)
        found = []
        for match in own or (() if strict or self.rounding == "within" else _FOUR.finditer(answer)):
            name, box = match.groupdict().get("name") or "", [0.0] * 4
            with suppress(ValueError):  # escapes that JSON does not have
                name = json.loads(name) if self.quoted and name else name
            numbers = [match[at] for at in range(1, match.re.groups + 1) if at != match.re.groupindex.get("name")]
            for text, at in zip(numbers, self.places, strict=True):
                box[at] = self._value(text, at >= 2) / scale[at % 2] - shift[at % 2]
            ends = [sorted(box[axis::2]) for axis in (0, 1)]  # models swap corners
            for (low, high), side in zip(ends, size, strict=True):
                if low < -_BEYOND * side or high > (1 + _BEYOND) * side:
                    return None
            (x0, x1), (y0, y1) = ([min(max(end, 0.0), float(side)) for end in own] for own, side in zip(ends, size))
            found.append(NamedBox(name.strip(), (x0, y0, x1, y1)))
        return tuple(found) or None

    def _scale(self, size: Size, seen: Size) -> tuple[list[float], list[float]]:
        """Return the units of a pixel, and the pixels before the picture, across and down."""
        if self.padded:
            return [self.units / max(size)] * 2, [(max(size) - side) / 2 for side in size]
        return [(self.units or whole) / side for whole, side in zip(seen, size)], [0.0, 0.0]

    def _number(self, value: float, last: bool) -> str:
        if self.rounding == "decimals":
            return f"{value:.3f}"
        whole = round(value) if self.rounding == "nearest" else floor(value + _TINY)
        if self.rounding == "within" and last:
            whole = ceil(value - _TINY) - 1
        whole = min(max(whole, 0), self.units - 1 if self.units else whole)
        return " ".join(_DIGITS[whole // power % 4] for power in _POWERS) if self.rounding == "within" else str(whole)

    def _value(self, text: str, last: bool) -> float:
        if self.rounding != "within":
            return float(text)
        return float(sum(_DIGITS.index(word) * power for word, power in zip(text.split(), _POWERS))) + last


THOUSANDTHS = BoxForm()
# for vocabularies without digits, as mini-vlm's: the first and the last of 64 columns and rows, in the base of four
IN_WORDS = BoxForm(
    "{}, {}, {}, {}", r"\s*,\s*".join([_COLUMN] * 4), between=". ", around="{}.", units=64, rounding="within"
)
_JSON = BoxForm(
    '{{"bbox_2d": [{}, {}, {}, {}], "label": {name}}}',
    rf'"bbox_2d":\s*\[{_N},\s*{_N},\s*{_N},\s*{_N}\](?:,\s*"label":\s*(?P<name>"(?:[^"\\]|\\.)*"))?',
    quoted=True,
    around="```json\n[{}]\n```",
    none="```json\n[]\n```",
    question="Locate every {} in the image, and output the coordinates in JSON format.",
)
OF_FAMILY = {  # by the type of a model
    "qwen2_vl": BoxForm(
        "<|object_ref_start|>{name}<|object_ref_end|><|box_start|>({},{}),({},{})<|box_end|>",
        rf"(?:(?P<name>[^<>()\n]*)(?:<\|object_ref_end\|>)?(?:<\|box_start\|>)?)\({_N},\s*{_N}\),\s*\({_N},\s*{_N}\)",
        between="",
    ),
    "qwen2_5_vl": replace(_JSON, units=0),
    "qwen3_vl": _JSON,
    "internvl": BoxForm(
        "<ref>{name}</ref><box>[[{}, {}, {}, {}]]</box>",
        rf"(?:<ref>(?P<name>[^<>]*)</ref>)?<box>\[\[{_N},\s*{_N},\s*{_N},\s*{_N}\]\]</box>",
        between="",
    ),
    "paligemma": BoxForm(
        "<loc{:0>4}><loc{:0>4}><loc{:0>4}><loc{:0>4}> {name}",
        r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>\s*(?P<name>[^<>;]*)",
        between=" ; ",
        question="detect {}",
        units=1024,
        rounding="floor",
        places=(1, 0, 3, 2),
    ),
    "llava": BoxForm(units=1, rounding="decimals", padded=True),
}


def plain_text(name: str, boxes: Sequence[Edges]) -> str:
    """Return the boxes of a thing as JSON, in pixels of the upright picture, whatever the family."""
    return json.dumps([NamedBox(name, box).plain() for box in boxes])

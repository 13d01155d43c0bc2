"""Descriptions of unlabelled images by a native vision-language model, and preferences that it makes for itself (STIC).

Paper: Deng et al., Enhancing Large Vision Language Models with Self-Training on Image Comprehension, NeurIPS 2024,
arXiv 2405.19716.
Reference: yihedeng9/STIC `993734e`, `stic/generate_pref.py`, `stic/add_des_to_data.py`.
Deviations:
* Answers are greedy; the reference samples them at a temperature of 0.2.
* The prompts are our own, of the reference's kinds.
* Damaged images are really shown; in the reference's released pairs that branch shows the clean image.
* Draws depend on the seed and the image's name alone, so that a resumed file is the file of one run.
* A pair whose answers say nearly the same is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal

from PIL import Image

from adapt.common.disk import write_text
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject, dump
from adapt.common.progress import Progress
from adapt.common.shown import brief
from adapt.data.decoding.images import open_image
from adapt.data.decoding.inline import rows_of
from adapt.evaluation.free_text import token_f1

if TYPE_CHECKING:
    from adapt.models.native_vlm import ChatModel

DESCRIBE = "Describe the image."
GOOD = (
    "Describe the image step by step: who or what is in it, and what they do; where it is; its light and mood; its "
    "colours, and how it is composed; small things that tell something; and what it means as a whole."
)
PLAIN = (
    "Describe the image in one sentence.",
    "Sum up what the image shows.",
    "What does the image show?",
    "Explain briefly what is in the image.",
    "Give a short account of the image.",
    "Say in a sentence what can be seen.",
    "Outline the content of the image.",
    "What is going on in the image?",
)
MISLEADING = (
    "Describe the image, with things that could well be there but cannot be seen.",
    "Describe the image and the people who might just have left it.",
    "Describe what happens right beside the image, as if it could be seen.",
    "Describe the image with the weather that it might have.",
    "Describe the image, and name tools that may lie around in it.",
    "Describe the image as if a second object were hidden in it.",
    "Describe the image with the sounds and smells that it suggests.",
    "Describe the image, and what has probably happened just before.",
)
_TOGETHER = 8  # images of which answers are generated in one batch
_SMALL, _BRIGHTNESS, _HUE = 20, 0.5, 0.3  # pixels of the shorter side, and the reference's ranges of the jitter
_SAME = 0.9  # the F1 of their words from which two answers count as the same


@dataclass(frozen=True)
class Damage:
    """Damage to an image: it is made `small`, or jittered in brightness and hue, in this order unless `hue_first`."""

    kind: Literal["small", "jitter"]
    brightness: float = 1.0
    hue: float = 0.0
    hue_first: bool = False

    @classmethod
    def drawn(cls, draw: Random) -> Damage:
        if draw.random() < 0.5:
            return cls("small")
        brightness, hue = draw.uniform(1 - _BRIGHTNESS, 1 + _BRIGHTNESS), draw.uniform(-_HUE, _HUE)
        return cls("jitter", brightness, hue, draw.random() < 0.5)

    def __call__(self, image: Image.Image) -> Image.Image:
        from torchvision.transforms import functional as F

        if self.kind == "small":
            return F.resize(image, _SMALL)
        steps: list[Callable[[Image.Image], Image.Image]] = [
            lambda each: F.adjust_brightness(each, self.brightness),
            lambda each: F.adjust_hue(each, self.hue),
        ]
        for step in reversed(steps) if self.hue_first else steps:
            image = step(image)
        return image


@dataclass(frozen=True)
class RowMaker:
    """Makes rows about the images in a folder, of a model's answers of at most so many `tokens`."""

    model: ChatModel
    folder: str
    tokens: int = field(default=128, kw_only=True)
    adapter: str = field(default="", kw_only=True)
    """The name of the model's adapter, if it has one."""

    @property
    def source(self) -> JsonObject:
        """The model and the settings, which each row names."""
        adapter = {"adapter": self.adapter} if self.adapter else {}
        return {"model": self.model.backbone.name, **adapter, "tokens": self.tokens}

    def __call__(self, names: Sequence[str]) -> list[JsonObject]:
        """Return the rows of the images `names` in the folder."""
        raise NotImplementedError

    def opened(self, names: Sequence[str]) -> list[Image.Image]:
        """Return the images `names` in the folder."""
        return [open_image(Path(self.folder, name), turned=self.model.backbone.preprocess.turned) for name in names]

    def answers(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
        """Return the model's answers, one to a prompt about each image."""
        answers = self.model.generate([[image] for image in images], prompts, max_new_tokens=self.tokens)
        return [answer.text.strip() for answer in answers]


@dataclass(frozen=True)
class Describer(RowMaker):
    """Makes rows of captions, the answers to `prompt`, as `captions_file` reads them.

    What is `known` of an image by its name, such as its class, is in its row too.
    """

    prompt: str = DESCRIBE
    known: Mapping[str, JsonObject] = field(default_factory=dict)

    @property
    def source(self) -> JsonObject:
        return super().source | {"prompt": self.prompt, "labels": bool(self.known)}

    def __call__(self, names: Sequence[str]) -> list[JsonObject]:
        texts = self.answers(self.opened(names), [self.prompt] * len(names))
        return [
            {"image": name, **self.known.get(name, {}), "caption": text, "source": self.source}
            for name, text in zip(names, texts, strict=True)
        ]


@dataclass(frozen=True)
class PairMaker(RowMaker):
    """Makes rows of preferences, as `chats_file` reads them.

    The chosen answer is that to the prompt `good`, learned as the answer to a plain prompt. The rejected one is that to
    a misleading prompt or, for a `share` of the images, to the plain prompt about the damaged image. All is drawn by
    the `seed` and the image's name.
    """

    good: str = GOOD
    share: float = 0.5
    seed: int = 0

    @property
    def source(self) -> JsonObject:
        return super().source | {"good": self.good, "share": self.share, "seed": self.seed}

    def __call__(self, names: Sequence[str]) -> list[JsonObject]:
        """Return a row for each of the images `names` in the folder, but for those with the same answer twice."""
        draws = [Random(f"{self.seed}/{name}") for name in names]
        plain = [draw.choice(PLAIN) for draw in draws]
        damages = [Damage.drawn(draw) if draw.random() < self.share else None for draw in draws]
        asked = [
            draw.choice(MISLEADING) if damage is None else own
            for draw, damage, own in zip(draws, damages, plain, strict=True)
        ]
        images = self.opened(names)
        shown = [image if damage is None else damage(image) for image, damage in zip(images, damages, strict=True)]
        chosen, rejected = self.answers(images, [self.good] * len(names)), self.answers(shown, asked)
        rows: list[JsonObject] = []
        for place, name in enumerate(names):
            damage = damages[place]
            made = {"made": "misleading" if damage is None else damage.kind, "prompt": asked[place]}
            row = {"image": name, "question": plain[place], "chosen": chosen[place], "rejected": rejected[place]}
            if all(row.values()) and token_f1(chosen[place], rejected[place]) <= _SAME:
                rows.append({**row, "source": self.source | made})
        return rows


def write_rows(
    out: Path,
    names: Sequence[str],
    maker: RowMaker,
    resume: bool = False,
    progress: Progress | None = None,
) -> list[JsonObject]:
    """Write the rows of the images `names` to a JSONL file as they are made, and return all that it has in the end.

    With `resume`, rows that the file has are kept, and only the others are made. Raises AdaptError for a file that was
    made in another way.
    """
    rows: list[JsonObject] = []
    source = maker.source
    if resume and out.exists():
        whole, _, cut = out.read_text(encoding="utf-8").rpartition("\n")  # a line that is cut off is made again
        for number, row in enumerate(rows_of(whole, lines=True), 1):
            if not (isinstance(row, dict) and "image" in row):
                raise AdaptError(f"{out} row {number} is {brief(row)}; expected a row that was written here")
            rows.append(row)
            made = row.get("source")
            for key, value in source.items():
                if not isinstance(made, dict) or made.get(key) != value:
                    raise AdaptError(
                        f"{out} row {number} was not made with the {key} {brief(value)}: give what it was made with, "
                        "or a new file"
                    )
        if cut:
            write_text(out, f"{whole}\n" * bool(whole))
    done = {row["image"] for row in rows}
    left = [name for name in names if name not in done]
    with out.open("a", encoding="utf-8") as file:
        for start in range(0, len(left), _TOGETHER):
            own = left[start : start + _TOGETHER]
            made = maker(own)
            file.writelines(f"{dump(row)}\n" for row in made)
            file.flush()
            rows += made
            if progress is not None:
                progress(len(names) - len(left) + start + len(own), len(names))
    return rows

"""How often windows of images of the training's kind are an alarm, and how often windows of another kind are one.

Windows have 64 images that were not learned from: of all classes, and with shares of the classes drawn at random.

    python -m benchmarks watch
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

import adapt
from adapt.data import Item, Split
from adapt.methods import ZeroShot
from adapt.models.watch import WINDOW, Watch, Windows, properties
from benchmarks.measure import Row

DRAWS, WINDOWS = 20, 20  # of training images, and of windows of each
FEW, MOST = 40, 600  # training images, and photographs of a set


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield a row of false alarms and a row of alarms found for each set of images and number of training images."""
    from benchmarks import photographs

    progress("emoji")
    split = adapt.data.load("emoji")
    seen = _looks("mini-clip", [*split.train, *split.val], split.class_names)
    others = {"another style": _looks("mini-clip", adapt.data.load("emoji@fluent-3d").test, split.class_names)[""]}
    for classes in (24, 8):
        for images in (FEW, None):
            yield from _rows("emoji on mini-clip", seen, others, classes, images)
    for name in ("surfaces", "solar kinds", "faces"):
        progress(name)
        parts = adapt.data.load(str(photographs.listing(name, 1)), root="/")
        items = [*parts.items()]
        drawn = random.Random(0).sample(items, min(len(items), MOST))
        seen = _looks(photographs.BACKBONE, drawn, parts.class_names)
        for images in (FEW, None):
            yield from _rows(f"{name} on {photographs.BACKBONE}", seen, {}, len(parts.class_names), images)
    for name in ("mini-clip", photographs.BACKBONE):
        progress(f"cost on {name}")
        yield _cost(name, split)


def _cost(name: str, split: Split) -> Row:
    """Return what a watch adds to the CPU time of `predict`, side by side in turns."""
    model = adapt.wrap(adapt.load_backbone(name, "cpu"), adapt.methods.GDA(), split.class_names)
    adapt.fit(model, split.few_shot(shots=2, seed=1).train, progress=False, watch=True)
    images, watch = [adapt.data.open_image(item) for item in split.test[:256]], model.watch
    seconds: tuple[list[float], list[float]] = [], []
    for turn in range(12):
        model.watch = watch if turn % 2 else None
        started = process_time()
        windows = Windows(model.watch)
        for prediction in model.predict(images):
            windows.add(prediction.sighting)
        seconds[turn % 2].append(process_time() - started)
    share = median(seconds[1]) / median(seconds[0]) - 1
    return {"case": f"cost on {name}", "share": share, "text": f"{100 * share:.1f} % of predict's CPU time"}


class Looks(NamedTuple):
    """Images as a backbone sees them: properties `(n, 14)`, features `(n, e)`, and classes `(n,)`."""

    pixels: Tensor
    features: Tensor
    labels: Tensor

    def at(self, which: Tensor) -> Looks:
        return Looks(self.pixels[which], self.features[which], self.labels[which])


def _other_colours(image: Image.Image) -> Image.Image:
    hue, *rest = image.convert("HSV").split()
    return Image.merge("HSV", (hue.point(lambda value: (value + 96) % 256), *rest)).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "": lambda image: image,
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(max(image.size) / 60)),
    "turned by 90°": lambda image: image.rotate(90, expand=True),
    "other colours": _other_colours,
    "half as bright": lambda image: image.point(lambda value: value * 0.5),
}


def _looks(name: str, items: Sequence[Item], class_names: Sequence[str]) -> dict[str, Looks]:
    """Return the looks of images as they are, and after each change."""
    backbone = adapt.load_backbone(name, "cpu")
    model: Any = adapt.wrap(
        backbone, ZeroShot() if backbone.kind == "dual encoder" else adapt.methods.GDA(), class_names
    )
    labels, transform = adapt.tasks.of(items).numbers(items, class_names), backbone.transform(train=False)
    found = {}
    for change, changed in CHANGES.items():
        pixels, features = [], []
        for start in range(0, len(items), WINDOW):
            batch = items[start : start + WINDOW]
            images = torch.stack([transform(changed(adapt.data.open_image(item).convert("RGB"))) for item in batch])
            pixels.append(properties(images))
            with torch.no_grad():
                features.append(model.backbone_features(images).float())
        found[change] = Looks(torch.cat(pixels), torch.cat(features), labels)
    return found


def _rows(
    case: str, seen: dict[str, Looks], others: dict[str, Looks], classes: int, images: int | None
) -> Iterator[Row]:
    """Yield the rows of draws of `classes` classes and `images` training images, or half of all."""
    drawn = torch.Generator().manual_seed(0)
    same, every = seen[""], int(seen[""].labels.max()) + 1
    false, found = {"same shares": list[bool](), "other shares": list[bool]()}, dict[str, list[bool]]()

    def alarms(watch: Watch, looks: Looks, weights: Tensor, count: int) -> list[bool]:
        windows = (looks.at(torch.multinomial(weights, WINDOW, generator=drawn)) for _ in range(count))
        return [watch.compare(watch.look(*each)).alarm for each in windows]

    for _ in range(DRAWS):
        chosen = torch.randperm(every, generator=drawn)[:classes]
        own = torch.isin(same.labels, chosen)
        order = own.nonzero()[:, 0][torch.randperm(int(own.sum()), generator=drawn)]
        half = len(order) // 2 if images is None else images
        learned = same.at(order[:half])
        watch = Watch.of(*learned, every)
        rest = torch.zeros(len(own)).double()
        rest[order[half:]] = 1.0
        false["same shares"] += alarms(watch, same, rest, WINDOWS)
        for _ in range(WINDOWS):
            shares = torch._sample_dirichlet(torch.ones(every).double(), drawn)
            of_class = torch.zeros(every).double().index_add(0, same.labels, rest).clamp_min(1)
            false["other shares"] += alarms(watch, same, rest * (shares / of_class)[same.labels] + 1e-12 * rest, 1)
        for name, looks in (seen | others).items():
            if name:
                weights = rest if name in seen else torch.isin(looks.labels, chosen).double()
                if int((weights > 0).sum()) >= WINDOW:
                    found[name] = found.get(name, []) + alarms(watch, looks, weights, WINDOWS)
        if classes < every:
            found["other classes"] = found.get("other classes", []) + alarms(watch, same, 1.0 * ~own, WINDOWS)
    of = f"{case}, {classes} classes, {'half of the' if images is None else images} images"
    told = {name: sum(each) / len(each) for name, each in false.items()}
    text = "; ".join(f"{name} {100 * share:.2f} %" for name, share in told.items())
    yield {"case": f"{of}, false alarms", "rates": told, "text": text}
    # of two windows one at least
    told = {
        name: sum(map(max, zip(each[::2], each[1::2], strict=True))) / (len(each) // 2) for name, each in found.items()
    }
    text = "; ".join(f"{name} {100 * share:.0f} %" for name, share in told.items())
    yield {"case": f"{of}, found in two windows", "rates": told, "text": text}

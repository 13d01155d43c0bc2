"""The choice of `adapt recommend` for numbers, against scikit-learn's regressors on the same features."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from tempfile import gettempdir
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageDraw

import adapt
from adapt import tasks
from adapt.backbones.base import ImageEncoder
from adapt.backbones.load import load_backbone
from adapt.choosing.recommendation import recommend
from adapt.data import Item, open_image
from adapt.models.features import item_features
from adapt.models.image_model import ImageModel
from adapt.models.unadapted import unadapted
from benchmarks.drawings import SEEN, drawings
from benchmarks.measure import Row

SEEDS = (1, 2, 3, 4, 5)
TRAIN, TEST, SIDE = 120, 300, 64
FOLDER = Path(gettempdir()) / "adapt-numbers"
WIDE = "wide"  # the set with features of 1,280 numbers
Picture = tuple[Image.Image, float]
Figures = dict[str, tuple[float, float]]  # mean absolute error and Spearman's correlation, by what answers


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield a row for each data set, with means over five draws of the training images and the same test images."""
    for name, draw in SETS.items():
        progress(f"drawing {name}")
        pictures = _written(name, draw)
        draws = []
        for seed in SEEDS:
            draws.append(_draw(name, pictures, seed))
            progress(f"{name}, draw {seed}: {draws[-1]}")
        yield {"case": name, "text": _line(draws)}


def _draw(name: str, pictures: dict[str, list[tuple[str, float]]], seed: int) -> Figures:
    file = FOLDER / name / f"draw-{seed}.csv"
    with file.open("w", newline="") as written:
        writer = csv.writer(written)
        writer.writerow(["path", "target", "split"])
        for part, listed in pictures.items():
            own = random.Random(seed).sample(listed, TRAIN) if part == "train" else listed
            writer.writerows([path, target, part] for path, target in own)
    spec = _wide() if name == WIDE else "mini-clip"
    taken = recommend(str(file), seed=seed, backbone=spec, progress=False)
    assert taken.result is not None
    adapted, constant = taken.result.metrics["adapted"], taken.result.metrics["zero_shot"]
    split, backbone = adapt.data.load(file), load_backbone(spec)
    assert isinstance(backbone, ImageEncoder)
    features, targets = zip(*(_data(items, backbone, split.class_names) for items in (split.train, split.test)))
    return {
        taken.chosen: (adapted["mean_absolute_error"], adapted["spearman"]),
        "scikit-learn": _scikit_learns(features[0], targets[0], features[1], targets[1]),
        "mean": (constant["mean_absolute_error"], 0.0),
    }


def _data(items: tuple[Item, ...], backbone: ImageEncoder, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return frozen features `(n, e)` and targets `(n,)`."""
    model = unadapted(backbone, names)
    assert isinstance(model, ImageModel)
    values = tasks.of(items).values(items)
    assert values is not None
    return item_features(model, items, workers=0).double().numpy(), values.numpy()


def _scikit_learns(
    features: np.ndarray, targets: np.ndarray, tested: np.ndarray, actual: np.ndarray
) -> tuple[float, float]:
    """Return the figures of ridge, kernel ridge or nearest neighbours, of which cross-validation chooses the best."""
    from scipy.stats import spearmanr
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.preprocessing import StandardScaler

    grids: list[tuple[Any, dict[str, Any]]] = [
        (Ridge(), {"alpha": np.logspace(-4, 3, 15)}),
        (KernelRidge(kernel="rbf"), {"alpha": np.logspace(-4, 1, 6), "gamma": 4.0 ** np.arange(-1, 4)}),
        (KNeighborsRegressor(), {"n_neighbors": [1, 3, 5, 9, 17], "weights": ["uniform", "distance"]}),
    ]
    searches = []
    for regressor, grid in grids:
        model = TransformedTargetRegressor(regressor, transformer=StandardScaler())
        values = {f"regressor__{name}": each for name, each in grid.items()}
        search = GridSearchCV(model, values, cv=5, scoring="neg_mean_absolute_error")
        searches.append(search.fit(features, targets))
    numbers = max(searches, key=lambda search: search.best_score_).predict(tested)
    return float(np.abs(numbers - actual).mean()), float(spearmanr(numbers, actual).statistic)


def _line(draws: list[Figures]) -> str:
    """Return the mean figures, and how far what was chosen is behind scikit-learn's, with the error over draws."""
    of_each = [list(draw.values()) for draw in draws]
    parts = []
    for title, place, sign in (("MAE", 0, 1), ("Spearman", 1, -1)):
        ours, theirs, constant = ([each[who][place] for each in of_each] for who in range(3))
        behind = [sign * (one - other) for one, other in zip(ours, theirs, strict=True)]
        error = stdev(behind) / len(behind) ** 0.5
        parts.append(
            f"{title} {mean(ours):.4g}, scikit-learn's best {mean(theirs):.4g}, the mean {mean(constant):.4g}, "
            f"behind scikit-learn's by {mean(behind):+.2g} ± {error:.2g}"
        )
    chosen = ", ".join(dict.fromkeys(next(iter(draw)) for draw in draws))
    return f"{'; '.join(parts)}; chosen: {chosen}"


def _written(name: str, draw: Callable[[str], Iterator[Picture]]) -> dict[str, list[tuple[str, float]]]:
    """Write the pictures of a data set, twice as many for training as one draw takes, and return paths and targets."""
    listed: dict[str, list[tuple[str, float]]] = {}
    for part, count in (("train", 2 * TRAIN), ("test", TEST)):
        folder = FOLDER / name / part
        folder.mkdir(parents=True, exist_ok=True)
        for number, (picture, target) in zip(range(count), draw(part)):
            path = folder / f"{number:05d}.png"
            picture.save(path)
            listed.setdefault(part, []).append((str(path), target))
    return listed


def _grades(part: str) -> Iterator[Picture]:
    """Take the bundled drawings, graded from 0 to 100 by how colourful they are: the mean saturation."""
    items = [*(drawings(SEEN).train if part == "train" else drawings(SEEN).test)]
    random.Random(part).shuffle(items)
    for item in items:
        picture = open_image(item).convert("RGB")
        yield picture, round(100 * float(np.asarray(picture.convert("HSV"))[..., 1].mean()) / 255, 2)


def _areas(part: str) -> Iterator[Picture]:
    """Draw an ellipse on noise, whose area is log-normal: most are small, few are large."""
    stream = random.Random(f"areas {part}")
    while True:
        area = min(2800.0, stream.lognormvariate(5, 1))
        wide = (area / np.pi) ** 0.5 * stream.uniform(0.8, 1.25)
        high = area / np.pi / wide
        x, y = (stream.uniform(reach, SIDE - reach) for reach in (min(wide, 31), min(high, 31)))
        picture = _noise(stream)
        ImageDraw.Draw(picture).ellipse((x - wide, y - high, x + wide, y + high), _colour(stream))
        yield picture, round(area, 1)


def _heaps(part: str) -> Iterator[Picture]:
    """Paste one to nine small drawings; each more is half as likely."""
    stream, things = random.Random(f"heaps {part}"), drawings(SEEN).train
    while True:
        count = min(9, 1 + next(number for number in range(99) if stream.random() < 0.5))
        picture = Image.new("RGB", (SIDE, SIDE), "white")
        for place in stream.sample(range(9), count):
            thing = open_image(stream.choice(things)).resize((20, 20))
            picture.paste(thing, (2 + 21 * (place % 3), 2 + 21 * (place // 3)))
        yield picture, float(count)


SETS: dict[str, Callable[[str], Iterator[Picture]]] = {
    "emoji grades": _grades, "areas, skewed": _areas, "heaps, skewed": _heaps, WIDE: _grades,
}  # fmt: skip


@cache
def _wide() -> str:
    """Write a MobileNetV2 with random weights, whose features have 1,280 numbers, and return its name."""
    import timm
    from safetensors.torch import save_file

    from adapt.common import plain
    from adapt.common.disk import write_text

    torch.manual_seed(0)
    net = timm.create_model("mobilenetv2_100", num_classes=0)
    folder = FOLDER / "mobilenetv2"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), folder / "model.safetensors")
    cfg: dict[str, object] = dict(cast("Any", net.pretrained_cfg)) | {"input_size": [3, SIDE, SIDE], "num_classes": 0}
    config = {"architecture": "mobilenetv2_100", "num_classes": 0, "pretrained_cfg": cfg}
    write_text(folder / "config.json", plain.dump(config))
    return f"timm:{folder}"


def _noise(stream: random.Random) -> Image.Image:
    grain = np.random.default_rng(stream.getrandbits(32)).normal(0, 12, (SIDE, SIDE, 3))
    return Image.fromarray((np.array(_colour(stream)) + grain).clip(0, 255).astype(np.uint8))


def _colour(stream: random.Random) -> tuple[int, ...]:
    return tuple(stream.randrange(256) for _ in range(3))

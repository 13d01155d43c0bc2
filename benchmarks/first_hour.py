"""The choice of `adapt recommend` on ordinary folders, against scikit-learn's classifiers on the same features."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import gettempdir

import numpy as np
import torch
from torch import Tensor

import adapt
from adapt.choosing.recommendation import recommend
from adapt.data import Split
from adapt.evaluation.intervals import standard_error
from adapt.methods import GDA, ZeroShot
from adapt.methods.gda import ALPHAS
from adapt.models.features import item_features
from adapt.recipe import read_recipe
from benchmarks.drawings import backbone, trained
from benchmarks.drawings import right as right_of
from benchmarks.measure import Row
from benchmarks.ordinary_folders import SETS, write

SHOTS: tuple[int | None, ...] = (2, 4, 8, 16, None)
SEEDS = (1, 2, 3)
FOLDER = Path(gettempdir()) / "adapt-first-hour"
Cell = tuple[str, int | None]  # a data set and a number of shots
PLAIN = ("logistic regression", "LDA", "5 neighbours")


@dataclass(frozen=True)
class Draw:
    """One draw of the shots: which test images each classifier gets right, what was chosen, and its estimate."""

    right: dict[str, Tensor]  # 1 if an image is classified correctly, else 0
    classes: int
    chosen: str
    estimate: float
    error: float
    gda_behind: float
    """How far GDA at its chosen alpha is behind its best alpha on the test images."""


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield a row for each data set and number of shots, then the summary."""
    for name in SETS:
        progress(f"drawing {name}")
        write(name, FOLDER)
    cells = list(product(SETS, SHOTS))
    with ProcessPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        draws = pool.map(_draws, *zip(*cells, strict=True))
        results: dict[Cell, list[Draw]] = {}
        for number, (cell, own) in enumerate(zip(cells, draws, strict=True), 1):
            progress(f"{number} of {len(cells)}: {cell[0]}, {cell[1] or 'all'} shots: {_line(own)}")
            results[cell] = own
    for (name, shots), own in results.items():
        yield {"case": f"{name}, {shots or 'all'} shots", "text": _line(own)}
    yield from _summary(results)


def _draws(name: str, shots: int | None) -> list[Draw]:
    return [_draw(name, shots, seed) for seed in SEEDS]


def _draw(name: str, shots: int | None, seed: int) -> Draw:
    folder = str(FOLDER / name)
    split = adapt.data.load(folder)
    split = split if shots is None else split.few_shot(shots, seed)
    zero_shot = adapt.wrap(backbone(), ZeroShot(), split.class_names).eval()
    train, test = (item_features(zero_shot, items, workers=0) for items in (split.train, split.test))
    labels, truth = (split.task.numbers(items, split.class_names) for items in (split.train, split.test))
    taken = recommend(folder, shots=shots, seed=seed, backbone="mini-clip", progress=False)
    assert taken.estimate is not None
    assert taken.result is not None
    model = _trained(taken.command, split)
    right = {"taken": right_of(model, split.test), "zero-shot": right_of(zero_shot, split.test)}
    assert float(right["taken"].mean()) == taken.result.accuracy  # the command trains the same again
    predictions = plain_classifiers(train.double().numpy(), labels.numpy(), test.double().numpy())
    right |= {each: (torch.from_numpy(predicted) == truth).double() for each, predicted in predictions.items()}
    return Draw(right, len(split.class_names), taken.chosen, *taken.estimate, _gda_behind(split, test, truth))


def _trained(command: str, split: Split) -> adapt.AdaptedModel:
    """Return the model that the command trains."""
    _, _, name, *options = shlex.split(command)
    sets = [option.removeprefix("--set=") for option in options if option.startswith("--set=")]
    [data] = [option.removeprefix("--data=") for option in options if option.startswith("--data=")]
    return trained(read_recipe(name, sets, data), split)


def plain_classifiers(features: np.ndarray, labels: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Return the predictions `(n,)` of scikit-learn's classifiers in fifteen ordinary lines."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.neighbors import KNeighborsClassifier

    regression = LogisticRegression(max_iter=5000)
    if (smallest := int(np.bincount(labels).min())) > 1:
        regression = LogisticRegressionCV(Cs=np.logspace(-3, 3, 7), cv=min(5, smallest), max_iter=5000)
    models = {
        "logistic regression": regression,
        "LDA": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
        "5 neighbours": KNeighborsClassifier(min(5, len(labels))),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: model.fit(features, labels).predict(test) for name, model in models.items()}


def _gda_behind(split: Split, test: Tensor, truth: Tensor) -> float:
    model = adapt.wrap(backbone(), GDA(views=0), split.class_names)
    adapt.fit(model, split.train, progress=False)
    model.eval()
    chosen, accuracy = model.method.config.alpha, dict[float, float]()
    for alpha in ALPHAS:
        model.method.config = model.method.config.model_copy(update={"alpha": alpha})
        accuracy[alpha] = float((model.logits(test).argmax(-1) == truth).float().mean())
    return max(accuracy.values()) - accuracy[chosen]


def _accuracy(draws: Sequence[Draw], name: str) -> float:
    return mean(float(draw.right[name].mean()) for draw in draws)


@dataclass(frozen=True)
class Behind:
    """The distance of the chosen method behind the best of scikit-learn's, with paired standard errors."""

    points: float
    of_images: float
    of_draws: float

    @property
    def errors(self) -> float:
        """In standard errors over the test images, for these draws only."""
        return self.points / self.of_images if self.of_images else 0.0

    @property
    def all_errors(self) -> float:
        """In standard errors over the test images and over draws of the shots."""
        both = (self.of_images**2 + self.of_draws**2) ** 0.5
        return self.points / both if both else 0.0


def _behind(draws: Sequence[Draw]) -> Behind:
    best = max(PLAIN, key=lambda name: _accuracy(draws, name))
    apart = torch.stack([draw.right[best] - draw.right["taken"] for draw in draws])  # (draws, images)
    of_images, of_draws = (
        standard_error(each, [str(number) for number in range(len(each))]) for each in (apart.mean(0), apart.mean(1))
    )
    return Behind(float(apart.mean()), of_images, of_draws if len(draws) > 1 else 0.0)


def _line(draws: Sequence[Draw]) -> str:
    figures = ", ".join(f"{name} {100 * _accuracy(draws, name):.1f}" for name in ("taken", *PLAIN, "zero-shot"))
    behind = _behind(draws)
    chosen = ", ".join(dict.fromkeys(draw.chosen for draw in draws))
    expected = ", ".join(f"{100 * draw.estimate:.0f} ± {100 * draw.error:.0f}" for draw in draws)
    distance = f"{100 * behind.points:+.1f} points behind, {behind.errors:+.1f} standard errors"
    return f"{figures}; {distance}; {chosen}; expected {expected}"


def _summary(results: dict[Cell, list[Draw]]) -> Iterator[Row]:
    behind = {cell: _behind(draws) for cell, draws in results.items()}
    within = sum(each.errors <= 1 for each in behind.values())
    yield _row("within one paired standard error of the best of scikit-learn's", f"{within} of {len(behind)} cells")
    worst = max(behind, key=lambda cell: behind[cell].errors)
    yield _row("furthest behind", f"{behind[worst].errors:.1f} standard errors ({worst[0]}, {worst[1] or 'all'} shots)")
    yield _row("... of the draws too", f"{max(each.all_errors for each in behind.values()):.1f} standard errors")
    yield _row("mean over all cells", _means(results.values()))
    strong = [draws for draws in results.values() if _is_strong(draws)]
    if strong:
        yield _row(f"mean over the {len(strong)} cells whose zero-shot is at least twice chance", _means(strong))
    draws = [draw for each in results.values() for draw in each]
    own, both = (sum(_is_met(draw, tested) for draw in draws) for tested in (False, True))
    yield _row("test accuracy within two standard errors of the estimate", f"{own} of {len(draws)}")
    yield _row("... of the difference, as test images are few too", f"{both} of {len(draws)}")
    yield _row("gda behind its best alpha on the test", f"{100 * mean(draw.gda_behind for draw in draws):.2f} points")


def _is_met(draw: Draw, tested: bool) -> bool:
    """Whether the test accuracy is as estimated; with `tested`, the error over the test images is allowed for too."""
    accuracy, images = _accuracy([draw], "taken"), len(draw.right["taken"])
    of_test = accuracy * (1 - accuracy) / images if tested else 0.0
    return bool(abs(draw.estimate - accuracy) <= 2 * (draw.error**2 + of_test) ** 0.5)


def _is_strong(draws: Sequence[Draw]) -> bool:
    return _accuracy(draws, "zero-shot") >= 2 / draws[0].classes


def _means(cells: Collection[Sequence[Draw]]) -> str:
    return ", ".join(
        f"{name} {100 * mean(_accuracy(draws, name) for draws in cells):.2f}" for name in ("taken", *PLAIN, "zero-shot")
    )


def _row(case: str, text: str) -> Row:
    return {"case": case, "text": text}

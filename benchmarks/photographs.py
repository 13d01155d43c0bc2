"""Accuracy, seconds and memory on real photographs, beside scikit-learn's choice and fine-tuning the last block.

The pictures come from packages that are installed by name: elpv-dataset (solar cells; CC BY-NC-SA 4.0, so they are
measured on and never handed on), scikit-image (tiles of photographs, faces) and conformal-clip-data (cloth; simulated,
so no photographs). Each cell is written to a file, and a run that is started again goes on with the cells that lack.

    python -m benchmarks photographs                   # all cells, or those that lack
    python -m benchmarks.photographs surfaces photos/  # the pictures of a set as a folder of classes
    python -m benchmarks.photographs page              # the tables of docs/photographs.md, of the cells that are there
"""

from __future__ import annotations

import csv
import gc
import logging
import multiprocessing
import random
import shutil
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from statistics import mean, median, stdev
from tempfile import gettempdir
from typing import Any, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import adapt
from adapt import tasks
from adapt.backbones.base import ImageEncoder
from adapt.choosing.candidates import candidates
from adapt.choosing.recommendation import recommend
from adapt.common import plain
from adapt.common.disk import write_text
from adapt.data import Item, open_image
from adapt.data.split import Split
from adapt.models.features import item_features
from adapt.models.image_model import ImageModel
from adapt.models.unadapted import unadapted
from adapt.recipe import read_recipe
from adapt.training.run_recipe import listed_data, run_recipe
from benchmarks.first_hour import PLAIN, plain_classifiers
from benchmarks.measure import Row, _status

T = TypeVar("T")
Labelled = tuple[str, Image.Image]
BACKBONE = "efficientnet-lite0"
FOLDER = Path(gettempdir()) / "adapt-photographs"
PAGE, STORED, PICTURE = (
    Path(__file__).parents[1] / "docs" / name
    for name in ("photographs.md", "photographs.json", "pictures/photographs.png")
)
SHOTS: tuple[int | None, ...] = (2, 4, 8, 16, None)
SEEDS = (1, 2, 3, 4, 5)
SHARE, MOST = 0.4, 400  # of a set's pictures that one draw may train on; the others are tested
OURS, THEIRS, TUNED = "recommend", "scikit-learn", "fine-tuned"
BESIDE = {OURS, THEIRS, TUNED, *PLAIN}  # all others are methods of ours, each by itself
EPOCHS, STEPS, BATCH = 20, (60, 300), 16  # of the fine-tuning: so many epochs, but no fewer and no more steps
HEAD_RATE, BLOCK_RATE, DECAY = 1e-3, 1e-4, 0.01
TILE, TILES, DARK = 64, 60, 4.0  # pixels, tiles of one photograph, and the spread of grey values above which one counts
_CELLS = {0.0: 400, 1 / 3: 250, 2 / 3: 106, 1.0: 244}  # solar cells by how probably they are defective


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield a row for each set and number of shots, once its draws are there; the quickest cells come first."""
    torch.set_num_threads(1)
    logging.getLogger("adapt").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    for shots in SHOTS:
        for seed in SEEDS:
            for name in SETS:
                file = FOLDER / "cells" / f"{name}-{shots or 'all'}-{seed}.json"
                if not file.is_file():
                    cell = _cell(name, shots, seed)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_text(file, plain.dump(cell, indent=1))
                    said = ", ".join(f"{who} {100 * each['accuracy']:.1f}" for who, each in cell["methods"].items())
                    progress(f"{name}, {shots or 'all'} shots, draw {seed}: {said}")
        for name in SETS:
            yield _row(name, shots, _stored(name, shots))


def _stored(name: str, shots: int | None) -> list[Row]:
    files = sorted((FOLDER / "cells").glob(f"{name}-{shots or 'all'}-*.json"))
    return [plain.parse(file.read_bytes()) for file in files]


def _row(name: str, shots: int | None, cells: Sequence[Row]) -> Row:
    behind, error = _behind(cells, THEIRS)
    text = ", ".join(f"{who} {100 * mean(_of(cells, who)):.1f} %" for who in (OURS, THEIRS, TUNED, *PLAIN))
    best = max(PLAIN, key=lambda who: mean(_of(cells, who)))
    return {
        "case": f"{name}, {shots or 'all'} shots", "cells": cells,
        "text": f"{text}; behind scikit-learn's choice by {behind:+.1f} ± {error:.1f} points, behind {best} by "
        "{:+.1f} ± {:.1f}".format(*_behind(cells, best)),
    }  # fmt: skip


def _cell(name: str, shots: int | None, seed: int) -> Row:
    """Measure one draw: each way in a forked process, with the features of all pictures computed before."""
    _warmed()
    file, encoder = listing(name, seed), _encoder()
    changes: dict[str, object] = {
        "backbone": BACKBONE, "data.shots": shots, "seed": seed, "data.sampling": "coop", "device": "cpu",
    }  # fmt: skip
    split = listed_data(read_recipe("zero_shot", list(changes.items()), str(file)), unlabelled=True)
    features = {part: _features(items, split.class_names) for part, items in _parts(split).items()}
    labels = {part: split.task.numbers(items, split.class_names) for part, items in _parts(split).items()}

    def ours() -> tuple[float, str]:
        found = recommend(str(file), backbone=encoder, shots=shots, seed=seed, device="cpu", progress=False)
        assert found.result is not None
        return float(found.result.metrics["adapted"]["accuracy"]), found.chosen

    measured = {OURS: _forked(ours)}
    for each in candidates(str(file), changes, False, encoder, tasks.of(split.items())):
        try:
            measured[each.name] = _forked(lambda own=each: (_trained(own, split), ""))  # type: ignore[misc]
        except RuntimeError:  # it does not fit the set, such as a method for bags
            continue
    measured[THEIRS] = _forked(lambda: _scikit_learns(features, labels))
    for who, predicted in plain_classifiers(features["train"], labels["train"].numpy(), features["test"]).items():
        measured[who] = {"accuracy": float((predicted == labels["test"].numpy()).mean())}
    maps = {part: _maps(SETS[name][0], items) for part, items in _parts(split).items()}
    measured[TUNED] = _forked(lambda: (_tuned(maps, labels, len(split.class_names), seed), ""))
    return {
        "set": name, "shots": shots, "seed": seed, "classes": len(split.class_names), "train": len(split.train),
        "test": len(split.test), "methods": measured,
    }  # fmt: skip


def _parts(split: Split) -> dict[str, tuple[Item, ...]]:
    return {"train": split.train, "test": split.test}


def _trained(candidate: Any, split: Split) -> float:
    result = run_recipe(candidate.recipe, None, False, False, split, _encoder())
    return float(result.metrics["adapted"]["accuracy"])


def _forked(step: Callable[[], tuple[float, str]]) -> Row:
    """Return accuracy, CPU seconds and peak memory above what was there before, of a step in a forked process."""
    receives, sends = multiprocessing.get_context("fork").Pipe(duplex=False)

    def child() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # start a new peak
        before, started = _status("VmRSS"), time.perf_counter()
        try:
            accuracy, detail = step()
        except (adapt.AdaptError, RuntimeError, ValueError) as error:
            sends.send({"error": f"{type(error).__name__}: {error}"})
            return
        used = [getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN)]
        sends.send({
            "accuracy": accuracy, "detail": detail, "seconds": round(time.perf_counter() - started, 2),
            "cpu_seconds": round(sum(each.ru_utime + each.ru_stime for each in used), 2),
            "peak_bytes": _status("VmHWM") - before,
        })  # fmt: skip

    gc.collect()
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    sends.close()
    try:
        told: Row = receives.recv()
    finally:
        process.join()
    if "error" in told:
        raise RuntimeError(told["error"])
    return told


@cache
def _warmed() -> None:
    """Import whatever is imported when it is used, so that no measured step pays for it."""
    file, encoder = listing("faces", 1), _encoder()
    recommend(str(file), backbone=encoder, shots=4, seed=1, device="cpu", progress=False)
    split = listed_data(read_recipe("zero_shot", ["backbone=mini-clip", "data.shots=4"], str(file)))
    parts = _parts(split)
    labels = {part: split.task.numbers(items, split.class_names) for part, items in parts.items()}
    _scikit_learns({part: _features(items, split.class_names) for part, items in parts.items()}, labels)


@cache
def _encoder() -> ImageEncoder:
    backbone = adapt.load_backbone(BACKBONE, "cpu")
    assert isinstance(backbone, ImageEncoder)
    return backbone


def _features(items: Sequence[Item], names: tuple[str, ...]) -> np.ndarray:
    """Return the unit-length features `(n, e)` of pictures, from the cache on disk, where they are put before."""
    model = unadapted(_encoder(), names)
    assert isinstance(model, ImageModel)
    return item_features(model, items, workers=0).double().numpy()


# scikit-learn's choice


def _scikit_learns(features: dict[str, np.ndarray], labels: dict[str, Tensor]) -> tuple[float, str]:
    """Return the accuracy of the classifier and settings that cross-validation chooses on the training features."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    own, actual = labels["train"].numpy(), labels["test"].numpy()
    folds = min(5, int(np.bincount(own).min()))
    least = len(own) - -(-len(own) // folds)  # pictures in the smallest part to train on
    grids: list[tuple[Any, dict[str, Any]]] = [
        (LogisticRegression(max_iter=2000), {"C": np.logspace(-2, 4, 7)}),
        (SVC(), {"kernel": ["linear", "rbf"], "C": np.logspace(-2, 3, 6)}),
        (KNeighborsClassifier(), {
            "n_neighbors": [k for k in (1, 3, 5, 9, 17) if k <= least], "weights": ["uniform", "distance"],
        }),
    ]  # fmt: skip
    if least > own.max() + 1:  # it needs more pictures than classes
        grids.append((LinearDiscriminantAnalysis(solver="lsqr"), {"shrinkage": ["auto", 0.1, 0.3, 0.6, 0.9]}))
    parts = StratifiedKFold(folds, shuffle=True, random_state=0)
    searches = [GridSearchCV(model, grid, cv=parts).fit(features["train"], own) for model, grid in grids]
    best = max(searches, key=lambda search: search.best_score_)
    chosen = {key: value if isinstance(value, str) else float(value) for key, value in best.best_params_.items()}
    return float((best.predict(features["test"]) == actual).mean()), f"{type(best.estimator).__name__} {chosen}"


# fine-tuning the last block and a head


def _maps(source: str, items: Sequence[Item]) -> Tensor:
    """Return the frozen inputs of the last block, of pictures and of their mirror images, `(n, 2, d, h, w)`."""
    kept = _source_maps(source)
    return torch.stack([kept[Path(item.path).name] for item in items])


@cache
def _source_maps(source: str) -> dict[str, Tensor]:
    file = FOLDER / "maps" / f"{source}.pt"
    if not file.is_file():
        model, transform, maps = cast(Any, _encoder().model), _encoder().transform(train=False), {}
        with torch.no_grad():
            for path in sorted((FOLDER / source).glob("*.png")):
                pixels = transform(open_image(str(path)))
                x = model.bn1(model.conv_stem(torch.stack([pixels, pixels.flip(-1)])))
                maps[path.name] = model.blocks[:-1](x).half()
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(maps, file)
    read: dict[str, Tensor] = torch.load(file, weights_only=True)
    return read


class _LastBlock(nn.Module):
    """The last block of EfficientNet-Lite with the convolution behind it, and a new linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        model = cast(Any, deepcopy(_encoder().model))
        self.block = nn.Sequential(model.blocks[-1], model.conv_head, model.bn2).requires_grad_(True)
        self.head = nn.Linear(model.num_features, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.head(self.block(maps).mean((-2, -1)))
        return logits


def _tuned(maps: dict[str, Tensor], labels: dict[str, Tensor], classes: int, seed: int) -> float:
    """Train the last block and a head by the one recipe of the page, and return the accuracy on the test pictures."""
    torch.manual_seed(seed)
    model, draw = _LastBlock(classes).eval(), torch.Generator().manual_seed(seed)  # statistics of norms stay
    groups = [
        {"params": model.block.parameters(), "lr": BLOCK_RATE}, {"params": model.head.parameters(), "lr": HEAD_RATE},
    ]  # fmt: skip
    optimiser = torch.optim.AdamW(groups, weight_decay=DECAY)
    count = len(labels["train"])
    steps = min(max(EPOCHS * count // BATCH, STEPS[0]), STEPS[1])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    order = torch.cat([torch.randperm(count, generator=draw) for _ in range(-(-steps * BATCH // count))])
    for places in order[: steps * BATCH].split(BATCH):
        mirrored = torch.randint(2, (len(places),), generator=draw)
        logits = model(maps["train"][places, mirrored].float())
        optimiser.zero_grad()
        nn.functional.cross_entropy(logits, labels["train"][places]).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        found = torch.cat([model(part[:, 0].float()).argmax(-1) for part in maps["test"].split(64)])
    return float((found == labels["test"]).float().mean())


# the pictures


def listing(name: str, seed: int) -> Path:
    """Write a list of a set's pictures, divided into training and test pictures by a seed, and return its path."""
    source, label = SETS[name]
    by_class: dict[str, list[str]] = defaultdict(list)
    for path in pictures(source):
        if (own := label(path.stem)) is not None:
            by_class[own].append(str(path))
    share = min(SHARE, MOST / sum(map(len, by_class.values())))
    file = FOLDER / f"{name}-{seed}.csv"
    with file.open("w", newline="") as written:
        writer = csv.writer(written)
        writer.writerow(["path", "label", "split"])
        for own, paths in by_class.items():
            random.Random(f"{seed} {own}").shuffle(paths)
            trained = round(share * len(paths))
            writer.writerows([path, own, "train" if at < trained else "test"] for at, path in enumerate(paths))
    return file


def pictures(source: str) -> list[Path]:
    """Return the paths of a source's pictures, which are written first if they are not there yet."""
    folder = FOLDER / source
    if not (folder / "complete").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for number, (label, picture) in enumerate(SOURCES[source]()):
            picture.save(folder / f"{label}_{number:05d}.png")
        (folder / "complete").touch()
    return sorted(folder.glob("*.png"))


def folder_of(package: str, distribution: str) -> Path:
    """Return the folder of an installed package. Raises SystemExit, with what to install, if it is not there."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"the pictures are in a package that is not installed: pip install {distribution}")
    return Path(found.origin).parent


def _solar() -> Iterator[Labelled]:
    """Take 1,000 of the solar cells, labelled by the kind of cell and how probably it is defective."""
    data = folder_of("elpv_dataset", "elpv-dataset") / "data"
    lines = [line.split() for line in (data / "labels.csv").read_text().splitlines()]
    for grade, (probability, count) in enumerate(_CELLS.items()):
        own = [(path, kind) for path, told, kind in lines if abs(float(told) - probability) < 0.1]
        for path, kind in random.Random(grade).sample(own, count):
            yield f"{kind}{grade}", Image.open(data / path)


def _cloth() -> Iterator[Labelled]:
    """Take 600 pictures of simulated cloth: without a flaw, with one, and woven with other parameters."""
    data = folder_of("conformal_clip_data", "conformal-clip-data") / "data" / "textile_images" / "simulated"
    for label in ("nominal", "local", "global"):
        for path in sorted((data / label).glob("*.jpg"))[:200]:
            yield label, Image.open(path)


def _surfaces() -> Iterator[Labelled]:
    """Cut photographs of surfaces into tiles, which are to be told apart by the photograph that they come from."""
    data = folder_of("skimage", "scikit-image") / "data"
    for label, name in _PHOTOGRAPHS.items():
        picture = Image.open(data / name)
        corners = [
            (x, y) for y in range(0, picture.height - TILE + 1, TILE) for x in range(0, picture.width - TILE + 1, TILE)
        ]
        tiles = [picture.crop((x, y, x + TILE, y + TILE)) for x, y in corners]
        tiles = [tile for tile in tiles if np.asarray(tile).std() > DARK]  # not the black around an eye
        for tile in random.Random(label).sample(tiles, min(TILES, len(tiles))):
            yield label, tile


def _faces() -> Iterator[Labelled]:
    """Take the 100 faces of 25 pixels, and as many other pictures, of Labeled Faces in the Wild."""
    data = np.load(folder_of("skimage", "scikit-image") / "data" / "lfw_subset.npy")
    for number, pixels in enumerate(data):
        yield "face" if number < 100 else "other", Image.fromarray((255 * pixels).round().astype(np.uint8))


_PHOTOGRAPHS = {
    "brick": "brick.png", "grass": "grass.png", "gravel": "gravel.png", "moon": "moon.png", "coins": "coins.png",
    "stars": "hubble_deep_field.jpg", "eye": "retina.jpg", "tissue": "ihc.png",
}  # fmt: skip
SOURCES = {"solar": _solar, "cloth": _cloth, "tiles": _surfaces, "lfw": _faces}
SETS: dict[str, tuple[str, Callable[[str], str | None]]] = {  # what a picture's name says of its class
    "solar kinds": ("solar", lambda name: {"mono": "monocrystalline", "poly": "polycrystalline"}[name[:4]]),
    "solar defects": ("solar", lambda name: {"0": "intact", "3": "defective"}.get(name[4])),
    "solar grades": ("solar", lambda name: {"0": "intact", "1": "doubtful", "2": "likely", "3": "defective"}[name[4]]),
    "cloth": ("cloth", lambda name: name.partition("_")[0]),
    "surfaces": ("tiles", lambda name: name.partition("_")[0]),
    "faces": ("lfw", lambda name: name.partition("_")[0]),
}


def write_folder(name: str, folder: Path) -> None:
    """Write a set as train/CLASS/ and test/CLASS/ in a new folder."""
    with listing(name, 1).open() as listed:
        for row in csv.DictReader(listed):
            own = folder / row["split"] / row["label"]
            own.mkdir(parents=True, exist_ok=True)
            shutil.copy(row["path"], own)


# the tables


def write_page() -> None:
    """Write the cells that are there to a file beside the page, and the page's tables from that file."""
    cells = [plain.parse(file.read_bytes()) for file in sorted((FOLDER / "cells").glob("*.json"))]
    write_text(STORED, plain.dump(cells, indent=None).replace('{"set"', '\n{"set"') + "\n")
    write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), cells))
    curves(cells).savefig(PICTURE, dpi=110)


def curves(cells: Sequence[Row]) -> Any:
    """Draw the accuracy over the pictures to learn from, a panel for each set, with bands of a standard error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.2), layout="constrained")
    for axes, name in zip(figure.subplots(2, 3).flat, SETS, strict=True):
        own = [[cell for cell in cells if (cell["set"], cell["shots"]) == (name, shots)] for shots in SHOTS]
        groups = [group for group in own if group]
        counts = [median(cell["train"] for cell in group) for group in groups]
        for who in (OURS, THEIRS, TUNED):
            values = [[100 * value for value in _of(group, who)] for group in groups]
            error = [stdev(each) / len(each) ** 0.5 if len(each) > 1 else 0.0 for each in values]
            axes.errorbar(counts, list(map(mean, values)), error, marker="o", markersize=4, capsize=2, label=who)
        axes.set_title(name, fontsize="medium")
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [f"{count:g}" for count in counts])
        axes.minorticks_off()
    figure.supxlabel("pictures to learn from", fontsize="medium")
    figure.supylabel("test accuracy, %", fontsize="medium")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
    return figure


def with_tables(page: str, cells: Sequence[Row]) -> str:
    """Return the text of the page with the tables of these cells between its marks."""
    for name, table in (("accuracy", accuracies), ("plain", plain_ones), ("costs", costs)):
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->\n")
        page = before + mark + "\n" + table(cells) + "\n" + end + after
    return page


def accuracies(cells: Sequence[Row]) -> str:
    """Return the table of accuracies by set and shots: means over draws, and how far ours is behind scikit-learn's."""
    lines = [
        "| set | shots | draws | images to learn | `recommend` | scikit-learn | fine-tuned | behind scikit-learn |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, shots), own in _grouped(cells):
        shown = [f"{100 * mean(each):.1f}" for each in (_of(own, who) for who in (OURS, THEIRS, TUNED))]
        behind, error = _behind(own, THEIRS)
        trained = round(mean(cell["train"] for cell in own))
        error_shown = f" ± {error:.1f}" if len(own) > 1 else ""
        lines.append(
            f"| {name} | {shots or 'all'} | {len(own)} | {trained} | {' | '.join(shown)} | {behind:+.1f}{error_shown} |"
        )
    return "\n".join(lines) + "\n"


def plain_ones(cells: Sequence[Row]) -> str:
    """Return the table of the plain classifiers' accuracies by set and shots."""
    names = sorted({who for cell in cells for who in cell["methods"]} - BESIDE)
    lines = [f"| set | shots | {' | '.join(f'`{name}`' for name in names)} |", f"|---|---|{'---|' * len(names)}"]
    for (name, shots), own in _grouped(cells):
        shown = [f"{100 * mean(each):.1f}" if (each := _of(own, who)) else "" for who in names]
        lines.append(f"| {name} | {shots or 'all'} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def costs(cells: Sequence[Row]) -> str:
    """Return the table of CPU seconds and peak memory by number of images, over all sets: medians."""
    bins = [(1, 8), (9, 16), (17, 32), (33, 64), (65, 128), (129, 256), (257, 400)]
    names = [OURS, *sorted({who for cell in cells for who in cell["methods"]} - BESIDE), THEIRS, TUNED]
    used = [(low, high) for low, high in bins if any(low <= cell["train"] <= high for cell in cells)]
    lines = [
        f"| images to learn | {' | '.join(f'{low} to {high}' for low, high in used)} |", f"|---|{'---|' * len(used)}",
    ]  # fmt: skip
    for who in names:
        shown = []
        for low, high in used:
            own = [cell["methods"][who] for cell in cells if low <= cell["train"] <= high and who in cell["methods"]]
            seconds, peak = (median([each[key] for each in own] or [0]) for key in ("cpu_seconds", "peak_bytes"))
            shown.append(f"{seconds:.1f} s, {peak / 2**20:.0f} MiB" if own else "")
        lines.append(f"| {who if who in (THEIRS, TUNED) else f'`{who}`'} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _grouped(cells: Sequence[Row]) -> list[tuple[tuple[str, int | None], list[Row]]]:
    """Return the cells by set and shots, in the order of both."""
    keys = [(name, shots) for name in SETS for shots in SHOTS]
    found = [(key, [cell for cell in cells if (cell["set"], cell["shots"]) == key]) for key in keys]
    return [(key, own) for key, own in found if own]


def _of(cells: Sequence[Row], who: str) -> list[float]:
    return [cell["methods"][who]["accuracy"] for cell in cells if who in cell["methods"]]


def _behind(cells: Sequence[Row], who: str) -> tuple[float, float]:
    """Return by how many points ours is behind another, draw by draw, with the standard error over draws."""
    apart = [100 * (other - own) for own, other in zip(_of(cells, OURS), _of(cells, who), strict=True)]
    return mean(apart), stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")


if __name__ == "__main__":
    if sys.argv[1:] == ["page"]:
        write_page()
    elif len(sys.argv) == 3 and sys.argv[1] in SETS:
        write_folder(sys.argv[1], Path(sys.argv[2]))
    else:
        raise SystemExit(f"expected the word page, or one of {', '.join(SETS)} and a new folder")

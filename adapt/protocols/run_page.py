"""What a report says of one run: its curves, where it errs, how sure it is, and what it was made with."""

from __future__ import annotations

import base64
import csv
import io
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt import plain
from adapt.cells import unguarded
from adapt.errors import AdaptError
from adapt.evaluation import stored
from adapt.evaluation.scores import calibration_error, reliability
from adapt.formats.adapter import NAME
from adapt.formats.header import read_header
from adapt.protocols.plain_runs import PlainRun
from adapt.shown import shown

if TYPE_CHECKING:
    from PIL import Image

WORST_ERRORS, THUMBNAIL, WORST_CLASSES = 12, 96, 10


@dataclass(frozen=True)
class Error:
    """A wrong prediction, the image as JPEG in base64 or None where it is gone."""

    actual: str
    predicted: str
    confidence: float
    path: str
    image: str | None


@dataclass(frozen=True)
class RunPage:
    """What the page says of one run directory; pictures are SVG, empty where there is nothing to draw."""

    name: str
    metrics: dict[str, Any]
    adapted: float | None
    zero_shot: float | None
    gain: float | None
    command: str
    made_with: str
    curves: str
    confusion: str
    classes_shown: str
    reliability: str
    worst_classes: list[tuple[str, float]]
    errors: list[Error]
    explained: str


def run_page(run: PlainRun) -> RunPage:
    """The page's part on a finished run. AdaptError where its files are damaged."""
    from adapt.protocols.plots import confusion_matrix, svg

    rows, metrics = _predictions(run.path), run.metrics
    confusion, classes = "", ""
    # neither texts nor sets of classes are confused with one another
    if rows and not metrics.get("adapted", {}).keys() & {"recall", "mean_average_precision"}:
        figure, classes = confusion_matrix(rows)
        confusion = svg(figure)
    by_class: dict[str, float] = metrics.get("adapted", {}).get("by_class", {})
    return RunPage(
        name=name_of(run.path),
        metrics=metrics,
        adapted=run.adapted,
        zero_shot=run.zero_shot,
        gain=run.gain,
        command=shlex.join(["adapt", "train", str(run.path / "recipe.yaml"), f"--out={run.path}-again"]),
        made_with=_made_with(run.path, metrics.get("device")),
        curves=_curves(run),
        confusion=confusion,
        classes_shown=classes,
        reliability=_reliability(rows, metrics) if rows and "calibration_error" in metrics.get("adapted", {}) else "",
        worst_classes=sorted(by_class.items(), key=lambda pair: pair[1])[:WORST_CLASSES],
        errors=_worst_errors(rows, _turned(run.path)),
        explained=_explained(run.path),
    )


def name_of(path: Path) -> str:
    """The run's folder with the one that it is in, however it was named."""
    whole = Path(os.path.abspath(path))
    return shown(f"{whole.parent.name}/{whole.name}".lstrip("/"))


def _curves(run: PlainRun) -> str:
    from adapt.protocols.plots import svg
    from adapt.training.result import Result, read_history

    log = run.path / "log.jsonl"
    if not log.is_file():
        return ""
    history = read_history(log)
    return svg(Result(run.metrics, history, None).plot()) if history else ""


def _made_with(run: Path, device: str | None) -> str:
    """The machine and the libraries, on a line."""
    path = run / "environment.json"
    if not path.is_file():
        return ""
    try:
        found = plain.parse(path.read_bytes())
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        device = device or found.get("cuda")  # of an older release
        processor = f"{found['threads']} threads of a CPU" if device in (None, "cpu") else device
        return shown(f"{processor}; Python {found['python']}, {versions}; {found['platform']}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise AdaptError(f"{path} holds no environment of a run: {error!r}") from error


def _reliability(rows: Sequence[dict[str, str]], metrics: dict[str, Any]) -> str:
    from adapt.protocols.plots import reliability_diagram, svg

    after = reliability([float(row["confidence"]) for row in rows], [row["class"] == row["predicted"] for row in rows])
    calibration = metrics.get("calibration", {})
    bins = (
        {f"as trained, error {100 * calibration['error_before']:.1f} %": calibration["before"]}
        if ("before" in calibration)
        else {}
    )
    name = "calibrated" if bins else "as trained"
    bins[f"{name}, error {100 * calibration_error(after):.1f} %"] = after
    return svg(reliability_diagram(bins))


def _predictions(run: Path) -> list[dict[str, str]]:
    file = run / "predictions.csv"
    if not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
            reader = csv.DictReader(lines)
            rows = [{key: unguarded(cell) for key, cell in row.items()} for row in reader]
        if missing := {"path", "class", "predicted", "confidence"}.difference(reader.fieldnames or ()):
            raise ValueError(f"it has no column {min(missing)}")
        for row in rows:
            if not 0 <= float(row["confidence"]) <= 1:
                raise ValueError(f"a confidence is {row['confidence']}")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise AdaptError(f"{file} holds no predictions of a run: {error}") from error
    return rows


def _explained(run: Path) -> str:
    """Examples with the descriptors that decided, where the run's method has some."""
    from adapt.protocols.plots import descriptor_bars, svg

    path = run / "explanations.json"
    if not path.is_file():
        return ""
    examples = stored.read(path, stored.Explained, "explanations")
    turned = _turned(run)
    pictures = [_small(each["path"], turned) for each in examples]
    return svg(descriptor_bars(examples, pictures)) if examples else ""


def _turned(run: Path) -> bool:
    """Whether the run's adapter learned from photographs that are turned upright."""
    adapter = run / NAME
    return adapter.is_file() and bool(read_header(adapter).preprocess.get("turned"))


def _worst_errors(rows: Sequence[dict[str, str]], turned: bool) -> list[Error]:
    """The wrong predictions of which the model was most sure."""
    wrong = [row for row in rows if row["class"] != row["predicted"]]
    wrong.sort(key=lambda row: -float(row["confidence"]))
    return [
        Error(row["class"], row["predicted"], float(row["confidence"]), row["path"], _thumbnail(row["path"], turned))
        for row in wrong[:WORST_ERRORS]
    ]


def _small(path: str, turned: bool) -> Image.Image | None:
    from adapt.data.decoding.images import open_image

    try:
        image = open_image(path, turned=turned)
    except AdaptError:
        return None  # moved since the run; the page says so
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def _thumbnail(path: str, turned: bool) -> str | None:
    image = _small(path, turned)
    if image is None:
        return None
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return base64.b64encode(data.getvalue()).decode("ascii")

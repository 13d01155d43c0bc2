"""What a report says of one run: its curves, where it errs, how sure it is, and what it was made with."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt import plain
from adapt.errors import AdaptError
from adapt.evaluation import stored
from adapt.evaluation.coverage import by_threshold, coverage_and_accuracy
from adapt.evaluation.scores import Scores, calibration_error, reliability
from adapt.protocols.confusions import Confusions, confusions
from adapt.protocols.gallery import learned_turned, read_rows, small_image, thumbnail
from adapt.protocols.plain_runs import PlainRun
from adapt.shown import shown

WORST_ERRORS, WORST_CLASSES = 12, 10
TOLD = 0.6  # the threshold that a sentence tells of


@dataclass(frozen=True)
class Error:
    """A wrong prediction, the image as JPEG in base64 or None where it is gone."""

    actual: str
    predicted: str
    confidence: float
    path: str
    image: str | None

    @property
    def name(self) -> str:
        """The name of its file."""
        return shown(Path(self.path).name)


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
    confusions: Confusions | None
    reliability: str
    thresholds: list[dict[str, Any]]
    coverage: str
    class_figure: str
    worst_classes: list[tuple[str, float]]
    errors: list[Error]
    explained: str


def run_page(run: PlainRun) -> RunPage:
    """The page's part on a finished run. AdaptError where its files are damaged."""
    rows, metrics = _predictions(run.path), run.metrics
    adapted: dict[str, Any] = metrics.get("adapted", {})
    by_class: dict[str, float] = adapted.get("by_class", {})
    class_figure = adapted.get("class_figure", Scores.class_figure)
    # neither texts nor sets of classes are confused with one another
    of_one_class = bool(rows and by_class) and class_figure == Scores.class_figure
    of_probabilities = of_one_class and "calibration_error" in adapted
    thresholds, coverage = _coverage(rows) if of_probabilities else ([], "")
    return RunPage(
        name=name_of(run.path),
        metrics=metrics,
        adapted=run.adapted,
        zero_shot=run.zero_shot,
        gain=run.gain,
        command=shlex.join(["adapt", "train", str(run.path / "recipe.yaml"), f"--out={run.path}-again"]),
        made_with=_made_with(run.path, metrics.get("device")),
        curves=_curves(run),
        confusions=confusions(rows) if of_one_class else None,
        reliability=_reliability(rows, metrics) if of_probabilities else "",
        thresholds=thresholds,
        coverage=coverage,
        class_figure=class_figure,
        worst_classes=sorted(by_class.items(), key=lambda pair: pair[1])[:WORST_CLASSES],
        errors=_worst_errors(rows, learned_turned(run.path)),
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
        threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)} of a CPU"
        processor = threads if device in (None, "cpu") else device
        return shown(f"{processor}; Python {found['python']}, {versions}; {found['platform']}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise AdaptError(f"{path} holds no environment of a run: {error!r}") from error


def _sureness(rows: Sequence[dict[str, str]]) -> tuple[list[float], list[bool]]:
    """The confidence of each answer, and whether it is right."""
    return [float(row["confidence"]) for row in rows], [row["class"] == row["predicted"] for row in rows]


def _coverage(rows: Sequence[dict[str, str]]) -> tuple[list[dict[str, Any]], str]:
    """What thresholds leave unanswered and get right: as rows and as a picture."""
    from adapt.protocols.plots import coverage_curve, svg

    confidence, right = _sureness(rows)
    thresholds = by_threshold(confidence, right)
    return thresholds, svg(coverage_curve(coverage_and_accuracy(confidence, right), thresholds))


def _reliability(rows: Sequence[dict[str, str]], metrics: dict[str, Any]) -> str:
    from adapt.protocols.plots import reliability_diagram, svg

    after = reliability(*_sureness(rows))
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
    file, what = run / "predictions.csv", "predictions of a run"
    rows = read_rows(file, ("path", "class", "predicted", "confidence"), what)
    try:
        for row in rows:
            if not 0 <= float(row["confidence"]) <= 1:
                raise ValueError(f"a confidence is {row['confidence']}")
    except (ValueError, TypeError) as error:
        raise AdaptError(f"{file} holds no {what}: {error}") from error
    return rows


def _explained(run: Path) -> str:
    """Examples with the descriptors that decided, where the run's method has some."""
    from adapt.protocols.plots import descriptor_bars, svg

    path = run / "explanations.json"
    if not path.is_file():
        return ""
    examples = stored.read(path, stored.Explained, "explanations")
    turned = learned_turned(run)
    return svg(descriptor_bars(examples, [small_image(each["path"], turned) for each in examples])) if examples else ""


def _worst_errors(rows: Sequence[dict[str, str]], turned: bool) -> list[Error]:
    """The wrong predictions of which the model was most sure."""
    wrong = [row for row in rows if row["class"] != row["predicted"]]
    wrong.sort(key=lambda row: -float(row["confidence"]))
    return [
        Error(row["class"], row["predicted"], float(row["confidence"]), row["path"], thumbnail(row["path"], turned))
        for row in wrong[:WORST_ERRORS]
    ]

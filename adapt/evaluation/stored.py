"""JSON files of runs and protocols, checked when they are read: anybody may have changed them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import BaseModel, Field, NonNegativeInt, TypeAdapter, ValidationError, model_validator
from typing_extensions import TypedDict

from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.shown import shown
from adapt.evaluation.learning_curve import LearningCurve
from adapt.evaluation.scores import Figure

_SHARE = Field(ge=0, le=1)


class _Scores(BaseModel):
    accuracy: float = _SHARE
    mean_class_accuracy: float = _SHARE
    calibration_error: float = Field(default=0.0, ge=0, le=1)  # scores by cosines have none
    images: int = Field(ge=1)
    groups: int | None = Field(default=None, ge=1)  # none of earlier versions, as the next
    intervals: dict[str, tuple[float, float]] = {}
    by_class: dict[str, float] = {}
    by_class_intervals: dict[str, tuple[float, float]] = {}


class Metrics(BaseModel):
    """The content of a finished run's metrics.json, which has no scores if the run has no test images."""

    method: str
    seed: int
    train_set: str
    trainable_parameters: int
    seconds: float
    adapted: _Scores | None = None
    zero_shot: _Scores | None = None
    together: _Scores | None = None
    by_image: _Scores | None = None


class Measured(Metrics):
    """The content of metrics.json for a run that has scores on test images."""

    adapted: _Scores
    zero_shot: _Scores


class _Target(BaseModel):
    data: dict[str, object]
    test_set: str
    adapted: float = Field(le=1)  # R² has no lower bound
    zero_shot: float = Field(le=1)
    together: float | None = None
    interval: tuple[float, float] | None = None


class Tracking(BaseModel):
    """The content of a run's tracking.json: the run's id, and the last training step sent to each tracker."""

    id: str = Field(pattern="^[0-9a-f]{12}$")
    told: dict[str, NonNegativeInt]


class _Data(BaseModel):
    source: str


class _Method(BaseModel):
    name: str


class _Recipe(BaseModel):
    method: _Method
    backbone: str
    data: _Data


class _Row(BaseModel):
    run: str
    shots: int | None = None
    seed: int | None = None
    test: float | None = None
    zero_shot_test: float | None = None


class Summary(TypedDict):
    """Means and standard deviations of accuracies over the seeds, in [0, 1], and the zero-shot accuracies.

    `together` are mean accuracies of answers about the whole test set together, of a method that gives such answers.
    There is one summary for each number of shots, each `setting` of a sweep, or each left-out domain.
    """

    shots: int | None
    setting: NotRequired[str | None]
    val: NotRequired[float | None]
    runs: NotRequired[Annotated[int, Field(ge=1)]]
    mean: dict[str, float]
    std: dict[str, float]
    zero_shot: dict[str, float]
    together: NotRequired[dict[str, float]]


class ProtocolResults(BaseModel):
    """The content of a protocol's results file, such as few_shot.json: the recipe, runs and summaries over seeds."""

    protocol: str
    recipe: _Recipe
    runs: list[_Row]
    summary: list[Summary] = Field(min_length=1)

    @model_validator(mode="after")
    def _of_curves(self) -> ProtocolResults:
        figures = [each for group in self.summary for each in (group["mean"], group["std"], group["zero_shot"])]
        by_group = ("few_shot", "leave_one_out")
        if self.protocol in by_group and not all("test" in each for each in figures):
            raise ValueError("the figure test is missing for a number of shots or a domain")
        needed = [value for row in self.runs for value in (row.shots, row.seed, row.test, row.zero_shot_test)]
        if self.protocol == "few_shot" and None in needed:
            raise ValueError("the shots, the seed, or the figure test or zero_shot_test are missing for a run")
        if self.protocol in ("leave_one_out", "sweep") and any(group.get("setting") is None for group in self.summary):
            raise ValueError("the setting is missing for a group of runs")
        return self


class _Compared(BaseModel):
    method: str
    accuracy: float = Field(default=0.0, ge=0, le=1)  # another figure has its own name
    error: float = Field(ge=0)
    seconds: float
    adapter_bytes: int
    command: str


class Recommended(BaseModel):
    """The results of `adapt recommend`, as stored in a JSON file."""

    data: str
    backbone: str
    backbones: list[str] = []  # that were compared; none of earlier versions
    folds: int
    figure: Figure | None = None  # the accuracy, of earlier versions
    train_images: int
    classes: int
    chosen: str
    alike: list[str]
    methods: list[_Compared]
    left_out: dict[str, str]
    notes: list[str]
    advice: list[str]
    learning_curve: LearningCurve | None = None  # none of earlier versions


class _Descriptor(BaseModel):
    text: str
    cosine: float


class _Reasons(BaseModel):
    name: str
    descriptors: list[_Descriptor] = Field(min_length=1)


class _Explained(BaseModel):
    path: str
    actual: str
    reasons: list[_Reasons] = Field(min_length=1)


Explained = list[_Explained]  # explanations.json of a run

TargetFigures = dict[str, _Target]  # targets.json of a run


def read(path: Path, kind: Any, what: str) -> Any:
    """Return the content of the JSON file at `path`. Raises AdaptError, naming `what`, if it is not of type `kind`."""
    try:
        content = plain.parse(path.read_bytes())
        TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "it"
        raise AdaptError(f"{path} contains no valid {what}: {shown(where)}: {problem['msg']}") from None
    except (OSError, ValueError) as error:
        raise AdaptError(f"{path} contains no valid {what}: {error}") from error
    return content

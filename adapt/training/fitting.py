"""A training that takes place: the object that methods know as `Training`, with all else that the trainer needs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from adapt import tasks
from adapt.backbones.base import DualEncoder, ImageEncoder
from adapt.backbones.load import load_backbone
from adapt.common import hub, plain
from adapt.common.disk import write_text
from adapt.common.errors import AdaptError
from adapt.common.progress import Progress, counting_bar, training_bar
from adapt.common.validation import explain
from adapt.data.bags import singles
from adapt.data.item import Item
from adapt.data.split import folds, kept_and_held
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.inference import Inference
from adapt.evaluation.scores import Scores
from adapt.methods.base import Step, Terms, total
from adapt.methods.base.training import Part
from adapt.methods.base.traits import Grades, has_trait
from adapt.models.base import Adapted, evaluating
from adapt.models.dual_encoder import AdaptedModel
from adapt.models.features import item_features
from adapt.models.image_model import ImageModel
from adapt.models.unadapted import unadapted, without_method
from adapt.recipe.settings import TrainSettings
from adapt.training.batches import Batches, ImageBatches, training_batches
from adapt.training.loop import Before, Trainer, autocast
from adapt.training.plan import TrainingPlan
from adapt.training.run import Run

FOLDS = 5  # of the cross-validation that chooses settings
_OF_BATCHES = {"batch_size", "drop_last", "augment", "views", "workers"}
Kept = TypeVar("Kept", bound=BaseModel)


@dataclass
class Fitting:
    """The training that a plan describes, while it takes place: the plan, the run, and the features of its images.

    A fold of a cross-validation has a plan with other items, and takes its features from the `whole` training, at the
    `places` of its items among the training images there.
    """

    plan: TrainingPlan
    run: Run | None = None
    progress: bool = False
    whole: Fitting | None = None
    places: dict[Part, list[int]] = field(default_factory=dict)
    seconds: float = 0.0
    noted: dict[str, object] = field(default_factory=dict)
    held_back_answers: tuple[Tensor, Tensor] | None = None  # logits (n, classes) and labels, by cross-validation
    _kept: dict[str, BaseModel] = field(default_factory=dict)
    _baselines: dict[str | None, Fitting] = field(default_factory=dict)
    _features: dict[tuple[Part, int, bool, bool], Tensor] = field(default_factory=dict)

    @property
    def model(self) -> Adapted:
        return self.plan.model

    @property
    def classifier(self) -> ImageModel:
        if not isinstance(self.model, ImageModel):
            raise AdaptError(
                f"{self.model.method.name} learns from features of images, but "
                f"{self.model.backbone.describe()} is a {self.model.backbone.kind}: use a dual or vision encoder"
            )
        return self.model

    @property
    def seed(self) -> int:
        return self.plan.seed

    @property
    def settings(self) -> TrainSettings:
        return self.plan.settings

    @cached_property
    def batches(self) -> Batches:
        """The training batches, which are created at first use."""
        with counting_bar("encoding", self.progress) as bar:
            return self._batches(self.settings, bar)

    def _batches(self, settings: TrainSettings, bar: Progress | None = None) -> Batches:
        return training_batches(
            self.model, self.plan.train_set, settings, self.seed, self.plan.cache, bar, self.plan.processes
        )

    def inference(self, progress: Progress | None = None) -> Inference:
        """Return the inference settings of this training run, such as the number of decoding processes."""
        return Inference(self.plan.workers, self.plan.cache, progress)

    def score(self, model: Adapted, items: Sequence[Item], title: str, together: bool = False) -> Scores:
        """Return the scores of `model` on `items`, while a progress bar called `title` is shown."""
        with counting_bar(title, self.progress) as bar:
            return evaluate(
                model, items, workers=self.plan.workers, cache=self.plan.cache, progress=bar, together=together
            )

    def prepare(self) -> None:
        self.model.begin(self)
        self.model.method.prepare(self)

    def items(self, part: Part) -> Sequence[Item]:
        return self.plan.items(part)

    def labels(self, part: Part) -> Tensor:
        items = self.items(part)
        return tasks.of(items).numbers(items, self.model.class_names)

    def shares(self, part: Part) -> Tensor:
        items = self.items(part)
        return tasks.of(items).shares(items, self.model.class_names)

    def values(self, part: Part) -> Tensor:
        items = self.items(part)
        values = tasks.of(items).values(items)
        if values is None:
            raise AdaptError(
                f"{self.model.method.name} learns from a number for each image, but the data has no numbers: give a "
                ".csv with a column target"
            )
        return values

    def features(self, part: Part, *, views: int = 0, unit: bool = True, projected: bool = True) -> Tensor:
        if self.whole is not None and part == "unlabelled":
            return self.whole.features(part, views=views, unit=unit, projected=projected)
        if self.whole is not None:
            return self.whole.features("train", views=views, unit=unit, projected=projected)[self.places[part]]
        if views and not self.plan.cache:
            raise AdaptError(
                f"{self.model.method.name} stores {views} views of each image in the cache: set cache to true"
            )
        key = part, views, unit, projected
        if key not in self._features:  # read from disk once for all folds
            with counting_bar(f"encoding {views} views" if views else "encoding", self.progress) as bar:
                self._features[key] = item_features(
                    self.classifier,
                    self.items(part),
                    workers=self.plan.workers,
                    cache=self.plan.cache,
                    views=views,
                    unit=unit,
                    projected=projected,
                    progress=bar,
                )
        return self._features[key]

    def folds(self, count: int = FOLDS) -> list[Fitting]:
        """Return `count` cross-validation folds of the training images, which each hold out about as many of them.

        Folds are stratified by class and keep groups together. An image that is needed for training in all folds, such
        as the only image of its class unless the method predicts numbers, is never held out. If no image can be held
        out, the list is empty.
        """
        items, numbers = self.plan.train_set, has_trait(self.model.method, Grades)
        part_of = folds(items, count, self.seed, not numbers)
        return [
            Fitting(
                replace(
                    self.plan,
                    train_set=[items[place] for place in learned],
                    val_set=[items[place] for place in held_out],
                    test_set=(),
                ),
                whole=self,
                places={"train": learned, "val": held_out},
            )
            for learned, held_out in kept_and_held(part_of, count)
        ]

    def alone(self, backbone: str | None = None) -> Fitting:
        if backbone in self._baselines:  # a backbone takes long to load
            return self._baselines[backbone]
        own = self.model.backbone
        other = own if backbone is None else load_backbone(backbone, str(own.device)).turning(own.preprocess.turned)
        if not isinstance(other, ImageEncoder):
            raise AdaptError(
                f"{other.describe()} has no comparable features of texts and images: name a dual encoder, such as CLIP"
            )
        model = unadapted(other).eval()
        baseline = Fitting(replace(self.plan, model=model, chosen=None), progress=self.progress, _kept=self._kept)
        self._baselines[backbone] = baseline
        return baseline

    def teacher(self, name: str, templates: Sequence[str]) -> AdaptedModel:
        own = self.model
        if hub.is_name(name) or Path(name).exists():
            from adapt.loading import load

            model: Adapted = load(name, class_names=own.class_names, device=own.backbone.device)
        else:
            backbone = self.alone(name).model.backbone
            if not isinstance(backbone, DualEncoder):
                raise AdaptError(f"{name} is a {backbone.kind}, which reads no prompts: name a CLIP as the teacher")
            model = unadapted(backbone, own.class_names, tuple(templates))
        if not isinstance(model, AdaptedModel) or model.method.per_image or model.text_path == "none":
            raise AdaptError(
                f"{name} is an adapter of {model.method.name}, which has no features of the classes by themselves: "
                "give one of a dual encoder that learns prompts"
            )
        return model.eval()

    def reference(self, answer: Callable[[Any], Tensor]) -> Tensor:
        items = self.plan.train_set
        model = self.model if self.model.started else without_method(self.model, self.plan.template)
        with counting_bar("reference", self.progress) as bar:
            own = list(self.inference(bar).of_batches(model, self.plan.processes.share(items), answer))
        return self.plan.processes.whole(torch.cat(own), len(items)).cpu()  # gathered where they were computed

    def steps(self, part: Part) -> Iterator[Step]:
        by_image = self.model.answers.pooling == "logits"
        return self.inference().steps(self.model, singles(self.items(part)) if by_image else self.items(part))

    def held_back(self) -> Iterator[Step]:
        unchanged = self.settings.model_copy(update={"augment": "none", "views": None})
        batches = training_batches(self.model, self.plan.val_set, unchanged, self.seed, self.plan.cache, None)
        for epoch in itertools.count():
            for inputs, items in batches.epoch(epoch, 0):
                yield tasks.of(items).step(self.model, items, inputs)

    def train(
        self,
        title: str,
        *,
        parameters: Iterable[nn.Parameter] | None = None,
        loss: Callable[[Step], Terms] | None = None,
        before: Before = lambda epoch, step: None,
        **changed: object,
    ) -> float:
        settings = self._stage(changed)
        if loss is not None:
            if self.plan.processes.by_items:
                raise AdaptError(
                    f"{self.plan.processes.count} processes cannot train together, because {title} has a loss of its "
                    "own, which may compare the items of a batch, whose shares do not meet: use one process"
                )
            batches: Batches = ImageBatches(self.model, self.plan.train_set, settings, self.seed, self.plan.processes)
        elif changed.keys() & _OF_BATCHES:
            batches = self._batches(settings)
        else:
            batches = self.batches
        processes = self.plan.processes
        trainer = Trainer(self.model, batches, settings, None, parameters, loss, before=before, processes=processes)
        with training_bar(trainer.length.steps, 0, self.progress, title) as report:
            return trainer.train(report).seconds

    def _stage(self, changed: dict[str, object]) -> TrainSettings:
        """Return the settings of a training stage, which are the settings of this training run with `changed` values.

        Its tensors are neither averaged, nor those of the best epoch. Raises AdaptError for invalid settings.
        """
        own = self.settings.model_dump(exclude_unset=True) | {"average": None}
        lengths = ("epochs", "iterations", "iterations_per_shot")
        if changed.keys() & set(lengths):
            own |= dict.fromkeys(lengths)
        try:
            return TrainSettings(**own | changed)
        except ValidationError as error:
            raise AdaptError(explain(TrainSettings, error, f"a stage of {self.model.method.name}")) from None

    def loss(self, step: Step) -> Tensor:
        with autocast(self.model.backbone.device, self.settings.precision):
            terms, _ = self.model.losses(step, self.settings.terms)
        return total(terms)

    def flops(self, towers: Collection[str]) -> float:
        from adapt.evaluation.flops import tower_flops

        with evaluating(self.model):
            return tower_flops(self.model, towers)

    def restart(self) -> None:
        torch.manual_seed(self.seed)
        self.model.start_anew()
        self.model.begin(self)

    @property
    def started(self) -> bool:
        return self.model.started

    @property
    def resumed(self) -> bool:
        return self.run is not None and self.run.goes_on

    def keep(self, name: str, data: BaseModel) -> None:
        self._kept[name] = data
        if self.run is not None and self.run.writes:
            write_text(self.run.kept(name), plain.dump(data.model_dump()) + "\n")

    def kept(self, name: str, kind: type[Kept]) -> Kept | None:
        path = None if self.run is None or not self.run.resume else self.run.kept(name)
        if name not in self._kept and path is not None and path.is_file():
            from adapt.evaluation import stored

            self._kept[name] = kind.model_validate(stored.read(path, kind, name))
        return self._kept.get(name)  # type: ignore[return-value]  # of the kind that was kept

    def note(self, **figures: object) -> None:
        self.noted |= figures

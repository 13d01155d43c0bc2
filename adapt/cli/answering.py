"""Requests of `adapt predict`: for the classes of single images, of items or of one set, or for explanations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.cli import options as common
from adapt.common.errors import AdaptError
from adapt.common.shown import first_of

if TYPE_CHECKING:
    from adapt.common.progress import Progress
    from adapt.models.image_model import ImageModel
    from adapt.models.prediction import Prediction
    from adapt.models.wrap import Model

    # a function from images, opened upright by EXIF or as stored as the models need them, to the answers for each
    Answerer = Callable[[Callable[[set[bool]], Iterable[Any]]], Iterator[Any]]

logger = logging.getLogger("adapt")


@dataclass(frozen=True)
class Request:
    """A request for predictions, from the options of `adapt predict`.

    `items` says that items of several images are answered, and `count` is the number of images or items.
    """

    top_k: int
    threshold: float | None = None
    question: str | None = None
    together: bool = False
    at_a_time: int | None = None
    explain: bool = False
    items: bool = False
    count: int = 0

    def check(self, adapters: Sequence[Path], as_csv: bool) -> None:
        """Raise AdaptError for options that exclude each other."""
        if self.explain and self.threshold is not None:
            raise AdaptError(
                "--explain always shows the most probable classes, without a threshold: leave --threshold out"
            )
        if self.explain and (as_csv or len(adapters) > 1):
            raise AdaptError(
                "--explain takes a single adapter and prints text or JSON: leave --csv and other adapters out"
            )
        if self.at_a_time is not None and not self.together:
            raise AdaptError("--at-a-time divides the images that --together answers: give --together, or leave it out")
        if self.together and (len(adapters) > 1 or self.question or self.explain):
            raise AdaptError(
                "--together takes a single adapter and classifies images: leave --question and --explain out"
            )
        if self.items and (len(adapters) > 1 or self.question or self.explain or self.together):
            raise AdaptError(
                "items of several images are classified by a single adapter, without --question, --explain and "
                "--together: give one adapter, and leave these options out"
            )

    def answers(self, adapters: Sequence[Path], models: Sequence[Model], images: Iterable[Any]) -> Iterator[Any]:
        """Return an iterator over the answers of `models`, loaded from `adapters`, for each image or item."""
        if self.explain:
            return _explanations(adapters[0], models[0], images, self.top_k)
        if self.items:
            model = _classifier(adapters[0], models[0], "items of several images")
            return _alone(model.predict_items_stream(images, self.top_k, threshold=self.threshold))
        if self.together:
            return self._as_set(_classifier(adapters[0], models[0], "sets of images"), images)
        if len(models) == 1:
            _check_question(adapters[0], models[0], self.question)
            _note_alone(models[0])
            return _alone(
                models[0].predict_stream(images, self.top_k, question=self.question, threshold=self.threshold)
            )
        _check_all_classify(adapters, models, self.question)
        from adapt.models.many import predict_many_stream

        return predict_many_stream(models, images, self.top_k, threshold=self.threshold)

    def _as_set(self, model: ImageModel, images: Iterable[object]) -> Iterator[tuple[Prediction]]:
        """Yield the predictions for all images, answered together."""
        from adapt.common.progress import counting_bar

        with counting_bar("reading images", True) as bar:
            counted = images if bar is None else _counted(images, bar, self.count)
            predictions = model.predict_together(
                counted, self.top_k, at_a_time=self.at_a_time, threshold=self.threshold
            )
        yield from _alone(predictions)


def by_captions(index: Path, backbone: str | None, device: str, top_k: int) -> Answerer:
    """Return a function that predicts a name for each image, chosen from the words in an index of captions."""

    def answers(images: Callable[[set[bool]], Iterable[object]]) -> Iterator[tuple[Prediction]]:
        from adapt.backbones.load import load_backbone
        from adapt.retrieval.index import load_index
        from adapt.retrieval.vocabulary_free import VocabularyFree

        captions = load_index(index)
        name = backbone or captions.header.backbone
        if not name:
            raise AdaptError(f"the index {index} does not record its backbone: give --backbone")
        namer = VocabularyFree(load_backbone(name, device), captions)  # type: ignore[arg-type]  # it refuses others
        return _alone(namer.predict_stream(images({True}), top_k))

    return answers


def by_adapters(
    adapters: Sequence[Path],
    names: list[str] | None,
    at_use: Sequence[str],
    backbone: str | None,
    device: str,
    request: Request,
) -> Answerer:
    """Return a function that loads the adapters as models, and returns their answers to `request` for all images."""

    def answers(images: Callable[[set[bool]], Iterable[object]]) -> Iterator[object]:
        from adapt.loading import load_many

        models = load_many(adapters, common.given_backbone(backbone, device), names, device=device)
        for model in models:
            common.set_at_use(model, at_use)
        return request.answers(adapters, models, images({model.backbone.preprocess.turned for model in models}))

    return answers


def _alone(predictions: Iterable[Prediction]) -> Iterator[tuple[Prediction]]:
    """Return an iterator over the predictions of one model, as tuples like those of several models."""
    return ((prediction,) for prediction in predictions)


def _counted(images: Iterable[object], bar: Progress, count: int) -> Iterator[object]:
    for number, image in enumerate(images, 1):
        bar(number, count)
        yield image


def _explanations(adapter: Path, model: Model, images: Iterable[object], top_k: int) -> Iterator[object]:
    from adapt.models.classifier import AdaptedModel
    from adapt.models.explanation import explained
    from adapt.models.prediction import Wanted

    if not isinstance(model, AdaptedModel):
        raise AdaptError(f"{adapter} has no class descriptors: leave --explain out")
    return explained(model, images, Wanted(top_k), batch_size=64)


def _classifier(adapter: Path, model: Model, what: str) -> ImageModel:
    from adapt.models.image_model import ImageModel

    if not isinstance(model, ImageModel):
        raise AdaptError(f"{adapter} classifies no {what}: use an adapter for a CLIP or for images alone")
    return model


def _check_all_classify(adapters: Sequence[Path], models: Sequence[Model], question: str | None) -> None:
    """Raise AdaptError if one of several models answers questions."""
    answering = [adapter for adapter, model in zip(adapters, models, strict=True) if not model.classifies]
    if answering or question is not None:
        named = f"; {first_of(answering)} answers questions" if answering else ""
        raise AdaptError(
            f"several adapters are shown side by side only if all of them classify images, without --question{named}: "
            "give one adapter at a time"
        )


def _check_question(adapter: Path, model: Model, question: str | None) -> None:
    """Raise AdaptError if a model gets no question and needs one, or gets one and answers none."""
    if question is None and not model.classifies:
        raise AdaptError(f"{adapter} answers questions: give --question")
    if question is not None and not model.answers_questions:
        raise AdaptError(f"{adapter} classifies images: leave --question out")


def _note_alone(model: Model) -> None:
    """Say that a model which answers sets of images is used for each image by itself."""
    from adapt.methods.base.traits import OverSet, has_trait

    if has_trait(model.method, OverSet):
        logger.warning(
            "each image is answered by itself; %s answers them as one set with --together", model.method.name
        )

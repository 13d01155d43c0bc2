"""`Classifier`: a recipe's training behind the interface of scikit-learn."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from adapt.backbones.base import Backbone
from adapt.backbones.load import load_backbone
from adapt.choosing.candidates import encoded_once
from adapt.data.check import without_broken
from adapt.data.decoding.images import open_image
from adapt.data.item import Item
from adapt.data.split import Split
from adapt.devices import AUTO
from adapt.errors import AdaptError
from adapt.recipe import Recipe, read_recipe
from adapt.shown import brief
from adapt.training.run_recipe import build, learn, with_validation

_DATA = "the images of fit"  # what a recipe names as its data; no set is called so


@lru_cache(maxsize=1)
def _loaded(name: str, device: str, quantize: str | None) -> Backbone:
    """Kept as it was loaded: each fit copies it, because who holds a fitted model may move it, or change its type."""
    return load_backbone(name, device, quantize)


class Classifier(ClassifierMixin, BaseEstimator):
    """A method on a frozen backbone as an estimator of scikit-learn, which trains as `adapt train` does.

    `method` is the name of a method, a recipe, or a recipe's file; `backbone` the name of one or one that is loaded, by
    default the recipe's. `class_names` says which words stand for a label in prompts, such as `{0: "tabby cat"}`, or a
    list for labels from 0 on; by default the label itself. `overrides` changes keys of the recipe, such as
    `{"train.lr": 0.01}`, also in a grid search. `random_state` is the seed, by default the recipe's.

    `X` is a list or array of images as `predict` takes them (paths, PIL images, arrays, ...), `y` their labels of any
    type. All images serve unless `overrides` has `data.shots`; a method without steps chooses its settings on them by
    cross-validation, and one with steps that has something to choose gets a fifth of each class's for it.

    Fitted, it has `classes_` `(n_classes,)`, sorted, `model_`, which also saves an adapter, and `metrics_`. Raises
    AdaptError for an unreadable image, and as the recipe's training does; ValueError for labels that are none.
    """

    def __init__(
        self,
        method: str = "gda",
        backbone: str | Backbone | None = None,
        *,
        class_names: Mapping[Any, str] | Sequence[str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        device: str = AUTO,
        random_state: int | None = None,
    ) -> None:
        self.method = method
        self.backbone = backbone
        self.class_names = class_names
        self.overrides = overrides
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Trains on images `X` with the labels `y`, each of as many."""
        from sklearn.utils.multiclass import check_classification_targets
        from sklearn.utils.validation import check_consistent_length, column_or_1d

        if y is None:
            raise ValueError("Classifier requires y to be passed, but the target y is None: it learns from labels")
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        names = self._names(classes)
        recipe = self._recipe()
        with _items(X, labels.tolist(), names, recipe.data.exif != "stored") as items:
            split = Split(_DATA, names, items, (), ())
            if recipe.data.shots is not None:
                split = split.few_shot(recipe.data.shots, recipe.seed, recipe.data.sampling)
            split = with_validation(without_broken(split, recipe.data.broken), recipe)
            backbone = self.backbone if isinstance(self.backbone, Backbone) else None
            if backbone is None:
                backbone = deepcopy(_loaded(recipe.backbone, recipe.device, recipe.quantize))
            model = build(recipe, names, backbone)
            self.metrics_ = learn(recipe, model, split, None, progress=False).metrics
        self.classes_ = classes
        self.model_: Any = model
        return self

    def predict(self, X: Any) -> Any:
        """The most probable label of each image `(n,)`."""
        chosen = self.predict_proba(X).argmax(axis=1)
        return self.classes_[chosen]

    def predict_proba(self, X: Any) -> Any:
        """The probabilities of the labels `(n, n_classes)`, in the order of `classes_`."""
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        images = list(X) if hasattr(X, "ndim") else X  # whose first axis counts images, as in `fit`
        return self.model_.probabilities(images).numpy()

    def _names(self, classes: Any) -> tuple[str, ...]:
        """What labels are called in prompts. AdaptError where `class_names` leaves one out."""
        given = self.class_names
        if given is None:
            given = {label: str(label) for label in classes.tolist()}
        known = given if isinstance(given, Mapping) else dict(enumerate(given))
        for label in classes.tolist():
            if label not in known:
                raise AdaptError(f"class_names has no name for the label {brief(label)}: give one for each in y")
        return tuple(known[label] for label in classes.tolist())

    def _recipe(self) -> Recipe:
        """The recipe with what this estimator changes of it."""
        changes: dict[str, Any] = {"data.shots": None, "device": self.device}
        if self.backbone is not None:
            named = self.backbone.name if isinstance(self.backbone, Backbone) else self.backbone
            changes |= {} if named is None else {"backbone": named}
        if self.random_state is not None:
            changes["seed"] = self.random_state
        changes |= dict(self.overrides or {})
        recipe = read_recipe(self.method, list(changes.items()), _DATA)
        method = recipe.new_method()
        return read_recipe(self.method, list((encoded_once(recipe, method) | changes).items()), _DATA)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array, tags.input_tags.string = False, True, True
        tags.no_validation = True
        return tags


@contextmanager
def _items(images: Any, labels: list[int], names: tuple[str, ...], turned: bool) -> Iterator[tuple[Item, ...]]:
    """Images with their labels as items of a data set; what is no file is one, pixel for pixel, while this lasts."""
    with TemporaryDirectory(prefix="adapt-") as folder:
        yield tuple(
            Item.of(path=_path(image, Path(folder, f"{number}.ppm"), turned), label=names[label], turned=turned)
            for number, (image, label) in enumerate(zip(images, labels, strict=True))
        )


def _path(image: Any, file: Path, turned: bool) -> str:
    """The path of a picture, which is written to `file` where it has none."""
    if isinstance(image, str | os.PathLike):
        return str(os.fspath(image))
    open_image(image, turned=turned).save(file)
    return str(file)

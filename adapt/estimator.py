"""The class `Classifier`, which trains by a recipe and has the interface of scikit-learn's estimators."""

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
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags

from adapt.backbones.base import Backbone
from adapt.backbones.load import load_backbone
from adapt.choosing.candidates import encoded_once
from adapt.common.devices import AUTO
from adapt.common.errors import AdaptError
from adapt.common.shown import brief
from adapt.data.check import without_broken
from adapt.data.decoding.images import open_image
from adapt.data.item import Item
from adapt.data.split import Split
from adapt.recipe import Recipe, read_recipe
from adapt.training.fit import fit_plan
from adapt.training.run_recipe import plan_recipe

_Images = Sequence[object] | np.ndarray
_DATA = "the images of fit"  # the name of the data in the recipe; no data set is called so


@lru_cache(maxsize=1)
def _loaded(name: str, device: str, quantize: str | None) -> Backbone:
    """Return the backbone `name`, loaded only once. `fit` copies the backbone, as users may change fitted models."""
    return load_backbone(name, device, quantize)


class Classifier(ClassifierMixin, BaseEstimator):
    """A scikit-learn estimator that trains a method on a frozen backbone, in the same way as `adapt train`.

    `method` is the name of a method or recipe, or the path of a recipe file. `backbone` is a name or a loaded backbone,
    by default the backbone of the recipe. `class_names` is a dict from labels to names for prompts, such as
    `{0: "tabby cat"}`, or a list of names for the labels 0, 1, ...; by default the labels themselves are the names.
    `overrides` changes keys of the recipe, such as `{"train.lr": 0.01}`, also in a grid search. `random_state` is the
    seed, by default the seed of the recipe.

    `X` is a list or array of images in any form that `predict` accepts (paths, PIL images, arrays, ...), and `y` has
    labels of any type. All images are used unless `overrides` has `data.shots`. Settings of a method without training
    steps are tuned by cross-validation. Settings of a method with training steps, if they have to be tuned, are tuned
    on a fifth of the images of each class.

    A fitted estimator has the attributes `classes_` `(n_classes,)`, sorted, `model_`, which can save an adapter, and
    `metrics_`. Raises AdaptError if an image is unreadable or if the recipe cannot be trained, and ValueError if labels
    are invalid.
    """

    def __init__(
        self,
        method: str = "gda",
        backbone: str | Backbone | None = None,
        *,
        class_names: Mapping[Any, str] | Sequence[str] | None = None,
        overrides: Mapping[str, object] | None = None,
        device: str = AUTO,
        random_state: int | None = None,
    ) -> None:
        self.method = method
        self.backbone = backbone
        self.class_names = class_names
        self.overrides = overrides
        self.device = device
        self.random_state = random_state

    def fit(self, X: _Images, y: npt.ArrayLike | None) -> Self:
        """Train on images `X` with labels `y`, and return the estimator."""
        from sklearn.utils.multiclass import check_classification_targets
        from sklearn.utils.validation import check_consistent_length, column_or_1d

        if y is None:
            raise ValueError("Classifier requires y to be passed, but the target y is None: pass the labels of X as y")
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        if not len(classes):
            raise ValueError("y has no labels; expected labels of at least two classes")
        if len(classes) < 2:
            raise ValueError(f"y has only one class, {classes.tolist()[0]!r}; expected labels of at least two classes")
        names = self._names(classes)
        recipe = self._recipe()
        with _items(X, labels.tolist(), names, recipe.data.exif != "stored") as items:
            split = Split(_DATA, names, items, (), ())
            if recipe.data.shots is not None:
                split = split.few_shot(recipe.data.shots, recipe.seed, recipe.data.sampling)
            split = without_broken(split, recipe.data.broken)
            backbone = self.backbone if isinstance(self.backbone, Backbone) else None
            if backbone is None:
                backbone = deepcopy(_loaded(recipe.backbone, recipe.device, recipe.quantize))
            plan = plan_recipe(recipe, split, backbone)
            self.metrics_ = fit_plan(plan, None).metrics
        self.classes_ = classes
        self.model_: Any = plan.model
        return self

    def predict(self, X: _Images) -> np.ndarray:
        """Return the most probable label of each image, as an array `(n,)`."""
        most_probable = self.predict_proba(X).argmax(axis=1)  # first: it refuses an estimator that is not fitted
        labels: np.ndarray = self.classes_[most_probable]
        return labels

    def predict_proba(self, X: _Images) -> np.ndarray:
        """Return the probabilities of the labels for each image `(n, n_classes)`, in the order of `classes_`."""
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        images = list(X) if hasattr(X, "ndim") else X  # the first axis of an array counts images, as in `fit`
        probabilities: np.ndarray = self.model_.probabilities(images).numpy()
        return probabilities

    def _names(self, classes: np.ndarray) -> tuple[str, ...]:
        """Return the class names for prompts, in the order of `classes`. Raises AdaptError if a label has no name."""
        labels = classes.tolist()
        given = {label: str(label) for label in labels} if self.class_names is None else self.class_names
        names = given if isinstance(given, Mapping) else dict(enumerate(given))
        if unnamed := [label for label in labels if label not in names]:
            raise AdaptError(f"class_names has no name for the label {brief(unnamed[0])}: name each label in y")
        return tuple(names[label] for label in labels)

    def _recipe(self) -> Recipe:
        """Return the recipe of the method, changed by the arguments of this estimator."""
        changes: dict[str, object] = {"data.shots": None, "device": self.device}
        if self.backbone is not None:
            named = self.backbone.name if isinstance(self.backbone, Backbone) else self.backbone
            changes |= {} if named is None else {"backbone": named}
        if self.random_state is not None:
            changes["seed"] = self.random_state
        changes |= dict(self.overrides or {})
        recipe = read_recipe(self.method, list(changes.items()), _DATA)
        method = recipe.new_method()
        return read_recipe(self.method, list((encoded_once(recipe, method) | changes).items()), _DATA)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array, tags.input_tags.string = False, True, True
        tags.no_validation = True
        return tags


@contextmanager
def _items(images: _Images, labels: list[int], names: tuple[str, ...], turned: bool) -> Iterator[tuple[Item, ...]]:
    """Yield labelled images as data set items; images that are not files are saved losslessly to temporary files."""
    with TemporaryDirectory(prefix="adapt-") as folder:
        items = []
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = image if isinstance(image, str | os.PathLike) else Path(folder, f"{number}.ppm")
            if path is not image:
                open_image(image, turned=turned).save(path)
            items.append(Item.of(path=str(os.fspath(path)), label=names[label], turned=turned))
        yield tuple(items)

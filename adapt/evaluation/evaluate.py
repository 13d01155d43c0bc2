"""Evaluation of a model on a list of items, in its final state, as published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from adapt import tasks
from adapt.common.disk import write_json
from adapt.common.errors import AdaptError
from adapt.common.grouping import grouped
from adapt.common.progress import Progress
from adapt.data.item import Item
from adapt.evaluation.inference import Inference
from adapt.evaluation.scores import Scores
from adapt.methods.base.traits import Explains, has_trait
from adapt.models.base import Adapted
from adapt.models.dual_encoder import AdaptedModel

OF_EACH = 3  # of right and of wrong answers, the most confident ones


@torch.no_grad()
def evaluate(
    model: Adapted,
    items: Sequence[Item],
    *,
    workers: int = 2,
    cache: bool = True,
    progress: Progress | None = None,
    together: bool = False,
) -> Scores:
    """Return the scores of `model` on labelled `items`, such as accuracy for classes or recall for image-text pairs.

    Features of an unedited vision tower are read from the cache. A method that remembers earlier images gets the items
    as one stream, in the given order. With `together`, all items are answered as one set, by a method that can.

    Raises AdaptError if there are no items, if the model does not have the labels of the items, if the model is for
    another task, or if a file cannot be decoded.
    """
    task = tasks.of(items)
    task.check_model(model, items)
    task.check_answers(model)
    model.check_items(items)
    return task.score(model, items, Inference(workers, cache, progress, together))


def by_language(
    model: Adapted, items: Sequence[Item], translations: Iterable[Item], cache: bool = True
) -> Iterator[tuple[str, Scores, Scores]]:
    """Yield each language, with the scores of a dual encoder by its names of classes, and by the data's own names.

    Both are of the classes that the language names and of their images alone, so that languages differ in what is
    asked. Raises AdaptError for another kind of model, for a language that names all classes of no image, and
    unless each class has one translation, of its own.
    """
    classes = {name for item in items for name in item.class_names}
    named = [each for each in translations if each.text in classes and "language" in each.label.columns]
    if not (named and isinstance(model, AdaptedModel)):
        raise AdaptError(
            "languages need a dual encoder, and a list with the columns text,translation,language whose texts are "
            f"classes of the data, {f'such as {min(classes)!r}' if classes else 'which has none'}"
        )
    for language, own in grouped((each.label.columns["language"], each) for each in named).items():
        names = {each.text: each.answer for each in own}
        if len(names) < len(own):
            raise AdaptError(f"{language!r} has {len(own)} translations of {len(names)} classes: keep one of each")
        for name, count in Counter(names.values()).items():
            if count > 1:
                raise AdaptError(f"{language!r} calls {count} classes {name!r}: give each a name of its own")
        kept = [item for item in items if names.keys() >= {*item.class_names}]
        if not kept:
            raise AdaptError(f"{language!r} names all classes of no image: give translations of more classes")
        renamed = [item.renamed(names) for item in kept]
        translated = evaluate(model.with_classes([*names.values()]), renamed, cache=cache)
        yield language, translated, evaluate(model.with_classes([*names]), kept, cache=cache)


def keep_examples(model: Adapted, scores: Scores, path: Path) -> None:
    """Write explanations of the most confident right and wrong answers to `path`, if the method can explain them."""
    if not (isinstance(model, AdaptedModel) and model.class_names and has_trait(model.method, Explains)):
        return
    surest = sorted(range(scores.images), key=lambda place: -scores.confidence[place])
    chosen = [[place for place in surest if scores.right[place] is right][:OF_EACH] for right in (True, False)]
    places = [place for group in chosen for place in group]
    explanations = model.explain([scores.paths[place] for place in places])
    examples = [
        {
            "path": scores.paths[place],
            "actual": scores.actual[place],
            "reasons": [{"name": reasons.class_name} | reasons.plain() for reasons in explanation.reasons],
        }
        for place, explanation in zip(places, explanations, strict=True)
    ]
    write_json(path, examples)

"""Explanations of a few test images of a run, for methods that can explain their answers."""

from __future__ import annotations

from pathlib import Path

from adapt.common.disk import write_json
from adapt.evaluation.scores import Scores
from adapt.methods.base.traits import Explains, has_trait
from adapt.models.base import Adapted
from adapt.models.classifier import AdaptedModel

OF_EACH = 3  # of right and of wrong answers, the most confident ones


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

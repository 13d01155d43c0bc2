"""A few test images of a run and why they were taken for what they were, where its method can say so."""

from __future__ import annotations

from pathlib import Path

from adapt import plain
from adapt.disk import write_text
from adapt.evaluation.scores import Scores
from adapt.methods.base.traits import Explains, has_trait
from adapt.models.base import Adapted
from adapt.models.classifier import AdaptedModel

OF_EACH = 3  # right and wrong answers that are explained, those of which the model was surest


def keep_examples(model: Adapted, scores: Scores, path: Path) -> None:
    """Writes explanations of the surest right and wrong answers to `path`, of a model that decides by descriptors."""
    if not (isinstance(model, AdaptedModel) and model.class_names and has_trait(model.method, Explains)):
        return
    surest = sorted(range(scores.images), key=lambda place: -scores.confidence[place])
    chosen = [[place for place in surest if scores.right[place] is right][:OF_EACH] for right in (True, False)]
    places = [place for group in chosen for place in group]
    found = model.explain([scores.paths[place] for place in places])
    examples = [
        {
            "path": scores.paths[place],
            "actual": scores.actual[place],
            "reasons": [{"name": reasons.class_name} | reasons.plain() for reasons in explanation.reasons],
        }
        for place, explanation in zip(places, found, strict=True)
    ]
    write_text(path, plain.dump(examples, indent=2) + "\n")

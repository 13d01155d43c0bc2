"""Matching of images with descriptions of their classes, which makes image-text pairs where there are no captions.

Paper: Lewis, Mu et al., GIST: Generating Image-Specific Text for Fine-grained Object Classification, 2023.
Reference: GIST `7c0934f`, `caption_matching.py`. Deviations: none; the texts are the user's, and `lora` or `svlc`
is trained on the pairs, not all of CLIP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapt.common.errors import AdaptError, nearest
from adapt.common.progress import Progress
from adapt.data.item import Item
from adapt.models.dual_encoder import AdaptedModel
from adapt.models.features import item_features


def match(
    model: AdaptedModel,
    items: Sequence[Item],
    texts: Mapping[str, Sequence[str]],
    count: int = 5,
    *,
    workers: int = 2,
    progress: Progress | None = None,
) -> list[tuple[str, ...]]:
    """Return, for each image, at most `count` texts of the image's class, in descending order of cosine similarity.

    Raises AdaptError if a class has no text (the message names the class), or if a text is too long for the text tower.
    """
    for name in dict.fromkeys(item.answer for item in items):
        if not texts.get(name):
            hint = "add a text to its empty list" if name in texts else nearest(name, texts)
            raise AdaptError(f"there is no text for the class {name!r}: {hint}")
    features = item_features(model, items, workers=workers, progress=progress)
    known = {name: model.text_features(own).float().cpu() for name, own in texts.items() if own}
    matches: list[tuple[str, ...]] = []
    for item, image in zip(items, features, strict=True):
        cosines = known[item.answer] @ image
        best = cosines.topk(min(count, len(cosines))).indices.tolist()
        matches.append(tuple(texts[item.answer][place] for place in best))
    return matches

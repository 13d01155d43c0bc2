"""Which descriptions of a class fit each of its images: pairs out of images and texts that were never together.

Paper: Lewis, Mu et al., GIST: Generating Image-Specific Text for Fine-grained Object Classification, 2023.
Reference: GIST `7c0934f`, `caption_matching.py`. Deviations: none; the texts are the user's, and what is trained on the
pairs is `lora` or `svlc`, in place of all of CLIP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from adapt.data.item import Item
from adapt.errors import AdaptError, nearest
from adapt.features import item_features
from adapt.models.classifier import AdaptedModel
from adapt.progress import Progress


def match(
    model: AdaptedModel,
    items: Sequence[Item],
    texts: Mapping[str, Sequence[str]],
    count: int = 5,
    *,
    workers: int = 2,
    progress: Progress | None = None,
) -> list[tuple[str, ...]]:
    """For each image the `count` texts of its own class, or all, that are nearest to it, the best first.

    Raises AdaptError, naming the class, where one has no text, and where a text is longer than the text tower reads.
    """
    for name in dict.fromkeys(item.answer for item in items):
        if not texts.get(name):
            hint = "its list is empty" if name in texts else nearest(name, texts)
            raise AdaptError(f"there is no text of the class {name!r}: {hint}")
    features = item_features(model, items, workers=workers, progress=progress)
    known = {name: model.text_features(own).float().cpu() for name, own in texts.items() if own}
    found: list[tuple[str, ...]] = []
    for item, image in zip(items, features, strict=True):
        cosines: torch.Tensor = known[item.answer] @ image
        best = cosines.topk(min(count, len(cosines))).indices.tolist()
        found.append(tuple(texts[item.answer][place] for place in best))
    return found

"""Numbers from words: an adapter beside the image features, and a number for each of the words that grade an image.

Paper: Zhou et al., UniQA: Unified Vision-Language Pre-training for Image Quality and Aesthetic Assessment,
arXiv 2406.01069, its adapter.
Reference: UniQA `9641459`, `pyiqa/archs/uniqa_arch.py` (non-commercial: its formulas alone were read).
Deviations:
* The words are the names of the classes, any number of them, from the lowest mean target on; the reference has five.
* Targets of any range are brought to 0 to 1 by the extremes of the training images.
* Features have unit length. The adapter has no biases, so that the scale of its input changes no cosine.
* One group of words; variants with several, whose numbers are averaged (`PromptEs`, and AGIQA's two), are not built.
* The backbone is any; the reference's was pre-trained on captions about quality first. Images are cropped as elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.errors import AdaptError
from adapt.methods.base import ImageStep, Method, MethodConfig, Terms, Training
from adapt.methods.base.traits import Grades
from adapt.methods.clip_adapter import bottleneck
from adapt.methods.zero_shot import Template


class UniQAConfig(MethodConfig):
    reduction: int = Field(default=2, ge=1)
    """The features' size over that of the layer between."""
    template: Template = "{} image"
    between: tuple[float, float] | None = None
    """The targets that 0 and 1 stand for; left out: the least and the largest of the training images."""


class UniQA(Method[ImageStep], Grades):
    """`UniQA(reduction)` trains `adapter.fc.0.weight` `(e / 2, e)`, `adapter.fc.2.weight` and `score_level` `(n,)`."""

    name = "uniqa"
    title = "UniQA's adapter (Zhou et al., 2024)"
    Config = UniQAConfig
    example = {"between": (0.0, 1.0)}
    tasks = frozenset({"targets"})
    weighs_classes = False
    per_class = True
    begins_anew = True

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        network = bottleneck(backbone.embed_dim, self.config.reduction)
        self.adapter = nn.ModuleDict({"fc": network}).to(backbone.device)
        self.score_level = nn.Parameter(_levels(range(len(class_names))).to(backbone.device))

    def prepare(self, training: Training) -> None:
        """Words are ordered by the targets of their images."""
        targets: list[list[float]] = [[] for _ in self.score_level]
        for label, target in zip(training.labels("train").tolist(), training.values("train").tolist(), strict=True):
            targets[label].append(target)
        every = [target for own in targets for target in own]
        if self.config.between is None:
            if min(every) == max(every):
                raise AdaptError(f"uniqa: all training images have the target {every[0]:g}; expected different ones")
            self.config = self.config.model_copy(update={"between": (min(every), max(every))})
        if training.resumed:
            return
        means = [sum(own) / len(own) if own else float("inf") for own in targets]
        ranks = [sorted(means).index(mean) for mean in means]
        with torch.no_grad():
            self.score_level.copy_(_levels(ranks))

    def logits(self, step: ImageStep) -> Tensor:
        features = step.features.to(self.score_level.dtype)
        changed = features + self.adapter["fc"](features)
        return step.cosine_logits(step.class_features, F.normalize(changed, dim=-1))

    def score(self, logits: Tensor) -> Tensor:
        low, high = self.config.between or (0.0, 1.0)
        return low + (high - low) * self._share(logits)

    def _share(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(-1) @ self.score_level.float()

    def loss(self, step: ImageStep) -> Terms:
        if step.values is None:
            raise AdaptError("uniqa learns numbers, and the data has none: give a .csv with a column target")
        low, high = self.config.between
        return {"squared_error": F.mse_loss(self._share(step.logits), (step.values - low) / (high - low))}


def _levels(ranks: Sequence[int] | range) -> Tensor:
    """What words of these ranks stand for: the highest for 1, and the lowest of n for 1 / n."""
    return torch.tensor([(rank + 1) / len(ranks) for rank in ranks])

"""UniQA: image quality assessment, by an adapter of the image features and a learned number for each quality word.

Paper: Zhou et al., UniQA: Unified Vision-Language Pre-training for Image Quality and Aesthetic Assessment,
arXiv 2406.01069, its adapter.
Reference: UniQA `9641459`, `pyiqa/archs/uniqa_arch.py` (non-commercial: only its formulas were read).
Deviations:
* The words are the class names, any number of them, ordered by mean target; the reference has five words.
* Targets of any range are mapped to 0 to 1 by the extremes of the training images.
* Features have unit length. The adapter has no biases, so the scale of its input changes no cosine.
* Any backbone serves; the reference's was first pre-trained on captions about quality. Images are cropped as in other
  methods.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.backbones.tokenizer import TextTokenizer
from adapt.common.errors import AdaptError, nearest
from adapt.methods.base import ImageStep, Method, MethodConfig, Terms, Training
from adapt.methods.base.traits import Grades
from adapt.methods.clip_adapter import bottleneck
from adapt.methods.zero_shot import Template
from adapt.prompts import Prompt, of_text


class UniQAConfig(MethodConfig):
    reduction: int = Field(default=2, ge=1)
    """The ratio of the features' size to that of the hidden layer."""
    template: Template = "{} image"
    """The prompt, with {} for the quality word."""
    groups: tuple[dict[str, str], ...] = ()
    """Further groups of texts, each by class name, such as `[{bad: noisy image, good: clean image}]`; the scores of
    the groups are averaged. A class that a group leaves out keeps its prompt (`PromptEs`, AGIQA)."""
    between: tuple[float, float] | None = None
    """The targets that map to 0 and 1; by default the smallest and the largest of the training images."""


class UniQA(Method[ImageStep], Grades):
    """A regression of image quality by an adapter of image features and a learned score for each quality word.

    The trained tensors are `adapter.fc.0.weight` `(e / reduction, e)`, `adapter.fc.2.weight` `(e, e / reduction)` and
    `score_level` `(n,)` for n quality words.
    """

    name = "uniqa"
    title = "UniQA's adapter (Zhou et al., 2024)"
    Config = UniQAConfig
    example = {"between": (0.0, 1.0)}
    tasks = frozenset({"targets"})
    weighs_classes = False
    per_class = True
    begins_anew = True

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        for name in sorted({name for group in self.config.groups for name in group} - set(class_names)):
            raise AdaptError(f"uniqa: groups has {name!r}, which is not a class; {nearest(name, class_names)}")
        network = bottleneck(backbone.embed_dim, self.config.reduction)
        self.adapter = nn.ModuleDict({"fc": network}).to(backbone.device)
        self.score_level = nn.Parameter(_levels(range(len(class_names))).to(backbone.device))

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        given = [of_text(tokenizer, group[class_name]) if class_name in group else None for group in self.config.groups]
        [own] = super().prompts(tokenizer, class_name)
        return [own, *(prompt or own for prompt in given)]

    def prepare(self, training: Training) -> None:
        """Set the target range, and initialise the quality words' scores by the rank of their images' mean target."""
        targets: list[list[float]] = [[] for _ in self.score_level]
        for label, target in zip(training.labels("train").tolist(), training.values("train").tolist(), strict=True):
            targets[label].append(target)
        all_targets = [target for own in targets for target in own]
        if self.config.between is None:
            low, high = min(all_targets), max(all_targets)
            if low == high:
                raise AdaptError(f"uniqa: all training images have the target {low:g}; expected different targets")
            self.config = self.config.model_copy(update={"between": (low, high)})
        if training.resumed:
            return
        means = [sum(own) / len(own) if own else float("inf") for own in targets]
        ranks = [sorted(means).index(mean) for mean in means]
        with torch.no_grad():
            self.score_level.copy_(_levels(ranks))

    def logits(self, step: ImageStep) -> Tensor:
        features = step.features.to(self.score_level.dtype)
        changed = F.normalize(features + self.adapter["fc"](features), dim=-1)
        if not self.config.groups:
            return step.cosine_logits(step.class_features, changed)
        groups = torch.stack(step.prompt_features, dim=1)
        shares = [step.cosine_logits(texts, changed).float().log_softmax(-1) for texts in groups]
        return torch.stack(shares).logsumexp(0)  # whose softmax is the mean of the groups' shares

    def score(self, logits: Tensor) -> Tensor:
        low, high = self.config.between or (0.0, 1.0)
        return low + (high - low) * self._share(logits)

    def _share(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(-1) @ self.score_level.float()

    def loss(self, step: ImageStep) -> Terms:
        if step.values is None:
            raise AdaptError("uniqa learns numbers, but the data has no numbers: give a .csv with a column `target`")
        low, high = self.config.between
        return {"squared_error": F.mse_loss(self._share(step.logits), (step.values - low) / (high - low))}


def _levels(ranks: Sequence[int] | range) -> Tensor:
    """Return the initial scores `(n,)` of n quality words by rank, from 1 / n for the lowest to 1 for the highest."""
    return torch.tensor([(rank + 1) / len(ranks) for rank in ranks])

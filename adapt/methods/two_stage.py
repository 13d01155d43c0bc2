"""First the norms, or the biases, of both towers; then a classifier on what they have become.

Paper: Farina et al., Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages, CVPR 2025 (2SFS).
Reference: rethinking_fewshot_vlms `64ac143`, `fs/twostage.py`, `fs/utils/model_utils.py`.
Deviations:
* The steps of the recipe are those of the second stage; `first` says how many the first one takes for each of them.
* Tuned tensors are fp32 whatever the backbone's precision.
* All blocks are tuned; a first one (`vision_start`, `text_start`), and LoRA as a first stage, are not built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.backbones.tower import Tower
from adapt.edits import Edit
from adapt.methods.base import Context, ImageStep, Method, Training
from adapt.methods.base.traits import InsideBlocks
from adapt.methods.bitfit import BitFit
from adapt.methods.ln_tuning import LNTuning, LNTuningConfig

STAGES: dict[str, type[LNTuning | BitFit]] = {"norms": LNTuning, "biases": BitFit}


class TwoStageConfig(LNTuningConfig):
    tune: Literal["norms", "biases"] = "norms"
    """What the first stage tunes."""
    first: float = Field(default=1.5, gt=0)
    """Steps of the first stage for one of the second: 60 % of all."""


class TwoStage(Method[ImageStep], InsideBlocks):
    """`TwoStage(tune, first)` trains `tuned`, a method of its own, then `classifier` `(n_classes, e)`.

    Other class names than those it learned are read by the tuned text tower.
    """

    name = "two_stage"
    title = "2SFS (Farina et al., CVPR 2025)"
    Config = TwoStageConfig
    learns_any_step = True
    touches = frozenset({"text", "vision"})
    needs_every_class = True
    begins_anew = True

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self._names, self._unclassified = tuple(class_names), False
        self.tuned = STAGES[self.config.tune]()
        self.tuned.absent = self.absent
        self.tuned.build(backbone, class_names)
        classifier = torch.zeros(len(class_names), backbone.embed_dim, device=backbone.device)
        self.classifier = nn.Parameter(classifier)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        return self.tuned.edits(tower, context)

    def prepare(self, training: Training) -> None:
        if not training.resumed:
            with self.first_stage():
                training.seconds += training.train(
                    "norms", parameters=self.tuned.parameters(), **self._length(training)
                )
            self.start(training.classifier.class_features())
        self.tuned.requires_grad_(False)

    def finish(self, training: Training) -> None:
        self.tuned.requires_grad_(True)

    @contextmanager
    def first_stage(self) -> Iterator[None]:
        """Inside, answers are cosines with the text: there is no classifier yet."""
        self._unclassified = True
        try:
            yield
        finally:
            self._unclassified = False

    def start(self, texts: Tensor) -> None:
        """The classifier begins as the unit-length features `(n_classes, e)` of the tuned text tower."""
        with torch.no_grad():
            self.classifier.copy_(texts)

    def _length(self, training: Training) -> dict[str, Any]:
        settings = training.settings
        unit = "iterations" if settings.iterations else "epochs"
        return {unit: max(1, round(self.config.first * getattr(settings, unit)))}

    def logits(self, step: ImageStep) -> Tensor:
        if self._unclassified:
            return super().logits(step)
        return step.cosine_logits(F.normalize(self._rows(step), dim=-1))

    def _rows(self, step: ImageStep) -> Tensor:
        """The classifier of the classes `(n, e)` that are asked for."""
        asked = step.model.class_names
        if asked == self._names:
            return self.classifier
        known, texts = {name: row for row, name in enumerate(self._names)}, step.class_features
        return torch.stack(
            [self.classifier[known[name]] if name in known else text for name, text in zip(asked, texts.float())]
        )

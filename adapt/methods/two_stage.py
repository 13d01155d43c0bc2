"""2SFS: first trains the norms, or the biases, of both towers, and then a classifier on the tuned features.

Paper: Farina et al., Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages, CVPR 2025 (2SFS).
Reference: rethinking_fewshot_vlms `64ac143`, `fs/twostage.py`, `fs/utils/model_utils.py`.
Deviations:
* The recipe's steps are those of the second stage; `first` is the number of first-stage steps for each of them.
* Tuned tensors are fp32 whatever the backbone's precision.
* LoRA as the first stage is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

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

STAGES: dict[str, type[LNTuning]] = {"norms": LNTuning, "biases": BitFit}


class TwoStageConfig(LNTuningConfig):
    tune: Literal["norms", "biases"] = "norms"
    """The tensors that the first stage tunes."""
    first: float = Field(default=1.5, gt=0)
    """First-stage steps for each second-stage step; 1.5 is 60 % of all steps."""


class TwoStage(Method[ImageStep], InsideBlocks):
    """A method that trains layer norms or biases (`tuned`) first, and then a linear `classifier` `(n_classes, e)`.

    The submodule `tuned` is a method itself. Class names that were absent from training are classified by features of
    the tuned text tower.
    """

    name = "two_stage"
    title = "2SFS (Farina et al., CVPR 2025)"
    Config = TwoStageConfig
    learns_any_step = True
    needs_every_class = True
    begins_anew = True

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self._names, self._unclassified = tuple(class_names), False
        shared = {name: getattr(self.config, name) for name in LNTuningConfig.model_fields}
        self.tuned = STAGES[self.config.tune](**shared)
        self.tuned.absent = self.absent
        self.tuned.build(backbone, class_names)
        classifier = torch.zeros(len(class_names), backbone.embed_dim, device=backbone.device)
        self.classifier = nn.Parameter(classifier)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        return self.tuned.edits(tower, context)

    def prepare(self, training: Training) -> None:
        if not training.resumed:
            unit = "iterations" if training.settings.iterations else "epochs"
            length = {unit: max(1, round(self.config.first * getattr(training.settings, unit)))}
            self._unclassified = True  # text features of the class names answer instead of the classifier
            try:
                training.seconds += training.train("norms", parameters=self.tuned.parameters(), **length)
            finally:
                self._unclassified = False
            self.start(training.classifier.class_features())
        self.tuned.requires_grad_(False)

    def finish(self, training: Training) -> None:
        self.tuned.requires_grad_(True)

    def start(self, texts: Tensor) -> None:
        """Initialise the classifier with the tuned text tower's unit-length class features `(n_classes, e)`."""
        with torch.no_grad():
            self.classifier.copy_(texts)

    def logits(self, step: ImageStep) -> Tensor:
        if self._unclassified:
            return super().logits(step)
        rows: Tensor = self.classifier
        if (names := step.model.class_names) != self._names:  # new classes have only their texts
            trained = dict(zip(self._names, self.classifier))
            rows = torch.stack([trained.get(name, text) for name, text in zip(names, step.class_features.float())])
        return step.cosine_logits(F.normalize(rows, dim=-1))

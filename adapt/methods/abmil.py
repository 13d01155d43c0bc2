"""ABMIL: attention that learns which images of an item count, for items of several images (multiple-instance learning).

Paper: Ilse, Tomczak and Welling, Attention-based Deep Multiple Instance Learning, ICML 2018 (ABMIL).
`by: view` is our reading of EchoPrime (Vukadinovic et al., arXiv 2410.09704): unit(mean over images of A[view] f), as
its published `EchoPrime` `45609cd` computes it, whose licence is academic and of which no code is taken.
Reference: AttentionDeepMIL `eb0434b`, `model.py`: `Attention` and `GatedAttention`, with one branch.
Deviations:
* The attention acts on the frozen image features of a CLIP or another model, whose class features are the classifier;
  the reference trains a small convolutional network and one logistic output. So there may be any number of classes,
  also without training.
* The weights begin at zero, so that training starts at the mean of the images; the reference draws them.
* The last bias of the attention is left out, as a softmax ignores it.
* Pooled features are scaled to unit length, because classes are compared by cosine.
* EchoPrime's table A has a row for each section of a report, fixed beforehand, and a classifier names the views. Here
  the data names them, and one row is learned with the classes, as a softmax over an item's views. The images of a view
  are averaged first, so that ten of one do not outvote one of another; EchoPrime sums over all.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import ImageEncoder
from adapt.common.errors import AdaptError, nearest
from adapt.data.bags import bag_softmax, rows_of
from adapt.methods.base import ImageStep, Method, Training
from adapt.methods.base.traits import PoolsBags
from adapt.methods.zero_shot import TemplatesConfig


class ABMILConfig(TemplatesConfig):
    gated: bool = False
    """Multiply each hidden value by a learned gate between 0 and 1."""
    hidden: int = Field(default=128, ge=1)
    """The width of the attention's hidden layer."""
    by: Literal["features", "view"] = "features"
    """Weigh an image by an attention over its features, or by the name of its view."""
    unknown_view: Literal["refuse", "mean"] = "refuse"
    """Refuse a view that no training image has, or give it the mean weight of the known ones."""
    view_names: tuple[str, ...] = ()
    """The names of the views; by default training sets those of its images."""


class ABMIL(Method[ImageStep], PoolsBags):
    """Attention over the images of an item. `ABMIL()` trains `attention.…`, and `ABMIL(gated=True)` `attention_V.…`.

    Plain attention scores an image by `w tanh(V f + b)` of its features f, and gated attention by
    `w (tanh(V f + b) sigmoid(U f + c))`, with V and U `(hidden, e)` and w `(1, hidden)`. A softmax over the images of
    an item makes weights of the scores (equations 8 and 9 of the paper). `ABMIL(by="view")` trains `view_scores`
    `(views,)`, and the images of one view share its weight.
    """

    name = "abmil"
    title = "ABMIL (Ilse et al., ICML 2018)"
    Config = ABMILConfig
    serves = ("dual encoder", "vision encoder")
    learns_any_step = True

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        if self.config.by == "view":
            if self.config.gated:
                raise AdaptError("abmil: gated attention reads features, not views: leave out method.gated")
            self.view_scores = nn.Parameter(torch.zeros(len(self.config.view_names), device=backbone.device))
            return
        hidden, out = self.config.hidden, nn.Linear(self.config.hidden, 1, bias=False)
        nn.init.zeros_(out.weight)

        def layer(activation: nn.Module) -> nn.Sequential:
            return nn.Sequential(nn.Linear(backbone.embed_dim, hidden), activation)

        if self.config.gated:
            self.attention_V, self.attention_U, self.attention_w = layer(nn.Tanh()), layer(nn.Sigmoid()), out
        else:
            self.attention = layer(nn.Tanh()).append(out)
        self.to(backbone.device)

    def prepare(self, training: Training) -> None:
        if self.config.by == "view" and not self.config.view_names:
            names = {name for item in training.items("train") for name in item.view_names}
            self.config = self.config.model_copy(update={"view_names": tuple(sorted(names))})
            self.build(training.classifier.backbone, training.model.class_names)

    def check_views(self, views: Iterable[tuple[str, str]], learned: Collection[str] = ()) -> None:
        known = self.config.view_names or learned
        for image, name in views if self.config.by == "view" else ():
            if not name:
                raise AdaptError(f"{image} has no view, by which it is weighed: fill in the column view")
            if known and name not in known and self.config.unknown_view == "refuse":
                raise AdaptError(
                    f"{image} has the view {name!r}, which no training image has; train with method.unknown_view=mean, "
                    f"or give it one of theirs: {nearest(name, known)}"
                )

    def weights(self, features: Tensor, counts: Tensor, view_names: Sequence[str] = ()) -> Tensor:
        if self.config.by == "features":
            features = features.to(next(self.parameters()).dtype)
            if self.config.gated:
                scores = self.attention_w(self.attention_V(features) * self.attention_U(features))
            else:
                scores = self.attention(features)
            return bag_softmax(scores[:, 0], counts)
        if not self.config.view_names:
            raise AdaptError("abmil has no views to weigh by: train it, or set method.view_names")
        self.check_views(("an image", name) for name in view_names or ("",))
        place = {name: at for at, name in enumerate(dict.fromkeys((*self.config.view_names, *view_names)))}
        numbers = torch.tensor([place[name] for name in view_names], device=counts.device)
        mean = self.view_scores.logsumexp(0) - math.log(len(self.view_scores))  # of the weights, for unknown views
        scores = torch.cat([self.view_scores, mean.expand(len(place) - len(self.view_scores))])
        view_of_item = rows_of(counts) * len(place) + numbers
        return bag_softmax(scores[numbers] - view_of_item.bincount()[view_of_item].log(), counts)

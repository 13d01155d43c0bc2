"""ABMIL: attention that learns which images of an item count, for items of several images (multiple-instance learning).

Paper: Ilse, Tomczak and Welling, Attention-based Deep Multiple Instance Learning, ICML 2018 (ABMIL).
Reference: AttentionDeepMIL `eb0434b`, `model.py`: `Attention` and `GatedAttention`, with one branch.
Deviations:
* The attention acts on the frozen image features of a CLIP or another model, whose class features are the classifier;
  the reference trains a small convolutional network and one logistic output. So there may be any number of classes,
  also without training.
* The weights begin at zero, so that training starts at the mean of the images; the reference draws them.
* The last bias of the attention is left out, as a softmax ignores it.
* Pooled features are scaled to unit length, because classes are compared by cosine.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import ImageEncoder
from adapt.data.bags import bag_softmax
from adapt.methods.base import ImageStep, Method
from adapt.methods.base.traits import PoolsBags
from adapt.methods.zero_shot import TemplatesConfig


class ABMILConfig(TemplatesConfig):
    gated: bool = False
    """Multiply each hidden value by a learned gate between 0 and 1."""
    hidden: int = Field(default=128, ge=1)
    """The width of the attention's hidden layer."""


class ABMIL(Method[ImageStep], PoolsBags):
    """Attention over the images of an item. `ABMIL()` trains `attention.…`, and `ABMIL(gated=True)` `attention_V.…`.

    Plain attention scores an image by `w tanh(V f + b)` of its features f, and gated attention by
    `w (tanh(V f + b) sigmoid(U f + c))`, with V and U `(hidden, e)` and w `(1, hidden)`. A softmax over the images of
    an item makes weights of the scores (equations 8 and 9 of the paper).
    """

    name = "abmil"
    title = "ABMIL (Ilse et al., ICML 2018)"
    Config = ABMILConfig
    serves = ("dual encoder", "vision encoder")

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        hidden, out = self.config.hidden, nn.Linear(self.config.hidden, 1, bias=False)
        nn.init.zeros_(out.weight)

        def layer(activation: nn.Module) -> nn.Sequential:
            return nn.Sequential(nn.Linear(backbone.embed_dim, hidden), activation)

        if self.config.gated:
            self.attention_V, self.attention_U, self.attention_w = layer(nn.Tanh()), layer(nn.Sigmoid()), out
        else:
            self.attention = layer(nn.Tanh()).append(out)
        self.to(backbone.device)

    def weights(self, features: Tensor, counts: Tensor) -> Tensor:
        features = features.to(next(self.parameters()).dtype)
        if self.config.gated:
            scores = self.attention_w(self.attention_V(features) * self.attention_U(features))
        else:
            scores = self.attention(features)
        return bag_softmax(scores[:, 0], counts)

"""Projector: a linear map or small MLP from patch features to visual tokens of the language model.

Papers: Merullo et al., Linearly Mapping from Image to Text Space, ICLR 2023 (LiMBeR); Liu et al., Improved Baselines
with Visual Instruction Tuning, CVPR 2024 (LLaVA-1.5). Losses beside the answers': Park et al., Bridging Vision and
Language Spaces with Assignment Prediction, ICLR 2024 (VLAP); Liu et al., Contrastive Vision-Language Alignment Makes
Efficient Instruction Learner, arXiv 2311.17945 (CG-VLM). Two vision towers (`mix`): Tong et al., Eyes Wide Shut?
Exploring the Visual Shortcomings of Multimodal LLMs, CVPR 2024 (mixtures of features).
References: LLaVA as implemented in transformers (`LlavaMultiModalProjector`), whose parameter names are used here;
jmerullo/limber `ed3e942`; park-jungin/vlap `5caf538` (no licence: only its formulas were read); tsb0601/MMVP
`7635005`, which has interleaved features alone. CG-VLM has no public code: `align: words` is our reading.
Deviations:
* The language model stays frozen; LLaVA also trains it in its second stage (see `compose` and `lora` for that).
* LiMBeR's longest caption of a batch learns no end token, for want of padding; here every answer learns its own.
* LiMBeR reads a pooled vector of a ResNet where `tokens` is set; here it is the mean of the patches.
* VLAP's tokens include the class token; here only patches are tokens. Its text is a caption, here the answer.
* VLAP's file of word counts is not public: our prior is made of the answers' tokens in the training data, as shares of
  the most frequent one. Its code never reaches the branch that balances samples, which the paper describes and which
  is the default here; `transport: softmax` is what the code computes.
* CG-VLM's embeddings are those of the input, its temperature is fixed, and its weight is 1: the paper's abstract alone
  was available. Images with equal texts are not contrasted.
* A second tower's patches are brought to the grid of the first one's, which the reference expects to be equal; `add`
  weighs both as the paper says, and `beside` is our default.
* Of a native vision-language model, the linear maps of its own connector are learned anew, in the connector's own form.

Of the losses that draw visual tokens to words, beside the loss on the answers, `contrast_with_words` is CG-VLM's: an
image and the words of its text against those of other images. `assignment_loss` is VLAP's: an image and its text are
each assigned to words of the vocabulary, and each must predict the assignment of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.native import NativeVLM
from adapt.backbones.tower import Tower
from adapt.backbones.vision_llm import VisionLLM
from adapt.common.errors import AdaptError
from adapt.edits import Edit, Replace, Tokens
from adapt.methods.base import Context, Method, MethodConfig, Step, Terms, Training
from adapt.methods.base.step import contrast, equal_texts
from adapt.methods.base.traits import Imported, OwnTerms, ReadsPublished

_WEIGHTS = {"words": 1.0, "assignment": 0.1}
_MAPS = ("linear", "second")  # names of the maps of a vision tower, and of a second one


class ProjectorConfig(MethodConfig):
    kind: Literal["linear", "mlp"] = "mlp"
    """One linear map (LiMBeR), or two with a GELU between them (LLaVA-1.5); native models keep their own form."""
    tokens: int | None = Field(default=None, ge=1)
    """The number of visual tokens, mapped together from the mean of the patches; null maps each patch to a token."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """The dropout of visual tokens in training; LiMBeR's is 0.1."""
    align: Literal["none", "words", "assignment"] = "none"
    """A loss beside that of the answers: contrast with their words (CG-VLM), or assignment to words (VLAP)."""
    align_weight: float | None = Field(default=None, gt=0)
    """The weight of that loss; by default 1 for words and 0.1 for assignment."""
    transport: Literal["sinkhorn", "softmax"] = "sinkhorn"
    """How `assignment` assigns: by optimal transport (the paper), or each sample by itself (its code)."""
    temperature: float = Field(default=0.01, gt=0)
    """The temperature of predicted assignments (VLAP's tau)."""
    epsilon: float = Field(default=0.01, gt=0)
    """The entropy regularisation of assignments."""
    iterations: int = Field(default=3, ge=1)
    """The iterations of Sinkhorn and Knopp."""
    mix: Literal["beside", "interleave", "add"] = "beside"
    """How the patches of two vision towers become tokens: from both features side by side, or from those of each tower
    by maps of its own, whose tokens then take turns or are added (Tong et al.)."""
    share: float = Field(default=0.5, ge=0, le=1)
    """Of `add`: the second tower's share of a token."""

    @model_validator(mode="after")
    def _linear(self) -> ProjectorConfig:
        if self.tokens is not None and self.kind != "linear":
            raise ValueError(f"kind is {self.kind}; expected linear where tokens is set")
        if self.tokens is not None and self.mix != "beside":
            raise ValueError(f"mix is {self.mix}; expected beside where tokens is set")
        if self.align == "none" and self.align_weight is not None:
            raise ValueError("align_weight needs a loss: set align to words or assignment")
        return self


class Projector(Method[Step], ReadsPublished, OwnTerms):
    """A linear layer or an MLP (`kind`) that maps each image patch to a visual token `(d,)` of a language model.

    On a native vision-language model, new linear maps `BLOCK.NAME` replace those of the model's connector.
    """

    log_prior: Tensor

    name = "projector"
    title = "Projector (LiMBeR, ICLR 2023; LLaVA-1.5, CVPR 2024)"
    serves = ("vision LLM", "native VLM")
    Config = ProjectorConfig
    learns_any_step = True
    _native = False

    @property
    def touches(self) -> frozenset[str]:
        return frozenset({"connector" if self._native else "decoder"})

    @classmethod
    def published(cls, state: dict[str, Tensor], given: Mapping[str, object]) -> Imported:
        """Return projector tensors and settings from a LLaVA of transformers, a `mm_projector.bin` or a `proj.ckpt`.

        The latter is LiMBeR's, a linear map alone.
        """
        if state.keys() == {"weight", "bias"}:
            return {f"linear_1.{key}": value for key, value in state.items()}, {"kind": "linear"}
        own = {key.rpartition("projector.")[2]: value for key, value in state.items() if "projector." in key}
        renamed = {key.replace("0.", "linear_1.").replace("2.", "linear_2."): value for key, value in own.items()}
        tensors = own if "linear_1.weight" in own else renamed
        if "linear_1.weight" not in tensors:
            return {f"linear_1.{key}": tensors[key] for key in ("weight", "bias")}, {"kind": "linear"}
        return {f"linear_{i}.{part}": tensors[f"linear_{i}.{part}"] for i in (1, 2) for part in ("weight", "bias")}, {}

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        if isinstance(backbone, NativeVLM):
            self._renew(backbone)
            return
        assert isinstance(backbone, VisionLLM)
        _, width = backbone.patch_shape()
        target, widths = backbone.tower("decoder").width, [width]
        if self.config.mix != "beside":
            if backbone.second is None:
                raise AdaptError(
                    f"projector: method.mix is {self.config.mix}, but {backbone.describe()} has one vision tower: name "
                    "two, as FIRST&SECOND+LLM, or leave method.mix out"
                )
            widths = backbone.widths
        for name, each in zip(_MAPS, widths, strict=False):
            self.add_module(f"{name}_1", nn.Linear(each, target * (self.config.tokens or 1)))
            self.add_module(f"{name}_2", nn.Linear(target, target) if self.config.kind == "mlp" else None)
        self.act = nn.GELU()
        words = len(backbone.llm.get_input_embeddings().weight)
        self.register_buffer("log_prior", prior(torch.zeros(words)), persistent=False)
        self.to(backbone.device)

    def _renew(self, backbone: NativeVLM) -> None:
        """Draw new linear maps in place of those of the backbone's connector."""
        if changed := self.config.model_dump(exclude_defaults=True):
            raise AdaptError(
                f"projector: {backbone.describe()} keeps its connector's form and learns from its answers alone: leave "
                f"{', '.join(sorted(changed))} out"
            )
        self._native = True
        for index, block in enumerate(backbone.tower("connector").blocks):
            maps = {
                name: _Map(each.shape[1], each.shape[0], each.bias is not None)
                for name, each in block.projections.items()
            }
            self.add_module(str(index), nn.ModuleDict(maps))
        self.to(backbone.device)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        if self._native:
            renewed = [(index, self.get_submodule(str(index))) for index in range(len(tower.blocks))]
            return [Replace(index, name, linear) for index, maps in renewed for name, linear in maps.named_children()]
        features = context.tokens("vision").to(next(self.parameters()).dtype)
        if self.config.tokens:
            tokens = self._mapped("linear", features.mean(1)).unflatten(-1, (self.config.tokens, -1))
        elif self.config.mix == "beside":
            tokens = self._mapped("linear", features)
        else:
            widths = [self.get_submodule(f"{name}_1").in_features for name in _MAPS]
            first, second = map(self._mapped, _MAPS, features.split(widths, dim=-1))
            if self.config.mix == "add":
                tokens = torch.lerp(first, second, self.config.share)
            else:
                tokens = torch.stack([first, second], dim=2).flatten(1, 2)
        return [Tokens(F.dropout(tokens, self.config.dropout, self.training)[:, None])]

    def _mapped(self, name: str, features: Tensor) -> Tensor:
        first, second = getattr(self, f"{name}_1"), getattr(self, f"{name}_2")
        tokens: Tensor = first(features)
        return tokens if second is None else second(self.act(tokens))

    def prepare(self, training: Training) -> None:
        """Count the tokens of the training answers, which are the prior of VLAP's assignments."""
        if self.config.align == "assignment":
            answers = [" ".join(item.class_names) for item in training.items("train")]
            backbone: Any = training.model.backbone
            ids, mask = backbone.text_tokens(answers)
            counts = torch.bincount(ids[mask], minlength=len(self.log_prior)).float()
            self.log_prior.copy_(prior(counts / counts.max()))

    @property
    def has_own_terms(self) -> bool:
        return self.config.align != "none"

    def loss(self, step: Any) -> Terms:
        terms: Terms = step.task_loss()
        if not self.has_own_terms:
            return terms
        if self.config.align == "words":
            words = mean_words(step.model.backbone, step.answers)
            same = equal_texts(step.answers, words.device)
            term = contrast_with_words(step.visual_tokens.float(), words, same)
        else:
            term = self._assignment(step)
        return terms | {"alignment": (self.config.align_weight or _WEIGHTS[self.config.align]) * term}

    def _assignment(self, step: Any) -> Tensor:
        backbone = step.model.backbone
        vocabulary = F.normalize(backbone.llm.get_input_embeddings().weight.detach().float(), dim=-1)
        visual, texts = step.visual_tokens.float().mean(1), mean_states(backbone, step.answers)
        image_scores, text_scores = (F.normalize(each, dim=-1) @ vocabulary.T for each in (visual, texts))
        config, assign = self.config, sinkhorn if self.config.transport == "sinkhorn" else sharpened
        image_words, text_words = (
            assign(scores.detach(), self.log_prior, config.epsilon, config.iterations)
            for scores in (image_scores, text_scores)
        )
        return assignment_loss(image_scores, text_scores, image_words, text_words, config.temperature)


class _Map(nn.Linear):
    """A linear map in fp32 for inputs of any precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


TEMPERATURE = 0.07  # of the contrast; our reading
_PRIOR_TEMPERATURE = 0.25  # of the words' frequencies


def contrast_with_words(visual: Tensor, words: Tensor, same: Tensor) -> Tensor:
    """Return the contrastive loss of images with visual tokens `(b, k, d)` and texts with `words` `(b, d)`.

    `words` is the mean of the unit-length embeddings of a text's tokens, so that a product with an image's unit-length
    mean is the mean of its cosines with these tokens. `same` `(b, b)` marks pairs that are left out, because the text
    of one also describes the other.
    """
    similarities = F.normalize(visual.mean(1), dim=-1) @ words.T
    return contrast((similarities / TEMPERATURE).masked_fill(same, -torch.inf))


def assignment_loss(
    image_scores: Tensor, text_scores: Tensor, image_words: Tensor, text_words: Tensor, temperature: float
) -> Tensor:
    """Return the loss of predicting the assignment to words `(b, v)` of an image from its text, and the reverse.

    Scores `(b, v)` are cosines with the vocabulary's embeddings.
    """
    of_texts = F.cross_entropy(image_scores / temperature, text_words)
    of_images = F.cross_entropy(text_scores / temperature, image_words)
    return (of_texts + of_images) / 2


def sinkhorn(scores: Tensor, log_prior: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return assignments to words `(n, v)`: the transport plan of n samples to words with the given prior `(v,)`.

    The plan is entropy-regularised and made by a few iterations of Sinkhorn and Knopp. Each row sums to 1.
    """
    plan = scores.double() / epsilon  # in logarithms, since e^100 is not a number of fp32
    for _ in range(iterations):
        plan = (plan - plan.logsumexp(0) + log_prior.double()).log_softmax(-1)
    return plan.exp().to(scores.dtype)


def sharpened(scores: Tensor, log_prior: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return assignments to words `(n, v)`, each sample by itself: what the published code computes in one process."""
    return (scores / epsilon + iterations * log_prior).softmax(-1)


def prior(frequencies: Tensor) -> Tensor:
    """Return the logarithms of the words' prior probabilities `(v,)` from their frequencies."""
    return (frequencies / _PRIOR_TEMPERATURE).log_softmax(0)


@torch.no_grad()
def mean_words(backbone: VisionLLM, texts: Sequence[str]) -> Tensor:
    """Return the mean of the unit-length input embeddings of each text's tokens `(b, d)`."""
    ids, mask = backbone.text_tokens(texts)
    embedded = F.normalize(backbone.llm.get_input_embeddings()(ids).float(), dim=-1)
    return _mean(embedded, mask)


@torch.no_grad()
def mean_states(backbone: VisionLLM, texts: Sequence[str]) -> Tensor:
    """Return the mean of the language model's last hidden states of each text's tokens `(b, d)`."""
    ids, mask = backbone.text_tokens(texts)
    states = backbone.llm(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False)
    return _mean(states.hidden_states[-1].float(), mask)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

"""Losses that draw visual tokens to words of the language model, beside the loss on the answers.

`contrast_with_words` is CG-VLM's: an image and the words of its text against those of other images. `assignment_loss`
is VLAP's: an image and its text are each assigned to words of the vocabulary, and each must predict the assignment of
the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.backbones.vision_llm import VisionLLM
from adapt.methods.base.step import contrast

TEMPERATURE = 0.07  # of the contrast; our reading
SHARPNESS = 0.01  # the temperature of predicted assignments, and the regularisation of assignments: tau and epsilon
ITERATIONS = 3
_PRIOR_TEMPERATURE = 0.25  # of the words' frequencies


def contrast_with_words(visual: Tensor, words: Tensor, same: Tensor) -> Tensor:
    """Return the contrastive loss of images with visual tokens `(b, k, d)` and texts with `words` `(b, d)`.

    `words` is the mean of the unit-length embeddings of a text's tokens, so that a product with an image's unit-length
    mean is the mean of its cosines with these tokens. `same` `(b, b)` marks pairs that are left out, because the text
    of one also describes the other.
    """
    similarities = F.normalize(visual.mean(1), dim=-1) @ words.T
    return contrast((similarities / TEMPERATURE).masked_fill(same, -torch.inf))


def assignment_loss(image_scores: Tensor, text_scores: Tensor, image_words: Tensor, text_words: Tensor) -> Tensor:
    """Return the loss of predicting the assignment to words `(b, v)` of an image from its text, and the reverse.

    Scores `(b, v)` are cosines with the vocabulary's embeddings.
    """
    of_texts = F.cross_entropy(image_scores / SHARPNESS, text_words)
    of_images = F.cross_entropy(text_scores / SHARPNESS, image_words)
    return (of_texts + of_images) / 2


def sinkhorn(scores: Tensor, log_prior: Tensor, epsilon: float = SHARPNESS) -> Tensor:
    """Return assignments to words `(n, v)`: the transport plan of n samples to words with the given prior `(v,)`.

    The plan is entropy-regularised and made by a few iterations of Sinkhorn and Knopp. Each row sums to 1.
    """
    plan = scores.double() / epsilon  # in logarithms, since e^100 is not a number of fp32
    for _ in range(ITERATIONS):
        plan = (plan - plan.logsumexp(0) + log_prior.double()).log_softmax(-1)
    return plan.exp().to(scores.dtype)


def sharpened(scores: Tensor, log_prior: Tensor) -> Tensor:
    """Return assignments to words `(n, v)`, each sample by itself: what the published code computes in one process."""
    return (scores / SHARPNESS + ITERATIONS * log_prior).softmax(-1)


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

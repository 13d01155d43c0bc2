"""The tokenizer of the questions, and fresh scenes with questions for every step."""

import json
import math
import random
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from adapt.data.emoji import questions, scenes

PAD, UNKNOWN, CLS, SEP = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
CONTEXT = 24
SET = "emoji-questions"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # mini-clip's
QUESTIONS = (
    *(questions.WHAT, questions.GROUP, questions.COLOUR, questions.ANIMAL),
    *(questions.COUNT, questions.LEFT, questions.RIGHT),
)
_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
_SHIFT = 3  # pixels, at most


def save_tokenizer(folder: Path) -> None:
    """Lower-cased words and punctuation: those of the questions. The first token is `[CLS]`, where ViLT pools."""
    splitter = pre_tokenizers.BertPreTokenizer()
    words = sorted({word for text in QUESTIONS for word, _ in splitter.pre_tokenize_str(text)})
    ids = {word: number for number, word in enumerate([PAD, UNKNOWN, CLS, SEP, *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens([PAD, UNKNOWN, CLS, SEP])
    marks = [(token, ids[token]) for token in (CLS, SEP)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{CLS} $A {SEP}", special_tokens=marks)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "cls_token": CLS,
        "sep_token": SEP,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "model_max_length": CONTEXT,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def save_preprocessor(folder: Path) -> None:
    """The bundled CLIP's preprocessing in ViLT's own terms."""
    config = {
        "image_processor_type": "ViltImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 64},
        "size_divisor": 8,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "do_pad": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n")


def batches(size: int, seed: int) -> Iterator[tuple[Tensor, list[str], Tensor]]:
    """Images (b, 3, 64, 64), a question about each, and the answers' numbers (b,), without end.

    The drawings are those of the training part; the scenes are never those of the bundled set.
    """
    number = {answer: place for place, answer in enumerate(questions.answers())}
    drawings, rng = questions.drawings(SET, "train"), random.Random(f"fresh/{seed}")
    stream = (scene for _ in count() for scene in scenes.scenes(drawings, 1000, rng))
    while True:
        chosen = [next(stream) for _ in range(size)]
        asked = [rng.choice(list(questions.asked(scene))) for scene in chosen]
        images = torch.stack([torch.from_numpy(np.array(scene.draw())) for scene in chosen]).permute(0, 3, 1, 2)
        yield views(images / 255), [text for text, _ in asked], torch.tensor([number[answer] for _, answer in asked])


def views(images: Tensor) -> Tensor:
    """Images in [0, 1], shifted and in other colours each time, noisy, normalised as the preprocessor does."""
    x = recoloured(shifted(images))
    x = (x + torch.randn_like(x) * uniform(len(x), 0, 0.03)).clamp(0, 1)
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def shifted(images: Tensor) -> Tensor:
    """By whole pixels; the border goes on outside."""
    side = images.shape[-1]
    padded = torch.nn.functional.pad(images, [_SHIFT] * 4, mode="replicate")
    places = torch.randint(0, 2 * _SHIFT + 1, (len(images), 2)).tolist()
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(padded, places, strict=True)])


def recoloured(rgb: Tensor) -> Tensor:
    """Hue a little, since colours are asked about; saturation, contrast, brightness and gamma more."""
    b = len(rgb)
    grey = (rgb * _LUMA).sum(1, keepdim=True)
    chroma, turn = rgb - grey, torch.randn(b, 1, 1, 1) * 0.1
    # A turn of the chroma plane about the grey axis, close enough to a change of hue.
    cross = (chroma.roll(1, 1) - chroma.roll(2, 1)) / math.sqrt(3)
    rgb = grey + (chroma * turn.cos() + cross * turn.sin()) * uniform(b, 0.7, 1.4)
    rgb = (rgb - 0.5) * uniform(b, 0.8, 1.2) + 0.5 + uniform(b, -0.1, 0.1)
    return rgb.clamp(0.001, 1) ** torch.exp(uniform(b, -0.25, 0.25))


def uniform(n: int, low: float, high: float) -> Tensor:
    """(n, 1, 1, 1) random numbers."""
    return torch.empty(n, 1, 1, 1).uniform_(low, high)

"""The tokenizer: lower-cased byte-level BPE, so that every text has tokens, and the words of names are mostly whole."""

import json
from pathlib import Path

from concepts import load
from phrases import wordnet
from shape import SHAPE
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

PAD, START, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
TEMPLATES = [
    "{}", "{}.", "a {}.", "the {}.", "a photo of a {}.", "a photo of the {}.", "a picture of a {}.", "an image of {}.",
    "an icon of a {}.", "an emoji of a {}.", "a drawing of a {}.", "a photo of {}.", "itap of a {}.",
    "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.", "art of the {}.",
    "a photo of the small {}.", "a photo of a {}, a type of object.", "X X X X {}.", "{} X X X X.",
    "X X X X X X X X X X X X X X X X {}.", "a sketch of a {}.", "a cartoon {}.", "a 3d render of a {}.",
]  # fmt: skip


def corpus(work: Path, phrases: list[str]) -> list[str]:
    """What the merges are counted on: common nouns, adjectives and the training names count more than rare words."""
    names = [concept.name for concept in load(work) if not concept.held_out]
    return 8 * TEMPLATES + 10 * names + 4 * wordnet(work, "noun")[:10_000] + 2 * wordnet(work, "adj")[:3000] + phrases


def save(work: Path, phrases: list[str]) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into `work/tokenizer`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE.vocabulary - 1,
        special_tokens=[PAD, START],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(work, phrases), trainer)
    # Added last, so that it has the highest id: CLIP pools at the highest id of a text.
    tokenizer.add_special_tokens([END])
    ids = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ids)
    folder = work / "tokenizer"
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": SHAPE.text["context_length"],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

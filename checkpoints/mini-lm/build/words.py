"""The tokenizer: lower-cased words and punctuation, each with a number."""

import json
import random
from pathlib import Path

import text
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from world import asked, others

PAD, UNKNOWN, START, END, IMAGE = "<pad>", "<unk>", "<s>", "</s>", "<image>"
SPECIAL = [PAD, UNKNOWN, START, END, IMAGE]
CONTEXT = 256
_SPLITTER = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])


def vocabulary(samples: int = 20_000) -> list[str]:
    """All words of the names, and those of `samples` texts, sorted."""
    rng = random.Random(0)
    texts = [" ".join(text.example(rng)[:2]) for _ in range(samples)]
    texts += [f"{thing.name} {thing.plural} {thing.group}" for thing in asked() + others()]
    return sorted({word for each in texts for word, _ in _SPLITTER.pre_tokenize_str(each.lower())})


def save(folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    ids = {word: number for number, word in enumerate([*SPECIAL, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = _SPLITTER
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A $B", special_tokens=[(START, ids[START])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "additional_special_tokens": [IMAGE],
        "model_max_length": CONTEXT,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

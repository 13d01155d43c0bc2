"""Distil the sentence encoder's meanings into a small causal text tower, CLIP's own blocks."""

import json
import math
import random
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
import vocabulary
from concepts import load
from muon import Muon
from shape import SHAPE
from teach import Whitening, sentence_embeddings
from tokenizers import Tokenizer
from torch import Tensor, nn

CONTRAST_SCALE = 20.0
NAME_TEMPLATES = ["a photo of a {}.", "{}", "an icon of a {}."]
NAME_SHARE = 0.2  # of a batch: the names that the image tower is trained on; the rest is the broad list


class Phrases:
    """The phrases with their targets, tokenised per template; held-out names are in it only where WordNet has them."""

    def __init__(self, work: Path):
        meanings, concepts = torch.load(work / "meanings.pt"), load(work)
        seen = torch.tensor([not concept.held_out for concept in concepts])
        names = [concept.name for concept in concepts if not concept.held_out]
        self.broad = len(meanings["phrases"])
        self.texts = meanings["phrases"] + names
        self.targets = F.normalize(torch.cat([meanings["targets"].float(), meanings["names"][seen]]), dim=-1)
        self.tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
        self.tokenizer.enable_padding(pad_id=self.tokenizer.token_to_id(vocabulary.PAD), pad_token=vocabulary.PAD)
        self.tokenizer.enable_truncation(SHAPE.text["context_length"])

    def batch(self) -> tuple[Tensor, Tensor]:
        """Ids (b, longest) and targets (b, embed_dim): one template per batch, so that little is padding."""
        size = SHAPE.text_steps[1]
        names = int(size * NAME_SHARE)
        rows = torch.randint(self.broad, (size - names,)).tolist()
        rows += torch.randint(self.broad, len(self.texts), (names,)).tolist()
        template = random.choice(vocabulary.TEMPLATES)
        return self.encode([template.format(self.texts[i]) for i in rows]), self.targets[rows]

    def encode(self, texts: list[str]) -> Tensor:
        """Ids (n, longest), padded."""
        return torch.tensor([encoding.ids for encoding in self.tokenizer.encode_batch(texts)])


def new_tower() -> nn.Module:
    """An untrained text tower of open_clip."""
    return open_clip.transformer.TextTransformer(
        **SHAPE.text, vocab_size=SHAPE.vocabulary, output_dim=SHAPE.embed_dim, pool_type="argmax"
    )


def forward(tower: nn.Module, ids: Tensor) -> Tensor:
    """Unit vectors (n, embed_dim). Unlike the tower's own forward it stops at the longest text; causal, so exact."""
    length = ids.shape[1]
    x = tower.token_embedding(ids) + tower.positional_embedding[:length]
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(ids)), ids.argmax(-1)] @ tower.text_projection, dim=-1)


@torch.no_grad()
def start_with_meanings(tower: nn.Module, work: Path, tokenizer: Tokenizer) -> None:
    """Start token embeddings from the sentence encoder's view of each token's own text; the projection undoes it.

    Most tokens are whole words, so the untrained tower is already a bag of words; training starts from there.
    """
    raw = torch.load(work / "meanings.pt")["raw"].float()
    broad = raw[: len(raw) - len(load(work))]
    words = [tokenizer.decode([i]).strip() or "nothing" for i in range(SHAPE.vocabulary)]
    targets = Whitening(broad, SHAPE.embed_dim)(sentence_embeddings(words))
    _, _, directions = torch.pca_lowrank(targets, q=SHAPE.text["width"], center=False)
    tower.token_embedding.weight.copy_(targets @ directions * 0.5)
    tower.text_projection.copy_(directions.T * SHAPE.text["width"] ** -0.5)


def train(work: Path) -> nn.Module:
    """Cosine and contrast within the batch."""
    steps = SHAPE.text_steps[0]
    torch.manual_seed(SHAPE.seed)
    random.seed(SHAPE.seed)
    phrases, tower = Phrases(work), new_tower()
    start_with_meanings(tower, work, phrases.tokenizer)
    blocks = [p for p in tower.transformer.parameters() if p.ndim == 2]
    rest = [p for p in tower.parameters() if all(p is not q for q in blocks)]
    optimisers = [Muon(blocks, 0.01), torch.optim.AdamW(rest, 1e-3, betas=(0.9, 0.98), weight_decay=0.0)]
    rates = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    for step in range(steps):
        ids, targets = phrases.batch()
        output = forward(tower, ids)
        similarity = output @ targets.T
        distance = 1 - similarity.diagonal().mean()
        loss = 2 * distance + F.cross_entropy(CONTRAST_SCALE * similarity, torch.arange(len(ids)))
        loss.backward()
        factor = min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for optimiser, rate in zip(optimisers, rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad()
        if (step + 1) % 50 == 0:
            print(json.dumps({"step": step + 1, "distance": round(distance.item(), 4)}), flush=True)
    return tower


@torch.no_grad()
def check(tower: nn.Module, work: Path) -> dict[str, float]:
    """Mean cosine of names to their targets, and how often a held-out name finds its own among the held-out ones."""
    phrases, concepts = Phrases(work), load(work)
    targets = torch.load(work / "meanings.pt")["names"]
    output = forward(tower, phrases.encode([f"a photo of a {concept.name}." for concept in concepts]))
    held_out = torch.tensor([concept.held_out for concept in concepts])
    cosine = (output * targets).sum(-1)
    found = (output[held_out] @ targets[held_out].T).argmax(1) == torch.arange(int(held_out.sum()))
    return {
        "seen names, cosine": cosine[~held_out].mean().item(),
        "held-out names, cosine": cosine[held_out].mean().item(),
        "held-out names, found": found.float().mean().item(),
    }


@torch.no_grad()
def name_embeddings(work: Path) -> Tensor:
    """The finished tower's unit vectors (concepts, embed_dim) of all names, the mean over a few templates.

    The image tower is trained against these rather than against the sentence encoder: they are what it will meet.
    """
    tower, phrases = new_tower(), Phrases(work)
    tower.load_state_dict(torch.load(work / "text.pt"))
    names = [concept.name for concept in load(work)]
    views = [forward(tower, phrases.encode([template.format(name) for name in names])) for template in NAME_TEMPLATES]
    return F.normalize(torch.stack(views).mean(0), dim=-1)


def save(work: Path) -> None:
    """Write `text.pt`."""
    vocabulary.save(work, torch.load(work / "meanings.pt")["phrases"])
    tower = train(work)
    print(json.dumps(check(tower, work)))
    torch.save(tower.state_dict(), work / "text.pt")

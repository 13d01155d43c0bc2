"""Measure the shipped folder with open_clip alone: `python evaluate.py WORK` writes `results.json` and the table."""

import argparse
import io
import json
import time
import zipfile
from pathlib import Path

import card
import numpy as np
import open_clip
import pack
import torch
from concepts import load
from export import TARGET
from PIL import Image
from render import SIDE, on_white, open_renders
from shape import SHAPE
from sources import TRAINING_STYLES, UNSEEN_STYLE
from torch import Tensor

TEMPLATE = "a photo of a {}."


class Model:
    """Both towers of the folder, as unit vectors."""

    def __init__(self, folder: Path):
        name = f"local-dir:{folder}"
        self.model, _, self.transform = open_clip.create_model_and_transforms(name)
        self.tokenizer = open_clip.get_tokenizer(name)
        self.model.eval()

    @torch.inference_mode()
    def texts(self, names: list[str], template: str = TEMPLATE) -> Tensor:
        """(n, d) for class names put into the template."""
        return self.model.encode_text(self.tokenizer([template.format(name) for name in names]), normalize=True)

    @torch.inference_mode()
    def images(self, pictures: list[Image.Image]) -> Tensor:
        """(n, d) for pictures of any size."""
        pixels = torch.stack([self.transform(picture) for picture in pictures])
        return torch.cat([self.model.encode_image(part, normalize=True) for part in pixels.split(256)])


def accuracy(images: Tensor, texts: Tensor, truth: Tensor) -> dict[str, float]:
    """Top-1 and top-5 in per cent; `truth` (n,) are rows of `texts`."""
    hits = (images @ texts.T).topk(min(5, len(texts))).indices == truth[:, None]
    top1, top5 = (hits[:, :k].any(1).float().mean().item() for k in (1, 5))
    return {"top1": round(100 * top1, 1), "top5": round(100 * top5, 1), "images": len(images), "names": len(texts)}


def over_names(model: Model, work: Path) -> dict[str, dict]:
    """Zero-shot over all names per style, and over the held-out names alone for concepts never seen in training."""
    concepts, renders = load(work), open_renders(work)
    held_out = np.array([concept.held_out for concept in concepts])
    texts = model.texts([concept.name for concept in concepts])
    everything = np.ones_like(held_out)
    results = {}

    def measure(title: str, styles: list[str], keep: np.ndarray, candidates: np.ndarray) -> None:
        rows = renders.rows(styles, keep)
        images = model.images(on_white(renders.images[rows], SIDE))
        truth = torch.from_numpy(np.searchsorted(candidates, renders.concept[rows]))
        results[title] = accuracy(images, texts[candidates], truth)

    for style in TRAINING_STYLES:
        measure(f"training images, {style}", [style], ~held_out, np.arange(len(concepts)))
    measure("unseen style", [UNSEEN_STYLE], everything, np.arange(len(concepts)))
    measure("unseen style, concepts seen in other styles", [UNSEEN_STYLE], ~held_out, np.arange(len(concepts)))
    measure("held-out concepts, training styles", TRAINING_STYLES, held_out, np.flatnonzero(held_out))
    measure("held-out concepts, unseen style", [UNSEEN_STYLE], held_out, np.flatnonzero(held_out))
    measure("held-out concepts among all names, training styles", TRAINING_STYLES, held_out, np.arange(len(concepts)))
    return results


def over_classes(model: Model) -> dict[str, dict]:
    """Zero-shot on the test split of the bundled set, by its class names."""
    with zipfile.ZipFile(pack.TARGET) as archive:
        index = json.loads(archive.read("index.json"))
        items = [item for item in index["items"] if item["split"] == "test" and item["class"]]
        pictures = [Image.open(io.BytesIO(archive.read(item["file"]))).convert("RGB") for item in items]
    images, texts = model.images(pictures), model.texts(index["classes"])
    truth = torch.tensor([index["classes"].index(item["class"]) for item in items])
    unseen = torch.tensor([item["style"] == UNSEEN_STYLE for item in items])
    return {
        "emoji (seen styles)": accuracy(images[~unseen], texts, truth[~unseen]),
        f"emoji@{UNSEEN_STYLE}": accuracy(images[unseen], texts, truth[unseen]),
    }


def speed(model: Model, batch: int = 64, rounds: int = 10) -> float:
    """Images per second of the image tower on the threads that torch uses."""
    pixels = torch.randn(batch, 3, *[SHAPE.image["image_size"]] * 2)
    with torch.inference_mode():
        model.model.encode_image(pixels)
        start = time.perf_counter()
        for _ in range(rounds):
            model.model.encode_image(pixels)
    return round(rounds * batch / (time.perf_counter() - start))


def main() -> None:
    """Print the results and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="the work folder of make.py")
    model = Model(TARGET)
    work = parser.parse_args().work
    results = {
        "template": TEMPLATE,
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "images per second": {"threads": torch.get_num_threads(), "rate": speed(model)},
        "zero-shot over names": over_names(model, work),
        "zero-shot over classes": over_classes(model),
    }
    text = json.dumps(results, indent=2) + "\n"
    (TARGET / "results.json").write_text(text)
    card.update(TARGET / "README.md", results, load(work))
    print(text)


if __name__ == "__main__":
    main()

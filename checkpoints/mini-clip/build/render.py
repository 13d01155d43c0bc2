"""Render every drawing once, 128 px RGBA, into one memory-mapped array."""

import io
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from concepts import IconSet, load
from PIL import Image
from sources import STYLES, UNSEEN_STYLE, folder_of

SIDE = 128


@dataclass
class Renders:
    """`images` (n, 128, 128, 4) uint8 with straight alpha; `concept` (n,) row of the concept; `style` (n,) names."""

    images: np.ndarray
    concept: np.ndarray
    style: np.ndarray

    def rows(self, styles: list[str], keep: np.ndarray) -> np.ndarray:
        """Rows drawn in one of `styles` whose concept is kept; `keep` is a mask over concepts."""
        return np.flatnonzero(np.isin(self.style, styles) & keep[self.concept])


def on_white(images: np.ndarray, side: int) -> list[Image.Image]:
    """RGBA (n, s, s, 4) composed on white, resized to `side`."""
    pictures = []
    for image in images:
        alpha = image[..., 3:].astype(np.float32) / 255
        rgb = image[..., :3] * alpha + 255 * (1 - alpha)
        pictures.append(Image.fromarray(rgb.round().astype(np.uint8)).resize((side, side), Image.Resampling.BOX))
    return pictures


def centred(image: Image.Image) -> np.ndarray:
    """Fit a picture of any shape into the middle of a transparent square."""
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIDE, SIDE))
    canvas.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return np.asarray(canvas)


def render_style(work: Path, style: str) -> tuple[np.ndarray, list[int]]:
    """All drawings of one style, and the rows of their concepts."""
    folder = folder_of(work, style)
    icons = None if style == UNSEEN_STYLE else IconSet(folder)
    images, rows = [], []
    for row, concept in enumerate(load(work)):
        icon = concept.drawings.get(style)
        if icon is None:
            continue
        if icons is None:
            picture = Image.open(folder / "assets" / icon).convert("RGBA")
        else:
            png = bytes(resvg_py.svg_to_bytes(svg_string=icons.svg(icon), width=SIDE))
            picture = Image.open(io.BytesIO(png)).convert("RGBA")
        images.append(centred(picture))
        rows.append(row)
    return np.stack(images), rows


def save(work: Path) -> None:
    """Write `renders.npy` and `renders.json`."""
    with ProcessPoolExecutor(2) as pool:
        parts = list(pool.map(render_style, [work] * len(STYLES), STYLES))
    np.save(work / "renders.npy", np.concatenate([images for images, _ in parts]))
    index = {
        "concept": [row for _, rows in parts for row in rows],
        "style": [style for style, (_, rows) in zip(STYLES, parts, strict=True) for _ in rows],
    }
    (work / "renders.json").write_text(json.dumps(index))


def open_renders(work: Path) -> Renders:
    """The array, memory-mapped, with its index."""
    index = json.loads((work / "renders.json").read_text())
    images = np.load(work / "renders.npy", mmap_mode="r")
    return Renders(images, np.array(index["concept"]), np.array(index["style"]))

"""The calibration error of methods without training steps, beside that of answers that are calibrated by design."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import gettempdir
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adapt
from adapt.backbones.base import ImageEncoder
from adapt.backbones.vision_encoder import VisionEncoder
from adapt.data import Split
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.scores import calibration_error, reliability
from adapt.methods.base import Method
from benchmarks.drawings import SEEN, backbone, drawings
from benchmarks.measure import Row
from benchmarks.ordinary_folders import write

WIDTH = 1280  # numbers of an image, as of an EfficientNet
SHOTS: tuple[int | None, ...] = (4, 16, None)
SEEDS = (1, 2, 3)
DRAWS = 200  # of simulated answers
METHODS: dict[str, Callable[[], Method]] = {
    "gda": lambda: adapt.methods.GDA(views=0),
    "lda": adapt.methods.LDA,
    "nearest_mean": adapt.methods.NearestMean,
}


class Errors(NamedTuple):
    """Calibration errors on the test images, in [0, 1]: uncalibrated, calibrated, and of simulated answers."""

    before: float
    after: float
    simulated: float


class Wide(nn.Module):
    """The bundled CLIP's image features `(b, e)`, mapped to `WIDTH` numbers by random weights and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = backbone().model
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(backbone().embed_dim, WIDTH, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        weight = self.get_buffer("weight")
        return F.relu(F.normalize(backbone().encode_image(images), dim=-1) @ weight)


@cache
def wide() -> VisionEncoder:
    """Return a backbone of wide features: what the bundled CLIP knows of an image, in `WIDTH` numbers."""
    module = Wide().eval()
    return VisionEncoder(
        model=module, towers={}, preprocess=backbone().preprocess, encode_image=module, name=f"random map to {WIDTH}"
    )


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield a row for each data set, backbone and number of shots."""
    shapes = adapt.data.load(str(write("shapes", Path(gettempdir()) / "adapt-calibration")))
    for (name, whole), (width, encoder), shots in product(
        {"emoji": drawings(SEEN), "shapes": shapes}.items(), {"mini-clip": backbone(), "wide": wide()}.items(), SHOTS
    ):
        progress(f"{name}, {width}, {shots or 'all'} shots")
        cells = {}
        for method, new in METHODS.items():
            each = [errors(new(), encoder, whole, shots, seed) for seed in SEEDS[: None if shots else 1]]
            cells[method] = [100 * mean(values) for values in zip(*each, strict=True)]
        text = ", ".join(f"{method} {a:.1f} → {b:.1f} (simulated {c:.1f})" for method, (a, b, c) in cells.items())
        yield {"case": f"{name}, {width}, {shots or 'all'} shots", **cells, "text": text}


def errors(method: Method, encoder: ImageEncoder, whole: Split, shots: int | None, seed: int) -> Errors:
    """Train `method` on the training images alone, so that it is calibrated by folds, and return its errors."""
    split = whole if shots is None else whole.few_shot(shots, seed)
    model = adapt.wrap(encoder, method, split.class_names)
    metrics = adapt.fit(model, split.train, split.test, seed=seed, progress=False).metrics
    confidence = torch.tensor(evaluate(model, split.test).confidence)
    return Errors(
        metrics["calibration"]["error_before"], metrics["adapted"]["calibration_error"], simulated(confidence)
    )


def simulated(confidence: Tensor) -> float:
    """Return the mean calibration error of answers that are right with the probability that `confidence` `(n,)` says.

    It is above 0, as few images in a bin are not right exactly as often as expected.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(DRAWS, len(confidence), generator=generator) < confidence
    return mean(calibration_error(reliability(confidence.tolist(), right.tolist())) for right in drawn)

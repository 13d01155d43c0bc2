"""The certificate of an adapter file: what answering costs on a named machine, as JSON beside the file.

It is bound to the file by the checksum in the file's header, which covers the tensors and all settings.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, Field

from adapt.common import plain
from adapt.common.devices import described
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.progress import counting_bar
from adapt.common.shown import readable_bytes
from adapt.common.validation import parsed
from adapt.evaluation.flops import PICTURE, QUESTION, flops
from adapt.formats import tensor_file
from adapt.models.base import Adapted
from adapt.training.run import environment

logger = logging.getLogger("adapt")

BATCHES = (1, 32)  # images that are answered at once
UNTIMED, FEWEST, MOST = 3, 5, 1000  # calls before the clock runs, and calls that it times
ENOUGH = 100  # calls; of fewer, the 99th percentile is the slowest one


class Latency(BaseModel, frozen=True, strict=True, allow_inf_nan=False):
    """The duration of a call with so many `images`, in milliseconds: the 50th and the 99th percentile of all `runs`."""

    images: int = Field(ge=1)
    runs: int = Field(ge=1)
    p50_ms: float = Field(gt=0)
    p99_ms: float = Field(gt=0)


class Certificate(BaseModel, frozen=True, strict=True, allow_inf_nan=False):
    """What answering with an adapter costs on the `machine`, whose hardware, threads and libraries are named.

    `adapter` is the checksum in the header of the adapter file, and `measured` says what a call is. The peak memory is
    that of the whole process since its start, with Python and the backbone, and for an accelerator also that of its own
    tensors. `operations` are the floating-point operations of a call with one image (see `adapt.evaluation.flops`).
    """

    adapter: str
    method: str
    backbone: str | None
    machine: JsonObject
    measured: str
    latency: list[Latency] = Field(min_length=1)
    images_per_second: float = Field(gt=0)
    peak_memory_bytes: int = Field(ge=0)
    peak_device_bytes: int | None = Field(ge=0)
    operations: int = Field(ge=0)
    file_bytes: int = Field(ge=0)

    def rows(self) -> dict[str, str]:
        """Return each figure as text, by its title."""
        machine, versions = self.machine, self.machine.get("versions")
        threads = machine.get("threads")
        named = f"{machine.get('processor')}, {machine.get('cores')} logical cores, {threads} thread"
        named += "s" * (threads != 1) + f", on {machine.get('device')} in {machine.get('precision')}"
        for name in ("adapt", "torch"):
            named += f", {name} {plain.within(versions, name, kind=str)}"
        rows = {"machine": named, "measured": self.measured}
        for each in self.latency:
            slowest = " (the slowest)" * (each.runs < ENOUGH)
            rows[f"latency of {each.images} image{'s' * (each.images > 1)}"] = (
                f"p50 {each.p50_ms:,.1f} ms, p99 {each.p99_ms:,.1f} ms{slowest}, of {each.runs:,} runs"
            )
        rows["images a second"] = f"{self.images_per_second:,.1f}, {self.latency[-1].images} at once"
        rows["peak memory"] = f"{readable_bytes(self.peak_memory_bytes)} of the whole process"
        if self.peak_device_bytes is not None:
            rows["peak memory"] += f", {readable_bytes(self.peak_device_bytes)} of the accelerator"
        rows["operations"] = f"{self.operations / 1e9:.4g} GFLOPs an image"
        rows["adapter file"] = readable_bytes(self.file_bytes)
        return rows


def place_of(file: Path) -> Path:
    """Return the path of the certificate of an adapter `file`: `adapter.certificate.json` of `adapter.safetensors`."""
    return file.with_name(f"{file.stem}.certificate.json")


def read(file: Path) -> Certificate | None:
    """Return the certificate beside the adapter `file`, or None if there is none, or only one of another file.

    Raises AdaptError if the certificate is damaged.
    """
    path = place_of(file)
    if not path.is_file():
        return None
    found = parsed(Certificate, path, f"{path} is damaged (delete it, and measure again)", plain.NAMES)
    if found.adapter == tensor_file.describe(file).checksum:
        return found
    logger.warning("%s is of another adapter than %s: delete it, and measure again with `adapt certify`", path, file)
    return None


def measured(model: Adapted, file: Path, seconds: float = 30.0, progress: bool = False) -> Certificate:
    """Measure `model`, which was loaded from the adapter `file`, on the device that it is on.

    A run is a call of `predict` with one picture of noise, 448 x 448 pixels, or with 32: from decoded images on, with
    preprocessing, towers and answers. Models that classify nothing are asked what is in the picture. Each number of
    images is measured for so many `seconds`, but at least 5 times and at most 1,000. Raises AdaptError for a model
    whose classes are not known before it is asked, and as `predict` does.
    """
    if not 0 < seconds < math.inf:
        raise AdaptError(f"seconds is {seconds}; expected a time in seconds, such as 30")
    if model.classifies and not model.class_names:
        raise AdaptError(
            f"this {model.method.name} has no classes of its own, on whose number the cost of an answer depends: a "
            "certificate is of an adapter of classes, or of one that answers questions"
        )
    device, question = model.backbone.device, None if model.classifies else QUESTION
    noise = np.random.default_rng(0).integers(0, 256, (*PICTURE, 3), dtype=np.uint8)
    picture, latency, rate = Image.fromarray(noise), list[Latency](), 0.0
    for count in BATCHES:
        images = [picture] * count
        with counting_bar(f"{count} image{'s' * (count > 1)}, seconds", progress) as bar:
            taken = _timed(partial(model.predict, images, question=question), seconds, bar)
        p50, p99 = (1000 * float(np.quantile(taken, share, method="inverted_cdf")) for share in (0.5, 0.99))
        latency.append(Latency(images=count, runs=len(taken), p50_ms=p50, p99_ms=p99))
        rate = count / float(np.mean(taken))
    peak, peak_of = _peak_bytes(), getattr(torch.get_device_module(device), "max_memory_allocated", None)
    precision = str(model.backbone.dtype).removeprefix("torch.")
    asked = "" if question is None else f" with the question {question!r}"
    return Certificate(
        adapter=str(tensor_file.describe(file).checksum),
        method=model.method.name,
        backbone=model.backbone.name,
        machine=environment() | {"device": described(device), "precision": precision},
        measured=f"predict{asked}, from decoded images on: preprocessing, towers and answer, of a picture of noise, "
        f"{PICTURE[0]} x {PICTURE[1]} pixels",
        latency=latency,
        images_per_second=rate,
        peak_memory_bytes=peak,
        peak_device_bytes=None if peak_of is None else peak_of(device),
        operations=flops(lambda: model.predict(picture, question=question)),
        file_bytes=file.stat().st_size,
    )


def _timed(call: Callable[[], object], seconds: float, bar: Callable[[int, int], None] | None) -> list[float]:
    """Return the duration of each call in seconds."""
    for _ in range(UNTIMED):
        call()
    taken, began, total = list[float](), time.perf_counter(), max(1, round(seconds))
    while len(taken) < FEWEST or (time.perf_counter() - began < seconds and len(taken) < MOST):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
        if bar is not None:
            bar(min(total - 1, int(time.perf_counter() - began)), total)
    if bar is not None:
        bar(total, total)
    return taken


def _peak_bytes() -> int:
    """Return the most memory that this process has had resident since its start, in bytes."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):  # getrusage also counts the process that started this one
            return 1024 * int(line.split()[1])
    if os.name == "nt":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak

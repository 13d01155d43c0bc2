"""Export of a dual encoder with its adapter as one model from images to logits of fixed classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapt import plain
from adapt.disk import new_folder, write_text
from adapt.errors import AdaptError, nearest
from adapt.formats.export import forms, page, record, tracing
from adapt.formats.export.record import RECORD, TOLERANCE

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from adapt.data import Item
    from adapt.formats.export.forms import ImagesToLogits
    from adapt.models.base import Adapted

FORMS = {"onnx": forms.ONNX, "torch": forms.TORCH, "openvino": forms.OPENVINO, "html": page.PAGE}


def export(
    model: Adapted,
    folder: str | Path,
    to: str = "onnx",
    *,
    int8: bool = False,
    data: Sequence[Item] = (),
    runtime: str | Path | None = None,
) -> Path:
    """Write `model` to the new `folder` as a graph from images `(b, 3, h, w)` to logits `(b, n)`, for any b.

    `to` is `onnx` (model.onnx), `torch` (model.pt2, by torch.export), `openvino` (model.xml) or `html`: a page that
    classifies pictures offline in a browser, and needs the npm package onnxruntime-web unpacked in `runtime`.
    `int8` quantises the weights of ONNX and of the page. export.json has the class names, the preprocessing and, if
    labelled images `data` are given, the accuracy of the exported model.

    Raises AdaptError, with nothing written, for a method whose logits a single graph cannot compute (prompts for each
    image, several views, a memory, steps at test time), a missing library, `data` of classes that the model does not
    have, and, without `int8`, if the graph's logits differ from the model's by more than 1e-4 of the largest.
    """
    _check(to, int8, runtime)
    classifier = tracing.exportable(model)
    if to == "html" and model.answers.several:
        raise AdaptError(
            "a page shows one class for each image, but this adapter predicts several: use onnx, torch or openvino"
        )
    record.check_names(classifier, data)
    described = record.described(classifier, to, FORMS[to], int8)
    with warnings.catch_warnings(), new_folder(folder) as new:
        warnings.simplefilter("ignore", FutureWarning)  # torch warns about its own code
        run = _write(tracing.traced(classifier), new, to, int8)
        difference = record.difference(classifier, run)
        if difference > TOLERANCE and not int8:
            raise AdaptError(
                f"the exported model's logits differ from the adapter's by {difference:.1e} of the largest; expected "
                f"at most {TOLERANCE:g}: nothing was written; use another format, or report this {model.method.name}"
            )
        described["difference"] = difference
        if data:
            described["measured"] = record.accuracy(classifier, run, data)
        if runtime is not None:
            page.write(new, described, page.read_runtime(runtime))
        write_text(new / RECORD, plain.dump(described, indent=2) + "\n")
    return Path(folder)


def _check(to: str, int8: bool, runtime: str | Path | None) -> None:
    """Raise AdaptError for an unknown format, options that do not apply to it, or a missing library or runtime."""
    if to not in FORMS:
        raise AdaptError(f"there is no export to {to!r}; {nearest(to, FORMS)}")
    if int8 and to not in ("onnx", "html"):
        raise AdaptError(f"int8 applies to onnx and html, not to {to}: leave it out")
    if runtime is not None and to != "html":
        raise AdaptError(f"a runtime applies to html, not to {to}: leave it out")
    forms.check_libraries(to)
    if to == "html":
        page.read_runtime(runtime)


def _write(program: ExportedProgram, folder: Path, to: str, int8: bool) -> ImagesToLogits:
    """Write the graph in the format `to` (for a page as ONNX), and return the function that runs what was written."""
    if to == "torch":
        return forms.write_torch(program, folder)
    if to == "openvino":
        return forms.write_openvino(program, folder)
    return forms.write_onnx(program, folder, int8)

"""A dual encoder's adapter as a model by itself: the image tower with the method folded in, and its classes."""

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
    from adapt.formats.export.forms import Runs
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
    """Writes `model` to the new `folder` as a graph from images `(b, 3, h, w)` to logits `(b, n)`, for any b.

    `to` is `onnx` (model.onnx), `torch` (model.pt2, by torch.export), `openvino` (model.xml) or `html`: one page that
    classifies pictures in a browser, offline, by the npm package onnxruntime-web, which lies unpacked in the folder
    `runtime`. `int8` quantises the weights of ONNX and of the page. Beside it, export.json has the names of the
    classes, the preprocessing and, of labelled images `data`, the accuracy of what was written.

    Raises AdaptError, before anything is written, for a method whose logits no one graph gives (prompts for each image,
    several views, a memory, steps at test time), a missing library, classes that the model does not have, and where
    the graph's logits differ from the model's by more than 1e-4 of the largest (without `int8`).
    """
    _check(to, int8, runtime)
    classifier = tracing.exportable(model)
    if to == "html" and model.answers.several:
        raise AdaptError(
            "a page shows one class an image, and this adapter finds several: take onnx, torch or openvino"
        )
    record.check_names(classifier, data)
    told = record.described(classifier, to, FORMS[to], int8)
    with warnings.catch_warnings(), new_folder(folder) as whole:
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own parts
        runs = _written(tracing.traced(classifier), whole, to, int8)
        told["difference"] = record.difference(classifier, runs)
        if told["difference"] > TOLERANCE and not int8:
            raise AdaptError(
                f"the exported model's logits differ from the adapter's by {told['difference']:.1e} of the largest, "
                f"more than {TOLERANCE:g}: nothing was written. Take another form, or report this {model.method.name}"
            )
        if data:
            told["measured"] = record.accuracy(classifier, runs, data)
        if runtime is not None:
            page.write(whole, told, page.read_runtime(runtime))
        write_text(whole / RECORD, plain.dump(told, indent=2) + "\n")
    return Path(folder)


def _check(to: str, int8: bool, runtime: str | Path | None) -> None:
    """AdaptError for settings that do not go together, and what is missing for them."""
    if to not in FORMS:
        raise AdaptError(f"there is no export to {to!r}; {nearest(to, FORMS)}")
    if int8 and to not in ("onnx", "html"):
        raise AdaptError(f"int8 is of onnx and html, not of {to}: leave it out")
    if runtime is not None and to != "html":
        raise AdaptError(f"a runtime is of html, not of {to}: leave it out")
    forms.check_libraries(to)
    if to == "html":
        page.read_runtime(runtime)


def _written(program: ExportedProgram, folder: Path, to: str, int8: bool) -> Runs:
    """The file of this form, and what runs it; for a page the graph that it is to hold."""
    if to == "torch":
        return forms.write_torch(program, folder)
    if to == "openvino":
        return forms.write_openvino(program, folder)
    return forms.write_onnx(program, folder, int8)

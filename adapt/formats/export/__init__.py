"""Export of a dual encoder with its adapter as one model from images to logits of fixed classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.common.disk import new_folder, write_json
from adapt.common.errors import AdaptError, nearest
from adapt.formats.export import forms, record, tracing
from adapt.formats.export.record import RECORD, TOLERANCE

if TYPE_CHECKING:
    from adapt.data import Item
    from adapt.models.base import Adapted

FORMS = {"onnx": forms.ONNX, "torch": forms.TORCH, "openvino": forms.OPENVINO, "html": forms.PAGE}


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

    For a regression method, the graph also has an output `number` `(b,)`.
    `to` is the format: `onnx` (model.onnx), `torch` (model.pt2, by torch.export), `openvino` (model.xml) or `html`.
    With `html`, a page is written that classifies images offline in a browser; `runtime` must then be a folder with the
    unpacked npm package onnxruntime-web. `int8` quantises the weights (only for `onnx` and `html`). export.json records
    the class names, the preprocessing and, if labelled images are given as `data`, the accuracy of the exported model.

    Raises AdaptError, with nothing written, if a single graph cannot compute the method's logits (prompts for each
    image, several views, a memory, steps at test time), if a library is missing, or if `data` has classes unknown to
    the model. Without `int8`, also raises AdaptError if the graph's logits differ from the model's logits by more than
    1e-4 of the largest logit.
    """
    if to not in FORMS:
        raise AdaptError(f"there is no export format {to!r}; {nearest(to, FORMS)}")
    if int8 and to not in ("onnx", "html"):
        raise AdaptError(f"int8 applies to onnx and html, not to {to}: leave out int8")
    if runtime is not None and to != "html":
        raise AdaptError(f"a runtime applies to html, not to {to}: leave out the runtime")
    forms.check_libraries(to)
    if to == "html":
        forms.read_runtime(runtime)
    classifier = tracing.exportable(model)
    if to == "html" and model.answers.several:
        raise AdaptError(
            "an HTML page shows one class per image, but this adapter predicts several: use onnx, torch or openvino"
        )
    record.check_names(classifier, data)
    described = record.described(classifier, to, FORMS[to], int8)
    with warnings.catch_warnings(), new_folder(folder) as new:
        warnings.simplefilter("ignore", FutureWarning)  # torch warns about its own code
        program = tracing.traced(classifier)
        if to in ("torch", "openvino"):
            run = (forms.write_torch if to == "torch" else forms.write_openvino)(program, new)
        else:
            run = forms.write_onnx(program, new, int8)
        difference = record.difference(classifier, run)
        if difference > TOLERANCE and not int8:
            raise AdaptError(
                f"the exported model's logits differ from the adapter's by {difference:.1e} of the largest; expected "
                f"at most {TOLERANCE:g}. Nothing was written. Use another format, or report the problem with "
                f"{model.method.name}"
            )
        described["difference"] = difference
        if data:
            described["measured"] = record.measured(classifier, run, data)
        if runtime is not None:
            forms.write_page(new, described, forms.read_runtime(runtime))
        write_json(new / RECORD, described)
    return Path(folder)

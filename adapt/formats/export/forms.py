"""What a graph is written as, and the library that runs each form: a file, and a function of pixels."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from adapt.errors import AdaptError, missing

Runs = Callable[[Tensor], Tensor]  # images (b, 3, h, w) to logits (b, n)

TORCH, ONNX, OPENVINO = "model.pt2", "model.onnx", "model.xml"
INPUT, OUTPUT = "images", "logits"
_OF_ONNX = ("onnx", "onnxscript", "onnxruntime")
_LIBRARIES = {"onnx": _OF_ONNX, "html": _OF_ONNX, "openvino": (*_OF_ONNX, "openvino")}


def check_libraries(form: str) -> None:
    """AdaptError, before any work, where a library that writes or runs this form is missing."""
    absent = [name for name in _LIBRARIES.get(form, ()) if find_spec(name) is None]
    if absent:
        raise missing(f"--to {form}", " and ".join(absent), "openvino" if form == "openvino" else "export")


def write_torch(program: ExportedProgram, folder: Path) -> Runs:
    """`model.pt2`, which `torch.export.load` reads; as it runs once it is written."""
    torch.export.save(program, folder / TORCH)
    written = torch.export.load(folder / TORCH).module()
    return lambda images: written(images)


def write_onnx(program: ExportedProgram, folder: Path, int8: bool = False) -> Runs:
    """`model.onnx`, of more than 2 GB with its weights beside it; as it runs once it is written.

    `int8` quantises it dynamically. AdaptError for an operation that ONNX does not have.
    """
    import onnx

    path = folder / ONNX
    _convert(program, path)
    if int8:
        _quantise(path)
    onnx.checker.check_model(str(path), full_check=True)
    return _by_onnxruntime(path)


def write_openvino(program: ExportedProgram, folder: Path) -> Runs:
    """`model.xml` and `model.bin`; as they run once they are written."""
    import openvino

    _convert(program, folder / ONNX)
    openvino.save_model(openvino.convert_model(folder / ONNX), folder / OPENVINO, compress_to_fp16=False)
    (folder / ONNX).unlink()
    precise = {"INFERENCE_PRECISION_HINT": "f32"}  # by itself it takes half precision where a processor has it
    written = openvino.Core().compile_model(folder / OPENVINO, "CPU", precise)
    return lambda images: torch.from_numpy(written(images.numpy())[OUTPUT])


def _convert(program: ExportedProgram, path: Path) -> None:
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT], "dynamic_shapes": ({0: "batch"},)}
    try:
        plain = program.run_decompositions({torch.ops.aten.addmm.default: _addmm})
        made = torch.onnx.export(plain, dynamo=True, verbose=False, **names)
    except RuntimeError as error:  # which all errors of torch's exporter are
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise AdaptError(f"the model cannot be written as ONNX ({reason}): take --to torch") from error
    assert made is not None  # as it was given no file
    made.save(str(path))


def _addmm(added: Tensor, one: Tensor, other: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """As a matrix product, which is quantised: ONNX's Gemm, which does all at once, is not."""
    return alpha * (one @ other) + beta * added


def _quantise(path: Path) -> None:
    """Weights of matrix products in 8 bits, activations as they come; convolutions, which embed patches, stay."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = path.with_stem("folded")
    quant_pre_process(path, folded, skip_symbolic_shape=True)  # weights that are turned and cut become constants
    quantize_dynamic(folded, path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
    folded.unlink()


def _by_onnxruntime(path: Path) -> Runs:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

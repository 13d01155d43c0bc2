"""What a graph is written as, and the library that runs each form: a file, and a function of pixels."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from adapt.errors import AdaptError, missing

Runs = Callable[[Tensor], Tensor]  # images (b, 3, h, w) to logits (b, n)

TORCH, ONNX, OPENVINO = "model.pt2", "model.onnx", "model.xml"
DATA = f"{ONNX}.data"  # where the weights of a large graph lie: torch's rule, from 1.5 GiB on, and onnxruntime's name
INPUT, OUTPUT = "images", "logits"
_OF_ONNX = ("onnx", "onnxscript", "onnxruntime")
_LONGEST_MESSAGE = 2**31 - 1  # bytes of protobuf, in which ONNX is written
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
    """`model.onnx`, of a large one with its weights beside it in `model.onnx.data`; as it runs once it is written.

    `int8` quantises it dynamically. AdaptError for an operation that ONNX does not have.
    """
    import onnx

    path = folder / ONNX
    if int8:
        with TemporaryDirectory(dir=folder) as whole:
            _quantise(_converted(program, Path(whole)), path)
    else:
        _converted(program, folder)
    onnx.checker.check_model(str(path), full_check=True)
    return _by_onnxruntime(path)


def write_openvino(program: ExportedProgram, folder: Path) -> Runs:
    """`model.xml` and `model.bin`; as they run once they are written."""
    import openvino

    with TemporaryDirectory(dir=folder) as whole:
        graph = openvino.convert_model(_converted(program, Path(whole)))
        openvino.save_model(graph, folder / OPENVINO, compress_to_fp16=False)
    precise = {"INFERENCE_PRECISION_HINT": "f32"}  # by itself it takes half precision where a processor has it
    written = openvino.Core().compile_model(folder / OPENVINO, "CPU", precise)
    return lambda images: torch.from_numpy(written(images.numpy())[OUTPUT])


def _converted(program: ExportedProgram, folder: Path) -> Path:
    """The graph in ONNX, in `folder`, with its data where it is large. AdaptError for what ONNX does not have."""
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT], "dynamic_shapes": ({0: "batch"},)}
    try:
        plain = program.run_decompositions({torch.ops.aten.addmm.default: _addmm})
        made = torch.onnx.export(plain, dynamo=True, verbose=False, **names)
    except RuntimeError as error:  # which all errors of torch's exporter are
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise AdaptError(f"the model cannot be written as ONNX ({reason}): take --to torch") from error
    assert made is not None  # as it was given no file
    made.save(str(folder / ONNX))
    return folder / ONNX


def _addmm(added: Tensor, one: Tensor, other: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """As a matrix product, which is quantised: ONNX's Gemm, which does all at once, is not."""
    return alpha * (one @ other) + beta * added


def _quantise(whole: Path, path: Path) -> None:
    """Weights of matrix products in 8 bits, activations as they come; convolutions, which embed patches, stay."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded, data = whole.with_name("folded.onnx"), "folded.onnx.data"
    beside: dict[str, Any] = {"all_tensors_to_one_file": True, "external_data_location": data}
    # weights that are turned and cut become constants
    quant_pre_process(whole, folded, skip_symbolic_shape=True, save_as_external_data=True, **beside)
    large = folded.with_name(data).stat().st_size > _LONGEST_MESSAGE
    quantize_dynamic(
        folded, path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"], use_external_data_format=large
    )


def _by_onnxruntime(path: Path) -> Runs:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

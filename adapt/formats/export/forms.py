"""The file formats of exported graphs: functions that write a graph and return a function that runs the file."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.export import ExportedProgram

from adapt.common.errors import AdaptError, missing

Graph = Callable[[Tensor], dict[str, Tensor]]  # images (b, 3, h, w) to the outputs by name

# options of OpenVINO's `compile_model`, whose default is half precision if the processor has it; no file can hold them
PRECISE = {"INFERENCE_PRECISION_HINT": "f32"}
TORCH, ONNX, OPENVINO = "model.pt2", "model.onnx", "model.xml"
DATA = f"{ONNX}.data"  # the weights of a graph from 1.5 GiB on, by torch's rule and onnxruntime's name
INPUT, LOGITS, NUMBER = "images", "logits", "number"  # logits (b, n), and of a regression method numbers (b,)
_OF_ONNX = ("onnx", "onnxscript", "onnxruntime")
_LONGEST_MESSAGE = 2**31 - 1  # bytes of a protobuf message, the format of ONNX
_LIBRARIES = {"onnx": _OF_ONNX, "html": _OF_ONNX, "openvino": (*_OF_ONNX, "openvino")}


def check_libraries(form: str) -> None:
    """Raise AdaptError if a library that writes or runs the format `form` is not installed."""
    absent = [name for name in _LIBRARIES.get(form, ()) if find_spec(name) is None]
    if absent:
        raise missing(f"--to {form}", " and ".join(absent), "openvino" if form == "openvino" else "export")


def write_torch(program: ExportedProgram, folder: Path) -> Graph:
    """Write the graph to `model.pt2` for `torch.export.load`, and return a function that runs the written file."""
    content = BytesIO()  # torch ends the process where it cannot write a file
    torch.export.save(program, content)
    (folder / TORCH).write_bytes(content.getbuffer())
    written = torch.export.load(folder / TORCH).module()

    def run(images: Tensor) -> dict[str, Tensor]:
        outputs = written(images)
        return dict(zip(_outputs(program), (outputs,) if isinstance(outputs, Tensor) else outputs, strict=True))

    return run


def write_onnx(program: ExportedProgram, folder: Path, int8: bool = False) -> Graph:
    """Write the graph to `model.onnx`, and return a function that runs the written file.

    The weights of a large graph are written to `model.onnx.data`. `int8` quantises the graph dynamically. Raises
    AdaptError if the graph has an operation that ONNX does not have.
    """
    import onnx
    import onnxruntime

    path = folder / ONNX
    if int8:
        with TemporaryDirectory(dir=folder) as unquantised:
            _quantise(_converted(program, Path(unquantised)), path)
    else:
        _converted(program, folder)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = _outputs(program)

    def run(images: Tensor) -> dict[str, Tensor]:
        outputs = map(torch.from_numpy, session.run(names, {INPUT: images.numpy()}))
        return dict(zip(names, outputs, strict=True))

    return run


def write_openvino(program: ExportedProgram, folder: Path) -> Graph:
    """Write the graph to OpenVINO's `model.xml` and `model.bin`, and return a function that runs these files."""
    import openvino

    with TemporaryDirectory(dir=folder) as temporary:
        graph = openvino.convert_model(_converted(program, Path(temporary)))
        openvino.save_model(graph, folder / OPENVINO, compress_to_fp16=False)
    written = openvino.Core().compile_model(folder / OPENVINO, "CPU", PRECISE)
    names = _outputs(program)

    def run(images: Tensor) -> dict[str, Tensor]:
        outputs = written(images.numpy())
        return {name: torch.from_numpy(outputs[name]) for name in names}

    return run


def _outputs(program: ExportedProgram) -> list[str]:
    """Return the names of a graph's outputs: the logits, and of a regression method the number."""
    return [LOGITS, NUMBER][: len(program.graph_signature.user_outputs)]


def _converted(program: ExportedProgram, folder: Path) -> Path:
    """Write the graph as ONNX to `folder`, and return the path. Raises AdaptError for an operation unknown to ONNX."""
    try:
        plain = program.run_decompositions({torch.ops.aten.addmm.default: _addmm})
        graph = torch.onnx.export(
            plain,
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=_outputs(program),
            dynamic_shapes=({0: "batch"},),
        )
    except RuntimeError as error:  # the base class of the exporter's errors
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise AdaptError(f"the model cannot be written as ONNX ({reason}): use --to torch") from error
    assert graph is not None  # as no file was given
    graph.save(str(folder / ONNX))
    return folder / ONNX


def _addmm(added: Tensor, one: Tensor, other: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return addmm as a matrix product and a sum, because ONNX Runtime quantises matrix products, but not Gemm."""
    return alpha * (one @ other) + beta * added


def _quantise(graph: Path, path: Path) -> None:
    """Write the ONNX `graph` to `path` with 8-bit matrix products; convolutions stay in floating point.

    Weights are quantised in the file, and activations at run time.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded, data = graph.with_name("folded.onnx"), "folded.onnx.data"
    quant_pre_process(  # folds transposed and sliced weights into constants
        graph,
        folded,
        skip_symbolic_shape=True,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        external_data_location=data,
    )
    large = folded.with_name(data).stat().st_size > _LONGEST_MESSAGE
    quantize_dynamic(
        folded, path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"], use_external_data_format=large
    )

"""The file formats of exported graphs, a page among them: functions that write a graph, and return one that runs it.

The page classifies pictures in a browser: it holds the model, its classes, and as runtime ONNX Runtime's build for
browsers, the npm package onnxruntime-web. The runtime is larger than adapt and not part of it. Neither adapt nor the
page downloads it: unpack the package in a folder before exporting.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram

from adapt.common.disk import write_text
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.shown import readable_bytes

Graph = Callable[[Tensor], Mapping[str, Tensor]]  # images (b, 3, h, w) to the outputs by name

# options of OpenVINO's `compile_model`, whose default is half precision if the processor has it; no file can hold them
PRECISE = {"INFERENCE_PRECISION_HINT": "f32"}
TORCH, ONNX, OPENVINO = "model.pt2", "model.onnx", "model.xml"
DATA = f"{ONNX}.data"  # the weights of a graph from 1.5 GiB on, by torch's rule and onnxruntime's name
INPUT, LOGITS, NUMBER, MAP = "images", "logits", "number", "map"
_OF_ONNX = ("onnx", "onnxscript", "onnxruntime")
_LONGEST_MESSAGE = 2**31 - 1  # bytes of a protobuf message, the format of ONNX
LIBRARIES = {"onnx": _OF_ONNX, "html": _OF_ONNX, "openvino": (*_OF_ONNX, "openvino")}


def write_torch(program: ExportedProgram, folder: Path, names: Sequence[str]) -> Graph:
    """Write the graph to `model.pt2` for `torch.export.load`, and return a function that runs the written file.

    `names` are those of its outputs.
    """
    content = BytesIO()  # torch ends the process where it cannot write a file
    torch.export.save(program, content)
    (folder / TORCH).write_bytes(content.getbuffer())
    written = torch.export.load(folder / TORCH).module()

    def run(images: Tensor) -> dict[str, Tensor]:
        outputs: Tensor | tuple[Tensor, ...] = written(images)
        return dict(zip(names, [outputs] if isinstance(outputs, Tensor) else outputs, strict=True))

    return run


def write_onnx(program: ExportedProgram, folder: Path, names: Sequence[str], int8: bool = False) -> Graph:
    """Write the graph with outputs of these `names` to `model.onnx`, and return a function that runs the written file.

    The weights of a large graph are written to `model.onnx.data`. `int8` quantises the graph dynamically. Raises
    AdaptError if the graph has an operation that ONNX does not have.
    """
    import onnx
    import onnxruntime

    path = folder / ONNX
    if int8:
        with TemporaryDirectory(dir=folder) as unquantised:
            _quantise(_converted(program, Path(unquantised), names), path)
    else:
        _converted(program, folder, names)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    run = partial(session.run, names)
    return lambda images: dict(zip(names, map(torch.from_numpy, run({INPUT: images.numpy()})), strict=True))


def write_openvino(program: ExportedProgram, folder: Path, names: Sequence[str]) -> Graph:
    """Write the graph to OpenVINO's `model.xml` and `model.bin`, and return a function that runs these files."""
    import openvino

    with TemporaryDirectory(dir=folder) as temporary:
        graph = openvino.convert_model(_converted(program, Path(temporary), names))
        openvino.save_model(graph, folder / OPENVINO, compress_to_fp16=False)
    written = openvino.Core().compile_model(folder / OPENVINO, "CPU", PRECISE)
    return lambda images: dict(zip(names, map(torch.from_numpy, written(images.numpy()).to_tuple()), strict=True))


def _converted(program: ExportedProgram, folder: Path, names: Sequence[str]) -> Path:
    """Write the graph as ONNX to `folder`, and return the path. Raises AdaptError for an operation unknown to ONNX."""
    try:
        # addmm as a matrix product and a sum, because ONNX Runtime quantises matrix products, but not Gemm
        apart = {
            torch.ops.aten.addmm.default: lambda added, one, other, *, beta=1, alpha=1: (
                alpha * (one @ other) + beta * added
            )
        }
        plain = program.run_decompositions(apart)
        graph = torch.onnx.export(
            plain,
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[*names],
            dynamic_shapes=({0: "batch"},),
        )
    except RuntimeError as error:  # the base class of the exporter's errors
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise AdaptError(f"the model cannot be written as ONNX ({reason}): use --to torch") from error
    assert graph is not None  # as no file was given
    graph.save(str(folder / ONNX))
    return folder / ONNX


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


PAGE = "index.html"
_LIBRARY, _WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
_LONGEST = 2**29 - 2**16  # characters of base64, the longest string in Chrome
HINT = (
    "`npm pack onnxruntime-web` downloads the runtime, `tar xzf` unpacks it to the folder package: give that as "
    "--runtime, or a node_modules/onnxruntime-web"
)


class Runtime(NamedTuple):
    """ONNX Runtime for browsers: the JavaScript module, the WebAssembly file, and the version."""

    library: bytes
    wasm: bytes
    version: str


def read_runtime(folder: str | Path | None) -> Runtime:
    """Return the runtime in `folder`. Raises AdaptError if `folder` is not an unpacked npm package onnxruntime-web."""
    if folder is None:
        raise AdaptError(f"an HTML page needs ONNX Runtime for browsers, but --runtime is missing: {HINT}")
    folder = Path(folder)
    try:
        described = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        if described["name"] != "onnxruntime-web":
            raise ValueError(f"it is the npm package {described['name']}")
        library, wasm = ((folder / "dist" / name).read_bytes() for name in (_LIBRARY, _WASM))
        return Runtime(library, wasm, str(described["version"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdaptError(f"{folder} is not an onnxruntime-web package ({error}): {HINT}") from error


def write_page(folder: Path, record: JsonObject, runtime: Runtime) -> None:
    """Replace the ONNX model in `folder` by an `index.html` that contains the model; record the runtime in `record`.

    Raises AdaptError if the model is too large for browsers.
    """
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    if (folder / DATA).exists():
        raise _too_large((folder / DATA).stat().st_size)
    model = _packed((folder / ONNX).read_bytes())
    if len(model) > _LONGEST:
        raise _too_large(len(model))
    record["versions"]["onnxruntime-web"] = runtime.version
    environment = Environment(loader=PackageLoader("adapt.formats", "export"), autoescape=True)
    parts = {"library": _packed(runtime.library), "wasm": _packed(runtime.wasm), "model": model}
    picture = files("adapt.formats.export").joinpath("picture.js").read_text(encoding="utf-8")
    page = environment.get_template("page.html").render(record=record, picture=Markup(picture), **parts)
    write_text(folder / PAGE, page)
    (folder / ONNX).unlink()


def _too_large(size: int) -> AdaptError:
    return AdaptError(
        f"the model takes {readable_bytes(size)} in a page; browsers read at most {readable_bytes(_LONGEST)}: add "
        "--int8, or use a smaller backbone"
    )


def _packed(content: bytes) -> str:
    """Return `content` as base64 text after gzip compression; equal contents give equal texts."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()

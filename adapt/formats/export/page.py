"""A self-contained HTML page that classifies pictures in a browser: the model, its runtime and its classes.

The runtime is ONNX Runtime's build for browsers, the npm package onnxruntime-web. The runtime is larger than
adapt and not part of it. Neither adapt nor the page downloads it: unpack the package in a folder before exporting.
"""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from adapt.common.disk import write_text
from adapt.common.errors import AdaptError
from adapt.common.memory import readable_bytes
from adapt.common.plain import JsonObject
from adapt.formats.export.forms import DATA, ONNX

PAGE = "index.html"
_LIBRARY, _WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
_LONGEST = 2**29 - 2**16  # characters of base64, the longest string in Chrome
HINT = (
    "`npm pack onnxruntime-web` downloads the runtime, `tar xzf` unpacks it to the folder package: give that as "
    "--runtime, or a node_modules/onnxruntime-web"
)


@dataclass(frozen=True)
class Runtime:
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


def write(folder: Path, record: JsonObject, runtime: Runtime) -> None:
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

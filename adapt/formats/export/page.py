"""One HTML page that classifies pictures in a browser: the model, what runs it and its classes, all inside.

What runs it is ONNX Runtime's build for browsers, the npm package onnxruntime-web. It is no part of adapt, being larger
than all the rest, nor is it ever fetched, by us or by the page: who makes a page has the package unpacked in a folder.
"""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from adapt.disk import write_text
from adapt.errors import AdaptError
from adapt.formats.export.forms import DATA, ONNX

PAGE = "index.html"
_LIBRARY, _WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
_LONGEST = 2**29 - 2**16  # letters of base64: Chrome's texts are no longer
HINT = (
    "`npm pack onnxruntime-web` fetches what runs a model in a browser, `tar xzf` unpacks it to the folder package: "
    "give that as --runtime, or a node_modules/onnxruntime-web"
)


@dataclass(frozen=True)
class Runtime:
    """What runs ONNX in a browser: a JavaScript module, its WebAssembly, and their version."""

    library: bytes
    wasm: bytes
    version: str


def read_runtime(folder: str | Path | None) -> Runtime:
    """The runtime in an unpacked npm package onnxruntime-web. AdaptError, with what to do, where it is none."""
    if folder is None:
        raise AdaptError(f"a page needs what runs it. {HINT}")
    folder = Path(folder)
    try:
        described = json.loads((folder / "package.json").read_text(encoding="utf-8"))
        if described["name"] != "onnxruntime-web":
            raise ValueError(f"it is the package {described['name']}")
        library, wasm = ((folder / "dist" / name).read_bytes() for name in (_LIBRARY, _WASM))
        return Runtime(library, wasm, str(described["version"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdaptError(f"{folder} is no onnxruntime-web ({error}). {HINT}") from error


def write(folder: Path, record: dict[str, Any], runtime: Runtime) -> None:
    """`index.html` in place of the model in ONNX, which goes into it. AdaptError where that is too large for browsers.

    The record comes to say which runtime is inside.
    """
    from jinja2 import Environment, PackageLoader

    if (folder / DATA).exists():
        raise _too_large((folder / DATA).stat().st_size)
    model = _packed((folder / ONNX).read_bytes())
    if len(model) > _LONGEST:
        raise _too_large(len(model))
    record["versions"]["onnxruntime-web"] = runtime.version
    environment = Environment(loader=PackageLoader("adapt.formats", "export"), autoescape=True)
    parts = {"library": _packed(runtime.library), "wasm": _packed(runtime.wasm), "model": model}
    picture = files("adapt.formats.export").joinpath("picture.js").read_text(encoding="utf-8")
    page = environment.get_template("page.html").render(record=record, picture=_as_it_is(picture), **parts)
    write_text(folder / PAGE, page)
    (folder / ONNX).unlink()


def _too_large(size: int) -> AdaptError:
    return AdaptError(
        f"the model takes {size / 2**20:.0f} MB in a page, and browsers read at most {_LONGEST / 2**20:.0f} MB: "
        "add --int8, or take a smaller backbone"
    )


def _packed(content: bytes) -> str:
    """Gzip in base64, the same for the same content."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def _as_it_is(script: str) -> str:
    from markupsafe import Markup

    return Markup(script)  # ours, and no text of a user's

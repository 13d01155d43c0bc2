"""`adapt export` and `adapt push`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import click

from adapt.cli import options as common
from adapt.cli.options import Argument, Option, command
from adapt.common import plain
from adapt.common.disk import check_free
from adapt.common.errors import AdaptError
from adapt.common.shown import readable_bytes

if TYPE_CHECKING:
    from torch import nn


@command()
def export(
    adapter: Path,
    *,
    to: Annotated[
        Literal["onnx", "torch", "openvino", "html"] | None,
        "Export a standalone model, from images to logits, in this form.",
    ] = None,
    compact: Annotated[bool, "Export with the backbone, without the blocks that the adapter skips."] = False,
    out: Annotated[Path, "New folder to write."],
    int8: Annotated[bool, "Quantise the weights of matrix products to 8 bits."] = False,
    runtime: Annotated[
        Path | None, "Unpacked npm package onnxruntime-web, which --to html builds into the page."
    ] = None,
    classes: common.OtherClasses = None,
    data: Annotated[str | None, f"Data to measure the accuracy of --to on: {common.SOURCES}."] = None,
    root: common.Root = None,
    names: common.ReadableNames = None,
    part: Annotated[Literal["train", "val", "test"], "Part of the data to measure."] = "test",
    backbone: common.OfAdapter = None,
) -> None:
    """Export ADAPTER with everything needed to run it to a new folder, for use without adapt or even without Python.

    With --to, the image tower, including the changes by the method, is exported as a model from any number of images to
    logits. The file export.json contains the class names, the preprocessing and, with --data, the accuracy. A method
    cannot be exported if its prediction for an image depends on other images. The form html is a web page that
    classifies images offline.

    With --compact, adapter and backbone are exported to a folder that predict, eval and inspect accept as an adapter.
    For a DAS adapter, the folder is smaller than the full backbone, on disk and in memory.

    \b
    Examples:
      adapt export runs/first/adapter.safetensors --to onnx --out first-onnx
      adapt export runs/first/adapter.safetensors --to onnx --int8 --data emoji --out first-int8
      adapt export runs/first/adapter.safetensors --to html --runtime package --out first-page
      adapt export runs/das-emoji/adapter.safetensors --compact --out light
    """
    if compact == (to is not None):
        raise AdaptError("give either --compact or --to onnx|torch|openvino|html")
    if compact and (int8 or runtime or classes or data):
        raise AdaptError("--int8, --runtime, --classes and --data need --to, not --compact: leave out these options")
    check_free(out)
    with common.quiet_libraries():
        from adapt.data.readers import load as load_data

        items = getattr(load_data(data, root, names), part) if data else ()
        model = common.load_adapter(adapter, backbone, class_names=common.class_names(classes))
        if to is None:
            from adapt.backbones.base import block_paths
            from adapt.formats.compact import export as write_compact
            from adapt.methods.base.traits import skipped_blocks

            write_compact(model, out)
            whole, skipped = model.backbone.model, skipped_blocks(model.method)
            paths = block_paths(model.backbone, skipped).values()
            count, cut = _parameters(whole), sum(_parameters(whole.get_submodule(path)) for path in paths)
            click.echo(f"written to {out}: {_size(out)}, {count - cut:,} of the backbone's {count:,} parameters")
            return
        from adapt.formats.export import RECORD
        from adapt.formats.export import export as write

        write(model, out, to, int8=int8, data=items, runtime=runtime)
    record = plain.parse((out / RECORD).read_bytes())
    click.echo(f"written to {out}: {_size(out)}, logits within {record['difference']:.1e} of the adapter's")
    if measured := record.get("measured"):
        click.echo(
            f"{100 * measured['accuracy']:.1f} % of {measured['images']} images, the adapter itself "
            f"{100 * measured['adapter_accuracy']:.1f} %; the same label for {100 * measured['same_labels']:.1f} %"
        )
        if "mean_absolute_error" in measured:
            click.echo(
                f"mean absolute error of the number {measured['mean_absolute_error']:.3f}, the adapter itself "
                f"{measured['adapter_mean_absolute_error']:.3f}"
            )


def _size(folder: Path) -> str:
    return readable_bytes(sum(path.stat().st_size for path in folder.iterdir()))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@command()
def push(
    adapter: Path,
    repository: Annotated[str, Argument("USER/NAME")],
    *,
    private: Annotated[
        bool | None, Option("Visibility of a new repository.  [default: the account's setting]", "--private/--public")
    ] = None,
    license: Annotated[str | None, "Licence for the model card, such as apache-2.0.  [default: none]"] = None,
    message: Annotated[str | None, "Commit message.  [default: METHOD adapter]"] = None,
    backbone: common.OfAdapter = None,
) -> None:
    """Publish ADAPTER on the Hugging Face hub as USER/NAME, with a model card that describes its training run.

    The adapter file is uploaded unchanged. Standard LoRA on a transformers model is also uploaded in peft's layout. If
    the repository exists, the upload adds a commit, and earlier adapters can be loaded as hf://USER/NAME@COMMIT. The
    access token comes from `hf auth login` or from the environment variable HF_TOKEN.

    \b
    Examples:
      adapt push runs/first user/emoji-coop --license apache-2.0
      adapt predict hf://user/emoji-coop photo.png
    """
    with common.quiet_libraries():
        from adapt.formats import publishing
        from adapt.loading import located

        file = located(adapter)
        if not file.is_file():
            raise AdaptError(f"there is no adapter at {adapter}: give a .safetensors file, or the folder of a run")
        model = common.load_adapter(file, backbone)
        address = publishing.push(model, repository, file=file, private=private, license=license, message=message)
    click.echo(f"published at {address}")

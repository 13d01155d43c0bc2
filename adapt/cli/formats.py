"""`adapt inspect`, `adapt merge` and `adapt convert`"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapt.cli import options as common
from adapt.disk import check_free
from adapt.errors import AdaptError
from adapt.plain import within
from adapt.shown import shown

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.formats.header import Header
    from adapt.models.classifier import AdaptedModel
    from adapt.models.wrap import Model


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--backbone", help="The backbone whose words are searched, where the adapter does not name it.")
@click.option(
    "--words", type=click.IntRange(min=0), default=3, show_default=True, help="Nearest words of each learned token."
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole header as JSON.")
def inspect(adapter: Path, backbone: str | None, words: int, as_json: bool) -> None:
    """Show what ADAPTER holds: method, backbone, classes, sizes, origin, and the words nearest to learned tokens."""
    from adapt import plain
    from adapt.cli.quiet import quiet_libraries
    from adapt.formats.adapter import read_tensors
    from adapt.formats.header import read_header
    from adapt.loading import located, method_of

    file = located(adapter)
    file = file / "adapter.safetensors" if file.is_dir() else file
    header = read_header(file)
    tensors = read_tensors(file)
    if as_json:
        click.echo(plain.dump(header.model_dump(mode="json"), indent=2))
        return
    click.echo(f"{shown(file)}  {file.stat().st_size / 1024:.1f} KB, format {header.format[0]}.{header.format[1]}")
    for title, text in _lines(header):
        click.echo(f"{title:10} {shown(text)}")
    click.echo(f"parameters {sum(math.prod(tensor.shape) for tensor in tensors.values()):,} in {len(tensors)} tensors")
    for name, tensor in list(tensors.items())[:12]:
        click.echo(f"  {shown(name):40} {tuple(tensor.shape)}")
    if len(tensors) > 12:
        click.echo(f"  and {len(tensors) - 12} more")
    if words:
        with quiet_libraries():
            from adapt import methods
            from adapt.methods.base.traits import LearnedTokens

            if issubclass(methods.find(header.method), LearnedTokens) and "text" in method_of(header, file).touches:
                _show_words(_load(adapter, backbone), words)


def _lines(header: Header) -> Iterator[tuple[str, str]]:
    yield "method", f"{header.method} {_settings(header.config)}"
    quantized = f", {header.quantization}" if header.quantization else ""
    turned = ", photographs turned upright" if header.preprocess["turned"] else ""
    yield "backbone", f"{header.backbone or 'without a name'} ({header.preprocess['size']} px{turned}{quantized})"
    if header.logit_scale is not None:
        yield "logits", f"cosine x {header.logit_scale:.1f}"
    if header.class_names:
        first = ", ".join(header.class_names[:8]) + ", ..." * (len(header.class_names) > 8)
        yield "classes", f"{len(header.class_names)}: {first}"
    data = within(header.recipe, "data", kind=dict)
    if data:
        shots = "all images" if data.get("shots") is None else f"{data['shots']} shots"
        yield "trained on", f"{data.get('source')}, {shots}, {data.get('classes', 'all')} classes"
    found = {key: within(header.metrics, key, "accuracy", kind=float) for key in ("zero_shot", "adapted")}
    scores = {key: value for key, value in found.items() if value is not None}
    if scores:
        listed = ", ".join(f"{key} {100 * value:.1f} %" for key, value in scores.items())
        yield "accuracy", f"{listed} (seed {header.seed})"
    yield "versions", ", ".join(f"{key} {value}" for key, value in header.versions.items())


def _settings(config: dict[str, Any]) -> str:
    return "(" + ", ".join(f"{key}={value!r}" for key, value in config.items() if value not in (None, "", {})) + ")"


def _load(adapter: Path, backbone: str | None) -> Any:
    from adapt.loading import load

    return load(adapter, common.given_backbone(backbone, "cpu"), device="cpu")


def _show_words(model: AdaptedModel, count: int) -> None:
    """Nearest by Euclidean distance to the token embeddings, as CoOp's authors read them."""
    embedding = model.backbone.tower("text").text.embedding.weight.detach()  # type: ignore[union-attr]
    from adapt.methods.base.traits import LearnedTokens, trait

    learns = trait(model.method, LearnedTokens)
    assert learns is not None
    for name, tokens in learns.learned_tokens.items():
        click.echo(f"nearest words of {shown(name)} (distance)")
        for index, row in enumerate(_flat(tokens)):
            distances, ids = (embedding - row).norm(dim=-1).topk(count, largest=False)
            found = (f"{model.backbone.tokenizer.token(int(i))} ({d:.2f})" for d, i in zip(distances.tolist(), ids))
            click.echo(f"  {index:3}  {shown(', '.join(found))}")


def _flat(tokens: Tensor) -> Tensor:
    return tokens.detach().flatten(0, -2)


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@common.of_adapter
def merge(adapter: Path, folder: Path, backbone: str | None) -> None:
    """Fold a LoRA ADAPTER into a copy of its backbone and write that to the new FOLDER, in the backbone's own format.

    The result needs neither adapt nor peft; with adapt it is used as `--backbone FOLDER`.
    """
    from adapt.cli.quiet import quiet_libraries

    check_free(folder)
    with quiet_libraries():
        from adapt.formats.merge import merge as write

        click.echo(f"merged into {write(_load(adapter, backbone), folder)}")


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--to", "target_form", type=click.Choice(["adapter", "peft"]), default="adapter", show_default=True)
@click.option("--backbone", help="The backbone that SOURCE was trained on; published files do not name it.")
@click.option(
    "--classes",
    help="The class names in the order of training: separated by commas, or a text file with one a line.",
)
@click.option("--method", help="The method of a published checkpoint. [default: coop]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the method that the file does not tell, such as class_position=middle. May be repeated.",
)
def convert(
    source: Path,
    target: Path,
    target_form: str,
    backbone: str | None,
    classes: str | None,
    method: str | None,
    settings: tuple[str, ...],
) -> None:
    """Convert SOURCE to TARGET.

    \b
    SOURCE is one of
      a published checkpoint of CoOp, or with --method of CoCoOp, MaPLe or IVLP and VPT
      (model.pth.tar-50): needs --backbone and --classes
      with --method vlora or projector, a mm_projector.bin or a .safetensors of LLaVA's: needs --backbone VISION+LLM
      a folder in peft's LoRA layout: needs --classes, and --backbone where it names none; one of adapt's, neither
      an adapter of adapt: with --to peft, TARGET becomes a folder in peft's layout

    Pickles are read here only, weights only, and refused where they name anything but tensors and Dassl's records.
    """
    from adapt.cli.quiet import quiet_libraries

    check_free(target, "target")
    with quiet_libraries():
        from adapt.loading import located

        source = located(source)
        if source.suffix == ".safetensors" and method is None:
            if target_form != "peft":
                raise AdaptError(
                    f"{source} is an adapter already: give --to peft to export it, or --method to import it"
                )
            from adapt.formats.peft_layout import export

            click.echo(f"written to {export(_load(source, backbone), target)}")
            return
        if target_form == "peft":
            raise AdaptError(f"--to peft exports an adapter of adapt; {source} is none")
        click.echo(f"written to {_imported(source, backbone, classes, method, settings).save(target)}")


def _imported(
    source: Path, backbone: str | None, classes: str | None, method: str | None, settings: tuple[str, ...]
) -> Model:
    from adapt import methods
    from adapt.backbones.load import load_backbone
    from adapt.formats import checkpoints as convert
    from adapt.formats import peft_import
    from adapt.recipe.file import set_key

    if source.is_dir():
        if method or settings:
            raise AdaptError(f"{source} is in peft's layout, which tells its settings: leave out --method and --set")
        given_names = common.class_names(classes)
        return peft_import.load(source, common.given_backbone(backbone, "cpu"), given_names, device="cpu")
    speaks = method is not None and methods.find(method).serves == ("vision LLM",)
    if backbone is None or (classes is None and not speaks):
        raise AdaptError(f"{source} names neither backbone nor classes: give --backbone and --classes FILE")
    names = common.class_names(classes) or []
    given: dict[str, Any] = {}
    for setting in settings:
        set_key(given, setting)
    return convert.import_published(source, method or "coop", load_backbone(backbone, "cpu"), names, given)


COMMANDS = {"inspect": inspect, "merge": merge, "convert": convert}

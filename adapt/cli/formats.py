"""The commands of file formats: `adapt inspect`, `merge`, `convert`, `soup`, `average`, `export` and `push`"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click

from adapt.cli import options as common
from adapt.cli.options import Argument, Option, command
from adapt.common import plain
from adapt.common.devices import AUTO
from adapt.common.disk import check_free
from adapt.common.errors import AdaptError
from adapt.common.plain import within
from adapt.common.shown import readable_bytes, shown
from adapt.data.readers import load as load_data

if TYPE_CHECKING:
    from torch import nn

    from adapt.formats.adapter import Header
    from adapt.models.wrap import Model


@command()
def inspect(
    adapter: Path,
    *,
    backbone: Annotated[str | None, "Backbone whose words are searched, if the adapter does not name it."] = None,
    words: Annotated[int, Option("Nearest words to show per learned token.", min=0)] = 3,
    as_json: Annotated[bool, Option("Print the whole header as JSON.", "--json")] = False,
) -> None:
    """Show the contents of ADAPTER: method, backbone, classes, sizes, origin, and words nearest to learned tokens."""
    from adapt.formats.adapter import read_header, read_tensors
    from adapt.formats.certificate import read as read_certificate
    from adapt.loading import located, method_of

    file = located(adapter)
    file = file / "adapter.safetensors" if file.is_dir() else file
    header = read_header(file)
    tensors = read_tensors(file)
    if as_json:
        click.echo(plain.dump(header.model_dump(mode="json"), indent=2))
        return
    click.echo(f"{shown(file)}  {readable_bytes(file.stat().st_size)}, format {header.format[0]}.{header.format[1]}")
    for title, text in _lines(header):
        click.echo(f"{title:10} {shown(text)}")
    if certificate := read_certificate(file):
        click.echo("certificate")
        for title, text in certificate.rows().items():
            click.echo(f"  {title:20} {shown(text)}")
    click.echo(f"parameters {sum(math.prod(tensor.shape) for tensor in tensors.values()):,} in {len(tensors)} tensors")
    for name, tensor in list(tensors.items())[:12]:
        click.echo(f"  {shown(name):40} {tuple(tensor.shape)}")
    if len(tensors) > 12:
        click.echo(f"  and {len(tensors) - 12} more")
    if words:
        from adapt.methods.base.traits import LearnedTokens

        method = method_of(header, file)
        if isinstance(method, LearnedTokens) and "text" in method.touches:
            _show_words(common.load_adapter(adapter, backbone), words)


def _lines(header: Header) -> Iterator[tuple[str, str]]:
    settings = [f"{key}={value!r}" for key, value in header.config.items() if value not in (None, "", {})]
    members = within(header.config, "members", kind=list) or []  # of an average
    settings = [str(within(each, "method", kind=str)) for each in members] or settings
    yield "method", f"{header.method} ({', '.join(settings)})"
    size = header.preprocess.get("size")
    read = [f"{size} px"] * (size is not None) + ["photographs turned upright"] * header.preprocess["turned"]
    read += [header.quantization] if header.quantization else []
    yield "backbone", (header.backbone or "unnamed") + f" ({', '.join(read)})" * bool(read)
    if header.logit_scale is not None:
        yield "logits", f"cosine x {header.logit_scale:.1f}"
    if header.class_names:
        first = ", ".join(header.class_names[:8]) + ", ..." * (len(header.class_names) > 8)
        yield "classes", f"{len(header.class_names)}: {first}"
    if header.sets is not None:
        folds = len(header.sets["scores"])
        how = "by class" if header.sets["by_class"] else "over all images" if folds == 1 else f"crossed, {folds} folds"
        how += ", answered together" * header.sets["together"]
        noun = "items" if header.sets["of_items"] else "images"
        yield "sets", f"{header.sets['score']}, {how}, calibrated on {sum(map(len, header.sets['scores'])):,} {noun}"
    if header.watch:
        yield "watch", "later images are compared with the training images"
    data = within(header.recipe, "data", kind=dict)
    if data:
        shots = "all images" if data.get("shots") is None else f"{data['shots']} shots"
        count = within(header.metrics, "train_images", kind=int)
        items = "" if count is None else f", {count:,} items"
        yield "trained on", f"{data.get('source')}, {shots}, {data.get('classes', 'all')} classes{items}"
    names = {"zero_shot": within(header.metrics, "baseline", kind=str) or "zero-shot", "adapted": "adapted"}
    texts = {name: within(header.metrics, key, "text", kind=str) for key, name in names.items()}
    if numbers := "; ".join(f"{name} {text}" for name, text in texts.items() if text):
        yield "numbers", f"{numbers} (seed {header.seed})"
    elif listed := ", ".join(" ".join(each) for each in header.accuracies().items()):
        yield "accuracy", f"{listed} (seed {header.seed})"
    yield "versions", ", ".join(f"{key} {value}" for key, value in header.versions.items())


def _show_words(model: Any, count: int) -> None:
    """Print the words nearest to each learned token, by Euclidean distance between embeddings, as in CoOp."""
    embedding = model.backbone.tower("text").embedding.weight.detach()
    for name, tokens in model.method.learned_tokens.items():
        click.echo(f"nearest words of {shown(name)} (distance)")
        for index, row in enumerate(tokens.detach().flatten(0, -2)):
            distances, ids = (embedding - row).norm(dim=-1).topk(count, largest=False)
            words = (f"{model.backbone.tokenizer.token(int(i))} ({d:.2f})" for d, i in zip(distances.tolist(), ids))
            click.echo(f"  {index:3}  {shown(', '.join(words))}")


@command()
def merge(adapter: Path, folder: Path, *, backbone: common.OfAdapter = None) -> None:
    """Merge an ADAPTER into a copy of its backbone, and save the copy to the new FOLDER in the backbone's format.

    Adapters of lora and clip_svd can be merged, because they only change weights. The merged model needs neither adapt
    nor peft. To use the model with adapt, give `--backbone FOLDER`.
    """
    check_free(folder)
    from adapt.formats.merge import merge as write

    click.echo(f"merged into {write(common.load_adapter(adapter, backbone), folder)}")


@command()
def convert(
    source: Path,
    target: Path,
    *,
    target_form: Annotated[Literal["adapter", "peft"], Option("Format of TARGET.", "--to")] = "adapter",
    backbone: Annotated[str | None, "Backbone that SOURCE was trained on, which published files do not name."] = None,
    classes: Annotated[
        str | None, "Class names in the order of training: a comma-separated list, or a text file with one per line."
    ] = None,
    method: Annotated[str | None, "Method of a published checkpoint.  [default: coop]"] = None,
    settings: Annotated[
        tuple[str, ...],
        Option(
            "Setting of the method that SOURCE does not hold, such as class_position=middle (repeatable).",
            "--set",
            metavar="KEY=VALUE",
        ),
    ] = (),
) -> None:
    """Import SOURCE as the adapter TARGET, or export an adapter as a LoRA folder for peft.

    \b
    SOURCE is one of
      a published checkpoint (model.pth.tar-50) of CoOp or, with --method, of CoCoOp, MaPLe, IVLP or VPT:
        needs --backbone and --classes
      a mm_projector.bin or .safetensors file of a LLaVA, with --method vlora or projector:
        needs --backbone VISION+LLM
      a LoRA folder of peft:
        needs --classes, and --backbone if the folder names no backbone; neither if written by adapt
      an adapter of adapt, with --to peft:
        TARGET becomes a LoRA folder of peft

    No other command reads pickles. Only weights are loaded, and a pickle with anything but tensors and the training
    records of Dassl is refused.
    """
    check_free(target, "target")
    from adapt.loading import located

    source = located(source)
    if source.suffix == ".safetensors" and method is None:
        if target_form != "peft":
            raise AdaptError(
                f"{source} is taken for an adapter of adapt, which needs no import: give --to peft to export the "
                "adapter, or --method to import another kind of file"
            )
        from adapt.formats.peft_layout import export

        click.echo(f"written to {export(common.load_adapter(source, backbone), target)}")
        return
    if target_form == "peft":
        raise AdaptError(
            f"--to peft exports an adapter of adapt, but {source} is not an adapter: leave out --to for an import"
        )
    click.echo(f"written to {_imported(source, backbone, classes, method, settings).save(target)}")


def _imported(
    source: Path, backbone: str | None, classes: str | None, method: str | None, settings: tuple[str, ...]
) -> Model:
    from adapt import methods
    from adapt.backbones.load import load_backbone
    from adapt.formats import checkpoints, peft_import
    from adapt.recipe.file import set_key

    if source.is_dir():
        if method or settings:
            raise AdaptError(f"{source} is a peft folder, which contains all settings: leave --method and --set out")
        given_names = common.class_names(classes)
        return peft_import.load(source, common.given_backbone(backbone, "cpu"), given_names, device="cpu")
    speaks = method is not None and methods.find(method).serves == ("vision LLM",)
    if backbone is None or (classes is None and not speaks):
        raise AdaptError(f"{source} does not record its backbone and classes: give --backbone and --classes FILE")
    names = common.class_names(classes) or []
    given: dict[str, object] = {}
    for setting in settings:
        set_key(given, setting)
    return checkpoints.import_published(source, method or "coop", load_backbone(backbone, "cpu"), names, given)


@command()
def soup(
    adapters: tuple[Path, ...],
    *,
    out: Annotated[Path, "New .safetensors file to write."],
    weights: Annotated[str | None, "Weights of the adapters, separated by commas.  [default: a mean]"] = None,
    combination: Annotated[
        Literal["linear", "magnitude_prune", "ties", "dare_linear", "dare_ties"],
        "How to combine, as peft names it; all but linear are for LoRA, and need --density.",
    ] = "linear",
    density: Annotated[float | None, "Share of the entries of a change to keep, such as 0.2."] = None,
    rank: Annotated[
        int | None, Option("Rank of a LoRA soup.  [default: for linear the sum, else the adapters' own]", min=1)
    ] = None,
    seed: Annotated[int, Option("Seed for what dare drops.", min=0)] = 0,
    data: Annotated[
        str | None, Option("Take only adapters that help on this data's validation images.", "--greedy", metavar="DATA")
    ] = None,
    root: common.Root = None,
    backbone: common.OfAdapter = None,
) -> None:
    """Combine ADAPTERS, which may differ only in their trained weights, into one adapter with the same inference cost.

    For LoRA, the weight updates are combined. For other methods, the trained parameters are averaged.

    \b
    Examples:
      adapt soup runs/lora-1 runs/lora-2 runs/lora-3 --out soup.safetensors
      adapt soup runs/lora-1 runs/lora-2 --combination ties --density 0.3 --out ties.safetensors
      adapt soup runs/coop-1 runs/coop-2 runs/coop-3 --greedy photos --out greedy.safetensors
    """
    check_free(out, "file")
    shares = None if weights is None else common.numbers("weights", weights, float)
    validation = None if data is None else load_data(data, root).val
    if validation == ():
        raise AdaptError(f"--greedy {data} has no validation images, on which adapters are compared: give other data")
    from adapt.soups import soup as mixed

    def tried(name: str, accuracy: float, taken: bool) -> None:
        click.echo(f"{'taken' if taken else 'left':6} {100 * accuracy:5.1f} %  {shown(name)}")

    model = mixed(
        adapters, shares, combination=combination, density=density, rank=rank, seed=seed, validation=validation,
        backbone=common.given_backbone(backbone, AUTO), tried=tried,
    )  # fmt: skip
    model.save(out)
    names = model.metadata["recipe"]["soup"]["ingredients"]
    click.echo(f"soup of {len(names)} of {len(adapters)} at {out} ({readable_bytes(out.stat().st_size)})")


@command()
def average(
    adapters: tuple[Path, ...],
    *,
    out: Annotated[Path, "New .safetensors file to write."],
    backbone: common.OfAdapter = None,
) -> None:
    """Put ADAPTERS into one file, which answers by the mean of their probabilities and says how much they disagree.

    They may be of any methods and seeds, on one backbone, for the same classes.
    """
    check_free(out, "file")
    from adapt.soups import average as averaged

    averaged([*map(str, adapters)], common.given_backbone(backbone, AUTO)).save(out)
    click.echo(f"average of {len(adapters)} at {out} ({readable_bytes(out.stat().st_size)})")


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
        from adapt.evaluation.intervals import in_percent

        click.echo(
            f"{100 * measured['accuracy']:.1f} % of {measured['images']} images "
            f"({in_percent(measured['accuracy_interval'])} at 95 %), the adapter itself "
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
    from adapt.formats import publishing
    from adapt.loading import located

    file = located(adapter)
    if not file.is_file():
        raise AdaptError(f"there is no adapter at {adapter}: give a .safetensors file, or the folder of a run")
    model = common.load_adapter(file, backbone)
    address = publishing.push(model, repository, file=file, private=private, license=license, message=message)
    click.echo(f"published at {address}")

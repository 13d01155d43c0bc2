"""`adapt maps`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapt.cli import options as common
from adapt.errors import AdaptError
from adapt.shown import shown

if TYPE_CHECKING:
    from PIL.Image import Image

    from adapt.models.classifier import AdaptedModel


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder of the pictures, a new one.")
@common.of_adapter
@common.device
@common.as_json
def maps(adapter: Path, images: tuple[Path, ...], out: Path, backbone: str | None, device: str, as_json: bool) -> None:
    """Draw where IMAGES (files, or folders searched at any depth) look abnormal to ADAPTER.

    Of every image a PNG is written, of the part that the backbone reads, and a line printed: how abnormal its worst
    pixel looks, and how probable the class of the whole image is. Colours are on one scale for all of the images: half
    of their pixels have none. An image that cannot be read is reported and left out; the exit code is 2 then.

    \b
    Examples:
      adapt maps runs/defects photos/ --out heat
      adapt maps runs/screw/adapter.safetensors screw.png --out heat --json
    """
    from adapt.cli.predict import image_files, readable_images
    from adapt.cli.quiet import quiet_libraries

    if out.exists():
        raise AdaptError(f"{out} exists: give --out a folder that is not there yet, so that nothing is lost")
    files = list(image_files(images))
    with quiet_libraries():
        from adapt.loading import load
        from adapt.models.classifier import AdaptedModel

        model = load(adapter, common.given_backbone(backbone, device), device=device)
        if not isinstance(model, AdaptedModel):
            raise AdaptError(f"{adapter} answers questions, and draws no maps: take an adapter of anovl")
        readable: list[Path] = []
        pictures = list(readable_images(files, readable))
        _draw(model, pictures, readable, out, as_json)
    if len(readable) < len(files):
        click.echo(f"{len(files) - len(readable)} of {len(files)} images could not be read", err=True)
        sys.exit(2)


def _draw(model: AdaptedModel, pictures: list[Image], paths: list[Path], out: Path, as_json: bool) -> None:
    from adapt import plain
    from adapt.models.heat import heat

    found = model.anomaly_maps(pictures)
    extremes = (float(found.median()), float(found.max())) if len(found) else (0.0, 1.0)
    out.mkdir(parents=True)
    predictions = model.predict(pictures)
    for number, (picture, path, own, said) in enumerate(zip(pictures, paths, found, predictions, strict=True)):
        drawn = out / f"{number:05}_{path.stem}.png"
        heat(picture, own, extremes, model.backbone.preprocess).save(drawn)
        worst = float(own.max())
        if as_json:
            answer = {"class": said.class_name, "probability": said.probability}
            click.echo(plain.dump({"image": str(path), "map": str(drawn), "abnormal": worst, **answer}))
        else:
            click.echo(f"{shown(path)}  {worst:.4f}  {shown(said.class_name)} {100 * said.probability:.1f} %  {drawn}")


COMMANDS = {"maps": maps}

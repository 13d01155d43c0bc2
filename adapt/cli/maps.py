"""`adapt maps`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from adapt.cli import options as common
from adapt.cli.options import command
from adapt.common.devices import AUTO
from adapt.common.disk import check_free
from adapt.common.errors import AdaptError
from adapt.common.shown import shown

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.cli.image_files import ImageFile
    from adapt.models.dual_encoder import AdaptedModel
    from adapt.models.prediction import Prediction


@command()
def maps(
    adapter: Path,
    images: tuple[Path, ...],
    *,
    out: Annotated[Path, "New folder for the heat maps."],
    backbone: common.OfAdapter = None,
    device: common.RunsOn = AUTO,
    as_json: common.AsJson = False,
) -> None:
    """Draw heat maps that show where IMAGES (files, or folders searched at any depth) look abnormal to ADAPTER.

    For each image, a PNG of the area that the backbone reads is written, and a line is printed with the abnormality of
    the most abnormal pixel and with the image's class and probability. All images share one colour scale, on which the
    less abnormal half of all pixels has no colour. So some pixels are warm even if no image has a defect: `adapt eval`
    measures whether maps can be trusted. An image that cannot be read is reported and skipped, and the exit code is
    then 2.

    \b
    Examples:
      adapt maps runs/defects photos/ --out heat
      adapt maps runs/screw/adapter.safetensors screw.png --out heat --json
    """
    from adapt.cli.image_files import exit_where_unread, image_files, readable_images

    check_free(out)
    files = list(image_files(images))
    with common.quiet_libraries():
        from adapt.methods.base.traits import normal_label
        from adapt.models.dual_encoder import AdaptedModel

        model = common.load_adapter(adapter, backbone, device)
        if not isinstance(model, AdaptedModel):
            raise AdaptError(f"{adapter} draws no maps: use an adapter of the method anovl")
        normal_label(model.method, model.class_names)  # before any image is read
        readable: list[ImageFile] = []
        turned = model.backbone.preprocess.turned
        predicted = list(model.predict_maps(readable_images(files, readable, {turned})))
        _draw(model, predicted, readable, out, as_json)
    exit_where_unread(files, readable)


def _draw(
    model: AdaptedModel, predicted: list[tuple[Prediction, Tensor]], files: list[ImageFile], out: Path, as_json: bool
) -> None:
    """Write each image's heat map to the folder `out`, and print a line for each image."""
    from adapt.common import plain
    from adapt.data.decoding.images import open_image
    from adapt.evaluation.maps import extremes_of, heat

    extremes = extremes_of([abnormality for _, abnormality in predicted])
    out.mkdir(parents=True)
    for number, ((prediction, abnormality), file) in enumerate(zip(predicted, files, strict=True)):
        drawn = out / f"{number:05}_{file.path.stem}.png"
        picture = open_image(file.path, turned=model.backbone.preprocess.turned)
        heat(picture, abnormality, extremes, model.backbone.preprocess).save(drawn)
        worst = float(abnormality.max())
        if as_json:
            click.echo(plain.dump({"image": file.called, "map": str(drawn), "abnormal": worst, **prediction.plain()}))
        else:
            answer = f"{shown(prediction.class_name)} {100 * prediction.probability:.1f} %"
            click.echo(f"{shown(file.called)}  {worst:.4f}  {answer}  {drawn}")
    click.echo(
        "colours compare these images with each other: the warmest pixels need not be defects. `adapt eval` on images "
        "of known classes, or with masks, says whether maps can be trusted",
        err=True,
    )

"""`adapt maps`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click

from adapt.cli import options as common
from adapt.cli.options import command
from adapt.common.devices import AUTO
from adapt.common.disk import check_free
from adapt.common.errors import AdaptError
from adapt.common.shown import shown


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
    measures whether maps can be trusted. An adapter with a threshold from good images leaves all below it without
    colour. An image that cannot be read is reported and skipped, and the exit code is then 2.

    \b
    Examples:
      adapt maps runs/defects photos/ --out heat
      adapt maps runs/screw/adapter.safetensors screw.png --out heat --json
    """
    from adapt.cli.image_files import ImageFile, exit_where_unread, image_files, readable_images
    from adapt.common import plain

    check_free(out)
    files = list(image_files(images))
    with common.quiet_libraries():
        from adapt.data.decoding.images import open_image
        from adapt.evaluation.maps import extremes_of, heat
        from adapt.methods.base.traits import DrawsMaps, normal_label, trait
        from adapt.models.image_model import ImageModel

        model = common.load_adapter(adapter, backbone, device)
        if not isinstance(model, ImageModel):
            raise AdaptError(f"{adapter} draws no maps: use an adapter of the method patch_memory")
        normal_label(model.method, model.class_names)  # before any image is read
        readable, preprocess = list[ImageFile](), model.backbone.preprocess
        predicted = list(model.predict_maps(readable_images(files, readable, {preprocess.turned})))
        extremes, draws = extremes_of([abnormality for _, abnormality in predicted]), trait(model.method, DrawsMaps)
        known = None if draws is None else draws.threshold(pixels=True)
        extremes = extremes if known is None else (float(known), max(float(known), extremes[1]))
        out.mkdir(parents=True)
        for number, ((prediction, abnormality), file) in enumerate(zip(predicted, readable, strict=True)):
            drawn, worst = out / f"{number:05}_{file.path.stem}.png", float(abnormality.max())
            picture = open_image(file.path, turned=preprocess.turned)
            heat(picture, abnormality, extremes, preprocess).save(drawn)
            if as_json:
                told = {"image": file.called, "map": str(drawn), "abnormal": worst, **prediction.plain()}
                click.echo(plain.dump(told))
            else:
                answer = f"{shown(prediction.class_name)} {100 * prediction.probability:.1f} %"
                click.echo(f"{shown(file.called)}  {worst:.4f}  {answer}  {drawn}")
    said = "colours compare these images with each other: the warmest pixels need not be defects"
    if known is not None:
        said = "colours begin where few good images have a pixel: about as many as may be called abnormal"
    said += ". `adapt eval` on images of known classes, or with masks, says whether maps can be trusted"
    click.echo(said, err=True)
    exit_where_unread(files, readable)

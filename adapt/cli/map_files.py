"""The maps that `adapt predict` writes: 16-bit pictures of scores at once, and heat maps over the images at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
from PIL import Image

from adapt.cli.image_files import ImageFile
from adapt.data.decoding.images import open_image
from adapt.evaluation.maps import as_picture, ends_of_colour, from_picture, heat
from adapt.methods.base.traits import DrawsMaps, trait
from adapt.models.prediction import Prediction
from adapt.models.wrap import Model


class MapFiles:
    """A new folder with two pictures of each map: its scores in 16 bits, and colours over what the backbone reads.

    All images share one scale of colours, which is known when the last map is. The model draws maps.
    """

    def __init__(self, folder: Path, model: Model) -> None:
        draws = trait(model.method, DrawsMaps)
        assert draws is not None
        threshold = draws.threshold(pixels=True)
        self._folder, self._preprocess = folder, model.backbone.preprocess
        self._threshold = None if threshold is None else float(threshold)
        self._written: list[tuple[ImageFile, Prediction]] = []
        self._middles, self._highest = list[float](), list[float]()

    def write(self, file: ImageFile, prediction: Prediction) -> Prediction:
        """Write the scores of a prediction's map, and return the prediction with what is told of them."""
        scores = prediction.map
        assert scores is not None
        self._folder.mkdir(parents=True, exist_ok=bool(self._written))
        named = f"{len(self._written):05}_{file.path.stem}"
        path, overlay = self._folder / f"{named}.scores.png", self._folder / f"{named}.png"
        picture, told = as_picture(scores)
        picture.save(path)
        self._middles.append(float(scores.median()))
        self._highest.append(float(scores.max()))
        of_map = {"threshold": self._threshold, "highest": self._highest[-1]}
        drawn = {"path": str(path), **told, "overlay": str(overlay), **of_map}
        self._written.append((file, replace(prediction, map=None, drawn=drawn)))
        return self._written[-1][1]

    def finish(self) -> None:
        """Draw the colours over all images, and say what they compare."""
        if not self._written:
            return
        ends = ends_of_colour(self._middles, self._highest, self._threshold)
        for file, prediction in self._written:
            assert prediction.drawn is not None
            with Image.open(prediction.drawn["path"]) as picture:
                scores = from_picture(picture, prediction.drawn)
            whole = open_image(file.path, turned=self._preprocess.turned)
            heat(whole, scores, ends, self._preprocess).save(prediction.drawn["overlay"])
        said = "colours compare these images with each other: the warmest pixels need not be defects"
        if self._threshold is not None:
            said = "colours begin where few good images have a pixel: about as many as may be called abnormal"
        said += ". `adapt eval` on images of known classes, or with masks, says whether maps can be trusted"
        click.echo(said, err=True)

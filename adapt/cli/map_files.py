"""The maps that `adapt predict` writes: 16-bit pictures of scores at once, and colours over the images at the end."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click
from PIL import Image

from adapt.common.plain import JsonObject
from adapt.evaluation.maps import as_picture, ends_of_colour, from_picture, heat, pixel_threshold
from adapt.models.prediction import Prediction
from adapt.models.wrap import Model

_LONGEST = 200  # bytes of an image's name, beside which there is room for a number and a suffix


class MapFiles:
    """A new folder with two pictures of each map: its scores in 16 bits, and colours over what the backbone reads.

    All images share one scale of colours, which is known when the last map is. With `explain`, maps are of what the
    answer rests on, and colours go from 0 to the highest score of each image.
    """

    def __init__(self, folder: Path, model: Model, explain: bool = False) -> None:
        self._folder, self._preprocess, self._explain = folder, model.backbone.preprocess, explain
        self._threshold = None if explain else pixel_threshold(model)
        self._written, self._middles = list[JsonObject](), list[float]()

    def write(self, name: str, prediction: Prediction) -> Prediction:
        """Write the map of a prediction for the image `name`, and return the prediction with what is told of it."""
        assert prediction.map is not None
        self._folder.mkdir(parents=True, exist_ok=bool(self._written))
        name = os.fsencode(name)[:_LONGEST].decode(errors="ignore")
        scores, overlay = (self._folder / f"{len(self._written):05}_{name}{end}" for end in (".scores.png", ".png"))
        picture, told = as_picture(prediction.map.scores, self._threshold)
        picture.save(scores)
        self._preprocess.picture(prediction.map.pixels).save(overlay)  # its colours follow
        self._middles.append(float(prediction.map.scores.median()))
        self._written.append({"scores": str(scores), "overlay": str(overlay), **told})
        return replace(prediction, map=None, drawn=self._written[-1])

    def finish(self) -> None:
        """Draw the colours over all images, and say what they compare."""
        if not self._written:
            return
        of_all = ends_of_colour(self._middles, [told["highest"] for told in self._written], self._threshold)
        for told in self._written:
            ends = (0.0, told["highest"]) if self._explain else of_all
            with Image.open(told["scores"]) as scores, Image.open(told["overlay"]) as picture:
                heat(picture, from_picture(scores, told), ends).save(told["overlay"])
        if self._explain:
            said = "colours show where the answer becomes less sure if that part is covered, on a scale for each image"
        else:
            said = "colours compare these images with each other: the warmest pixels need not be defects"
            if self._threshold is not None:
                said = "colours begin at the adapter's threshold of pixels"
            said += ". `adapt eval` on images of known classes, or with masks, says whether maps can be trusted"
        click.echo(said, err=True)

"""The linear probe on data that divides nothing."""

from __future__ import annotations

import pytest

import adapt
from adapt import AdaptError
from adapt.data import Split


def test_images_of_one_class_are_refused(open_clip: adapt.Backbone, tiny_split: Split) -> None:
    alone = [item for item in tiny_split.train if item.class_names == tiny_split.class_names[:1]]
    model = adapt.wrap(open_clip, adapt.methods.LinearProbe(), tiny_split.class_names[:1])
    with pytest.raises(AdaptError, match="linear_probe divides classes, but all training images are of one class"):
        adapt.fit(model, alone, progress=False)

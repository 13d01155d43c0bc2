"""The package's surface, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import adapt.data


def test_reading_and_sampling_need_no_torch() -> None:
    code = (
        "import sys, adapt.data as data; data.ImageSet; data.read_split; data.open_image;"
        "item = data.Item.of(path='a', label='a'); data.Split('s', ('a',), (item,), (), ()).few_shot(1, 1);"
        "data.ImageSet; assert callable(data.loader); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_export_is_there() -> None:
    for name in adapt.data.__all__:
        assert callable(getattr(adapt.data, name)), name
    with pytest.raises(AttributeError, match=r"No adapt\.data attribute lode"):
        adapt.data.lode  # noqa: B018

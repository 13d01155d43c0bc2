"""Who computes with helpers: the batcher alone, once adapters are loaded. GNU's OpenMP lets them spin only then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from adapt import Backbone
from adapt.data import Split
from adapt.models import many
from adapt.models.many import SideBySide
from adapt.serving import adapters
from adapt.serving.adapters import ServedAdapters
from adapt.serving.worker import without_team


@pytest.fixture
def three() -> Iterator[None]:
    """Threads that start inside compute with three, however many processors there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three")
def test_a_thread_without_a_team_leaves_those_of_others() -> None:
    for begin, own in ((without_team, 1), (None, 3)):
        with ThreadPoolExecutor(1, initializer=begin) as pool:
            assert pool.submit(torch.get_num_threads).result() == own
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three")
def test_an_image_is_read_by_one_thread_and_answered_by_all(
    serve: Callable[..., TestClient], tiny_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, int] = {}

    def telling(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def told(*args: Any, **kwargs: Any) -> Any:
            found[name] = torch.get_num_threads()
            return call(*args, **kwargs)

        return told

    monkeypatch.setattr(many, "open_image", telling("read", many.open_image))
    monkeypatch.setattr(SideBySide, "predictions", telling("answered", SideBySide.predictions))
    image = Path(tiny_split.train[0].path).read_bytes()
    assert serve().post("/predict", files={"images": image}).status_code == 200
    assert found == {"read": 1, "answered": 3}


def test_what_loads_an_adapter_ends_with_it(folder: Path, open_clip: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    loaders, load = list[threading.Thread](), adapters.load

    def told(*args: Any, **kwargs: Any) -> Any:
        loaders.append(threading.current_thread())
        return load(*args, **kwargs)

    monkeypatch.setattr(adapters, "load", told)
    served = ServedAdapters([f"{folder}/coop.safetensors"], folder, open_clip)
    served.load("lora.safetensors")
    assert [thread.is_alive() for thread in loaders] == [False, False]

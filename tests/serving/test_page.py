"""The server's page in a real browser, by `make test-browser`: names of files, and a threshold that is moved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from adapt.data import Split

_ADDRESS = "http://pages.example/"


def _answer(adapter: str, name: str, probability: float, **more: Any) -> dict[str, Any]:
    top = [{"class": name, "probability": probability}, {"class": "sky", "probability": 0.25}]
    return {"adapter": adapter, "class": name, "probability": probability, "classes": None, "top": top} | more


ANSWERS = [
    _answer("coop", "goldfish", 0.7),
    _answer("lora", "red panda", 0.4),
    _answer("several", "car", 0.6, classes=["car"]),
]


@pytest.fixture
def tab(serve: Callable[..., TestClient], browser: Any) -> Any:
    """The page, with its policy, whose server gives the answers above."""
    page, opened = serve().get("/"), browser.new_page()
    listed = [{"name": each["adapter"], "method": "coop", "classes": ["a", "b"]} for each in ANSWERS]

    def served(route: Any) -> None:
        path = route.request.url.removeprefix(_ADDRESS)
        if path == "":
            route.fulfill(body=page.text, headers=dict(page.headers))
        else:
            route.fulfill(json=listed if path == "adapters" else {"results": [{"image": "x", "answers": ANSWERS}]})

    opened.route("**/*", served)
    opened.goto(_ADDRESS)
    yield opened
    opened.close()


def test_file_names_stand_beside_answers_and_a_slider_says_none_of_these(tab: Any, tiny_split: Split) -> None:
    errors: list[Any] = []
    tab.on("pageerror", lambda error: errors.append(error))
    image = Path(tiny_split.train[0].path)
    tab.set_input_files("#files", [image, image])
    tab.locator(".image").nth(1).wait_for()
    assert tab.locator("figcaption").all_inner_texts() == [image.name] * 2
    for threshold, called in (
        (0, ["goldfish", "red panda", "car"]),
        (50, ["goldfish", "none of these", "car"]),
        (20, ["goldfish", "red panda", "car, sky"]),
        (65, ["goldfish", "none of these", "none of these"]),
    ):
        tab.locator("#threshold").fill(str(threshold))
        headings = [f"{each['adapter']}: {name}" for each, name in zip(ANSWERS, called, strict=True)]
        assert tab.locator("h2").all_inner_texts() == headings * 2
        assert tab.inner_text("#said-threshold") == f"{threshold} %"
    assert tab.locator(".unsure").count() == 4
    tab.set_input_files("#files", image)  # the slider holds for what comes
    tab.locator(".image").nth(2).wait_for()
    assert tab.locator("h2").first.inner_text() == "coop: goldfish"
    assert tab.locator(".unsure").count() == 6
    assert errors == []

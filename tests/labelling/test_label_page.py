"""The page of `adapt label` in a real browser, by `make test-browser`: the keyboard alone is enough."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapt.data import Split
from adapt.labelling.labelling import Labelling
from adapt.recipe import read_recipe
from adapt.training.extending import write_list
from adapt.training.run_recipe import run_recipe

AXE = Path(__file__).parents[2] / "build/browser/node_modules/axe-core/axe.min.js"
_ADDRESS = "http://localhost/"


@pytest.fixture
def run(tiny_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on the training images; the validation images, of three classes too, are not in its data."""
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    write_list(Split("tiny", tiny_split.class_names, tiny_split.train, (), tiny_split.test), tmp_path / "list.csv")
    sets = ["backbone=mini-clip", "data.shots=null", "data.root=/"]
    run_recipe(read_recipe("nearest_mean", sets, data=str(tmp_path / "list.csv")), tmp_path / "run", progress=False)
    return tmp_path / "run"


@pytest.fixture
def opened(run: Path, tiny_split: Split, browser: Any) -> Iterator[Callable[..., Any]]:
    """The page in a tab, whose requests are answered by the server's application in this process."""
    client_of = pytest.importorskip("starlette.testclient").TestClient
    from adapt.labelling.server import create_label_app

    tab = browser.new_page()
    errors: list[Any] = []
    tab.on("pageerror", lambda error: errors.append(error))

    def begin(*sources: Path, a_round: int = 4) -> Any:
        labelling = Labelling(
            run, sources or (Path(tiny_split.val[0].path).parent,), run.parent / "out", progress=False
        )
        labelling.propose(a_round)
        client = client_of(create_label_app(labelling, a_round), base_url=_ADDRESS)

        def served(route: Any) -> None:
            asked = route.request
            path = asked.url.removeprefix(_ADDRESS.rstrip("/"))
            content = asked.post_data_buffer
            kind = {"content-type": asked.headers.get("content-type", "")} if content else {}
            answer = client.request(asked.method, path, content=content, headers=kind)
            route.fulfill(status=answer.status_code, body=answer.content, headers=dict(answer.headers))

        tab.route("**/*", served)
        tab.goto(_ADDRESS)
        tab.wait_for_selector("#pictures img[src]")
        return tab

    yield begin
    assert errors == []
    tab.close()


def press(tab: Any, *keys: str) -> None:
    """Press keys, and wait until the page has gone on."""
    shown = "document.getElementById('said').textContent + document.querySelector('figcaption').textContent"
    before = tab.evaluate(shown)
    for key in keys:
        tab.keyboard.press(key)
    tab.wait_for_function(f"before => {shown} !== before", arg=before)


def annotations(run: Path) -> list[tuple[str, str]]:
    with (run.parent / "out/annotations.csv").open(encoding="utf-8", newline="") as file:
        return [(row["action"], row["label"]) for row in csv.DictReader(file)]


def test_a_round_by_the_keyboard(opened: Callable[..., Any], run: Path) -> None:
    tab = opened()
    proposed, second = tab.inner_text("#label"), tab.locator("#likely li span").nth(1).inner_text()
    press(tab, "2")
    press(tab, "ArrowLeft")
    assert tab.inner_text("#label") == proposed
    press(tab, "Enter")
    press(tab, "r", "e", "d", "Enter")
    press(tab, "ArrowRight")
    press(tab, "Enter")
    assert tab.inner_text("#said") == "Round 1: 4 of 4"
    assert tab.locator("#results").is_hidden()
    tab.keyboard.press("Delete")
    tab.wait_for_selector("#rounds tr")
    given = annotations(run)
    assert [action for action, _ in given] == ["label", "label", "skip", "label", "drop"]
    assert [label for _, label in given[:2]] == [proposed, "red_panda"]
    assert second != proposed
    cells = tab.locator("#rounds td").all_inner_texts()
    assert cells[:2] == ["1", "4"]
    assert cells[3] == "15"
    assert tab.inner_text("#said") == "Round 2: 1 of 1"
    assert "adapt train" in tab.inner_text("#command")


def test_a_class_that_is_not_clear_is_said_and_escape_trains(opened: Callable[..., Any], run: Path) -> None:
    tab = opened()
    for key in ("x", "y", "Enter"):
        tab.keyboard.press(key)
    assert "no class, or more than one, begins with xy" in tab.inner_text("#problem")
    assert not (run.parent / "out/annotations.csv").exists()
    tab.keyboard.press("Escape")
    assert tab.input_value("#class") == ""
    press(tab, "Enter")
    tab.keyboard.press("Escape")
    tab.wait_for_selector("#rounds tr")
    assert tab.locator("#rounds td").all_inner_texts()[:2] == ["1", "1"]


def test_doubtful_images_are_kept(opened: Callable[..., Any], run: Path, tiny_split: Split, tmp_path: Path) -> None:
    one, other = tiny_split.train[0], tiny_split.train[1]
    lines = ["path,class,train_path,train_class", f"{one.path},{one.answer},{other.path},{other.answer}"]
    (tmp_path / "duplicates.csv").write_text("\n".join(lines))
    tab = opened(tmp_path / "duplicates.csv")
    tab.locator("#pictures img").nth(1).wait_for()
    assert tab.inner_text("#label") == one.answer
    assert tab.inner_text("#enter") == "keep the label"
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#rounds tr")
    assert annotations(run) == [("label", one.answer)]
    assert tab.inner_text("#said") == "There is no picture left to ask about."


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened: Callable[..., Any], scheme: str) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: make test-browser")
    tab = opened()
    tab.emulate_media(color_scheme=scheme)
    tab.evaluate(AXE.read_text(encoding="utf-8"))
    found = tab.evaluate("axe.run()")
    assert len(found["passes"]) > 10
    assert [each["id"] for each in found["violations"]] == []

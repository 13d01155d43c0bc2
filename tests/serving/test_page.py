"""The server's page in a real browser, by `make test-browser`: names, errors, a threshold, a token, what axe finds."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from adapt.data import Split

AXE = Path(__file__).parents[2] / "build/browser/node_modules/axe-core/axe.min.js"
_ADDRESS = "http://pages.example/"


def _answer(adapter: str, name: str, probability: float, **more: Any) -> dict[str, Any]:
    top = [{"class": name, "probability": probability}, {"class": "sky", "probability": 0.25}]
    return {"adapter": adapter, "class": name, "probability": probability, "classes": None, "top": top} | more


ANSWERS = [
    _answer("coop", "goldfish", 0.7),
    _answer("lora", "red panda", 0.4),
    _answer("several", "car", 0.6, classes=["car"]),
]


PLACES = [
    {"bbox": [6.0, 0.0, 18.0, 12.0], "label": "goldfish", "probability": 0.981},
    {"bbox": [0.0, 12.0, 6.0, 24.0], "label": "<b>sky</b>", "probability": 0.9},
]


def _more(asked: str) -> list[dict[str, Any]]:
    """The answers above, or that of one adapter with what a request asks for beside it."""
    if 'name="explain"' in asked:
        Image.new("RGB", (32, 32), "red").save(file := BytesIO(), "PNG")
        overlay = base64.b64encode(file.getvalue()).decode()
        return [ANSWERS[0] | {"class": "none", "map": {"overlay": overlay, "threshold": None, "highest": 1.0}}]
    return [ANSWERS[0] | {"boxes": PLACES}] if 'name="boxes"' in asked else ANSWERS


@pytest.fixture
def tab(serve: Callable[..., TestClient], browser: Any) -> Any:
    """The page, with its policy, whose server gives the answers above."""
    page, opened = serve().get("/"), browser.new_page()
    able: dict[str, Any] = {"method": "coop", "classes": ["a", "b"], "turned": True}
    listed = [
        able | {"name": each["adapter"], "explains": each is ANSWERS[0], "boxes": each is ANSWERS[0]}
        for each in ANSWERS
    ]
    opened.sent = []

    def served(route: Any) -> None:
        path = route.request.url.removeprefix(_ADDRESS)
        if path == "":
            route.fulfill(body=page.text, headers=dict(page.headers))
        else:
            opened.sent.append((route.request.post_data_buffer or b"").decode("latin-1"))
            answered = {"alarms": {"one": "unlike"}, "results": [{"image": "x", "answers": _more(opened.sent[-1])}]}
            route.fulfill(json=listed if path == "adapters" else answered)

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
    assert tab.inner_text("#alarm") == "one: unlike"
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


def test_colours_stand_beside_the_answer_of_an_adapter_that_draws_maps(tab: Any, tiny_split: Split) -> None:
    image, asked = Path(tiny_split.train[0].path), list[str]()
    drawn = {"overlay": base64.b64encode(image.read_bytes()).decode(), "threshold": 0.2, "highest": 0.3}
    answers = [_answer("coop", "goldfish", 0.7), _answer("memory", "abnormal", 0.9, map=drawn)]
    answers += [_answer("anovl", "normal", 0.6, map=drawn | {"threshold": None})]

    def listed(route: Any) -> None:
        cards = [{"name": each["adapter"], "method": "m", "classes": ["a"], "maps": "map" in each} for each in answers]
        route.fulfill(json=cards)

    def answered(route: Any) -> None:
        asked.append(route.request.post_data_buffer.decode("latin-1"))
        route.fulfill(json={"alarms": {}, "results": [{"image": "x", "answers": answers}]})

    tab.route("**/adapters", listed)
    tab.route("**/predict", answered)
    tab.reload()
    tab.locator("#adapters input").nth(2).wait_for()
    tab.set_input_files("#files", image)
    tab.locator(".adapter figure").nth(1).wait_for()
    said = ["coloured: abnormal", "coloured: its warmest pixels, which need not be defects"]
    assert tab.locator(".adapter figcaption").all_inner_texts() == said
    assert tab.locator(".adapter img").first.get_attribute("alt") == f"Where {image.name} looks abnormal to memory"
    assert tab.locator(".adapter img").first.evaluate("image => image.naturalWidth") == 24
    tab.locator("#adapters input").nth(1).uncheck()
    tab.locator("#adapters input").nth(2).uncheck()
    tab.set_input_files("#files", image)
    tab.locator(".image").nth(1).wait_for()
    assert ['name="maps"' in each for each in asked] == [True, False]


def test_keys_are_enough_to_ask_why_and_where(tab: Any, tiny_split: Split) -> None:
    """Of the adapters that can say so; boxes lie where they are in the picture, and their names are text."""
    tab.set_viewport_size({"width": 1000, "height": 900})
    image = Path(tiny_split.train[0].path)
    tab.set_input_files("#files", image)
    tab.locator(".image").wait_for()
    buttons = tab.locator(".more button")
    assert buttons.all_inner_texts() == ["Why this class?", "Where?"]
    assert buttons.first.get_attribute("aria-label") == f"Why this class? (coop, {image.name})"
    tab.locator("#files").focus()
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    why = tab.get_by_alt_text(f"What the answer goldfish of coop for {image.name} rests on")
    why.wait_for()
    assert why.evaluate("image => image.naturalWidth") == 32
    tab.locator("#threshold").fill("80")
    tab.locator("#files").focus()
    for key in ("Tab", "Tab", "Enter"):
        tab.keyboard.press(key)
    tab.locator(".asked li").nth(1).wait_for()
    assert tab.locator(".asked li").all_inner_texts() == ["goldfish 98.1 %", "<b>sky</b> 90.0 %"]
    picture = tab.get_by_alt_text(f"Where coop sees its classes in {image.name}").bounding_box()
    box = tab.locator(".seen span").first.bounding_box()
    shares = [(box[side] - picture[side]) / picture["width"] for side in ("x", "y")]
    shares += [box[side] / picture["width"] for side in ("width", "height")]
    assert shares == pytest.approx([0.25, 0.0, 0.5, 0.5], abs=0.01)  # of 24 x 24 pixels
    asked = [
        [name for name in ("explain", "boxes", "threshold") if f'name="{name}"' in each] for each in tab.sent if each
    ]
    assert asked == [[], ["explain"], ["boxes", "threshold"]]
    tab.route("**/predict", lambda route: route.fulfill(status=503, json={"detail": "1 at a time"}), times=1)
    buttons.nth(1).click()
    tab.locator("#problem p").wait_for()
    assert tab.inner_text("#problem") == f"{image.name}: 1 at a time"


def test_boxes_of_a_picture_that_is_read_as_stored_are_drawn_as_stored(tab: Any, tmp_path: Path) -> None:
    card = {"name": "coop", "method": "coop", "classes": ["a"], "boxes": True, "turned": False}
    tab.route("**/adapters", lambda route: route.fulfill(json=[card]))
    tab.reload()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (24, 12)).save(tmp_path / "a.jpg", exif=exif)
    tab.locator("#adapters input").wait_for()
    tab.set_input_files("#files", tmp_path / "a.jpg")
    tab.locator(".more button").click()
    tab.locator(".asked li").nth(1).wait_for()
    sides = tab.locator(".seen span").first.evaluate(
        "({ style }) => [style.left, style.top, style.width, style.height]"
    )
    assert sides == ["25%", "0%", "50%", "100%"]
    assert tab.locator(".seen img").evaluate("image => image.offsetWidth / image.offsetHeight") == pytest.approx(
        2, abs=0.1
    )


def test_each_error_is_shown_by_the_name_of_its_file_and_keys_are_enough(tab: Any, tiny_split: Split) -> None:
    images = [Path(item.path) for item in tiny_split.train[:3]]
    refusals = iter([{"detail": "no room"}, {"detail": "no picture"}])
    tab.route("**/predict", lambda route: route.fulfill(status=503, json=next(refusals)), times=2)
    tab.set_input_files("#files", images)
    tab.locator(".image").wait_for()
    assert tab.locator("#problem p").all_inner_texts() == [
        f"{images[0].name}: no room",
        f"{images[1].name}: no picture",
    ]
    assert tab.inner_text("#busy") == "Classified: 1, failed: 2"
    focused = []
    for _ in range(5):
        tab.keyboard.press("Tab")
        focused.append(
            tab.evaluate("document.activeElement.value ? document.activeElement.type : document.activeElement.id")
        )
    assert focused == ["checkbox"] * 3 + ["range", "files"]


def test_a_token_is_asked_for_and_sent(tab: Any) -> None:
    def guarded(route: Any) -> None:
        known = route.request.headers.get("authorization") == "Bearer sesame"
        route.fulfill(status=200 if known else 401, json=[] if known else {"detail": "the token is missing"})

    tab.route("**/adapters", guarded)
    tab.reload()
    tab.fill("#token", "sesame")
    assert tab.inner_text("#problem") == "the token is missing"
    tab.keyboard.press("Enter")
    tab.locator("#ask").wait_for(state="hidden")
    assert tab.inner_text("#problem") == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(tab: Any, tiny_split: Split, scheme: str) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: make test-browser")
    tab.emulate_media(color_scheme=scheme)
    tab.set_input_files("#files", Path(tiny_split.train[0].path))
    tab.locator(".image").wait_for()
    tab.locator("#threshold").fill("50")
    for at in (0, 1):
        tab.locator(".more button").nth(at).click()
        tab.locator(".asked").nth(at).wait_for()
    tab.evaluate(AXE.read_text(encoding="utf-8"))
    found = tab.evaluate("axe.run()")
    assert len(found["passes"]) > 10
    assert [each["id"] for each in found["violations"]] == []
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(24, 26, 27)"}[scheme]


@pytest.fixture
def chat(serve: Callable[..., TestClient], browser: Any) -> Any:
    """The page for conversations, whose server answers each with the words of `SAID`; `sent` are its requests."""
    page, opened = serve().get("/chat"), browser.new_page()
    opened.sent = []

    def served(route: Any) -> None:
        path = route.request.url.removeprefix(_ADDRESS)
        if path == "chat":
            route.fulfill(body=page.text, headers=dict(page.headers))
        elif path == "adapters":
            names = {"first": True, "eyes": False, "second": True}
            route.fulfill(json=[{"name": name, "chats": chats, "turned": True} for name, chats in names.items()])
        else:
            opened.sent.append(route.request.post_data_json)
            chunks = [{"choices": [{"delta": {"content": words}}]} for words in SAID] + [{"choices": [], "usage": {}}]
            events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
            route.fulfill(body="".join([*events, "data: [DONE]\n\n"]), headers={"content-type": "text/event-stream"})

    opened.route("**/*", served)
    opened.goto(_ADDRESS + "chat")
    yield opened
    opened.close()


SAID = ["a dog ", "on a <b>sofa</b>"]


def test_boxes_of_an_answer_are_drawn_into_the_picture(chat: Any, tiny_split: Split) -> None:
    chunks: list[dict[str, Any]] = [{"content": "there."}, {"boxes": [PLACES[0] | {"label": "", "probability": None}]}]
    events = "".join(f"data: {json.dumps({'choices': [{'delta': each}]})}\n\n" for each in chunks)
    chat.route("**/v1/chat/completions", lambda route: route.fulfill(body=events + "data: [DONE]\n\n"))
    chat.set_input_files("#files", Path(tiny_split.train[0].path))
    chat.locator("#pictures img").wait_for()
    chat.fill("#words", "where is the dog?")
    chat.keyboard.press("Enter")
    chat.locator(".turn.assistant li").wait_for()
    assert chat.locator(".turn.assistant li").inner_text() == "here"
    assert chat.locator(".turn.assistant .seen span").evaluate("box => [box.style.left, box.style.height]") == [
        "25%",
        "50%",
    ]
    assert chat.locator(".turn.assistant img").evaluate("image => image.naturalWidth") == 24


def test_a_conversation_about_a_picture_is_written_as_it_comes(chat: Any, tiny_split: Split) -> None:
    """And sent whole with the next question; names and words of the model are text, never markup."""
    chat.set_input_files("#files", Path(tiny_split.train[0].path))
    chat.locator("#pictures img").wait_for()
    chat.select_option("#adapter", "second")
    for number, words in enumerate(("what is it?", "and where?"), 1):
        chat.fill("#words", words)
        chat.keyboard.press("Enter")
        chat.locator(".turn.assistant").nth(number - 1).get_by_text("".join(SAID)).wait_for()
        chat.locator("#send:enabled").wait_for()
    assert chat.locator("#ask").is_hidden()
    first, second = chat.sent
    assert (first["model"], first["stream"], len(first["messages"])) == ("second", True, 1)
    image, text = first["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "what is it?"}
    assert second["messages"] == [
        *first["messages"],
        {"role": "assistant", "content": "".join(SAID)},
        {"role": "user", "content": [{"type": "text", "text": "and where?"}]},
    ]
    assert chat.locator(".turn").all_inner_texts() == ["what is it?", "".join(SAID), "and where?", "".join(SAID)]
    assert chat.locator(".turn img").count() == 1
    chat.click("#anew")
    assert chat.locator(".turn").count() == 0


def test_a_question_that_fails_may_be_asked_again(chat: Any, tiny_split: Split) -> None:
    problem = {"error": {"message": "try again in a second"}}
    chat.route("**/v1/chat/completions", lambda route: route.fulfill(status=503, json=problem), times=1)
    chat.set_input_files("#files", Path(tiny_split.train[0].path))
    chat.locator("#pictures img").wait_for()
    chat.fill("#words", "what?")
    chat.click("#send")
    chat.locator("#send:enabled").wait_for()
    assert chat.inner_text("#problem") == problem["error"]["message"]
    assert chat.locator(".turn").count() == 0
    assert (chat.input_value("#words"), chat.locator("#pictures img").count()) == ("what?", 1)
    chat.click("#send")
    chat.get_by_text("".join(SAID)).wait_for()
    assert [len(sent["messages"]) for sent in chat.sent] == [1]
    assert chat.inner_text("#problem") == ""


def test_a_new_conversation_begins_without_the_old_one(chat: Any) -> None:
    """Though an answer was being written."""
    held: list[Any] = []
    chat.route("**/v1/chat/completions", lambda route: held.append(route), times=1)
    chat.fill("#words", "old?")
    chat.click("#send")
    chat.locator("#stop:visible").wait_for()
    chat.click("#anew")
    chat.locator("#send:enabled").wait_for()
    chat.fill("#words", "new?")
    chat.click("#send")
    chat.get_by_text("".join(SAID)).wait_for()
    assert [message["content"][-1]["text"] for message in chat.sent[0]["messages"]] == ["new?"]
    assert len(held) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_a_conversation(chat: Any, tiny_split: Split, scheme: str) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: make test-browser")
    chat.emulate_media(color_scheme=scheme)
    chat.set_input_files("#files", Path(tiny_split.train[0].path))
    chat.fill("#words", "what is it?")
    chat.click("#send")
    chat.get_by_text("".join(SAID)).wait_for()
    chat.evaluate(AXE.read_text(encoding="utf-8"))
    found = chat.evaluate("axe.run()")
    assert len(found["passes"]) > 10
    assert [each["id"] for each in found["violations"]] == []

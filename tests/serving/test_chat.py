"""Conversations over HTTP, as OpenAI's own client asks for them; limits, errors, and answers that take turns."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tiny_natives
import torch
from checks import perturb
from native_chats import lora, pictures
from PIL import Image
from serving.asking import hold
from starlette.testclient import TestClient

import adapt
from adapt.chats import Chat
from adapt.methods import ZeroShot
from adapt.models import native_vlm
from adapt.models.native_vlm import ChatModel
from adapt.models.ongoing import OngoingAnswers
from adapt.serving import chat_worker
from adapt.serving.adapters import Served, ServedAdapters
from adapt.serving.admission import Limits
from adapt.serving.app import create_app
from adapt.serving.chat_worker import Choosing, Delta, Question, Talker
from adapt.serving.web import Token
from adapt.serving.worker import Worker

KIND = "qwen2_5_vl"
QUESTIONS = ["what is it?", "how many are there?", "is there a circle?", "colour?"]


def uri(image: Image.Image) -> str:
    content = BytesIO()
    image.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def user(question: str, *images: Image.Image) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": uri(image)}} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


@pytest.fixture(scope="module")
def models() -> dict[str, ChatModel]:
    torch.manual_seed(0)
    backbone = tiny_natives.backbone(KIND)
    made: dict[str, ChatModel] = {name: adapt.wrap(backbone, lora("decoder")).eval() for name in ("first", "second")}
    for model in made.values():
        perturb(model)
    return made


@pytest.fixture
def served(models: dict[str, ChatModel], tmp_path: Path) -> ServedAdapters:
    paths = [str(model.save(tmp_path / f"{name}.safetensors")) for name, model in models.items()]
    return ServedAdapters(paths, backbone=tiny_natives.backbone(KIND))


@pytest.fixture
def client(served: ServedAdapters) -> Iterator[Callable[..., TestClient]]:
    """A client of an application with the limits given; closed behind the test."""
    clients: list[TestClient] = []

    def start(**limits: Any) -> TestClient:
        clients.append(TestClient(create_app(served, Limits(**limits)), raise_server_exceptions=False))
        return clients[-1].__enter__()

    yield start
    for each in clients:
        each.__exit__(None, None, None)


def as_openai(served: ServedAdapters, ask: Callable[[openai.AsyncOpenAI], Any], **limits: Any) -> Any:
    """What `ask` returns with a client of OpenAI's library."""

    async def run() -> Any:
        transport = httpx.ASGITransport(create_app(served, Limits(**limits)), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport) as http:
            return await ask(
                openai.AsyncOpenAI(base_url="http://local/v1", api_key="-", max_retries=0, http_client=http)
            )

    return asyncio.run(run())


def post(client: TestClient, *messages: dict[str, Any], **settings: Any) -> Any:
    asked = {"model": "first", "messages": list(messages), "max_tokens": 6} | settings
    return client.post("/v1/chat/completions", json=asked)


def test_what_a_client_sends_that_means_nothing_is_taken(client: Callable[..., TestClient]) -> None:
    """Nulls at any depth, a conversation that begins with an answer, and a temperature that is nearly 0."""
    said = {"role": "assistant", "content": "hello.", "tool_calls": None, "audio": None}
    sent = client()
    first = post(sent, said, user("what?"), temperature=1e-300)
    assert first.status_code == 200, first.text
    assert first.json()["choices"] == post(sent, said, user("what?")).json()["choices"]


def test_many_short_turns_are_counted_at_once(client: Callable[..., TestClient]) -> None:
    """The place of each answer is looked for in training alone, as that takes a text for every turn."""
    turns = [{"role": role, "content": "a"} for _ in range(300) for role in ("user", "assistant")]
    sent, rendered = client(), list[int]()
    backbone = tiny_natives.backbone(KIND)
    usual = type(backbone).render
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(backbone), "render", lambda self, *args: rendered.append(1) or usual(self, *args))
        answer = post(sent, *turns, user("what?"))
    assert "tokens" in answer.json()["error"]["message"]
    assert len(rendered) == 1


def test_limits_count_the_beginning_of_the_answer(client: Callable[..., TestClient]) -> None:
    usage = post(client(tokens=60), user("what is it?", pictures()[0]), max_tokens=None).json()["usage"]
    assert usage["total_tokens"] == 60


def test_errors_before_a_handler_have_the_same_form(client: Callable[..., TestClient], served: ServedAdapters) -> None:
    large = post(client(body_bytes=100_000), user("a" * 200_000))
    assert (large.status_code, set(large.json())) == (413, {"error"})
    with TestClient(create_app(served, tokens=[Token("sesame" * 4)])) as guarded:
        assert guarded.get("/v1/models").json()["error"]["message"].startswith("the token is missing or wrong")
        assert guarded.get("/chat").status_code == 200


def test_openais_client_gets_what_the_model_says(served: ServedAdapters, models: dict[str, ChatModel]) -> None:
    """About images, in turns, from the adapter that it names; at once and as a stream."""
    one, two, *_ = pictures()
    messages = [
        {"role": "system", "content": "be brief."},
        user("what is it?", one),
        {"role": "assistant", "content": "a dog."},
        user("and this?", two),
    ]
    chat = adapt.chats.Chat((adapt.chats.Turn("system", ("be brief.",)), *Chat.about("what is it?", "a dog.").turns))
    chat = Chat((*chat.turns, *Chat.about("and this?").turns))

    async def ask(client: openai.AsyncOpenAI) -> Any:
        assert [model.id async for model in client.models.list()] == ["first", "second"]
        assert (await client.models.retrieve("second")).id == "second"
        whole, pieces = {}, {}
        for name in models:
            asked: dict[str, Any] = {"model": name, "messages": messages, "max_tokens": 7}
            whole[name] = await client.chat.completions.create(**asked)
            stream = await client.chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}, seed=None
            )
            pieces[name] = [piece async for piece in stream]
        return whole, pieces

    whole, pieces = as_openai(served, ask)
    for name, model in models.items():
        expected = model.chat(chat, [one, two], max_new_tokens=7)
        tokens = int(model.backbone.rows([chat], [[one, two]], asks=True).lengths)
        [choice], usage = whole[name].choices, whole[name].usage
        assert choice.message.content == expected.text
        assert choice.finish_reason == ("length" if expected.tokens == 7 else "stop")
        assert (usage.prompt_tokens, usage.completion_tokens) == (tokens, expected.tokens)
        *said, last, used = pieces[name]
        assert "".join(piece.choices[0].delta.content for piece in said) == expected.text
        assert (last.choices[0].finish_reason, used.usage) == (choice.finish_reason, usage)
    assert whole["first"].choices[0].message.content != whole["second"].choices[0].message.content


def test_boxes_in_an_answer_about_one_picture_are_those_of_predict(
    client: Callable[..., TestClient], models: dict[str, ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    said, (one, two, *_), sent = '{"bbox_2d": [3, 4, 20, 12], "label": "dog"}', pictures(), client()
    tokenizer = type(models["first"].backbone.tokenizer)
    monkeypatch.setattr(tokenizer, "decode", lambda self, tokens, **how: said)
    monkeypatch.setattr(tokenizer, "batch_decode", lambda self, rows, **how: [said for _ in rows])
    [expected] = models["first"].predict([one], question="where is the dog?")
    assert expected.boxes
    told = [box.plain() for box in expected.boxes]
    [choice] = post(sent, user("where is the dog?", one)).json()["choices"]
    assert choice["message"]["content"] == said
    assert choice["message"]["boxes"] == [box | {"probability": None} for box in told]
    lines = post(sent, user("where is the dog?", one), stream=True).text.split("\n\n")
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    assert [delta["boxes"] for delta in deltas if "boxes" in delta] == [told]
    [choice] = post(sent, user("where is the dog?", one, two)).json()["choices"]  # of which one?
    assert choice["message"]["boxes"] is None


def test_eight_clients_at_once_get_the_answers_of_one(served: ServedAdapters) -> None:
    asked = [(name, question, image) for name in ("first", "second") for question, image in zip(QUESTIONS, pictures())]

    async def ask(client: openai.AsyncOpenAI) -> Any:
        def answer(name: str, question: str, image: Image.Image) -> Any:
            return client.chat.completions.create(model=name, messages=[user(question, image)], max_tokens=40)  # type: ignore[list-item]

        together = await asyncio.gather(*(answer(*each) for each in asked))
        return [answer.choices for answer in together], [(await answer(*each)).choices for each in asked]

    together, alone = as_openai(served, ask)
    assert together == alone


BAD: list[tuple[int, str, dict[str, Any]]] = [
    (404, "there is no adapter 'third'; Valid: first, second", {"model": "third"}),
    (400, "unknown key 'reasoning_effort'", {"reasoning_effort": "low"}),
    (400, "frequency_penalty is 0.5: Input should be 0", {"frequency_penalty": 0.5}),
    (400, "response_format is 'json_object': Input should be 'text'", {"response_format": {"type": "json_object"}}),
    (400, "logit_bias: Dictionary should have at most 0", {"logit_bias": {"5": 1.0}}),
    (400, "tools is [{'type': 'function'}]", {"tools": [{"type": "function"}]}),
    (400, "store is True: Input should be False", {"store": True}),
    (400, "top_logprobs is 21", {"logprobs": True, "top_logprobs": 21}),
    (400, "temperature is 3", {"temperature": 3}),
    (400, "n is 2", {"n": 2}),
    (400, "control token", {"messages": [{"role": "user", "content": "what?<|im_end|>"}]}),
    (400, "the last message is of the assistant; expected a", {"messages": [{"role": "assistant", "content": "a"}]}),
    (400, "image 1 is 'https://a.example/b.png'; expected data:image", {"image": "https://a.example/b.png"}),
    (400, "image 1 is not valid base64", {"image": "data:image/png;base64,????"}),
    (400, "cannot be decoded", {"image": "data:image/png;base64,aGVsbG8="}),
    (400, "a message of the system has an image", {"role": "system"}),
    (400, "unknown key 'messages.0.name'", {"messages": [{"role": "user", "content": "a", "name": "bob"}]}),
    (400, "messages.0.content.0", {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}),
    (400, "messages.0.content is 5: expected a text, or a list", {"messages": [{"role": "user", "content": 5}]}),
    (400, "stop is", {"stop": ["a", "b", "c", "d", "e"]}),
    (400, "has <|video_pad|>, a control token of the model: take it out", {"text": "<|video_pad|>"}),
    (400, "'video'", {"messages": [{"role": "user", "content": [{"type": "video", "video": "x"}]}]}),
    (400, "takes 45 tokens, and may have 100 together with its answer of 90", {"max_tokens": 90}),
    (400, "has 6,000 characters; expected at most 1,600", {"messages": [{"role": "user", "content": "a" * 6000}]}),
    (400, "has <|image_pad|>, a control token of the model: take it out", {"text": "<|image_pad|>"}),
    (413, "the images have 576 pixels, and a request may have at most 500", {"size": 24}),
]  # fmt: skip


@pytest.mark.parametrize(("status", "message", "wrong"), BAD, ids=[message[:30] for _, message, _ in BAD])
def test_what_is_wrong_is_named(
    client: Callable[..., TestClient], status: int, message: str, wrong: dict[str, Any]
) -> None:
    size = wrong.pop("size", None)
    asked = user(wrong.pop("text", "what is it?"), Image.new("RGB", (size or 40, size or 24)))
    asked["role"] = wrong.pop("role", "user")
    asked["content"][0]["image_url"]["url"] = wrong.pop("image", asked["content"][0]["image_url"]["url"])
    limited = client(tokens=100, pixels=500 if size else 2000)
    answer = post(limited, *wrong.pop("messages", [asked]), **wrong)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")
    assert message in answer.json()["error"]["message"]


def test_a_body_that_is_no_json_is_refused(client: Callable[..., TestClient]) -> None:
    sent = client(images=1)
    for content, kind, status in ((b"{", "application/json", 400), (b"a=b", "text/plain", 415)):
        answer = sent.post("/v1/chat/completions", content=content, headers={"content-type": kind})
        assert answer.status_code == status
        assert set(answer.json()) == {"error"}
    assert post(sent, user("which?", *pictures()[:2])).status_code == 400
    assert sent.get("/v1/models/nobody").status_code == 404


def test_an_answer_ends_before_a_stop_which_no_piece_shows(
    served: ServedAdapters, models: dict[str, ChatModel]
) -> None:
    image = pictures()[0]
    text = models["first"].answer(image, "what is it?", max_new_tokens=30).text
    stop = text[len(text) // 2 :][:3]

    async def ask(client: openai.AsyncOpenAI) -> list[str]:
        stream = await client.chat.completions.create(
            model="first", messages=[user("what is it?", image)], max_tokens=30, stop=["never", stop], stream=True
        )  # type: ignore[call-overload]
        return [piece.choices[0].delta.content or "" async for piece in stream]

    pieces = as_openai(served, ask)
    assert "".join(pieces) == text[: text.index(stop)].rstrip()
    assert len([piece for piece in pieces if piece]) > 2


def test_tokens_may_be_drawn(client: Callable[..., TestClient]) -> None:
    sent = client()
    drawn = {post(sent, user("what?"), temperature=2.0).json()["choices"][0]["message"]["content"] for _ in range(4)}
    assert len(drawn) > 1
    narrow = {
        post(sent, user("what?"), temperature=2.0, top_p=1e-6).json()["choices"][0]["message"]["content"]
        for _ in range(3)
    }
    assert narrow == {post(sent, user("what?")).json()["choices"][0]["message"]["content"]}


DEFAULTS: dict[str, Any] = {
    "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "response_format": {"type": "text"},
    "tools": [], "tool_choice": "auto", "store": False, "user": "me", "top_p": 1, "stop": None, "logprobs": False,
    "top_logprobs": None, "seed": 3, "reasoning_effort": None, "stream_options": None,
}  # fmt: skip


def test_what_openais_clients_send_by_default_changes_nothing(client: Callable[..., TestClient]) -> None:
    sent = client()
    plain, told = post(sent, user("what?")), post(sent, user("what?"), **DEFAULTS)
    assert told.status_code == 200, told.text
    assert told.json()["choices"] == plain.json()["choices"]
    assert plain.json()["choices"][0]["logprobs"] is None


def test_a_seed_draws_the_same_answer_also_beside_others(served: ServedAdapters) -> None:
    """Others are drawn from other seeds, at another temperature, and with the most probable tokens."""

    async def ask(client: openai.AsyncOpenAI) -> Any:
        async def answer(seed: int | None, temperature: float) -> str:
            drawn = await client.chat.completions.create(
                model="first", messages=[{"role": "user", "content": "what?"}], max_tokens=12, seed=seed,
                temperature=temperature,
            )  # fmt: skip
            return drawn.choices[0].message.content or ""

        alone = [await answer(seed, 1.5) for seed in (1, 2, 1)]
        others = answer(3, 0.7), answer(None, 0), answer(None, 2)
        return [*alone, *(await asyncio.gather(answer(1, 1.5), *others))]

    first, second, again, together, *_ = as_openai(served, ask)
    assert first == again == together
    assert first != second


def test_draws_have_the_probabilities_of_the_model(models: dict[str, ChatModel]) -> None:
    """Ten thousand first tokens at a temperature, in the top share of them."""
    asked = question(models["first"], "what?", 1, lambda delta: None, temperature=2.0, top_p=0.85, seed=0)
    answer, logits = chat_worker._Answer(asked), torch.tensor([2.0, 1.0, 0.0, -1.0, -9.0])
    drawn = torch.stack([answer.scores(logits).argmax() for _ in range(10_000)]).bincount(minlength=5) / 10_000
    expected = torch.tensor([1.0, 0.5, 0.0, -0.5]).softmax(0)
    kept = expected[:3] / expected[:3].sum()  # the first two have 0.73 of all, the first three 0.896
    assert drawn[:3].tolist() == pytest.approx(kept.tolist(), abs=0.02)
    assert drawn[3:].sum() == 0


def test_tokens_are_told_with_their_probabilities(served: ServedAdapters, models: dict[str, ChatModel]) -> None:
    """At once and in a stream: the sum is that of the answer, and the tokens are its words; a stop cuts both."""
    image, model = pictures()[0], models["first"]

    async def ask(client: openai.AsyncOpenAI) -> Any:
        asked: dict[str, Any] = {"model": "first", "messages": [user("what is it?", image)], "logprobs": True}
        whole = await client.chat.completions.create(**asked, max_tokens=9, top_logprobs=3)
        stream = await client.chat.completions.create(**asked, max_tokens=9, top_logprobs=3, stream=True)
        pieces = [piece.choices[0] async for piece in stream]
        stop = (whole.choices[0].message.content or "")[-3:]
        return whole.choices[0], pieces, (await client.chat.completions.create(**asked, max_tokens=9, stop=stop))

    whole, pieces, cut = as_openai(served, ask)
    tokens = whole.logprobs.content
    assert "".join(token.token for token in tokens).strip() == whole.message.content
    assert [token for piece in pieces if piece.logprobs for token in piece.logprobs.content] == tokens
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob  # the most probable one is taken
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    expected = model.generate([[image]], ["what is it?"], max_new_tokens=9)[0]
    mean = sum(token.logprob for token in tokens) / expected.tokens
    assert math.exp(mean) == pytest.approx(expected.probability, rel=1e-3)
    said = "".join(token.token for token in cut.choices[0].logprobs.content)
    assert said.strip().startswith(cut.choices[0].message.content)
    assert len(cut.choices[0].logprobs.content) < len(tokens)
    assert cut.choices[0].logprobs.content[0].top_logprobs == []


@pytest.mark.full
def test_what_takes_too_long_ends(client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a status before the answer begins, and as an event in a stream that has begun."""
    sent, held = client(seconds=0.5), hold(monkeypatch, OngoingAnswers, "go_on")
    answer = post(sent, user("what?"))
    assert (answer.status_code, answer.json()["error"]["message"]) == (504, "there was no answer within 0.5 seconds")
    assert answer.json()["error"]["type"] == "server_error"
    assert held.begun.wait(30)  # the request's time began before the model's did
    time.sleep(0.5)
    assert sent.get("/healthz").status_code == 503
    held.go.set()

    usual = chat_worker._Answer.add

    def slow(self: Any, token: int) -> None:
        usual(self, token)
        time.sleep(0.2)

    monkeypatch.setattr(chat_worker._Answer, "add", slow)
    events = post(client(seconds=3.0), user("what?"), stream=True, max_tokens=50).text.split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"]["message"] == "there was no answer within 3 seconds"


def test_a_failure_of_the_model_is_told_and_the_next_question_is_answered(
    client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = client()
    with monkeypatch.context() as patch:
        patch.setattr(OngoingAnswers, "go_on", lambda self, ended: 1 / 0)
        failed = post(sent, user("what?"))
    assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
    assert "log" in failed.json()["error"]["message"]
    assert post(sent, user("what?")).status_code == 200


def test_classifiers_and_those_that_chat_are_told_apart(served: ServedAdapters, open_clip: adapt.Backbone) -> None:
    classifier = adapt.wrap(open_clip, ZeroShot(), ("cat", "dog")).eval()
    served.now = Served({**served.now.models, "clip": classifier}, "clip")
    with TestClient(create_app(served)) as sent:
        assert [model["id"] for model in sent.get("/v1/models").json()["data"]] == ["first", "second", "clip"]
        assert {card["name"]: card["chats"] for card in sent.get("/adapters").json()} == {
            "first": True, "second": True, "clip": False,
        }  # fmt: skip
        refused = post(sent, user("what?"), model="clip").json()["error"]["message"]
        assert refused == (
            "clip does not answer in words: send images to /predict, or images and texts to /v1/embeddings"
        )
        refused = sent.post("/v1/embeddings", json={"model": "first", "input": "a cat"}).json()["error"]["message"]
        assert refused == "first answers in words, and embeds nothing: send conversations to /v1/chat/completions"
        content = BytesIO()
        pictures()[0].save(content, "PNG")
        asked = sent.post("/predict", files=[("images", ("a.png", content.getvalue()))], data={"adapters": "first"})
        assert asked.status_code == 422
        assert "first answers in words: send conversations" in asked.json()["detail"]
        post(sent, user("what?"))
        assert 'adapt_tokens_total{adapter="first"} 6.0' in sent.get("/metrics").text


def test_a_native_model_with_classes_is_asked_for_both(tmp_path: Path) -> None:
    """`/predict` has the probabilities that `predict` gives, and conversations are answered as before."""
    model: ChatModel = adapt.wrap(tiny_natives.backbone(KIND), lora("decoder"), ("cat", "dog")).eval()
    perturb(model)
    path = model.save(tmp_path / "pets.safetensors")
    served = ServedAdapters([str(path)], backbone=tiny_natives.backbone(KIND))
    content = BytesIO()
    pictures()[0].save(content, "PNG")
    with TestClient(create_app(served)) as sent:
        answered = sent.post("/predict", files=[("images", ("a.png", content.getvalue()))]).json()
        [card] = sent.get("/adapters").json()
        assert post(sent, user("what?"), model="pets").status_code == 200
    [answer] = answered["results"][0]["answers"]
    [expected] = model.predict(pictures()[0])
    assert (answer["class"], answer["label"]) == (expected.class_name, expected.label)
    assert answer["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert (card["classes"], card["chats"]) == (["cat", "dog"], True)


def test_a_slow_native_model_holds_up_no_classifier(
    open_clip: adapt.Backbone, models: dict[str, ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its passes are of eight images at most, in a thread of their own, and each pass counts by itself as stuck."""
    native = models["first"].with_classes(("cat", "dog"))
    classifier = adapt.wrap(open_clip, ZeroShot(), ("cat", "dog")).eval()
    served = ServedAdapters.__new__(ServedAdapters)
    served.now = Served({"native": native, "clip": classifier}, "clip")
    usual, begun, go, sizes = ChatModel._predictions, threading.Event(), threading.Event(), list[int]()

    def slow(self: ChatModel, pixels: Any, wanted: Any) -> Any:
        sizes.append(len(pixels))
        begun.set()
        assert go.wait(30)
        return usual(self, pixels, wanted)

    monkeypatch.setattr(ChatModel, "_predictions", slow)
    content = BytesIO()
    pictures()[0].save(content, "PNG")
    files = [("images", (f"{number}.png", content.getvalue())) for number in range(9)]
    with TestClient(create_app(served)) as sent, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sent.post, "/predict", files=files, data={"adapters": "native"})
        assert begun.wait(30)
        assert sent.post("/predict", files=files[:1]).json()["results"][0]["answers"][0]["adapter"] == "clip"
        go.set()
        assert len(waiting.result().json()["results"]) == 9
    assert sizes == [8, 1]


def test_an_image_of_too_many_tokens_is_refused_as_in_a_conversation(models: dict[str, ChatModel]) -> None:
    served = ServedAdapters.__new__(ServedAdapters)
    served.now = Served({"native": models["first"].with_classes(("cat", "dog"))}, "native")
    content = BytesIO()
    pictures()[0].save(content, "PNG")
    with TestClient(create_app(served, Limits(tokens=20))) as sent:
        refused = sent.post("/predict", files=[("images", ("a.png", content.getvalue()))])
    assert refused.status_code == 422
    assert re.fullmatch(r"a\.png takes \d+ tokens, and may have 20: send a smaller image", refused.json()["detail"])


def test_large_pictures_wait_as_the_model_reads_them(
    client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = user("what is it?", Image.effect_noise((300, 200), 90).convert("RGB"), pictures()[1])
    expected = post(client(), asked).json()["choices"]
    waited: list[Question] = []
    monkeypatch.setattr(native_vlm, "_LARGE", 24 * 24)
    monkeypatch.setattr(Talker, "ask", lambda self, question: (waited.append(question), Worker.ask(self, question)))
    assert post(client(), asked).json()["choices"] == expected
    [question] = waited
    assert [(type(image).__name__, image.size) for image in question.images] == [
        ("PreparedImage", (300, 200)),
        ("Image", (24, 24)),
    ]


def test_chats_shut_no_classification_out(
    open_clip: adapt.Backbone, models: dict[str, ChatModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = adapt.wrap(open_clip, ZeroShot(), ("cat", "dog")).eval()
    served = ServedAdapters.__new__(ServedAdapters)
    served.now = Served({"first": models["first"], "clip": classifier}, "clip")
    held = hold(monkeypatch, Talker, "_begin")
    content = BytesIO()
    pictures()[0].save(content, "PNG")
    with TestClient(create_app(served, Limits(requests=1))) as sent, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, sent, user("what?"))
        assert held.begun.wait(30)
        refused = post(sent, user("what?"))
        classified = sent.post("/predict", files=[("images", ("a.png", content.getvalue()))])
        held.go.set()
    assert (waiting.result().status_code, refused.status_code, classified.status_code) == (200, 503, 200)
    assert refused.json()["error"]["message"] == "chats are answered 1 at a time: try again in a second"


def question(model: ChatModel, words: str, most: int, on_delta: Callable[[Any], None], **more: Any) -> Question:
    images = [pictures()[0]]
    return Question(model, Chat.about(words), images, most, (), Choosing(**more), on_delta)


def test_a_long_answer_does_not_hold_up_a_short_one(models: dict[str, ChatModel]) -> None:
    """Which comes later, for another adapter: it ends while the long one is at its second turn or third."""
    talker, begun, ended = Talker(), list[int](), list[str]()
    done, first = threading.Event(), threading.Event()

    def long(delta: Delta) -> None:
        begun.append(delta.tokens)
        first.set()
        if delta.finish:
            ended.append("long")
            done.set()

    def short(delta: Delta) -> None:
        if delta.finish:
            ended.append(f"short after {begun[-1] // chat_worker._TURN} turns")

    talker.ask(question(models["first"], "what is it?", 400, long))
    assert first.wait(30)
    at = begun[-1]
    talker.ask(question(models["second"], "how many?", 5, short))
    assert done.wait(60)
    talker.close(30)
    assert ended[-1] == "long"
    turns = int(ended[0].split()[2])
    assert turns <= at // chat_worker._TURN + 2


@pytest.mark.full
def test_many_long_answers_do_not_hold_up_a_short_one(models: dict[str, ChatModel]) -> None:
    talker, ended = Talker(), list[str]()
    done = threading.Event()

    def hear(name: str) -> Callable[[Delta], None]:
        def heard(delta: Delta) -> None:
            if delta.finish:
                ended.append(name)
                if len(ended) == 34:
                    done.set()

        return heard

    with talker._changed:
        for number in range(33):
            name = "short" if number == 32 else "long"
            model = models["second" if number == 32 else "first"]
            talker._queue.append(question(model, "what?", 3 if name == "short" else 100, hear(name)))
        talker._changed.notify()
    ended.append("begun")
    assert done.wait(120)
    talker.close(30)
    assert ended[1] == "short"


def test_large_pictures_share_no_pass(models: dict[str, ChatModel]) -> None:
    talker = Talker()
    with talker._changed:
        for side in (2000, 2000, 2000, 24):
            asked = question(models["first"], "what?", 1, lambda delta: None)
            asked.images = [Image.new("L", (side, side))]
            talker._queue.append(asked)
        assert [len(talker._taken()) for _ in range(2)] == [2, 2]
    talker.close(30)


def test_what_nobody_waits_for_is_not_generated(models: dict[str, ChatModel]) -> None:
    class Counted(Talker):
        steps = 0

        def _begin(self) -> None:
            self.steps += 1
            super()._begin()

    talker = Counted()
    asked = question(models["first"], "what is it?", 400, lambda delta: None)

    def hear(delta: Delta) -> None:
        asked.given_up = delta.tokens >= 3

    asked.on_delta = hear
    talker.ask(asked)
    gone = question(models["first"], "what is it?", 400, lambda delta: None)
    gone.given_up = True
    talker.ask(gone)
    talker.close(30)
    assert len(talker) == 0
    assert 3 <= talker.steps < 10


def test_what_the_model_refuses_fails_alone(models: dict[str, ChatModel]) -> None:
    """A conversation that is too long, beside others in one pass."""
    heard: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    words = ["what is it?", "why " * 1500, "how many?"]
    talker = Talker()
    with talker._changed:  # they come at once
        for number, each in enumerate(words):
            talker._queue.append(question(models["first"], each, 3, heard[number].append))
        talker._changed.notify()
    talker.close(30)
    assert [type(each[-1]).__name__ for each in heard.values()] == ["Delta", "AdaptError", "Delta"]
    assert heard[0][-1].finish


def test_pieces_are_the_answers_words_also_where_the_tokenizer_joins_them() -> None:
    """It takes the space before a full stop away, and a character may need several tokens."""
    bundled = adapt.load_backbone("mini-vlm", "cpu")
    model: Any = adapt.wrap(bundled, ZeroShot()).eval()
    tokenizer = model.backbone.tokenizer
    heard: list[Any] = []
    answer = chat_worker._Answer(question(model, "what?", 20, heard.append))
    ids = tokenizer("it is a dolphin . two , or three ?", add_special_tokens=False)["input_ids"]
    for token in [*ids, model.ends[0]]:
        answer.add(token)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert "dolphin." in text
    assert "".join(said.text for said in heard) == text.strip()
    assert len(heard) > 4
    assert (heard[-1].finish, heard[-1].tokens, answer.ended) == ("stop", len(ids) + 1, True)

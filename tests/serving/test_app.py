"""The interface says what `predict` says, keeps its limits, changes under load, and calls nobody."""

from __future__ import annotations

import asyncio
import base64
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving.asking import hold, scope, upload
from starlette.testclient import TestClient

import adapt
from adapt import AdaptedModel
from adapt.data import load
from adapt.methods import AnoVL, PatchMemory, UniQA
from adapt.models import many
from adapt.models.many import SideBySide
from adapt.models.prediction import Prediction
from adapt.models.sets import Sets
from adapt.serving.adapters import ServedAdapters
from adapt.serving.app import create_app

Serve = Callable[..., TestClient]
FORM = {"content-type": "multipart/form-data; boundary=b"}
UPLOAD = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\nx'


def same(answer: dict[str, Any], expected: Prediction) -> bool:
    found = [(each["class"], each["probability"]) for each in answer["top"]]
    return (answer["class"], answer["label"]) == (expected.class_name, expected.label) and all(
        name == own and abs(value - probability) < 1e-5
        for (name, value), (own, probability) in zip(found, expected.top, strict=True)
    )


def test_answers_are_those_of_predict(serve: Serve, models: dict[str, AdaptedModel], images: list[bytes]) -> None:
    client = serve()
    uploaded = upload(client, images, adapters=["coop", "lora"], top_k=2).json()["results"]
    coded = [base64.b64encode(image).decode() for image in images]
    body = {"images": coded, "adapters": ["coop", "lora"], "top_k": 2}
    in_json = client.post("/predict", json=body).json()["results"]
    expected = adapt.predict_many([models["coop"], models["lora"]], images, top_k=2)
    for number, rows in enumerate(expected):
        assert uploaded[number]["image"] == f"{number}.png"
        for results in (uploaded, in_json):
            assert [each["adapter"] for each in results[number]["answers"]] == ["coop", "lora"]
            assert all(map(same, results[number]["answers"], rows))
    (first,) = upload(client, images[:1], threshold=1).json()["results"]
    assert [(each["adapter"], each["class"], each["label"]) for each in first["answers"]] == [("coop", "none", None)]


def test_one_pass_over_the_image_serves_those_that_share_it(
    serve: Serve, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapt.engine import vision

    client, blocks, run_block = serve(), list[int](), vision.run_block
    client.post("/adapters", json={"path": "zero_shot.safetensors"})

    def counted(block: Any, index: int, *args: Any, **kwargs: Any) -> Any:
        blocks.append(index)
        return run_block(block, index, *args, **kwargs)

    monkeypatch.setattr(vision, "run_block", counted)
    assert upload(client, images, adapters=["coop", "zero_shot"]).status_code == 200
    assert sorted(blocks) == [0, 1, 2]


@pytest.mark.full
def test_many_clients_while_adapters_come_and_go(
    serve: Serve, models: dict[str, AdaptedModel], images: list[bytes]
) -> None:
    client, done, count = serve(), threading.Event(), [0]
    expected = {name: model.predict(images) for name, model in models.items()}

    def switch() -> None:
        while not done.is_set():
            for status, call in (
                (201, lambda: client.post("/adapters", json={"path": "zero_shot.safetensors"})),
                (200, lambda: client.put("/adapters/default", json={"name": "zero_shot"})),
                (200, lambda: client.put("/adapters/default", json={"name": "lora"})),
                (200, lambda: client.delete("/adapters/zero_shot")),
            ):
                assert call().status_code == status
            count[0] += 1

    def ask(number: int) -> bool:
        at = number % len(images)
        (result,) = upload(client, [images[at]]).json()["results"]
        (answer,) = result["answers"]
        return same(answer, expected[answer["adapter"]][at])

    switching = threading.Thread(target=switch)
    switching.start()
    with ThreadPoolExecutor(8) as pool:
        right = list(pool.map(ask, range(120)))
    done.set()
    switching.join()
    assert all(right)
    assert count[0]


def test_an_adapter_that_remembers_begins_anew_for_each_request(
    serve: Serve, models: dict[str, AdaptedModel], images: list[bytes]
) -> None:
    client = serve()
    client.post("/adapters", json={"path": "tda.safetensors"})
    for _ in range(2):
        found = [each["answers"][0] for each in upload(client, images, adapters="tda").json()["results"]]
        assert all(map(same, found, models["tda"].predict(images)))


def test_adapters_are_listed_loaded_switched_and_unloaded(serve: Serve, served: ServedAdapters) -> None:
    client = serve()
    listed = client.get("/adapters").json()
    assert [(each["name"], each["method"], each["default"]) for each in listed] == [
        ("coop", "coop", True),
        ("lora", "lora", False),
    ]
    assert listed[0]["classes"] == ["goldfish", "red panda", "sea cucumber"]
    loaded = client.post("/adapters", json={"path": "zero_shot.safetensors", "name": "plain"})
    assert (loaded.status_code, [each["name"] for each in loaded.json()]) == (201, ["coop", "lora", "plain"])
    assert client.put("/adapters/default", json={"name": "plain"}).json()[2]["default"]
    assert [each["name"] for each in client.delete("/adapters/coop").json()] == ["lora", "plain"]
    assert client.get("/healthz").json() == {"status": "ok", "adapters": 2, "waiting": 0}
    assert served.now.default == "plain"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/adapters", {"path": "../outside.safetensors"}, 403, "is not in the folder"),
        ("POST", "/adapters", {"path": "/etc/passwd"}, 403, "is not in the folder"),
        ("POST", "/adapters", {"path": "none.safetensors"}, 404, "there is no adapter 'none.safetensors'"),
        ("POST", "/adapters", {"path": "coop.safetensors"}, 422, "the name coop is given twice"),
        ("POST", "/adapters", {"path": "tda.safetensors", "name": "a/b"}, 422, "cannot be called 'a/b'"),
        ("POST", "/adapters", {"path": "."}, 422, "there is no adapter in the folder"),
        ("POST", "/adapters", {"name": "a"}, 422, "body.path: Field required"),
        ("PUT", "/adapters/default", {"name": "copo"}, 404, "did you mean 'coop'"),
        ("DELETE", "/adapters/copo", None, 404, "there is no adapter 'copo'"),
        ("DELETE", "/adapters/coop", None, 422, "coop is the default"),
    ],
)
def test_changes_that_are_refused(serve: Serve, method: str, path: str, body: Any, status: int, words: str) -> None:
    client = serve()
    answer = client.request(method, path, json=body)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
    assert len(client.get("/adapters").json()) == 2


def test_a_link_out_of_the_folder_is_not_followed(serve: Serve, folder: Path) -> None:
    (folder / "link.safetensors").symlink_to(folder.parent / "outside.safetensors")
    assert serve().post("/adapters", json={"path": "link.safetensors"}).status_code == 403


def test_a_backbone_is_not_fetched_for_a_request(
    folder: Path, open_clip: adapt.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a request loads, the backbone is there already; at the start it may come from the hub."""
    asked: list[str] = []

    def fetched(spec: str, *how: Any) -> adapt.Backbone:
        asked.append(spec)
        return open_clip if spec != "mini-clip" else adapt.load_backbone(spec, *how)

    monkeypatch.setattr("adapt.formats.rebuild.load_backbone", fetched)
    for name, spec in {"given": "hf:org/one", "same": "hf:org/one", "other": "hf:org/two", "long": "x" * 9999}.items():
        monkeypatch.setattr(open_clip, "name", spec)
        adapt.wrap(open_clip, adapt.methods.ZeroShot(), ["cat", "dog"]).save(folder / f"{name}.safetensors")
    bundled = adapt.wrap(adapt.load_backbone("mini-clip"), adapt.methods.ZeroShot(), ["cat", "dog"])
    bundled.save(folder / "bundled.safetensors")
    (folder / "peft").mkdir()
    (folder / "peft/adapter_config.json").write_text("{}")
    with TestClient(create_app(ServedAdapters([f"{folder}/given.safetensors"], folder))) as client:
        answers = {
            name: client.post("/adapters", json={"path": name})
            for name in ("same.safetensors", "bundled.safetensors", "other.safetensors", "long.safetensors", "peft")
        }
    assert [each.status_code for each in answers.values()] == [201, 201, 403, 403, 403]
    assert "'other.safetensors' needs the backbone 'hf:org/two', which is not" in answers["other.safetensors"].text
    assert asked == ["hf:org/one", "mini-clip"]


def test_no_more_adapters_than_the_server_was_started_for(folder: Path, open_clip: adapt.Backbone) -> None:
    served = ServedAdapters([f"{folder}/coop.safetensors"], folder, open_clip, most=2)
    with TestClient(create_app(served)) as client:
        paths = ("lora.safetensors", "zero_shot.safetensors")
        added, refused = (client.post("/adapters", json={"path": path}) for path in paths)
        assert (added.status_code, refused.status_code) == (201, 409)
        assert refused.json()["detail"] == "2 adapters are loaded, which is the maximum: unload one of them first"
        client.delete("/adapters/lora")
        assert client.post("/adapters", json={"path": paths[1]}).status_code == 201


def test_a_path_with_a_sign_of_equality(
    folder: Path, open_clip: adapt.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder / "train.lr=0.01-seed-1"
    run.mkdir()
    (folder / "coop.safetensors").rename(run / "adapter.safetensors")
    (run / "recipe.yaml").touch()
    monkeypatch.chdir(folder)
    for given, name in ((str(run), run.name), (run.name, run.name), (f"one={run}", "one")):
        assert list(ServedAdapters([given], None, open_clip).now.models) == [name]
    with pytest.raises(adapt.AdaptError, match="none=1"):
        ServedAdapters([f"{folder}/none=1"], None, open_clip)


def test_without_a_folder_the_set_stays_as_it_is(folder: Path, open_clip: adapt.Backbone) -> None:
    served = ServedAdapters([f"one={folder}/coop.safetensors", f"{folder}/lora.safetensors"], None, open_clip)
    with TestClient(create_app(served)) as client:
        calls = [client.post("/adapters", json={"path": "tda.safetensors"}), client.delete("/adapters/lora")]
        calls.append(client.put("/adapters/default", json={"name": "lora"}))
        assert [each.status_code for each in calls] == [403] * 3
        assert "start it with --folder" in calls[0].json()["detail"]
        assert [each["name"] for each in client.get("/adapters").json()] == ["one", "lora"]


def test_adapters_are_loaded_again_where_their_files_have_changed(
    folder: Path, open_clip: adapt.Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = ServedAdapters([f"one={folder}/coop.safetensors", f"{folder}/lora.safetensors"], None, open_clip)
    with TestClient(create_app(served)) as client:
        before = served.now
        assert client.post("/reload").json() == {"reloaded": [], "unchanged": ["one", "lora"], "failed": {}}
        assert served.now is before
        new = adapt.wrap(open_clip, adapt.methods.ZeroShot(), ("moss", "fern")).save(tmp_path / "new.safetensors")
        new.replace(folder / "coop.safetensors")
        (folder / "lora.safetensors").write_bytes(b"no adapter")
        told = client.post("/reload").json()
        assert (told["reloaded"], told["unchanged"], list(told["failed"])) == (["one"], [], ["lora"])
        assert "lora.safetensors" in told["failed"]["lora"]
        assert "lora stays as it was" in caplog.text
        one, _ = client.get("/adapters").json()
        assert (one["classes"], one["default"]) == (["moss", "fern"], True)
        assert served.now.models["lora"] is before.models["lora"]
        (folder / "lora.safetensors").unlink()
        assert client.post("/reload").json()["failed"].keys() == {"lora"}
        assert client.post("/reload", headers={"origin": "http://evil.example"}).status_code == 403


def test_a_form_of_another_page_changes_nothing(serve: Serve) -> None:
    """What a browser sends elsewhere without asking first: bodies of plain text and forms, and of no type at all."""
    client, body = serve(), b'{"path": "tda.safetensors"}'
    for headers in ({"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {}):
        answer = client.post("/adapters", content=body, headers=headers)
        assert (answer.status_code, "content-type" in answer.request.headers) == (422, bool(headers))
    assert len(client.get("/adapters").json()) == 2


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"json": {"images": []}}, 422, "images"),
        ({"json": {"images": ["?"]}}, 422, "image 1 is not valid base64"),
        ({"json": {"images": [base64.b64encode(b"no picture").decode()]}}, 422, "image 'image 1' cannot be decoded"),
        ({"json": {"images": [""], "top_k": 0}}, 422, "top_k is 0"),
        ({"json": {"images": [""], "image": 1}}, 422, "unknown key 'image'; did you mean 'images'"),
        ({"json": {"images": [""], "adapters": ["copo"]}}, 404, "did you mean 'coop'"),
        ({"json": {"images": [""], "adapters": ["coop", "coop"]}}, 422, "named twice"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "the body is not valid JSON"),
        ({"content": b"x", "headers": {"content-type": "image/png"}}, 415, "expected application/json or multipart"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"--b\r\nbad[head: x\r\n\r\nx\r\n--b--\r\n", "headers": FORM}, 400, ""),
        ({"content": UPLOAD + b"\r\n--b-", "headers": FORM}, 400, "last boundary is missing or damaged"),
        ({"content": UPLOAD + b"\r\n--c--\r\n", "headers": FORM}, 400, "last boundary is missing or damaged"),
        ({"content": UPLOAD, "headers": FORM}, 400, "last boundary is missing or damaged"),
        ({"files": {"images": b"x"}, "data": {"threshold": "2"}}, 422, "threshold"),
        ({"files": {"image": b"x"}}, 422, "the form has a file called 'image'; expected files called images"),
        (
            {"data": {"images": "photo.png"}, "files": {"other": b""}},
            422,
            "images without a file; expected files called",
        ),
        ({"data": {"images": "x"}, "files": {"images": b"x"}}, 422, "images"),
        ({"files": [("images", b"x")] * 5}, 422, "5 images were sent; expected 1 to 4"),
    ],
)
def test_requests_that_are_refused(serve: Serve, body: dict[str, Any], status: int, words: str) -> None:
    answer = serve(images=4).post("/predict", **body)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text


@pytest.mark.parametrize(
    ("length", "parts"),
    [([], 5), ([(b"content-length", b"2001")], 0)],  # the fifth part is past the limit
)
def test_a_body_that_is_too_large_is_not_read(
    serve: Serve, images: list[bytes], length: list[tuple[bytes, bytes]], parts: int
) -> None:
    client, read, sent = serve(body_bytes=2000), list[int](), list[Any]()
    assert upload(client, images[:1]).status_code == 200

    async def receive() -> Any:
        read.append(500)
        return {"type": "http.request", "body": b"x" * 500, "more_body": len(read) < 1000}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(client.app(scope(*length), receive, send))
    assert (sent[0]["status"], len(read)) == (413, parts)
    assert b"larger than 2,000 bytes" in sent[1]["body"]


def test_a_client_that_leaves_while_it_sends_is_no_failure(serve: Serve, images: list[bytes]) -> None:
    client, parts = serve(), [b'{"images"']

    async def receive() -> Any:
        return (
            {"type": "http.request", "body": parts.pop(), "more_body": True} if parts else {"type": "http.disconnect"}
        )

    async def send(message: Any) -> None:
        raise AssertionError(f"nobody is there to be told {message}")

    asyncio.run(client.app(scope(), receive, send))
    told = client.get("/metrics").text
    assert 'adapt_requests_total{path="/predict",status="499"} 1.0' in told


def test_an_address_says_nothing_of_images(serve: Serve, images: list[bytes]) -> None:
    answer = serve().post("/predict?top_k=1", files={"images": images[0]})
    assert (answer.status_code, answer.json()["detail"][:45]) == (422, "the address has the parameter 'top_k': send i")


def test_a_model_that_takes_too_long(serve: Serve, images: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """504 for who waits too long, 503 at once for one too many, and the next are answered."""
    client, held = serve(seconds=2.0, requests=1), hold(monkeypatch, SideBySide, "predictions")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(upload, client, images[:1])
        assert held.begun.wait(30)
        second = upload(client, images[1:2])
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        assert (first.result().status_code, first.result().json()) == (
            504,
            {"detail": "there was no answer within 2 seconds"},
        )
    held.go.set()
    assert upload(client, images[:1]).status_code == 200


def test_what_was_given_up_while_it_was_read_is_not_computed(
    serve: Serve, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, held, passes = serve(seconds=2.0), hold(monkeypatch, many, "open_image"), list[int]()
    predictions = SideBySide.predictions

    def counted(together: Any, pixels: Any, wanted: Any) -> Any:
        passes.append(len(pixels))
        return predictions(together, pixels, wanted)

    monkeypatch.setattr(SideBySide, "predictions", counted)
    assert upload(client, images[:3]).status_code == 504
    held.go.set()
    assert upload(client, images[:1]).status_code == 200
    assert (passes, held.names) == ([1], ["0.png"] * 2)  # the second and third image were not begun with


def test_a_failure_of_the_model_is_told_and_the_next_is_answered(
    serve: Serve, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve()
    with monkeypatch.context() as broken:
        broken.setattr(SideBySide, "predictions", lambda *asked: 1 / 0)
        failed = upload(client, images[:1])
    assert (failed.status_code, failed.json()["detail"][:24]) == (500, "the server failed to ans")
    assert {"x-request-id", "x-content-type-options"} <= failed.headers.keys()
    assert upload(client, images[:1]).status_code == 200


def test_metrics(serve: Serve, images: list[bytes]) -> None:
    client = serve()
    upload(client, images[:3], adapters=["coop", "lora"])
    client.get("/nothing/here")
    text = client.get("/metrics").text
    for line in (
        'adapt_requests_total{path="/predict",status="200"} 1.0',
        'adapt_requests_total{path="other",status="404"} 1.0',
        'adapt_images_total{adapter="lora"} 3.0',
        "adapt_pass_images_sum 3.0",
        "adapt_waiting_requests 0.0",
    ):
        assert line in text


def test_the_page_stands_by_itself(serve: Serve) -> None:
    client = serve()
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"https?://|\bsrc=|@import|innerHTML|<link", page.text)
    assert '<input type="range" id="threshold" min="0" max="100" value="0">' in page.text
    assert [client.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]
    assert {"/predict", "/adapters", "/healthz"} <= client.get("/openapi.json").json()["paths"].keys()


def test_other_names_of_the_host_are_refused(served: ServedAdapters) -> None:
    with TestClient(create_app(served, hosts=["localhost"])) as client:
        assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 400
        assert client.get("/healthz", headers={"host": "localhost:8000"}).status_code == 200


def test_sets_with_a_guarantee(
    serve: Serve, models: dict[str, AdaptedModel], images: list[bytes], folder: Path
) -> None:
    model, client = models["coop"], serve()
    limits = Sets("aps", False, (tuple(number / 100 for number in range(1, 100)),), ((1,) * 99,), "")
    model.answers = replace(model.answers, sets=replace(limits, settings=model.settings_id))
    client.post("/adapters", json={"path": model.save(folder / "calibrated.safetensors").name})
    found = upload(client, images, adapters=["calibrated"], sets=0.9)
    assert found.status_code == 200, found.text
    expected = [list(each.set or ()) for each in model.predict(images, sets=0.9)]
    assert [row["answers"][0]["set"] for row in found.json()["results"]] == expected
    refused = upload(client, images[:1], adapters=["lora"], sets=0.9)
    assert refused.status_code in (400, 422)
    assert "the adapter has no calibrated sets" in refused.text
    assert upload(client, images[:1], sets=1).status_code == 422


def test_a_number_has_its_interval(serve: Serve, open_clip: adapt.Backbone, images: list[bytes], folder: Path) -> None:
    model, client = adapt.wrap(open_clip, UniQA(between=(-3.0, 40.0)), ["bad", "good"]), serve()
    sets = Sets("residual", False, ((1.25,) * 9,), ((1,) * 9,), model.settings_id)
    model.answers = replace(model.answers, sets=sets)
    client.post("/adapters", json={"path": model.save(folder / "graded.safetensors").name})
    found = upload(client, images, adapters=["graded"], sets=0.9).json()["results"]
    expected = [list(each.interval or ()) for each in model.predict(images, sets=0.9)]
    assert [row["answers"][0]["interval"] for row in found] == [pytest.approx(each, abs=1e-4) for each in expected]
    assert "interval" not in upload(client, images, adapters=["graded"]).json()["results"][0]["answers"][0]


def test_an_average_is_served_with_its_disagreement(
    folder: Path, models: dict[str, AdaptedModel], open_clip: adapt.Backbone, images: list[bytes]
) -> None:
    average = adapt.average([models["coop"], models["lora"], models["zero_shot"]])
    scores = tuple(number / 20 for number in range(16))
    crossed = Sets("lac", False, (scores,) * 3, ((1,) * 16,) * 3, average.settings_id)
    average.answers = replace(average.answers, sets=crossed)
    average.save(folder / "average.safetensors")
    served = ServedAdapters([f"mean={folder}/average.safetensors", f"{folder}/coop.safetensors"], None, open_clip)
    with TestClient(create_app(served)) as client:
        results = upload(client, images, adapters=["mean", "coop"]).json()["results"]
        held = upload(client, images, adapters=["mean"], sets=0.8).json()["results"]
    for result, expected in zip(results, average.predict(images), strict=True):
        mean, coop = result["answers"]
        assert same(mean, expected)
        assert mean["disagreement"]["share"] == expected.disagreement.share
        assert abs(mean["disagreement"]["nats"] - expected.disagreement.nats) < 1e-5
        assert "disagreement" not in coop
    assert max(each["answers"][0]["disagreement"]["nats"] for each in results) > 0.001
    members = [models[name].predict(images) for name in ("coop", "lora", "zero_shot")]
    for at, row in enumerate(held):  # a class is inside if its scores are above less than 0.8 of 48 + 1 others
        by_member = [dict(each[at].top) for each in members]
        below = {name: sum(score < 1 - each[name] for each in by_member for score in scores) for name in by_member[0]}
        inside = {name for name, count in below.items() if count < 0.8 * 49}
        assert set(row["answers"][0]["set"]) == inside
        assert 0 < len(inside) < len(below)


def test_maps_are_those_of_predict(serve: Serve, images: list[bytes], folder: Path, open_clip: adapt.Backbone) -> None:
    memory = adapt.wrap(open_clip, PatchMemory(), ["normal", "abnormal"])
    anovl = adapt.wrap(open_clip, AnoVL(), ["normal", "abnormal"])
    adapt.fit(memory, load("emoji-product").train[:3], progress=False)
    client, drawing = serve(), {"memory": memory, "anovl": anovl}
    for name, model in drawing.items():
        client.post("/adapters", json={"path": model.save(folder / f"{name}.safetensors").name})
    assert [card["maps"] for card in client.get("/adapters").json()] == [False, False, True, True]
    found = upload(client, images, adapters=["coop", "memory", "anovl"], maps=True)
    assert found.status_code == 200, found.text
    for place, (name, model) in enumerate(drawing.items(), 1):
        threshold = None if name == "anovl" else float(model.method.threshold(pixels=True))
        for row, expected in zip(found.json()["results"], model.predict(images, maps=True), strict=True):
            told = row["answers"][place]["map"]
            with Image.open(BytesIO(base64.b64decode(told["scores"]))) as picture:
                scores = told["offset"] + told["scale"] * np.asarray(picture)
            assert np.abs(scores - expected.map.scores.numpy()).max() < 1e-4
            assert (told["threshold"], told["highest"]) == pytest.approx((threshold, scores.max()), abs=1e-6)
            with Image.open(BytesIO(base64.b64decode(told["overlay"]))) as picture:
                assert (picture.format, picture.size) == ("PNG", scores.shape[::-1])
            assert row["answers"][place].get("p_value") == expected.p_value
            assert "map" not in row["answers"][0]
    assert "map" not in upload(client, images[:1], adapters=["memory"]).json()["results"][0]["answers"][0]
    refused = upload(client, images[:1], maps=True)
    assert (refused.status_code, "coop classifies images and draws no anomaly maps" in refused.text) == (422, True)


def test_pixels_of_maps_count(serve: Serve, images: list[bytes], folder: Path, open_clip: adapt.Backbone) -> None:
    model, side = adapt.wrap(open_clip, AnoVL(), ["normal", "abnormal"]), open_clip.preprocess.size
    client = serve(pixels=24 * 24 + 4 * side * side)
    client.post("/adapters", json={"path": model.save(folder / "anovl.safetensors").name})
    assert upload(client, images[:1], adapters=["anovl"], maps=True).status_code == 200
    refused = upload(client, images[:2], adapters=["anovl"], maps=True)
    assert refused.status_code == 413
    assert f"{8 * side * side:,} of them in maps, windows or covered copies" in refused.text

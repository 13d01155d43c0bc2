"""What one request may cost, and all together; what is given up; and how the server says that it is ill, or ends."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from serving.asking import hold, in_json, scope, upload
from starlette.testclient import TestClient

from adapt import AdaptedModel
from adapt.formats import peft_layout
from adapt.models import many
from adapt.models.many import SideBySide
from adapt.serving import admission
from adapt.serving.admission import Admission, Limits

Serve = Callable[..., TestClient]


def test_pixels_are_refused_before_any_is_decoded(
    serve: Serve, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, held = serve(pixels=2 * 24 * 24), hold(monkeypatch, many, "open_image")
    held.go.set()
    assert upload(client, images[:2]).status_code == 200
    refused = upload(client, images[:3])
    assert (refused.status_code, held.names) == (413, ["0.png", "1.png"])
    assert refused.json()["detail"] == (
        "the images have 1,728 pixels, and a request may have at most 1,152: send fewer or smaller ones"
    )


@pytest.mark.parametrize(("of", "limit"), [("pixels", {"pixels": 3 * 24 * 24}), ("bytes", {"body_bytes": 5500})])
def test_of_all_requests_together_the_largest_gives_way(
    serve: Serve, images: list[bytes], monkeypatch: pytest.MonkeyPatch, of: str, limit: dict[str, int]
) -> None:
    """503 for it, as for one that is no smaller, and an answer for who asks for less."""
    client, held = serve(in_all=1, **limit), hold(monkeypatch, SideBySide, "predictions")
    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(upload, client, images[:3])
        assert held.begun.wait(30)
        assert upload(client, images[:3]).status_code == 503
        small = pool.submit(upload, client, images[:1])
        answer = large.result()
        assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1"), answer.text
        assert f" {of}, and with those being answered that is more than " in answer.json()["detail"]
        held.go.set()
        assert small.result().status_code == 200


def test_a_request_loads_no_adapter_whose_classes_would_hold_others_up(
    serve: Serve, folder: Path, models: dict[str, AdaptedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever layout, before anything of it is encoded; at the start it may have as many as any."""
    peft = peft_layout.export(models["lora"], folder / "peft")
    models["lora"].with_classes(["cat"]).save(peft / "adapter.safetensors")  # which is not what is loaded
    client, names = serve(), ("tda.safetensors", "peft")
    monkeypatch.setattr("adapt.serving.adapters._MOST_CLASSES", 3)
    assert [client.post("/adapters", json={"path": name}).status_code for name in names] == [201, 201]
    monkeypatch.setattr("adapt.serving.adapters._MOST_CLASSES", 2)
    monkeypatch.setattr("adapt.serving.adapters.load", lambda *given, **named: pytest.fail("it was loaded"))
    for name in names:
        refused = client.post("/adapters", json={"path": name, "name": "again"})
        assert refused.status_code == 403
        assert f"'{name}' has 3 classes, and requests may load adapters with at most 2: start" in refused.text


def test_what_a_client_that_left_asked_for_ends_at_the_next_image(
    serve: Serve, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, held = serve(), hold(monkeypatch, many, "open_image")
    messages = [{"type": "http.request", "body": in_json(images[:3])}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        if not held.begun.is_set():
            await asyncio.to_thread(held.begun.wait, 30)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(f"nobody is there to be told {message}")

    asyncio.run(client.app(scope(), receive, send))
    held.go.set()
    assert upload(client, images[:1]).status_code == 200
    assert held.names == ["image 1", "0.png"]
    assert 'adapt_requests_total{path="/predict",status="499"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize(("place", "name"), [(many, "open_image"), (SideBySide, "predictions")])
def test_health_fails_while_a_reader_or_the_model_is_stuck(
    serve: Serve, images: list[bytes], monkeypatch: pytest.MonkeyPatch, place: Any, name: str
) -> None:
    client, held = serve(seconds=1.0), hold(monkeypatch, place, name)
    assert client.get("/healthz").json() == {"status": "ok", "adapters": 2, "waiting": 0}
    assert upload(client, images[:1]).status_code == 504  # of which the thread knows nothing
    held.begun.wait(30)
    threading.Event().wait(1.0)
    ill = client.get("/healthz")
    assert (ill.status_code, ill.json()["status"]) == (503, "stuck")
    held.go.set()
    assert upload(client, images[:1]).status_code == 200
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"images": [' + b'"",' * 3000 + b'""]}',
        b"{" + b",".join(b'"%d": 1' % number for number in range(3000)) + b"}",
    ],
)
def test_json_of_very_many_parts_is_not_taken_apart(serve: Serve, body: bytes) -> None:
    answer = serve().post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert "commas; expected images as base64 and little else" in answer.json()["detail"]


@pytest.mark.parametrize(("method", "path"), [("POST", "/adapters"), ("PUT", "/adapters/default"), ("POST", "/none")])
def test_only_predict_takes_large_bodies(serve: Serve, method: str, path: str) -> None:
    answer = serve().request(method, path, content=b" " * 70_000, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["detail"][:41]) == (413, "the request is larger than 65,536 bytes: ")


@pytest.mark.parametrize(
    ("kind", "content", "status", "connection"),
    [
        ("text/plain", bytes(60_000), 415, None),  # a small body is read: the connection goes on
        ("text/plain", bytes(70_000), 415, "close"),
        ("text/plain", iter([bytes(5_000)] * 2), 415, "close"),  # in chunks, of which there may be many
        ("application/json", bytes(70_000), 422, None),  # refused for what it says, once it was read
        ("application/json", bytes(200_001), 413, "close"),
    ],
)
def test_a_refusal_before_a_large_body_ends_the_connection(
    serve: Serve, kind: str, content: Any, status: int, connection: str | None
) -> None:
    answer = serve(body_bytes=200_000).post("/predict", content=content, headers={"content-type": kind})
    assert (answer.status_code, answer.headers.get("connection")) == (status, connection)


def test_chunks_without_an_end_are_read_up_to_the_limit(serve: Serve) -> None:
    client, came, sent = serve(body_bytes=200_000), list[int](), list[Any]()

    async def receive() -> Any:
        came.append(30_000)
        return {"type": "http.request", "body": bytes(30_000), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(client.app(scope((b"transfer-encoding", b"chunked")), receive, send))
    assert (sum(came), sent[0]["status"], (b"connection", b"close") in sent[0]["headers"]) == (210_000, 413, True)


def test_chunks_hold_as_much_room_as_a_body_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since they do not say how many they will be; a body that says so gives way to a smaller one alone."""
    monkeypatch.setattr(admission, "PATIENCE", 0)
    held = Admission(Limits(body_bytes=100, in_all=2))

    async def asked(*headers: tuple[bytes, bytes]) -> None:
        async with held.body(Request(scope(*headers))):
            await asyncio.sleep(0.2)

    async def main() -> list[str]:
        chunked = [asked((b"transfer-encoding", b"chunked")) for _ in range(3)]
        return [str(found) for found in await asyncio.gather(*chunked, return_exceptions=True)]

    refused = "the request has 100 bytes, and with those being answered that is more than 200: try again in a second"
    assert [found.partition(", or")[0] for found in asyncio.run(main())] == ["None", "None", refused]


def test_a_full_server_does_not_read_what_it_refuses(
    serve: Serve, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, held = serve(body_bytes=200_000, in_all=1), hold(monkeypatch, SideBySide, "predictions")
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(upload, client, [images[0] + bytes(180_000)])
        assert held.begun.wait(30)
        refused = upload(client, [images[0] + bytes(190_000)])
        held.go.set()
    assert (refused.status_code, refused.headers["connection"]) == (503, "close")
    assert (taken.result().status_code, "connection" in taken.result().headers) == (200, False)


def test_every_refusal_is_json(serve: Serve, images: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()
    for method, path, status in (("GET", "/none", 404), ("GET", "/predict", 405), ("POST", "/healthz", 405)):
        answer = client.request(method, path)
        assert (answer.status_code, list(answer.json())) == (status, ["detail"])
    monkeypatch.setattr(SideBySide, "predictions", lambda *asked: 1 / 0)
    failed = upload(client, images[:1])
    said = {"detail": "the server failed to answer this request: its log has the error"}
    assert (failed.status_code, failed.json()) == (500, said)


def test_head_is_get_without_a_body(serve: Serve) -> None:
    client = serve()
    for path in ("/", "/adapters", "/healthz", "/metrics", "/openapi.json", "/none"):
        head, got = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers["content-type"] == got.headers["content-type"]


def test_an_upload_writes_no_file(serve: Serve, images: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()

    def written(*asked: Any, **how: Any) -> Any:
        raise AssertionError("a temporary file is written")

    monkeypatch.setattr(tempfile, "TemporaryFile", written)
    assert upload(client, [images[0] + bytes(2**21)]).status_code == 200


def test_what_cannot_be_finished_before_the_end_is_told_so(
    serve: Serve, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, held, sent = serve(), hold(monkeypatch, SideBySide, "predictions"), list[Any]()
    messages = [{"type": "http.request", "body": in_json(images[:1])}]

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        task = asyncio.create_task(client.app(scope(), receive, send))
        assert await asyncio.to_thread(held.begun.wait, 30)
        task.cancel()  # as uvicorn does after its time of grace
        await task

    asyncio.run(main())
    held.go.set()
    assert (sent[0]["status"], sent[1]["body"]) == (503, b'{"detail":"the server is shutting down"}')

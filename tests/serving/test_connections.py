"""Connections of a real server: what comes too slowly, too much or wrongly is told so, and closed."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn

from adapt.serving.adapters import ServedAdapters
from adapt.serving.app import create_app
from adapt.serving.connections import Connection

HEAD = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n"
Connect = Callable[..., socket.socket]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body, or at once where the path is /early, or late, or with very much."""
    if scope["type"] != "http":
        return
    length, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message["body"]), message["more_body"]
    if scope["path"] == "/late":
        await asyncio.sleep(3)
    body = b"x" * 50_000_000 if scope["path"] == "/much" else str(length).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def serve() -> Iterator[Callable[..., Connect]]:
    """Starts a server with those limits, and gives what connects to it."""
    ends: list[Callable[[], None]] = []

    def start(head_seconds: float = 60, seconds: float = 60, most: int = 100, app: Any = app) -> Connect:
        listening = socket.create_server(("127.0.0.1", 0))
        protocol: Any = functools.partial(Connection, head_seconds=head_seconds, seconds=seconds, most=most)
        config = uvicorn.Config(app, http=protocol, ws="none", log_level="critical", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        opened: list[socket.socket] = []

        def connect(sends: bytes = b"") -> socket.socket:
            opened.append(socket.create_connection(listening.getsockname(), timeout=60))
            opened[-1].sendall(sends)
            return opened[-1]

        def end() -> None:
            for each in opened:
                each.close()
            server.should_exit = True
            thread.join()

        ends.append(end)
        return connect

    yield start
    for end in ends:
        end()


def everything(client: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = b""
    while part := client.recv(65536):
        found += part
    return found


def refused(client: socket.socket) -> tuple[bytes, str]:
    head, _, body = everything(client).partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    return head[9:12], json.loads(body)["detail"]


def test_headers_and_bodies_that_do_not_come(serve: Callable[..., Connect]) -> None:
    connect = serve(head_seconds=0.2)
    assert refused(connect(HEAD)) == (b"408", "no complete request arrived within 0.2 seconds")
    assert everything(connect()) == b""  # nothing was begun
    connect = serve(seconds=0.3)
    assert refused(connect(HEAD + b"\r\n12345")) == (b"408", "no complete request arrived within 0.3 seconds")
    early = everything(connect(HEAD.replace(b"/a", b"/early") + b"\r\n12345"))
    assert early.startswith(b"HTTP/1.1 200")
    assert early.endswith(b"\r\n\r\n0")


def test_a_second_request_has_the_same_time(serve: Callable[..., Connect]) -> None:
    client = serve(head_seconds=0.5)(HEAD + b"\r\n1234567890" + HEAD)
    found = everything(client)
    assert (found.count(b"HTTP/1.1 200"), found.count(b"HTTP/1.1 408")) == (1, 1)


def test_whole_requests_are_answered_whatever_they_are_cut_into(serve: Callable[..., Connect]) -> None:
    client = serve()()
    for part in (HEAD[:20], HEAD[20:], b"\r\n12345", b"67890" + HEAD + b"\r\n12345"):
        client.sendall(part)
    client.sendall(b"67890" + b"GET /early HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    found = everything(client)
    assert found.count(b"HTTP/1.1 200") == 3
    assert found.count(b"\r\n\r\n10") == 2


def test_headers_without_an_end_and_what_is_no_http(serve: Callable[..., Connect]) -> None:
    connect = serve()
    many = b"X: ".ljust(2**16 + 1 - len(HEAD), b"a")  # one byte too many, so that all of it is read
    assert refused(connect(HEAD + many)) == (
        b"431",
        "the request has more than 65,536 bytes beside its body: send shorter headers or larger chunks",
    )
    lines = b"".join(b"X-%d: a\r\n" % number for number in range(100))
    assert refused(connect(HEAD + lines)) == (b"431", "the request has more than 100 headers: send fewer")
    assert refused(connect(b"no http\r\n\r\n")) == (b"400", "Invalid HTTP request received.")
    big = HEAD.replace(b": 10", b": 900000") + b"\r\n" + b"x" * 900_000
    client = connect(big)
    assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_refused_requests_are_logged_and_have_an_id(
    serve: Callable[..., Connect], served: ServedAdapters, caplog: pytest.LogCaptureFixture
) -> None:
    """What `adapt serve` does: a line for each, with the id that the client got, and one more of its metrics."""
    caplog.set_level("INFO", "adapt")
    connect = serve(0.3, 0.5, app=create_app(served, access_log=True))
    own = b"GET /adapters HTTP/1.1\r\nX-Request-Id: mine\r\n"
    late = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    sents = b"no http\r\n\r\n", own + b"\r\n", own + b"Host: a\r\n", late
    heads = [everything(connect(sent)).partition(b"\r\n\r\n")[0] for sent in sents]
    assert [head[9:12] for head in heads] == [b"400", b"400", b"408", b"408"]
    ids = [re.findall(rb"(?i)x-request-id: (\S+)", head) for head in heads]
    assert [len(each) for each in ids] == [1] * 4
    assert everything(connect()) == b""  # nothing was begun, and nothing is logged
    page = everything(connect(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
    lines = [json.loads(message) for message in caplog.messages if message.startswith("{")][:-1]
    assert [(line["client"], line["method"], line["path"], line["status"]) for line in lines] == [
        ("127.0.0.1", "", "", 400), ("127.0.0.1", "", "", 400), ("127.0.0.1", "", "", 408),
        ("127.0.0.1", "POST", "/predict", 408),
    ]  # fmt: skip
    assert [[line["id"].encode()] for line in lines] == ids
    assert ids[1] == ids[2] == [b"mine"]
    assert all(line["bytes"] > 40 for line in lines)
    assert lines[2]["ms"] > 250
    assert b'adapt_requests_total{path="other",status="400"} 2.0' in page
    assert b'adapt_requests_total{path="/predict",status="408"} 1.0' in page


def test_chunks_may_be_small_but_not_all_of_a_byte(serve: Callable[..., Connect]) -> None:
    head = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    connect = serve()
    client = connect(head + b"".join(b"200\r\n" + b"x" * 512 + b"\r\n" for _ in range(20_000)) + b"0\r\n\r\n")
    assert client.recv(65536).endswith(b"\r\n\r\n10240000")
    client = connect(head + b"1\r\nx\r\n" * 2_000 + b"0\r\n\r\n")
    assert client.recv(65536).endswith(b"\r\n\r\n2000")
    started = time.monotonic()
    assert refused(connect(head + b"1\r\nx\r\n" * 2_100)) == (
        b"431",
        "the body has more than 2,048 small chunks: send larger ones",
    )
    assert time.monotonic() - started >= 1  # so that nobody does it again at once


def test_requests_that_come_all_at_once_are_read_up_to_a_queue(
    serve: Callable[..., Connect], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    on_headers_complete = Connection.on_headers_complete
    monkeypatch.setattr(Connection, "on_headers_complete", lambda self: (begun.append(1), on_headers_complete(self))[1])
    request = b"GET /early HTTP/1.1\r\nHost: a\r\n\r\n"
    connect = serve()
    client = connect(request * 16)
    found = b""
    while found.count(b"HTTP/1.1 200") < 16:
        found += client.recv(65536)
    begun.clear()
    many = connect(request * 2_000)
    with suppress(ConnectionError):  # closed, and the rest of the requests is never read
        assert b"429" not in everything(many)  # which would answer the first request
    assert len(begun) <= 17


def test_a_refusal_is_no_answer_to_an_earlier_request(serve: Callable[..., Connect]) -> None:
    late = HEAD.replace(b"/a", b"/late") + b"\r\n1234567890"
    client = serve()(late)
    client.sendall(HEAD + b"".join(b"X-%d: a\r\n" % number for number in range(100)))
    assert everything(client) == b""


def test_where_there_are_too_many_the_slowest_is_closed(serve: Callable[..., Connect]) -> None:
    connect = serve(most=3)
    slow = [connect(HEAD) for _ in range(3)]
    others = [connect(HEAD + b"\r\n1234567890") for _ in range(2)]
    assert [each.recv(65536)[:12] for each in others] == [b"HTTP/1.1 200"] * 2
    assert [each.recv(100) for each in slow[:2]] == [b"", b""]
    slow[2].sendall(b"\r\n1234567890")
    assert slow[2].recv(65536)[:12] == b"HTTP/1.1 200"


def test_who_does_not_read_is_not_waited_for(serve: Callable[..., Connect]) -> None:
    connect = serve(seconds=0.3)
    client = connect(HEAD.replace(b"/a", b"/much") + b"\r\n1234567890")
    client.recv(10)
    threading.Event().wait(1.5)
    assert len(everything(client)) < 50_000_000


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /early HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", b"400"),
        (b"GET /early HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", b"400"),
        (b"GET /early HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /early HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /early HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"200"),
    ],
)
def test_a_request_names_one_host(serve: Callable[..., Connect], head: bytes, status: bytes) -> None:
    """RFC 9112, 3.2: in HTTP/1.0 it may name none."""
    answer = everything(serve()(head))
    assert answer[9:12] == status
    assert (b"headers Host; expected one" in answer) == (status == b"400")

"""Who may ask: by which name of the host, with which token, from which page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from adapt.serving.adapters import ServedAdapters
from adapt.serving.app import create_app
from adapt.serving.web import Guard, Token

TOKEN = "open sesame".replace(" ", "-") + "-0123456789"
CHANGES = (("POST", "/predict"), ("POST", "/adapters"), ("PUT", "/adapters/default"), ("DELETE", "/adapters/lora"))


@pytest.fixture
def guarded(served: ServedAdapters) -> Iterator[Callable[..., TestClient]]:
    clients: list[TestClient] = []

    def start(**how: Any) -> TestClient:
        clients.append(TestClient(create_app(served, **how), base_url="http://localhost:8000"))
        return clients[-1].__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:8000", 200),
        ("127.8.9.1", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("10.0.0.1", 400),
        ("[::1", 400),
        ("", 400),
    ],
)
def test_a_server_of_this_machine_is_asked_by_its_own_names(
    guarded: Callable[..., TestClient], host: str, status: int
) -> None:
    answer = guarded(hosts=["localhost"]).get("/healthz", headers={"host": host})
    assert answer.status_code == status
    assert ("detail" in answer.json()) == (status == 400)


def test_a_server_of_all_names_is_asked_by_any(guarded: Callable[..., TestClient]) -> None:
    assert guarded().get("/healthz", headers={"host": "evil.example"}).status_code == 200


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_pages_of_other_servers_send_nothing(guarded: Callable[..., TestClient], method: str, path: str) -> None:
    client = guarded()
    for origin in ("http://evil.example", "null", "http://localhost", "http://localhost:9000", "http://[", ""):
        answer = client.request(method, path, headers={"origin": origin})
        assert (answer.status_code, "only the server's own page may" in answer.json()["detail"]) == (403, True), origin
    own = [client.request(method, path, headers=each).status_code for each in ({"origin": "http://localhost:8000"}, {})]
    assert 403 not in own
    assert client.get("/adapters", headers={"origin": "http://evil.example"}).status_code == 200


def test_only_who_has_the_token_is_answered(guarded: Callable[..., TestClient]) -> None:
    client = guarded(tokens=[Token(TOKEN)])
    for given in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", "Bearer \xff", "Bearer"):
        for method, path in (*CHANGES, ("GET", "/adapters"), ("GET", "/metrics"), ("HEAD", "/openapi.json")):
            answer = client.request(method, path, headers={"authorization": given.encode("latin-1")})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), (given, path)
    for given in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
        assert client.get("/adapters", headers={"authorization": given}).status_code == 200
    assert [client.get(path).status_code for path in ("/", "/healthz")] == [200, 200]


def test_each_holder_of_a_token_has_a_limit_and_a_name_in_the_log(
    guarded: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "adapt")
    ann, bob = Token("a" * 16, "ann", requests=1), Token("b" * 16, "bob")
    client = guarded(tokens=[ann, bob], access_log=True)
    guard: Any = client.app
    while not isinstance(guard := guard.middleware_stack if hasattr(guard, "middleware_stack") else guard.app, Guard):
        pass
    guard._answering["ann"] += 1  # a request of hers is being answered
    given = {"authorization": f"Bearer {ann.secret}", "x-request-id": "of:mine-1"}
    refused = client.get("/adapters", headers=given)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.headers["x-request-id"] == "of:mine-1"
    guard._answering["ann"] -= 1
    assert client.get("/adapters", headers=given).status_code == 200
    other = client.head("/adapters?secret=1", headers={"authorization": f"Bearer {bob.secret}", "x-request-id": "a b"})
    assert re.fullmatch("[0-9a-f]{32}", other.headers["x-request-id"])
    assert client.get("/adapters", headers={"authorization": "Bearer none"}).status_code == 401
    lines = [json.loads(message) for message in caplog.messages if message.startswith("{")]
    assert [(line["token"], line["method"], line["path"], line["status"]) for line in lines] == [
        ("ann", "GET", "/adapters", 429), ("ann", "GET", "/adapters", 200), ("bob", "HEAD", "/adapters", 200),
        ("", "GET", "/adapters", 401),
    ]  # fmt: skip
    assert lines[0]["id"] == "of:mine-1"
    assert lines[1]["bytes"] > lines[2]["bytes"] == 0
    assert "a" * 16 not in caplog.text
    assert "secret" not in caplog.text

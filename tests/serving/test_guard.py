"""Who may ask: by which name of the host, with which token, from which page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from adapt.serving.adapters import ServedAdapters
from adapt.serving.app import create_app

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
    client = guarded(token=TOKEN)
    for given in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", "Bearer \xff", "Bearer"):
        for method, path in (*CHANGES, ("GET", "/adapters"), ("GET", "/metrics"), ("HEAD", "/openapi.json")):
            answer = client.request(method, path, headers={"authorization": given.encode("latin-1")})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), (given, path)
    for given in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
        assert client.get("/adapters", headers={"authorization": given}).status_code == 200
    assert [client.get(path).status_code for path in ("/", "/healthz")] == [200, 200]

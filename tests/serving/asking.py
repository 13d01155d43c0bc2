"""Requests as tests send them: through a client, and as the bare messages of ASGI; and calls that are held up."""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.testclient import TestClient

JSON = [(b"host", b"testserver"), (b"content-type", b"application/json")]


def upload(client: TestClient, images: list[bytes], **fields: Any) -> Any:
    files = [("images", (f"{number}.png", image)) for number, image in enumerate(images)]
    return client.post("/predict", files=files, data=fields)


def in_json(images: list[bytes]) -> bytes:
    return json.dumps({"images": [base64.b64encode(image).decode() for image in images]}).encode()


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    """What ASGI says of a request to predict, in JSON."""
    asked = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/predict", "raw_path": b"/predict"}
    return asked | {"query_string": b"", "headers": [*JSON, *headers]}


@dataclass
class Held:
    """Calls that wait once they have begun, until they may go on; and the names that they were given."""

    begun: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    names: list[str] = field(default_factory=list)


def hold(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> Held:
    held, usual = Held(), getattr(place, name)

    def waiting(*asked: Any, **how: Any) -> Any:
        held.names.append(how.get("name", ""))
        held.begun.set()
        assert held.go.wait(30)
        return usual(*asked, **how)

    monkeypatch.setattr(place, name, waiting)
    return held

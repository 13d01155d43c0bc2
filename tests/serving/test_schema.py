"""Requests drawn from the server's own OpenAPI, right and wrong ones: none of them ends in a 500."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from native_chats import model_of
from schemathesis import GenerationMode
from selection import by_turns

from adapt.serving.adapters import Served, ServedAdapters
from adapt.serving.admission import Limits
from adapt.serving.app import create_app

OPERATIONS = (
    "POST /predict", "POST /adapters", "PUT /adapters/default", "DELETE /adapters/{name}", "POST /v1/chat/completions",
    "POST /v1/embeddings", "POST /search", "GET /v1/models/{name}",
)  # fmt: skip
CASES = [
    (label, mode)
    for label in OPERATIONS
    for mode in GenerationMode
    if (label[:3], mode.value) not in (("DEL", "negative"), ("GET", "negative"))
]
_few = settings(
    max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.filterwarnings("ignore")
@by_turns(("label", "mode"), CASES, take=2)
def test_fuzzed_requests_give_no_500(label: str, mode: GenerationMode, served: ServedAdapters) -> None:
    """Requests with a conversation name an adapter that answers in words, so that they get further than to its name."""
    served.now = Served({**served.now.models, "words": model_of("llava")}, served.now.default)
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(served, Limits(images=4)))
    (operation,) = (found for each in schema.get_all_operations() if (found := each.ok()).label == label)
    documented = {int(status) for status in operation.definition.raw["responses"]}
    statuses: list[int] = []

    @_few
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if label == "POST /v1/chat/completions" and isinstance(case.body, dict) and len(statuses) % 3:
            case.body["model"], case.body["max_tokens"] = "words", 3
            if mode is GenerationMode.POSITIVE:
                case.body["messages"][-1]["role"] = "user"
        statuses.append(case.call().status_code)

    check()
    assert len(statuses) >= 30
    assert 500 not in statuses
    if (label, mode) == ("POST /v1/chat/completions", GenerationMode.POSITIVE):
        assert 200 in statuses
    assert set(statuses) <= documented | {404, 405}  # of a path that is another one by a / in a name

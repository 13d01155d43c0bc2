"""Requests drawn from the server's own OpenAPI, right and wrong ones: none of them ends in a 500."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from selection import by_turns

from adapt.serving.adapters import ServedAdapters
from adapt.serving.app import Limits, create_app

OPERATIONS = ("POST /predict", "POST /adapters", "PUT /adapters/default", "DELETE /adapters/{name}")
CASES = [
    (label, mode) for label in OPERATIONS for mode in GenerationMode if (label[:3], mode.value) != ("DEL", "negative")
]
_few = settings(
    max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.filterwarnings("ignore")
@by_turns(("label", "mode"), CASES, take=2)
def test_fuzzed_requests_give_no_500(label: str, mode: GenerationMode, served: ServedAdapters) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(served, Limits(images=4)))
    (operation,) = (found for each in schema.get_all_operations() if (found := each.ok()).label == label)
    documented = {int(status) for status in operation.definition.raw["responses"]}
    statuses: list[int] = []

    @_few
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        statuses.append(case.call().status_code)

    check()
    assert len(statuses) >= 30
    assert 500 not in statuses
    assert set(statuses) <= documented | {404, 405}  # of a path that is another one by a / in a name

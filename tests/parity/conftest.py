"""Each test of parity compares all that `keys.toml` says it does."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import published
import pytest
import stored_keys


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    published.USED.clear()
    result = yield
    chosen = pyfuncitem.callspec.params.get("name") if hasattr(pyfuncitem, "callspec") else None
    assert [*stored_keys.faults(pyfuncitem.originalname, chosen)] == []
    return result

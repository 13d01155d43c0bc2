"""One line for pydantic's errors, however many there are."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from adapt.common.validation import StrictModel, explain


class Names(StrictModel):
    names: tuple[str, ...]


class Counted:
    """A ValidationError that counts how often its errors are listed, which takes long if they are many."""

    def __init__(self, error: ValidationError) -> None:
        self.error, self.listed = error, 0

    def errors(self, **options: Any) -> Any:
        self.listed += 1
        return self.error.errors(**options)


def test_the_errors_of_a_long_list_are_listed_once() -> None:
    """They were listed once for each: a damaged header with a list of 10,000 numbers took minutes to be refused."""
    with pytest.raises(ValidationError) as caught:
        Names(names=tuple(range(1000)))  # type: ignore[arg-type]
    error: Any = Counted(caught.value)
    assert explain(Names, error, "a file") == "a file: names is 0: Input should be a valid string"
    assert error.listed == 1

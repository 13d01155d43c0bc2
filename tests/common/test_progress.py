"""Progress where there is no terminal: a line now and then, with the time left."""

from __future__ import annotations

import logging

import pytest

from adapt.common import progress
from adapt.common.progress import counting_bar


def test_long_work_tells_how_far_it_is_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = iter([0.0, 4.0, 11.0, 12.0, 30.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with caplog.at_level(logging.INFO, "adapt"), counting_bar("encoding", show=True) as report:
        assert report is not None
        for done in (32, 88, 96, 1000, 4000):
            report(done, 4000)
    assert caplog.messages == [
        "encoding  88 of 4,000  (about 8 min left)",
        "encoding  1,000 of 4,000  (about 2 min left)",
    ]


def test_nothing_is_told_of_work_that_is_not_shown() -> None:
    with counting_bar("encoding", show=False) as report:
        assert report is None

"""Progress where there is no terminal: a line now and then, with the time left."""

from __future__ import annotations

import logging

import pytest

from adapt.common import progress
from adapt.common.progress import counting_bar


def test_long_work_tells_how_far_it_is_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The time that the first images take, with starting up, is no measure of the others."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[-1])
    with caplog.at_level(logging.INFO, "adapt"), counting_bar("encoding", show=True) as report:
        assert report is not None
        for seconds, done in ((20.0, 32), (21.0, 48), (31.0, 472), (32.0, 512), (60.0, 1632), (100.0, 4000)):
            clock.append(seconds)
            report(done, 4000)
    assert caplog.messages == [
        "encoding  32 of 4,000",
        "encoding  472 of 4,000  (about 88 s left)",
        "encoding  1,632 of 4,000  (about 59 s left)",
    ]


def test_nothing_is_told_of_work_that_is_not_shown() -> None:
    with counting_bar("encoding", show=False) as report:
        assert report is None

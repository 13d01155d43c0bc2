"""Methods compared one after the other, as long as they keep up with the best so far and there is time."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress

import torch

from adapt.choosing.candidates import Candidate, Cost
from adapt.choosing.compare import PILOT, Compared, Comparison
from adapt.errors import AdaptError
from adapt.progress import readable_time

logger = logging.getLogger("adapt")
BASELINE = "zero_shot"  # which is always measured: it says whether class names help
KEPT_UP = 1, 4  # methods with steps that keep up, of how many: what the time left counts on before any has run


def race(
    comparison: Comparison, listed: Sequence[Candidate], budget: float | None, progress: bool
) -> tuple[list[Compared], dict[str, str]]:
    """All candidates that kept up, and by name why the others were given up or could not be trained.

    Those that are not always compared run only while `budget`, in seconds, leaves time for them. AdaptError where no
    candidate could be trained.
    """
    runners = _Race(comparison, listed, budget)
    for number, candidate in enumerate(listed, 1):
        runners.run(candidate)
        if progress:
            logger.info("  %2d of %d  %s", number, len(listed), runners.said(candidate.name, listed[number:]))
    if listed and not runners.compared:
        name, reason = next(iter(runners.left_out.items()))
        raise AdaptError(f"no method could be compared; {name}: {reason}")
    return runners.compared, runners.left_out


class _Race:
    """A comparison under way: the candidates that kept up, those left out, and how long the rest takes."""

    def __init__(self, comparison: Comparison, listed: Sequence[Candidate], budget: float | None) -> None:
        self.compared, self.left_out = list[Compared](), dict[str, str]()
        self._comparison, self._budget, self._started = comparison, budget, time.monotonic()
        self._seconds: dict[str, float] = {}  # of one training on one part, judged by a few of its steps
        self._ran: list[tuple[Candidate, float]] = []  # each that had its turn, and the seconds that it took
        for candidate in listed:
            if candidate.cost is not Cost.NO_STEP and (candidate.always or budget is None):
                with suppress(AdaptError, torch.OutOfMemoryError):  # which its turn will tell
                    self._seconds[candidate.name] = comparison.estimate(candidate)

    def run(self, candidate: Candidate) -> None:
        """Compare the candidate, or note why not."""
        started = time.monotonic()
        try:
            tried = self._within_budget(candidate) or self._tried(candidate)
        except (AdaptError, torch.OutOfMemoryError, torch.linalg.LinAlgError) as error:
            tried = str(error)
        if isinstance(tried, str):
            self.left_out[candidate.name] = tried
        else:
            self.compared.append(tried)
        self._ran.append((candidate, time.monotonic() - started))

    def _tried(self, candidate: Candidate) -> Compared | str:
        if candidate.name == BASELINE or not self.compared:
            return self._comparison.run(candidate)
        return self._comparison.raced(candidate, max(self.compared, key=lambda each: each.accuracy))

    def _within_budget(self, candidate: Candidate) -> str | None:
        """Why there is no time for the candidate; None where there is."""
        if self._budget is None or candidate.always:
            return None
        left = self._budget - (time.monotonic() - self._started)
        each = self._seconds[candidate.name] = self._comparison.estimate(candidate) if left > 0 else 0.0
        needed = self._comparison.trainings * each
        if needed < left:
            return None
        more = f"would take about {readable_time(needed)} more" if needed else "not begun"
        return f"{more}, and the budget is {readable_time(self._budget)}"

    def said(self, name: str, others: Sequence[Candidate]) -> str:
        """The figures of the method tried last, or why it has none, and the time left for the others."""
        left = f"(about {readable_time(self._left(others))} left)" if others else ""
        if name in self.left_out:
            return f"{name:22} given up: {self.left_out[name]}  {left}"
        last = self.compared[-1]
        return f"{name:22} {100 * last.accuracy:5.1f} ± {100 * last.error:.1f} %  {left}"

    def _left(self, others: Sequence[Candidate]) -> float:
        """Seconds that the others take, if as many of those with steps keep up as until now."""
        plain = [seconds for candidate, seconds in self._ran if candidate.cost is Cost.NO_STEP]
        each_plain = sum(plain) / max(1, len(plain))
        stepped = [candidate.name for candidate, _ in self._ran if candidate.cost is not Cost.NO_STEP]
        kept_up = sum(each.candidate.name in stepped for each in self.compared)
        likely = (KEPT_UP[0] + kept_up) / (KEPT_UP[1] + len(stepped))
        overhead = min(plain, default=0.0) / self._parts  # of any training, steps apart
        return sum(
            each_plain
            if each.cost is Cost.NO_STEP
            else self._trainings(each, likely) * (overhead + self._seconds.get(each.name, 0.0))
            for each in others
        )

    @property
    def _parts(self) -> int:
        return self._comparison.trainings - 1

    def _trainings(self, candidate: Candidate, likely: float) -> float:
        """How many trainings a candidate with steps takes, if it keeps up on the first part with this probability."""
        if candidate.cost is Cost.STEPS_THROUGH_TOWERS:
            return 1 / PILOT + likely * self._parts
        return 1 + likely * (self._parts - 1)

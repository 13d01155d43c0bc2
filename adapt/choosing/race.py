"""A comparison of candidate methods one after the other, in which methods that fall behind are dropped."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress

import torch

from adapt.choosing.candidates import Candidate, Cost
from adapt.choosing.compare import PILOT, Compared, Comparison
from adapt.common.errors import AdaptError
from adapt.common.progress import readable_time

logger = logging.getLogger("adapt")
BASELINE = "zero_shot"  # always measured in full: it shows whether class names help
SHARE = 0.25  # of the time of all before, above which a training is not begun unless it was asked for
KEPT_UP = 1, 4  # prior for the time left: of methods with steps, one in four keeps up


def race(
    comparison: Comparison, listed: Sequence[Candidate], budget: float | None, progress: bool
) -> tuple[list[Compared], dict[str, str]]:
    """Compare the `listed` candidates; return the results, and a dict of reasons why candidates were dropped or failed.

    A candidate that is not marked `always` is compared only if the `budget`, in seconds, leaves time for it. Raises
    AdaptError if no candidate could be trained.
    """
    runners = _Race(comparison, listed, budget)
    for number, candidate in enumerate(listed, 1):
        runners.run(candidate)
        if progress:
            logger.info("  %2d of %d  %s", number, len(listed), runners.result(candidate.name, listed[number:]))
    if listed and not runners.compared:
        name, reason = next(iter(runners.left_out.items()))
        raise AdaptError(f"no method could be compared; for example, {name} failed: {reason}")
    named = {each.name: each for each in sorted(runners.compared, key=lambda each: each.candidate.preferred)}
    return list(named.values()), runners.left_out  # once, if a variant is its recipe after all


class _Race:
    """The state of a running comparison: results of candidates, reasons why candidates were left out, and times."""

    def __init__(self, comparison: Comparison, listed: Sequence[Candidate], budget: float | None) -> None:
        self.compared, self.left_out = list[Compared](), dict[str, str]()
        self._comparison, self._budget, self._started = comparison, budget, time.monotonic()
        self._folds = comparison.trainings - 1
        self._share = SHARE if all(candidate.always for candidate in listed) else None  # or else slow ones are wanted
        self._seconds: dict[str, float] = {}  # estimated for one training on one fold
        self._ran: list[tuple[Candidate, float]] = []  # candidates that had their turn, and the seconds it took
        for candidate in listed:
            if candidate.cost is not Cost.NO_STEP and (candidate.always or budget is None):
                with suppress(AdaptError, torch.OutOfMemoryError):  # reported when its turn comes
                    self._seconds[candidate.name] = comparison.estimate(candidate)

    def run(self, candidate: Candidate) -> None:
        """Evaluate a candidate, and store the result or the reason why the candidate is left out."""
        started = time.monotonic()
        try:
            outcome: Compared | str = self._over_budget(candidate)
            if not outcome and (candidate.name == BASELINE or not self.compared):
                outcome = self._comparison.run(candidate)
            elif not outcome:
                best = max(self.compared, key=lambda each: each.merit)
                outcome = self._comparison.raced(candidate, best, self._share)
        except (AdaptError, torch.OutOfMemoryError, torch.linalg.LinAlgError) as error:
            outcome = str(error)
        if isinstance(outcome, str):
            self.left_out[candidate.name] = outcome
        else:
            self.compared.append(outcome)
        self._ran.append((candidate, time.monotonic() - started))

    def _over_budget(self, candidate: Candidate) -> str:
        """Return a message if the time budget does not suffice for the candidate, otherwise ""."""
        if self._budget is None or candidate.always:
            return ""
        left = self._budget - (time.monotonic() - self._started)
        each = self._seconds[candidate.name] = self._comparison.estimate(candidate) if left > 0 else 0.0
        needed = self._comparison.trainings * each
        if needed < left:
            return ""
        more = f"it would take about {readable_time(needed)} more" if needed else "there was no time to begin"
        return f"{more}, and the budget is {readable_time(self._budget)}"

    def result(self, name: str, others: Sequence[Candidate]) -> str:
        """Return a line with the last candidate's figure or why it was left out, and the time needed for `others`."""
        left = f"  (about {readable_time(self._left(others))} left)" if others else ""
        if name in self.left_out:
            return f"{name:22} left out: {self.left_out[name]}{left}"
        last = self.compared[-1]
        figure = last.scores.compared_by
        value, error = figure.text(last.scores.figures()[figure.name]), figure.text(last.error)
        return f"{name:22} {value:>5} ± {error} {figure.unit}{left}"

    def _left(self, others: Sequence[Candidate]) -> float:
        """Estimate the seconds for the candidates `others`, if they are dropped as often as earlier candidates."""
        plain = [seconds for candidate, seconds in self._ran if candidate.cost is Cost.NO_STEP]
        each_plain = sum(plain) / max(1, len(plain))
        stepped = [candidate.name for candidate, _ in self._ran if candidate.cost is not Cost.NO_STEP]
        kept_up = sum(each.candidate.name in stepped for each in self.compared)
        likely = (KEPT_UP[0] + kept_up) / (KEPT_UP[1] + len(stepped))
        overhead = min(plain, default=0.0) / self._folds  # of any training, apart from its steps
        trainings = {
            Cost.STEPS_ON_FEATURES: 1 + likely * (self._folds - 1),
            Cost.STEPS_THROUGH_TOWERS: 1 / PILOT + likely * self._folds,
        }
        return sum(
            each_plain
            if each.cost is Cost.NO_STEP
            else trainings[each.cost] * (overhead + self._seconds.get(each.name, 0.0))
            for each in others
        )

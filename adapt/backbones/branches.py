"""Several answers to one conversation in a row of tokens: their common beginning once, then the rest of each answer.

An attention mask hides the answers from each other, and every token keeps the position that it has in its own
conversation. So a causal decoder computes for each answer what it computes for the conversation that ends with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROOT = 0  # the branch of the common beginning; those of the answers follow, and padding's is -1


@dataclass(frozen=True)
class BranchedRow:
    """Answers to one conversation in a row of l tokens."""

    tokens: Tensor
    """The tokens `(l,)`."""
    positions: Tensor
    """Their positions `(..., l)`."""
    branch: Tensor
    """The number `(l,)` of the answer that a token belongs to, from 1; `ROOT` for the common beginning."""
    before: Tensor
    """For m tokens of answers that are scored, the place `(m,)` in the row that predicts the token."""
    scored: Tensor
    """The m tokens themselves `(m,)`."""
    answer: Tensor
    """The number `(m,)` of the answer of each, from 0: tokens of the common beginning are scored for all answers."""


@dataclass(frozen=True)
class Branches:
    """Rows of answers, padded on the right to l tokens."""

    tokens: Tensor
    """The tokens `(b, l)`."""
    positions: Tensor
    """Their positions `(..., b, l)`."""
    visible: Tensor
    """Whether a token (next to last axis) sees another (last axis): bool `(b, 1, l, l)`."""
    rows: tuple[BranchedRow, ...]

    @property
    def predicting(self) -> Tensor:
        """Whether the logits at a token are needed: bool `(b, l)`."""
        needed = torch.zeros_like(self.tokens, dtype=torch.bool)
        for number, row in enumerate(self.rows):
            needed[number, row.before] = True
        return needed

    def scores(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the log-probabilities of each answer's tokens, and their number, both `(answers,)`.

        The answers of all rows follow each other. `logits` `(t, v)` are those of the `predicting` tokens.
        """
        needed = self.predicting
        place = needed.flatten().cumsum(0).view(needed.shape) - 1  # of a predicting token among all
        at = torch.cat([place[number, row.before] for number, row in enumerate(self.rows)])
        tokens = torch.cat([row.scored for row in self.rows])
        logits = logits.float()
        scores = logits[at, tokens] - logits.logsumexp(-1)[at]
        counts = [int(row.answer.max()) + 1 for row in self.rows]
        starts = [sum(counts[:number]) for number in range(len(counts))]
        answer = torch.cat([row.answer + start for row, start in zip(self.rows, starts, strict=True)])
        sums = scores.new_zeros(sum(counts)).index_add(0, answer, scores)
        return sums, answer.bincount(minlength=sum(counts))


def row_of(tokens: Sequence[Tensor], scored: Sequence[Tensor], positions: Tensor) -> BranchedRow:
    """Return conversations that differ in their last answer as one row.

    `tokens` are the tokens of each conversation, `scored` says which of them count, and `positions` `(..., l)` are the
    positions of the tokens of the longest.
    """
    device = tokens[0].device
    length = min(map(len, tokens)) - 1  # each conversation keeps at least one token of its own
    differ = torch.stack([own[:length] != tokens[0][:length] for own in tokens]).any(0)
    shared = int(differ.int().argmax()) if bool(differ.any()) else length
    starts = [shared]
    for own in tokens:
        starts.append(starts[-1] + len(own) - shared)
    places = torch.cat([torch.arange(shared), *(torch.arange(shared, len(own)) for own in tokens)]).to(device)
    sizes = [shared, *(len(own) - shared for own in tokens)]
    before, chosen, answer = [], [], []
    for number, (own, counts, start) in enumerate(zip(tokens, scored, starts)):
        [inside] = counts.nonzero(as_tuple=True)
        earlier = inside - 1
        before.append(torch.where(earlier < shared, earlier, earlier - shared + start))
        chosen.append(own[inside])
        answer.append(torch.full_like(inside, number))
    return BranchedRow(
        torch.cat([tokens[0][:shared], *(own[shared:] for own in tokens)]),
        positions[..., places],
        torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device)),
        torch.cat(before),
        torch.cat(chosen),
        torch.cat(answer),
    )


def padded(rows: Sequence[BranchedRow], pad: int) -> Branches:
    """Return rows as one batch, filled up with the token `pad`."""
    longest = max(len(row.tokens) for row in rows)

    def stacked(values: Sequence[Tensor], fill: int) -> Tensor:
        filled = [torch.nn.functional.pad(value, (0, longest - value.shape[-1]), value=fill) for value in values]
        return torch.stack(filled, dim=-2)

    branch = stacked([row.branch for row in rows], -1)
    seen, sees = branch[:, None, :], branch[:, :, None]
    causal = torch.ones(longest, longest, dtype=torch.bool, device=branch.device).tril()
    visible = causal & ((seen == ROOT) | (seen == sees))  # padding sees the beginning, as a row needs something to see
    return Branches(
        stacked([row.tokens for row in rows], pad), stacked([row.positions for row in rows], 0), visible[:, None],
        tuple(rows),
    )  # fmt: skip

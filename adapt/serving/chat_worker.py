"""Answers in words, which many clients wait for: a thread that writes some at once, and all by turns.

Conversations with the same adapter that wait at the same time are answered together. While others wait, a group of
answers pauses after every few tokens, so that a long answer holds up a short one by a part of a second only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Literal

import torch
from PIL.Image import Image
from torch import Tensor

from adapt.backbones.encoded_images import PreparedImage
from adapt.chats import Chat
from adapt.common.plain import JsonObject
from adapt.models.native_vlm import TOGETHER, ChatModel
from adapt.models.ongoing import OngoingAnswers
from adapt.serving.worker import Worker

_TURN, _LONGEST_TURN = 16, 64  # tokens that a group writes while others wait, and while none does
_PAUSE = 0.001  # seconds between turns, for threads that wait for the model, as those that load an adapter
_BEGUN = 8 * TOGETHER  # answers that are begun and not ended, each of which holds memory for its tokens
_PIXELS = 2**23  # of the images in a pass, if there are several conversations
_LEAST = -9999.0  # the log-probability of an impossible token, as OpenAI's interface has it
_BROKEN = "\ufffd"  # what bytes of an unfinished character are decoded to
Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Choosing:
    """How each token of an answer is chosen: the most probable one, or a draw at a temperature above 0."""

    temperature: float = 0
    top_p: float = 1
    seed: int = 0
    """Equal seeds draw equal tokens, whatever else is answered at the same time."""
    told: int | None = None
    """The number of likeliest tokens that are told with each token and its log-probability; None tells nothing."""


@dataclass(frozen=True)
class Delta:
    """The next piece of an answer."""

    text: str
    finish: Finish | None
    """Why the answer ends with this piece: by the model's or a client's end mark, or at the most tokens."""
    prompt_tokens: int
    tokens: int
    """The number of tokens of the answer so far."""
    told: Sequence[JsonObject] = ()
    """The tokens that begin in the piece, if they are told, in the form of OpenAI's `logprobs`."""
    boxes: Sequence[JsonObject] = ()
    """With the last piece, the boxes in an answer about a single image."""


@dataclass(eq=False)
class Question:
    """A conversation that waits for its answer, of at most `most` tokens, up to the first of the texts `stops`."""

    model: ChatModel
    chat: Chat
    images: Sequence[Image | PreparedImage]
    most: int
    stops: Sequence[str]
    choosing: Choosing
    on_delta: Callable[[Delta | Exception], None]
    """Called by another thread for each piece of the answer, or with the error in its place."""
    given_up: bool = False

    @property
    def pixels(self) -> int:
        """The number of pixels of its images."""
        return sum(width * height for width, height in (image.size for image in self.images))


class Talker(Worker[Question]):
    """A thread that answers questions."""

    def __init__(self) -> None:
        self._paused: deque[_Group] = deque()
        self._fresh = False  # whether the last turn was that of new questions
        super().__init__("adapt-talker")

    def _answer(self, taken: _Group) -> None:
        self._begin()
        try:
            taken.go_on(lambda: bool(self._paused or (self._queue and self._has_room)), self._begin)
        except Exception as error:  # noqa: BLE001  # an error of the model goes to the clients
            if len(taken.answers) > 1 and not any(answer.tokens for answer in taken.answers):
                self._paused.extend(_Group([answer.question]) for answer in taken.answers)  # one by one
                return
            for answer in taken.open:
                answer.question.on_delta(error)
            return
        finally:
            self._begun.clear()
        if taken.open:
            self._paused.append(taken)
            time.sleep(_PAUSE)

    @property
    def _has_room(self) -> bool:
        return sum(len(group.open) for group in self._paused) < _BEGUN

    def _next(self) -> _Group | None:
        """Wait for questions and return the group whose turn it is, or None once the talker is closed and idle."""
        with self._changed:
            while True:
                self._queue = deque(each for each in self._queue if not each.given_up)
                self._paused = deque(group for group in self._paused if group.open)
                new = bool(self._queue and self._has_room)
                if new and not (self._fresh and self._paused):
                    self._fresh = True
                    return _Group(self._taken())
                if self._paused:
                    self._fresh = False
                    return self._paused.popleft()
                if self._closed:
                    return None
                self._wait()

    def _taken(self) -> list[Question]:
        """Take the first question, and others to the same model, from those that wait."""
        first = self._queue[0]
        taken, pixels = [first], first.pixels
        for question in islice(self._queue, 1, None):
            pixels += question.pixels if question.model is first.model else 0
            if question.model is first.model and len(taken) < TOGETHER and pixels <= _PIXELS:
                taken.append(question)
        self._queue = deque(question for question in self._queue if question not in taken)
        return taken


class _Group:
    """Questions that are answered together."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.answers = [_Answer(question) for question in questions]
        self._ongoing: OngoingAnswers | None = None

    @property
    def open(self) -> list[_Answer]:
        """The answers that have not ended, and that somebody waits for."""
        return [answer for answer in self.answers if not answer.ended]

    def go_on(self, others_wait: Callable[[], bool], stepped: Callable[[], None]) -> None:
        """Generate tokens until all answers have ended, or until others wait and a turn is over."""
        questions = [answer.question for answer in self.answers]
        if self._ongoing is None:
            first, images = questions[0], [question.images for question in questions]
            chats = [question.chat for question in questions]

            def scored(input_ids: Tensor, logits: Tensor) -> Tensor:
                return torch.stack([answer.scores(row) for answer, row in zip(self.answers, logits, strict=True)])

            self._ongoing = OngoingAnswers(first.model, images, chats, logits_processor=[scored])
            for answer, tokens in zip(self.answers, self._ongoing.prompt_tokens, strict=True):
                answer.prompt_tokens = tokens
        self._ongoing.go_on(partial(self._generated, count(1), others_wait, stepped))

    def _generated(
        self, steps: Iterator[int], others_wait: Callable[[], bool], stepped: Callable[[], None], tokens: Tensor
    ) -> Tensor:
        stepped()
        for answer, token in zip(self.answers, tokens.tolist(), strict=True):
            answer.add(token)
        step = next(steps)
        paused = step >= _LONGEST_TURN or (step >= _TURN and others_wait())
        return torch.tensor([paused or answer.ended for answer in self.answers])


class _Answer:
    """The answer to a question, as far as it has been generated."""

    def __init__(self, question: Question) -> None:
        self.question, self.prompt_tokens = question, 0
        self.tokens: list[int] = []
        self._decoded = self._text = ""  # all of it, and the part that has been sent
        self._told: deque[tuple[int, JsonObject]] = deque()  # tokens that are not sent, by where they begin
        self._log_probabilities = torch.empty(0)
        self._random = torch.Generator().manual_seed(question.choosing.seed)
        self._finished = False

    @property
    def ended(self) -> bool:
        return self._finished or self.question.given_up

    def scores(self, logits: Tensor) -> Tensor:
        """Return scores `(v,)`, the highest of which is the next token: its `logits` `(v,)`, perhaps with noise.

        The token of the highest logit is a draw by their softmax if each has a noise of Gumbel's distribution.
        """
        how = self.question.choosing
        if how.told is not None:
            self._log_probabilities = logits.log_softmax(-1)
        if how.temperature == 0:
            return logits
        kept = logits / how.temperature
        if how.top_p < 1:
            from transformers import TopPLogitsWarper  # which a server of CLIPs does without

            kept = TopPLogitsWarper(how.top_p)(torch.empty(0), kept[None])[0]
        drawn = torch.empty(kept.shape).exponential_(generator=self._random).clamp_min(torch.finfo(torch.float32).tiny)
        return kept - drawn.log().to(kept)

    def add(self, token: int) -> None:
        """Add a token, and send the text that can no longer change."""
        if self.ended:
            return
        question, backbone = self.question, self.question.model.backbone
        self.tokens.append(token)
        if question.choosing.told is not None:
            self._told.append((len(self._decoded.rstrip(_BROKEN)), self._token(token, question.choosing.told)))
        finish: Finish | None = None
        if token in question.model.ends:
            finish = "stop"
        elif len(self.tokens) >= min(question.most, backbone.longest - self.prompt_tokens):
            finish = "length"
        text = self._decoded = str(backbone.tokenizer.decode(self.tokens, skip_special_tokens=True)).lstrip()
        cut = min((place for stop in question.stops if (place := text.find(stop)) >= 0), default=None)
        if cut is not None:
            text, finish = text[:cut], "stop"
        text = text.rstrip() if finish else self._certain(text)
        self._finished = finish is not None
        if finish or len(text) > len(self._text):
            told = []
            while self._told and self._told[0][0] < len(text):
                told.append(self._told.popleft()[1])
            alone = finish and len(question.images) == 1
            found = backbone.found(text, question.images[0].size, strict=True) if alone else None
            boxes, piece = [box.plain() for box in found or ()], text[len(self._text) :]
            question.on_delta(Delta(piece, finish, self.prompt_tokens, len(self.tokens), told, boxes))
            self._text = text

    def _token(self, token: int, likeliest: int = 0) -> JsonObject:
        """Return a token in the place of the last one, with its log-probability and that of the likeliest ones."""
        text, value = str(self.question.model.backbone.tokenizer.decode([token])), self._log_probabilities[token].item()
        content = None if _BROKEN in text else [*text.encode()]
        others = self._log_probabilities.topk(min(likeliest, len(self._log_probabilities))).indices.tolist()
        known = {"token": text, "logprob": max(value, _LEAST), "bytes": content}
        return known | {"top_logprobs": [self._token(other) for other in others]}

    def _certain(self, text: str) -> str:
        """Return the beginning of a text that stays as it is: no space at its end, half a character, or half a stop."""
        text = text.rstrip(_BROKEN).rstrip()
        for stop in self.question.stops:
            begun = next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
            text = text[: len(text) - begun]
        return text

"""Native vision-language models with a method: conversations about images, answered in words or by classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.backbones.encoded_images import EncodedImage, PreparedImage
from adapt.backbones.native import ChatImages, ChatRows, NativeVLM
from adapt.chats import Chat
from adapt.common.errors import AdaptError, about
from adapt.common.validation import with_changes
from adapt.data.decoding.images import image_sizes, in_batches, open_image
from adapt.data.item import Item
from adapt.edits import Edit
from adapt.engine import hooks
from adapt.methods.base import Context, Method, Step
from adapt.methods.base.class_loss import CROSS_ENTROPY
from adapt.methods.zero_shot import ZeroShot
from adapt.models import debiasing, generation
from adapt.models.base import Adapted, evaluating, in_one_mode
from adapt.models.debiasing import ChatAtUse, Mode
from adapt.models.generation import Answer, answers_of
from adapt.models.prediction import Prediction, Query, judged, predictions
from adapt.prompts import check_class_names

if TYPE_CHECKING:
    from PIL.Image import Image

Computed = TypeVar("Computed")

MOST_TOKENS = 64  # of an answer, unless more are asked for
TOGETHER = 8  # conversations that pass through the model at once, where nothing is learned
OPTIONS = 32  # answers that share a row of tokens
_LARGE = 2**22  # pixels


class ChatStep(Step):
    """A batch of conversations, each with its images, that end with the answer to learn."""

    model: ChatModel

    @cached_property
    def chats(self) -> list[Chat]:
        """The conversations, by default as the task of the items says them."""
        assert self.task is not None
        return [self.task.chat(item, self.model.backbone.question) for item in self.items]

    @cached_property
    def rows(self) -> ChatRows:
        """The conversations as rows of tokens."""
        return self.model.backbone.rows(self.chats, self.inputs)

    @property
    def weight(self) -> float:
        """The number of tokens that the batch learns, or of conversations with a loss over class names.

        Images are not prepared for it, so that of accumulated batches those of one alone are held at a time.
        """
        return float(len(self.chats) if self._over_names else self.model.backbone.learned_tokens(self.chats))

    @property
    def _over_names(self) -> bool:
        classes = self.task is not None and self.task.has_class_loss
        return classes and self.model.class_loss.objective != CROSS_ENTROPY

    @property
    def frozen_logits(self) -> Tensor:
        return self._with(self.model.under(ZeroShot())).logits

    @cached_property
    def answer_logits(self) -> Tensor:
        """The logits `(t, v)` at the positions that predict the t tokens of answers, row by row."""
        return self.model.answer_logits(self.rows)

    @property
    def targets(self) -> Tensor:
        """The tokens of answers `(t,)`, row by row."""
        return self.rows.inputs["input_ids"][:, 1:][self.rows.answers[:, 1:]]

    @cached_property
    def cross_entropy(self) -> Tensor:
        """The mean cross-entropy of the answers' tokens."""
        return F.cross_entropy(self.answer_logits.float(), self.targets)

    @property
    def perplexities(self) -> Tensor:
        """The perplexity of the learned answers of each conversation `(b,)`, by the mean over their tokens."""
        learned = self.rows.answers[:, 1:]
        losses = F.cross_entropy(self.answer_logits.float(), self.targets, reduction="none")
        by_token = torch.zeros(learned.shape, device=losses.device).masked_scatter(learned, losses)
        return (by_token.sum(-1) / learned.sum(-1)).exp()

    @property
    def right(self) -> Tensor:
        """Whether the model predicts every token of the answers of each conversation `(b,)`.

        With a loss over class names, whether the right name is the most probable one.
        """
        if self._over_names:
            return super().right
        learned = self.rows.answers[:, 1:]
        wrong = torch.zeros_like(learned).masked_scatter(learned, self.answer_logits.argmax(-1) != self.targets)
        return ~wrong.any(-1)


class ChatModel(Adapted[NativeVLM]):
    """A native vision-language model: `chat` and `answer` give words; with class names it also classifies images.

    The probability of a class is that of its name as the answer to the backbone's `question`, among all names: the sum
    of the log-probabilities of the name's tokens, the token that ends the answer included, divided by their number.
    """

    baseline = "without the adapter"
    evaluated_together = TOGETHER
    loss_inputs: Any = None
    """The task's own inputs of its loss, such as the log-probabilities of a reference."""
    at_use = debiasing.ChatAtUse()
    """The settings that can be changed at inference."""

    def __init__(
        self,
        backbone: NativeVLM,
        method: Method,
        class_names: Sequence[str],
        fast: bool | None = None,
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(backbone, method, class_names, checkpointing=checkpointing)
        against = "it is switched off" if fast is False else backbone.reason_against_branches
        if fast and against:
            raise AdaptError(
                f"fast=True, but {backbone.describe()} cannot use the fast path ({against}): leave fast out, or load "
                "the model with attn_implementation='sdpa'"
            )
        self.path: Literal["fast", "plain"] = "plain" if against else "fast"

    @property
    def classifies(self) -> bool:
        return bool(self.class_names)

    def with_classes(self, class_names: Sequence[str]) -> Self:
        other = copy(self)
        other.class_names = check_class_names(class_names)
        return other

    def set_at_use(self, **changes: object) -> None:
        """Change settings that count when the model answers: those of `ChatAtUse`, and those of the method.

        Raises AdaptError for an unknown name and a wrong value.
        """
        named = {name: changes.pop(name) for name in ChatAtUse.model_fields if name in changes}
        own = with_changes(self.at_use, named)
        if changes:
            super().set_at_use(**changes)
        self.at_use = own

    def step(self, inputs: object, labels: Tensor | None = None) -> ChatStep:
        return ChatStep(self, inputs, labels)

    def check_items(self, items: Sequence[Item]) -> None:
        """Raise AdaptError if conversations take more tokens than the decoder reads; nothing is ever cut."""
        lengths = self.lengths(items)
        longest = self.backbone.longest
        long = [item for item, length in zip(items, lengths, strict=True) if length > longest]
        if long:
            raise AdaptError(
                f"{len(long):,} of {len(items):,} conversations take more than the {longest:,} tokens that "
                f"{self.backbone.describe()} reads, the longest {max(lengths):,}, such as {long[0].name!r}: set "
                "data.max_pixels for smaller images, shorten them, or take them out"
            )

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Return the number of tokens of each item's longest conversation, from the sizes of its images alone.

        Raises AdaptError, naming the item, if the chat template refuses a conversation.
        """
        lengths: list[int] = []
        for item in items:
            with about(repr(item.name)):
                chats = item.task.chats(item, self.backbone.question)
                sizes = item.task.images_of_chats(item, image_sizes(item))
                lengths.append(max(self.backbone.lengths(chats, sizes)))
        return lengths

    def question_step(self, inputs: object, questions: Sequence[str], answers: Sequence[str]) -> ChatStep:
        return self.step(inputs)  # whose conversations the task makes of the items

    @in_one_mode
    def answer_logits(self, rows: ChatRows) -> Tensor:
        """Return the logits `(t, v)` at the positions that predict the t tokens of answers, row by row."""
        return self._logits_at(F.pad(rows.answers[:, 1:], (0, 1)), rows.inputs)

    def forward(self, images: Sequence[ChatImages], chats: Sequence[Chat | str]) -> Tensor:
        """Return logits `(b, l, v)` for conversations, or questions, about the images of each, padded on the right."""
        rows = self.backbone.rows(_chats(images, chats), images)
        logits: Tensor = self._edited(lambda: self.backbone.vlm(**rows.inputs, use_cache=False)).logits
        return logits

    def _logits_at(self, needed: Tensor, inputs: Mapping[str, object]) -> Tensor:
        """Return the logits `(t, v)` at the `needed` tokens `(b, l)`, to which the fast path limits the last block."""
        decoder = self.backbone.tower("decoder")

        def compute() -> Tensor:
            with hooks.shortened(decoder.blocks[-1].module, needed) if short else nullcontext():
                logits: Tensor = self.backbone.vlm(**inputs, logits_to_keep=needed, use_cache=False).logits
            return logits

        edits = self._all_edits()
        # without edits, other threads share the model, and must not meet the shortened block
        edited = self.path == "fast" and any(edits.values())
        short = edited and hooks.shortens(decoder, edits.get("decoder", ()))
        return self._through(edits, compute)

    def _edited(self, compute: Callable[[], Computed], merge: bool = False) -> Computed:
        return self._through(self._all_edits(), compute, merge)

    def _all_edits(self) -> dict[str, list[Edit]]:
        return {name: self._edits(name, Context()) for name in sorted(self.method.touches)}

    # choosing among given answers

    @torch.no_grad()
    def log_likelihood(
        self, images: Sequence[ChatImages], chats: Sequence[Chat | str], answers: Sequence[str]
    ) -> Tensor:
        """Return the sum of the log-probabilities of each answer's tokens `(b,)`, the token that ends it included.

        Each answer follows a conversation, or a question, about its images.
        """
        return self._sums(images, _chats(images, chats), answers)[0]

    def _sums(
        self, images: Sequence[ChatImages], chats: Sequence[Chat], answers: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of the log-probabilities of each answer's tokens `(b,)`, and the number of tokens `(b,)`."""
        rows = self.backbone.rows([chat.ending(answer) for chat, answer in zip(chats, answers, strict=True)], images)
        learned, tokens = rows.answers[:, 1:], rows.inputs["input_ids"][:, 1:]
        scores = self.answer_logits(rows).float().log_softmax(-1).gather(-1, tokens[learned][:, None])[:, 0]
        return torch.zeros(learned.shape, device=scores.device).masked_scatter(learned, scores).sum(-1), learned.sum(-1)

    @in_one_mode
    def score_each(
        self, images: Sequence[ChatImages], chats: Sequence[Chat | str], answers: Sequence[Sequence[str]]
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of the log-probabilities of the tokens of each conversation's answers, and their number.

        Both are `(answers,)`, the answers of all conversations one after the other. On the fast path, images are
        encoded once, and the decoder reads the beginning that the answers of a conversation share once.
        """
        chats = _chats(images, chats)
        if self.path == "plain":
            every = [(own, chat, answer) for own, chat, each in zip(images, chats, answers) for answer in each]
            return self._sums(*zip(*every, strict=True))
        branches, inputs = self.backbone.branches(chats, self.encoded(images), answers)
        return branches.scores(self._logits_at(branches.predicting, inputs))

    def encoded(self, images: Sequence[ChatImages]) -> list[list[EncodedImage]]:
        """Return the images of each conversation as the decoder reads them, by the adapted tower and connector."""
        pictures = [image for own in images for image in own if not isinstance(image, EncodedImage)]
        made = iter(self._edited(lambda: self.backbone.encode_images(pictures)) if pictures else ())
        return [[image if isinstance(image, EncodedImage) else next(made) for image in own] for own in images]

    def prepared(self, image: Image) -> Image | PreparedImage:
        """Return a large image as the vision tower reads it, if that takes less memory, or else the image itself."""
        if image.width * image.height <= _LARGE or self._needs_pictures:
            return image
        prepared = self.backbone.prepare(image)
        return prepared if prepared.bytes < 3 * image.width * image.height else image

    @property
    def preparation(self) -> tuple[str, bool]:
        """How images are prepared: the processor's settings, and whether something needs the picture itself."""
        return self.backbone.image_settings, self._needs_pictures

    @property
    def _needs_pictures(self) -> bool:
        return self.path == "plain" or "noise" in (self.at_use.calibrate, self.at_use.debias)

    @torch.no_grad()
    def choose(
        self,
        images: Sequence[ChatImages],
        chats: Sequence[Chat | str],
        options: Sequence[str],
        *,
        calibrate: Mode | None = None,
    ) -> Tensor:
        """Return logits `(b, n)` of the same n options as the answer in each conversation, or to each question.

        They are the mean log-probabilities of the options' tokens, so that a long option is as probable as a short one.
        With `calibrate`, the options' probabilities are divided by those without the image (see
        `adapt.models.debiasing`). Raises AdaptError if there are no options, or if the mode cannot be used.
        """
        if not options:
            raise AdaptError("there are no options to choose from: give at least one")
        at_use = with_changes(self.at_use, _given(calibrate=calibrate))
        return self._options(images, _chats(images, chats), options, at_use)

    def _options(
        self, images: Sequence[ChatImages], chats: Sequence[Chat], options: Sequence[str], at_use: ChatAtUse
    ) -> Tensor:
        """Return the logits of `choose`, through which a loss over class names takes its gradient."""
        logits = self._chosen(images, chats, options)
        if (mode := at_use.calibrate) is None:
            return logits
        others = debiasing.without_images(mode, images, chats, self.backbone.tokenizer.unk_token)
        without = [self._probabilities(*each, options) for each in others]
        return debiasing.calibrated(logits, torch.stack(without).mean(0))

    def _probabilities(self, images: Sequence[ChatImages], chats: Sequence[Chat], options: Sequence[str]) -> Tensor:
        """Return probabilities `(b, n)` of options; equal conversations without images are computed once."""
        if any(images):
            return self._chosen(images, chats, options).softmax(-1)
        row = {chat: number for number, chat in enumerate(dict.fromkeys(chats))}
        distinct = self._chosen([[] for _ in row], list(row), options).softmax(-1)
        return distinct[[row[chat] for chat in chats]]

    def _chosen(self, images: Sequence[ChatImages], chats: Sequence[Chat], options: Sequence[str]) -> Tensor:
        fast = self.path == "fast"  # otherwise each option is a row of its own, with its image
        together, each = (TOGETHER, OPTIONS) if fast else (max(1, TOGETHER // len(options)), TOGETHER)
        logits = []
        for part in in_batches(zip(images, chats, strict=True), together):
            own, asked = zip(*part, strict=True)
            seen: Sequence[ChatImages] = self.encoded(own) if fast else own
            columns = [self._means(seen, asked, some) for some in in_batches(options, each)]
            logits.append(torch.cat(columns, dim=-1))
        return torch.cat(logits)

    def _means(self, images: Sequence[ChatImages], chats: Sequence[Chat], options: Sequence[str]) -> Tensor:
        """Return the mean log-probability `(b, n)` of the tokens of each of n options in each conversation."""
        sums, tokens = self.score_each(images, chats, [options] * len(chats))
        return (sums / tokens).view(len(chats), len(options))

    def own_logits(self, step: ChatStep) -> Tensor:
        """Return the logits `(b, n)` of the classes for a batch of conversations, whose own answers are left out."""
        return self._options(step.inputs, [chat.question for chat in step.chats], self.class_names, self.at_use)

    # answering in words

    @torch.no_grad()
    def generate(
        self,
        images: Sequence[ChatImages],
        chats: Sequence[Chat | str],
        *,
        max_new_tokens: int = MOST_TOKENS,
        merge: bool | None = None,
        debias: Mode | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Return the next answer in each conversation, or to each question, by transformers' `generate`.

        `merge` merges low-rank updates into copies of the weights, used for all tokens of an answer; by default, if
        there is one conversation. With `debias`, `alpha` times what would be answered without the image is taken out of
        each token's scores (see `adapt.models.debiasing`); by default as set at use. `options` are options of
        `generate`, such as `num_beams`. Raises AdaptError if answers are to be both debiased and sampled.
        """
        vlm, tokenizer = self.backbone.vlm, self.backbone.tokenizer
        settings: dict[str, Any] = {"do_sample": False, "eos_token_id": self.ends} | options
        asked, shown, groups = _chats(images, chats), list(images), 1
        at_use = with_changes(self.at_use, _given(debias=debias, alpha=alpha, beta=beta))
        if at_use.describe:
            plain, seen = copy(self), [place for place, own in enumerate(images) if own]
            plain.at_use = with_changes(at_use, {"describe": None})
            own, prompts = [images[place] for place in seen], [at_use.describe] * len(seen)
            answers = (
                plain.generate(own, prompts, max_new_tokens=max_new_tokens, merge=merge, **options) if seen else ()
            )
            for place, answer in zip(seen, answers, strict=True):
                asked[place] = asked[place].with_context("Image description", answer.text)
        if mode := at_use.debias:
            if settings["do_sample"]:
                raise AdaptError("debiased answers cannot be sampled: leave out do_sample, or debias")
            others = debiasing.without_images(mode, images, asked, tokenizer.unk_token)
            groups += len(others)
            settings["logits_processor"] = [
                *settings.get("logits_processor", ()), debiasing.Debiasing(groups, at_use.alpha, at_use.beta)
            ]  # fmt: skip
            for more, again in others:
                shown, asked = shown + more, asked + again
        with evaluating(self):
            rows = self.backbone.rows(asked, shown, left=True, asks=True)
            output = self._edited(
                lambda: vlm.generate(
                    **rows.inputs,
                    max_new_tokens=max_new_tokens,
                    pad_token_id=generation.padding(tokenizer),
                    return_dict_in_generate=True,
                    output_scores=True,
                    **settings,
                ),
                len(chats) == 1 if merge is None else merge,
            )
        answers = answers_of(vlm, tokenizer, output, settings["eos_token_id"])
        return answers[: len(answers) // groups]  # the first group sees the images

    @property
    def ends(self) -> list[int]:
        """The ids of tokens that end an answer: the chat template's, the tokenizer's and the model's own."""
        return generation.ends(self.backbone.vlm, self.backbone.tokenizer, self.backbone.end)

    def chat(self, chat: Chat, images: Sequence[object] = (), **options: Any) -> Answer:
        """Return the next answer in a conversation; `images` are of any form that `adapt.data.open_image` takes.

        `options` are those of `generate`.
        """
        pictures = [open_image(image, turned=self.backbone.preprocess.turned) for image in images]
        return self.generate([pictures], [chat], **options)[0]

    def answer(self, image: object, question: str, **options: object) -> Answer:
        """Return the answer to a question about one image, of any form that `adapt.data.open_image` takes."""
        return self.chat(Chat.about(question), [image], **options)

    def probabilities(self, images: object, batch_size: int = 64, *, urls: bool = False) -> Tensor:
        """Return the probabilities `(n, n_classes)` of all classes, on the CPU; `images` is as in `predict`."""

        def compute(model: ChatModel, pixels: Any) -> Tensor:
            return model.answers.probabilities(model._class_logits(pixels).float()).cpu()

        return torch.cat(list(self._of_batches(images, batch_size, urls, compute)))

    def _class_logits(self, images: Sequence[ChatImages]) -> Tensor:
        """Return the logits `(b, n)` of the classes as the model answers with them, for the images of one each."""
        step = self.step(images)
        step.chats = [Chat.about(self.backbone.question)] * len(images)
        return self.answered(step)

    def decide(self, step: Step) -> tuple[list[str], list[float]]:
        assert isinstance(step, ChatStep)
        ids = self.backbone.tokenizer([chat.answer for chat in step.chats])["input_ids"]
        longest = MOST_TOKENS + max(map(len, ids))  # so that no right answer is cut
        answers = self.generate(step.inputs, [chat.question for chat in step.chats], max_new_tokens=longest)
        return [answer.text for answer in answers], [answer.probability for answer in answers]

    def _predictions(self, pixels: Any, query: Query) -> Iterator[Prediction]:
        """Yield one prediction for each image: the most probable classes, or options, or an answer in words."""
        if query.question is None and self.class_names:
            yield from predictions(self._class_logits(pixels), self.class_names, query, self.answers)
            return
        if query.options is not None:
            logits = self.choose(pixels, [query.question or ""] * len(pixels), query.options)
            yield from predictions(logits, query.options, query)
            return
        batches = in_batches(pixels, TOGETHER)
        answered = (zip(batch, self.generate(batch, [query.question or ""] * len(batch))) for batch in batches)
        for [image, *_], answer in chain.from_iterable(answered):
            boxes = self.backbone.found(answer.text, image.size, strict=True) or None
            only = Prediction(answer.text, answer.probability, ((answer.text, answer.probability),), boxes=boxes)
            yield judged(only, query.threshold)


def _given(**settings: object) -> dict[str, object]:
    return {name: value for name, value in settings.items() if value is not None}


def _chats(images: Sequence[ChatImages], chats: Sequence[Chat | str]) -> list[Chat]:
    """Return conversations; a text is a question about all of its images."""
    return [
        Chat.about(chat, images=len(own)) if isinstance(chat, str) else chat
        for own, chat in zip(images, chats, strict=True)
    ]

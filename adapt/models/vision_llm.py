"""Vision LLMs with a method, which answer questions about images in words."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cache, cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from adapt.backbones.locks import alone
from adapt.backbones.vision_llm import VisionLLM
from adapt.common.errors import AdaptError
from adapt.common.shown import brief
from adapt.data.decoding.images import open_image
from adapt.edits import Edit, Replace, Tokens
from adapt.engine.hooks import watched
from adapt.engine.plan import plan
from adapt.methods.base import Context, Step
from adapt.models import generation
from adapt.models.base import Adapted, evaluating, in_one_mode
from adapt.models.generation import Answer, answers_of
from adapt.models.prediction import Prediction, Query, check_asked, judged

Example = tuple[object, str, str]  # an image, a question about it, and the answer


def _of_each(edit: Tokens, images: int) -> Tensor:
    """Return the learned tokens `(b, k, d)` of an edit, repeated for each image if all images share the tokens."""
    return edit.values.expand(images, 1, *edit.values.shape[-2:])[:, 0]


class _Read(NamedTuple):
    """Logits `(b, l, v)`, the answers' tokens as targets `(b, l)`, and any visual tokens `(b, k, d)` of the images."""

    logits: Tensor
    targets: Tensor
    visual: Tensor | None
    places: Tensor  # a mask `(b, l)` of visual tokens


class AnswerStep(Step):
    """A batch of images with one question and one answer for each image."""

    model: SpeakingModel

    @cached_property
    def read(self) -> _Read:
        """The logits, the targets and the visual tokens of the batch."""
        return self.model._read(*self.inputs)

    def states(self, blocks: Collection[str]) -> dict[str, Tensor]:
        """Return the outputs `(b, k, d)` of blocks, such as decoder.3, at the visual tokens, with gradient."""
        backbone = self.model.backbone
        with watched(backbone.model, backbone.towers, blocks) as seen:
            self.read = self.model._read(*self.inputs)
        images = len(self.answers)
        return {name: after[self.read.places].unflatten(0, (images, -1)) for name, (_, after) in seen.items()}

    @property
    def answers(self) -> Sequence[str]:
        """The answers to learn."""
        answers: Sequence[str] = self.inputs[2]
        return answers

    @property
    def visual_tokens(self) -> Tensor:
        """The visual tokens `(b, k, d)` of the images, with gradient. Raises AdaptError if the method makes none."""
        if self.read.visual is None:
            raise AdaptError(f"{self.model.method.name} makes no visual tokens: use a method such as projector")
        return self.read.visual

    @property
    def weight(self) -> float:
        """The number of tokens that the batch learns."""
        _, questions, answers = self.inputs
        return float(generation.learned(self.model.backbone, questions, answers))

    @cached_property
    def cross_entropy(self) -> Tensor:
        """The mean cross-entropy of the answers' tokens."""
        return generation.loss(self.logits, self.read.targets)[0]

    @property
    def right(self) -> Tensor:
        """The mask `(b,)` of answers for which the model predicts every token correctly."""
        return generation.loss(self.logits, self.read.targets)[1]


class SpeakingModel(Adapted[VisionLLM]):
    """A vision LLM with a method; `model.answer(image, question)` returns text, and a call returns logits."""

    baseline = "no image"

    def forward(self, images: Tensor, questions: Sequence[str], answers: Sequence[str] | None = None) -> Tensor:
        """Return logits `(b, l, vocabulary)` for images `(b, 3, h, w)`, questions and, if given, answers.

        Token sequences are padded on the right.
        """
        return self._read(images, questions, answers).logits

    def loss(self, images: Tensor, questions: Sequence[str], answers: Sequence[str]) -> Tensor:
        """Return the mean cross-entropy of the answers' tokens, including the end tokens."""
        read = self._read(images, questions, answers)
        return generation.loss(read.logits, read.targets)[0]

    @in_one_mode
    def _read(self, images: Tensor, questions: Sequence[str], answers: Sequence[str] | None) -> _Read:
        rows, values, edits = self._inputs(images, questions, answers, left=False)

        def read() -> Any:
            return self.backbone.llm(
                inputs_embeds=self._embedded(rows, values),
                attention_mask=rows.mask.long(),
                position_ids=rows.positions,
                use_cache=False,
            )

        return _Read(self._through({"decoder": edits}, read).logits, rows.targets, values, rows.visual)

    def _inputs(
        self,
        images: Tensor,
        questions: Sequence[str],
        answers: Sequence[str] | None,
        left: bool,
        examples: Sequence[Example] = (),
    ) -> tuple[generation.Rows, Tensor | None, list[Edit]]:
        """Return token sequences, the learned tokens `(b, k, d)` to insert or None, and the decoder's other edits."""
        check_asked(images, questions)
        if answers is not None:
            check_asked(images, answers, "answer")
        values, edits = self._visual(images)
        visual = 0 if values is None else values.shape[1]
        if wrong := [each for each in examples if not isinstance(each, tuple) or len(each) != 3]:
            raise AdaptError(f"examples has {brief(wrong[0])}; expected tuples (image, question, answer)")
        words = [(question, answer) for _, question, answer in examples]
        rows = generation.rows(self.backbone, questions, answers, visual, left, words)
        if words:
            values = torch.cat(
                [self._shown(examples, edits).expand(len(images), -1, -1), cast("Tensor", values)], dim=1
            )
        return rows, values, edits

    def _visual(self, images: Tensor) -> tuple[Tensor | None, list[Edit]]:
        """Return the learned tokens `(b, k, d)` of images, or None, and the decoder's other edits."""
        seen, before = cache(lambda: self._seen(images)), self.backbone.first_patch
        context = Context(tokens={"vision": lambda: seen()[:, before:]}, class_tokens={"vision": lambda: seen()[:, 0]})
        edits = self._edits("decoder", context)
        planned = plan(self.backbone.tower("decoder"), edits)
        if planned.overwriting or planned.attention:
            raise AdaptError(
                "a decoder cannot change learned tokens inside its blocks: use a method that adds tokens at the input"
            )
        values = None if planned.entering is None else _of_each(planned.entering, len(images))
        return values, [edit for edit in edits if not isinstance(edit, Tokens)]

    def _shown(self, examples: Sequence[Example], edits: Sequence[Edit]) -> Tensor:
        """Return the learned tokens `(1, m, d)` of all examples' images, one image after the other.

        Raises AdaptError if `edits`, those of the question's own image, change the decoder by what that image shows.
        """
        turned = self.backbone.preprocess.turned
        transform = self.backbone.transform(train=False)
        images = torch.stack([transform(open_image(image, turned=turned)) for image, _, _ in examples])
        values, _ = self._visual(images)
        if values is None or not all(isinstance(edit, Replace) for edit in edits):
            raise AdaptError(
                f"examples need images as visual tokens and nothing else, which {self.method.name} does not give: "
                "leave examples out, or use projector or mqt"
            )
        return values.flatten(0, 1)[None]

    def _embedded(self, rows: generation.Rows, values: Tensor | None) -> Tensor:
        """Return the decoder's input embeddings `(b, l, d)` for token sequences, with learned tokens inserted."""
        embedded: Tensor = self.backbone.llm.get_input_embeddings()(rows.ids.clamp(min=0))
        return (
            embedded if values is None else embedded.masked_scatter(rows.visual[..., None], values.to(embedded.dtype))
        )

    def _seen(self, images: Tensor) -> Tensor:
        """Return features `(b, l, d)` of the class token, if the tower has one, and of the patches, under all edits."""
        backbone, edits = self.backbone, self._edits("vision", Context())
        with alone(backbone.model):  # reading a block's output needs the backbone alone
            return self._through({"vision": edits}, lambda: backbone.tokens(images.to(backbone.device)))

    def step(self, inputs: object, labels: Tensor | None = None) -> AnswerStep:
        return AnswerStep(self, inputs, labels)

    def own_logits(self, step: AnswerStep) -> Tensor:
        return step.read.logits

    def decide(self, step: Step) -> tuple[list[str], list[float]]:
        images, questions, _ = step.inputs
        answers = self.generate(images, questions)
        return [answer.text for answer in answers], [answer.probability for answer in answers]

    @torch.no_grad()
    def generate(
        self,
        images: Tensor,
        questions: Sequence[str],
        *,
        max_new_tokens: int = 32,
        merge: bool | None = None,
        examples: Sequence[Example] = (),
        **options: Any,
    ) -> list[Answer]:
        """Return one answer for each pair of image `(b, 3, h, w)` and question, generated by transformers' `generate`.

        `examples` are images with a question and its answer each, read before every question (in-context learning, as
        in LiMBeR); an image has any form that `adapt.data.open_image` accepts.

        With `merge`, low-rank updates are merged into copies of the weights once for all tokens. By default, updates
        are merged for a single image. `options` are options of transformers' `generate`, such as `num_beams`.
        """
        backbone = self.backbone
        merge = len(images) == 1 if merge is None else merge
        ends = generation.ends(backbone.llm, backbone.tokenizer)
        settings: dict[str, Any] = {"do_sample": False, "eos_token_id": ends} | options
        with evaluating(self):
            rows, values, edits = self._inputs(images, questions, None, left=True, examples=examples)

            def speak() -> object:
                return backbone.llm.generate(
                    inputs_embeds=self._embedded(rows, values),
                    attention_mask=rows.mask.long(),
                    max_new_tokens=max_new_tokens,
                    pad_token_id=generation.padding(backbone.tokenizer),
                    return_dict_in_generate=True,
                    output_scores=True,
                    **settings,
                )

            output = self._through({"decoder": edits}, speak, merge)
        return answers_of(backbone.llm, backbone.tokenizer, output, settings["eos_token_id"])

    def _predictions(self, pixels: Tensor, query: Query) -> Iterator[Prediction]:
        """Yield one prediction for each image, with only one answer in `top` even if `top_k` is larger."""
        for answer in self.generate(pixels, [query.question or ""] * len(pixels)):
            only = Prediction(answer.text, answer.probability, ((answer.text, answer.probability),))
            yield judged(only, query.threshold)

    def answer(self, image: object, question: str, **options: Any) -> Answer:
        """Return the answer to a question about one image, in any form that `adapt.data.open_image` accepts.

        `options` are passed to `SpeakingModel.generate`.
        """
        picture = open_image(image, turned=self.backbone.preprocess.turned)
        pixels = self.backbone.transform(train=False)(picture)[None]
        return self.generate(pixels, [question], **options)[0]

"""Dual encoders with a method, which classify images by class names or by a trained head."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from adapt.backbones.base import DualEncoder
from adapt.common.devices import free_bytes
from adapt.common.errors import AdaptError
from adapt.common.shown import brief
from adapt.edits import Tokens
from adapt.methods.base import Context, ImageStep, Method, PairStep
from adapt.methods.base.traits import AveragesPrompts, owns_prompts, trait
from adapt.models.base import in_one_mode
from adapt.models.class_texts import ClassTexts, PromptAverage
from adapt.models.image_model import ImageModel
from adapt.models.prediction import Query
from adapt.prompts import Prompt, Texts, check_class_names, check_length, from_templates, of_classes, of_text, texts_key

if TYPE_CHECKING:
    from adapt.models.answer import Explanation


class AdaptedModel(ImageModel[DualEncoder]):
    """An adapted dual encoder, which classifies images by class names or by a trained head."""

    def __init__(
        self,
        backbone: DualEncoder,
        method: Method,
        class_names: Sequence[str],
        fast: bool | None,
        *,
        checkpointing: bool = False,
        text_memory: int | None = None,
    ) -> None:
        super().__init__(backbone, method, class_names, fast, checkpointing=checkpointing)
        # read once: chunks that changed from step to step would draw other dropout, and a resumed run would differ
        self.text_memory = text_memory or free_bytes(backbone.device) // 2
        averages = trait(method, AveragesPrompts)
        average = "unit" if averages is None else averages.prompt_average
        prompts = partial(method.prompts, backbone.tokenizer)
        self._texts = self._class_texts(prompts, checkpointing, average)
        self._each_text: ClassTexts | None = None
        self._others: tuple[Hashable, ClassTexts] | None = None  # the last prompts without a class
        self._frozen_texts: dict[tuple[Hashable, PromptAverage], ClassTexts] = {}

    def own_logits(self, step: ImageStep) -> Tensor:
        return step.cosine_logits(step.text_features if isinstance(step, PairStep) else step.class_features)

    def step(self, inputs: Any, labels: Tensor | None = None) -> ImageStep:
        return (PairStep if isinstance(inputs, list) else ImageStep)(self, inputs, labels)

    def _class_texts(
        self,
        prompts: Callable[[str], list[Prompt]],
        checkpointing: bool = False,
        average: PromptAverage = "unit",
    ) -> ClassTexts | None:
        """Return an encoder for the prompts of all classes, or None if the classes have no prompts."""
        if not (self.class_names and prompts(self.class_names[0])):
            return None
        by_class = of_classes(self.backbone.tokenizer, self.class_names, prompts)
        return ClassTexts(self.backbone, by_class, self.fast, checkpointing, average)

    @in_one_mode
    def class_features(self, image_features: Tensor | None = None, image_tokens: Tensor | None = None) -> Tensor:
        """Return class features `(n_classes, e)` with gradients to the method's parameters.

        The features have unit length if the method does not have the trait `AveragesPrompts`.

        For a method whose prompts depend on the image, unit-length `image_features` `(b, e)` and possibly
        `image_tokens` `(b, l, d)` are required, and the result is `(b, n_classes, e)`. For other methods, features
        without gradients are stored until the method's edits, the backbone's weights or the precision change.
        """
        if self._texts is None:
            raise self._no_prompts()
        return self._encoded(self._texts, image_features, image_tokens)

    @in_one_mode
    def prompt_features(self) -> tuple[Tensor, ...]:
        prompts = partial(self.method.prompts, self.backbone.tokenizer)
        texts = self._each_text = self._each_text or self._class_texts(prompts, self.checkpointing, "each")
        if texts is None:
            raise self._no_prompts()
        return self._encoded(texts).split(texts.counts)

    def _encoded(self, texts: ClassTexts, features: Tensor | None = None, tokens: Tensor | None = None) -> Tensor:
        """Return text features under the method's edits, or stored text features if no input has changed."""
        edits = self._edits("text", Context(_read(features), _read(tokens), self.frozen_class_features))
        if edits and (torch.is_grad_enabled() or self.method.training or self.method.per_image):
            return self.projected(texts.encode(edits, self.text_memory))
        return self.projected(texts.remembered(edits, self.text_memory))

    def frozen_class_features(self, templates: Texts, average: PromptAverage = "unit") -> Tensor:
        """Return class features `(n_classes, e)` of hand-written templates, computed by the unedited backbone.

        `templates` can be a function from a class name to the class's own texts. `average` is `unit` for the normalised
        mean of unit-length features of the templates, or `raw` for the mean of the tower's outputs.
        """
        tokenizer, key = self.backbone.tokenizer, (texts_key(templates), average)
        if key not in self._frozen_texts:
            own = templates if callable(templates) else lambda name: templates
            texts = self._class_texts(lambda name: from_templates(tokenizer, own(name), name), average=average)
            assert texts is not None
            self._frozen_texts[key] = texts
        return self._frozen_texts[key].remembered([], self.text_memory)

    @in_one_mode
    def encode(self, prompts: Sequence[Prompt]) -> Tensor:
        return self._encoded(self._singles("unit", prompts))

    @in_one_mode
    def encode_words(self, prompts: Sequence[Prompt], words: Tensor) -> Tensor:
        return self._singles("raw", prompts).encode([Tokens(words[:, None])], self.text_memory)

    def _singles(self, average: PromptAverage, prompts: Sequence[Prompt]) -> ClassTexts:
        """Return an encoder of prompts that belong to no class, the last one if it is of the same."""
        key, known = (average, *prompts), self._others  # read once, as another thread may replace it
        if known is None or known[0] != key:
            singles, like = [[prompt] for prompt in prompts], self._texts if known is None else known[1]
            known = self._others = key, ClassTexts(self.backbone, singles, self.fast, self.checkpointing, average, like)
        return known[1]

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        return self.encode([self.prompt_of(text) for text in texts])

    def check_encodes_texts(self) -> None:
        if owns_prompts(self.method):
            raise AdaptError(
                f"{self.method.name} learned prompt tokens for its class names, and cannot encode other texts: encode "
                "them without an adapter, or with an adapter that edits only the towers, such as lora"
            )

    def prompt_of(self, text: str) -> Prompt:
        """Return `text` as a prompt. Raises AdaptError, naming the text, if it is too long for the text tower."""
        prompt = of_text(self.backbone.tokenizer, text)
        check_length(self.backbone.tokenizer, prompt, f"the text {brief(text)}", "the text")
        return prompt

    @in_one_mode
    def text_features(self, texts: Sequence[str], unit: bool = True, edited: bool = False) -> Tensor:
        singles = [[self.prompt_of(text)] for text in texts]
        encoder = ClassTexts(self.backbone, singles, self.fast, average="each" if unit else "raw")
        with torch.no_grad():
            features = encoder.encode(self._edits("text", Context()) if edited else [], self.text_memory)
            return self.projected(features, unit) if edited else features

    def with_classes(self, class_names: Sequence[str]) -> Self:
        names = check_class_names(class_names)
        if self.method.per_class and names != self.class_names:
            raise AdaptError(
                f"this {self.method.name} learned tensors for each of its {len(self.class_names)} classes "
                "and cannot serve other class names: train on the new classes, or use a method with shared tensors"
            )
        return self._for(names, text_memory=self.text_memory)

    def explain(self, images: object, top_k: int = 2, batch_size: int = 64) -> list[Explanation]:
        """Return each image's prediction, with the image's cosines to the descriptors of the most probable classes.

        `images` is as in `predict`, and `top_k` is the number of explained classes. Raises AdaptError if the method
        does not classify by descriptors.
        """
        return list(self.ask(images, Query(top_k, explain=True), batch_size))

    def _no_prompts(self) -> AdaptError:
        return AdaptError(f"{self.method.name} has no prompts and therefore no class features")

    @property
    def text_path(self) -> str:
        return "none" if self._texts is None else self._texts.path

    def unwrap(self) -> DualEncoder:
        self._texts = self._each_text = self._others = None
        self._frozen_texts = {}
        return super().unwrap()

    def cut_skipped(self) -> None:
        super().cut_skipped()
        others = None if self._others is None else self._others[1]
        for texts in (self._texts, self._each_text, others, *self._frozen_texts.values()):
            if texts is not None:
                texts.forget()


def _read(of_images: Tensor | None) -> dict[str, Callable[[], Tensor]]:
    """Return a dictionary with a function `vision` that returns `of_images`, or an empty one if `of_images` is None."""
    return {} if of_images is None else {"vision": lambda: of_images}

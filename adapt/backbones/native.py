"""Native vision-language models of transformers as backbones: tower, connector and decoder that were trained together.

The library's own forward on its own processor's inputs is the path of all calls: whatever the processor returns (grids,
sizes, types of tokens) reaches the model.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from threading import Lock
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from adapt.backbones import chat_templates
from adapt.backbones.base import Backbone
from adapt.backbones.box_texts import IN_WORDS, OF_FAMILY, THOUSANDTHS, Boxed, BoxForm, Edges, NamedBox, Size
from adapt.backbones.branches import BranchedRow, Branches, padded, row_of
from adapt.backbones.decoder import tower_of
from adapt.backbones.encoded_images import (
    PER_TOKEN,
    EncodedImage,
    ImageMarks,
    PreparedImage,
    image_inputs,
    marks_of,
    parted,
    written,
)
from adapt.backbones.preprocess import AsDecoded, Preprocess, Transform
from adapt.backbones.tokenizer import check_words
from adapt.backbones.tower import Block, Form, Projection, Tower
from adapt.chats import Chat, Turn
from adapt.common.errors import AdaptError, unpanicked
from adapt.common.plain import JsonObject
from adapt.common.shown import brief

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from transformers import PreTrainedModel, ProcessorMixin

# settings of image processors that decide which pixels, and how many tokens, an image becomes
_OF_PIXELS = (
    "size", "crop_size", "max_image_size", "do_resize", "do_center_crop", "do_image_splitting", "do_normalize",
    "image_mean", "image_std", "resample", "patch_size", "merge_size", "min_pixels", "max_pixels",
    "image_grid_pinpoints", "min_patches", "max_patches",
)  # fmt: skip

PREPARING = Lock()  # padding and truncation are state of a tokenizer, which threads would change for each other
_MOST_SIZES = 1000  # of images whose marks are remembered
_PROBES = ((48, 32), (300, 700), (1100, 400))  # sizes for which a processor's formula of tokens is tried
_OF_BUDGET = ("size", "do_image_splitting", "max_patches")  # those that a budget of pixels sets
Bound = Callable[[Any, int], dict[str, object]]  # from an image processor and a budget to settings of the processor

ChatImages = Sequence["Image | PreparedImage | EncodedImage"]  # of one conversation, in order


@dataclass(frozen=True)
class ChatRows:
    """A batch of conversations as rows of tokens `(b, l)`, padded to the longest."""

    inputs: dict[str, Tensor]
    """All arguments of the model's forward that the processor returned."""
    answers: Tensor
    """Whether a token belongs to an answer that training learns, the token that ends it included: bool `(b, l)`."""

    @property
    def labels(self) -> Tensor:
        """The tokens of answers `(b, l)`, and -100 elsewhere."""
        return self.inputs["input_ids"].masked_fill(~self.answers, -100)

    @property
    def lengths(self) -> Tensor:
        """The number of tokens in each row `(b,)`, without padding."""
        return self.inputs["attention_mask"].sum(-1)


class NativeVLM(Backbone):
    """A vision-language model of transformers with its own connector, and with its processor.

    Its towers are `vision`, `connector` (of the linear maps in `connectors`, if there are some) and `decoder` (of the
    decoder's `layers`). `independent` says that an image becomes the same tokens whatever other images are in the
    conversation, and `stacked` that the connector's output of all images is one tensor.
    """

    kind = "native VLM"
    instead = "use its last state, last:BACKBONE, or a method such as lora"
    as_decoded = True
    question: str = "What is in the image?"  # about the class of an image, for which the model has no prompt of its own

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        vision: Tower,
        connectors: Mapping[nn.Module, Mapping[str, nn.Module]],
        layers: nn.ModuleList,
        name: str | None = None,
        bound: Bound | None = None,
        independent: bool = True,
        stacked: bool = False,
    ) -> None:
        decoder = tower_of(layers, model.config.get_text_config())
        connector = {"connector": connector_tower(decoder.width, connectors)} if connectors else {}
        super().__init__(
            model=model,
            towers={"vision": vision, **connector, "decoder": decoder},
            tokenizer=processor.tokenizer,
            preprocess=Preprocess(size=0, mean=(), std=(), resize="squash"),  # the processor's own is used
            name=name,
        )
        self.vlm: Any = model  # a `PreTrainedModel` that can also `generate`
        self.processor: Any = processor
        self._given: Any = processor  # as it was before any budget of pixels
        self._bound, self._independent, self._stacked = bound, independent, stacked
        self._marks: dict[tuple[str, tuple[tuple[int, int], ...]], list[ImageMarks]] = {}  # by preparation and sizes
        self._tokens: dict[tuple[str, tuple[tuple[int, int], ...]], int] = {}  # of images, likewise
        self._apart: tuple[AbstractContextManager[object], Any] | None = None
        self._check_template()

    def _check_template(self) -> None:
        """Raise AdaptError if the processor has no chat template, or several, or one that takes too much."""
        if not self.template:
            raise AdaptError(
                f"the {type(self.processor).__name__} of {self.describe()} has no chat template in one text: set "
                "processor.chat_template"
            )
        chats = [Chat.about("?"), Chat.about("?", "!", 2), Chat((Turn("system", ("?",)), *Chat.about("?", "!").turns))]
        messages = [chat.messages() for chat in (*chats, chats[-1].asked("?").answered("!").asked("?"))]
        chat_templates.check(self.template, messages, self.tokenizer, f"the chat template of {self.describe()}")
        self._tokenized(["a photo of a red panda, isn't it? (No. 7)"], special=True)  # which may fail, too

    @property
    def template(self) -> str:
        """The chat template, or "" if there is none in one text."""
        template = getattr(self.processor, "chat_template", None)
        return template if isinstance(template, str) else ""

    def transform(self, train: bool) -> Transform:
        """Return a transform that leaves images as they are, because the processor prepares them with the text."""
        return cast("Transform", AsDecoded(self.preprocess.turned))  # whose images nothing here takes for tensors

    def reading(self) -> dict[str, object]:
        settings = json.loads(self.processor.image_processor.to_json_string())
        return {
            "turned": self.preprocess.turned,
            "processor": {name: settings[name] for name in _OF_PIXELS if settings.get(name) is not None},
            "chat_template": hashlib.sha256(self.template.encode()).hexdigest()[:16],
            "question": self.question,
        }

    def read_as(self, reading: JsonObject) -> None:
        self.question = reading.get("question", self.question)
        recorded = reading.get("processor", {})
        self._prepare({name: recorded[name] for name in _OF_BUDGET if name in recorded})

    def limited(self, most: int) -> Self:
        """Return a backbone that prepares images with at most about `most` pixels, in the way of the model's family.

        Both share the model. Raises AdaptError if the family reads all images at one size, and for fewer pixels than it
        can read.
        """
        if self._bound is None:
            return super().limited(most)
        other = copy(self)
        other._prepare(self._bound(self._given.image_processor, most))
        return other

    def export(self, folder: Path, model: nn.Module) -> None:
        """Write `model`, an edited copy of this backbone's model, and the processor to `folder`.

        Tensors have the names of the model's published checkpoints, by which other programs find them: transformers 5
        alone leaves `vision_model` out of those of a vision tower of CLIP or SigLIP.
        """
        folder.mkdir(parents=True, exist_ok=True)
        state = model.state_dict()
        for name, part in model.named_modules():
            if type(part).__name__ in ("CLIPVisionModel", "SiglipVisionModel") and not hasattr(part, "vision_model"):
                for key in part.state_dict():
                    state[f"{name}.vision_model.{key}"] = state.pop(f"{name}.{key}")
        cast("PreTrainedModel", model).save_pretrained(folder, state_dict=state)
        self.processor.save_pretrained(folder)

    def _prepare(self, settings: Mapping[str, object]) -> None:
        """Set how the processor prepares images, in a copy of it: the user's own object stays as it is."""
        self.processor = copy(self._given)
        self.processor.image_processor = copy(self._given.image_processor)
        for name, value in settings.items():
            setattr(self.processor.image_processor, name, value)
        self._marks, self._tokens, self._apart = {}, {}, None

    @property
    def longest(self) -> int:
        """The maximum number of tokens that the decoder accepts."""
        return int(getattr(self.vlm.config.get_text_config(), "max_position_embeddings", 2**31))

    @cached_property
    def _own_end(self) -> int | None:
        """The id of the special token that the chat template puts behind an answer; None if it puts none there."""
        chat = Chat.about("?", "!", 0)
        behind = self._templated(chat, "", asks=False).rpartition("!")[2]
        ids = self._tokenized([behind.lstrip()], special=False)[0]
        special = {each for each, token in self.tokenizer.added_tokens_decoder.items() if token.special}  # Gemma's, too
        return ids[0] if ids and ids[0] in special else None

    @property
    def end(self) -> int | None:
        """The id of the token that ends an answer: the chat template's, or the tokenizer's, which `render` adds."""
        own: int | None = self.tokenizer.eos_token_id
        return own if self._own_end is None else self._own_end

    def rows(
        self, chats: Sequence[Chat], images: Sequence[ChatImages], *, left: bool = False, asks: bool = False
    ) -> ChatRows:
        """Return conversations, with the images of each, as rows of tokens padded on the right, or on the `left`.

        Images are all PIL images, or all encoded. With `asks`, each row ends with the beginning of an answer, which is
        to be generated.

        Raises AdaptError if the number of images differs from the number of image parts in a conversation, if the chat
        template refuses the conversation, if its words have a control token other than those of the family's boxes, or
        if it has more tokens than the decoder can read. No token is ever cut.
        """
        self._check_words(chats)
        for chat, own in zip(chats, images, strict=True):
            if len(own) != chat.images:
                raise AdaptError(f"a conversation speaks of {chat.images} images, and {len(own)} are given")
        rows = self._rows(chats, images, left, asks)
        longest = int(rows.lengths.max())
        if longest > self.longest:
            raise AdaptError(
                f"a conversation takes {longest:,} tokens, and the model reads at most {self.longest:,}: shorten it, "
                "or bound the pixels of its images (data.max_pixels)"
            )
        return rows

    def _rows(self, chats: Sequence[Chat], images: Sequence[ChatImages], left: bool, asks: bool) -> ChatRows:
        texts = [self.render(chat, asks) for chat in chats]
        encoded = [[image for image in own if isinstance(image, EncodedImage)] for own in images]
        if any(encoded):
            batch = self._expanded(texts, [[image.marks for image in own] for own in encoded], left)
        else:
            batch = self._processed(texts, images, left)
        replaced = batch.pop("text_replacement_offsets")
        spans, offsets = [self._spans(chat, text) for chat, text in zip(chats, texts)], batch.pop("offset_mapping")
        places = [_moved(own, places) for own, places in zip(spans, replaced, strict=True)]
        inside = [_overlapping(row, own) for row, own in zip(offsets, places, strict=True)]
        inputs = {name: value.to(self.device) for name, value in batch.items()}
        inputs |= image_inputs([image for own in encoded for image in own], self.device, self._stacked)
        return ChatRows(inputs, torch.stack(inside).to(self.device))

    def _positions(self, rows: ChatRows) -> Tensor:
        """Return the position of each token `(b, l)`, or the three positions `(3, b, l)` of Qwen's models."""
        compute = getattr(self.vlm.model, "get_rope_index", None)
        if compute is None:
            return (rows.inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        read = {name: rows.inputs[name] for name in signature(compute).parameters if name in rows.inputs}
        positions: Tensor = compute(**read)[0]
        return positions

    def branches(
        self, chats: Sequence[Chat], images: Sequence[Sequence[EncodedImage]], answers: Sequence[Sequence[str]]
    ) -> tuple[Branches, dict[str, object]]:
        """Return each conversation with several `answers` as a row that has their common beginning once.

        The second value has the arguments of the model's forward. Raises AdaptError as `rows` does.
        """
        known: dict[object, BranchedRow] = {}  # most rows of a batch are equal where classes are the answers
        packed = []
        for chat, seen, own in zip(chats, images, answers, strict=True):
            key = chat, *own, *(image.marks.key for image in seen)
            if key not in known:
                known[key] = self._branched([chat.ending(answer) for answer in own], seen)
            packed.append(known[key])
        branches = padded(packed, self.tokenizer.pad_token_id or 0)  # any token: nothing sees it
        inputs: dict[str, object] = {"input_ids": branches.tokens, "position_ids": branches.positions}
        inputs["attention_mask"] = branches.visible
        if self._attention == "eager":  # which adds its mask to the scores
            hidden = torch.finfo(self.dtype).min
            inputs["attention_mask"] = torch.where(branches.visible, 0.0, hidden).to(self.dtype)
        return branches, inputs | image_inputs([image for own in images for image in own], self.device, self._stacked)

    @property
    def reason_against_encoding(self) -> str | None:
        """The reason why images cannot be encoded by themselves, before the decoder reads them, or None if they can."""
        if not self._independent:
            return "an image becomes other tokens beside a second one"
        told = "token_type_ids" in signature(self.vlm.forward).parameters  # which tokens see each other both ways
        return "its decoder sees images both ways" if told else None

    @property
    def reason_against_branches(self) -> str | None:
        """The reason why answers cannot share their beginning in one row, or None if they can."""
        if self.reason_against_encoding:
            return self.reason_against_encoding
        text = self.vlm.config.get_text_config()
        if self._attention not in ("sdpa", "eager"):
            return f"its attention {self._attention} takes no mask of our own"
        kinds = {*(getattr(text, "layer_types", None) or ["full_attention"])} - {"full_attention"}
        if getattr(text, "layer_types", None) is None and getattr(text, "sliding_window", None):
            kinds = {"sliding_attention"}
        return f"its decoder has layers of {' and '.join(sorted(kinds))}" if kinds else None

    @property
    def _attention(self) -> str:
        return str(self.vlm.config.get_text_config()._attn_implementation)

    def _branched(self, chats: Sequence[Chat], images: Sequence[EncodedImage]) -> BranchedRow:
        """Return conversations about the same images, which differ in their last answer, as one row."""
        full = self.rows(chats, [images] * len(chats))
        lengths = full.lengths.tolist()
        return row_of(
            [ids[:length] for ids, length in zip(full.inputs["input_ids"], lengths, strict=True)],
            [answer[:length] for answer, length in zip(full.answers, lengths, strict=True)],
            self._positions(full)[..., max(range(len(lengths)), key=lengths.__getitem__), :],
        )

    def lengths(
        self, chats: Sequence[Chat], sizes: Sequence[Sequence[tuple[int, int]]], *, asks: bool = False
    ) -> list[int]:
        """Return the number of tokens of each conversation, from the width and height of its images alone.

        With `asks`, the beginning of an answer counts. Raises AdaptError as `rows` does, but for the number of tokens.
        """
        self._check_words(chats)
        return [self._length(chat, tuple(own), asks) for chat, own in zip(chats, sizes, strict=True)]

    def _check_words(self, chats: Sequence[Chat]) -> None:
        for turn in (turn for chat in chats for turn in chat.turns):
            check_words(self.tokenizer, turn.text, self.box_form.box)

    def _length(self, chat: Chat, sizes: tuple[tuple[int, int], ...], asks: bool) -> int:
        text = self.render(chat, asks)
        self._spans(chat, text)
        [ids] = self._tokenized([text], special=not self._begun([text]))
        together = [(size,) for size in sizes] if self._independent else [sizes] if sizes else []
        return len(ids) + sum(self._image_tokens(own) - len(own) for own in together)  # images have more than the marks

    def _image_tokens(self, sizes: tuple[tuple[int, int], ...]) -> int:
        """Return the number of tokens of images of these widths and heights, by the processor's formula if it has one.

        A formula may leave out tokens around an image: as many for each of `_PROBES`, or it is not used.
        """
        key = self.image_settings, sizes
        if len(self._tokens) > _MOST_SIZES:
            self._tokens.clear()
        formula = getattr(self.processor, "_get_num_multimodal_tokens", None)
        if key not in self._tokens and formula and len(sizes) == 1 and sizes[0] not in _PROBES:
            *known, tokens = formula(image_sizes=[size[::-1] for size in (*_PROBES, *sizes)])["num_image_tokens"]
            beside = {self._image_tokens((probe,)) - own for probe, own in zip(_PROBES, known, strict=True)}
            if len(beside) == 1:
                self._tokens[key] = tokens + beside.pop()
        if key not in self._tokens:
            text = "".join(marks.text for marks in self.marks(*sizes))
            self._tokens[key] = len(self._tokenized([text], special=False)[0])
        return self._tokens[key]

    def learned_tokens(self, chats: Sequence[Chat]) -> int:
        """Return the number of tokens of the learned answers in conversations, whatever their images are."""
        texts = [self.render(chat) for chat in chats]
        with _preparing(PREPARING):
            rows = self.tokenizer(texts, add_special_tokens=not self._begun(texts), return_offsets_mapping=True)
        learned = zip(rows["offset_mapping"], map(self._spans, chats, texts), strict=True)
        return sum(int(_overlapping(torch.tensor(offsets), spans).sum()) for offsets, spans in learned)

    def marks(self, *sizes: tuple[int, int]) -> list[ImageMarks]:
        """Return what stands in a conversation's text for images of these widths and heights."""
        from PIL import Image

        key = self.image_settings, sizes
        known = self._marks.get(key)
        if known is None:
            blank = [Image.new("RGB", size) for size in sizes]
            batch = self._processed([self._mark * len(sizes)], [blank], left=False)
            known = self._remember(key, marks_of(batch, self._placeholder))
        return known

    def _remember(self, key: tuple[str, tuple[tuple[int, int], ...]], marks: list[ImageMarks]) -> list[ImageMarks]:
        if len(self._marks) >= _MOST_SIZES:
            self._marks.clear()
        self._marks[key] = marks
        return marks

    @property
    def image_key(self) -> str:
        """A key that is equal only if the model and everything that prepares its images are equal."""
        from transformers import __version__

        config = self.vlm.config.to_json_string(use_diff=False)  # which layer LLaVA reads, and more
        made = __version__, str(self.dtype), str(self.preprocess.turned), config, self.image_settings
        return "/".join((self.content(), *made))

    @property
    def image_settings(self) -> str:
        """The processor's settings of images, as text."""
        return str(self.processor.image_processor.to_json_string())

    @cached_property
    def box_form(self) -> BoxForm:
        """How the model's family writes boxes, or how a tokenizer can that knows no digits."""
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in self.tokenizer("0123456789", add_special_tokens=False)["input_ids"]:
            return IN_WORDS
        return OF_FAMILY.get(self.vlm.config.model_type, THOUSANDTHS)

    def located(self, name: str, boxes: Sequence[Edges], size: Size, examples: Iterable[Boxed] = ()) -> Chat:
        """Return the question where a thing is, in a picture of a width and a height, with its boxes as the answer.

        The same is asked and answered of examples before it, whose pictures come first.
        """

        def asked(boxes: Sequence[Edges], size: Size) -> Chat:
            return Chat.about(
                self.box_form.question.format(name), self.box_form.write(name, boxes, size, self._seen(size))
            )

        return asked(boxes, size).after(asked(*each) for each in examples)

    def found(self, answer: str, size: Size, strict: bool = False) -> tuple[NamedBox, ...] | None:
        """Return the boxes in an answer about a picture, as `BoxForm.read` does."""
        return self.box_form.read(answer, size, self._seen(size), strict)

    def _seen(self, size: Size) -> Size:
        """Return the width and the height of a picture as the processor resizes it, where boxes are in such pixels."""
        if self.box_form.units:
            return size
        [[_, down, across]] = self.marks(size)[0].sizes["image_grid_thw"].tolist()
        patch = self.processor.image_processor.patch_size
        return across * patch, down * patch

    def encode_images(self, images: Sequence[Image | PreparedImage]) -> list[EncodedImage]:
        """Return what the vision tower and the connector compute for each image, and how it stands in a text."""
        if images and self.reason_against_encoding:
            raise AdaptError(f"{self.describe()} cannot encode images alone ({self.reason_against_encoding})")
        pictures = [image for image in images if not isinstance(image, PreparedImage)]
        made = iter(self._encoded(*self._ready(pictures, PREPARING, self.processor)) if pictures else ())
        return [
            self._encoded(image.inputs, [image.marks])[0] if isinstance(image, PreparedImage) else next(made)
            for image in images
        ]

    def prepare(self, image: Image) -> PreparedImage:
        """Return an image as the vision tower reads it; other threads may use the backbone meanwhile."""
        if self._apart is None:
            own = copy(self.processor)
            own.tokenizer = deepcopy(self.tokenizer)  # whose state the lock guards: other texts do not wait for it
            self._apart = Lock(), own
        inputs, marks = self._ready([image], *self._apart)
        self._remember((self.image_settings, (image.size,)), marks)
        return PreparedImage(marks[0], image.size, inputs)

    def _ready(
        self, images: Sequence[Image], lock: AbstractContextManager[object], processor: Any
    ) -> tuple[dict[str, Tensor], list[ImageMarks]]:
        """Return the arguments of the model's `get_image_features` for some images, and how they stand in a text."""
        marks = [self._mark] * len(images)
        batch = self._processed(marks, [[image] for image in images], False, lock, processor)
        names = signature(self.vlm.model.get_image_features).parameters
        return {name: batch[name] for name in names if name in batch}, marks_of(batch, self._placeholder)

    def _encoded(self, inputs: Mapping[str, Tensor], marks: Sequence[ImageMarks]) -> list[EncodedImage]:
        read = {name: value.to(self.device) for name, value in inputs.items()}
        return parted(self.vlm.model.get_image_features(**read, return_dict=True), marks)

    @property
    def _mark(self) -> str:
        """The text that stands for an image where the processor reads it."""
        return str(self.processor.image_token)

    @property
    def _placeholder(self) -> str:
        """The token, once or more for each image, whose embedding the connector's output replaces."""
        return str(self.tokenizer.convert_ids_to_tokens(self._placeholder_id))

    @property
    def _placeholder_id(self) -> int:
        return int(self.vlm.config.image_token_id)

    def _begun(self, texts: Sequence[str]) -> bool:
        """Return whether rendered texts have the token that starts a text, as in most chat templates."""
        start = self.tokenizer.bos_token
        return start is not None and all(text.startswith(start) for text in texts)

    def render(self, chat: Chat, asks: bool = False) -> str:
        """Return a conversation as text by the model's chat template, with one mark for each image.

        Answers get the tokenizer's end token where the template, as LLaVA-1.5's, puts none behind them: without it, a
        model would not learn to stop. Raises AdaptError if the template refuses the conversation, and if its words
        contain the mark.
        """
        text = self._templated(chat, self.tokenizer.eos_token or "" if self._own_end is None else "", asks)
        film = getattr(self.processor, "video_token", None) or self._placeholder
        for mark in dict.fromkeys((self._mark, self._placeholder, film)):
            if text.count(mark) != (chat.images if mark == self._mark else 0):
                raise AdaptError(
                    f"a conversation has {chat.images} images, but {mark} is {text.count(mark)} times in its text: "
                    "take it out of the words"
                )
        return text

    def _templated(self, chat: Chat, end: str, asks: bool) -> str:
        """Return a conversation as text, with `end` behind each answer."""
        roles = ", ".join(turn.role for turn in chat.turns)
        return chat_templates.rendered(
            lambda: self.processor.apply_chat_template(chat.messages(end), add_generation_prompt=asks),
            f"the chat template of {self.describe()} refuses a conversation of {roles}",
        )

    def _tokenized(self, texts: list[str], special: bool) -> list[list[int]]:
        with _preparing(PREPARING):
            rows: list[list[int]] = self.tokenizer(texts, add_special_tokens=special)["input_ids"]
        return rows

    def _processed(
        self,
        texts: list[str],
        images: Sequence[ChatImages],
        left: bool,
        lock: AbstractContextManager[object] = PREPARING,
        processor: Any = None,
    ) -> dict[str, Any]:
        from transformers import ProcessorMixin

        # processors with a call of their own, as of Idefics3 and InternVL, fail if the first of some texts has no image
        own_call = type(self.processor).__call__ is not ProcessorMixin.__call__
        order = sorted(range(len(texts)), key=lambda row: own_call and not images[row])
        with _preparing(lock):
            batch = dict(
                (processor or self.processor)(
                    text=[texts[row] for row in order],
                    images=[list(images[row]) for row in order] if any(images) else None,
                    padding=True,
                    padding_side="left" if left else "right",
                    add_special_tokens=not self._begun(texts),
                    return_offsets_mapping=True,
                    return_text_replacement_offsets=True,
                    return_tensors="pt",
                )
            )
        if not any(images):  # of which some make an empty tensor
            batch["text_replacement_offsets"] = [[]] * len(texts)
        return batch if order == sorted(order) else _put_back(batch, order)

    def _expanded(self, texts: list[str], marks: Sequence[Sequence[ImageMarks]], left: bool) -> dict[str, Any]:
        """Return texts with the `marks` of their images, as the processor returns them."""
        expanded = [written(text, self._mark, own) for text, own in zip(texts, marks, strict=True)]
        with _preparing(PREPARING):
            batch: Mapping[str, Tensor] = self.tokenizer(
                [text for text, _ in expanded],
                padding=True,
                padding_side="left" if left else "right",
                add_special_tokens=not self._begun(texts),
                return_offsets_mapping=True,
                return_tensors="pt",
            )
        types = {}
        if "mm_token_type_ids" in signature(self.vlm.forward).parameters:
            types["mm_token_type_ids"] = (batch["input_ids"] == self._placeholder_id).long()
        return {**batch, **types, "text_replacement_offsets": [replaced for _, replaced in expanded]}

    def _spans(self, chat: Chat, text: str) -> list[tuple[int, int]]:
        """Return the first and the last-but-one character of each learned answer in the rendered conversation."""
        return [
            self._span(Chat(chat.turns[:number]), Chat(chat.turns[: number + 1]), text)
            for number, turn in enumerate(chat.turns)
            if turn.role == "assistant" and turn.learned
        ]

    def _span(self, before: Chat, through: Chat, text: str) -> tuple[int, int]:
        begun, done = self.render(before, asks=True), self.render(through)
        if not text.startswith(done):
            raise AdaptError(
                f"the chat template of {self.describe()} changes earlier turns when later ones follow, so that its "
                f"answers cannot be found: {brief(through.answer)} is not in the text as it is when it comes last"
            )
        differ = (place for place, (ours, theirs) in enumerate(zip(begun, text)) if ours != theirs)
        return next(differ, min(len(begun), len(text))), len(done)


@contextmanager
def _preparing(lock: AbstractContextManager[object]) -> Iterator[None]:
    """Hold the lock of a tokenizer that is used in the `with` block. Raises AdaptError where its library panics."""
    with lock, unpanicked("the tokenizer fails on this text"):
        yield


def _put_back(batch: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Return a processor's output with its rows of tokens as they were before they were put into `order`.

    Pixels stay: the order of the images among themselves is the same, and models skip the padding between them.
    """
    places = sorted(range(len(order)), key=order.__getitem__)
    put = {name: value[places] for name, value in batch.items() if name in PER_TOKEN}
    return batch | put | {"text_replacement_offsets": [batch["text_replacement_offsets"][place] for place in places]}


def _moved(spans: Sequence[tuple[int, int]], replaced: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Return spans of characters in the text after its image marks have been `replaced` by as many as there are tokens.

    `replaced` has the span of each mark in the text, and its new span in the longer text.
    """
    ends = [each["span"][1] for each in replaced]
    gained = [0, *(each["new_span"][1] - each["span"][1] for each in replaced)]
    return [
        (start + gained[bisect_right(ends, start)], stop + gained[bisect_right(ends, stop)]) for start, stop in spans
    ]


def _overlapping(offsets: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Return whether each token, with its characters in `offsets` `(l, 2)`, is at least partly in a span: `(l,)`."""
    start, stop = offsets.unbind(-1)
    inside = torch.zeros(len(offsets), dtype=torch.bool)
    for first, end in spans:
        inside |= (start < end) & (stop > first) & (start < stop)
    return inside


def connector_tower(width: int, connectors: Mapping[nn.Module, Mapping[str, nn.Module]]) -> Tower:
    """Return the connectors as a tower with a block each, whose linear maps by name can be edited, and nothing else."""
    blocks = tuple(
        Block(
            module=connector,
            attn=connector,
            norm1=connector,
            norm2=connector,
            act=connector,
            projections={name: Projection(linear) for name, linear in linears.items()},
            plain_attention=False,
        )
        for connector, linears in connectors.items()
    )
    return Tower("connector", width, 1, Form(causal=False, pooling="none"), blocks)

"""Models of images: a backbone with image features and a method, which classify images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import TypeVar

from adapt.backbones.base import ImageEncoder
from adapt.common.devices import moved
from adapt.common.errors import AdaptError
from adapt.data.bags import bag_mean, has_bags, views_of
from adapt.edits import After, Edit, Outputs, Replace
from adapt.engine import vision
from adapt.engine.hooks import watched
from adapt.engine.plan import plan
from adapt.methods.base import BlockInputs, Context, Encoded, ImageStep, Method
from adapt.methods.base.step import reads_one_image
from adapt.methods.base.traits import (
    DrawsMaps,
    EncodesImages,
    Grades,
    OwnWeights,
    PoolsBags,
    PoolsPairs,
    Projects,
    Stream,
    has_trait,
    normal_label,
    trait,
)
from adapt.models.base import Adapted, in_one_mode
from adapt.models.class_texts import PromptAverage
from adapt.models.prediction import Map, Prediction, Query, finite, predictions, undecided
from adapt.prompts import Prompt, Texts

if TYPE_CHECKING:
    from adapt.data.item import Item

E = TypeVar("E", bound=ImageEncoder, covariant=True, default=ImageEncoder)


class ImageModel(Adapted[E]):
    """The base class of adapted models that classify images, by class features or by a trained head."""

    def __init__(
        self,
        backbone: E,
        method: Method,
        class_names: Sequence[str],
        fast: bool | None,
        *,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(backbone, method, class_names, checkpointing=checkpointing)
        self.fast = False if (own := has_trait(method, OwnWeights)) else fast
        if own:
            reason: str | None = f"{method.name} trains weights, which only the library's forward reads"
        else:
            reason = "the fast path is switched off" if fast is False else vision.reason_against(backbone)
        if fast is True and reason is not None and "vision" in backbone.towers:
            raise AdaptError(
                f"fast=True, but the vision tower of {backbone.describe()} cannot use the fast path ({reason}): leave "
                "fast out"
            )
        self.vision_path = "fast" if reason is None else "plain"

    def class_features(self, image_features: Tensor | None = None, image_tokens: Tensor | None = None) -> Tensor:
        """Return unit-length features of the classes `(n_classes, e)`, with which image features are compared."""
        raise NotImplementedError

    def frozen_class_features(self, templates: Texts, average: PromptAverage = "unit") -> Tensor:
        """Return the features of the classes `(n_classes, e)` without the method."""
        raise NotImplementedError

    def own_logits(self, step: ImageStep) -> Tensor:
        return step.cosine_logits(step.class_features)

    # texts, which a dual encoder encodes

    def check_encodes_texts(self) -> None:
        """Raise AdaptError if the model cannot encode texts that name no class."""
        raise self._without_texts()

    def encode(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return unit-length features `(m, e)` of prompts that belong to no class, under the method's edits."""
        raise self._without_texts()

    def encode_words(self, prompts: Sequence[Prompt], words: Tensor) -> Tensor:
        """Return features `(m, e)` of prompts, not normalised, with a learned word each: `words` `(m, d)`.

        The words stand where the prompts have slot 0. The method's edits are not applied.
        """
        raise self._without_texts()

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit-length features `(m, e)` of texts, with the method's edits. Raises AdaptError for a long text."""
        raise self._without_texts()

    def text_features(self, texts: Sequence[str], unit: bool = True, edited: bool = False) -> Tensor:
        """Return features `(m, e)` of texts without gradient, normalised to unit length if `unit` is True.

        The unedited backbone computes the features. With `edited`, the method's edits are applied, which requires that
        learned tokens belong to no class or image. Raises AdaptError, naming the text, for a text that is too long.
        """
        raise self._without_texts()

    def prompt_features(self) -> tuple[Tensor, ...]:
        """Return unit-length features `(m, e)` of the m prompts of each class; m can differ between classes."""
        raise self._without_texts()

    def _without_texts(self) -> AdaptError:
        return AdaptError(
            f"{self.backbone.describe()} reads no texts, as a {self.backbone.kind} backbone has no text tower: use a "
            "dual encoder, such as a CLIP"
        )

    # images

    @property
    def classifies(self) -> bool:
        return True

    @property
    def draws_maps(self) -> bool:
        draws = trait(self.method, DrawsMaps)
        return draws is not None and draws.normal_class in self.class_names

    @in_one_mode
    def forward(self, images: Tensor | BlockInputs) -> Tensor:
        """Return logits `(b, n_classes)` for images `(b, 3, h, w)`, or for v views of each image `(b, v, 3, h, w)`."""
        return self.answers.of(ImageStep(self, images))

    @in_one_mode
    def logits(self, image_features: Tensor, views: Tensor | None = None) -> Tensor:
        """Return logits `(b, n_classes)` for unit-length image features `(b, e)` of the backbone.

        `views` `(b, v, e)` are the features of random views, for a method that reads views.
        """
        return self.answers.of(ImageStep(self, Encoded(image_features, views)))

    def check_items(self, items: Sequence[Item]) -> None:
        if has_bags(items):
            self.check_takes_bags()
            if (pools := trait(self.method, PoolsBags)) and self.answers.pooling == "features":
                pools.check_views(views_of(items))

    def check_takes_bags(self) -> None:
        """Raise AdaptError if the model cannot read items of several images."""
        if self.answers.pooling == "features" and (self.method.reads or self.method.views):
            raise reads_one_image(self.method)

    def step(self, inputs: Any, labels: Tensor | None = None) -> ImageStep:
        return ImageStep(self, inputs, labels)

    @in_one_mode
    def image_features(self, images: Tensor | BlockInputs, unit: bool = True) -> Tensor:
        """Return features `(b, e)` of images `(b, 3, h, w)`, normalised to unit length if `unit` is True."""
        encoder = trait(self.method, EncodesImages)
        if encoder is None or isinstance(images, BlockInputs):
            features = self._image_features(images, self._edits("vision", Context()))
        else:
            features = encoder.image_features(images)
        features = self.projected(features, unit=False)
        return F.normalize(features, dim=-1) if unit else features

    @in_one_mode
    def learned_outputs(self, images: Tensor | BlockInputs) -> tuple[Tensor, Tensor]:
        """Return the outputs `(b, k, d)` of learned vision tokens, and unit-length features `(b, e)`, in one pass.

        The outputs are those of the final norm, before the projection.
        """
        outputs: list[Tensor] = []
        features = self._image_features(images, [*self._edits("vision", Context()), Outputs(outputs.append)])
        return outputs[0], F.normalize(self.projected(features, unit=False), dim=-1)

    def projected(self, features: Tensor, unit: bool = True) -> Tensor:
        """Return features after the method's projection, if any, normalised again if `unit` is True."""
        projects = trait(self.method, Projects)
        if projects is None:
            return features
        projected = projects.project(features)
        return F.normalize(projected, dim=-1) if unit else projected

    def pooled(self, features: Tensor, counts: Tensor, view_names: Sequence[str] = ()) -> Tensor:
        """Return unit-length features `(b, e)` of bags, pooled from the unit-length features `(m, e)` of their images.

        `counts` `(b,)` are the numbers of images, which stand one bag after another, with the names of their views.
        """
        pools = trait(self.method, PoolsBags)
        pooled = bag_mean(features, counts) if pools is None else pools.pool_bags(features, counts, view_names)
        return F.normalize(pooled, dim=-1)

    def pair_features(self, features: Tensor, text_features: Tensor) -> Tensor:
        """Return unit-length features `(b, e)` of image-text pairs, pooled from unit-length image and text features."""
        text_features = text_features.to(features)
        pools = trait(self.method, PoolsPairs)
        pooled = (features + text_features) / 2 if pools is None else pools.pool(features, text_features)
        return F.normalize(pooled, dim=-1)

    def read_features(self, images: Tensor, unit: bool = True) -> Tensor:
        """Return the input `(b, d)` of the unedited vision tower's last projection, normalised if `unit` is True.

        Raises AdaptError if the tower has no projection.
        """
        features = self._image_features(images, [Replace(None, "projection", nn.Identity())])
        return F.normalize(features, dim=-1) if unit else features

    @in_one_mode
    def backbone_features(self, images: Tensor | BlockInputs, unit: bool = True) -> Tensor:
        """Return image features `(b, e)` from the backbone without the method, normalised if `unit` is True."""
        features = self._image_features(images, [])
        return F.normalize(features, dim=-1) if unit else features

    def frozen_blocks(self, images: Tensor, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the inputs and outputs `(b, l, d)` of named blocks, such as vision.3, in the unedited vision tower."""
        backbone = self.backbone
        with watched(backbone.model, backbone.towers, names) as pairs, torch.no_grad():
            self.backbone_features(images)
        return pairs

    def image_tokens(self, images: Tensor) -> Tensor:
        """Return the last vision block's output `(b, l, d)` for all tokens, computed by the unedited backbone."""
        last = f"vision.{len(self.backbone.tower('vision').blocks) - 1}"
        return self.frozen_blocks(images, [last])[last][1]

    def vision_tokens(self, images: Tensor) -> Tensor:
        """Return the last vision block's output `(b, l, d)` for all tokens, computed by the adapted tower."""
        backbone = self.backbone
        edits = [edit for edit in self._edits("vision", Context()) if not isinstance(edit, After)]
        images = moved(images, backbone.device).to(backbone.dtype)
        if self._fast_on_images:
            return vision.tokens(backbone, images, edits, self.checkpointing and bool(edits))
        if not edits:
            return self.image_tokens(images)
        last = f"vision.{len(backbone.tower('vision').blocks) - 1}"

        def watch() -> Tensor:  # under the edits, whose hooks then run first
            with watched(backbone.model, backbone.towers, [last]) as pairs:
                backbone.encode_image(images)
            return pairs[last][1]

        return self._through({"vision": edits}, watch)

    @property
    def unedited_blocks(self) -> int:
        """The number of vision blocks before the first block that the method changes.

        The number is 0 if the tower can only be run by the library's own forward.
        """
        if not self._fast_on_images:
            return 0
        tower = self.backbone.tower("vision")
        return vision.first_edited(tower, plan(tower, self._edits("vision", Context())))

    def block_inputs(self, images: Tensor | BlockInputs, block: int) -> BlockInputs:
        """Return the input tokens of a vision block, from images `(b, 3, h, w)` or input tokens of an earlier block.

        The unedited backbone computes the tokens. Raises AdaptError if the vision tower cannot use the fast path.
        """
        self._check_begun()
        if isinstance(images, BlockInputs):
            tokens = vision.block_inputs(self.backbone, block, images.tokens, images.block)
            return BlockInputs(block, tokens, images.pixels)
        pixels = moved(images, self.backbone.device).to(self.backbone.dtype)
        return BlockInputs(block, vision.block_inputs(self.backbone, block, pixels), images)

    @property
    def _fast_on_images(self) -> bool:
        return self.vision_path == "fast" and vision.reason_against(self.backbone) is None

    def _check_begun(self) -> None:
        if not self._fast_on_images:
            reason = vision.reason_against(self.backbone) or "the fast path is switched off"
            raise AdaptError(
                f"block inputs need the fast path of the vision tower, which cannot be used ({reason}): pass images "
                "instead"
            )

    def _image_features(self, images: Tensor | BlockInputs, edits: Sequence[Edit]) -> Tensor:
        backbone, checkpointing = self.backbone, self.checkpointing and bool(edits)
        if isinstance(images, BlockInputs):
            self._check_begun()
            tokens = moved(images.tokens, backbone.device)
            return vision.encode(backbone, tokens, edits, checkpointing, images.block)
        if not isinstance(images, list):  # of pictures, which the backbone prepares
            images = moved(images, backbone.device).to(backbone.dtype)
        if self._fast_on_images:
            return vision.encode(backbone, images, edits, checkpointing)
        return self._through({"vision": edits}, lambda: backbone.encode_image(images))

    def under_edits(self, tower: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return the result of `compute()`, which runs the backbone, with the method's edits of a tower in place."""
        return self._through({tower: self._edits(tower, Context())}, compute)

    def without_memory(self) -> Self:
        """Return this model outside the stream of images that it belongs to, if any."""
        other = copy(self)
        other.memory = None
        return other

    def probabilities(self, images: object, batch_size: int = 64, *, urls: bool = False) -> Tensor:
        """Return the probabilities `(n, n_classes)` of all classes, on the CPU; `images` is as in `predict`.

        Classes are in the order of `class_names`. Raises AdaptError in the cases that `predict` lists.
        """
        self._check_classes()
        logits = self._of_batches(images, batch_size, urls, lambda model, pixels: finite(model(pixels)).float().cpu())
        return self.answers.probabilities(torch.cat([torch.empty(0, len(self.class_names)), *logits]))

    def predict_items(
        self,
        items: Iterable[Sequence[object]],
        top_k: int = 5,
        batch_size: int = 64,
        *,
        threshold: float | None = None,
        features: bool = False,
        urls: bool = False,
    ) -> list[Prediction]:
        """Return a prediction for each item of several images of one thing, such as `[["a.jpg", "b.jpg"], ["c.jpg"]]`.

        Images are as in `predict`, or pairs with their view, as in `("front", "a.jpg")`. `prediction.images` says what
        each contributes. Raises AdaptError in the cases that `predict` lists, for an item without images, for a view
        that a method does not know by which it weighs, and for a method that reads one image of each item.
        """
        return list(self.ask(items, Query(top_k, threshold, features, items=True), batch_size, urls=urls))

    def predict_together(
        self,
        images: object,
        top_k: int = 5,
        batch_size: int = 64,
        *,
        at_a_time: int | None = None,
        threshold: float | None = None,
        sets: float | None = None,
        features: bool = False,
        urls: bool = False,
    ) -> list[Prediction]:
        """Return predictions like `predict`, where the answer for each image depends on the other images.

        All images are one set; with `at_a_time`, sets of about so many images are answered one after the other. With
        `sets`, answers and sets of classes are by Conf-OT (see `adapt.models.sets`), for which any method will do.

        Raises AdaptError in the cases that `predict` lists, if the method answers each image by itself (see the trait
        `OverSet`), and for fewer images than the method needs.
        """
        query = Query(top_k, threshold, features, together=True, at_a_time=at_a_time, sets=sets)
        return list(self.ask(images, query, batch_size, urls=urls))

    def anomaly_maps(self, images: object, batch_size: int = 64, *, urls: bool = False) -> Tensor:
        """Return anomaly scores for all pixels, `(n, h, w)` on the CPU; `images` is as in `predict`.

        Maps have the size of the backbone's input, and cover the area of an image that the backbone reads. Raises
        AdaptError in the cases that `predict` lists, for a method without anomaly maps, and for a backbone without
        patch features.
        """
        return self._maps(images, Query(maps=True), batch_size, urls)

    def decisive_maps(self, images: object, batch_size: int = 64, *, urls: bool = False) -> Tensor:
        """Return how much less sure the answers are where images are covered, `(n, h, w)` on the CPU (see `occlusion`).

        `images` is as in `predict`; each takes 83 passes. Raises AdaptError in the cases that `predict` lists, and for
        a model that reads no pixels, or views of an image.
        """
        return self._maps(images, Query(maps=True, explain=True), batch_size, urls)

    def _maps(self, images: object, query: Query, batch_size: int, urls: bool) -> Tensor:
        maps = [each.map.scores for each in self.ask(images, query, batch_size, urls=urls)]
        return torch.stack(maps) if maps else torch.empty(0, 1, 1)

    def logits_and_maps(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `(b, n_classes)`, and anomaly maps `(b, h, w)` on the CPU, for images `(b, 3, h, w)`."""
        return self._logits_and_maps(ImageStep(self, pixels))

    def _logits_and_maps(self, step: ImageStep, explain: bool = False) -> tuple[Tensor, Tensor]:
        if explain:
            from adapt.models.occlusion import rests_on

            logits = self.answers.of(step)
            return logits, rests_on(self.without_memory(), step.images, logits.argmax(-1), self.answers.several)
        draws = trait(self.method, DrawsMaps)
        assert draws is not None
        maps = draws.anomalies(step).float().cpu()  # first, as the pass for patches also gives features of images
        return self.answers.of(step), maps

    def _asked(self, images: object, query: Query, batch_size: int, urls: bool) -> Iterator[Any]:
        if not (query.items or query.together):
            return super()._asked(images, query, batch_size, urls)
        from adapt.models import answer

        return answer.answered(self, images, query, batch_size, urls)

    def check_query(self, query: Query) -> None:
        if query.question is not None:
            raise AdaptError(
                f"{self.backbone.describe()} classifies images and cannot answer a question: leave question out"
            )
        self._check_classes()
        if query.items:
            self.check_takes_bags()
        if query.boxes and any(has_trait(self.method, each) for each in (DrawsMaps, Grades, Stream)):
            name = self.method.name
            raise AdaptError(f"{name} draws maps, grades images or remembers earlier ones: leave boxes out")
        if query.maps and query.explain:
            if not self.decides:
                raise AdaptError(f"this {self.method.name} decides nothing that could be explained: leave explain out")
            if has_trait(self.method, Stream):  # covered copies would be among the earlier images
                raise AdaptError(f"{self.method.name} remembers earlier images: leave explain or maps out")
            views = f"{self.method.name} reads views of an image" if self.method.views else ""
            if views or self.backbone.as_decoded:
                what = views or f"{self.backbone.describe()} prepares images by itself"
                raise AdaptError(f"{what}, of which no part can be covered: leave explain or maps out")
        elif query.maps:
            normal_label(self.method, self.class_names)
        elif (query.together and query.sets is None) or query.explain:
            from adapt.models import answer

            (answer.check_together if query.together else answer.check_descriptors)(self)

    @property
    def decides(self) -> bool:
        """Whether the logits say which class an image has (see `DrawsMaps.decides`)."""
        draws = trait(self.method, DrawsMaps)
        return draws is None or draws.decides

    def grades(self, logits: Tensor) -> Tensor | None:
        """Return the numbers `(b,)`, such as quality scores, that a regression method derives from logits, or None."""
        grading = trait(self.method, Grades)
        return None if grading is None else grading.score(logits)

    def _predictions(self, pixels: Tensor | BlockInputs, query: Query) -> Iterator[Any]:
        if query.explain and not query.maps:
            from adapt.models import answer

            return answer.explanations(self, pixels, query)
        watch, frozen = self.watch, None
        if watch is not None and watch.features is not None:  # whose method answers from features alone
            frozen = self.backbone_features(pixels)
        step = ImageStep(self, pixels if frozen is None or query.maps else Encoded(frozen))
        logits, maps = self._logits_and_maps(step, query.explain) if query.maps else (self.answers.of(step), None)
        features, numbers = step.features if query.features else None, self.grades(logits)
        draws = trait(self.method, DrawsMaps)
        p_values = None if draws is None else draws.p_values(step)
        answered = predictions(logits, self.class_names, query, self.answers, features, numbers, step.members, p_values)
        answered = answered if self.decides else map(undecided, answered)
        if maps is not None:
            read = step.images.float().cpu()
            answered = (replace(each, map=Map(*own)) for each, *own in zip(answered, maps, read, strict=True))
        if watch is None:
            return answered
        from adapt.models.watch import properties

        images = pixels.pixels if isinstance(pixels, BlockInputs) else pixels
        assert images is not None  # block inputs of predictions keep them
        sightings = watch.look(
            properties(images[:, 0] if images.ndim == 5 else images), frozen, logits.argmax(-1).cpu()
        )
        return (replace(each, sighting=own) for each, own in zip(answered, sightings, strict=True))

    def _for(self, class_names: tuple[str, ...], **options: Any) -> Self:
        """Return a model for other class names, which shares all else with this one."""
        other = type(self)(
            self.backbone, self.method, class_names, self.fast, checkpointing=self.checkpointing, **options
        )
        other.training, other.metadata, other.answers = self.training, dict(self.metadata), self.answers
        other.watch = self.watch_for(class_names)
        return other

    def _check_classes(self) -> None:
        if not self.class_names:
            raise AdaptError(
                f"this {self.method.name} has no class names: give class names by --classes, or "
                "by class_names of adapt.load"
            )

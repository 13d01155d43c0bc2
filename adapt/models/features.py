"""Features of a data set's images, or of texts in place of images, from the cache on disk or computed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.backbones.base import ImageEncoder
from adapt.backbones.preprocess import Transform, transform_key
from adapt.common.devices import free_bytes
from adapt.common.errors import AdaptError
from adapt.common.progress import Progress
from adapt.common.shown import readable_bytes
from adapt.data.bags import bag_mean, has_bags, singles, sizes
from adapt.data.decoding.cache import FeatureCache
from adapt.data.decoding.image_set import loader
from adapt.data.decoding.images import image_size
from adapt.data.item import Item
from adapt.methods.base import Encoded
from adapt.methods.base.traits import PoolsBags, has_trait
from adapt.models.base import Adapted, evaluating, is_native
from adapt.models.image_model import ImageModel

if TYPE_CHECKING:
    from PIL.Image import Image

    from adapt.backbones.encoded_images import EncodedImage
    from adapt.models.native_vlm import ChatModel
    from adapt.models.prediction import Query

logger = logging.getLogger("adapt")
_RAW = "0/raw"  # what the cache calls features of any length
VIEWS_AT_ONCE = 64  # views that are encoded together, over all images of a batch


def keeps_features(model: Adapted, cache: bool) -> TypeGuard[ImageModel]:
    """Return whether cached features suffice, because the method neither edits the vision tower nor reads images."""
    if not (cache and isinstance(model, ImageModel)):
        return False
    return not ("vision" in model.method.touches or "images" in model.method.reads)


def keeps_bags(model: Adapted, items: Sequence[Item]) -> bool:
    """Return whether the method needs the features of each image of the items' bags, because it weighs the images."""
    return has_bags(items) and has_trait(model.method, PoolsBags)


def of_texts(items: Sequence[Item]) -> bool:
    """Return whether `items` are texts instead of images. Only the first item is checked, as items are never mixed."""
    return bool(items) and not (items[0].paths or items[0].task.mixes_texts)


def item_features(
    model: ImageModel,
    items: Sequence[Item],
    *,
    workers: int,
    cache: bool = True,
    views: int = 0,
    unit: bool = True,
    projected: bool = True,
    progress: Progress | None = None,
) -> Tensor:
    """Return the backbone's features `(n, e)` of data set items, or `(n, views, e)` of random views of each image.

    With `unit`, features are scaled to unit length; otherwise, features keep the length that the tower gives them. If
    `projected` is false, features `(..., d)` are taken before the backbone's last projection, regardless of the
    method's edits. The features of a bag are the mean of its images'. Texts instead of images get features of the text
    tower, but neither random views nor unprojected features.

    Features come from the disk cache, unless `cache` is false or the image transform has no cache key. Random views
    need the cache. Raises AdaptError for features that texts cannot have, and with `projected` if the method edits the
    vision tower, because the cache stores the backbone's own features.
    """
    if has_bags(items):
        each = item_features(
            model, singles(items), workers=workers, cache=cache, views=views, unit=unit, projected=projected,
            progress=progress,
        )  # fmt: skip
        pooled = bag_mean(each, torch.tensor(sizes(items)))
        return F.normalize(pooled, dim=-1) if unit else pooled
    if of_texts(items):
        if views or not projected:
            raise AdaptError(
                f"{model.method.name} needs {'random views' if views else 'features before the last projection'} of "
                "images, but the data has texts instead of images: set method.views or train.views to none if set, or "
                "use another method"
            )
        return model.text_features([item.text for item in items], unit).float().cpu()
    backbone = model.backbone
    if projected:
        _check_unedited(model)
    transform = backbone.transform(train=views > 0)

    encode = functools.partial(_raw, model, projected=projected)
    if not cache:
        with torch.no_grad():
            decoded = loader(items, transform, 64, train=False, workers=workers)
            features = torch.cat([encode(images).cpu() for images, _ in decoded])
    else:
        key = _key(backbone, [transform], _RAW + ("" if projected else "/not projected"))
        features = FeatureCache().features(
            items, transform, encode, key, views=views, workers=workers, progress=progress
        )
    return F.normalize(features.float(), dim=-1) if unit else features.float()


def _raw(model: ImageModel, images: Tensor, projected: bool = True) -> Tensor:
    with _in_its_own_precision(model):
        features = (model.backbone_features if projected else model.read_features)(images, unit=False)
    return features.to(model.backbone.kept_as)


def answers_of_files(model: ImageModel, opened: Iterable[tuple[str, Image]], query: Query) -> Iterator[Any]:
    """Yield the answers of `model.ask` to decoded images, each given with its path, from features of the disk cache."""
    model.check_query(query)
    model, transform = model if model.memory is not None else model.stream(), model.backbone.transform(train=False)

    def encode(pictures: list[Image]) -> Tensor:
        return _raw(model, model.batched([transform(picture) for picture in pictures]))

    for rows in FeatureCache().of_opened(opened, encode, _key(model.backbone, [transform], _RAW)):
        features = F.normalize(torch.stack(rows).float(), dim=-1).to(model.backbone.device)
        with evaluating(model), torch.no_grad():
            answers = list(model._predictions(Encoded(features), query))  # type: ignore[arg-type]  # no watch looks on
        yield from answers


def bag_features(
    model: ImageModel, items: Sequence[Item], *, workers: int, progress: Progress | None
) -> list[tuple[Tensor, tuple[str, ...]]]:
    """Return the backbone's unit-length features `(k, e)` of each item's k images, cached, and their views' names."""
    features = item_features(model, singles(items), workers=workers, progress=progress)
    return [*zip(features.split(sizes(items)), (item.view_names for item in items), strict=True)]


def view_features(model: ImageModel, items: Sequence[Item], *, workers: int, progress: Progress | None) -> Tensor:
    """Return unit-length features `(n, v, e)` of each image (first view) and of its random views, for prediction."""
    _check_unedited(model)
    backbone, transform = model.backbone, model.transform()
    views = 1 + model.method.views

    def encode(images: Tensor) -> Tensor:
        with _in_its_own_precision(model):
            return model.backbone_features(images.flatten(0, 1).to(backbone.device)).float().reshape(len(images), -1)

    transforms = [backbone.transform(train=train) for train in (False, True)]
    key = _key(backbone, transforms, f"{views} as they are decided on")
    size = max(1, VIEWS_AT_ONCE // views)
    features = FeatureCache().features(
        items, transform, encode, key, batch_size=size, workers=workers, progress=progress
    )
    return features.unflatten(-1, (views, -1))


def block_inputs(
    model: ImageModel, items: Sequence[Item], block: int, *, workers: int, progress: Progress | None
) -> Tensor | None:
    """Return the inputs `(n, l, d)` of block number `block` of the vision tower for all images, from the disk cache.

    Warns and returns None if these inputs exceed the size limit of the cache, or half of the free memory.
    """
    backbone, transform = model.backbone, model.backbone.transform(train=False)
    width = backbone.tower("vision").width
    cache, needed = FeatureCache(), len(items) * model.block_inputs(backbone.blank(), block).tokens.nbytes
    what = f"the inputs of block {block} for {len(items):,} images"
    if not _fits(cache, needed, what, "every step computes the earlier blocks"):
        return None
    logger.info("%s take %s of the cache, so that training steps skip the earlier blocks", what, readable_bytes(needed))

    def encode(images: Tensor) -> Tensor:
        with _in_its_own_precision(model):
            return model.block_inputs(images.to(backbone.device), block).tokens.flatten(1)

    key = _key(backbone, [transform], f"inputs of block {block}")
    return cache.features(items, transform, encode, key, workers=workers, progress=progress).unflatten(-1, (-1, width))


def keeps_encoded(model: Adapted, cache: bool) -> TypeGuard[ChatModel]:
    """Return whether images may be encoded once, because the method edits neither what sees nor what connects."""
    fast = is_native(model) and model.path == "fast"
    return cache and fast and not {"vision", "connector"} & model.method.touches


def encoded_images(
    model: ChatModel, items: Sequence[Item], *, workers: int, progress: Progress | None
) -> dict[str, EncodedImage] | None:
    """Return the items' images by path as the decoder of a native vision-language model reads them.

    Warns and returns None if they exceed the size limit of the cache, or half of the free memory. Raises AdaptError,
    naming the file, if an image cannot be decoded.
    """
    backbone = model.backbone
    turned = backbone.preprocess.turned
    alone = {path: replace(item, paths=(path,)) for item in items for path in item.paths}
    if not alone:
        return {}
    marks_of = {path: backbone.marks(image_size(path, turned))[0] for path in alone}

    def encode(images: Sequence[Sequence[Image]]) -> list[Tensor]:
        with _in_its_own_precision(model):
            encoded = backbone.encode_images([picture for pictures in images for picture in pictures])
        return [image.features.flatten() for image in encoded]

    width = backbone.vlm.config.get_text_config().hidden_size
    layers = 1 + len(getattr(backbone.vlm.config.vision_config, "deepstack_visual_indexes", None) or ())
    needed = sum(marks.tokens for marks in marks_of.values()) * layers * width * backbone.dtype.itemsize
    cache = FeatureCache()
    if not _fits(cache, needed, f"the features of {len(alone):,} images", "every step encodes its images"):
        return None
    rows = cache.rows(
        list(alone.values()), backbone.transform(train=False), encode, backbone.image_key,
        batch_size=model.evaluated_together, workers=workers, progress=progress,
    )  # fmt: skip
    from adapt.backbones.encoded_images import EncodedImage

    return {
        path: EncodedImage(marks_of[path], row.view(-1, marks_of[path].tokens, width))
        for path, row in zip(alone, rows, strict=True)
    }


def of_paths(items: Sequence[Item], known: Mapping[str, EncodedImage]) -> list[list[EncodedImage]]:
    """Return the encoded images of each item."""
    return [[known[path] for path in item.paths] for item in items]


def _fits(cache: FeatureCache, needed: int, what: str, otherwise: str) -> bool:
    """Return whether `needed` bytes fit into the cache and half of the free memory; warn with `otherwise` if not."""
    limits = {"the cache may hold": cache.max_bytes, "half of the free memory is": free_bytes(torch.device("cpu")) // 2}
    for name, limit in limits.items():
        if needed > limit:
            size = readable_bytes(needed)
            logger.warning("%s take %s, but %s %s: %s", what, size, name, readable_bytes(limit), otherwise)
            return False
    return True


def _key(backbone: ImageEncoder, transforms: Sequence[Transform], output: str) -> str | None:
    """Return the key under which the cache stores `output` of a backbone, or None if an image transform is unknown."""
    keys = [key for each in transforms if (key := transform_key(each)) is not None]
    if len(keys) < len(transforms):
        _note_unknown()
        return None
    return "/".join((backbone.content(), *keys, output))


@functools.cache
def _note_unknown() -> None:
    """Warn once per process that features are not cached because the code of an image transform is unknown."""
    logger.warning(
        "images are transformed by code that is neither torchvision's nor open_clip's, so their features are not "
        "cached on disk but computed each time"
    )


def _in_its_own_precision(model: Adapted) -> torch.autocast:
    """Return a context without autocast, because cached features must not depend on the caller's precision."""
    return torch.autocast(model.backbone.device.type, enabled=False)


def _check_unedited(model: ImageModel) -> None:
    if "vision" in model.method.touches:
        raise AdaptError(
            f"{model.method.name} edits the vision tower, so the backbone's cached features cannot be used: read "
            "step.features or step.frozen_features instead"
        )

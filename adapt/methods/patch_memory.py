"""A memory of the patches of good images: an image is abnormal where its patches are far from all of them.

Paper: Damm et al., AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2, WACV 2025. `coreset` and
`metric` are those of Roth et al., Towards Total Recall in Industrial Anomaly Detection (PatchCore), CVPR 2022.
References: AnomalyDINO `b3435f0`, `src/detection.py`, `backbones.py`, `utils.py`, `post_eval.py`,
`run_anomalydino_batched.py`; anomalib `b7233686`, `k_center_greedy.py`, `one_class.py`.
Deviations:
* The memory is kept in half precision. Images are turned, and maps smoothed, in the size that the backbone reads.
* The mask of an object splits the first component by Otsu's threshold, for a backbone of any scale, and grows in rows
  and columns; in the reference the threshold is 10, and the mask grows along the flat list of patches.
* The coreset is chosen by distances as they are, and begins with the first patch; PatchCore's are projected at random,
  and so is its first patch.
* Thresholds from good images are ours: split conformal prediction on images kept apart (Vovk et al., 2005), or each
  image left out of the memory. Of n + 1 exchangeable images, call i stronger than j if i scores higher against a memory
  without both. At most 2m - 1 of them are stronger than all but m - 1 of the others, and a larger memory only lowers a
  score, so that the m-th largest score of an image left out is passed by at most (2m - 1) / (n + 1) of new good images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from adapt.backbones.base import ImageEncoder
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.shown import readable_bytes
from adapt.data.bags import singles
from adapt.data.split import kept_together
from adapt.engine import vision
from adapt.methods.base import ImageStep, Method, MethodConfig, Training
from adapt.methods.base.training import Part
from adapt.methods.base.traits import DrawsMaps, OwnClassifier, Reports, normal_label

KEPT_AS = torch.float16
ANGLES = range(0, 360, 45)
WORST = 100  # of so many patches, the farthest one makes the image's score
SIGMA = 4.0  # pixels by which maps are smoothed
FALSE_ALARMS = 0.05
FARTHEST = 5  # images that a training names
AT_ONCE = 1024  # patches of the memory, as a table of all distances is large
EXACT = "donot_use_mm_for_euclid_dist"  # products of matrices cancel where patches are near each other
PRODUCTS = "use_mm_for_euclid_dist"
LEAST, FAR = 1e-6, 1e6  # below and above all distances
STEEP = 8.0  # the odds are this power of the score over the threshold
TIE = 1e-5  # log-odds by which a score that equals the threshold is below it
ROUNDING = 1e-9
DRAWS = 10_000


class PatchMemoryConfig(MethodConfig):
    normal: str = "normal"
    """The class of good images, the only ones that are learned from."""
    block: int = -1
    """The block of the vision tower, or the map of a convolutional network, whose patches are compared."""
    neighbours: int = Field(default=1, ge=1)
    """The number of nearest patches in the memory whose distances are averaged."""
    quantile: float | None = Field(default=None, gt=0, lt=1)
    """Averages the distances below this quantile of all, in place of the nearest ones (AnomalyDINO's batches: 0.001),
    so that a few abnormal images in the memory hide no others like them."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """The distance of two patches; euclidean ones are averaged by the root of their mean square."""
    weighed: int | None = Field(default=None, ge=2)
    """The patches of the memory around the nearest one that weigh an image's largest distance, which then is its score
    (PatchCore: 9); by default, the score is the mean of the largest hundredth of the distances."""
    rotate: bool = False
    """Whether good images are also remembered turned by 45, 90, ..., 315 degrees, for things that lie in any way."""
    mask: Literal["none", "object"] = "none"
    """Whether to look at an object alone, which fills the middle of the image, and at nothing around it."""
    coreset: float | None = Field(default=None, gt=0, lt=1)
    """The share of the patches that the memory keeps, far from each other (PatchCore: 0.1); by default, all."""
    megabytes: float | None = Field(default=None, gt=0)
    """The size in MiB that the memory may have, of at least one patch; a larger one is reduced to a coreset."""
    false_alarms: float | None = Field(default=None, gt=0, lt=1)
    """The share of good images that may be called abnormal; by default 0.05, or the least that the images can promise
    if that is more."""
    decide: Literal["good", "f1"] = "good"
    """Whether the threshold comes from good images alone, or has the best F1 on them and on all abnormal images. The
    good ones are those of validation or, if none is there, those of training, each left out of the memory."""
    probability: Literal["odds", "range"] = "odds"
    """Whether the odds of an image being abnormal are a power of its score over the threshold, or its probability is
    anomalib's normalised score: 0.5 at the threshold, and linear, by the range of the scores that the threshold has."""
    rows: int = Field(default=0, ge=0)
    """The number of patches in the memory; training sets it."""
    scores: int = Field(default=0, ge=0)
    """The number of good images whose scores give the threshold; training sets it."""
    left_out: bool = False
    """Whether these are the images of the memory, each left out of it, or else validation images; training sets it."""

    @model_validator(mode="after")
    def _of_all(self) -> Self:
        if self.quantile is not None and (self.coreset or self.megabytes or self.neighbours > 1):
            raise ValueError(
                "quantile is of the distances from all patches: leave out coreset, megabytes and neighbours"
            )
        return self


class PatchMemory(Method[ImageStep], DrawsMaps, OwnClassifier, Reports):
    """Distances of an image's patches to a `memory` `(m, d)` of those of good images.

    `good` `(2, n)` are the scores of good images that are not in the memory they were compared with, and the maxima of
    their maps. If F1 decides, `cut` `(2,)` are the thresholds of both. `ends` `(2,)` are the lowest and the highest
    score of an image that the threshold was chosen by, for normalised scores.
    """

    name = "patch_memory"
    title = "AnomalyDINO (Damm et al., WACV 2025)"
    serves: tuple[str, ...] = ("dual encoder", "vision encoder")
    Config = PatchMemoryConfig
    reads = frozenset({"images"})
    example = {"normal": "animal mammal", "rows": 6, "scores": 3}
    memory: Tensor
    good: Tensor
    cut: Tensor
    ends: Tensor

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        width = vision.patch_features(backbone, backbone.blank(), self.config.block).shape[-1]
        memory, good = torch.zeros(self.config.rows, width), torch.zeros(2, self.config.scores)
        self._hold(memory.to(backbone.device), good.to(backbone.device))

    def _hold(self, memory: Tensor, good: Tensor) -> None:
        self.register_buffer("memory", memory.to(KEPT_AS))
        self.register_buffer("good", good)
        if self.config.decide == "f1":
            self.register_buffer("cut", good.new_full((2,), FAR))
        if self.config.probability == "range":
            self.register_buffer("ends", torch.stack(good[0].aminmax()) if good.numel() else good.new_zeros(2))

    def prepare(self, training: Training) -> None:
        config = self.config
        learned, apart = (self._units(training, part) for part in ("train", "val"))
        if not learned:
            raise AdaptError(f"patch_memory learns from images of the class {config.normal!r}: give at least one")
        angles, backbone = ANGLES if config.rotate else ANGLES[:1], training.model.backbone
        _, rows, columns, width = vision.patch_features(backbone, backbone.blank(), config.block).shape
        patches = len(learned) * len(angles) * rows * columns
        kept = patches if config.coreset is None else math.ceil(config.coreset * patches)
        if config.megabytes is not None:
            kept = min(kept, max(1, int(config.megabytes * 2**20 / (width * KEPT_AS.itemsize))))
        grows = kept == patches and config.quantile is None
        left_out = not apart and grows and len({*learned}) > 1
        units = apart or learned * left_out
        abnormal: dict[Part, list[str]] = {part: self._units(training, part, good=False) for part in ("train", "val")}
        images = len({*units})  # images of one thing are one
        self._check(images, sum(map(len, abnormal.values())), left_out, grows)
        views = [self._patches(training, "train", angle=angle) for angle in angles]
        of_images = torch.stack([self._vectors(view).flatten(1, 2) for view in views], 1).flatten(1, 2).to(KEPT_AS)
        memory = of_images.flatten(0, 1)
        if kept < patches:
            memory = memory[coreset(memory.float(), kept)]

        def compared(patches: Tensor, units: list[str], left_out: bool = False) -> Tensor:
            """Return the largest score of each thing's images and the maximum of their maps `(2, things)`."""
            side, highest = backbone.preprocess.size, [memory.new_zeros(2, 0).float()]
            for unit in dict.fromkeys(units):
                own = torch.tensor([name == unit for name in units], device=memory.device)
                known = of_images[~own].flatten(0, 1) if left_out else memory
                distances, scores = self.compared(patches[own], known)
                maps = self.drawn(distances, (side, side))
                highest.append(torch.stack([scores.amax(), maps.amax()])[:, None])
            return torch.cat(highest, 1)

        self._hold(memory, compared(self._patches(training, "val") if apart else views[0], units, left_out))
        self.config = config.model_copy(update={"rows": len(memory), "scores": images, "left_out": left_out})
        told: JsonObject = {"images": len(learned), "patches": len(memory), "bytes": memory.nbytes}
        if config.quantile is not None and len({*learned}) > 1:
            scores = zip(dict.fromkeys(learned), compared(views[0], learned, True)[0].tolist(), strict=True)
            told["left_out"] = dict(sorted(scores, key=lambda each: -each[1]))
        if config.decide == "f1":
            tested = [compared(self._patches(training, part, good=False), own) for part, own in abnormal.items() if own]
            scored = torch.cat(tested, 1)
            if self.config.probability == "range":
                self.ends.copy_(torch.stack(torch.cat([self.good[0], scored[0]]).aminmax()))
            self.cut.copy_(torch.stack([best_f1(*scores) for scores in zip(self.good, scored, strict=True)]))
            cut = self.cut[0]
            if not (self.good <= self.cut[:, None]).any(1).all():
                raise AdaptError(
                    "patch_memory: decide is f1, but abnormal images, or the maxima of their maps, are no higher than "
                    "good ones, and calling all abnormal is best: use another block or backbone, or leave decide out"
                )
            promise = f"the threshold {float(cut):.3g} has {f1_of(self.good[0] > cut, scored[0] > cut)}"
        else:
            promise = self._promise()
        training.note(memory=told | {"good": self.good[0].tolist(), "promise": promise})

    def _check(self, good: int, abnormal: int, left_out: bool, grows: bool) -> None:
        """Raise AdaptError if so many things that are not in the memory give no threshold as it is asked for."""
        share = self.config.false_alarms
        if self.config.decide == "f1" and share is not None:
            raise AdaptError(
                f"patch_memory: false_alarms is {share:g}, but decide is f1, which promises no share: leave one out"
            )
        if self.config.decide == "f1" and not (good and abnormal):
            raise AdaptError(
                f"patch_memory: decide is f1, with {good} good images out of the memory and {abnormal} abnormal ones: "
                "give an abnormal image, and two good ones or, for a coreset or a quantile, good validation images"
            )
        if share is not None and not (good and rank(share, good, left_out)):
            where = "" if grows else " among the validation images, as a coreset or a quantile leaves none out"
            raise AdaptError(
                f"patch_memory: false_alarms {share:g} needs {math.ceil(1 / share - 1 - ROUNDING)} or more good images"
                f"{where}, and there are {good}: give more, or leave false_alarms out"
            )

    def _units(self, training: Training, part: Part, good: bool = True) -> list[str]:
        """Return the group of each good image in a part of the data, or of each abnormal one."""
        normal_label(self, training.model.class_names)  # there is such a class
        items = singles(training.items(part))
        units = zip(items, kept_together(items), strict=True)
        return [unit for item, unit in units if (item.class_names == (self.normal_class,)) == good]

    def _patches(self, training: Training, part: Part, good: bool = True, angle: int = 0) -> Tensor:
        """Return the features `(n, rows, columns, d)` of the patches of a part's good images, or abnormal ones."""
        found = []
        for step in training.steps(part):
            assert isinstance(step, ImageStep)
            assert step.labels is not None
            wanted = (step.labels == normal_label(self, step.model.class_names)) == good
            if wanted.any():
                images = turned(step.images[wanted], angle)
                found.append(vision.patch_features(step.model.backbone, images, self.config.block))
        return torch.cat(found)

    def _vectors(self, patches: Tensor) -> Tensor:
        patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
        return F.normalize(patches, dim=-1) if self.config.metric == "cosine" else patches

    def distances(self, patches: Tensor, memory: Tensor) -> Tensor:
        """Return the distance of each patch `(b, rows, columns)` from the nearest ones in `memory` `(m, d)`."""
        if not len(memory):
            raise AdaptError("this patch_memory remembers no image: train it on good images")
        own, quantile = self._vectors(patches), self.config.quantile
        count = self.config.neighbours if quantile is None else max(1, int(quantile * len(memory)) - 1)
        found = own[..., :0]
        for some in memory.to(own).split(AT_ONCE):
            table = 1 - own @ some.T if self.config.metric == "cosine" else _apart(own, some)
            found = torch.cat([found, table.topk(min(count, len(some)), largest=False).values], -1)
            found = found.topk(min(count, found.shape[-1]), largest=False).values
        distances = found.mean(-1).clamp_min(0) if self.config.metric == "cosine" else found.square().mean(-1).sqrt()
        return distances * foreground(patches) if self.config.mask == "object" else distances

    def compared(self, patches: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances of patches `(b, rows, columns)` from a memory, and the images' scores `(b,)`."""
        distances, count = self.distances(patches, memory), self.config.weighed
        if count is None:
            return distances, image_scores(distances)
        return distances, weighed_scores(distances, self._vectors(patches), memory.float(), count)

    def _of(self, step: ImageStep) -> tuple[Tensor, Tensor]:
        if step.compared is None:
            patches = vision.patch_features(step.model.backbone, step.images, self.config.block)
            step.compared = self.compared(patches, self.memory)
        return step.compared

    def logits(self, step: ImageStep) -> Tensor:
        """Return logits `(b, n)`, 0 for normal; the others are above 0 where the score is above the threshold."""
        names, threshold, scores = step.model.class_names, self.threshold(), self._of(step)[1]
        threshold = scores.new_tensor(FAR) if threshold is None else threshold
        if self.config.probability == "range":
            odds = normalised(scores, threshold, *self.ends).logit(LEAST)
        else:
            odds = STEEP * (scores.clamp_min(LEAST) / threshold.clamp_min(LEAST)).log()
        others = 1 - F.one_hot(torch.tensor(normal_label(self, names)), len(names))
        return (odds - TIE)[:, None] * others.to(scores)

    def anomalies(self, step: ImageStep) -> Tensor:
        return self.drawn(self._of(step)[0], step.images.shape[-2:])

    def drawn(self, distances: Tensor, size: Sequence[int]) -> Tensor:
        large = F.interpolate(distances[:, None], tuple(size), mode="bilinear")[:, 0]
        rows, columns = (smoothing(length).to(large) for length in size)
        return rows @ large @ columns.T

    # thresholds

    @property
    def _place(self) -> int:
        """The place of the threshold among the scores of good images, the largest being the first."""
        share, images = self.config.false_alarms, self.good.shape[1]
        return rank(max(FALSE_ALARMS, 1 / (images + 1)) if share is None else share, images, self.config.left_out)

    @property
    def decides(self) -> bool:
        return self.threshold() is not None

    def threshold(self, pixels: bool = False) -> Tensor | None:
        if self.config.decide == "f1":
            return self.cut[int(pixels)]
        return self.good[int(pixels)].topk(self._place).values[-1] if self.good.shape[1] else None

    def p_values(self, step: ImageStep) -> Tensor | None:
        count = self.good.shape[1]
        if not count:
            return None
        above = (self.good[0] >= self._of(step)[1][:, None]).sum(-1) * (2 if self.config.left_out else 1)
        return ((above + 1) / (count + 1)).clamp_max(1)

    def _promise(self) -> str:
        """Return in words what the threshold promises about new good images."""
        count, threshold, place = self.good.shape[1], self.threshold(), self._place
        if threshold is None:
            return (
                "one good image, a coreset or a quantile gives no threshold, so that nothing is decided: give more "
                "good images, or validation images"
            )
        how, most = "kept apart", place
        if self.config.left_out:
            how, most = "left out one by one", 2 * place - 1
        return (
            f"of {count} good images {how}, {place - 1 or 'none'} scored above {float(threshold):.3g}: expect up to "
            f"{most} false alarm{'s' * (most > 1)} in {count + 1} good images of the same camera and light"
        )

    @classmethod
    def lines(cls, metrics: JsonObject) -> Iterable[str]:
        memory = metrics["memory"]
        yield f"memory: {memory['patches']:,} patches of {memory['images']} images, {readable_bytes(memory['bytes'])}"
        if farthest := list(memory.get("left_out", {}).items())[:FARTHEST]:
            yield f"farthest from the others: {', '.join(f'{name} {score:.3g}' for name, score in farthest)}"
        yield memory["promise"]


def rank(share: float, images: int, left_out: bool) -> int:
    """Return m, where at most a share of new good images passes the m-th largest score of so many; 0 if none does so.

    Of images that are `left_out` of the memory, (2m - 1) / (images + 1) pass, of others m / (images + 1).
    """
    most = share * (images + 1) + ROUNDING
    return min(images, math.floor((most + 1) / 2 if left_out else most))


def best_f1(good: Tensor, abnormal: Tensor) -> Tensor:
    """Return the threshold above which scores `(n,)` and `(m,)` are called abnormal with the best F1.

    It lies in the middle between two scores, or 1 below all, and is the lowest of several thresholds. anomalib's
    F1-adaptive threshold is the score above it.
    """
    scores = torch.cat([good, abnormal]).unique()
    cuts = torch.cat([scores[:1] - 1, (scores[1:] + scores[:-1]) / 2])
    found, false = ((each > cuts[:, None]).sum(-1) for each in (abnormal, good))
    return cuts[(2 * found / (found + false + len(abnormal))).argmax()]


def normalised(scores: Tensor, threshold: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return anomalib's scores `(n,)` from 0 to 1, with the threshold at 0.5, by the range of scores low to high."""
    return ((scores - threshold) / (high - low).clamp_min(LEAST) + 0.5).clamp(0, 1)


def f1_of(good: Tensor, abnormal: Tensor) -> str:
    """Return in words the F1 of calling images abnormal, from which good `(n,)` and abnormal ones `(m,)` are so called.

    The interval has 95 % of draws of both shares from their posterior by Jeffreys' prior (Brown, Cai and DasGupta,
    Interval Estimation for a Binomial Proportion, 2001), which no share of 0 or 1 makes certain, and reaches to the F1
    itself.
    """
    draw, most = np.random.default_rng(0), len(abnormal)
    false, found = (
        len(each) * draw.beta(int(each.sum()) + 0.5, int((~each).sum()) + 0.5, DRAWS) for each in (good, abnormal)
    )
    low, high = np.quantile(2 * found / (found + false + most), (0.025, 0.975))
    f1 = 2 * int(abnormal.sum()) / (int(abnormal.sum()) + int(good.sum()) + most)
    return (
        f"F1 {f1:.2f} ({low:.2f} to {max(high, f1):.2f}) on the {len(good)} good and {most} abnormal images that it "
        "was chosen by: expect less on new ones"
    )


def image_scores(distances: Tensor) -> Tensor:
    """Return the mean `(b,)` of the largest hundredth of the distances `(b, rows, columns)`, at least of one."""
    flat = distances.flatten(1)
    return flat.topk(max(1, flat.shape[1] // WORST)).values.mean(1)


def weighed_scores(distances: Tensor, patches: Tensor, memory: Tensor, count: int) -> Tensor:
    """Return PatchCore's scores `(b,)`: the largest distance, times 1 less a weight of the nearest patch in `memory`.

    The weight is a softmax over the distances to the `count` patches `(m, d)` around that one, itself the first.
    """
    largest, place = distances.flatten(1).max(1)
    farthest = patches.flatten(1, 2)[torch.arange(len(patches)), place]
    nearest = memory[_apart(farthest, memory).argmin(1)]
    around = memory[_apart(nearest, memory).topk(min(count, len(memory)), largest=False).indices]
    return largest * (1 - _apart(farthest[:, None], around)[:, 0].softmax(1)[:, 0])


def _apart(points: Tensor, others: Tensor) -> Tensor:
    mode = PRODUCTS if torch.compiler.is_compiling() else EXACT  # ONNX has no other
    return torch.cdist(points, others, compute_mode=mode)


def smoothing(length: int) -> Tensor:
    """Return the matrix `(length, length)` that smooths pixels by a Gaussian, mirrored at both ends."""
    reach = round(4 * SIGMA)
    offsets = torch.arange(-reach, reach + 1)
    places = (torch.arange(length)[:, None] + offsets) % (2 * length)
    weights = (-((offsets / SIGMA) ** 2) / 2).softmax(0).expand(length, -1)
    return torch.zeros(length, length).scatter_add(1, torch.minimum(places, 2 * length - 1 - places), weights)


def turned(images: Tensor, angle: int) -> Tensor:
    """Return images `(b, 3, h, w)` turned by an angle in degrees, counter-clockwise, and mirrored at their borders."""
    if not angle:
        return images
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(*(torch.arange(n, device=images.device) - n / 2 for n in (height, width)), indexing="ij")
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    across, down = cos * x - sin * y, sin * x + cos * y
    places = torch.stack([(2 * across + 1) / (width - 1), (2 * down + 1) / (height - 1)], -1)
    grid = places.to(images.dtype).expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)


def coreset(points: Tensor, count: int, first: int = 0) -> Tensor:
    """Return the places `(count,)` of points `(m, d)`, each the farthest from those before it."""
    picked = [first]
    near = (points - points[first]).square().sum(-1)
    while len(picked) < count:
        picked.append(int(near.argmax()))
        near = torch.minimum(near, (points - points[picked[-1]]).square().sum(-1))
    return torch.tensor(picked, device=points.device)


def foreground(patches: Tensor) -> Tensor:
    """Return whether each patch `(b, rows, columns)` is of an object that fills the middle, from their features."""
    rows, columns = patches.shape[1:3]
    ordered, order = principal(patches).sort(-1)
    below = torch.arange(1, rows * columns, device=patches.device) / (rows * columns)
    apart = (ordered.mean(-1, keepdim=True) * below - ordered.cumsum(-1)[:, :-1] / (rows * columns)).square()
    split = (apart / (below * (1 - below))).argmax(-1, keepdim=True)  # Otsu's: the variance between both sides
    kept = (order.argsort(-1) > split).unflatten(1, (rows, columns))
    middle = kept[:, round(rows * 0.2) : round(rows * 0.8), round(columns * 0.2) : round(columns * 0.8)]
    kept = kept ^ (middle.float().mean((1, 2)) <= 0.35)[:, None, None]
    grown = F.max_pool2d(kept.float(), 3, 1, 1)
    return -F.max_pool2d(-F.max_pool2d(grown, 3, 1, 1), 3, 1, 1) > 0


def principal(patches: Tensor) -> Tensor:
    """Return the first principal component `(b, rows * columns)` of each image's patches `(b, rows, columns, d)`."""
    flat = patches.float().flatten(1, 2)
    flat = flat - flat.mean(1, keepdim=True)
    return (flat @ torch.linalg.svd(flat, full_matrices=False).Vh[:, :1].mT)[..., 0]

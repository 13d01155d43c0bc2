"""SAVs and HEC in attention heads: symmetries, ties, one image a class, heads that see nothing, files, and doors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_natives
import torch
import torch.nn.functional as F
from checks import scaled
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.backbones.native_eyes import NativeEyes
from adapt.data import Split
from adapt.formats.adapter import read_header
from adapt.methods import GDA, HEC, SAVs
from adapt.testing import check_method

LAYERS, HEADS, SIZE = 3, 2, 8
ALL = LAYERS * HEADS
CPU = torch.device("cpu")


class Given:
    """A training of vectors `(n, heads, d)` that are at hand, with vectors of the class names."""

    def __init__(self, vectors: Tensor, labels: Tensor, texts: Tensor | None = None) -> None:
        self._vectors, self._labels, self.classes = vectors, labels, int(labels.max()) + 1
        read = lambda names: texts.flatten(1)  # noqa: E731
        backbone = SimpleNamespace(heads=(LAYERS, HEADS, SIZE), device=CPU, question="what is it?", read_texts=read)
        names = tuple(f"class {number}" for number in range(self.classes))
        self.model = SimpleNamespace(backbone=backbone, class_names=names)

    def features(self, part: str, *, unit: bool) -> Tensor:
        return self._vectors.flatten(1)

    def labels(self, part: str) -> Tensor:
        return self._labels

    def fitted(self, method: Any) -> Any:
        method.build(self.model.backbone, self.model.class_names)
        method.prepare(self)
        return method


def drawn(classes: int = 4, each: int = 5, spread: float = 0.7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors `(n, heads, d)` around a point for each class and head, of another length in each head, and labels."""
    draw, labels = torch.Generator().manual_seed(seed), torch.arange(classes).repeat(each)
    points = torch.randn(classes, ALL, SIZE, generator=torch.Generator().manual_seed(9))
    noise = spread * torch.linspace(1, 4, ALL)[:, None] * torch.randn(len(labels), ALL, SIZE, generator=draw)
    return (points[labels] + noise) * torch.linspace(0.1, 10, ALL)[:, None], labels


def asked(vectors: Tensor) -> Any:
    return SimpleNamespace(features=F.normalize(vectors.flatten(1), dim=-1))


def texts(classes: int = 4) -> Tensor:
    return torch.randn(classes, ALL, SIZE, generator=torch.Generator().manual_seed(3))


NEW: dict[str, Any] = {
    "savs": lambda: SAVs(heads=3),
    "images": lambda: HEC(heads=3),
    "names": lambda: HEC(by="names", name_heads=2),
    "both": lambda: HEC(by="both", heads=3, name_heads=2),
}


@pytest.mark.parametrize("name", NEW)
def test_the_order_of_classes_and_images_does_not_matter(name: str) -> None:
    vectors, labels = drawn()
    queries, order, classes = drawn(seed=1)[0], torch.randperm(20), torch.tensor([2, 0, 3, 1])
    first = Given(vectors, labels, texts()).fitted(NEW[name]())
    turned = Given(vectors[order], classes[labels[order]], texts()[classes.argsort()]).fitted(NEW[name]())
    assert scaled(turned.logits(asked(queries))[:, classes], first.logits(asked(queries))) < 1e-5
    assert first.heads.tolist() == turned.heads.tolist()
    longer = queries * torch.rand(20, 1, 1).add(0.5)
    assert scaled(first.logits(asked(longer)), first.logits(asked(queries))) < 1e-4


def test_one_head_at_temperature_one_answers_as_gda_on_its_vectors() -> None:
    vectors, labels = drawn()
    method = Given(vectors, labels).fitted(HEC(heads=1, temperature=1.0))
    head = int(method.heads)
    unit = F.normalize(torch.stack([vectors[:, head], drawn(seed=1)[0][:, head]]), dim=-1)
    gda = GDA(views=0)
    gda.build(SimpleNamespace(embed_dim=SIZE, device=CPU), tuple("abcd"))  # type: ignore[arg-type]
    gda.fit(unit[0], labels)
    expected = (unit[1] @ gda.weight.T + gda.bias).log_softmax(-1)
    assert scaled(method.logits(asked(drawn(seed=1)[0])), expected) < 1e-5


def test_the_images_alone_answer_where_they_weigh_most_and_class_names_where_they_weigh_nothing() -> None:
    training, queries = Given(*drawn(), texts()), asked(drawn(seed=1)[0])
    by = {
        name: training.fitted(HEC(by=name, heads=3, name_heads=2)).logits(queries).exp() for name in ("images", "names")
    }
    both = [training.fitted(HEC(by="both", heads=3, name_heads=2, alpha=alpha)).logits(queries) for alpha in (1e6, 0.0)]
    assert scaled(both[0].softmax(-1), by["images"]) < 1e-4
    assert scaled(both[1].exp(), by["names"]) < 1e-6
    assert scaled(both[1].exp().sum(-1), torch.ones(20)) < 1e-5


def test_of_equally_good_heads_the_deeper_ones_are_kept() -> None:
    vectors, labels = drawn(spread=0.001)  # all heads are right about all images
    assert Given(vectors, labels).fitted(SAVs(heads=4)).heads.tolist() == [5, 4, 3, 2]
    one = Given(vectors[:4], labels[:4]).fitted(SAVs(heads=2))
    assert one.heads.tolist() == [5, 4]  # one image of each class: every head answers its own image right
    assert one.logits(asked(vectors)).argmax(-1).eq(labels).all()


def test_equal_votes_go_to_the_class_that_the_best_head_voted_for_first() -> None:
    method = Given(*drawn()).fitted(SAVs(heads=4))
    votes = torch.zeros(3, 4, 4)
    for row, order in enumerate([(1, 2, 2, 1), (3, 0, 0, 3), (0, 1, 1, 1)]):
        votes[row, torch.arange(4), torch.tensor(order)] = 1
    method.votes = lambda features: votes
    logits = method.logits(asked(drawn()[0][:3]))
    assert logits.argmax(-1).tolist() == [1, 3, 1]
    assert logits[0].softmax(-1).tolist() == pytest.approx([0.0115, 0.4913, 0.4856, 0.0115], abs=1e-3)
    assert logits.isfinite().all()


def test_one_image_of_each_class_is_refused_by_images_and_enough_by_names() -> None:
    vectors, labels = drawn(each=1)
    with pytest.raises(AdaptError, match=r"hec needs two or more different images of a class.*method\.by to names"):
        Given(vectors, labels).fitted(HEC())
    assert Given(vectors, labels, texts()).fitted(HEC(by="names")).logits(asked(vectors)).isfinite().all()


def test_heads_that_see_no_difference_within_classes_come_last() -> None:
    vectors, labels = drawn()
    vectors[:, 5] = torch.arange(1.0, SIZE + 1)  # the same about all images
    method = Given(vectors, labels).fitted(HEC(heads=5))
    assert 5 not in method.heads.tolist()
    every = Given(vectors, labels).fitted(HEC(heads=20))
    assert sorted(every.heads.tolist()) == list(range(ALL))
    assert every.logits(asked(vectors)).isfinite().all()


@pytest.fixture(scope="module")
def few() -> Split:
    whole = adapt.data.load("emoji").few_shot(3, seed=1)
    names = whole.class_names[:3]
    parts = [tuple(item for item in part if item.class_names[0] in names) for part in (whole.train, whole.test)]
    return Split("few", names, parts[0], (), parts[1][:8])


@pytest.mark.full
@pytest.mark.parametrize("method", [SAVs, HEC])
def test_every_door_of_a_method_on_the_bundled_model(method: type[methods.Method]) -> None:
    assert len(check_method(method)) == 14


@pytest.mark.parametrize(
    "method", [SAVs(heads=4), HEC(heads=4), HEC(by="both", heads=4, alpha=None)], ids=["savs", "images", "both"]
)
def test_training_calibrates_and_its_file_is_small(method: methods.Method, few: Split, tmp_path: Path) -> None:
    model = adapt.wrap(NativeEyes(tiny_natives.backbone("llava"), "heads"), method, few.class_names)
    metrics = adapt.fit(model, few.train, few.test, progress=False).metrics
    assert model.answers.temperature == metrics["calibration"]["temperature"] != 1
    if getattr(method.config, "by", "") == "both":
        assert metrics["chosen"]["settings"]["alpha"] == method.config.alpha in (0.1, 1.0, 10.0)
    path = model.save(tmp_path / "a.safetensors")
    assert path.stat().st_size < 40_000
    assert read_header(path).preprocess["reads"] == "heads"  # type: ignore[typeddict-item]


def test_a_file_with_a_head_that_is_not_there_is_refused(few: Split, tmp_path: Path) -> None:
    backbone = NativeEyes(tiny_natives.backbone("llava"), "heads")
    model = adapt.wrap(backbone, SAVs(heads=4), few.class_names)
    model.method.heads.copy_(torch.tensor([0, 1, 2, 8]))
    path = model.save(tmp_path / "a.safetensors")
    with pytest.raises(AdaptError, match="names a head beyond the 8 of the backbone"):
        adapt.load(path, backbone)


@pytest.mark.parametrize("backbone", ["last", "clip"])
def test_features_that_are_no_heads_are_refused(backbone: str) -> None:
    found = (
        NativeEyes(tiny_natives.backbone("llava")) if backbone == "last" else adapt.load_backbone("vision:mini-clip")
    )
    for method in (SAVs(), HEC()):
        with pytest.raises(
            AdaptError, match=r"reads attention heads, which are not the features of .* use heads:BACKB"
        ):
            adapt.wrap(found, method, ("a", "b"))

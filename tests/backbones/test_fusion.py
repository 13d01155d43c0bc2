"""ViLT and BridgeTower as encoders of an image with a question, and models that choose an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_fusion
import torch
import torch.nn.functional as F
from checks import assert_untouched, flat, perturb, relative, scaled, snapshot
from PIL import Image
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.backbones.fusion import FusionEncoder
from adapt.data import Item, Split
from adapt.models.fusion_encoder import AnsweringModel

QUESTIONS = ["what is it ?", "how many dog ?", "which animal"]
LETTERS = ("q", "k", "v", "out", "fc1", "fc2")
SIZES = {
    "vilt": {"fusion": (32, 4, 3)},
    "bridgetower": {"text_fusion": (32, 4, 2), "vision_fusion": (32, 4, 2)},
}
every_kind = pytest.mark.parametrize("kind", tiny_fusion.KINDS)


@pytest.fixture
def pictures(images: Tensor) -> Tensor:
    return images[: len(QUESTIONS)]


def lora(kind: str, answers: tuple[str, ...] = tiny_fusion.ANSWERS, **options: Any) -> AnsweringModel:
    """LoRA on every tower; the same values at every call."""
    torch.manual_seed(0)
    method = methods.LoRA(towers=list(SIZES[kind]), **options)
    model: AnsweringModel = adapt.wrap(tiny_fusion.KINDS[kind](), method, answers)
    return model


@every_kind
def test_towers_and_sizes_are_read_from_the_model(kind: str) -> None:
    backbone = tiny_fusion.KINDS[kind]()
    towers = backbone.towers
    assert {name: (t.width, t.heads, len(t.blocks)) for name, t in towers.items()} == SIZES[kind]
    assert all(tower.projections == LETTERS for tower in towers.values())
    assert {t: tower.blocks[0].projections["fc1"].shape for t, tower in towers.items()} == dict.fromkeys(
        towers, (64, 32)
    )
    assert (backbone.features, backbone.preprocess.size) == (32 * len(towers), 32)
    assert backbone.preprocess.resize == "squash"


@every_kind
def test_features_are_the_librarys_own(kind: str, pictures: Tensor) -> None:
    backbone = tiny_fusion.KINDS[kind]()
    tokens = tiny_fusion.tokenizer()(QUESTIONS, padding=True, return_tensors="pt")
    inner: Any = getattr(backbone.model, "vilt", backbone.model)
    expected = inner(pixel_values=pictures, **tokens).pooler_output
    assert scaled(backbone.encode(pictures, QUESTIONS), expected) < 1e-5
    assert expected.shape == (3, backbone.features)


@every_kind
def test_a_question_and_an_image_matter_and_company_does_not(kind: str, pictures: Tensor) -> None:
    backbone = tiny_fusion.KINDS[kind]()
    together = backbone.encode(pictures, QUESTIONS)
    for picture, question, expected in zip(pictures.split(1), QUESTIONS, together):
        assert scaled(backbone.encode(picture, [question])[0], expected) < 1e-5
    assert scaled(backbone.encode(pictures[:1], QUESTIONS[1:2])[0], together[0]) > 1e-2
    assert scaled(backbone.encode(pictures[1:2], QUESTIONS[:1])[0], together[0]) > 1e-2


@every_kind
def test_encoding_draws_nothing_and_says_the_same_again(kind: str, pictures: Tensor) -> None:
    backbone = tiny_fusion.KINDS[kind]()
    state = torch.get_rng_state()
    first = backbone.encode(pictures, QUESTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(backbone.encode(pictures, QUESTIONS), first)


@every_kind
def test_a_question_that_is_too_long_is_named(kind: str) -> None:
    backbone = tiny_fusion.KINDS[kind]()
    most, long_words = " ".join(["a"] * 10), "animal question answer colour animal question answer colour"
    assert backbone.tokenize([most])["input_ids"].shape == (1, 12)
    with pytest.raises(AdaptError, match=rf"the question '{most} a' has more than 12 tokens"):
        backbone.tokenize(["two", most + " a", long_words])


def test_the_models_own_head_is_copied_where_it_knows_the_answers(pictures: Tensor) -> None:
    backbone = tiny_fusion.vilt()
    own: Any = backbone.classifier
    copied = backbone.new_classifier(tiny_fusion.ANSWERS)
    assert [torch.equal(a, b) for a, b in zip(copied.parameters(), own.parameters(), strict=True)] == [True] * 6
    assert {id(p) for p in copied.parameters()}.isdisjoint(id(p) for p in own.parameters())
    assert all(parameter.requires_grad for parameter in copied.parameters())
    model = lora("vilt").eval()
    tokens = tiny_fusion.tokenizer()(QUESTIONS, padding=True, return_tensors="pt")
    assert scaled(model(pictures, QUESTIONS), backbone.model(pixel_values=pictures, **tokens).logits) < 1e-5


@pytest.mark.parametrize("answers", [("green", "red", "two"), ("two", "green")])
def test_known_answers_in_another_order_keep_the_models_own_head(answers: tuple[str, ...]) -> None:
    backbone = tiny_fusion.vilt()
    own: Any = backbone.classifier
    features = torch.randn(2, 32)
    columns = [tiny_fusion.ANSWERS.index(answer) for answer in answers]
    assert scaled(backbone.new_classifier(answers)(features), own(features)[:, columns]) < 1e-6


@pytest.mark.parametrize("answers", [("red", "green", "three"), ("three", "four")])
def test_other_answers_get_a_new_head(answers: tuple[str, ...]) -> None:
    backbone = tiny_fusion.vilt()
    head = backbone.new_classifier(answers)
    shapes = [tuple(parameter.shape) for parameter in head.parameters()]
    assert shapes == [(64, 32), (64,), (64,), (64,), (len(answers), 64), (len(answers),)]
    own: Any = backbone.classifier
    assert [type(layer) for layer in head] == [type(layer) for layer in own]
    assert not torch.equal(head[0].weight, own[0].weight)


@every_kind
def test_one_question_for_each_image(kind: str, pictures: Tensor) -> None:
    model = lora(kind, answers=("red", "green", "two", "three"))
    assert model(pictures, QUESTIONS).shape == (3, 4)
    with pytest.raises(AdaptError, match="2 questions about 3 images: give a list with one question for each image"):
        model(pictures, QUESTIONS[:2])
    with pytest.raises(AdaptError, match="one string about 3 images: give a list"):
        model(pictures, "what is it ?")


@every_kind
def test_lora_trains_saves_and_loads_bit_for_bit(kind: str, pictures: Tensor, tmp_path: Path) -> None:
    model = lora(kind)
    backbone, before = model.backbone, snapshot(model.backbone.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    labels = torch.tensor([0, 1, 2])
    start = F.cross_entropy(model.eval()(pictures, QUESTIONS), labels).item()
    for _ in range(8):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(pictures, QUESTIONS), labels).backward()
        optimizer.step()
    assert F.cross_entropy(model.eval()(pictures, QUESTIONS), labels).item() < start - 0.05
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), tiny_fusion.KINDS[kind]())
    assert torch.equal(loaded(pictures, QUESTIONS), model(pictures, QUESTIONS))
    assert loaded.class_names == tiny_fusion.ANSWERS
    assert model.unwrap() is backbone
    assert_untouched(backbone.model, before)
    with pytest.raises(AdaptError, match="was unwrapped"):
        model(pictures, QUESTIONS)


def test_accumulated_questions_count_alike(tiny_split: Split) -> None:
    """A batch of two and one of the last question are a batch of three."""
    items = [
        Item.of(path=item.path, question=question, label=answer)
        for item, question, answer in zip(tiny_split.train[::4], QUESTIONS, tiny_fusion.ANSWERS, strict=True)
    ]
    plain: dict[str, Any] = {"optimizer": "sgd", "augment": "none", "warmup_epochs": 0, "workers": 0}
    moved = []
    for sizes in ({"batch_size": 3}, {"batch_size": 2, "accumulate": 2, "drop_last": False}):
        model = lora("vilt", dropout=0.0)
        start = flat(model.parameters()).detach()
        assert len(adapt.fit(model, items, epochs=1, lr=0.1, progress=False, **plain | sizes).history) == 1
        moved.append(flat(model.parameters()).detach() - start)
    assert relative(moved[1], moved[0]) < 1e-4


@every_kind
def test_every_step_drops_anew(kind: str, pictures: Tensor) -> None:
    model: Any = perturb(lora(kind, dropout=0.5))
    assert not torch.equal(model.train()(pictures, QUESTIONS), model(pictures, QUESTIONS))
    assert torch.equal(model.eval()(pictures, QUESTIONS), model(pictures, QUESTIONS))


@every_kind
def test_gradients_reach_every_factor_also_through_checkpointed_blocks(kind: str, pictures: Tensor) -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        method = methods.LoRA(towers=list(SIZES[kind]), dropout=0.0, projections=LETTERS, input_gradient=True)
        model = perturb(adapt.wrap(tiny_fusion.KINDS[kind](), method, tiny_fusion.ANSWERS, checkpointing=checkpointing))
        model(pictures, QUESTIONS).square().sum().backward()
        assert all(parameter.grad.norm() > 0 for parameter in model.parameters())
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert scaled(found[1], found[0]) < 1e-5


def test_methods_that_do_not_fit_are_refused() -> None:
    with pytest.raises(AdaptError, match=r"the text tower of ViltForQuestionAnswering .*editable towers: fusion"):
        adapt.wrap(tiny_fusion.vilt(), methods.LoRA(), tiny_fusion.ANSWERS)
    with pytest.raises(AdaptError, match="coop adapts a dual encoder, and ViltForQuestionAnswering is a fusion enc"):
        adapt.wrap(tiny_fusion.vilt(), methods.CoOp(), tiny_fusion.ANSWERS)


@every_kind
def test_predictions_are_made_in_evaluation(kind: str, tmp_path: Path) -> None:
    model: Any = perturb(lora(kind, dropout=0.5)).train()
    paths = [tmp_path / f"{colour}.png" for colour in ("red", "blue")]
    for path in paths:
        Image.new("RGB", (40, 24), path.stem).save(path)
    found = model.predict(paths, top_k=2, question="what is it ?")
    assert model.training
    transform = model.backbone.transform(train=False)
    pixels = torch.stack([transform(Image.open(path)) for path in paths])
    probabilities = model.eval()(pixels, ["what is it ?"] * 2).softmax(-1).detach()
    for prediction, row in zip(found, probabilities, strict=True):
        assert len(prediction.top) == 2
        assert prediction.class_name == tiny_fusion.ANSWERS[int(row.argmax())]
        assert prediction.probability == pytest.approx(float(row.max()), rel=1e-5)


@pytest.mark.parametrize("kind", [*tiny_fusion.KINDS, "vilt without a head"])
def test_a_folder_of_transformers(kind: str, pictures: Tensor, tmp_path: Path) -> None:
    backbone: FusionEncoder = tiny_fusion.vilt(answers=None) if "without" in kind else tiny_fusion.KINDS[kind]()
    backbone.export(tmp_path / "model", backbone.model)
    loaded = adapt.load_backbone(str(tmp_path / "model"))
    assert loaded.answers == backbone.answers
    assert loaded.preprocess == backbone.preprocess
    assert torch.equal(loaded.encode(pictures, QUESTIONS), backbone.encode(pictures, QUESTIONS))

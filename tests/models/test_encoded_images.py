"""The fast path of native vision-language models: images encoded once, and answers that share their beginning."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny_natives
import torch
from checks import flat, perturb, relative
from native_chats import CHATS, FAST, lora, model_of, pictures, seen, step_of
from PIL import Image
from selection import by_turns

import adapt
from adapt import AdaptError
from adapt.backbones import fingerprint
from adapt.backbones.encoded_images import EncodedImage, PreparedImage
from adapt.backbones.native import NativeVLM
from adapt.chats import Chat, Turn
from adapt.data import Item
from adapt.evaluation.inference import Inference
from adapt.methods import DAS, LoRA, Projector, ZeroShot
from adapt.models import features, native_vlm
from adapt.models.native_vlm import ChatModel
from adapt.tasks.conversations import Conversation

# with a common beginning, one that goes on where another ends, and an empty one
OPTIONS = ["a dog.", "a door", "a door.", "no.", "a dog and a cat, both asleep.", ""]


def encoded(backbone: NativeVLM) -> list[list[EncodedImage]]:
    return [backbone.encode_images(own) for own in seen()]  # type: ignore[arg-type]


def both(kind: str, *towers: str, **settings: Any) -> tuple[ChatModel, ChatModel]:
    """The same adapted model on the fast path and on the plain path."""
    fast: ChatModel = adapt.wrap(tiny_natives.backbone(kind), lora(*towers), **settings)
    perturb(fast)
    plain = ChatModel(fast.backbone, fast.method, (), False)
    assert (fast.path, plain.path) == ("fast", "plain")
    return fast.eval(), plain.eval()


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("kind", FAST)
def test_rows_of_encoded_images_are_the_processors(kind: str, left: bool, asks: bool) -> None:
    """Beside them one without an image. Pixels are replaced by what the eyes made of them."""
    backbone = tiny_natives.backbone(kind, split=kind in ("smolvlm", "idefics3"))
    text_only = Chat.about("hello?", "yes.", images=0)
    chats = [chat.question if asks else chat for chat in (*CHATS, text_only)]
    expected = backbone.rows(chats, [*seen(), []], left=left, asks=asks)
    rows = backbone.rows(chats, [*encoded(backbone), []], left=left, asks=asks)
    pixels = {name for name in expected.inputs if name.startswith("pixel")}
    assert rows.inputs.keys() == expected.inputs.keys() - pixels | {"mm_encoder_outputs"}
    for name in expected.inputs.keys() - pixels:
        assert torch.equal(rows.inputs[name], expected.inputs[name])
    assert torch.equal(rows.answers, expected.answers)
    with torch.no_grad():
        logits = backbone.vlm(**expected.inputs).logits
        torch.testing.assert_close(backbone.vlm(**rows.inputs).logits, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", FAST)
def test_prepared_images_are_encoded_alike(kind: str) -> None:
    """Prepared apart from the model, and beside pictures; their layout is known then."""
    backbone = tiny_natives.backbone(kind, split=kind in ("smolvlm", "idefics3"))
    one, two, three, _ = pictures()
    prepared = backbone.prepare(two)
    assert prepared.size == two.size
    with torch.no_grad():
        expected = [backbone.encode_images([picture])[0] for picture in (one, two, three)]
        images = backbone.encode_images([one, prepared, three])
    assert [image.marks.key for image in images] == [image.marks.key for image in expected]
    assert torch.equal(images[1].features, expected[1].features)
    for image, alone in zip(images, expected, strict=True):
        torch.testing.assert_close(image.features, alone.features, rtol=0, atol=1e-5)
    assert backbone.marks(two.size)[0].key == expected[1].marks.key


def test_large_images_are_prepared_where_nothing_needs_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, plain = both("qwen2_5_vl", "decoder")
    picture = Image.new("RGB", (300, 300))
    assert fast.prepared(picture) is picture
    monkeypatch.setattr(native_vlm, "_LARGE", 300 * 300 - 1)
    assert isinstance(fast.prepared(picture), PreparedImage)
    assert plain.prepared(picture) is picture
    fast.set_at_use(calibrate="noise")
    assert fast.prepared(picture) is picture


def test_large_images_are_classified_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = both("qwen2_5_vl", "decoder")[0].with_classes(("cat", "dog"))
    images = [*pictures(), Image.effect_noise((300, 200), 90).convert("RGB")]
    expected = [fast.predict([picture])[0].probability for picture in images]
    monkeypatch.setattr(native_vlm, "_LARGE", 24 * 24)
    found = [row[0].probability for row in adapt.predict_many([fast], images)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_models_that_prepare_images_otherwise_do_not_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """By another budget of pixels, on the plain path, or with noise in an image's place."""
    backbone = tiny_natives.backbone("qwen2_5_vl")
    budgets = [backbone, backbone.limited(400)]
    models = [adapt.wrap(each, ZeroShot(), ("cat", "dog")).eval() for each in budgets]
    models.append(ChatModel(backbone, ZeroShot(), ("cat", "dog"), False).eval())
    picture = Image.effect_noise((300, 200), 90).convert("RGB")
    expected = [model.predict(picture)[0].probability for model in models]
    assert abs(expected[0] - expected[1]) > 1e-4
    monkeypatch.setattr(native_vlm, "_LARGE", 24 * 24)
    for order in ([0, 1, 2], [2, 1, 0]):
        [found] = adapt.predict_many([models[place] for place in order], picture)
        assert [each.probability for each in found] == pytest.approx([expected[place] for place in order], abs=1e-6)


def test_a_prepared_image_that_takes_more_memory_stays_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, _ = both("qwen2_5_vl", "decoder")
    monkeypatch.setattr(native_vlm, "_LARGE", 0)
    picture = pictures()[0]
    assert fast.backbone.prepare(picture).bytes > 3 * 40 * 24
    assert fast.prepared(picture) is picture


@pytest.mark.parametrize("kind", FAST)
def test_a_layout_follows_from_the_size(kind: str) -> None:
    backbone = tiny_natives.backbone(kind, split=kind in ("smolvlm", "idefics3"))
    for picture in pictures():
        [image] = backbone.encode_images([picture])
        assert backbone.marks(picture.size)[0].key == image.marks.key
        assert image.features.shape[1] == image.marks.tokens


@pytest.mark.parametrize("kind", FAST)
def test_encoded_images_are_answered_as_pictures_are(kind: str) -> None:
    """With several beams, too, for which `generate` repeats the features."""
    model = model_of(kind)
    asked = [chat.question for chat in CHATS]
    for beams in (1, 2):
        answers = model.generate(encoded(model.backbone), asked, max_new_tokens=6, num_beams=beams)
        expected = model.generate(seen(), asked, max_new_tokens=6, num_beams=beams)
        for answer, other in zip(answers, expected, strict=True):
            assert (answer.text, answer.tokens) == (other.text, other.tokens)
            assert answer.probability == pytest.approx(other.probability, rel=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", FAST)
def test_options_in_one_row_are_weighed_as_each_alone(kind: str, attention: str) -> None:
    fast, plain = both(kind, "vision", "connector", "decoder")
    fast.backbone.vlm.set_attn_implementation(attention)
    asked = [chat.question for chat in CHATS]
    logits = fast.choose(seen(), asked, OPTIONS)
    torch.testing.assert_close(logits, plain.choose(seen(), asked, OPTIONS), rtol=0, atol=1e-5)
    each = [plain.log_likelihood([own], [chat], ["a door"]) for own, chat in zip(seen(), asked, strict=True)]
    sums, tokens = fast.score_each(seen(), asked, [["a door", "no."]] * len(asked))
    torch.testing.assert_close(sums[::2], torch.cat(each), rtol=0, atol=1e-4)
    torch.testing.assert_close(logits[:, 1], sums[::2] / tokens[::2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", FAST)
def test_gradients_of_answers_in_one_row_are_those_of_each_alone(kind: str) -> None:
    """Which preferences are learned by."""
    answers = [["a dog.", "a cat."], ["no.", "no, never."], ["blue", "red"], ["it is", "it was"]]
    gradients = []
    for model in both(kind, "vision", "connector", "decoder"):
        model.zero_grad()
        sums, _ = model.score_each(seen(), [chat.question for chat in CHATS], answers)
        (sums[::2] - sums[1::2]).sigmoid().log().mean().neg().backward()
        gradients.append([parameter.grad for parameter in model.method.parameters()])
    assert relative(flat(gradients[0]), flat(gradients[1])) < 1e-4


def test_many_options_take_several_rows() -> None:
    fast, plain = both("qwen2_5_vl", "decoder")
    options = [f"{number} dogs" for number in range(70)]
    [own], asked = seen()[:1], ["how many?"]
    torch.testing.assert_close(
        fast.choose([own], asked, options), plain.choose([own], asked, options), rtol=0, atol=1e-5
    )


def test_where_the_fast_path_does_not_apply_it_is_refused() -> None:
    backbone = tiny_natives.backbone("qwen2_5_vl")
    text = backbone.vlm.config.get_text_config()
    text.layer_types = ["sliding_attention", "full_attention"]
    with pytest.raises(AdaptError, match=r"fast=True, but .*\(its decoder has layers of sliding_attention\): leave"):
        adapt.wrap(backbone, ZeroShot(), fast=True)
    assert adapt.wrap(backbone, ZeroShot()).path == "plain"
    text.layer_types = ["full_attention"] * 2
    assert adapt.wrap(backbone, ZeroShot(), fast=True).path == "fast"
    text._attn_implementation = "flex_attention"
    with pytest.raises(AdaptError, match=r"its attention flex_attention takes no mask of our own"):
        adapt.wrap(backbone, ZeroShot(), fast=True)


def test_a_picture_that_counts_as_padding_is_refused() -> None:
    """An image of zeros alone, which SmolVLM does not encode: the features of the next would take its place."""
    processor = tiny_natives.processor("smolvlm")
    processor.image_processor.do_normalize = False
    backbone = adapt.Backbone.from_transformers(tiny_natives.model("smolvlm"), processor)
    assert isinstance(backbone, NativeVLM)
    with pytest.raises(AdaptError, match="computed 4 features for images of 8 tokens: replace images"):
        backbone.encode_images([Image.new("RGB", (32, 32)), pictures()[0]])


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Two pictures of each of two classes, of four sizes."""
    for number, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{number}.png")
    return [
        Item.of(path=str(tmp_path / f"{number}.png"), label=["circle", "square"][number % 2]) for number in range(4)
    ]


@by_turns("kind", FAST, take=3)
def test_training_from_encoded_images_learns_the_same(
    kind: str, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And encodes each image once, and hashes the weights once, for all epochs and both evaluations."""
    trained, calls, hashings = [], [], []
    for cache in (True, False):
        hashed: list[int] = []
        monkeypatch.setattr(fingerprint, "content", counting(fingerprint.content, hashed))
        backbone = tiny_natives.backbone(kind)
        encodings: list[int] = []
        backbone.vlm.model.get_image_features = counting(backbone.vlm.model.get_image_features, encodings)
        torch.manual_seed(0)  # which draws the start of LoRA
        model: ChatModel = adapt.wrap(backbone, lora("decoder"), ("circle", "square"))
        settings = {"epochs": 3, "batch_size": 2, "lr": 0.01, "optimizer": "adamw", "cache": cache}
        result = adapt.fit(model, items, items, progress=False, **settings)
        trained.append((flat(model.method.parameters()).detach(), result.metrics["adapted"]["accuracy"]))
        calls.append(len(encodings))
        hashings.append(len(hashed))
    assert relative(trained[0][0], trained[1][0]) < 1e-4
    assert trained[0][1] == trained[1][1]
    assert calls == [1, 2 * 3 + 2]  # once, or in each batch of three epochs and two evaluations
    assert hashings == [1, 0]


@by_turns("kind", FAST)
def test_the_memory_that_they_take_is_known_before(
    kind: str, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(features, "_fits", lambda cache, needed, *_: told.append(needed) or True)
    model: ChatModel = adapt.wrap(tiny_natives.backbone(kind), lora("decoder"))
    known = features.encoded_images(model, items, workers=0, progress=None)
    assert known is not None
    assert told == [sum(image.features.nbytes for image in known.values())]


def counting(compute: Any, calls: list[int]) -> Any:
    """A function that notes each call of `compute`, with its signature."""
    from functools import wraps

    @wraps(compute)
    def counted(*args: Any, **named: Any) -> Any:
        calls.append(1)
        return compute(*args, **named)

    return counted


def test_images_that_do_not_fit_are_encoded_in_every_step(
    items: list[Item], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ADAPT_CACHE_GIB", "0.000001")
    model: ChatModel = adapt.wrap(tiny_natives.backbone("llava"), lora("decoder"), ("circle", "square"))
    with caplog.at_level(logging.WARNING, logger="adapt"):
        adapt.fit(model, items, epochs=1, batch_size=2, lr=0.01, progress=False)
    assert "the features of 4 images take" in caplog.text
    assert "every step encodes its images" in caplog.text


def test_an_adapted_eye_is_not_cached(items: list[Item]) -> None:
    """Its features change with every step."""
    model: ChatModel = adapt.wrap(tiny_natives.backbone("llava"), lora("connector"), ("circle", "square"))
    plain = ChatModel(model.backbone, model.method, ("circle", "square"), False)
    perturb(model)
    from adapt.models.features import keeps_encoded

    assert not keeps_encoded(model, cache=True)
    assert keeps_encoded(model_of("llava"), cache=True)
    assert not keeps_encoded(model_of("llava"), cache=False)
    assert not keeps_encoded(plain, cache=True)
    assert relative(step_of(model).answer_logits, step_of(plain).answer_logits) == 0
    assert isinstance(model.method, LoRA)


def test_threads_on_an_unadapted_model_do_not_meet_each_others_tokens() -> None:
    """They share the backbone, so that none may shorten its last block."""
    model = model_of("qwen2_5_vl")
    asked = [chat.question for chat in CHATS]

    def chosen(number: int) -> torch.Tensor:
        return model.choose([seen()[number % 4]], [asked[number % 4]], OPTIONS[:3])

    expected = [chosen(number) for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for number, logits in enumerate(threads.map(chosen, range(80))):
            torch.testing.assert_close(logits, expected[number % 4], rtol=0, atol=1e-5)


def logits_of(model: ChatModel, items: list[Item], cache: bool) -> torch.Tensor:
    return Inference(0, cache).all_logits(model, items)


def test_features_of_another_layer_are_others(items: list[Item]) -> None:
    """Which layer LLaVA's connector reads stands in its configuration alone."""
    for layer in (-2, -1):
        own = tiny_natives.model("llava")
        own.config.vision_feature_layer = layer
        backbone = adapt.Backbone.from_transformers(own, tiny_natives.processor("llava"))
        model: ChatModel = adapt.wrap(backbone, ZeroShot(), ("circle", "square")).eval()
        torch.testing.assert_close(logits_of(model, items, True), logits_of(model, items, False), rtol=0, atol=1e-5)


def test_features_of_photographs_as_stored_are_others_than_upright(tmp_path: Path) -> None:
    """The file is the same, and so is the model; a square picture also keeps its size."""
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pictures()[1].save(tmp_path / "photograph.png", exif=exif)
    items = [Item.of(path=str(tmp_path / "photograph.png"), label="circle")]
    found = []
    for turned in (False, True):
        backbone = tiny_natives.backbone("llava").turning(turned)
        model: ChatModel = adapt.wrap(backbone, ZeroShot(), ("circle", "square")).eval()
        found.append(logits_of(model, items, True))
        torch.testing.assert_close(found[-1], logits_of(model, items, False), rtol=0, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_a_processor_that_is_changed_in_place_is_noticed(kind: str, items: list[Item]) -> None:
    model: ChatModel = adapt.wrap(tiny_natives.backbone(kind), ZeroShot(), ("circle", "square")).eval()
    for most in (320, 640):
        model.backbone.processor.image_processor.size = {"shortest_edge": 256, "longest_edge": most}
        torch.testing.assert_close(logits_of(model, items, True), logits_of(model, items, False), rtol=0, atol=1e-5)


def test_a_sliding_window_without_kinds_of_layers_is_noticed() -> None:
    """As Mistral's configuration has it."""
    backbone = tiny_natives.backbone("qwen2_5_vl")
    text = backbone.vlm.config.get_text_config()
    text.layer_types, text.sliding_window = None, 16
    assert backbone.reason_against_branches == "its decoder has layers of sliding_attention"


def test_options_are_needed() -> None:
    with pytest.raises(AdaptError, match="no options to choose from"):
        model_of("llava").choose(seen()[:1], ["what?"], [])


def test_conversations_that_could_teach_nothing_are_refused(items: list[Item]) -> None:
    words = Item((), Conversation(Chat.about("hello?", "yes.", images=0)), text="hello?")
    chats = [Item(item.paths, Conversation(Chat.about("what?", "so.")), text="-") for item in items]
    for method in (lora("vision"), Projector()):
        model: ChatModel = adapt.wrap(tiny_natives.backbone("llava"), method)
        with pytest.raises(
            AdaptError, match=r"1 of 5 conversations have no image, such as 'hello\?', and .* adapts only"
        ):
            adapt.fit(model, [*chats, words], epochs=1)
    unlearned = Chat((chats[0].label.chat.turns[0], Turn("assistant", ("so.",), learned=False)))
    with pytest.raises(AdaptError, match="has no answer to learn"):
        adapt.fit(
            adapt.wrap(tiny_natives.backbone("llava"), lora("decoder")),
            [Item(items[0].paths, Conversation(unlearned), text="-")],
            epochs=1,
        )


@pytest.mark.full
def test_a_search_for_blocks_counts_the_operations_of_a_conversation() -> None:
    split = adapt.data.load("emoji-chats@fluent-3d")
    search = DAS(skip=1, towers=("decoder",), search_epochs=2, reduction=4)
    model: ChatModel = adapt.wrap(adapt.load_backbone("mini-vlm", "cpu"), search)
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 4, "lr": 0.001, "optimizer": "adamw"}
    result = adapt.fit(model, split.train[:8], val_set=split.val[:4], progress=False, **settings)
    assert len(result.metrics["search"]["chosen"]) == 1
    assert 0.6 < result.metrics["search"]["kept_flops"] < 1

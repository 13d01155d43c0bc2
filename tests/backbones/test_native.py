"""Native vision-language models: the library's own forward, towers, rows of conversations, and what is refused."""

from __future__ import annotations

import json
import math
import re
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import tiny_natives
import torch
import torchvision
from checks import assert_untouched, perturb, released, snapshot
from native_chats import CHATS, KINDS, lora, model_of, pictures, read_by, seen, step_of
from PIL import Image
from selection import by_turns

import adapt
from adapt import AdaptError, Backbone
from adapt.backbones import chat_templates
from adapt.backbones.native import NativeVLM
from adapt.backbones.quantize import quantize
from adapt.backbones.tower import tokens_of
from adapt.chats import Chat, Turn
from adapt.data.item import Item
from adapt.methods import DAS, LoRA, Projector, ZeroShot
from adapt.models.native_vlm import ChatModel
from adapt.tasks.conversations import Conversation
from adapt.testing import check_method


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "paligemma"])  # which reads no text alone
def test_conversations_with_and_without_images_go_together_in_any_order(kind: str) -> None:
    backbone = tiny_natives.backbone(kind, split=kind in ("smolvlm", "idefics3"))
    known = [(Chat.about("hello?", "yes.", images=0), []), (CHATS[0], seen()[0]), (CHATS[3], seen()[3])]

    def logits(order: Sequence[int]) -> list[torch.Tensor]:
        chats, images = zip(*(known[number] for number in order), strict=True)
        rows = backbone.rows(chats, images)
        output = backbone.vlm(**rows.inputs).logits
        return [row[:length] for row, length in zip(output, rows.lengths.tolist(), strict=True)]

    with torch.no_grad():
        alone = [logits([number])[0] for number in range(3)]
        for order in ((0, 1), (1, 0), (0, 1, 2), (2, 0, 1), (0, 0, 1)):
            for number, row in zip(order, logits(order), strict=True):
                torch.testing.assert_close(row, alone[number], rtol=0, atol=1e-5)


UNLINKED = ("gemma3", "connector")  # a bare matrix, no linear layer
LINKED = [kind for kind in KINDS if kind != "gemma3"]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_method_the_forward_is_the_librarys(kind: str) -> None:
    """Bit for bit, on the processor's own inputs."""
    chats, images = read_by(kind)
    backbone = tiny_natives.backbone(kind)
    given: dict[str, Any] = {"images": images, "padding": True, "return_tensors": "pt"}
    if kind == "paligemma":
        texts = ["<image>" * chat.images + chat.turns[0].text for chat in chats]
        inputs = backbone.processor(text=texts, suffix=[chat.answer for chat in chats], **given)
        del inputs["labels"]
    else:
        texts = [backbone.processor.apply_chat_template(chat.messages()) for chat in chats]
        begun = bool(backbone.tokenizer.bos_token)  # the templates write it
        inputs = backbone.processor(text=texts, add_special_tokens=not begun, **given)
    model = model_of(kind)
    with torch.no_grad():
        expected = tiny_natives.model(kind)(**inputs).logits
        assert torch.equal(model(images, chats), expected)
        rows = backbone.rows(chats, images)
        assert torch.equal(step_of(model).answer_logits, expected[:, :-1][rows.answers[:, 1:]])


@pytest.mark.parametrize("kind", KINDS)
def test_one_at_a_time_and_padded_on_either_side_gives_the_same(kind: str) -> None:
    chats, images = read_by(kind)
    model = model_of(kind)
    with torch.no_grad():
        together = step_of(model).answer_logits
        alone = torch.cat(
            [step_of(model, [chat], [own]).answer_logits for chat, own in zip(chats, images, strict=True)]
        )
        within = 5e-6 * max(1, float(together.abs().max()))
        torch.testing.assert_close(together, alone, rtol=0, atol=within)
        left = model.backbone.rows(chats, images, left=True)
        torch.testing.assert_close(model.answer_logits(left), together, rtol=0, atol=within)
    asked = [chat.question for chat in chats]
    one = [model.generate([own], [chat], max_new_tokens=6)[0] for chat, own in zip(asked, images, strict=True)]
    for answer, expected in zip(model.generate(images, asked, max_new_tokens=6), one, strict=True):
        assert (answer.text, answer.tokens) == (expected.text, expected.tokens)
        assert answer.probability == pytest.approx(expected.probability, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_alone_are_learned(kind: str) -> None:
    """The words of every answer, and the marks that end it; the header of an answer is not."""
    chats, images = read_by(kind)
    backbone = tiny_natives.backbone(kind)
    rows, tokenizer = backbone.rows(chats, images), tiny_natives.tokenizer(kind)
    end = tokenizer.decode(backbone.end)
    for chat, ids, inside in zip(chats, rows.inputs["input_ids"], rows.answers, strict=True):
        text = tokenizer.decode(ids[inside])
        answers = [turn.text for turn in chat.turns if turn.role == "assistant"]
        assert [part.strip() for part in text.split(end)] == [*answers, ""]


def test_an_answer_with_loss_false_is_not_learned() -> None:
    backbone = tiny_natives.backbone("smolvlm")
    *earlier, last = CHATS[2].turns
    skipped = Chat((*earlier[:2], Turn("assistant", ("red.",), learned=False), earlier[3], last))
    rows = backbone.rows([skipped], [seen()[2]])
    assert backbone.tokenizer.decode(rows.inputs["input_ids"][0][rows.answers[0]]) == " blue.<end_of_utterance>\n"


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_batch_learns_is_counted_without_its_images(kind: str) -> None:
    step = step_of(model_of(kind))
    weight = step.weight
    assert "rows" not in vars(step)
    assert weight == float(step.rows.answers[:, 1:].sum()) > 10


def test_of_accumulated_batches_the_pixels_of_one_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, held, most = NativeVLM.rows, list[weakref.ref[torch.Tensor]](), list[int]()

    def counting(backbone: NativeVLM, *args: Any, **options: Any) -> Any:
        made = rows(backbone, *args, **options)
        held.append(weakref.ref(made.inputs["pixel_values"]))
        most.append(sum(pixels() is not None for pixels in held))
        return made

    items = []
    for number, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{number}.png")
        label = Conversation(Chat.about("what is it?", "a dog." * (number + 1)))
        items.append(Item((str(tmp_path / f"{number}.png"),), label, text="-"))
    monkeypatch.setattr(NativeVLM, "rows", counting)
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 1, "accumulate": 4, "augment": "none"}
    adapt.fit(adapt.wrap(tiny_natives.backbone("llava"), lora("vision")), items, progress=False, **settings)
    assert most[:4] == [1] * 4


@pytest.mark.parametrize(
    ("kind", "tower"),
    [(kind, tower) for kind in KINDS for tower in ("vision", "connector", "decoder") if (kind, tower) != UNLINKED],
)
def test_lora_on_each_part(kind: str, tower: str, tmp_path: Path) -> None:
    """Every adapted matrix gets a gradient, the backbone none; saved and loaded it answers the same; it goes again."""
    chats, images = read_by(kind)
    backbone = tiny_natives.backbone(kind)
    model: ChatModel = adapt.wrap(backbone, lora(tower))
    model(images, chats)
    before = snapshot(backbone.model)  # with the library's own hooks, which its first forward leaves
    perturb(model)
    model.train()
    step_of(model).cross_entropy.backward()
    idle = {name for name, parameter in model.method.named_parameters() if not parameter.grad.norm() > 0}  # type: ignore[union-attr]
    assert all(name.startswith("connector.2.") for name in idle)  # of Qwen3: behind the last block nothing reads it
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    model.eval()
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), backbone=tiny_natives.backbone(kind))
    assert isinstance(loaded, ChatModel)
    with torch.no_grad():
        logits = model(images, chats)
        assert torch.equal(loaded(images, chats), logits)
        assert not torch.equal(logits, model_of(kind)(images, chats))
    model.unwrap()
    assert_untouched(backbone.model, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_tower_gets_no_graph(kind: str) -> None:
    """Nor does checkpointing give it one."""
    graphs: list[bool] = []
    for checkpointing in (False, True):
        backbone = tiny_natives.backbone(kind)
        model: ChatModel = adapt.wrap(backbone, lora("decoder"), checkpointing=checkpointing)
        last = backbone.tower("vision").blocks[-1].module
        last.register_forward_hook(lambda module, inputs, output: graphs.append(tokens_of(output).requires_grad))
        step_of(model.train()).cross_entropy.backward()
    assert graphs == [False, False]


def test_llava_is_adapted_up_to_the_block_that_it_reads() -> None:
    """The last block of three is computed, and its output never read."""
    assert len(tiny_natives.backbone("llava").tower("vision").blocks) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_loads_as_the_object_does(kind: str, tmp_path: Path) -> None:
    if kind in ("idefics3", "smolvlm") and released(torchvision) < (0, 27):
        pytest.skip(
            "transformers prepares images in another way, of which it warns, as this torchvision has no Lanczos"
        )
    chats, images = read_by(kind)
    tiny_natives.model(kind).save_pretrained(tmp_path)
    tiny_natives.processor(kind).save_pretrained(tmp_path)
    backbone = adapt.load_backbone(str(tmp_path), "cpu")
    assert isinstance(backbone, NativeVLM)
    assert backbone.fingerprint.matches(tiny_natives.backbone(kind).fingerprint)
    with torch.no_grad():
        model: ChatModel = adapt.wrap(backbone, ZeroShot())
        assert torch.equal(model.eval()(images, chats), model_of(kind)(images, chats))


def test_another_bound_on_pixels_is_another_model(tmp_path: Path) -> None:
    saved = model_of("qwen2_5_vl", lora("decoder")).save(tmp_path / "a.safetensors")
    processor = tiny_natives.processor("qwen2_5_vl")
    processor.image_processor.size = {"shortest_edge": 16 * 16, "longest_edge": 80 * 80}
    other = Backbone.from_transformers(tiny_natives.model("qwen2_5_vl"), processor)
    with pytest.raises(AdaptError, match="longest_edge"):
        adapt.load(saved, backbone=other)


def test_what_is_refused() -> None:
    backbone = tiny_natives.backbone("smolvlm")
    with pytest.raises(AdaptError, match="speaks of 1 images, and 0 are given"):
        backbone.rows(CHATS[:1], [[]])
    with pytest.raises(AdaptError, match=r"takes 2,\d\d\d tokens, and the model reads at most 1,024"):
        backbone.rows([Chat.about("why " * 700, "so.", 0)], [[]])
    processor = tiny_natives.processor("smolvlm")
    processor.chat_template = None
    with pytest.raises(AdaptError, match="has no chat template in one text: set processor"):
        Backbone.from_transformers(tiny_natives.model("smolvlm"), processor)
    with pytest.raises(AdaptError, match=r"coop adapts a dual encoder, .* is a native VLM"):
        adapt.wrap(backbone, adapt.methods.CoOp(), ("a", "b"))


def test_a_template_that_changes_earlier_turns_is_refused() -> None:
    """Some cut what an answer thought once another turn follows: its tokens could not be found."""
    processor = tiny_natives.processor("smolvlm")
    processor.chat_template = "{{ messages | length }}" + processor.chat_template
    backbone = Backbone.from_transformers(tiny_natives.model("smolvlm"), processor)
    assert isinstance(backbone, NativeVLM)
    with pytest.raises(AdaptError, match="changes earlier turns when later ones follow"):
        backbone.rows(CHATS[2:3], seen()[2:3])


NESTED = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (NESTED, "takes more than 2 seconds: correct it"),
        ("{% generation %}" + NESTED + "{% endgeneration %}", "takes more than 2 seconds: correct it"),
        ("{{ eos_token + '' }}" + NESTED, "takes more than 2 seconds: correct it"),
        ("{{ 'a' * 3000000000 }}", "takes more than 1,024 MiB of memory: correct it"),
        (
            "{% if messages | length > 2 %}{{ 'a' * 2000000000 }}{% endif %}",
            "takes more than 1,024 MiB",
        ),
        ("{{ ''.__class__.__mro__ }}", "refuses a conversation of user, assistant: SecurityError access to attribute"),
        ("{{ raise_exception('no') }}", "refuses a conversation of user, assistant: TemplateError no"),
    ],
)
def test_a_template_that_takes_too_much_or_fails_is_refused(
    template: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_templates, "SECONDS", 2)
    processor = tiny_natives.processor("smolvlm")
    processor.chat_template = template
    with pytest.raises(AdaptError, match=f"the chat template of .* {message}"):
        _ = Backbone.from_transformers(tiny_natives.model("smolvlm"), processor).end  # type: ignore[attr-defined]


def test_a_tokenizer_that_panics_is_refused(tmp_path: Path) -> None:
    """Its pattern takes so many steps that its library, which is written in Rust, gives up."""
    tiny_natives.model("smolvlm").save_pretrained(tmp_path)
    tiny_natives.processor("smolvlm").save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    rules = json.loads(file.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(?:(?:.|.)*)*\\d{9}"}, "behavior": "Isolated", "invert": False}
    rules["pre_tokenizer"] = split
    file.write_text(json.dumps(rules))
    with pytest.raises(AdaptError, match="the tokenizer fails on this text: Onig: Regex search error"):
        adapt.load_backbone(str(tmp_path))


@pytest.mark.parametrize("kind", ["smolvlm", "qwen2_5_vl", "llava"])
def test_merged_and_in_pefts_layout_it_is_the_same_model_in_transformers(kind: str, tmp_path: Path) -> None:
    """Without adapt: the merged folder by itself, and the LoRA by peft on the model's folder."""
    import transformers
    from peft import PeftModel

    from adapt.formats import merge, peft_layout

    folder = tmp_path / "model"
    tiny_natives.model(kind).save_pretrained(folder)
    tiny_natives.processor(kind).save_pretrained(folder)
    model: ChatModel = adapt.wrap(adapt.load_backbone(str(folder), "cpu"), lora("decoder"))
    perturb(model)
    model.eval()
    rows = model.backbone.rows(CHATS, seen())
    merge.merge(model, tmp_path / "merged")
    peft_layout.export(model, tmp_path / "peft")
    class_of = getattr(transformers, tiny_natives.KINDS[kind])
    with torch.no_grad():
        expected = model(seen(), CHATS)
        merged = class_of.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(merged(**rows.inputs).logits, expected, rtol=0, atol=1e-5)
        by_peft = PeftModel.from_pretrained(class_of.from_pretrained(folder), tmp_path / "peft").eval()
        torch.testing.assert_close(by_peft(**rows.inputs).logits, expected, rtol=0, atol=1e-5)
        loaded = adapt.load(tmp_path / "peft")
        assert isinstance(loaded, ChatModel)
        assert torch.equal(loaded(seen(), CHATS), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_follow_from_sizes_alone(kind: str) -> None:
    chats, images = read_by(kind)
    backbone = tiny_natives.backbone(kind, split=kind in ("smolvlm", "idefics3"))
    sizes = [[picture.size for picture in own] for own in images]
    assert backbone.lengths(chats, sizes) == backbone.rows(chats, images).lengths.tolist()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("paligemma", "smolvlm")])
def test_tokens_of_images_are_counted_by_the_processors_formula(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is prepared for them beyond three pictures, by which the formula is tried."""
    backbone = tiny_natives.backbone(kind)
    sizes = [(40 + 37 * number, 700 - 53 * number) for number in range(12)]
    chats = [Chat.about("what is it?", "a dog.")] * len(sizes)
    images = [[Image.new("RGB", size)] for size in sizes]
    prepared, processed = list[int](), NativeVLM._processed

    def counting(own: NativeVLM, *args: Any, **options: Any) -> Any:
        prepared.append(1)
        return processed(own, *args, **options)

    monkeypatch.setattr(NativeVLM, "_processed", counting)
    lengths = backbone.lengths(chats, [[size] for size in sizes])
    assert len(prepared) == 3
    assert lengths == [int(backbone.rows([chat], [own]).lengths) for chat, own in zip(chats, images, strict=True)]


@pytest.mark.parametrize(
    ("kind", "most", "longest"),
    [("smolvlm", 1500, 4), ("idefics3", 1500, 4), ("qwen2_5_vl", 320, 5), ("qwen3_vl", 320, 5), ("internvl", 1500, 4)],
)
def test_a_budget_of_pixels(kind: str, most: int, longest: int) -> None:
    """A picture of 40 x 24 takes at most as many tokens as the budget has, and the user's processor stays."""
    processor = tiny_natives.processor(kind, split=kind in ("smolvlm", "idefics3"))
    backbone = Backbone.from_transformers(tiny_natives.model(kind), processor)
    assert isinstance(backbone, NativeVLM)

    def tokens() -> int:
        places = backbone.rows(CHATS[:1], [[pictures()[0]]]).inputs["input_ids"] == backbone.vlm.config.image_token_id
        return int(places.sum())

    before, own = tokens(), dict(processor.image_processor.size)
    whole, backbone = backbone, backbone.limited(most)
    assert tokens() <= longest < before
    assert backbone.limited(10**6).reading() != backbone.reading()
    backbone = whole
    assert tokens() == before
    assert dict(processor.image_processor.size) == own
    with pytest.raises(AdaptError, match="max_pixels is 9; expected at least"):
        backbone.limited(9)


def test_a_budget_of_pixels_for_models_that_have_none() -> None:
    for backbone in (tiny_natives.backbone("llava"), adapt.load_backbone("mini-clip")):
        with pytest.raises(AdaptError, match=r"has no bound on the pixels of an image: leave data\.max_pixels out"):
            backbone.limited(1000)


@pytest.mark.full
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_lora_learns_on_quantised_blocks(kind: str, quantization: str) -> None:
    plain = step_of(model_of(kind)).cross_entropy.item()
    model: ChatModel = adapt.wrap(quantize(tiny_natives.backbone(kind), quantization), lora("decoder"))
    losses = [step_of(model.train()).cross_entropy]
    optimizer = torch.optim.Adam(model.method.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
        losses.append(step_of(model).cross_entropy)
    assert losses[0].item() == pytest.approx(plain, rel=0.05)
    assert losses[-1] < losses[0]


def test_options_are_weighed_by_the_mean_of_their_tokens() -> None:
    """And a question in a string is asked about all images."""
    model, options = model_of("smolvlm"), ["yes.", "a big red dog that sits."]
    [own] = seen()[3:]
    sums = model.log_likelihood([own, own], ["which is older?"] * 2, options)
    asked = Chat.about("which is older?", images=2)
    tokens = [int(model.backbone.rows([asked.answered(option)], [own]).answers.sum()) for option in options]
    torch.testing.assert_close(model.choose([own], [asked], options)[0], sums / torch.tensor(tokens))
    assert tokens[1] > 2 * tokens[0]


@by_turns("kind", KINDS)
def test_lora_holds_to_the_interface_of_methods(kind: str) -> None:
    """Resumed training, copies, threads, other processes of batches: what holds of every method on every kind."""
    settings = {"rank": 2, "alpha": 1.0, "dropout": 0.0, "towers": ("decoder",), "input_gradient": True}
    passed = check_method(LoRA, tiny_natives.backbone(kind), **settings)
    assert {"a_stopped_training_goes_on_exactly", "threads_are_answered_alike", "copies_are_whole"} <= set(passed)


@pytest.mark.full
@by_turns("kind", LINKED)
def test_skipped_blocks_and_a_new_connector_hold_to_the_interface_of_methods(kind: str) -> None:
    check_method(DAS, tiny_natives.backbone(kind), skipped=("decoder.1",), towers=("decoder",), reduction=4)
    check_method(Projector, tiny_natives.backbone(kind))


@pytest.mark.parametrize("kind", LINKED)
def test_a_new_connector_starts_anew_and_alone_is_trained(kind: str) -> None:
    backbone = tiny_natives.backbone(kind)
    model: ChatModel = adapt.wrap(backbone, Projector())
    connector = backbone.tower("connector")
    maps = [each for block in connector.blocks for each in block.projections.values()]
    expected = sum(math.prod(each.shape) + (0 if each.bias is None else each.shape[0]) for each in maps)
    assert sum(parameter.numel() for parameter in model.method.parameters()) == expected
    with torch.no_grad():
        assert not torch.allclose(step_of(model).answer_logits, step_of(model_of(kind)).answer_logits)
    step_of(model.train()).cross_entropy.backward()
    idle = {name for name, parameter in model.method.named_parameters() if not parameter.grad.norm() > 0}  # type: ignore[union-attr]
    assert all(name.startswith("2.") for name in idle)  # of Qwen3: behind the last block nothing reads it
    with pytest.raises(
        AdaptError, match=r"projector: .* keeps its connector's form and learns from its answers alone: leave kind out"
    ):
        adapt.wrap(tiny_natives.backbone(kind), Projector(kind="linear"))


def test_the_connector_of_gemma_3_cannot_be_edited() -> None:
    for method in (lora("connector"), Projector()):
        with pytest.raises(AdaptError, match=r"the connector tower of .*; editable towers: vision, decoder"):
            adapt.wrap(tiny_natives.backbone("gemma3"), method)


def test_paligemma_reads_one_question_and_its_answer() -> None:
    backbone = tiny_natives.backbone("paligemma")
    for chat, own, shown in (
        (CHATS[2], seen()[2], "turns of system, user, assistant, user, assistant with 1 images"),
        (Chat.about("hello?", images=0), [], "turns of user with 0 images: give it as a question with its answer"),
        (
            Chat.about("<image> what?", "so."),
            seen()[0],
            "has <image>, a control token of the model",
        ),
    ):
        with pytest.raises(AdaptError, match=shown):
            backbone.rows([chat], [own])


def test_images_that_cannot_stand_alone_are_not_encoded() -> None:
    for kind in ("gemma3", "paligemma", "llava_onevision"):
        with pytest.raises(AdaptError, match="cannot encode images alone"):
            tiny_natives.backbone(kind).encode_images(pictures()[:1])


def test_where_answers_share_no_beginning_fast_is_refused() -> None:
    for kind, reason in (
        ("gemma3", "its decoder sees images both ways"),
        ("paligemma", "its decoder sees images both ways"),
        ("llava_onevision", "an image becomes other tokens beside a second one"),
    ):
        assert model_of(kind).path == "plain"
        with pytest.raises(AdaptError, match=f"fast=True, but .* cannot use the fast path .{reason}"):
            adapt.wrap(tiny_natives.backbone(kind), ZeroShot(), fast=True)


def test_skipped_blocks_on_either_path_are_the_same() -> None:
    """Also where the last block is skipped, or has adapters beside it, so that all tokens pass it."""
    for skipped in ("decoder.1", "decoder.2"):
        model: ChatModel = adapt.wrap(three_blocks(), DAS(skipped=(skipped,), towers=("decoder",), reduction=4))
        perturb(model)
        plain = ChatModel(model.backbone, model.method, (), False)
        with torch.no_grad():
            torch.testing.assert_close(step_of(model).answer_logits, step_of(plain).answer_logits, rtol=0, atol=1e-5)


def three_blocks() -> NativeVLM:
    """LLaVA with another block in its decoder."""
    model = tiny_natives.model("llava")
    model.config.text_config.num_hidden_layers = 3
    model.config.text_config.layer_types = None
    longer = type(model)(model.config).eval()
    made = Backbone.from_transformers(longer, tiny_natives.processor("llava"))
    assert isinstance(made, NativeVLM)
    return made


# LLaVA-1.5's own template marks no end of an answer
UNENDED = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for p in m['content'] if p['type'] == 'image' %}<image>\n"
    "{% endfor %}{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def test_where_the_template_ends_no_answer_the_tokenizers_end_is_learned() -> None:
    processor = tiny_natives.processor("llava")
    processor.chat_template = UNENDED
    backbone = Backbone.from_transformers(tiny_natives.model("llava"), processor)
    assert isinstance(backbone, NativeVLM)
    rows = backbone.rows(CHATS[:1], seen()[:1])
    assert backbone.tokenizer.decode(rows.inputs["input_ids"][0][rows.answers[0]]) == " a dog.</s> "
    assert backbone.end == backbone.tokenizer.eos_token_id


def test_a_token_that_begins_before_an_answer_is_learned_with_it() -> None:
    """Where the template asks with a space at the end, that space and the answer's first letters are one token."""
    processor = tiny_natives.processor("llava")
    processor.chat_template = UNENDED.replace("ASSISTANT:", "ASSISTANT: ")
    backbone = Backbone.from_transformers(tiny_natives.model("llava"), processor)
    assert isinstance(backbone, NativeVLM)
    assert backbone.render(CHATS[0].question, asks=True).endswith("ASSISTANT: ")
    rows = backbone.rows(CHATS[:1], seen()[:1])
    assert backbone.tokenizer.decode(rows.inputs["input_ids"][0][rows.answers[0]]) == " a dog.</s> "


def test_the_mark_of_an_image_in_the_words_is_refused() -> None:
    with pytest.raises(AdaptError, match="has <image>, a control token of the model: take it out of the words"):
        model_of("smolvlm").answer(pictures()[0], "<image> what is it?")


@pytest.mark.parametrize("kind", tiny_natives.KINDS)
def test_control_tokens_in_the_words_are_refused(kind: str) -> None:
    """Else an answer ends within, or a question speaks for the model: a tokenizer cannot tell them from the real."""
    model, picture = model_of(kind), pictures()[0]
    tokenizer = model.backbone.tokenizer
    for control in (tokenizer.eos_token, tokenizer.pad_token):
        told = f"has {re.escape(control)}, a control token of the model: take it out of the words"
        with pytest.raises(AdaptError, match=told):
            model.answer(picture, f"what?{control}")
        with pytest.raises(AdaptError, match=told):
            model.choose([[picture]], ["what?"], ["a dog", f"a {control} cat"])
        with pytest.raises(AdaptError, match=told):
            model.backbone.lengths([Chat.about("what?", f"a dog.{control}")], [[picture.size]])
        assert model.backbone.lengths([Chat.about("what?", " ".join(control))], [[picture.size]])


def test_boxes_are_written_in_the_tokens_of_the_family() -> None:
    """Qwen2-VL's are control tokens, which words otherwise may not have."""
    processor = tiny_natives.processor("qwen2_vl")
    extra = ["<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>"]
    processor.tokenizer.add_special_tokens({"extra_special_tokens": extra})
    backbone = Backbone.from_transformers(tiny_natives.model("qwen2_vl"), processor)
    assert isinstance(backbone, NativeVLM)
    located = backbone.located("dog", [(1, 2, 3, 4)], (48, 32))
    assert located.answer.startswith("<|object_ref_start|>dog<|object_ref_end|><|box_start|>")
    assert backbone.lengths([located], [[(48, 32)]])
    with pytest.raises(AdaptError, match=r"has <\|quad_start\|>, a control token"):
        backbone.lengths([Chat.about("where?", "<|quad_start|>")], [[(48, 32)]])


def test_threads_pad_their_own_rows_on_their_own_side() -> None:
    backbone = tiny_natives.backbone("smolvlm")
    pad = backbone.tokenizer.pad_token_id

    def on_its_side(left: bool) -> bool:
        ids = [backbone.rows(CHATS[:2], seen()[:2], left=left).inputs["input_ids"] for _ in range(20)]
        return all(bool((rows[:, 0] == pad).any()) is left for rows in ids)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(on_its_side, [True, False] * 8)) == [True] * 16


@pytest.mark.parametrize("reading", ["", "embed:", "last:"])
def test_fp16_is_computed_in_fp32_on_the_cpu(reading: str, tmp_path: Path) -> None:
    tiny_natives.model("llava").half().save_pretrained(tmp_path)
    tiny_natives.processor("llava").save_pretrained(tmp_path)
    backbone = adapt.load_backbone(f"{reading}{tmp_path}", "cpu")
    assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.float32}
    halves = tiny_backbones.backbone("open_clip")
    halves.model.visual.half()
    halves.model.transformer.bfloat16()
    halves.to("cpu")
    found = [next(part.parameters()).dtype for part in (halves.model.visual, halves.model.transformer)]
    assert found == [torch.float32, torch.bfloat16]

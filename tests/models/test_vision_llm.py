"""A vision LLM under a method: what it refuses, the rows that it reads, its loss, and where an answer ends."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import tiny_fusion
import tiny_llms
import torch
from checks import objective, perturb, scaled
from PIL import Image
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.backbones.families.two_models import with_language_model
from adapt.backbones.vision_llm import VisionLLM
from adapt.models import generation as generate
from adapt.models.vision_llm import SpeakingModel

QUESTIONS = ["what is it ?", "how many dog ?", "which animal is there : red green blue ?"]
ANSWERS = ["a cat", "two", "the red dog ."]
CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"dim": 16, "depth": 1, "rank": 2, "heads": 4, "skip": 2}
METHODS: dict[str, tuple[type[methods.Method], dict[str, Any], int]] = {  # with its visual tokens
    "vlora": (methods.VLoRA, SMALL, 0),
    "projector": (methods.Projector, {}, 16),
}
every_method = pytest.mark.parametrize("method", METHODS)


def build(method: str = "vlora", kind: str = "llama", **settings: Any) -> SpeakingModel:
    torch.manual_seed(0)
    cls, config, _ = METHODS[method]
    model: SpeakingModel = perturb(adapt.wrap(tiny_llms.vision_llm(kind, **settings), cls(**config)))
    return model.eval()


def ids(text: str) -> list[int]:
    return [tiny_llms.VOCABULARY.index(word) for word in text.split()]


@pytest.fixture
def pictures(images: Tensor) -> Tensor:
    return images[:3]


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        (QUESTIONS[:2], None, "2 questions about 3 images: give a list with one question for each image"),
        ("what is it ?", None, "one string about 3 images: give a list with one question for each image"),
        (QUESTIONS, ANSWERS[:2], "2 answers about 3 images: give a list with one answer for each image"),
        (QUESTIONS, [*ANSWERS, "red"], "4 answers about 3 images"),
        (QUESTIONS, "cat", "one string about 3 images: give a list with one answer for each image"),
        (["what", "a <image> or <image> ?", "how"], None, "'a <image> or <image> .' has 2 places for an image"),
        (QUESTIONS, ["a cat", " ", "two"], r"the answer to 'how many dog \?' is empty; expected words"),
        (QUESTIONS, ["a cat", "two </s> two", "two"], "'two </s> two' has </s>, a control token of the model"),
        (["what", "how </s>", "what"], None, "'how </s>' has </s>, a control token of the model"),
        (["what", "how", "a " * 60], None, "a question takes 65 tokens, 0 of them for its image, but .* at most 64"),
        (QUESTIONS, ["two", "red", "a " * 60], r"a question takes 7\d tokens, 0 of them"),
    ],
)
def test_questions_and_answers_that_are_refused(questions: Any, answers: Any, message: str, pictures: Tensor) -> None:
    model = build()
    with pytest.raises(AdaptError, match=message):
        model(pictures, questions, answers)
    with pytest.raises(AdaptError, match=message):
        model.generate(pictures, questions) if answers is None else model.loss(pictures, questions, answers)


def test_visual_tokens_take_room(pictures: Tensor) -> None:
    fits = "a " * 40
    assert build()(pictures[:1], [fits]).shape[1] == 45
    with pytest.raises(AdaptError, match=r"takes 65 tokens, 16 of them for its image.* a method without visual tokens"):
        build("projector")(pictures[:1], [fits + "a a a a"])


@pytest.mark.parametrize(
    ("kind", "make", "message"),
    [
        ("llama", lambda: methods.VLoRA(**SMALL | {"skip": 5}), "skip is 5, but the decoder has 4 blocks: .* 1 to 4"),
        ("llama", lambda: methods.VLoRA(**SMALL | {"heads": 3}), "dim is 16; expected a multiple of heads, which is 3"),
        (
            "llama",
            lambda: methods.VLoRA(letters="qx"),
            "letters are 'qx'; expected letters of qkvom, each at most",
        ),
        (
            "llama",
            lambda: methods.VLoRA(letters="qq"),
            "letters are 'qq'; expected letters of qkvom, each at most",
        ),
        (
            "gpt_neox",
            lambda: methods.LoRA(towers=["decoder"], projections=["gate"]),
            "projections has gate; expected names in q",
        ),
        ("llama", methods.LoRA, r"the text tower of \S+ has no .*editable towers: vision, decoder"),
        ("llama", methods.CoOp, "coop adapts a dual encoder, and .* is a vision LLM"),
    ],
)
def test_methods_that_do_not_fit(kind: str, make: Any, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        adapt.wrap(tiny_llms.vision_llm(kind), make())


@every_method
def test_an_adapter_belongs_to_its_language_model(method: str, tmp_path: Path) -> None:
    path = build(method).save(tmp_path / "a.safetensors")
    with pytest.raises(AdaptError, match=r"not on .* another architecture. Give the backbone used in training"):
        adapt.load(path, tiny_llms.vision_llm("qwen"))
    with pytest.raises(AdaptError, match="same architecture, other weights"):
        adapt.load(
            path, VisionLLM(tiny_backbones.backbone("open_clip"), tiny_llms.KINDS["llama"](), tiny_llms.tokenizer())
        )
    with pytest.raises(AdaptError, match="answers questions about images and has no classes: leave class_names out"):
        adapt.load(path, tiny_llms.vision_llm("llama"), class_names=["cat", "dog"])


@pytest.mark.parametrize("prompt", ["<image> what is it ?", "question {}", "<image> {} or {}", "<image> <image> {}"])
def test_a_prompt_has_one_place_for_each(prompt: str) -> None:
    with pytest.raises(
        AdaptError, match=r"prompt is '.*'; expected exactly one \{\} for the question, and one <image>"
    ):
        tiny_llms.vision_llm("llama", prompt=prompt)


def test_vision_that_gives_no_patches_is_refused() -> None:
    with pytest.raises(AdaptError, match="patch_block is 3, but the vision tower has only 3 blocks"):
        tiny_llms.vision_llm("llama", patch_block=3)
    with pytest.raises(AdaptError, match="the vision tower of CLIP has no transformer blocks"):
        VisionLLM(tiny_backbones.backbone("open_clip_resnet"), tiny_llms.llm("llama"), tiny_llms.tokenizer())


def test_language_models_that_are_built_otherwise_are_refused() -> None:
    gpt2 = tiny_llms.causal("GPT2Config", num_hidden_layers=1)()
    with pytest.raises(AdaptError, match="GPT2LMHeadModel has an unsupported structure: use a Llama"):
        VisionLLM(tiny_backbones.backbone("open_clip"), gpt2, tiny_llms.tokenizer())


@every_method
def test_a_row_is_start_image_question_answer_and_end(method: str) -> None:
    backbone, visual = tiny_llms.vision_llm("llama"), METHODS[method][2]
    rows = generate.rows(backbone, QUESTIONS[:2], ANSWERS[:2], visual, left=False)
    asked = ids("<s>") + [-1] * visual + ids("question : what is it ? answer :")
    assert rows.ids[0].tolist() == asked + ids("a cat </s>")
    assert rows.targets[0].tolist() == [-100] * len(asked) + ids("a cat </s>")
    assert rows.ids[1].tolist()[-3:] == ids("two </s> <pad>")
    assert rows.targets[1].tolist()[-3:] == [*ids("two </s>"), -100]
    assert rows.mask.sum(-1).tolist() == [len(asked) + 3, len(asked) + 2]
    left = generate.rows(backbone, QUESTIONS[:2], None, visual, left=True)
    assert (left.ids[0].tolist(), int(left.targets.max())) == (asked, -100)


@pytest.mark.parametrize(
    ("question", "row"),
    [
        ("<image> what ?", "<s> question : IMAGE what ? answer :"),
        ("what <image> is it ?", "<s> question : what IMAGE is it ? answer :"),
        ("what {} ?", "<s> IMAGE question : what <unk> ? answer :"),
    ],
)
def test_a_question_may_say_where_its_image_is(question: str, row: str) -> None:
    backbone = tiny_llms.vision_llm("llama")
    found = generate.rows(backbone, [question], None, 1, left=False).ids[0].tolist()
    named = {-1: "IMAGE"} | dict(enumerate(tiny_llms.VOCABULARY))
    assert " ".join(named[token] for token in found) == row


TEXT_TEMPLATE = "{{ bos_token }}{% for turn in messages %}question {{ turn['content'] }} ? {% endfor %}answer :"


def test_the_prompt_is_the_tokenizers_chat_template_where_it_has_one() -> None:
    """Which may itself write the token that starts a row; another place for a value is no place for a question."""
    tokenizer = copy.deepcopy(tiny_llms.tokenizer())
    tokenizer.chat_template = TEXT_TEMPLATE
    eyes, llm = tiny_backbones.backbone("open_clip"), tiny_llms.llm("llama")
    backbone = VisionLLM(eyes, llm, tokenizer)
    assert backbone.prompt == "<s>question <image>\n{} ? answer :"
    expected = ids("<s> question") + [-1] + ids("what ? answer :")
    assert generate.rows(backbone, ["what"], None, 1, left=False).ids[0].tolist() == expected
    assert backbone.reading()["prompt"] == backbone.prompt
    given = VisionLLM(eyes, llm, tokenizer, prompt="<image> {x} {} answer :")
    assert generate.rows(given, ["what"], None, 0, left=False).ids[0].tolist()[-3:] == ids("what answer :")


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{% for %}", "{{ ''.__class__.mro() }}", "{{ 1 / 0 }}", 5]
)
def test_a_chat_template_that_makes_no_prompt(template: Any) -> None:
    parts = tiny_llms.vision_llm("llama")
    tokenizer = copy.deepcopy(parts.tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(AdaptError, match="the chat template of the language model's tokenizer cannot be used"):
        VisionLLM(tiny_backbones.backbone("open_clip"), parts.llm, tokenizer)


@every_method
def test_the_loss_is_the_mean_over_the_answers_tokens(method: str, pictures: Tensor) -> None:
    """By hand: the prompts' tokens, and the padding, have no part in it."""
    model, visual = build(method), METHODS[method][2]
    logits, surprises = model(pictures, QUESTIONS, ANSWERS), []
    for row, question, answer in zip(logits, QUESTIONS, ANSWERS):
        start = 1 + visual + len(ids(f"question : {question} answer :"))
        for position, token in enumerate(ids(f"{answer} </s>"), start):
            surprises.append(-row[position - 1].log_softmax(-1)[token])
    assert len(surprises) == 10
    loss = model.loss(pictures, QUESTIONS, ANSWERS)
    assert scaled(loss, torch.stack(surprises).mean()) < 1e-6
    assert scaled(objective(model, (pictures, QUESTIONS, ANSWERS), torch.zeros(3))[0], loss) == 0


@every_method
def test_the_gradient_is_of_the_answers_tokens(method: str, pictures: Tensor) -> None:
    """Logits that foretell the prompt receive none."""
    model = build(method)
    rows = generate.rows(model.backbone, QUESTIONS, ANSWERS, METHODS[method][2], left=False)
    logits = model(pictures, QUESTIONS, ANSWERS).detach().requires_grad_(True)
    generate.loss(logits, rows.targets)[0].backward()
    counted = logits.grad.abs().sum(-1) > 0  # type: ignore[union-attr]
    assert torch.equal(counted[:, :-1], rows.targets[:, 1:] >= 0)
    assert not counted[:, -1].any()


def test_an_answer_is_right_as_a_whole() -> None:
    targets = torch.tensor([[-100, -100, 1, 2], [-100, 1, 2, -100], [-100, 1, 2, 3]])
    said = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 0], [1, 2, 0, 0]])
    value, right = generate.loss(20.0 * torch.nn.functional.one_hot(said, 4).float(), targets)
    assert right.tolist() == [True, True, False]
    assert value.item() == pytest.approx(20 / 7, rel=1e-4)  # one of seven tokens is foretold wrongly


def test_an_answer_ends_at_any_end_that_the_language_model_knows(pictures: Tensor) -> None:
    """Its probability is that of its own tokens, whatever longer answers stand beside it."""
    model = build(kind="qwen")
    whole = model.generate(pictures, QUESTIONS, max_new_tokens=6)
    assert [answer.tokens for answer in whole] == [6, 6, 6]
    words = whole[1].text.split()
    ends = next(word for word in words if word not in whole[0].text)
    model.backbone.llm.generation_config.eos_token_id = [3, *ids(ends)]
    together = model.generate(pictures, QUESTIONS, max_new_tokens=6)
    assert (together[0].text, together[0].tokens) == (whole[0].text, 6)
    assert together[1].text.split() == words[: words.index(ends) + 1]
    assert together[1].tokens < 6
    for picture, question, answer in zip(pictures.split(1), QUESTIONS, together):
        alone = model.generate(picture, [question], max_new_tokens=6)[0]
        assert (alone.text, alone.tokens) == (answer.text, answer.tokens)
        assert alone.probability == pytest.approx(answer.probability, rel=1e-3)


def test_the_probability_is_the_mean_of_the_tokens(pictures: Tensor) -> None:
    model = build()
    answer = model.generate(pictures[:1], QUESTIONS[:1], max_new_tokens=5)[0]
    logits = model(pictures[:1], QUESTIONS[:1], [answer.text])[0].log_softmax(-1).detach()
    start = len(ids(f"<s> question : {QUESTIONS[0]} answer :"))
    chosen = [logits[start + i - 1, token] for i, token in enumerate(ids(answer.text))]
    assert answer.tokens == 5
    assert answer.probability == pytest.approx(float(torch.stack(chosen).mean().exp()), rel=1e-4)


def test_answers_are_given_in_evaluation(pictures: Tensor, tmp_path: Path) -> None:
    Image.new("RGB", (40, 24), "red").save(tmp_path / "red.png")
    torch.manual_seed(0)
    method = methods.LoRA(towers=["decoder"], dropout=0.6, rank=4, alpha=8.0)
    model = perturb(adapt.wrap(tiny_llms.vision_llm("llama"), method), size=0.3)
    asked: dict[str, Any] = {"max_new_tokens": 6}
    expected = model.eval().generate(pictures, QUESTIONS, **asked)
    assert model.train().generate(pictures, QUESTIONS, **asked) == expected
    assert model.training
    [prediction] = model.predict_stream(tmp_path / "red.png", question="what is it ?")
    answer = model.eval().answer(tmp_path / "red.png", "what is it ?")
    assert (prediction.class_name, prediction.probability) == (answer.text, answer.probability)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of transformers with its tokenizer."""
    path = tmp_path_factory.mktemp("llm")
    tiny_llms.llm("qwen").save_pretrained(path)
    tiny_llms.tokenizer().save_pretrained(path)
    return path


def test_a_language_model_by_its_folder(folder: Path, tmp_path: Path) -> None:
    spec = f"mini-clip+{folder}"
    backbone = adapt.load_backbone(spec)
    assert (backbone.name, backbone.preprocess.size, backbone.patch_shape()) == (spec, 64, (64, 192))
    model = perturb(adapt.wrap(backbone, methods.VLoRA(**SMALL))).eval()
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"))
    picture = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(picture, ["what ?"]), model(picture, ["what ?"]))


def test_eyes_and_language_models_that_cannot_be_had(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="is a fusion encoder; expected a CLIP, SigLIP or vision encoder for"):
        with_language_model(tiny_fusion.vilt(), str(folder), torch.device("cpu"))
    clip = tiny_backbones.backbone("open_clip")
    with pytest.raises(
        AdaptError, match="the language model 'no/such' is not an existing folder; give a folder, hf:NAME or mini-lm"
    ):
        with_language_model(clip, "no/such", torch.device("cpu"))
    with pytest.raises(AdaptError, match=r"cannot load .* with transformers"):
        with_language_model(clip, str(tmp_path), torch.device("cpu"))


def test_examples_stand_before_the_question(pictures: Tensor, tmp_path: Path) -> None:
    """With the tokens of their own images, also beside LoRA, as if all had been put together by hand."""
    torch.manual_seed(0)
    parts = [{"name": "projector"}, {"name": "lora", "towers": ["decoder"], "dropout": 0.0}]
    model: Any = perturb(adapt.wrap(tiny_llms.vision_llm("llama"), methods.Compose(methods=parts))).eval()
    shown = Image.effect_noise((40, 40), 90).convert("RGB")
    shown.save(tmp_path / "shown.png")
    examples = [(tmp_path / "shown.png", "what is it ?", "a cat")]
    given = model.generate(pictures[:2], QUESTIONS[:2], examples=examples, max_new_tokens=4)
    tokenizer, embed = model.backbone.tokenizer, model.backbone.llm.get_input_embeddings()
    for row in range(2):
        images = torch.stack([model.backbone.transform(train=False)(shown), pictures[row]])
        rows, values, edits = model._inputs(images, ["what is it ?", QUESTIONS[row]], None, left=False)
        said = [[*ids("a cat"), tokenizer.eos_token_id], []]
        pieces = []
        for place, answer in enumerate(said):
            embedded = model._embedded(rows, values)[place][rows.mask[place]]
            embedded = embedded[bool(pieces) :]  # the start token stands once, before all of it
            pieces += [embedded, embed(torch.tensor(answer, dtype=torch.long))]
        whole = torch.cat(pieces)[None]

        def speak(whole: Tensor = whole) -> Any:
            mask = torch.ones(whole.shape[:2], dtype=torch.long)
            ends = generate.ends(model.backbone.llm, model.backbone.tokenizer)
            settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": ends}
            return model.backbone.llm.generate(inputs_embeds=whole, attention_mask=mask, max_new_tokens=4, **settings)

        tokens = model._through({"decoder": edits}, speak)[0]
        assert given[row].text == tokenizer.decode(tokens, skip_special_tokens=True).strip()
    alone = model.generate(pictures[:2], QUESTIONS[:2], max_new_tokens=4)
    assert [answer.probability for answer in alone] != [answer.probability for answer in given]


def test_examples_are_refused_where_an_image_is_no_visual_tokens(pictures: Tensor) -> None:
    with pytest.raises(
        AdaptError, match="examples need images as visual tokens and nothing else, which vlora does not give"
    ):
        build("vlora").generate(pictures, QUESTIONS, examples=[(Image.new("RGB", (9, 9)), "what is it ?", "a cat")])


def test_examples_are_checked(pictures: Tensor) -> None:
    model, image = build("projector"), Image.new("RGB", (40, 40))
    for examples in ([(image, "what is it ?")], (image, "what is it ?", "a cat")):
        with pytest.raises(AdaptError, match=r"examples has .*; expected tuples \(image, question, answer\)"):
            model.generate(pictures, QUESTIONS, examples=examples)
    with pytest.raises(AdaptError, match=r"of them for its image and .* for the examples, .* give fewer examples"):
        model.generate(pictures, QUESTIONS, examples=[(image, "what is it ?", "a cat")] * 4)


def test_only_the_beginning_has_the_token_that_starts_a_text() -> None:
    backbone = tiny_llms.vision_llm("llama")
    start = backbone.tokenizer.bos_token_id
    rows = generate.rows(backbone, ["what is it ?"], None, 2, left=False, examples=[("how many dog ?", "two")])
    assert rows.ids[0].tolist().count(start) == generate.rows(backbone, ["what is it ?"], None, 2, left=False).ids[
        0
    ].tolist().count(start)

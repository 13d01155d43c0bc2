"""LoRA and DPO steps, a choice among classes and answers of native vision-language models, beside TRL and peft.

TRL comes with the extra `peers`. A step has two conversations of 350 tokens (by TRL 349, as it tokenizes a prompt by
itself), 32 of them the answer, each about one picture of 448 x 448. LoRA of rank 16 adapts all matrices of the
decoder's blocks, in fp32 on one thread. Each way gets its batch already prepared. "As it comes" is TRL's default of
recomputing all blocks in the backward pass.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

import adapt
from adapt.backbones.native import NativeVLM
from adapt.common.errors import missing
from adapt.common.shown import readable_bytes
from adapt.data import Item
from adapt.methods import LoRA
from adapt.methods.base.step import total
from adapt.models.dpo import Reference
from adapt.models.native_vlm import ChatModel
from adapt.recipe.settings import DPOSettings
from adapt.tasks.preferences import Preference, Preferences
from benchmarks import native_model, needed
from benchmarks.measure import Measured, Row, by_rounds, by_turns, compared
from benchmarks.products import products_of

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BATCH, CLASSES, QUESTIONS, WORDS, REPEATS = 2, 24, 8, 64, 3
Step = Callable[[], object]
Ways = dict[str, tuple[Callable[..., Step], tuple[object, ...]]]


def adapted(backbone: NativeVLM | None = None) -> ChatModel:
    """Return the model with LoRA on its decoder, in training mode."""
    lora = LoRA(rank=16, alpha=4.0, dropout=0.0, towers=("decoder",), projections="all", input_gradient=True)
    return adapt.wrap(backbone or native_model.backbone(), lora).train()


def ours(kept: bool) -> Step:
    """Return a step of adapt; with `kept`, the images were encoded in an earlier one."""
    torch.set_num_threads(1)
    model = adapted()
    chat, images = native_model.chat(model.backbone.tokenizer), _images(model, kept)
    rows = model.backbone.rows([chat] * len(images), images)

    def step() -> float:
        batch = model.step(images)
        batch.chats, batch.rows = [chat] * len(images), rows
        loss = total(model.losses(batch)[0])
        loss.backward()
        return float(loss)

    return step


def _images(model: ChatModel, kept: bool) -> Any:
    """Return the image of each conversation; with `kept`, as the decoder reads it."""
    images: Any = [[picture] for picture in native_model.pictures(BATCH)]
    with torch.no_grad():
        return model.encoded(images) if kept else images


def _configuration() -> Any:
    from peft import LoraConfig

    decoder = rf".*language_model.*\.({'|'.join(MATRICES)})"
    return LoraConfig(r=16, lora_alpha=16, target_modules=decoder, task_type="CAUSAL_LM")


def _columns() -> Any:
    """Return the conversations as a data set of TRL."""
    from datasets import Dataset

    chat = native_model.chat(native_model.processor().tokenizer)
    question, answer = chat.question.turns[-1].text, chat.answer
    row = {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }
    return Dataset.from_list([{**row, "images": [picture]} for picture in native_model.pictures()])


def trl(checkpointing: bool) -> Step:
    """Return a step of TRL's trainer on the same conversations."""
    torch.set_num_threads(1)
    from trl import SFTConfig, SFTTrainer

    read = native_model.processor()
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            folder, per_device_train_batch_size=BATCH, max_length=None, report_to=[], use_cpu=True, bf16=False,
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        trainer = SFTTrainer(
            native_model.model(read.tokenizer), settings, train_dataset=_columns(), processing_class=read,
            peft_config=_configuration(),
        )  # fmt: skip
        batch = next(iter(trainer.get_train_dataloader()))
    trainer.current_gradient_accumulation_steps = 1
    return lambda: float(trainer.training_step(trainer.model, batch))


def preferring(kept: bool) -> Step:
    """Return a step of adapt's DPO on two pairs of answers, whose reference is known; with `kept`, images are, too."""
    torch.set_num_threads(1)
    model, words = adapted(), native_model.processor().tokenizer
    chats, images = [native_model.chat(words, word) for word in ("cat", "bird")], _images(model, kept)
    pairs = [Item((), Preference(chats[0], chats[1].answer)) for _ in images]
    model.loss_inputs = Reference(DPOSettings(), pairs, torch.full((BATCH, 2), -300.0))

    def step() -> float:
        batch = Preferences().step(model, pairs, images)
        loss = total(model.losses(batch)[0])
        loss.backward()
        return float(loss)

    return step


def trl_preferring() -> Step:
    """Return a step of TRL's DPO trainer on the same pairs, as it comes."""
    torch.set_num_threads(1)
    trainer = _trl_trainer(BATCH)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.current_gradient_accumulation_steps = 1
    return lambda: float(trainer.training_step(trainer.model, batch))


def _trl_trainer(pairs: int) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    read = native_model.processor()
    chats = [native_model.chat(read.tokenizer, word) for word in ("cat", "bird")]
    row = {
        "prompt": [{"role": "user", "content": chats[0].question.turns[-1].text}],
        "chosen": [{"role": "assistant", "content": chats[0].answer}],
        "rejected": [{"role": "assistant", "content": chats[1].answer}],
    }
    rows = Dataset.from_list([{**row, "images": [picture]} for picture in native_model.pictures(pairs)])
    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(
            folder, per_device_train_batch_size=BATCH, max_length=None, report_to=[], use_cpu=True, bf16=False,
            num_train_epochs=1, save_strategy="no",
        )  # fmt: skip
        return DPOTrainer(
            native_model.model(read.tokenizer), args=settings, train_dataset=rows, processing_class=read,
            peft_config=_configuration(),
        )  # fmt: skip


def trl_epoch() -> Step:
    """Return an epoch of TRL's DPO trainer, as it comes."""
    torch.set_num_threads(1)
    return _trl_trainer(2 * BATCH).train


def epoch() -> Step:
    """Return an epoch of adapt's DPO by `adapt.fit`, for which nothing is known."""
    import peft as _  # noqa: F401  # before the time is taken, as TRL has imported it by then

    torch.set_num_threads(1)
    kept, backbone = tempfile.TemporaryDirectory(), native_model.backbone()  # in a process of its own, to its end
    folder = Path(kept.name)
    chats = [native_model.chat(backbone.tokenizer, word) for word in ("cat", "bird")]
    items = []
    for number, picture in enumerate(native_model.pictures(2 * BATCH)):
        picture.save(folder / f"{number}.png")
        items.append(Item((str(folder / f"{number}.png"),), Preference(chats[0], chats[1].answer)))

    def step() -> None:
        os.environ["ADAPT_CACHE"] = tempfile.mkdtemp(dir=kept.name)
        adapt.fit(adapted(backbone), items, epochs=1, batch_size=BATCH, progress=False)

    return step


def peft() -> Step:
    """Return a step of peft's model with the model's own loss, nothing recomputed."""
    torch.set_num_threads(1)
    from peft import get_peft_model

    backbone = native_model.backbone()
    chat = native_model.chat(backbone.tokenizer)
    rows = backbone.rows([chat] * BATCH, [[picture] for picture in native_model.pictures()])
    model = get_peft_model(backbone.vlm.train(), _configuration())

    def step() -> float:
        loss = model(**rows.inputs, labels=rows.labels).loss
        loss.backward()
        return float(loss)

    return step


def choosing(together: bool) -> Step:
    """Return a choice among classes for a picture, `together`, or by a call for each class."""
    torch.set_num_threads(1)
    model = adapted().eval()
    options, [picture] = [f"{number} dogs" for number in range(CLASSES)], native_model.pictures(1)

    def each() -> list[torch.Tensor]:
        return [model.log_likelihood([[picture]], ["what is it?"], [option]) for option in options]

    return (lambda: model.choose([[picture]], ["what is it?"], options)) if together else each


def answering(together: bool) -> Step:
    """Return answers of mini-vlm to several questions, `together`, or by a call for each."""
    torch.set_num_threads(1)
    model: ChatModel = adapt.wrap(adapt.load_backbone("mini-vlm", "cpu"), adapt.methods.ZeroShot()).eval()
    images, questions = (
        [[picture] for picture in native_model.pictures(QUESTIONS)],
        ["what is on the left?"] * QUESTIONS,
    )
    length: Any = {"max_new_tokens": WORDS, "min_new_tokens": WORDS}
    if together:
        return lambda: model.generate(images, questions, **length)
    return lambda: [model.generate([own], [asked], **length) for own, asked in zip(images, questions, strict=True)]


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Measure each way in three processes of its own, by turns, and take the best, in seconds of all processors."""
    try:
        import trl as _  # noqa: F401
    except ImportError:
        raise missing("the comparison with TRL", "trl", "peers") from None
    ways: Ways = {
        "TRL as it comes": (trl, (True,)),
        "TRL without recomputing": (trl, (False,)),
        "peft and the model's loss": (peft, ()),
        "adapt": (ours, (False,)),
        "adapt, images that repeat": (ours, (True,)),
    }
    preferred: Ways = {
        "TRL as it comes": (trl_preferring, ()),
        "adapt": (preferring, (False,)),
        "adapt, images that repeat": (preferring, (True,)),
    }
    epochs: Ways = {"TRL as it comes": (trl_epoch, ()), "adapt": (epoch, ())}
    for title, steps in (("SFT", ways), ("DPO", preferred), ("an epoch of DPO", epochs)):
        progress(f"{title}, each way in {REPEATS} rounds")
        measured = by_rounds(REPEATS, steps)
        for name, each in measured.items():
            yield _figures(f"{title}, {name}", each, measured["TRL as it comes"])
    for name, build in {
        f"a choice among {CLASSES}": choosing,
        f"{QUESTIONS} answers of {WORDS} tokens": answering,
    }.items():
        progress(name)
        apart, together = by_rounds(REPEATS, {str(way): (build, (way,)) for way in (False, True)}).values()
        yield _figures(name, together, apart)
    progress("the products of a step")
    yield _limit()


def _figures(case: str, taken: Measured, before: Measured) -> Row:
    ratio = before.processor_seconds / taken.processor_seconds
    return {
        "case": case, **compared(before, taken), "processor_seconds": taken.processor_seconds, "ratio": ratio,
        "text": f"{taken.processor_seconds:.2f} s, {ratio:.2f} x, peak {readable_bytes(taken.peak_bytes)}, "
        f"{taken.peak_bytes / before.peak_bytes:.2f} of the memory",
    }  # fmt: skip


def _limit() -> Row:
    """Return what the products of a step with images that repeat take on their own; those of attention by operations.

    Raises RuntimeError if a step takes more products than a formula asks for.
    """
    step = ours(True)
    products = products_of(step)
    needed.check("SFT", products.flops, operations())
    taken, maps = by_turns([step, products.of_maps], REPEATS, warming=1)
    limit = products.seconds(maps)
    return {
        "case": "SFT, adapt, images that repeat", "flops": products.flops, "needed_flops": operations(),
        "fast_seconds": taken, "limit_seconds": limit, "share_of_limit": limit / taken,
        "text": f"the products alone {limit:.2f} s, {limit / taken:.2f} of the time",
    }  # fmt: skip


def operations() -> int:
    """Return the operations of a step's products by formula, with its images encoded.

    The last block is computed for the tokens that predict an answer, but for its keys, values and queries. The first
    block's queries, keys and values pass no gradient to the words.
    """
    length, answers = native_model.TOKENS, BATCH * native_model.ANSWER
    tokens, width, hidden, keys, blocks, words, rank = BATCH * length, 768, 1792, 128, 12, 151_936, 16
    read = {"q": (width, width), "k": (width, keys), "v": (width, keys)}
    made = {"out": (width, width), "gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}

    def passed(maps: Iterable[tuple[int, int]], rows: int, gradient: bool) -> int:
        """Forward, with LoRA; the gradients of its factors; and the gradient of the input."""
        full = sum(rows * inner * outer for inner, outer in maps)
        low = sum(rows * rank * (inner + outer) for inner, outer in maps)
        to_input = full + sum(rows * rank * inner for inner, _ in maps) if gradient else 0
        return full + low + low + sum(rows * rank * outer for _, outer in maps) + to_input

    total = passed(read.values(), tokens, False) + (blocks - 1) * passed(read.values(), tokens, True)
    total += (blocks - 1) * passed(made.values(), tokens, True) + passed(made.values(), answers, True)
    attention = blocks * tokens * length * width * (2 + 4)  # scores and values, and the gradients of both sides of each
    return 2 * (total + attention + 2 * answers * width * words)

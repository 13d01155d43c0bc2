"""Rows of conversations as people write them, with what a person would read in each; nothing here knows the reader.

A row is a plain account (what is asked, what is answered, which pictures are seen) in the words of a dialect, and then
perhaps with one thing about it that is usual, unusual or wrong. A table says what a person makes of each such thing.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Row = dict[str, Any]
Outcome = Literal["read", "refused", "either"]  # either: read as the account says, or refused

PICTURES = ("7.png", "8.png")
THINGS = ("dog", "cat", "red kite", "bus stop", "café", "犬")
ASKED = ("what is it?", "how many are there?", "and its colour?", "what is left of it?", "describe it")


@dataclass(frozen=True)
class Account:
    """What a person says: pairs of a question and an answer, pictures before the first, perhaps a worse last answer."""

    pairs: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...] = ()
    system: str = ""
    worse: str = ""

    def turns(self) -> list[tuple[str, list[str | None]]]:
        """The turns as (role, parts), with None for a picture."""
        said: list[tuple[str, list[str | None]]] = [("system", [self.system])] if self.system else []
        for number, (question, answer) in enumerate(self.pairs):
            said += [
                ("user", [*[None] * (0 if number else len(self.pictures)), question]),
                ("assistant", [answer]),
            ]
        return said


def account(draw: random.Random, *, pairs: int = 1, pictures: int | None = None, system: bool = False) -> Account:
    count = draw.choice((0, 1, 1, 2)) if pictures is None else pictures
    asked = draw.sample(ASKED, pairs)
    told = [(each, f"a {draw.choice(THINGS)}, {draw.randrange(100)}.") for each in asked]
    return Account(tuple(told), PICTURES[:count], "be brief" if system else "", "")


# the dialects, each a row of an account


def _marked(said: Account, number: int, mark: str = "<image>") -> str:
    return mark * (0 if number else len(said.pictures)) + said.pairs[number][0]


def messages(said: Account, role: str = "role", content: str = "content", names: str = "user assistant") -> list[Row]:
    user, assistant = names.split()
    turns = []
    for number, (_, answer) in enumerate(said.pairs):
        turns += [{role: user, content: _marked(said, number)}, {role: assistant, content: answer}]
    return turns


def _listed(said: Account) -> Row:
    return {"images": [*said.pictures]} if said.pictures else {}


def swift(said: Account) -> Row:
    head = [{"role": "system", "content": said.system}] if said.system else []
    return {"messages": [*head, *messages(said)], **_listed(said)}


def llava(said: Account) -> Row:
    image: Row = {"image": said.pictures[0] if len(said.pictures) == 1 else [*said.pictures]} if said.pictures else {}
    return {"id": "000001", **image, "conversations": messages(said, "from", "value", "human gpt")}


def sharegpt(said: Account) -> Row:
    system = {"system": said.system} if said.system else {}
    return {"conversations": messages(said, "from", "value", "human gpt"), **_listed(said), **system}


def openai(said: Account) -> Row:
    turns = []
    for number, (question, answer) in enumerate(said.pairs):
        shown = [{"type": "image_url", "image_url": {"url": each}} for each in ([] if number else said.pictures)]
        turns.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
        turns.append({"role": "assistant", "content": answer})
    return {"messages": turns}


def trl(said: Account) -> Row:
    row = openai(said)
    for part in row["messages"][0]["content"]:
        if part["type"] == "image_url":
            part.clear()
            part["type"] = "image"
    return {**row, **_listed(said)}


def old_swift(said: Account) -> Row:
    *earlier, (_, answer) = said.pairs
    history = {"history": [[_marked(said, number), each[1]] for number, each in enumerate(earlier)]} if earlier else {}
    return {"query": _marked(said, len(earlier)), "response": answer, **history, **_listed(said)}


def plain(said: Account) -> Row:
    return {"question": said.pairs[0][0], "answer": said.pairs[0][1], **_listed(said)}


def alpaca(said: Account) -> Row:
    return {"instruction": said.pairs[0][0], "input": "", "output": said.pairs[0][1], **_listed(said)}


LONG: tuple[Callable[[Account], Row], ...] = (swift, llava, sharegpt, openai, trl, old_swift)
SHORT: tuple[Callable[[Account], Row], ...] = (plain, alpaca)


def preferences(said: Account, draw: random.Random) -> Row:
    question, better, worse = said.pairs[0][0], said.pairs[0][1], said.worse
    turn = {"role": "assistant", "content": better}
    forms: tuple[Row, ...] = (
        {"prompt": messages(said)[:1], "chosen": [turn], "rejected": [turn | {"content": worse}]},
        {"conversations": messages(said, "from", "value", "human gpt")[:1], "chosen": {"from": "gpt", "value": better},
         "rejected": {"from": "gpt", "value": worse}},
        {"messages": messages(said), "rejected_response": worse},
        {"question": question, "chosen": better, "rejected": worse},
    )  # fmt: skip
    return copy.deepcopy(draw.choice(forms)) | _listed(said)


# what a person makes of one more key, of another name for the images, of another value, of another mark

MORE: dict[str, tuple[Any, Outcome]] = {
    "id": (7, "read"), "source": ("web", "read"), "metadata": ({"by": "me"}, "read"), "question_id": (3, "read"),
    "image_id": (3, "read"), "image_width": (40, "read"), "score": (0.9, "read"), "difficulty": ("hard", "read"),
    "score_chosen": (8.5, "read"), "solution": (None, "read"), "tools": ([], "read"), "image2": ("", "read"),
    "label": (True, "read"), "kto_tag": (True, "read"), "license": ("CC BY", "read"),
    "Label": (False, "refused"), "is_correct": (False, "refused"), "labels": (0, "refused"),
    "correct": (False, "refused"), "answers": (["a dog", "dog"], "refused"), "ground_truth": ("a cat", "refused"),
    "depth_image": ("8.png", "refused"), "image_2": ("8.png", "refused"), "source_image": ("8.png", "refused"),
    "photo": ("8.png", "refused"), "choices": (["a dog", "a cat"], "refused"), "options": ("A. dog", "refused"),
    "context": ("in a park", "refused"), "videos": (["a.mp4"], "refused"), "tool_calls": ([{"id": 1}], "refused"),
    "rating": ("wrong", "refused"), "preference_score": (False, "refused"), "valid": (False, "refused"),
    "ocr_tokens": (["exit"], "refused"), "tokens": (12, "read"), "image_sizes": ([[640, 480]], "read"),
    "num_tokens": ("12", "read"), "model_correct": (False, "refused"),
    "subset": ("test", "refused"), "rejected_messages": ([{"role": "assistant"}], "refused"),
    "loss": (False, "refused"), "objects": ({"bbox": [[1, 2, 3, 4]]}, "refused"),
}  # fmt: skip
WRONG: dict[str, Any] = {"label": False, "kto_tag": False}
NAMES: dict[str, Outcome] = {
    "image": "read", "images": "read", "image_path": "read", "image_url": "read", "img": "read", "img_path": "read",
    "file_name": "read", "picture": "either", "photo": "either", "imagePath": "either", "Image": "either",
    "filename": "either", "image_1": "either", "url": "either", "media": "either", "pixel_file": "either",
}  # fmt: skip
OF_A_TURN: dict[str, tuple[Any, Outcome]] = {
    "name": ("bob", "read"), "tool_calls": (None, "read"), "image": ("7.png", "refused"), "label": (False, "refused"),
    "images": (["7.png"], "refused"), "train": (False, "refused"), "function_call": ({"name": "f"}, "refused"),
}  # fmt: skip
MARKS: dict[str, Outcome] = dict.fromkeys(("<image_1>", "<|image_1|>", "<Image>", "<|image_pad|>", "<img>"), "refused")
BESIDE: tuple[Row, ...] = (
    {"prompt": "why?"}, {"question": "why?"}, {"history": [["a", "b"]]}, {"answer": "a cat"}, {"response": "a cat"},
    {"system": "be brief", "system_prompt": "be long"}, {"chosen": "a cat"},
)  # fmt: skip


@dataclass(frozen=True)
class MadeUp:
    """A row, what was done to it, and what a person reads."""

    row: Row
    what: str
    said: Account
    outcome: Outcome


def _usual(draw: random.Random) -> MadeUp:
    if draw.random() < 0.3:
        said, form = account(draw), draw.choice(SHORT)
    else:
        form = draw.choice(LONG)
        said = account(draw, pairs=draw.choice((1, 2, 3)), system=form in (swift, sharegpt) and draw.random() < 0.4)
    return MadeUp(form(said), form.__name__, said, "read")


def _preference(draw: random.Random) -> MadeUp:
    said = account(draw, pictures=1)
    said = Account(said.pairs, said.pictures, worse="a goat.")
    row = preferences(said, draw)
    if "prompt" in row and draw.random() < 0.3:
        return MadeUp({key: row[key] for key in row if key != "rejected"}, "half a preference", said, "refused")
    return MadeUp(row, "a preference", said, "read")


def _more(draw: random.Random) -> MadeUp:
    made, (key, (value, outcome)) = _usual(draw), draw.choice([*MORE.items()])
    return MadeUp({**made.row, key: value}, f"{key} beside {made.what}", made.said, outcome)


def _wrong(draw: random.Random) -> MadeUp:
    made, (key, value) = _usual(draw), draw.choice([*WRONG.items()])
    return MadeUp({**made.row, key: value}, f"{key} false", made.said, "refused")


def _named(draw: random.Random) -> MadeUp:
    """The image under another name, beside a question and an answer, or beside turns."""
    said, (key, outcome) = account(draw, pictures=1), draw.choice([*NAMES.items()])
    row = draw.choice((plain, alpaca, swift, sharegpt))(said)
    marked = "<image>" in str(row)
    image = row.pop("images")
    row[key] = image if draw.random() < 0.5 and key not in ("file_name", "url") else image[0]
    return MadeUp(row, f"{key} {'with' if marked else 'without'} a mark", said, outcome)


def _answers(draw: random.Random) -> MadeUp:
    said = account(draw)
    answer = said.pairs[0][1]
    values: list[tuple[Any, Outcome]] = [
        ([answer], "either"), ([answer, "a cat."], "refused"), ([answer, answer], "refused"),
        ([{"text": answer}, {"text": "a cat."}], "refused"), ({"text": answer}, "either"), (5, "either"),
        ([], "refused"), ([{"type": "text", "text": answer}], "read"),
    ]  # fmt: skip
    value, outcome = draw.choice(values)
    row = draw.choice((plain, alpaca, swift))(said)
    if "messages" in row:
        row["messages"][-1]["content"] = value
    else:
        row["answer" if "answer" in row else "output"] = value
    made = Account(((said.pairs[0][0], "5"),), said.pictures) if value == 5 else said
    return MadeUp(row, "a list of answers" if outcome == "refused" else "another kind of answer", made, outcome)


def _turn(draw: random.Random) -> MadeUp:
    said, (key, (value, outcome)) = account(draw, pairs=2), draw.choice([*OF_A_TURN.items()])
    row = draw.choice((swift, llava))(said)
    turns = row.get("messages") or row["conversations"]
    turns[1 if key in ("label", "train", "function_call") else 0][key] = value
    return MadeUp(row, f"{key} of a turn", said, outcome)


def _mark(draw: random.Random) -> MadeUp:
    said, (mark, outcome) = account(draw, pictures=1), draw.choice([*MARKS.items()])
    row = draw.choice((plain, alpaca, swift))(said)
    if "messages" in row:
        row["messages"][0]["content"] = row["messages"][0]["content"].replace("<image>", mark)
    else:
        row["question" if "question" in row else "instruction"] = f"{mark}{said.pairs[0][0]}"
    return MadeUp(row, f"the mark {mark}", said, outcome)


def _beside(draw: random.Random) -> MadeUp:
    said, more = account(draw), draw.choice(BESIDE)
    row = draw.choice((swift, trl, openai, llava))(said)
    return MadeUp({**row, **more}, f"{' and '.join(more)} beside turns", said, "refused")


def made_up(seed: int, count: int) -> Iterator[MadeUp]:
    """Yield rows, in turn of each kind, so that many seeds are not needed to see them all."""
    draw = random.Random(seed)
    kinds = (_usual, _more, _named, _wrong, _answers, _usual, _turn, _mark, _beside, _preference)
    for number in range(count):
        yield kinds[number % len(kinds)](draw)

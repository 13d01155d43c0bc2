"""Conversations in JSON or JSONL, as LLaVA, ShareGPT, OpenAI, ms-swift, TRL and LLaMA-Factory write them.

Each row is read by its own keys:

* `messages` with `role` and `content`, or `conversations` with `from` and `value`; contents are texts, in which
  `<image>` or `<img>PATH</img>` is an image, or lists of parts as in OpenAI's interfaces; or turns in two lists,
  `prompt` and `completion` (TRL);
* `query` and `response`, perhaps with `history` (ms-swift's older form, and rows of question and answer);
* of a preference, the two answers: `chosen` and `rejected` (TRL beside a `prompt` of turns or with the same turns in
  both, LLaMA-Factory beside turns, or beside a question), `rejected_response` beside turns that end with the chosen
  answer (ms-swift), or `preferred_output` and `non_preferred_output` beside `input` (OpenAI); with `rejected_images`,
  a list as long as the conversation's images, the rejected answer is that to these images;
* `system`, a turn before the first; `images` (or another of `rows.IMAGES`), in the order of their marks, and before the
  first question if there is no mark: a path, a data URI, an object with `path` or `bytes`, or a list of these; `split`
  for the part of the split; `group`, or `image_id`, which rows of one thing share.

A row is never changed to fit, and no other row is taken in its place: whatever does not fit is an error that names the
file and the row. So is a key that is neither read nor a remark; a message counts the remarks.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapt.chats import IMAGE, Chat, Role, Turn
from adapt.common.errors import AdaptError, noting
from adapt.common.plain import JsonObject
from adapt.common.shown import brief, first_of
from adapt.data.decoding.files import Stored, under
from adapt.data.decoding.inline import images_in, is_inline, rows_of
from adapt.data.item import Cell, Item, reading
from adapt.data.readers import parts
from adapt.data.readers.base import Reader
from adapt.data.readers.folder import IMAGE_SUFFIXES
from adapt.data.readers.lines import UNREADABLE, read_text, readable
from adapt.data.readers.rows import IMAGES, Listed, check_parts, group_of, renamed, to_split, without_rows
from adapt.data.split import Split

logger = logging.getLogger("adapt")
QUERY = ("query", "prompt", "instruction", "input", "question", "problem")  # Alpaca has an instruction and its input
RESPONSE = ("response", "answer", "output", "target", "text", "completion", "content")
_TURNS, _SYSTEM = ("messages", "conversations"), ("system", "system_prompt")
_ROLES: dict[str, Role] = {
    "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system",
    "developer": "system",
}  # fmt: skip
_LONGEST_PATH = 4096  # of Linux; a longer text is an image itself
_PREFERENCES = ("chosen", "rejected", "rejected_response")
_OPENAIS = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
_OTHER_IMAGES = "rejected_images"
_JUDGED = ("label", "kto_tag")  # true for an answer that is right
_ASKED = (*QUERY, *RESPONSE, "history")
_READ = frozenset(
    (*_TURNS, *_ASKED, *_SYSTEM, *IMAGES, *_PREFERENCES, _OTHER_IMAGES, *_JUDGED, "group", "split", "url")
)
# what a key that is not read seems to be by a word in its name, in the singular, and what to do about it
_SEEMS = {
    "an image": (
        "image img imagepath imagefile imageurl imgpath picture pic photo path file filename filepath url frame media",
        "list the images as images, in the order of their marks, or take it out",
    ),
    "an answer": (
        "answer response reply completion output target solution truth groundtruth gt caption chosen rejected "
        "preferred dispreferred content text thinking reasoning",
        "give one answer as answer, or two as chosen and rejected, and take out what is not to be learned",
    ),
    "a judgement of the answer": (
        "label kto correct iscorrect incorrect wrong accepted valid invalid loss weight train masked score rating",
        "every answer is learned as correct. Remove the rows with wrong answers, and then the key",
    ),
    "a part of the question": (
        "question query prompt instruction input problem choice option context hint passage message conversation "
        "dialog dialogue history ocr token",
        "write it into the question, or take it out",
    ),
    "a film, a sound, a tool or a place": (
        "video audio film sound tool function object bbox box ref point mask region",
        "only images and texts are learned. Take it out, or leave the row out",
    ),
}
# a key is a remark by its last word, and with a number by any of the words behind
_NUMBERING = frozenset(("id", "idx", "index", "uid", "uuid", "guid", "key"))  # which no message counts
_REMARKS = _NUMBERING | {
    "type", "license", "licence", "lang", "language", "model", "source", "dataset", "corpus", "origin", "metadata",
    "meta", "info", "category", "topic", "domain", "task", "difficulty", "level", "version", "author", "annotator",
    "date", "time", "timestamp", "year", "created", "hash", "md", "sha", "perplexity", "comment", "note", "remark",
    "ds", "unnamed",
}  # fmt: skip
_MEASURES = frozenset(("width", "height", "size", "count", "num", "number", "length", "token", "score", "rating"))
_NUMBER = re.compile(r"\s*[+-]?\d*\.?\d+(e[+-]?\d+)?\s*", re.IGNORECASE)
_MARK = re.compile(r"<image>|<img>(.*?)</img>", re.DOTALL)
_OTHER_MARK = re.compile(
    r"""`[^`]*`  # code, or words about a mark
    |(?P<mark></?(?:start_of_|end_of_)?(?:image|img)/?>
        |<(?:video|audio|picture)/?>(?!\s*<)  # of HTML if another tag follows
        |<(?:image|img|picture|vision|video|audio)(?:[ _-]?\d+|_\w+|s|here)/?>
        |<\|[^<>|]*(?:image|img|picture|vision|video|audio)[^<>|]*\|>
        |<bbox>|<ref-object>|\[ima?ge?\]|(?<![${]){(?:image|img|picture)[ _]?\d*})
    |<img\s[^>]*?src\s*=\s*["']?(?P<source>[^"'\s>]+)[^>]*>|!\[[^]]*\]\((?P<link>[^)\s]+)[^)]*\)""",
    re.IGNORECASE | re.VERBOSE,
)
_TEXT_PARTS, _IMAGE_PARTS = ("text", "input_text", "output_text"), ("image", "image_url", "input_image")
_OF_AN_IMAGE = ("image", "url", "path", "base64", "bytes")
_FORMS = '"messages" with role and content, "conversations" with from and value, or "query" and "response"'


@dataclass
class _Row:
    """A row as it is read: its turns, and the images that they name, `None` for marks that name none."""

    where: str
    turns: list[Turn] = field(default_factory=list)
    named: list[object] = field(default_factory=list)

    def add(self, role: object, content: object, key: str, learned: object = None) -> None:
        """Add a turn, with the `key` of its content. Raises AdaptError for a role or a content of an unknown form."""
        name = _ROLES.get(role) if isinstance(role, str) else None
        if name is None:
            raise AdaptError(f"{self.where}: the role {brief(role)} is not known; expected one of {', '.join(_ROLES)}")
        if learned not in (None, False, True):  # 0 and 1 as well
            raise AdaptError(f"{self.where}: the loss, or weight, is {brief(learned)}; expected true or false")
        if learned and name != "assistant":
            raise AdaptError(f"{self.where}: a turn of the {name} has a loss, or weight: only answers are learned")
        self.turns.append(Turn(name, tuple(self._parts(content, key)), learned is None or bool(learned)))

    def _parts(self, content: object, key: str) -> Iterator[str | None]:
        if isinstance(content, Stored):
            raise AdaptError(f"{self.where}: {key} is an image; expected a text: say which columns are read")
        if isinstance(content, str):
            yield from self._marked(content)
            return
        if not isinstance(content, list):
            raise AdaptError(f"{self.where}: {key} is {brief(content)}; expected a text, or a list of parts")
        untyped = [each for each in content if not (isinstance(each, dict) and (each.get("type") or "image" in each))]
        if sum(bool(_MARK.sub("", str(part)).strip()) for part in untyped) > 1:
            raise AdaptError(f"{self.where}: {key} is {brief(content)}; expected one text: leave the others out")
        for part in content:
            if isinstance(part, str):
                yield from self._marked(part)
                continue
            if not isinstance(part, dict):
                raise AdaptError(f"{self.where}: the part {brief(part)} is neither a text nor an object with a type")
            kind = part.get("type") or next((each for each in ("text", "image", "image_url") if each in part), None)
            if kind in _TEXT_PARTS:
                check_keys(part, ("type", "text"), self.where, whole=False)
                if not isinstance(part.get("text"), str):
                    raise AdaptError(f"{self.where}: the text of the part {brief(part)} is not a text")
                yield from self._marked(part["text"])
            elif kind in _IMAGE_PARTS:
                check_keys(part, ("type", "image_url", "detail", *_OF_AN_IMAGE), self.where, whole=False)
                self.named.append(_own_image(part, self.where))
                yield IMAGE
            else:
                raise AdaptError(
                    f"{self.where}: the part {brief(part)} has the type {brief(part.get('type'))}; expected text, "
                    "image or image_url"
                )

    def _marked(self, text: str) -> Iterator[str | None]:
        """Yield a text in pieces, with images at the marks in it."""
        for place, piece in enumerate(_MARK.split(text)):
            if place % 2:  # what a mark names
                self.named.append(piece)
                yield IMAGE
            elif piece:
                yield piece


def _own_image(part: Mapping[str, object], where: str) -> object:
    """Return the image that a part names itself; None if it stands for the next one in the row's list.

    Raises AdaptError if it names two, but for the bytes of an image beside its path.
    """
    url = part.get("image_url")
    if isinstance(url, dict):
        url = url.get("url")
    own = [each for each in (url, *(part.get(key) for key in _OF_AN_IMAGE)) if each is not None]
    if len(own) > 1 and part.get("bytes") is None:
        raise AdaptError(f"{where}: the part {brief(part)} names {len(own)} images; expected one")
    return part["bytes"] if len(own) > 1 else own[0] if own else None


def read_chats(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    columns: Mapping[str, str] = {},
) -> Split:
    """Return the conversations in a `.json` list or a `.jsonl` file; the module's docstring has the forms of rows.

    Paths of images start from `root`, by default the file's folder, and must stay under it. Rows without a `split` are
    divided by adapt's ratios. `columns` has keys of rows with what they are called here (see `adapt.data.load`).

    Raises AdaptError, naming the file and the row, if a row has another form, if its image marks and its images differ
    in number, if an image is missing, if turns are out of order, if an answer is empty, and if a row does not end with
    an answer.
    """
    source = os.fspath(path)
    where = f"conversations {source!r}"
    folder = os.path.abspath(Path(source).parent if root is None else root)
    with readable(where):
        rows = list(rows_of(read_text(source), source.endswith(".jsonl")))
    return split_of(renamed(rows, columns, where), where, source, folder, rows)


def split_of(rows: Sequence[object], where: str, source: str, folder: str, stored: Sequence[object]) -> Split:
    """Return conversations of the `rows` of `source`, as `read_chats` does; images in it are called `SOURCE!ROW/N`.

    `stored` are the rows as they are in `source`, where columns may be called otherwise.
    """
    if not rows:
        raise AdaptError(f"{where} have no rows")
    listed, problems, objects = list[Listed](), list[str](), list[JsonObject]()
    for number, (row, own) in enumerate(zip(rows, stored, strict=True), 1):
        with noting(problems):
            listed.append(listed_row(row, f"{where} row {number}", folder, f"{source}!{number}", own))
            assert isinstance(row, dict)
            objects.append(row)
    note_remarks(objects, _READ.union(_OPENAIS), where)
    given = [[row[key] for key in IMAGES if key in row] for row in objects]
    if without := sum(None in own and not any(own) for own in given):
        logger.warning("%s: %s rows have null for an image: they are learned without one", where, f"{without:,}")

    def read() -> Split:
        if not problems:  # otherwise rows have other numbers
            check_one_task(listed, where)
        check_parts(listed, where, "Give it to every row, or to none")
        return to_split(Path(source).stem, folder, listed, None, parts.RATIOS, seed=0)

    return without_rows(problems, read)


def check_one_task(rows: Sequence[Listed], where: str) -> None:
    """Raise AdaptError if some rows are preferences, and others are not."""
    first = rows[0].item.task
    for number, row in enumerate(rows, 1):
        if row.item.task is not first:
            raise AdaptError(
                f"{where} row {number} belongs to {row.item.task.name}, and row 1 to {first.name}: put each into its "
                "own file"
            )


def listed_row(row: object, where: str, folder: str, place: str, stored: object) -> Listed:
    """Return a row as an item with its part of the split; images inside it are named by its `place` as it is `stored`.

    Raises AdaptError, which begins with `where`, as `read_chats` does.
    """
    if isinstance(row, ValueError):
        raise AdaptError(f"{where} is no JSON: {row}") from row
    if not isinstance(row, dict):
        raise AdaptError(f"{where} is {brief(row)}; expected an object with {_FORMS}")
    leaves, (row, rejected) = [*_leaves(row)], _in_one_form(row, where)
    judged = [key for key in _JUDGED if row.get(key) is not True]
    address = [] if any(row.get(key) for key in IMAGES) else ["url"]  # from which the image came
    asked = _ASKED if any(row.get(key) for key in _TURNS) else ()
    check_keys(row, _READ.difference(asked, judged, address), where)
    inline = list(images_in(stored))
    others = row.get(_OTHER_IMAGES) or []
    if not isinstance(others, list):
        raise AdaptError(f"{where}: rejected_images is {brief(others)}; expected a list of images")
    if others and rejected is None:
        raise AdaptError(
            f"{where} has {_OTHER_IMAGES!r}: two answers to one question are compared, and there is one. Give the "
            "other images' answer as rejected_response, or leave the row out"
        )
    read, key = _turns(row, where), one_of(row, IMAGES, where)
    given = row[key] if key else []
    given = given if isinstance(given, list) else [given]
    if given and not read.named:  # without a mark they come first, as in TRL and ms-swift
        first = next((number for number, turn in enumerate(read.turns) if turn.role == "user"), 0)
        read.named = [None] * len(given)
        read.turns[first] = replace(read.turns[first], parts=(*[IMAGE] * len(given), *read.turns[first].parts))
    open_marks = sum(each is None for each in read.named)
    if open_marks != len(given):
        raise AdaptError(
            f"{where} has {open_marks} image marks and {len(given)} images: give as many <image> marks as images, in "
            "order"
        )
    rest = iter(given)
    images = [next(rest) if each is None else each for each in read.named]  # in the order of the marks
    for key, value in leaves if not images else ():
        if key not in _READ.difference(IMAGES, ("value",)) and value.lower().endswith(IMAGE_SUFFIXES):
            raise AdaptError(f"{where}: {key} is {brief(value)}, which seems to be an image: give it as image")
    for number, turn in enumerate(read.turns, 1):
        check_text(turn.text, folder, f"{where}: turn {number}", asks=turn.role == "user")
    check_text(rejected or "", folder, f"{where}: the rejected answer")
    paths = tuple(_path(image, inline, where, folder, place) for image in [*images, *others])
    chat = Chat(tuple(read.turns))
    _check(chat, where)
    part = parts.read(row["split"], where) if row.get("split") else ""
    cells: dict[str, Cell] = {"chat": chat} if rejected is None else {"chat": chat, "rejected": rejected}
    if others:
        cells["rejected_images"] = str(len(others))
    label = reading(frozenset(cells)).read(cells, where)
    text = chat.question.turns[-1].text.strip() or f"row {place.rpartition('!')[2]}"
    return Listed(Item(paths, label, group=group_of(row), text=text), part)


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, text) for each text in a row, at any depth."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list | dict):
        for name, each in value.items() if isinstance(value, dict) else ((key, each) for each in value):
            yield from _leaves(each, str(name))


def is_empty(value: object) -> bool:
    """Return whether a value says nothing: null, an empty text, or a list or an object of such values."""
    if isinstance(value, list | dict):
        return all(map(is_empty, value.values() if isinstance(value, dict) else value))
    return value is None or value == ""


def one_of(row: Mapping[str, object], keys: Sequence[str], where: str) -> str | None:
    """Return the one of `keys` that a row fills, or None. Raises AdaptError if it fills two."""
    given = [key for key in keys if not is_empty(row.get(key))]
    if len(given) > 1:
        raise AdaptError(f"{where} has both {given[0]} and {given[1]}: leave one of them out")
    return given[0] if given else None


def check_keys(row: Mapping[str, object], read: Collection[str], where: str, whole: bool = True) -> None:
    """Raise AdaptError for a filled key that is neither read nor, by its name, a remark.

    What is no `whole` row, but a turn or a part of one, has no keys that can be ignored.
    """
    for key, value in row.items():
        if key in read or is_empty(value) or value in ("[]", "{}"):
            continue
        if isinstance(value, str) and parts.part_of(value) and not row.get("split"):
            raise AdaptError(f"{where}: {key} is {value!r}, which seems to be a part of the split: call it split")
        if _is_remark(key, value) and (whole or "type" not in row):  # a part of a content has no remarks
            continue
        for what, (names, advice) in _SEEMS.items():
            if not set(_words(key)).isdisjoint(names.split()):
                raise AdaptError(f"{where}: {key} is {brief(value)}, which seems to be {what}: {advice}")
        ignored = f", or say that it may be ignored: --columns ignored={key}" if whole else ""
        raise AdaptError(f"{where}: {key} is {brief(value)}, which no form of a row has: take it out{ignored}")


def note_remarks(rows: Iterable[Mapping[str, object]], read: Collection[str], where: str) -> None:
    """Count the filled keys that are not read in a message, but for those that number the rows, such as `id`."""
    count = Counter(key for row in rows for key, value in row.items() if key not in read and not is_empty(value))
    if told := [f"{key} ({count[key]:,} rows)" for key in sorted(count) if _NUMBERING.isdisjoint(_words(key)[-1:])]:
        logger.warning("%s: ignored: %s", where, first_of(told))


def _is_remark(key: str, value: object) -> bool:
    """Return whether a key, by the words in its name, is a remark on the row, such as a number of tokens."""
    words = _words(key)
    if isinstance(value, bool) or not words:
        return False
    return words[-1] in _REMARKS or (_is_number(value) and not _MEASURES.isdisjoint(words))


def _is_number(value: object) -> bool:
    """Return whether a value is a number, perhaps as text, or a list of such, as the sizes of images."""
    if isinstance(value, list):
        return all(map(_is_number, value))
    return isinstance(value, int | float) or (isinstance(value, str) and bool(_NUMBER.fullmatch(value)))


def _words(key: str) -> list[str]:
    """Return the words in the name of a key, without a plural's s."""
    words = re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", key).lower())
    words = words[:-1] if words[-1:] == ["name"] and len(words) > 1 else words  # of a task, a data set or the like
    return [word if word == "ds" else re.sub("(?<![su])s$", "", word) for word in words]


def check_text(text: str, folder: str, where: str, asks: bool = False) -> None:
    """Raise AdaptError for a text that is an image, has a mark of one that is not read, or half of a surrogate pair.

    Marks in backticks are words about them. A tag or a link of HTML or Markdown is text as well, unless it names a file
    in the `folder`, or begins a text that `asks`. No tokenizer reads half a pair.
    """
    if text.lower().endswith(IMAGE_SUFFIXES) and len(text.split()) == 1:
        raise AdaptError(f"{where}: {brief(text)} seems to be an image; expected a text: give it as image")
    for found in _OTHER_MARK.finditer(text.strip()):
        begins, file = asks and not found.start(), found["source"] or found["link"]
        if found["mark"] or (file and (begins or os.path.isfile(os.path.join(folder, file)))):
            raise AdaptError(
                f"{where}: {brief(found[0])} is no mark of an image here: write <image> where an image stands, put it "
                "in `backticks` if the text is about it, or leave the row out"
            )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start]
        raise AdaptError(
            f"{where}: the text has half a character (a lone surrogate) after {brief(around)}: it was cut in the "
            "middle of an emoji or the like. Correct the text"
        ) from None


def _in_one_form(row: JsonObject, where: str) -> tuple[JsonObject, str | None]:
    """Return a row whose turns, in one list, or whose question go on to the right answer, and the rejected answer."""
    turns: object = None
    row = {_OPENAIS.get(key, key): value for key, value in row.items()}
    chosen, rejected, prompt, asked = (row.get(key) for key in ("chosen", "rejected", "prompt", "input"))
    if isinstance(asked, dict):
        check_keys(asked, ("messages", "parallel_tool_calls"), where, whole=False)
        del row["input"]
        turns = asked.get("messages")
    elif isinstance(chosen, list) and isinstance(rejected, list) and len(chosen) > 1 and chosen[:-1] == rejected[:-1]:
        first = next((each for each in chosen if isinstance(each, dict) and each.get("role") != "system"), {})
        again = [key for key, same in (("messages", chosen), ("prompt", first.get("content"))) if row.get(key) == same]
        row = {key: row[key] for key in row if key not in again}  # as in TRL's ultrafeedback_binarized
        row, turns = row | {"chosen": chosen[-1:], "rejected": rejected[-1:]}, chosen[:-1]
    elif isinstance(prompt, list) and any(isinstance(each, dict) and "role" in each for each in prompt):
        del row["prompt"]
        answer = row.pop(key) if (key := one_of(row, RESPONSE, where)) else []
        turns = prompt + (answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}])
    listed = next((key for key in _TURNS if row.get(key)), "messages")
    if turns is not None:
        if row.get(listed):
            raise AdaptError(f"{where} has turns in {listed} and in another list: leave one of them out")
        row["messages"] = turns
    given = [key for key in _PREFERENCES if key in row]
    if given not in ([], ["chosen", "rejected"], ["rejected_response"]):
        raise AdaptError(
            f"{where} has {' and '.join(given)}; expected chosen and rejected, or rejected_response beside turns that "
            "end with the chosen answer"
        )
    answers, earlier = {key: _answer(row.pop(key), where, key) for key in given}, row.get(listed)
    if "chosen" in answers and not earlier:
        row["response"] = answers["chosen"]
    elif "chosen" in answers and isinstance(earlier, list):
        row[listed] = [*earlier, {"role": "assistant", "content": answers["chosen"]}]
    return row, answers[given[-1]] if given else None


def _answer(value: object, where: str, key: str) -> str:
    """Return the words of an answer that is a text, a turn of the assistant, or a list of one such turn."""
    turn = value[0] if isinstance(value, list) and len(value) == 1 else value
    read = _Row(where)
    if isinstance(turn, dict):
        role, content = ("from", "value") if "from" in turn else ("role", "content")
        if role not in turn or content not in turn:
            raise AdaptError(f"{where}: {key} is {brief(value)}; expected an answer of the assistant")
        check_keys(turn, (role, content, "name"), where, whole=False)
        read.add(turn[role], turn[content], key)
    elif isinstance(turn, str):
        read.add("assistant", turn, key)
    else:
        raise AdaptError(
            f"{where}: {key} is {brief(value)}; expected a text, or one turn of the assistant, with earlier turns in "
            "prompt or messages"
        )
    [made] = read.turns
    if made.role != "assistant" or made.images or not made.text.strip():
        raise AdaptError(f"{where}: {key} is {brief(value)}; expected an answer of the assistant in words")
    return made.text


def _turns(row: Mapping[str, object], where: str) -> _Row:
    read = _Row(where)
    if system := one_of(row, _SYSTEM, where):
        read.add("system", row[system], system)
    if key := one_of(row, _TURNS, where):
        turns = row[key]
        if not (isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)):
            raise AdaptError(f"{where}: {key} is {brief(turns)}; expected a list of turns")
        for turn in turns:
            role, content = ("from", "value") if "from" in turn else ("role", "content")
            if role not in turn or content not in turn:
                raise AdaptError(f"{where}: the turn {brief(turn)} has no {role} or no {content}")
            check_keys(turn, (role, content, "loss", "weight", "name"), where, whole=False)
            learned = one_of(turn, ("loss", "weight"), where)
            read.add(turn[role], turn[content], content, turn[learned] if learned else None)
        return read
    _question_and_answer(row, read)
    return read


def _question_and_answer(row: Mapping[str, object], read: _Row) -> None:
    """Read a row of a query and a response, perhaps with a history of earlier ones."""
    pair, response = [row.get(key) for key in ("instruction", "input")], one_of(row, RESPONSE, read.where)
    if all(isinstance(text, str) and text for text in pair):
        row = {key: value for key, value in row.items() if key != "input"} | {"instruction": "\n".join(map(str, pair))}
    query = one_of(row, QUERY, read.where)
    if query is None or response is None:
        raise AdaptError(f"{read.where} has the keys {', '.join(map(str, row)) or 'none'}; expected {_FORMS}")
    history = row.get("history") or []
    if not (isinstance(history, list) and all(isinstance(each, list) and len(each) == 2 for each in history)):
        raise AdaptError(f"{read.where}: history is {brief(history)}; expected a list of [query, response]")
    for asked, answered in history:
        read.add("user", asked, "history")
        read.add("assistant", answered, "history")
    read.add("user", row[query], query)
    read.add("assistant", row[response], response)


def _path(image: object, inline: list[str], where: str, folder: str, place: str) -> str:
    """Return the path of an image of a row, as `adapt.data.open_image` reads it."""
    if isinstance(image, dict):
        keys = [key for key in ("bytes", "base64", "path", "url") if image.get(key) is not None]
        image = image[keys[0]] if keys else image
    if not isinstance(image, str) or not image:
        raise AdaptError(f"{where} has the image {brief(image)}; expected a path, a data URI or base64")
    if image in inline:
        return f"{place}/{inline.index(image) + 1}"
    if is_inline(image):
        raise AdaptError(f"{where} has an image inside the text: give it in images, or as a part of type image")
    if len(image) > _LONGEST_PATH:
        raise AdaptError(f"{where} has the image {brief(image)}: give base64 as a data URI, or under the key base64")
    return under(folder, image, where)


def _check(chat: Chat, where: str) -> None:
    """Raise AdaptError if turns are out of order, if an answer is empty, or if no answer comes last."""
    turns = chat.turns[1:] if chat.turns[0].role == "system" else chat.turns
    for number, turn in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if turn.role != expected:
            raise AdaptError(
                f"{where}: turn {number + 1} is of the {turn.role}; expected the {expected}, in turn, after a "
                "system turn if there is one"
            )
        if turn.role == "user" and not (turn.text.strip() or turn.images):
            raise AdaptError(f"{where}: question {number // 2 + 1} has neither words nor an image: write it")
        if turn.role == "assistant" and not turn.text.strip():
            raise AdaptError(f"{where}: answer {number // 2 + 1} has no words: write it, or take the row out")
        if turn.role == "assistant" and turn.images:
            raise AdaptError(f"{where}: answer {number // 2 + 1} has an image: models answer in words")
    if not turns or turns[-1].role != "assistant":
        raise AdaptError(f"{where} does not end with an answer of the assistant: add it, or take the row out")
    if not any(turn.learned for turn in turns if turn.role == "assistant"):
        raise AdaptError(f"{where} has no answer to learn, as loss is false for each: take the row out")


def row_of(item: Item, part: str, root: str, question: str = "") -> JsonObject:
    """Return an item as a row of `messages` that is read here, with the paths of its images below `root`.

    `question` asks for the class of an image.
    """
    chat = item.task.chat(item, question)
    messages = [  # answers that training does not learn are marked
        message if turn.learned else message | {"loss": False}
        for turn, message in zip(chat.turns, chat.messages(), strict=True)
    ]
    [paths] = item.task.images_of_chats(item, item.paths)
    images = [path.removeprefix(root).lstrip("/") for path in paths]
    return {"messages": messages, "images": images, "split": part}


def is_chats_file(path: str | os.PathLike[str]) -> bool:
    """Return whether the first row of a JSON or JSONL file is a conversation, or has keys of one."""
    try:
        text = read_text(path)
        start = text.index("{")
        first, _ = json.JSONDecoder().raw_decode(text, start)
    except (*UNREADABLE, RecursionError):
        return False
    return not text[:start].strip(" \t\r\n[") and isinstance(first, dict) and is_chat(first)


def is_chat(row: Mapping[str, object]) -> bool:
    """Return whether a row has keys of a conversation or a preference."""
    asks = any(key in row for key in QUERY) and any(key in row for key in RESPONSE)
    return asks or any(key in row for key in (*_TURNS, *_PREFERENCES, *_OPENAIS))


class ChatsFile(Reader):
    name = "chats_file"
    takes = "conversations in .json or .jsonl"
    reads = staticmethod(read_chats)
    root = "may"
    takes_columns = True
    suffixes = (".json", ".jsonl")

    def claims(self, spec: str) -> bool:
        return super().claims(spec) and is_chats_file(spec)

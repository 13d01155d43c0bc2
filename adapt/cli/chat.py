"""`adapt chat`"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from adapt.chats import Chat
from adapt.cli import options as common
from adapt.cli.options import Option, command
from adapt.common.devices import AUTO
from adapt.common.errors import AdaptError
from adapt.common.shown import shown

if TYPE_CHECKING:
    from PIL import Image

    from adapt.models.wrap import Model

_ENTRIES = 3  # of an index before a question, unless another number is asked for


@command()
def chat(
    adapter: Path,
    images: tuple[Path, ...] = (),
    *,
    questions: Annotated[
        tuple[str, ...],
        Option("Question to ask before exiting (repeatable).  [default: ask for questions]", "--question"),
    ] = (),
    max_tokens: Annotated[int, Option("Maximum number of tokens in an answer.", min=1)] = 64,
    beams: Annotated[int, Option("Beams of the beam search for an answer.", min=1)] = 1,
    index: Annotated[Path | None, "Index whose entries nearest to IMAGES stand before the first question."] = None,
    k: Annotated[int | None, Option("Number of these entries.  [default: 3]", min=1)] = None,
    at_use: common.AtUse = (),
    backbone: common.OfAdapter = None,
    device: common.RunsOn = AUTO,
) -> None:
    """Talk with the model of ADAPTER about IMAGES, one question per line; an empty line ends the chat.

    A native vision-language model remembers the conversation, and takes several images, or none. A vision LLM made of
    two models takes one image, and answers each question on its own.

    \b
    Examples:
      adapt chat runs/chats photo.png
      adapt chat runs/chats before.png after.png --question "what has changed?"
      adapt chat runs/vlora photo.png --question "what is it?" --question "how many?"
      adapt chat runs/retrieved photo.png --index known.safetensors
    """
    from adapt.data.decoding.images import check_image, open_image

    if not all(question.strip() for question in questions):
        raise AdaptError("a --question is empty: give a text")
    if index is None and k is not None:
        raise AdaptError("--k is a number of entries of an index: give --index, or leave --k out")
    for image in images:
        check_image(image)  # before the model is loaded, which takes time
    known = None
    if index is not None:
        from adapt.retrieval.index import load_index
        from adapt.retrieval.passages import Retriever

        known = Retriever(load_index(index), device)
    model = common.load_adapter(adapter, backbone, device)
    common.set_at_use(model, at_use)
    pictures = [open_image(image, turned=model.backbone.preprocess.turned) for image in images]

    def begun(question: str) -> Chat:
        asked = Chat.about(question, images=len(pictures))
        if known is None:
            return asked
        return known.before(asked, known.nearest(asked, [*map(str, images)], k or _ENTRIES))

    answer = _answering(adapter, model, pictures, begun, {"max_new_tokens": max_tokens, "num_beams": beams})
    for question in questions:
        click.echo(f"{question}  {_lines(answer(question))}")
    if not questions:
        about = f" about {', '.join(map(str, images))}" if images else ""
        click.echo(f"Ask{about}; an empty line ends the chat.", err=True)
        for question in iter(_typed, ""):
            try:
                click.echo(_lines(answer(question)))
            except AdaptError as error:  # does not end the chat
                click.echo(f"Error: {shown(error)}", err=True)


def _answering(
    adapter: Path,
    model: Model,
    pictures: Sequence[Image.Image],
    begun: Callable[[str], Chat],
    settings: dict[str, int],
) -> Callable[[str], str]:
    """Return a function from a question to its answer in words. Raises AdaptError for a model that has none."""
    from adapt.models.base import is_native
    from adapt.models.vision_llm import SpeakingModel

    if is_native(model):
        turns: list[Chat] = []  # the conversation so far, which is remembered

        def answer(question: str) -> str:
            asked = turns[-1].asked(question) if turns else begun(question)
            text = model.chat(asked, pictures, **settings).text
            turns.append(asked.answered(text))
            return text

        return answer
    if not isinstance(model, SpeakingModel):
        raise AdaptError(f"{adapter} is for a {model.backbone.kind}, which cannot chat: use `adapt predict`")
    if len(pictures) != 1:
        raise AdaptError(f"{adapter} answers about one image at a time, and {len(pictures)} are given: give one")
    return lambda question: model.answer(pictures[0], begun(question).turns[0].text, **settings).text


def _lines(answer: str) -> str:
    """Escape control characters, which could control the terminal, in an answer, but keep the answer's line breaks."""
    return "\n".join(map(shown, answer.split("\n")))


def _typed() -> str:
    """Read the next question from the terminal and return its text; return "" at the end of the input."""
    try:
        return str(click.prompt("", prompt_suffix="> ", default="", show_default=False, err=True)).strip()
    except click.Abort:
        return ""

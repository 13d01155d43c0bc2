"""`adapt chat`"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from adapt.cli import options as common
from adapt.errors import AdaptError
from adapt.shown import shown


@click.command()
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path(path_type=Path))
@click.option(
    "--question",
    "questions",
    multiple=True,
    help="Question to ask before exiting (repeatable).  [default: ask for questions]",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Maximum number of tokens in an answer.",
)
@click.option(
    "--beams", type=click.IntRange(min=1), default=1, show_default=True, help="Beams of the beam search for an answer."
)
@common.of_adapter
@common.device
def chat(
    adapter: Path,
    image: Path,
    questions: tuple[str, ...],
    max_tokens: int,
    beams: int,
    backbone: str | None,
    device: str,
) -> None:
    """Ask the vision LLM of ADAPTER questions about IMAGE, one per line; an empty line ends the chat.

    Each question is answered independently of earlier questions and answers.

    \b
    Examples:
      adapt chat runs/vlora/adapter.safetensors photo.png
      adapt chat runs/vlora/adapter.safetensors photo.png --question "what is it?" --question "how many?"
    """
    from adapt.cli.quiet import quiet_libraries

    with quiet_libraries():
        from adapt.data.decoding.images import check_image, open_image
        from adapt.loading import load
        from adapt.models.speaking import SpeakingModel

        check_image(image)  # before the model is loaded, which takes time
        model = load(adapter, common.given_backbone(backbone, device), device=device)
        if not isinstance(model, SpeakingModel):
            raise AdaptError(
                f"{adapter} is for a {model.backbone.family}, but only a vision LLM can chat: use `adapt predict`"
            )
        picture = open_image(image, turned=model.backbone.preprocess.turned)
        settings = {"max_new_tokens": max_tokens, "num_beams": beams}
        for question in questions:
            click.echo(f"{question}  {_lines(model.answer(picture, question, **settings).text)}")
        if not questions:
            click.echo(f"Ask about {image}; an empty line ends the chat.", err=True)
            _converse(lambda question: model.answer(picture, question, **settings).text)


def _converse(answer: Callable[[str], str]) -> None:
    """Answer the questions that the user types, until an empty line. Errors are printed and do not end the chat."""
    for question in iter(_typed, ""):
        try:
            click.echo(_lines(answer(question)))
        except AdaptError as error:
            click.echo(f"Error: {shown(error)}", err=True)


def _lines(answer: str) -> str:
    """Escape control characters, which could control the terminal, in an answer, but keep the answer's line breaks."""
    return "\n".join(map(shown, answer.split("\n")))


def _typed() -> str:
    """Read the next question from the terminal and return its text; return "" at the end of the input."""
    try:
        return str(click.prompt("", prompt_suffix="> ", default="", show_default=False, err=True)).strip()
    except click.Abort:
        return ""


COMMANDS = {"chat": chat}

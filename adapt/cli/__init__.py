"""The command line: thin commands over the Python surface, imported when they are run."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from adapt.errors import AdaptError, nearest
from adapt.shown import shown

# command -> the module of this package that holds it, and its line in the overview
_COMMANDS = {
    "train": ("train", "Train an adapter from a recipe."),
    "recommend": ("recommend", "Say which method is best for your images, and how good it is; and train it."),
    "eval": ("measure", "Measure an adapter on labelled images."),
    "zeroshot": ("measure", "Measure a backbone with hand-written prompts."),
    "verify": ("verify", "Compare with the published accuracy, and say what differs."),
    "few-shot": ("protocols", "A curve: train on few and more images of each class, over seeds."),
    "base-to-new": ("protocols", "Train on half of the classes, measure on both halves, over seeds."),
    "cross-dataset": ("protocols", "Train on one data set, measure on others, over seeds."),
    "domain-generalisation": ("protocols", "Train on one data set, measure on other domains, over seeds."),
    "leave-one-out": ("protocols", "Train on all domains but one, measure on that one, each in its turn."),
    "phases": ("protocols", "Train on one part of the data after the other, measure what is kept."),
    "table": ("protocols", "Show what protocols found side by side, the papers' figures too."),
    "report": ("protocols", "Write an HTML page about runs: tables, curves, confusions, errors."),
    "predict": ("predict", "Classify images or folders of images."),
    "maps": ("maps", "Draw where images look abnormal."),
    "serve": ("serve", "Answer over HTTP, with a page to drop pictures on."),
    "index": ("index", "Make an index of texts or images, to search in and to take names from."),
    "search": ("index", "Find the entries of an index that are nearest to a text or an image."),
    "chat": ("chat", "Ask questions about an image."),
    "inspect": ("formats", "Show what an adapter holds, and the words nearest to its learned tokens."),
    "merge": ("formats", "Fold a LoRA adapter into a standalone checkpoint."),
    "export": ("export", "Write an adapter as a model by itself, for ONNX and others, or with its backbone."),
    "convert": ("formats", "Import a published checkpoint, or export LoRA to peft's layout."),
    "soup": ("soup", "Mix adapters of a common start into one."),
    "push": ("push", "Publish an adapter on the Hugging Face hub."),
    "data": ("data", "List, check and look at data sets."),
    "cache": ("cache", "Show or clear the image features kept on disk."),
    "recipes": ("recipes", "List the recipes, or show one."),
    "methods": ("lists", "List the methods and their settings."),
    "backbones": ("lists", "List the forms of backbone names."),
}
# of torch on each kind of device, of the system, and of the loader of libraries
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "not enough memory",
    "failed to map",
)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            ctx.fail(f"there is no command {cmd_name!r}; {nearest(cmd_name, _COMMANDS, '`adapt --help`')}")
        module = importlib.import_module(f"adapt.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = module.COMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Exit codes: 0 done, 2 for a user's mistake or what the machine lacks (one line), 130 after Ctrl-C."""
        try:
            _check_package()
            return super().main(*args, **kwargs)
        except AdaptError as error:
            click.echo(f"Error: {shown(error)}", err=True)
            sys.exit(2)
        except (OSError, RuntimeError, MemoryError, ImportError) as error:
            lacking = _lacking(error)
            if lacking is None:
                raise
            click.echo(f"Error: {lacking}", err=True)
            sys.exit(2)


def _lacking(error: Exception) -> str | None:
    """What the machine does not have; None where something else is wrong. Libraries tell it by their words alone."""
    said = str(error).lower()
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "what should be written does not fit: there is no room left where it goes"
    if "no usable temporary directory" in said:
        return "there is no folder for temporary files that can be written: set TMPDIR to one"
    if isinstance(error, MemoryError) or any(words in said for words in _OUT_OF_MEMORY):
        return "there is not enough memory for this: free some, or ask for less, such as a smaller train.batch_size"
    return None


class _Shown(logging.Formatter):
    """A line for each message, whatever the names in it are."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(shown, super().format(record).splitlines()))


def _check_package() -> None:
    """AdaptError where PyPI's `adapt`, another project with a folder of that name, has taken our `__init__.py` away."""
    import adapt

    if "wrap" not in getattr(adapt, "__all__", ()):
        raise AdaptError(
            "another project's files are where those of adapt-vlm were: PyPI's adapt is not this one. Give `pip "
            "uninstall adapt`, then `pip install --force-reinstall --no-deps adapt-vlm`, or that of your checkout"
        )


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="adapt-vlm", prog_name="adapt")
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Run this Python file of yours first, and take the methods that it defines. May be repeated.",
)
def main(plugins: tuple[Path, ...]) -> None:
    """Adapt a frozen vision-language model to your task, from a few labelled images.

    \b
    Start here (offline, about a minute):
      adapt train quickstart --out runs/first
      adapt predict runs/first/adapter.safetensors photo.png
    """
    from adapt.cli.launching import is_main

    # read when torch loads OpenMP: by default waiting threads spin, and two trainings beside one another took eight
    # times as long as one alone; with so short a spin they take twice as long, and one alone no longer than before.
    # A server's passes are small: its threads stay awake from one operation to the next (docs/serving.md has times)
    serving = click.get_current_context().invoked_subcommand == "serve"
    os.environ.setdefault("GOMP_SPINCOUNT", "3000" if serving else "1000")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Shown("%(message)s"))
    # of several processes that train together the main one speaks
    logging.getLogger("adapt").setLevel(logging.INFO if is_main() else logging.ERROR)
    logging.getLogger().addFilter(lambda record: record.name.startswith("adapt"))
    if plugins:
        from adapt import plugins as files

        files.load(plugins)

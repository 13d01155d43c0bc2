"""The command line: thin commands over the Python API, each imported when it is run."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from adapt.common.errors import AdaptError, nearest
from adapt.common.shown import shown

# command -> its module in this package, and its line in the overview
_COMMANDS = {
    "train": ("train", "Train an adapter from a recipe."),
    "recommend": ("train", "Compare methods on your images, and train the best one."),
    "extend": ("train", "Add classes to an adapter, from images of them."),
    "label": ("serve", "Label images on a web page, the most useful ones first."),
    "eval": ("measure", "Measure an adapter on labelled images."),
    "diff": ("differences", "Show what two adapters differ in."),
    "repeat": ("differences", "Train an adapter again as it was trained, and compare bit for bit."),
    "sets": ("measure", "Calibrate an adapter for sets of classes with a guarantee."),
    "certify": ("measure", "Measure an adapter's latency, memory, operations and size on this machine."),
    "zeroshot": ("measure", "Measure a backbone with hand-written prompts."),
    "verify": ("measure", "Compare a backbone with its published accuracy, and list what differs."),
    "few-shot": ("protocols", "Train on a growing number of images per class, over seeds."),
    "few-normal": ("protocols", "Train on a growing number of normal images, and measure how defects are found."),
    "base-to-new": ("protocols", "Train on half of the classes and measure on both halves, over seeds."),
    "cross-dataset": ("protocols", "Train on one data set and measure on others, over seeds."),
    "domain-generalisation": ("protocols", "Train on one data set and measure on other domains, over seeds."),
    "leave-one-out": ("protocols", "Train on all domains but one and measure on that one, for each in turn."),
    "phases": ("protocols", "Train on parts of the data in turn (continual learning) and measure forgetting."),
    "sweep": ("protocols", "Train with every combination of settings' values, over seeds."),
    "table": ("protocols", "Show results side by side, with the papers' figures."),
    "report": ("protocols", "Write an HTML report on runs: tables, curves, confusion matrices, errors."),
    "predict": ("predict", "Classify images or folders of images."),
    "serve": ("serve", "Serve adapters over HTTP, with a web page to drop pictures on."),
    "index": ("index", "Build an index of texts or images, for search and for naming images."),
    "search": ("index", "Find the entries of an index that are nearest to a text or an image."),
    "chat": ("chat", "Ask questions about an image."),
    "inspect": ("formats", "Show the contents of an adapter, and the words nearest to its learned tokens."),
    "merge": ("formats", "Fold an adapter of changed weights, such as LoRA, into a standalone checkpoint."),
    "export": ("formats", "Export an adapter as a standalone model (ONNX and others), or with its backbone."),
    "convert": ("formats", "Import a published checkpoint, or export LoRA to peft's layout."),
    "average": ("formats", "Put several adapters into one file that averages their probabilities."),
    "soup": ("formats", "Combine adapters trained from the same start into one (a model soup)."),
    "push": ("formats", "Publish an adapter on the Hugging Face hub."),
    "data": ("data", "List, check, view, match and filter data sets."),
    "cache": ("lists", "Show or clear the image features cached on disk."),
    "recipes": ("lists", "List the recipes, or show one."),
    "methods": ("lists", "List the methods and their settings."),
    "backbones": ("lists", "List the ways to name a backbone."),
}
# how torch on each kind of device, the system and the library loader say that memory ran out
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "not enough memory",
    "failed to map",
)


class CommandGroup(click.Group):
    """A group of commands whose options each have one value: click takes the last of several without a word."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            context = click.Context(command, ctx, name, resilient_parsing=True)
            _, _, given = command.make_parser(context).parse_args([*rest])
            for option in {each for each in given if isinstance(each, click.Option) and given.count(each) > 1}:
                if not option.multiple and (option.secondary_opts or not option.is_flag):
                    flag = max(option.opts, key=len)
                    raise click.UsageError(f"{flag} is given {given.count(option)} times: give it once", context)
        return name, command, rest


class _Commands(CommandGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            ctx.fail(f"unknown command {cmd_name!r}; {nearest(cmd_name, _COMMANDS, '`adapt --help`')}")
        module = importlib.import_module(f"adapt.cli.{_COMMANDS[cmd_name][0]}")
        return next(each for each in vars(module).values() if isinstance(each, click.Command) and each.name == cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        from adapt.common.interrupt import interrupted_when_ended

        try:
            with interrupted_when_ended():
                return super().invoke(ctx)
        except click.NoSuchOption as error:
            from adapt.recipe.settings import TrainSettings

            name, context = error.option_name.lstrip("-").replace("-", "_"), error.ctx
            takes_settings = context is not None and any(each.name == "overrides" for each in context.command.params)
            if not (takes_settings and name in TrainSettings.model_fields):
                raise
            message = f"There is no option {error.option_name}: give --set train.{name}=VALUE"
            raise click.UsageError(message, context) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command and exit with code 0 for success, 2 for a user error or full memory or disk, 130 for Ctrl-C."""
        try:
            import adapt

            if "wrap" not in getattr(adapt, "__all__", ()):
                raise AdaptError(
                    "the package adapt from PyPI, an unrelated project, has overwritten files of adapt-vlm: run `pip "
                    "uninstall adapt`, then `pip install --force-reinstall --no-deps adapt-vlm`, or give pip your "
                    "checkout instead"
                )
            try:
                os.getcwd()
            except FileNotFoundError:  # libraries fail without saying why
                raise AdaptError("the current folder no longer exists: change to another one") from None
            return super().main(*args, **kwargs)
        except (AdaptError, OSError, RuntimeError, MemoryError, ImportError) as error:
            told = shown(error) if isinstance(error, AdaptError) else _lacking(error)
            if told is None:
                raise
            click.echo(f"Error: {told}", err=True)
            sys.exit(2)


def _lacking(error: Exception) -> str | None:
    """Return a message if `error` means that memory or disk space ran out; return None for other errors."""
    message = str(error).lower()
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "a file became larger than the file system or `ulimit -f` allows: write elsewhere, or raise the limit"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk that is written to is full: free some space, or write elsewhere"
    if "no usable temporary directory" in message:
        return "there is no writable folder for temporary files: set TMPDIR to one"
    if isinstance(error, MemoryError) or any(words in message for words in _OUT_OF_MEMORY):
        return "there is not enough memory for this: free some, or ask for less, such as a smaller train.batch_size"
    return None


class _Shown(logging.Formatter):
    """A log formatter that escapes control characters, so that a name in a message cannot control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(shown, super().format(record).splitlines()))


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Turn off the warnings and progress bars of third-party libraries, but not the warnings of adapt."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported, which takes a second
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("default", module=r"adapt\.")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns that an optional kernel is missing
        if "transformers" in sys.modules:
            from transformers.utils import logging as of_transformers

            of_transformers.set_verbosity_error()
            of_transformers.disable_progress_bar()
        yield


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="adapt-vlm", prog_name="adapt")
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Python file of your own to load first, for the methods it defines (repeatable).",
)
def main(plugins: tuple[Path, ...]) -> None:
    """Adapt a frozen vision-language model to your task, from a few labelled images.

    \b
    Start here (offline, about a minute):
      adapt train quickstart --out runs/first
      adapt predict runs/first/adapter.safetensors photo.png
    """
    from adapt.common.devices import is_main

    # OpenMP reads this when torch loads it. By default, waiting threads spin, and two trainings at once took eight
    # times as long as one. With so short a spin they take twice as long, and a single one no longer than before.
    # A server's passes are small, so its threads stay awake between operations (docs/serving.md has the times)
    serving = click.get_current_context().invoked_subcommand == "serve"
    os.environ.setdefault("GOMP_SPINCOUNT", "3000" if serving else "1000")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Shown("%(message)s"))
    # of the processes that train one run together, only the main one logs
    logging.getLogger("adapt").setLevel(logging.INFO if is_main() else logging.ERROR)
    logging.getLogger().addFilter(lambda record: record.name.startswith("adapt"))
    if plugins:
        from adapt.methods import run_plugins

        run_plugins(plugins)
    click.get_current_context().with_resource(quiet_libraries())

"""`adapt push`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click

from adapt.cli import options as common
from adapt.cli.options import Argument, Option, command
from adapt.common.errors import AdaptError


@command()
def push(
    adapter: Path,
    repository: Annotated[str, Argument("USER/NAME")],
    *,
    private: Annotated[
        bool | None, Option("Visibility of a new repository.  [default: the account's setting]", "--private/--public")
    ] = None,
    license: Annotated[str | None, "Licence for the model card, such as apache-2.0.  [default: none]"] = None,
    message: Annotated[str | None, "Commit message.  [default: METHOD adapter]"] = None,
    backbone: common.OfAdapter = None,
) -> None:
    """Publish ADAPTER on the Hugging Face hub as USER/NAME, with a model card that describes its training run.

    The adapter file is uploaded unchanged. Standard LoRA on a transformers model is also uploaded in peft's layout. If
    the repository exists, the upload adds a commit, and earlier adapters can be loaded as hf://USER/NAME@COMMIT. The
    access token comes from `hf auth login` or from the environment variable HF_TOKEN.

    \b
    Examples:
      adapt push runs/first user/emoji-coop --license apache-2.0
      adapt predict hf://user/emoji-coop photo.png
    """
    with common.quiet_libraries():
        from adapt.formats import publishing
        from adapt.loading import load, located

        file = located(adapter)
        if not file.is_file():
            raise AdaptError(f"there is no adapter at {adapter}: give a .safetensors file, or the folder of a run")
        model = load(file, common.given_backbone(backbone, "cpu"), device="cpu")
        address = publishing.push(model, repository, file=file, private=private, license=license, message=message)
    click.echo(f"published at {address}")

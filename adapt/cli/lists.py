"""`adapt methods` and `adapt backbones`"""

from __future__ import annotations

import click

from adapt.cli.options import command
from adapt.common.errors import AdaptError


@command()
def methods(name: str | None = None) -> None:
    """List the methods, or show the settings of the method NAME with their defaults."""
    from adapt import methods as package

    if name is None:
        for each in package.names():
            click.echo(f"{each:16} {_title(each)}")
        click.echo("\nSettings of one: adapt methods NAME")
        return
    method = package.find(name)
    click.echo(f"{method.title}\n")
    for key, field in method.Config.model_fields.items():
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        click.echo(f"  {key:18} {default:24} {field.description or ''}".rstrip())


def _title(name: str) -> str:
    """Return a method's title, or the error message if the method's package cannot be imported."""
    from adapt import methods as package

    try:
        return package.find(name).title
    except AdaptError as error:
        return f"({error})"


@command()
def backbones() -> None:
    """List the ways to name a backbone in recipes, commands and `adapt.load_backbone`."""
    from adapt.backbones.families import forms

    for form, text in forms().items():
        click.echo(f"{form:28} {text}")

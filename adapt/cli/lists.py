"""`adapt methods` and `adapt backbones`"""

from __future__ import annotations

import click

from adapt.errors import AdaptError


@click.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods, or the settings of the method NAME with their defaults."""
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
    """What a method is; one whose package cannot be imported does not end the list."""
    from adapt import methods as package

    try:
        return package.find(name).title
    except AdaptError as error:
        return f"({error})"


@click.command()
def backbones() -> None:
    """List the forms of backbone names that recipes, commands and `adapt.load_backbone` take."""
    from adapt.backbones.families import forms

    for form, text in forms().items():
        click.echo(f"{form:28} {text}")


COMMANDS = {"methods": methods, "backbones": backbones}

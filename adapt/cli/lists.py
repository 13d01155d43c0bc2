"""`adapt methods` and `adapt backbones`"""

from __future__ import annotations

import click


@click.command()
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the methods, or the settings of the method NAME with their defaults."""
    from adapt import methods as package

    if name is None:
        for each in package.names():
            click.echo(f"{each:16} {package.find(each).title}")
        click.echo("\nSettings of one: adapt methods NAME")
        return
    method = package.find(name)
    click.echo(f"{method.title}\n")
    for key, field in method.Config.model_fields.items():
        click.echo(f"  {key:18} {field.get_default(call_default_factory=True)!r:24} {field.description or ''}".rstrip())


@click.command()
def backbones() -> None:
    """List the forms of backbone names that recipes, commands and `adapt.load_backbone` take."""
    from adapt.backbones.load import SPECS

    for form, text in SPECS.items():
        click.echo(f"{form:28} {text}")


COMMANDS = {"methods": methods, "backbones": backbones}

"""Directives for the settings of a method or of a section of a recipe, for all methods, and for published figures."""

from __future__ import annotations

import importlib
import re
from typing import Any

import published_figures
from docutils import nodes
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import stringify_annotation

from adapt import methods


class Settings(SphinxDirective):
    """The directive `settings NAME`: a table of the settings of a method, or of a pydantic model by its dotted path."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        fields = _model(self.arguments[0]).model_fields
        if not fields:
            return self.parse_text_to_nodes("It has no settings.")
        rows = [f"| `{key}` | {_kind(field)} | {_default(field)} | {_cell(field)} |" for key, field in fields.items()]
        return self.parse_text_to_nodes("\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows]))


class EveryMethod(SphinxDirective):
    """The directive `every-method`: a section for each method, with the docstring of its class and its settings."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes("\n".join(map(_section, methods.names())), allow_section_headings=True)


class PublishedFigures(SphinxDirective):
    """The directive `published-figures`: a row for each figure that `adapt verify` compares."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(published_figures.table())


def _section(name: str) -> str:
    return f"""## {name}

```{{eval-rst}}
.. autoclass:: adapt.methods.{methods.find(name).__name__}
```

```{{settings}} {name}
```
"""


def _model(name: str) -> type[BaseModel]:
    if "." not in name:
        return methods.find(name).Config
    module, _, attribute = name.rpartition(".")
    model: type[BaseModel] = getattr(importlib.import_module(module), attribute)
    return model


def _kind(field: FieldInfo) -> str:
    shown = stringify_annotation(field.annotation, "smart").replace("~", "")
    shown = re.sub(r"Literal\[(.*?)\]", r"\1", re.sub(r"\w+\.", "", shown))
    return f"`{shown}`".replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value: Any = field.get_default(call_default_factory=True)
    return "" if value is None else f"`{value!r}`"


def _cell(field: FieldInfo) -> str:
    """Return the docstring of a setting on one line."""
    return " ".join((field.description or "").split()).replace("|", "\\|")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("settings", Settings)
    app.add_directive("every-method", EveryMethod)
    app.add_directive("published-figures", PublishedFigures)
    return {"parallel_read_safe": True}

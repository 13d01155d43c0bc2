"""A recipe file: settings as plain data, and changes to them for certain data sets.

Beside the keys of a recipe, a file may have five more keys. `on` holds changes by data set (`own` applies to all data
that is not known by name). `expected` holds the papers' figures, for people. Three keys are for `adapt recommend`:
`variants` are other settings of the method, each compared under its own name; `compared` says that the method is
compared by default although its steps pass through a tower; `preferred` names the variant that is chosen if no other
method is better beyond the noise.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from adapt.common import plain
from adapt.common.errors import AdaptError, nearest
from adapt.common.shown import brief, first_of, one_line
from adapt.data.emoji import bundled
from adapt.data.readers import published

Override = str | tuple[str, object]  # `key=value` with a value in YAML, or a key and its value

OWN = "own"
_ROOT = "data"  # the default folder of published data sets
_LENGTHS = ("epochs", "iterations", "iterations_per_shot")
_FOR_EDITORS = "# yaml-language-server:"  # followed by the path of the recipe schema
_LARGEST = 2**20  # bytes of a recipe


@dataclass(frozen=True)
class RecipeFile:
    """The content of a recipe file: its `name` in error messages, the `comment` at its top, and its settings."""

    name: str
    comment: str
    settings: dict[str, object]
    on: dict[str, dict[str, object]]
    expected: dict[str, str]
    variants: dict[str, dict[str, object]] = field(default_factory=dict)
    compared: bool = False
    preferred: str | None = None

    @property
    def title(self) -> str:
        return self.comment.partition("\n")[0]

    def under(self, heading: str) -> str:
        """Return the text under a heading of the comment, such as Departures, on one line, or "" if missing."""
        section = re.search(rf"^{heading}: (.*(?:\n .*)*)", self.comment, re.MULTILINE)
        return one_line(section[1]) if section else ""

    def source(self, overrides: Iterable[Override] = ()) -> object:
        """Return the data source in the file's settings after `overrides`, or None if no data source is set."""
        return source_of(copy.deepcopy(self.settings), overrides)

    def on_data(self, source: str) -> dict[str, object]:
        """Return the file's settings for the data `source`, including the changes (`on`) for this data set."""
        changes = next((self.on[name] for name in _names(source) if name in self.on), {})
        raw = copy.deepcopy(_merged(self.settings, changes))
        if isinstance(data := raw.setdefault("data", {}), dict):
            data["source"] = source
        return raw

    def expected_on(self, source: str) -> str | None:
        """Return the papers' figures for the data `source`, or None if the file has no figures for the data."""
        return next((self.expected[name] for name in _names(source) if name in self.expected), None)

    def needs_data(self) -> AdaptError:
        """Return the error to raise if neither the recipe nor the user names a data source."""
        known = [*(name for name in self.on if bundled.is_bundled(name)), *published.trained()]
        return AdaptError(
            f"the recipe {self.name} names no data: add --data with a folder of images, a .csv, or one of "
            f"{', '.join(known)}; for example --data {known[0]}"
        )


def read_file(path: Path, name: str) -> RecipeFile:
    """Read the recipe file at `path`, called `name` in errors. Raises AdaptError for a missing or invalid file."""
    if not path.is_file():
        raise AdaptError(f"there is no recipe at {path}; `adapt recipes` lists the shipped recipes")
    try:
        if path.stat().st_size > _LARGEST:
            raise AdaptError(f"{path} is larger than {_LARGEST:,} bytes, the most that a recipe may have")
        content = path.read_bytes()
        raw = _parsed(content)
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise AdaptError(f"{path} is not valid YAML: {one_line(error)}") from error
    if not isinstance(raw, dict):
        raise AdaptError(f"{path} is not a recipe: expected keys such as method, data and train")
    on, expected = (_by_data(raw.pop(key, None) or {}, key, name) for key in ("on", "expected"))
    for data, changes in on.items():
        if not isinstance(changes, dict):
            raise AdaptError(
                f"{name}: on.{data} is {brief(changes)}; expected recipe keys such as train: {{epochs: 5}}"
            )
    figures = {data: one_line(text) for data, text in expected.items()}
    variants, compared = raw.pop("variants", None) or {}, raw.pop("compared", False)
    if not (isinstance(variants, dict) and all(isinstance(each, dict) for each in variants.values())):
        raise AdaptError(
            f"{name}: variants are {brief(variants)}; expected names, each with settings such as method.train: true"
        )
    if not isinstance(compared, bool):
        raise AdaptError(f"{name}: compared is {brief(compared)}; expected true or false")
    preferred = raw.pop("preferred", None)
    if preferred is not None and preferred not in list(variants):  # which may not even be hashable
        raise AdaptError(
            f"{name}: preferred is {brief(preferred)}; expected a variant of the recipe: {first_of([*variants])}"
        )
    return RecipeFile(name, _comment(content), raw, on, figures, variants, compared, preferred)


def source_of(raw: dict[str, object], overrides: Iterable[Override] = ()) -> object:
    """Apply the overrides to `raw`, and return the resulting data source, or None if no data source is set."""
    for override in overrides:
        set_key(raw, override)
    data = raw.get("data")
    return data.get("source") if isinstance(data, dict) else data


def add_the_sets_own(raw: dict[str, object], source: str) -> None:
    """Add a published data set's default root and template to `raw`; values that `raw` contains take precedence."""
    entry, data = published.find(source), raw.get("data")
    if entry is not None and isinstance(data, dict):
        raw["data"] = {"root": _ROOT, "template": entry.template} | data


def set_key(raw: dict[str, object], override: Override) -> None:
    """Set a key in `raw` by an override such as `data.shots=4`. Raises AdaptError if the override is malformed."""
    key, value = override if isinstance(override, tuple) else pair(override)
    *parents, leaf = key.split(".")
    section = raw
    for part in parents:
        inner = section.setdefault(part, {})
        if not isinstance(inner, dict):
            raise AdaptError(f"override {brief(override)}: {brief(part)} is a value, not a section")
        section = inner
    section[leaf] = value


def one_length(raw: dict[str, object], overrides: Iterable[Override]) -> None:
    """Remove the recipe's training length, such as epochs, from `raw` if an override sets a training length."""
    keys = [override[0] if isinstance(override, tuple) else override.partition("=")[0] for override in overrides]
    train = raw.get("train")
    if isinstance(train, dict) and any(f"train.{name}" in keys and train[name] is not None for name in _LENGTHS):
        raw["train"] = {key: value for key, value in train.items() if key not in _LENGTHS or f"train.{key}" in keys}


def pair(override: str) -> tuple[str, Any]:
    """Return the key and the YAML value of an override `key=value`. Raises AdaptError for an invalid override."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise AdaptError(f"override {brief(override)} is not of the form key=value, such as data.shots=4")
    try:
        return key, _parsed(value) if value else ""
    except (yaml.YAMLError, ValueError) as error:
        raise AdaptError(f"override {brief(override)}: the value is not valid YAML: {one_line(error)}") from error


def _by_data(section: object, key: str, name: str) -> dict[str, dict[str, object]]:
    """Return `section`, a mapping by data set. Raises AdaptError for a key other than `own` and known data sets."""
    if not isinstance(section, dict):
        raise AdaptError(f"{name}: {key} is {brief(section)}; expected names of data sets, each with a value")
    for data in section:
        if data != OWN and (not isinstance(data, str) or _names(data) == (OWN,)):
            known = [OWN, *bundled.names(), *published.sets()]
            raise AdaptError(
                f"{name}: {key} has {brief(data)}, which is not the name of a known data set; "
                f"{nearest(str(data), known, bundled.LISTED_BY)}"
            )
    return section


def _names(source: str) -> tuple[str, ...]:
    """Return the keys of a recipe's section `on` for the data `source`, most specific first; `own` for unknown data."""
    entry = published.find(source)
    if entry is not None:
        return (entry.name,)
    return (source, source.partition("@")[0], "emoji") if bundled.is_bundled(source) else (OWN,)


def _merged(base: dict[str, object], changes: dict[str, object]) -> dict[str, object]:
    """Return `base` with `changes`, merged section by section; null in `changes` replaces an entire section."""
    merged = base | changes
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(section := base.get(key), dict):
            merged[key] = _merged(section, value)
    return merged


def _comment(content: bytes) -> str:
    lines = []
    for line in content.decode(errors="replace").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(_FOR_EDITORS):
            lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


class _Loader(yaml.SafeLoader):
    """A YAML loader that rejects deep nesting, duplicate keys, and aliases, which let a short file fill memory."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "recipes have no references (*name): write the value out")
        if self.depth == plain.DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"the data is nested too deeply; expected at most {plain.DEPTH} levels"
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.MappingNode):
            counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if twice := sorted(key for key, count in counts.items() if count > 1):
                problem = f"the key {brief(twice[0])} appears twice"
                raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return node


def _resolver(tag: str, pattern: re.Pattern[str]) -> tuple[str, re.Pattern[str]]:
    """Return a YAML resolver that, as in YAML 1.2, does not read `1:30` as a number in base 60."""
    plain_number = re.compile(rf"(?!.*:)(?:{pattern.pattern})", pattern.flags)
    return tag, plain_number if tag.endswith((":int", ":float")) else pattern


# only true and false are booleans, as in YAML 1.2: `on` is a key
_Loader.yaml_implicit_resolvers = {
    first: [_resolver(*each) for each in resolvers if (first or " ") in "tTfF" or not each[0].endswith(":bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parsed(text: str | bytes) -> object:
    """Return YAML as data that may be changed. Raises the errors of `_loaded`."""
    return copy.deepcopy(_loaded(text))


@lru_cache(maxsize=256)  # `adapt recommend` reads each recipe several times, and parsing takes 3 ms
def _loaded(text: str | bytes) -> object:
    """Parse YAML. Raises YAMLError for invalid YAML, and ValueError for data that exceeds the limits of `plain`."""
    value = yaml.load(text, _Loader)
    plain.check(value, longest=None)
    return value

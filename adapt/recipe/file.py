"""A recipe's file: plain data that says how, and what is set differently on which data.

Beside the recipe's own keys it may have five that no recipe keeps. `on` holds, by data set, what is put over the rest
(`own` is for all data that is not known by name); `expected` the papers' figures, for people. `variants` are other
settings, by key, that are worth a comparison under a name of their own, and `compared` says that the method is compared
by default though its steps pass through a tower; `preferred` names the variant that is taken where others are no better
beyond the noise: these are for `adapt recommend`.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adapt import plain
from adapt.data.emoji import bundled
from adapt.data.readers import published
from adapt.errors import AdaptError, nearest
from adapt.shown import brief, first_of, one_line

Override = str | tuple[str, Any]  # `key=value`, whose value is YAML, or a key and a value that is taken as it is

OWN = "own"
_ROOT = "data"  # where published sets are looked for, unless told otherwise
_LENGTHS = ("epochs", "iterations", "iterations_per_shot")
_FOR_EDITORS = "# yaml-language-server:"  # behind it is where the schema of recipes lies
_LARGEST = 2**20  # bytes of a recipe


@dataclass(frozen=True)
class RecipeFile:
    """What a file says. `name` is how errors call it, `comment` the lines at its head."""

    name: str
    comment: str
    settings: dict[str, Any]
    on: dict[str, dict[str, Any]]
    expected: dict[str, str]
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    compared: bool = False
    preferred: str | None = None

    @property
    def title(self) -> str:
        return self.comment.partition("\n")[0]

    def under(self, heading: str) -> str:
        """What the comment says under a heading such as Departures, on one line; "" where it has none."""
        found = re.search(rf"^{heading}: (.*(?:\n .*)*)", self.comment, re.MULTILINE)
        return one_line(found[1]) if found else ""

    def source(self, overrides: Iterable[Override] = ()) -> Any:
        """The data that the file, or an override, names; None where neither does."""
        return source_of(copy.deepcopy(self.settings), overrides)

    def on_data(self, source: str) -> dict[str, Any]:
        """The settings for the data `source`: those of the file, and over them those that it has for the data."""
        key = next((name for name in _names(source) if name in self.on), None)
        raw: dict[str, Any] = copy.deepcopy(self.settings)
        if key is not None:
            raw = _over(raw, copy.deepcopy(self.on[key]))
        if isinstance(raw.setdefault("data", {}), dict):
            raw["data"]["source"] = source
        return raw

    def expected_on(self, source: str) -> str | None:
        """The papers' figures for the data `source`, where the file has some."""
        return next((self.expected[name] for name in _names(source) if name in self.expected), None)

    def needs_data(self) -> AdaptError:
        """What is wrong where nobody said which data."""
        known = [*(name for name in self.on if bundled.is_bundled(name)), *published.trained()]
        return AdaptError(
            f"the recipe {self.name} says how, and not on what: add --data with a folder of images, a .csv, or one of "
            f"{', '.join(known)}; for example --data {known[0]}"
        )


def read_file(path: Path, name: str) -> RecipeFile:
    """The file at `path`, called `name`. Raises AdaptError for a missing file, broken YAML, or data of another form."""
    if not path.is_file():
        raise AdaptError(f"there is no recipe at {path}; `adapt recipes` lists the shipped ones")
    try:
        if path.stat().st_size > _LARGEST:
            raise AdaptError(f"{path} is larger than {_LARGEST:,} bytes and no recipe")
        content = path.read_bytes()
        raw = _parsed(content)
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise AdaptError(f"{path} is not valid YAML: {one_line(error)}") from error
    if not isinstance(raw, dict):
        raise AdaptError(f"{path} is no recipe: expected keys such as method, data and train")
    on, expected = (_by_data(raw.pop(key, None) or {}, key, name) for key in ("on", "expected"))
    for data, changes in on.items():
        if not isinstance(changes, dict):
            raise AdaptError(
                f"{name}: on.{data} is {brief(changes)}; expected keys of a recipe such as train: {{epochs: 5}}"
            )
    figures = {data: one_line(text) for data, text in expected.items()}
    variants, compared = raw.pop("variants", None) or {}, raw.pop("compared", False)
    if not (isinstance(variants, dict) and all(isinstance(each, dict) for each in variants.values())):
        raise AdaptError(
            f"{name}: variants are {brief(variants)}; expected names, each with keys such as method.train: true"
        )
    if not isinstance(compared, bool):
        raise AdaptError(f"{name}: compared is {brief(compared)}; expected true or false")
    preferred = raw.pop("preferred", None)
    if preferred is not None and preferred not in list(variants):  # which may be no name at all
        raise AdaptError(
            f"{name}: preferred is {brief(preferred)}; expected one of its variants: {first_of([*variants])}"
        )
    return RecipeFile(name, _comment(content), raw, on, figures, variants, compared, preferred)


def source_of(raw: dict[str, Any], overrides: Iterable[Override] = ()) -> Any:
    """The data that `raw`, which this changes, names under its overrides; None where there is none."""
    for override in overrides:
        set_key(raw, override)
    data = raw.get("data")
    return data.get("source") if isinstance(data, dict) else data


def add_the_sets_own(raw: dict[str, Any], source: str) -> None:
    """Puts the root and the template of a published set into plain data, where they are not given."""
    entry, data = published.find(source), raw.get("data")
    if entry is not None and isinstance(data, dict):
        raw["data"] = {"root": _ROOT, "template": entry.template} | data


def set_key(raw: dict[str, Any], override: Override) -> None:
    """Puts `key=value`, such as `data.shots=4`, into plain data. Raises AdaptError where it is of another form."""
    key, value = override if isinstance(override, tuple) else pair(override)
    *parents, leaf = key.split(".")
    section: Any = raw
    for part in parents:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise AdaptError(f"override {brief(override)}: {brief(part)} is a value, not a section")
    section[leaf] = value


def one_length(raw: dict[str, Any], overrides: Iterable[Override]) -> None:
    """Takes the length of training that the recipe has out of plain data, where overrides give another one."""
    keys = [override[0] if isinstance(override, tuple) else override.partition("=")[0] for override in overrides]
    train = raw.get("train")
    given = [
        name for name in _LENGTHS if f"train.{name}" in keys and isinstance(train, dict) and train[name] is not None
    ]
    if given and isinstance(train, dict):
        raw["train"] = {key: value for key, value in train.items() if key not in _LENGTHS or f"train.{key}" in keys}


def pair(override: str) -> tuple[str, Any]:
    """The key and the value of `key=value`. AdaptError where it is of another form."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise AdaptError(f"override {brief(override)} is not of the form key=value, such as data.shots=4")
    try:
        return key, _parsed(value) if value else ""
    except (yaml.YAMLError, ValueError) as error:
        raise AdaptError(f"override {brief(override)}: the value is not valid YAML: {one_line(error)}") from error


def _by_data(section: Any, key: str, name: str) -> dict[str, Any]:
    """`section` with names of data for keys. Raises AdaptError for others."""
    if not isinstance(section, dict):
        raise AdaptError(f"{name}: {key} is {brief(section)}; expected names of data sets, each with what holds on it")
    for data in section:
        if data != OWN and (not isinstance(data, str) or _names(data) == (OWN,)):
            known = [OWN, *bundled.names(), *published.sets()]
            raise AdaptError(
                f"{name}: {key} has {brief(data)}, which is no data set known by name; "
                f"{nearest(str(data), known, bundled.LISTED_BY)}"
            )
    return section


def _names(source: str) -> tuple[str, ...]:
    """What a file may call the data `source`, the nearest first: its name, for a style of emoji also all of them."""
    entry = published.find(source)
    if entry is not None:
        return (entry.name,)
    return (source, source.partition("@")[0], "emoji") if bundled.is_bundled(source) else (OWN,)


def _over(base: Any, changes: Any) -> Any:
    """`changes` put over `base`, section by section; a null stands for itself."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    return base | {key: _over(base.get(key), value) for key, value in changes.items()}


def _comment(content: bytes) -> str:
    lines = []
    for line in content.decode(errors="replace").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(_FOR_EDITORS):
            lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


class _Loader(yaml.SafeLoader):
    """Plain data without references, which a few lines can multiply beyond all memory, and not too deep."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "recipes have no references (*name): write the value out")
        if self.depth == plain.DEPTH:
            raise yaml.composer.ComposerError(None, None, "it is nested too deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.MappingNode):
            counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if twice := sorted(key for key, count in counts.items() if count > 1):
                problem = f"the key {brief(twice[0])} stands twice"
                raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return node


def _resolver(tag: str, pattern: Any) -> tuple[str, Any]:
    """As in YAML 1.2: no numbers to the base of 60."""
    plain_number = re.compile(rf"(?!.*:)(?:{pattern.pattern})", pattern.flags)
    return tag, plain_number if tag.endswith((":int", ":float")) else pattern


# true and false alone, as in YAML 1.2: `on` is a key, and no truth
_Loader.yaml_implicit_resolvers = {
    first: [_resolver(*each) for each in resolvers if (first or " ") in "tTfF" or not each[0].endswith(":bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parsed(text: str | bytes) -> Any:
    """What YAML says. YAMLError or ValueError where it is broken, or holds what no recipe may."""
    value = yaml.load(text, _Loader)
    plain.check(value, longest=None)
    return value

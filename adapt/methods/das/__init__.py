"""Dynamic architecture skipping: a bandit finds the blocks that a task can do without, light adapters take their place.

Paper: Wu et al., Parameter and Computation Efficient Transfer Learning for Vision-Language Pre-trained Models,
NeurIPS 2023 (DAS).
Reference: DAS `1d6a0d6`, `ViLT/vilt/modules/vilt_module_search.py`, `meter_module_search.py`.
Deviations:
* Besides ViLT's blocks and decoder layers, as in the reference, CLIP's towers for classification by names, and
  BridgeTower's two cross-modal streams in place of METER's.
* Only adapters and head train, at one rate; the reference also trains ViLT's pooler and token type embeddings, and its
  head and METER's fusion adapters faster.
* Decoder blocks have the adapters of ViLT's; the reference has others for LLaMA. The first block of each kind of
  attention is never skipped, since the cache of keys and values is read there.
* Adapters are allocated for the blocks that need them; the reference keeps both kinds for all.
* Rewards come from batches that walk through the held-back images; the reference takes its loader's first batch again
  and again.
* Warm-up and turn are counted in optimiser steps; the reference counts micro-batches.
* METER's rule has no learning rate: `gate_lr=1`, which is also ViLT's.
* No block's chance to be drawn falls below 1e-4, so that gates moved far still leave different subsets to compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tower import Tower, TowerName
from adapt.edits import Bypass, Edit, Parallel
from adapt.errors import AdaptError
from adapt.methods.base import Context, Method, MethodConfig, Step, Training
from adapt.methods.base.traits import ChoosesOnValidation, Reports, SkipsBlocks
from adapt.methods.das.imitation import imitate
from adapt.methods.das.search import Found, Search, plot_search
from adapt.methods.zero_shot import Template

DEFAULT_SKIP = 2
SiteName = Literal["attn", "cross", "mlp"]


class DASConfig(MethodConfig):
    skip: int | None = Field(default=None, ge=0)
    """How many blocks to skip; a search chooses which. 2, unless keep_flops or skipped say otherwise."""
    keep_flops: float | None = Field(default=None, gt=0, lt=1)
    """In place of skip: the share of the towers' operations that may remain of those of all blocks with adapters."""
    skipped: tuple[str, ...] | None = None
    """The skipped blocks themselves, such as vision.3, in place of a search; a trained adapter has them."""
    towers: tuple[TowerName, ...] = ("vision",)
    """ViLT's tower is fusion, BridgeTower's are text_fusion and vision_fusion, a language model's is decoder."""
    reduction: int = Field(default=8, ge=1)
    """The tower's width over the hidden size of an adapter beside a site; one in place of a block has that of all its
    sites together."""
    search_epochs: int = Field(default=3, ge=1)
    warmup_epochs: int = Field(default=1, ge=0)
    """Epochs of the search before the gates first change."""
    turn: int = Field(default=10, ge=1)
    """Steps of the search between two updates of the gates."""
    draws: int = Field(default=3, ge=2)
    """Different subsets of blocks that are compared for one update."""
    gate_lr: float = Field(default=1.0, gt=0)
    """How far one comparison moves the gates. Rewards are exp(-loss): a larger loss, as with distill, needs more."""
    imitate: int = Field(default=0, ge=0)
    """Epochs in which adapters in place of vision blocks first learn to do what the blocks do, before a search and
    again before the training: at the training's rate, in steps of at most four images."""
    template: Template = "a photo of a {}."
    """With {} for the class name."""

    @model_validator(mode="after")
    def _consistent(self) -> DASConfig:
        if self.keep_flops is not None and (self.skip is not None or self.skipped is not None):
            raise ValueError("keep_flops chooses how many blocks are skipped: leave it out, or skip and skipped")
        if self.skipped is not None and not len(set(self.skipped)) == len(self.skipped) == self.count:
            raise ValueError(f"skipped names {len(set(self.skipped))} blocks and skip is {self.count}")
        if self.searches and self.warmup_epochs >= self.search_epochs:
            raise ValueError("warmup_epochs leave no epoch of the search to change the gates in")
        return self

    @property
    def count(self) -> int | None:
        """How many blocks are skipped; None where a share of the operations decides."""
        if self.keep_flops is not None or self.skip is not None:
            return self.skip
        return DEFAULT_SKIP if self.skipped is None else len(self.skipped)

    @property
    def searches(self) -> bool:
        """Whether it is left to a search which blocks are skipped."""
        return self.skipped is None and self.count != 0


class Adapter(nn.Module):
    """`up(relu(down(norm(x))))`, and with `residual` the input added: `(..., d) -> (..., d)`."""

    def __init__(self, width: int, hidden: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.norm = nn.LayerNorm(width)
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        change = self.up(self.down(self.norm(x.to(self.up.weight.dtype))).relu()).to(x.dtype)
        return x + change if self.residual else change


class DAS(Method[Step], SkipsBlocks, ChoosesOnValidation, Reports):
    """`DAS(skip, towers)` trains `TOWER.BLOCK.SITE` beside kept blocks, `TOWER.BLOCK.bypass` in place of skipped ones.

    The sites are attn and mlp, and cross where a block attends to another stream. While it searches, every block has
    all of them, and `select` says which are skipped now.
    """

    name = "das"
    title = "DAS (Wu et al., NeurIPS 2023)"
    serves = ("dual encoder", "fusion encoder", "vision LLM")
    Config = DASConfig
    learns_any_step = True
    example = {"skipped": ["text.1"], "towers": ["text", "vision"]}
    _widths: dict[str, int]  # of the block that each name stands for
    _sites: dict[str, tuple[SiteName, ...]]  # of each block, those that cannot be skipped too

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(self.config.towers)

    @classmethod
    def lines(cls, metrics: Mapping[str, Any]) -> Iterable[str]:
        if search := metrics.get("search"):
            saved, share = 100 * (1 - search["kept_flops"]), 100 * search["share_of_training"]
            yield f"skipped    {', '.join(search['chosen'])}: {saved:.0f} % of operations saved"
            yield f"search     {search['seconds']:.1f} s, {share:.0f} % of search and training"

    @classmethod
    def draw(cls, run: Path) -> None:
        """The gates of a search, in search.png."""
        if (run / "search.json").is_file():
            plot_search(Found.model_validate_json((run / "search.json").read_text()), run / "search.png")

    @property
    def chosen_on_validation(self) -> str | None:
        return "skipped" if self.config.searches else None

    @property
    def skipped(self) -> frozenset[str]:
        return frozenset(self.config.skipped or ())

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of all blocks that might be skipped."""
        return tuple(name for name in self._widths if name not in self._needed)

    @property
    def most(self) -> dict[str, int]:
        """How many blocks of each tower may be skipped at once: one has to be left."""
        own, every = (Counter(name.partition(".")[0] for name in names) for names in (self.blocks, self._widths))
        return {tower: min(own[tower], count - 1) for tower, count in every.items()}

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        towers = [backbone.tower(name) for name in self.config.towers]
        named = {f"{tower.name}.{i}": (tower, block) for tower in towers for i, block in enumerate(tower.blocks)}
        self._widths = {name: tower.width for name, (tower, _) in named.items()}
        self._sites = {name: tuple(block.sites) for name, (_, block) in named.items()}  # type: ignore[arg-type]
        self._needed = frozenset().union(*map(_needed, towers))
        self._check()
        if self.config.imitate and (backbone.family != "dual encoder" or set(self.config.towers) != {"vision"}):
            raise AdaptError(
                f"das: imitate is {self.config.imitate}, and on {backbone.describe()} it stands in place of blocks of "
                f"{' and '.join(self.config.towers)}: those of a dual encoder's vision tower can be imitated, so leave "
                "it out"
            )
        self._device = backbone.device
        if self.config.searches:
            bypass = dict.fromkeys(self.blocks, ("bypass",))
            self._allocate({name: sites + bypass.get(name, ()) for name, sites in self._sites.items()})
        else:
            self._settle(self.skipped)
            kinds = {name: ("bypass",) if name in self.skipped else sites for name, sites in self._sites.items()}
            self._allocate(kinds)
        self.select(self.skipped)

    def _check(self) -> None:
        """AdaptError where too many blocks are to be skipped, or one that does not exist or is needed."""
        blocks, count, most = self.blocks, self.config.count or 0, sum(self.most.values())
        if count > most:
            may = f", of which {most} may be skipped" if most < len(self._widths) - 1 else ""
            raise AdaptError(f"das: skip is {count}, and there are {len(self._widths)} blocks{may}: keep some")
        skipped = self.config.skipped or ()
        for tower in self.config.towers:
            own = [name for name in self._widths if name.startswith(f"{tower}.")]
            if own and set(own) <= set(skipped):
                raise AdaptError(f"das: skipped names all {len(own)} blocks of the {tower} tower: keep some")
        for name in skipped:
            if name in self._needed:
                raise AdaptError(
                    f"das: skipped names {name!r}, and a decoder needs the first block of each kind of attention: "
                    "while it generates, masks and positions are read from that block's cache"
                )
            if name not in blocks:
                raise AdaptError(f"das: skipped names {name!r}; expected some of {', '.join(blocks)}")

    def select(self, names: Collection[str]) -> None:
        """Skips these blocks from now on, and no others."""
        self.selected = frozenset(names)

    def _settle(self, names: Collection[str]) -> None:
        """The settings of a method that skips these blocks for good."""
        places = {name: place for place, name in enumerate(self.blocks)}
        skipped = tuple(sorted(names, key=lambda name: places.get(name, -1)))  # unknown ones are refused by name later
        chosen = {"skipped": skipped, "skip": len(skipped), "keep_flops": None}
        self.config = self.config.model_copy(update=chosen)

    def prepare(self, training: Training) -> None:
        """The search, where the blocks are not named, after which all starts anew; and the imitation of blocks."""
        if self.config.searches:
            found = training.kept("search", Found) or self._search(training)
            self._settle(found.chosen)
            training.restart()
        if not training.resumed:
            training.seconds += self._imitate(training)

    def _search(self, training: Training) -> Found:
        search = Search(self, training)
        imitating = self._imitate(training)
        found = search.run()
        found.seconds = round(found.seconds + imitating, 3)
        training.keep("search", found)
        return found

    def _imitate(self, training: Training) -> float:
        bypasses = {
            f"{tower}.{index}": adapters["bypass"]
            for tower in self.config.towers
            for index, adapters in getattr(self, tower).items()
            if "bypass" in adapters
        }
        epochs = self.config.imitate
        return imitate(bypasses, epochs, training) if epochs and bypasses else 0.0

    def finish(self, training: Training) -> None:
        found = training.kept("search", Found)
        if found is not None:
            training.note(search=found.summary(training.seconds))

    def _allocate(self, kinds: Mapping[str, tuple[str, ...]]) -> None:
        """Adapters of the given kinds for each block, as `TOWER.BLOCK.KIND`."""
        for tower in self.config.towers:
            setattr(self, tower, nn.ModuleDict())
        for name, wanted in kinds.items():
            tower, index = name.split(".")
            width = self._widths[name]
            hidden = max(1, width // self.config.reduction)
            whole = len(self._sites[name]) * hidden
            adapters = {
                kind: Adapter(width, whole, True) if kind == "bypass" else Adapter(width, hidden, False)
                for kind in wanted
            }
            getattr(self, tower)[index] = nn.ModuleDict(adapters)
        self.to(self._device)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        edits: list[Edit] = []
        for index, adapters in getattr(self, tower.name, {}).items():
            name = f"{tower.name}.{index}"
            if name in self.selected:
                edits.append(Bypass(int(index), adapters["bypass"]))
            else:
                edits += [Parallel(int(index), site, adapters[site]) for site in self._sites[name]]
        return edits


def _needed(tower: Tower) -> frozenset[str]:
    """The blocks of a decoder that must stay: the first of each kind of attention."""
    if tower.name != "decoder":
        return frozenset()
    kinds = tower.form.kinds or ("full",) * len(tower.blocks)
    return frozenset(f"{tower.name}.{kinds.index(kind)}" for kind in kinds)

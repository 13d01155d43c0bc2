"""DAS: dynamic architecture skipping, where a bandit finds redundant blocks, and light adapters replace them.

Paper: Wu et al., Parameter and Computation Efficient Transfer Learning for Vision-Language Pre-trained Models,
NeurIPS 2023 (DAS).
Reference: DAS `1d6a0d6`, `ViLT/vilt/modules/vilt_module_search.py`, `meter_module_search.py`.
Deviations:
* Beside ViLT's blocks and decoder layers, as in the reference, it serves CLIP's towers for zero-shot classification,
  and BridgeTower's two cross-modal streams in place of METER's.
* A question has one answer, whose cross-entropy is the loss and gives the reward exp(-loss); the reference's loss is
  the binary cross-entropy of soft scores, times the number of answers.
* The frozen backbone stays in evaluation mode, so that there is no dropout; the reference trains, and measures most
  rewards, with 0.1.
* Trained beside adapters and head is what `trained_parts` names, by default nothing; the reference trains the pooler
  and the token types always, and METER's learned first text token, which BridgeTower lacks.
* Rewards come from successive batches of the validation images. The reference always uses its loader's first batch,
  in five of six settings of training images.
* An optimiser leaves out adapters that a step does not use; in the reference, once used, they move on by momentum.
* Gates are fp64, and in a tie the first block is skipped; a block is drawn with a probability of at least 1e-4, so that
  extreme gates still allow different subsets. A tower keeps at least one block.
* METER's rule has no learning rate; `gate_lr=1` is equivalent, and is also ViLT's value. The rate's warm-up is rounded
  up to a step, not down.
* Images are resized to a square, in fp32 or bf16, and are not augmented by RandAugment.
* Only the adapters that a block needs are allocated; the reference keeps both kinds for all blocks.
* Decoder blocks have ViLT's adapters, and the policy of ViLT; for LLaMA the reference has other adapters, a number of
  skipped blocks that grows, rewards of the training batch (LLaVA), and other rates. The first block of each kind of
  attention is never skipped, because the key-value cache is read there.
* Adapters in place of blocks may first imitate these blocks (`imitate`), as in FitNets (Romero et al., ICLR 2015),
  where a thin network first learns from hidden layers of the full one; the reference starts from random adapters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tower import Tower, TowerName
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.edits import Bypass, Edit, Parallel, Parameters
from adapt.methods.base import KINDS, Context, ImageStep, Method, ParameterGroup, Step, Training
from adapt.methods.base.method import tree
from adapt.methods.base.traits import ChoosesOnValidation, Reports, SkipsBlocks
from adapt.methods.das.search import Found, Search, plot_search
from adapt.methods.zero_shot import TemplateConfig

DEFAULT_SKIP = 2
_IMITATED = ("dual encoder", "vision encoder")  # the kinds whose vision blocks can be imitated
SiteName = Literal["attn", "cross", "mlp"]


class DASConfig(TemplateConfig):
    skip: int | None = Field(default=None, ge=0)
    """The number of blocks to skip, chosen by a search; 2 unless keep_flops or skipped is set."""
    keep_flops: float | None = Field(default=None, gt=0, lt=1)
    """In place of skip: the remaining share of the towers' operations, compared with all blocks and their adapters."""
    skipped: tuple[str, ...] | None = None
    """The skipped blocks, such as vision.3, in place of a search; training sets them."""
    towers: tuple[TowerName, ...] = ("vision",)
    """The searched towers: fusion (ViLT), text_fusion and vision_fusion (BridgeTower), decoder (language models)."""
    reduction: int = Field(default=8, ge=1)
    """The ratio of the tower's width to an adapter's hidden size; an adapter in place of a block has the sum of the
    hidden sizes of its sites."""
    search_epochs: int = Field(default=3, ge=1)
    """The epochs of the search."""
    warmup_epochs: int = Field(default=1, ge=0)
    """Epochs of the search before the gates first change."""
    turn: int = Field(default=10, ge=1)
    """The number of batches between two updates of the gates; each batch of an optimiser step counts."""
    draws: int = Field(default=3, ge=2)
    """The number of different subsets of blocks that an update compares."""
    gate_lr: float = Field(default=1.0, gt=0)
    """The learning rate of the gates. Rewards are exp(-loss): larger losses, as with distill, need a larger rate."""
    imitate: int = Field(default=0, ge=0)
    """Epochs in which adapters in place of vision blocks first learn to imitate the blocks, before a search and again
    before training, at the training's learning rate and with at most four images a step."""

    trained_parts: tuple[str, ...] = ()
    """Parts of a ViLT or BridgeTower that train too, by a word in the names of their parameters; published: pooler and
    token_type_embeddings."""
    head_rate: float = Field(default=1.0, gt=0)
    """The factor of the head's learning rate; published for VQA 2.0: 10 (ViLT), 50 (METER)."""
    kept_rate: float = Field(default=1.0, gt=0)
    """The factor of the learning rate of adapters beside kept blocks, and of poolers; published for METER: 5."""

    @model_validator(mode="after")
    def _consistent(self) -> DASConfig:
        if self.keep_flops is not None and (self.skip is not None or self.skipped is not None):
            raise ValueError("keep_flops cannot be combined with skip or skipped: use only keep_flops, or leave it out")
        if self.skipped is not None and not len(set(self.skipped)) == len(self.skipped) == self.count:
            raise ValueError(
                f"skipped has {len(set(self.skipped))} different blocks, but skip is {self.count}: use equal numbers"
            )
        if self.searches and self.warmup_epochs >= self.search_epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}; expected less than search_epochs, which is "
                f"{self.search_epochs}"
            )
        return self

    @property
    def count(self) -> int | None:
        """The number of blocks to skip, or None if the setting `keep_flops` decides how many."""
        if self.keep_flops is not None or self.skip is not None:
            return self.skip
        return DEFAULT_SKIP if self.skipped is None else len(self.skipped)

    @property
    def searches(self) -> bool:
        """Whether a search chooses the skipped blocks."""
        return self.skipped is None and self.count != 0


class Adapter(nn.Module):
    """An adapter `up(relu(down(norm(x))))`, `(..., d) -> (..., d)`, to which `residual` adds the input `x`."""

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
    """Block skipping with light adapters. `DAS(skip, towers)` trains adapters `TOWER.BLOCK.SITE` beside sublayers.

    `SITE` is a sublayer of a block, which is attn, mlp, or cross in a block that attends to another stream. A skipped
    block is replaced by one adapter, `TOWER.BLOCK.bypass`. During a search, every block has all these adapters, and
    `select` sets which blocks are skipped.
    """

    name = "das"
    title = "DAS (Wu et al., NeurIPS 2023)"
    serves = KINDS
    Config = DASConfig
    learns_any_step = True
    example = {"skipped": ["text.1"], "towers": ["text", "vision"]}
    _widths: dict[str, int]  # the width of each block, by its name
    _sites: dict[str, tuple[SiteName, ...]]  # the sites of each block, also of blocks that cannot be skipped

    @classmethod
    def lines(cls, metrics: JsonObject) -> Iterable[str]:
        if search := metrics.get("search"):
            saved, share = 100 * (1 - search["kept_flops"]), 100 * search["share_of_training"]
            yield f"skipped    {', '.join(search['chosen'])}: {saved:.0f} % of operations saved"
            yield f"search     {search['seconds']:.1f} s, {share:.0f} % of search and training"

    @classmethod
    def draw(cls, run: Path) -> None:
        """Plot each block's gate over the search of a run, and save the plot as search.png in the run directory."""
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
        """The names of all blocks that can be skipped."""
        return tuple(name for name in self._widths if name not in self._needed)

    @property
    def most(self) -> dict[str, int]:
        """The largest number of blocks that can be skipped in each tower, where at least one block must remain."""
        skippable, every = (Counter(name.partition(".")[0] for name in names) for names in (self.blocks, self._widths))
        return {tower: min(skippable[tower], count - 1) for tower, count in every.items()}

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        towers = [backbone.tower(name) for name in self.config.towers]
        named = {f"{tower.name}.{i}": (tower, block) for tower in towers for i, block in enumerate(tower.blocks)}
        self._widths = {name: tower.width for name, (tower, _) in named.items()}
        self._sites = {name: tuple(block.sites) for name, (_, block) in named.items()}  # type: ignore[arg-type]
        if closed := [name for name, sites in self._sites.items() if not sites]:
            raise AdaptError(
                f"das: only the linear maps in {closed[0]} of {backbone.describe()} can be changed, so that no block "
                "can be bypassed: set method.towers to other towers, or use lora"
            )
        self._needed = frozenset().union(*map(_needed, towers))
        self._check()
        if self.config.imitate and (backbone.kind not in _IMITATED or set(self.config.towers) != {"vision"}):
            raise AdaptError(
                f"das: imitate is {self.config.imitate} for {backbone.describe()} and the towers "
                f"{' and '.join(self.config.towers)}; expected the vision tower of a dual or vision "
                "encoder: leave imitate out"
            )
        self._device = backbone.device
        self.backbone_parts = tree(self._trained(backbone))
        if self.config.searches:
            bypass = dict.fromkeys(self.blocks, ("bypass",))
            self._allocate({name: sites + bypass.get(name, ()) for name, sites in self._sites.items()})
        else:
            self._settle(self.skipped)
            kinds = {name: ("bypass",) if name in self.skipped else sites for name, sites in self._sites.items()}
            self._allocate(kinds)
        self.select(self.skipped)

    def _trained(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        """Return copies of the backbone's parameters that the setting `trained_parts` names."""
        copies: dict[str, nn.Parameter] = {}
        for part in self.config.trained_parts:
            named = {name: each for name, each in backbone.model.named_parameters() if part in name}
            if not (named and backbone.kind == "fusion encoder"):
                raise AdaptError(
                    f"das: trained_parts has {part!r}, which is in no name of a parameter of {backbone.describe()}, or "
                    "it is no ViLT or BridgeTower: leave it out"
                )
            copies |= {name: nn.Parameter(each.detach().float().clone()) for name, each in named.items()}
        return copies

    def _check(self) -> None:
        """Raise AdaptError if the settings skip too many blocks, or a block that is missing or cannot be skipped."""
        blocks, count, most = self.blocks, self.config.count or 0, sum(self.most.values())
        if count > most:
            limit = f", of which {most} may be skipped" if most < len(self._widths) - 1 else ""
            raise AdaptError(
                f"das: skip is {count}, but there are {len(self._widths)} blocks{limit}: skip fewer blocks"
            )
        skipped = self.config.skipped or ()
        for tower in self.config.towers:
            own = [name for name in self._widths if name.startswith(f"{tower}.")]
            if own and set(own) <= set(skipped):
                raise AdaptError(
                    f"das: the setting skipped contains all {len(own)} blocks of the {tower} tower: name fewer blocks"
                )
        for name in skipped:
            if name in self._needed:
                raise AdaptError(
                    f"das: the setting skipped contains {name!r}, but a decoder needs the first block of each kind of "
                    "attention, whose cache supplies masks and positions during generation: name another block"
                )
            if name not in blocks:
                raise AdaptError(
                    f"das: the setting skipped contains {name!r}; expected names among {', '.join(blocks)}"
                )

    def select(self, names: Collection[str]) -> None:
        """Skip exactly the blocks `names` in all following forward passes."""
        self.selected = frozenset(names)

    def _settle(self, names: Collection[str]) -> None:
        """Store `names` in the method's settings as the blocks to skip."""
        places = {name: place for place, name in enumerate(self.blocks)}
        skipped = tuple(sorted(names, key=lambda name: places.get(name, -1)))  # `_check` refuses unknown names later
        chosen = {"skipped": skipped, "skip": len(skipped), "keep_flops": None}
        self.config = self.config.model_copy(update=chosen)

    def prepare(self, training: Training) -> None:
        """Search for the blocks to skip if the settings name no blocks, then train the bypasses to imitate blocks."""
        if self.config.searches:
            result = training.kept("search", Found)
            if result is None:
                search = Search(self, training)
                imitation_seconds = imitate(self, training)
                result = search.run()
                result.seconds = round(result.seconds + imitation_seconds, 3)
                training.keep("search", result)
            self._settle(result.chosen)
            training.restart()
        if not training.resumed:
            training.seconds += imitate(self, training)

    def finish(self, training: Training) -> None:
        result = training.kept("search", Found)
        if result is not None:
            training.note(search=result.summary(training.seconds))

    def _allocate(self, kinds: Mapping[str, tuple[str, ...]]) -> None:
        """Create the adapters `TOWER.BLOCK.KIND`, where `kinds` lists each block's adapters, such as attn or bypass."""
        for tower in self.config.towers:
            setattr(self, tower, nn.ModuleDict())
        for name, block_kinds in kinds.items():
            tower, index = name.split(".")
            width = self._widths[name]
            hidden = max(1, width // self.config.reduction)
            bypass_hidden = len(self._sites[name]) * hidden
            adapters = {
                kind: Adapter(width, bypass_hidden, True) if kind == "bypass" else Adapter(width, hidden, False)
                for kind in block_kinds
            }
            getattr(self, tower)[index] = nn.ModuleDict(adapters)
        self.to(self._device)

    def groups(self) -> Iterable[ParameterGroup]:
        """Return groups with the published factors of the rate; biases do not decay, as published."""
        rows = []
        for name, parameter in self.named_parameters():
            kept = name.startswith(self.config.towers) and ".bypass." not in name
            rate = self.config.kept_rate if kept or "pooler" in name else 1.0
            head = name.startswith("classifier.")
            rows.append((parameter, self.config.head_rate if head else rate, not name.endswith("bias")))
        return ParameterGroup.alike(rows)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        edits: list[Edit] = []
        trained = dict(self.backbone_parts.named_parameters())
        if trained and tower.name == self.config.towers[0]:
            edits.append(Parameters(trained))
        for index, adapters in getattr(self, tower.name, {}).items():
            name = f"{tower.name}.{index}"
            if name in self.selected:
                edits.append(Bypass(int(index), adapters["bypass"]))
            else:
                edits += [Parallel(int(index), site, adapters[site]) for site in self._sites[name]]
        return edits


def _needed(tower: Tower) -> frozenset[str]:
    """Return the decoder blocks that cannot be skipped, which are the first blocks of each kind of attention."""
    if tower.name != "decoder":
        return frozenset()
    kinds = tower.form.kinds or ("full",) * len(tower.blocks)
    return frozenset(f"{tower.name}.{kinds.index(kind)}" for kind in kinds)


IMAGES = 4  # images per step: few, because an adapter learns from every token of an image


def imitate(method: DAS, training: Training) -> float:
    """Train only the adapters that replace blocks, if so set and there are some, and return the duration in seconds.

    The recipe's learning rate and schedule are used without warm-up epochs, and a batch has at most four images.
    """
    bypasses = {
        f"{tower}.{index}": adapters["bypass"]
        for tower in method.config.towers
        for index, adapters in getattr(method, tower).items()
        if "bypass" in adapters
    }
    if not (method.config.imitate and bypasses):
        return 0.0

    return training.train(
        "imitating blocks",
        parameters=[each for bypass in bypasses.values() for each in bypass.parameters()],
        loss=lambda step: {"imitation": lacking_blocks(bypasses, step)},
        epochs=method.config.imitate,
        warmup_epochs=0,
        batch_size=min(IMAGES, training.settings.batch_size),
        accumulate=1,
    )


def lacking_blocks(bypasses: Mapping[str, nn.Module], step: ImageStep) -> Tensor:
    """Return the sum of the relative errors with which the adapters `bypasses` imitate blocks of the frozen backbone.

    In a tower with class-token pooling, the relative error at the class token is also added.
    """
    read_at_class = step.model.backbone.tower("vision").form.pooling == "class"
    errors = []
    for name, (before, after) in step.frozen_blocks(list(bypasses)).items():
        before, after = before.float(), after.float()
        imitated = bypasses[name](before).float()
        errors.append(_relative_error(before, imitated, after))
        if read_at_class:
            errors.append(_relative_error(before[:, 0], imitated[:, 0], after[:, 0]))
    return torch.stack(errors).sum()


def _relative_error(before: Tensor, imitated: Tensor, after: Tensor) -> Tensor:
    """Return `|imitated - after|^2 / |before - after|^2` for a block's input `before` and output `after` `(..., d)`."""
    return (imitated - after).square().sum() / (after - before).square().sum()

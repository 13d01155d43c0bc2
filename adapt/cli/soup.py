"""`adapt soup`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import click

from adapt.cli import options as common
from adapt.cli.options import Option, command
from adapt.common.devices import AUTO
from adapt.common.disk import check_free
from adapt.common.errors import AdaptError
from adapt.common.memory import readable_bytes
from adapt.common.shown import shown


@command()
def soup(
    adapters: tuple[Path, ...],
    *,
    out: Annotated[Path, "New .safetensors file to write."],
    weights: Annotated[str | None, "Weights of the adapters, separated by commas.  [default: a mean]"] = None,
    combination: Annotated[
        Literal["linear", "magnitude_prune", "ties", "dare_linear", "dare_ties"],
        "How to combine, as peft names it; all but linear are for LoRA, and need --density.",
    ] = "linear",
    density: Annotated[float | None, "Share of the entries of a change to keep, such as 0.2."] = None,
    rank: Annotated[
        int | None, Option("Rank of a LoRA soup.  [default: for linear the sum, else the adapters' own]", min=1)
    ] = None,
    seed: Annotated[int, Option("Seed for what dare drops.", min=0)] = 0,
    data: Annotated[
        str | None, Option("Take only adapters that help on this data's validation images.", "--greedy", metavar="DATA")
    ] = None,
    root: common.Root = None,
    backbone: common.OfAdapter = None,
) -> None:
    """Combine ADAPTERS, which may differ only in their trained weights, into one adapter with the same inference cost.

    For LoRA, the weight updates are combined. For other methods, the trained parameters are averaged.

    \b
    Examples:
      adapt soup runs/lora-1 runs/lora-2 runs/lora-3 --out soup.safetensors
      adapt soup runs/lora-1 runs/lora-2 --combination ties --density 0.3 --out ties.safetensors
      adapt soup runs/coop-1 runs/coop-2 runs/coop-3 --greedy photos --out greedy.safetensors
    """
    from adapt.data.readers import load as load_data

    check_free(out, "file")
    shares = None if weights is None else common.numbers("weights", weights, float)
    validation = None if data is None else load_data(data, root).val
    if validation == ():
        raise AdaptError(f"--greedy {data} has no validation images, on which adapters are compared: give other data")
    with common.quiet_libraries():
        from adapt.soups import soup as mixed

        model = mixed(
            adapters, shares, combination=combination, density=density, rank=rank, seed=seed, validation=validation,
            backbone=common.given_backbone(backbone, AUTO), tried=_print,
        )  # fmt: skip
        model.save(out)
    names = model.metadata["recipe"]["soup"]["ingredients"]
    click.echo(f"soup of {len(names)} of {len(adapters)} at {out} ({readable_bytes(out.stat().st_size)})")


def _print(name: str, accuracy: float, taken: bool) -> None:
    """Print whether the greedy soup includes the adapter `name`, and the soup's accuracy with that adapter added."""
    click.echo(f"{'taken' if taken else 'left':6} {100 * accuracy:5.1f} %  {shown(name)}")

"""`adapt extend`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from adapt.cli import options as common
from adapt.cli.options import command
from adapt.cli.train import say


@command()
def extend(
    run: Path,
    *,
    data: Annotated[str, f"Data with images of the new classes: {common.SOURCES}."],
    root: common.Root = None,
    names: common.ReadableNames = None,
    out: Annotated[Path, "Folder for the new run."],
    device: common.RecipeDevice = None,
    quiet: common.Quiet = False,
) -> None:
    """Add the classes in DATA to the adapter of a RUN, and write the new adapter to OUT.

    RUN is the folder of a run, whose images must still be there; --data has images of the new classes, and may have
    more of the known ones. As many images of each class are drawn as in RUN.

    \b
    A method in closed form, such as gda, is fitted to all images: the result is exactly that of
    training on all of them from the start. A method whose tensors belong to no class, such as lora,
    goes on from its adapter. Other methods are refused.

    \b
    Examples:
      adapt extend runs/gda --data more/ --out runs/gda-more
    """
    from adapt.recipe import DataSection

    with common.quiet_libraries():
        from adapt.training.extending import extended
        from adapt.training.run_recipe import run_recipe

        recipe = extended(run, DataSection(source=data, root=root, names=names), out)
        recipe = recipe if device is None else recipe.model_copy(update={"device": device})
        result = run_recipe(recipe, out, progress=not quiet)
    say(result)

"""Make the checkpoint and the few-shot set from nothing: `python make.py WORK`.

`MINI_CLIP=mini-clip-half python make.py WORK` makes the second one, in a work folder of its own.

Every step leaves a file in the work folder and is skipped when the file is there; the image tower goes on from its last
checkpoint. Two cores need about an hour and a half.
"""

import argparse
from pathlib import Path

import concepts
import export
import pack
import render
import sources
import teach
import text
import train
from shape import SHAPE


def main() -> None:
    """Run the steps that are not done yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for packages, renders and checkpoints (2 GB)")
    parser.add_argument("--image-minutes", type=float, default=SHAPE.minutes, help="time budget of the image tower")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    sources.fetch(work)
    steps = [
        ("concepts.json", lambda: concepts.save(work)),
        ("renders.json", lambda: render.save(work)),
        ("meanings.pt", lambda: teach.save_meanings(work)),
        ("looks.pt", lambda: teach.save_looks(work)),
        ("text.pt", lambda: text.save(work)),
    ]
    for product, step in steps:
        if not (work / product).exists():
            print(f"making {product}")
            step()
    train.save(work, arguments.image_minutes)
    export.save(work)
    if SHAPE.name == "mini-clip":
        pack.save(work)


if __name__ == "__main__":
    main()

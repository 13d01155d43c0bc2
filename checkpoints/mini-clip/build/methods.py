"""Methods on cached image features, on the bundled set: `python methods.py WORK` fills the table of docs/methods.md.

Runs that exist in the work folder are not repeated, so an interrupted measurement goes on.
"""

import argparse
import json
from pathlib import Path

import card
import curves
from card import TARGET

METHODS = {
    "linear_probe": "linear probe",
    "coop": "CoOp",
    "kgcoop": "KgCoOp",
    "prograd": "ProGrad",
    "tcp": "TCP",
    "tip_adapter": "Tip-Adapter",
    "tip_adapter/trained": "Tip-Adapter-F",
    "gda": "GDA",
    "gda method.views=10": "GDA, ten views",
    "lp_plus_plus": "LP++",
    "task_res": "TaskRes",
    "clap": "CLAP",
    "clap method.constraint=none": "ZS-LP",
    "clip_adapter": "CLIP-Adapter",
}


def main() -> None:
    """Measure what is missing, then write the figures and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="the work folder of make.py")
    refused = {("gda", 1)}  # one image a class has no spread
    results = curves.curves(parser.parse_args().work, METHODS, refused)
    (TARGET / "methods.json").write_text(json.dumps(results, indent=2) + "\n")
    page = TARGET.parents[1] / "docs" / "methods.md"
    shown = curves.table(results, METHODS)
    page.write_text(card.filled(page.read_text(), "few-shot", shown))
    print(shown)


if __name__ == "__main__":
    main()

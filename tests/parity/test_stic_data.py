"""What STIC does to images and to rows of conversations, against its code."""

from __future__ import annotations

import numpy
import published
import torch
from PIL import Image

from adapt.chats import IMAGE, Chat, Turn
from adapt.labelling.describing import Damage


def test_damage_and_descriptions() -> None:
    settings, expected = published.case("stic_data")
    image = Image.fromarray(expected["image"].numpy())
    for place, kind in enumerate(settings["kinds"]):
        if kind["kind"] == "resize":
            damage = Damage("small")
        else:
            damage = Damage("jitter", kind["brightness"], kind["hue"], hue_first=kind["order"][0] == "hue")
        expected.equal(f"corrupted.{place}", torch.from_numpy(numpy.asarray(damage(image)).copy()))

    rows = []
    for row, description in zip(settings["rows_before"], settings["descriptions"], strict=True):
        turns = [
            Turn("user" if each["from"] == "human" else "assistant", _parts(each["value"]))
            for each in row["conversations"]
        ]
        chat = Chat(tuple(turns)).with_context("Image description", description)
        values = ["".join("<image>" if part is IMAGE else part for part in turn.parts) for turn in chat.turns]
        rows.append(
            {
                "conversations": [
                    {"from": old["from"], "value": value}
                    for old, value in zip(row["conversations"], values, strict=True)
                ]
            }
        )
    settings.equal("rows_after", rows)


def _parts(text: str) -> tuple[str | None, ...]:
    pieces = text.split("<image>")
    parts = [part for piece in pieces for part in (piece, IMAGE)][:-1]
    return tuple(part for part in parts if part is IMAGE or part)

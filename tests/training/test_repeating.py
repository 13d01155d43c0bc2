"""What two adapters differ in: their tensors by block, and their images by hash."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapt.formats.adapter import NAME
from adapt.training.repeating import differences, provenance, tensor_changes


def test_a_block_changes_by_the_norm_of_its_difference() -> None:
    first = {"text.0.q.a": torch.tensor([3.0, 0.0]), "text.0.q.b": torch.tensor([4.0]), "ctx": torch.zeros(2)}
    second = {
        "text.0.q.a": torch.tensor([3.0, 2.5]),
        "text.0.q.b": torch.tensor([4.0]),
        "ctx": torch.tensor([-0.0, 0.0]),
    }
    lone = {"keys": torch.ones(2), "scale": torch.tensor(2.0)}
    same, tensors, blocks = tensor_changes(first | lone, second | {"keys": torch.ones(3), "scale": torch.tensor(2.0)})
    assert same == 2
    # minus zero has other bits
    assert tensors == {"text.0.q.a": 2.5, "ctx": 0.0, "keys": "of another shape or type"}
    assert blocks == {"text.0": pytest.approx(2.5 / 31.25**0.5), "ctx": 0.0, "scale": 0.0}


def test_images_are_known_by_their_files_wherever_they_are(train, tiny_split, tmp_path: Path) -> None:
    train(out=tmp_path / "run", epochs=1)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    first, second = provenance(tmp_path / "run"), provenance(tmp_path / "copy" / NAME)
    assert (first.machine, first.facts) == (second.machine, second.facts)
    assert differences(first, second).images == {"train images in both": [item.path for item in tiny_split.train]}
    seen, picks = ([{**row, "path": f"/moved{row['path']}"} for row in rows] for rows in (second.seen, second.picks))
    seen[0] |= {"image": "0" * 32, "path": seen[0]["path"].replace("0-0", "new")}
    seen[1]["image"], picks[2]["class"] = "1" * 32, "another"
    found = differences(first, replace(second, seen=seen, picks=picks)).images
    assert found.pop("train images in both") == [item.path for item in tiny_split.train[2:]]
    assert found == {
        "train images whose file has changed": [tiny_split.train[1].path],
        "train images only in the first": [tiny_split.train[0].path],
        "train images only in the second": [seen[0]["path"]],
        "train images with another label": [tiny_split.train[2].path],
    }


def test_tensors_are_read_from_the_files(train, tmp_path: Path) -> None:
    train(out=tmp_path / "one", epochs=1)
    train(out=tmp_path / "two", epochs=2)
    found = differences(provenance(tmp_path / "one"), provenance(tmp_path / "two"))
    one, two = (load_file(tmp_path / name / NAME)["ctx"] for name in ("one", "two"))
    assert found.tensors == {"ctx": float((one.double() - two.double()).abs().max())}
    assert found.blocks["ctx"] == pytest.approx(float((one - two).norm() / max(one.norm(), two.norm())), rel=1e-5)

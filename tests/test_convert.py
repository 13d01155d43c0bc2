"""Published checkpoints: CoOp's are imported, anything else in a pickle is refused and never run."""

from __future__ import annotations

import collections
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapt import AdaptError, Backbone
from adapt.convert import import_coop, read_dassl

NAMES = ("goldfish", "red_panda", "sea cucumber")


def dassl_checkpoint(path: Path, ctx: Tensor, **more: Any) -> Path:
    """What Dassl saves for CoOp: state, optimiser, and a schedule that holds the optimiser itself."""
    parameter = torch.nn.Parameter(ctx.clone())
    optimizer = torch.optim.SGD([parameter], lr=0.002, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    state = {"ctx": ctx, "token_prefix": torch.zeros(3, 1, 128), "token_suffix": torch.zeros(3, 60, 128)}
    content = {
        "state_dict": state,
        "epoch": 50,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": successor, "counts": collections.defaultdict(dict), "last_epoch": 50},
        "val_result": None,
    }
    torch.save(content | more, path)
    return path


class Runs:
    """A pickle that runs a command when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("shape", [(4, 128), (3, 4, 128)], ids=["unified", "class-specific"])
def test_a_coop_checkpoint_becomes_a_model(shape: tuple[int, ...], open_clip: Backbone, tmp_path: Path) -> None:
    ctx = torch.randn(shape)
    model = import_coop(dassl_checkpoint(tmp_path / "model.pth.tar-50", ctx.half()), open_clip, NAMES, "middle")
    assert torch.equal(model.method.ctx, ctx.half().float())
    assert model.method.config.class_position == "middle"
    assert model.method.per_class == (len(shape) == 3)
    assert model.class_features().shape == (3, 64)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = dassl_checkpoint(tmp_path / "model.pth.tar", torch.zeros(4, 128), val_result=Runs(marker))
    with pytest.raises(AdaptError, match=r"is refused: .*system") as caught:
        read_dassl(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_the_pickle_of_that_test_does_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = dassl_checkpoint(tmp_path / "model.pth.tar", torch.zeros(4, 128), val_result=Runs(marker))
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_reading_leaves_torchs_list_of_safe_names_as_it_was(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    read_dassl(dassl_checkpoint(tmp_path / "model.pth.tar", torch.zeros(4, 128)))
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="no checkpoint at"):
        read_dassl(tmp_path / "none.pth.tar")


@pytest.mark.parametrize("content", [{"epoch": 1}, {"state_dict": {"ctx": 3}}, [1, 2]])
def test_a_file_without_a_state(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(AdaptError, match="has no tensors under 'state_dict'"):
        read_dassl(tmp_path / "other.pt")


def test_bytes_that_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "noise.pt").write_bytes(b"not a pickle at all")
    with pytest.raises(AdaptError, match="is refused"):
        read_dassl(tmp_path / "noise.pt")


def test_a_checkpoint_of_another_method(open_clip: Backbone, tmp_path: Path) -> None:
    torch.save({"state_dict": {"meta_net.linear1.weight": torch.zeros(2)}}, tmp_path / "other.pt")
    with pytest.raises(AdaptError, match=r"no tensor 'ctx', but meta_net.linear1.weight"):
        import_coop(tmp_path / "other.pt", open_clip, NAMES)


def test_a_context_of_another_width(open_clip: Backbone, tmp_path: Path) -> None:
    path = dassl_checkpoint(tmp_path / "model.pth.tar", torch.zeros(4, 512))
    with pytest.raises(AdaptError, match=r"shape \(4, 512\).*expects \(4, 128\)"):
        import_coop(path, open_clip, NAMES)

"""Published checkpoints are imported; anything else in a pickle is refused and never run."""

from __future__ import annotations

import os
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dassl_files
import pytest
import tiny_backbones
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapt import AdaptError, Backbone
from adapt.formats.checkpoints import import_published, read_dassl

NAMES = ("goldfish", "red_panda", "sea cucumber")


def of(method: str, **sizes: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random tensors of a method on the tiny CLIP, and the state of a checkpoint that holds them."""
    tensors = {name: torch.randn(shape) for name, shape in _SHAPES[method](**sizes).items()}
    return tensors, _STATES.get(method, dassl_files.of_a_learner)(tensors)


def _cocoop(n_ctx: int = 4) -> dict[str, tuple[int, ...]]:
    first, second = {"weight": (4, 64), "bias": (4,)}, {"weight": (128, 4), "bias": (128,)}
    layers = {f"meta_net.linear{i}.{kind}": x for i, layer in ((1, first), (2, second)) for kind, x in layer.items()}
    return {"ctx": (n_ctx, 128), **layers}


def _maple(n_ctx: int = 2, depth: int = 3, width: int = 128) -> dict[str, tuple[int, ...]]:
    coupling = {"weight": (192, width), "bias": (192,)}
    shapes = {"ctx": (n_ctx, width)} | {f"proj.{kind}": shape for kind, shape in coupling.items()}
    for i in range(depth - 1):
        shapes |= {f"compound_prompt_projections.{i}.{kind}": shape for kind, shape in coupling.items()}
        shapes[f"compound_prompts_text.{i}"] = (n_ctx, width)
    return shapes


def _ivlp(n_text: int = 2, n_vision: int = 4, depth_text: int = 3, depth_vision: int = 2) -> dict[str, tuple[int, ...]]:
    text = {f"text.{block}": (n_text, 128) for block in range(depth_text if n_text else 0)}
    return text | {f"vision.{block}": (n_vision, 192) for block in range(depth_vision if n_vision else 0)}


_SHAPES: dict[str, Callable[..., dict[str, tuple[int, ...]]]] = {
    "coop": lambda n_ctx=4: {"ctx": (n_ctx, 128)},
    "cocoop": _cocoop,
    "kgcoop": lambda n_ctx=4: {"ctx": (n_ctx, 128)},
    "maple": _maple,
    "ivlp": _ivlp,
}
_STATES = {"kgcoop": dassl_files.of_kgcoop, "maple": dassl_files.of_maple, "ivlp": dassl_files.of_ivlp}
WORDS = "a photo of a"


class Runs:
    """A pickle that runs a command when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("shape", [(4, 128), (3, 4, 128)], ids=["unified", "class-specific"])
def test_a_coop_checkpoint_becomes_a_model(shape: tuple[int, ...], open_clip: Backbone, tmp_path: Path) -> None:
    ctx = torch.randn(shape).half()
    path = dassl_files.save(tmp_path / "model.pth.tar-50", dassl_files.of_a_learner({"ctx": ctx}))
    model = import_published(path, "coop", open_clip, NAMES, {"class_position": "middle"})
    assert torch.equal(model.method.ctx, ctx.float())
    assert model.method.config.class_position == "middle"
    assert model.method.per_class == (len(shape) == 3)
    assert model.class_features().shape == (3, 64)


@pytest.mark.parametrize(
    ("method", "sizes", "settings"),
    [
        pytest.param("coop", {"n_ctx": 8}, {"n_ctx": 8, "ctx_init": "", "class_specific": False}, id="coop"),
        pytest.param("cocoop", {"n_ctx": 4}, {"n_ctx": 4, "ctx_init": ""}, id="cocoop"),
        pytest.param("kgcoop", {"n_ctx": 6}, {"n_ctx": 6, "ctx_init": "", "class_specific": False}, id="kgcoop"),
        pytest.param("maple", {"n_ctx": 2, "depth": 3}, {"n_ctx": 2, "depth": 3, "ctx_init": WORDS}, id="maple"),
        pytest.param(
            "maple", {"n_ctx": 4, "depth": 1}, {"n_ctx": 4, "depth": 1, "ctx_init": WORDS}, id="maple shallow"
        ),
        pytest.param("maple", {"n_ctx": 5, "depth": 2}, {"n_ctx": 5, "depth": 2, "ctx_init": ""}, id="maple wide"),
        pytest.param(
            "ivlp",
            {},
            {"n_ctx_text": 2, "n_ctx_vision": 4, "depth_text": 3, "depth_vision": 2, "ctx_init": WORDS},
            id="ivlp",
        ),
        pytest.param("ivlp", {"n_text": 5, "n_vision": 0}, {"n_ctx_vision": 0, "ctx_init": ""}, id="language alone"),
        pytest.param(
            "ivlp",
            {"n_text": 0, "n_vision": 8, "depth_vision": 3},
            {"n_ctx_text": 0, "n_ctx_vision": 8, "depth_vision": 3, "ctx_init": WORDS},
            id="vpt",
        ),
    ],
)
def test_a_checkpoint_becomes_an_adapter_of_the_methods_tensors(
    method: str, sizes: dict[str, int], settings: dict[str, Any], images: Tensor, tmp_path: Path
) -> None:
    tensors, state = of(method, **sizes)
    path = dassl_files.save(tmp_path / "model.pth.tar-5", {name: tensor.half() for name, tensor in state.items()})
    backbone = tiny_backbones.backbone("open_clip")
    model = import_published(path, method, backbone, NAMES)
    assert settings.items() <= model.method.config.model_dump().items()
    assert model(images).shape == (len(images), len(NAMES))
    found = load_file(model.save(tmp_path / "adapter.safetensors"))
    assert found.keys() == tensors.keys()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert [name for name, tensor in tensors.items() if not torch.equal(found[name], tensor.half().float())] == []


def test_settings_that_are_given_win(open_clip: Backbone, tmp_path: Path) -> None:
    path = dassl_files.save(tmp_path / "model.pth.tar-5", of("maple")[1])
    model = import_published(path, "maple", open_clip, NAMES, {"ctx_init": "an image showing a"})
    assert model.method.config.ctx_init == "an image showing a"
    with pytest.raises(AdaptError, match=r"maple: unknown key 'n_ctxt'; did you mean 'n_ctx'"):
        import_published(path, "maple", open_clip, NAMES, {"n_ctxt": 2})


def test_importing_draws_nothing_from_the_global_stream(open_clip: Backbone, tmp_path: Path) -> None:
    path = dassl_files.save(tmp_path / "model.pth.tar-5", of("maple")[1])
    before = torch.get_rng_state()
    import_published(path, "maple", open_clip, NAMES)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = dassl_files.save(tmp_path / "model.pth.tar", of("coop")[1], val_result=Runs(marker))
    with pytest.raises(AdaptError, match=r"is refused: .*system") as caught:
        read_dassl(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_the_refusal_gives_the_reason_and_not_torchs_advice(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "options": Namespace(lr=1)}, tmp_path / "options.pt")
    with pytest.raises(AdaptError) as caught:
        read_dassl(tmp_path / "options.pt")
    assert str(caught.value) == (
        f"{tmp_path}/options.pt is refused: Unsupported global: GLOBAL argparse.Namespace was not an allowed global by "
        "default; only tensors and Dassl's own records are read"
    )
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "script.pt")
    with pytest.warns(match="TorchScript"), pytest.raises(AdaptError, match=r"is refused: it cannot be read"):
        read_dassl(tmp_path / "script.pt")


def test_the_pickle_of_that_test_does_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = dassl_files.save(tmp_path / "model.pth.tar", of("coop")[1], val_result=Runs(marker))
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_reading_leaves_torchs_list_of_safe_names_as_it_was(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    read_dassl(dassl_files.save(tmp_path / "model.pth.tar", of("coop")[1]))
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="no checkpoint at"):
        read_dassl(tmp_path / "none.pth.tar")


@pytest.mark.parametrize("content", [{"epoch": 1}, {"state_dict": {"ctx": 3}}, [1, 2]])
def test_a_file_without_a_state(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(AdaptError, match="expected tensors under 'state_dict'"):
        read_dassl(tmp_path / "other.pt")


def test_bytes_that_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "noise.pt").write_bytes(b"not a pickle at all")
    with pytest.raises(AdaptError, match="is refused"):
        read_dassl(tmp_path / "noise.pt")


@pytest.mark.parametrize(
    ("saved", "method", "message"),
    [
        ("coop", "cocoop", r"lacks meta_net.linear1.bias, .*, and does not fit its method cocoop"),
        ("coop", "ivlp", r"is not a checkpoint of ivlp: it has no tensor '?prompt_learner.ctx or image_encoder.VPT"),
        ("maple", "coop", r"is not a checkpoint of coop: it has no tensor 'ctx', but has image_encoder.conv1.weight, "),
        ("maple", "cocoop", r"is not a checkpoint of cocoop: it has no tensor 'ctx', but has image_encoder.conv1"),
        ("ivlp", "maple", r"lacks proj.bias, proj.weight, and does not fit its method maple"),
        ("cocoop", "maple", r"has no tensor .prompt_learner.ctx.*, but has ctx, meta_net"),
        ("cocoop", "coop", "meta_net.linear1"),
        ("maple", "ivlp", "compound_prompt|proj"),
    ],
)
def test_a_checkpoint_of_another_method(
    saved: str, method: str, message: str, open_clip: Backbone, tmp_path: Path
) -> None:
    path = dassl_files.save(tmp_path / "model.pth.tar-5", of(saved)[1])
    with pytest.raises(AdaptError, match=message):
        import_published(path, method, open_clip, NAMES)


@pytest.mark.parametrize(
    ("method", "sizes", "message"),
    [
        ("maple", {"depth": 4}, "maple: depth is 4, but the text tower has 3 blocks"),
        ("maple", {"width": 64}, r"tensor 'ctx' of \S+ has shape \(2, 64\); maple on this backbone expects \(2, 128\)"),
        ("ivlp", {"depth_text": 4}, "ivlp: depth_text is 4, but the text tower has 3"),
        ("ivlp", {"n_text": 0, "depth_vision": 4}, "ivlp: depth_vision is 4, but the vision tower has 3"),
    ],
)
def test_what_does_not_fit_the_backbone_is_named(
    method: str, sizes: dict[str, int], message: str, open_clip: Backbone, tmp_path: Path
) -> None:
    path = dassl_files.save(tmp_path / "model.pth.tar-5", of(method, **sizes)[1])
    with pytest.raises(AdaptError, match=message):
        import_published(path, method, open_clip, NAMES)


def test_a_missing_block_is_named(open_clip: Backbone, tmp_path: Path) -> None:
    state = of("ivlp")[1]
    del state["text_encoder.transformer.resblocks.1.VPT_shallow"]
    path = dassl_files.save(tmp_path / "model.pth.tar-5", state)
    with pytest.raises(AdaptError, match=r"lacks text\.1 and has the unknown text\.2, and does not fit its"):
        import_published(path, "ivlp", open_clip, NAMES)


@pytest.mark.parametrize("method", ["dpl", "lora", "linear_probe", "zero_shot"])
def test_methods_of_which_nothing_was_published(method: str, open_clip: Backbone, tmp_path: Path) -> None:
    path = dassl_files.save(tmp_path / "model.pth.tar-5", of("ivlp")[1])
    with pytest.raises(AdaptError, match=f"adapt cannot read published {method} checkpoints"):
        import_published(path, method, open_clip, NAMES)


def test_an_unknown_method(open_clip: Backbone, tmp_path: Path) -> None:
    path = dassl_files.save(tmp_path / "model.pth.tar-5", of("maple")[1])
    with pytest.raises(AdaptError, match="unknown method 'mapel'; did you mean 'maple'"):
        import_published(path, "mapel", open_clip, NAMES)


def test_a_context_of_another_width(open_clip: Backbone, tmp_path: Path) -> None:
    state = dassl_files.of_a_learner({"ctx": torch.zeros(4, 512)})
    path = dassl_files.save(tmp_path / "model.pth.tar", state)
    with pytest.raises(AdaptError, match=r"shape \(4, 512\).*expects \(4, 128\)"):
        import_published(path, "coop", open_clip, NAMES)


def test_an_expanded_tensor_is_refused_before_it_takes_its_memory(open_clip: Backbone, tmp_path: Path) -> None:
    huge = torch.zeros(1).half().expand(10**6, 1000)  # two bytes in the file, 3.7 GiB as floats
    path = dassl_files.save(tmp_path / "model.pth.tar-5", {"ctx": huge})
    assert path.stat().st_size < 10_000
    with pytest.raises(AdaptError, match=r"tensor 'ctx' of \S+ has shape \(1000000, 1000\), too large for the file's"):
        import_published(path, "coop", open_clip, NAMES)


def test_one_tensor_under_many_names_is_refused(tmp_path: Path) -> None:
    shared = torch.zeros(1000).half()
    path = dassl_files.save(tmp_path / "model.pth.tar-5", {f"token_prefix{i}": shared for i in range(10_000)})
    with pytest.raises(AdaptError, match=r"is refused: its tensors need 20,000,000 bytes, but the file has only"):
        read_dassl(path)


def test_a_packed_member_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    source = dassl_files.save(tmp_path / "whole.pth.tar", {"ctx": torch.zeros(4, 10**6)})
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for member in whole.infolist():
            packed.writestr(member.filename, whole.read(member))
    with pytest.raises(AdaptError, match=r"is compressed \(16,\d+,\d+ bytes when unpacked"):
        read_dassl(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.tensor(1.0), "its tensors have wrong shapes"),
        (torch.zeros(2, 2).to_sparse(), "'ctx' of .* is not a dense CPU tensor"),
        (torch.zeros(2, 128, device="meta"), "'ctx' of .* is not a dense CPU tensor"),
        (torch.full((2, 128), float("nan")), "'ctx' of .* not finite"),
    ],
)  # fmt: skip
def test_odd_tensors_of_a_pickle(tensor: Tensor, message: str, open_clip: Backbone, tmp_path: Path) -> None:
    path = dassl_files.save(tmp_path / "model.pth.tar-5", {"ctx": tensor})
    with pytest.raises(AdaptError, match=message):
        import_published(path, "coop", open_clip, NAMES)


def test_settings_that_ask_for_more_than_the_file_holds(open_clip: Backbone, tmp_path: Path) -> None:
    path = dassl_files.save(tmp_path / "model.pth.tar-5", of("coop")[1])
    with pytest.raises(AdaptError, match=r"its settings ask for far more than the 512 numbers"):
        import_published(path, "coop", open_clip, NAMES, {"n_ctx": 3_000_000})

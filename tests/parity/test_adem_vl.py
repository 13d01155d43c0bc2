"""ADEM-VL against the published code: fusion in a small LLaMA, and the adapter beside a block's MLP in CLIP."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import published
import tiny_llms
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, Transformer
from torch import Tensor, nn

from adapt import methods
from adapt.backbones.decoder import decoder_tower
from adapt.backbones.plain_clip import block_of
from adapt.backbones.tower import Form, Tower
from adapt.edits import Parallel
from adapt.engine.hooks import run
from adapt.methods.adem_vl import VisionAdapter


def language_model(settings: Any, weights: dict[str, Tensor]) -> nn.Module:
    """LLaMA in transformers' layout, whose rotary positions turn other pairs of numbers than the published one's."""
    sizes = {"hidden_size": "dim", "num_hidden_layers": "layers", "num_attention_heads": "heads"}
    llm = tiny_llms.causal(
        "LlamaConfig",
        **{name: settings[key] for name, key in sizes.items()},
        num_key_value_heads=settings["heads"],
        intermediate_size=len(weights["layers.0.feed_forward.w1.weight"]),
        vocab_size=settings["vocab"],
        rms_norm_eps=settings["norm_eps"],
        head_dim=settings["dim"] // settings["heads"],
        tie_word_embeddings=False,
    )()
    state = {
        "model.embed_tokens.weight": weights["tok_embeddings.weight"],
        "model.norm.weight": weights["norm.weight"],
        "lm_head.weight": weights["output.weight"],
    }
    for layer in range(settings["layers"]):
        for theirs, ours in published.OF_LLAMA.items():
            weight = weights[f"layers.{layer}.{theirs}.weight"]
            if theirs in ("attention.wq", "attention.wk"):
                dim, heads = settings["dim"], settings["heads"]
                weight = weight.view(heads, dim // heads // 2, 2, dim).transpose(1, 2).reshape(dim, dim)
            state[f"model.layers.{layer}.{ours}.weight"] = weight
    llm.load_state_dict(state)
    return llm.eval().requires_grad_(False)


def built(settings: Any) -> Any:
    """The method at the case's sizes."""
    method = methods.ADEMVL(
        scales=settings["down_sample_num"],
        hidden=settings["hidden_proj"],
        alpha=settings["alpha"],
        beta=settings["beta"],
        dropped=settings["drop_ratio"],
        class_token=settings["with_cls"],
        vision_dim=0,
    )
    width = settings["visual_dim"]
    eyes = SimpleNamespace(final_norm=nn.LayerNorm(width), form=SimpleNamespace(pooling="class"))
    towers = {"vision": eyes, "decoder": SimpleNamespace(width=settings["dim"])}
    backbone: Any = SimpleNamespace(
        tower=towers.__getitem__,
        patch_shape=lambda: (settings["patch_grid"] ** 2, width),
        device=torch.device("cpu"),
    )
    method.build(backbone, ())
    return method


def test_adem() -> None:
    """One row with an image and one without: features, what each block adds, logits, the loss and all gradients."""
    settings, expected = published.case("adem")
    weights, method = expected.under("param."), built(settings)
    own = {key: value for key, value in weights.items() if key.startswith("adapter_")}
    method.load_state_dict(own)
    llm: Any = language_model(settings, weights)
    features = expected["features"]
    has_image = torch.tensor(settings["indicators"])[:, None, None]
    visual = has_image * method.visual(features[:, 1:])
    expected.scaled("visual", visual)

    token, added = method.adapter_proj_cls(features[:, 0]), list[Tensor]()
    embedded, labels = prompts(expected, llm, token)
    edits = method.fusions(visual, settings["layers"])
    edits[0].module.register_forward_hook(lambda module, inputs, output: added.append(output / settings["alpha"]))
    logits = run(llm, [(decoder_tower(llm), edits)], lambda: llm(inputs_embeds=embedded).logits)
    for block, each in enumerate(added):
        expected.scaled(f"added.{block}", each)
    assert len(added) == settings["layers"]
    expected.scaled("logits", logits)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=0)
    expected.scaled("loss", loss)
    loss.backward()
    for key in own:
        expected.relative(f"grad.{key}", method.get_parameter(key).grad)


def prompts(expected: published.Stored, llm: Any, token: Tensor) -> tuple[Tensor, Tensor]:
    """The embedded rows `(2, l, d)`, with words and the class token behind the first token, and their labels."""
    embed, rows, targets = llm.get_input_embeddings(), [], []
    for row, prefix in enumerate((expected["prefix_img"], expected["prefix_nonimg"])):
        ids, labels = expected["ids"][row], expected["labels"][row]
        behind = [embed(prefix)] + ([token[row : row + 1]] if row == 0 else [])
        before = torch.cat([embed(ids[:1]), *behind])
        rows.append(torch.cat([before, embed(ids[1:])]))
        targets.append(torch.cat([labels.new_zeros(len(before)), labels[1:]]))
    longest = max(int(each.nonzero().max()) for each in targets) + 1
    return torch.stack([each[:longest] for each in rows]), torch.stack([each[:longest] for each in targets])


def test_adem_clip() -> None:
    settings, expected = published.case("adem_clip")
    width = settings["width"]
    transformer = Transformer(width, 1, settings["heads"], act_layer=QuickGELU, batch_first=False)
    weights = expected.under("param.block.")
    theirs = {key: value for key, value in weights.items() if not key.startswith("adapter_mlp")}
    transformer.resblocks[0].load_state_dict(theirs)
    adapter = VisionAdapter(width, settings["adapter_dim"], settings["s"], dropout=0.1).eval()
    adapter.load_state_dict({key: weights[f"adapter_mlp.{key}"] for key in adapter.state_dict()})
    blocks = tuple(map(block_of, transformer.resblocks))
    tower = Tower("vision", width, settings["heads"], Form(causal=False, pooling="class"), blocks)
    edit = Parallel(0, "mlp", adapter, normed=True)
    y = run(transformer, [(tower, [edit])], lambda: transformer.resblocks[0](expected["x"]))
    expected.scaled("y", y)
    (y * expected["upstream"]).sum().backward()
    for key, parameter in adapter.named_parameters():
        expected.relative(f"grad.block.adapter_mlp.{key}", parameter.grad)

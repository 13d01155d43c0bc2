"""The untrained model: transformers' ViLT with the bundled CLIP's image tower inside, as ViLT started from a ViT."""

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor
from transformers import PreTrainedTokenizerFast, ViltConfig, ViltForQuestionAnswering

import adapt
from adapt.data.emoji import questions

SHAPE = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 576,
    "image_size": 64,
    "patch_size": 8,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def new_model(tokenizer: PreTrainedTokenizerFast, images: Tensor) -> ViltForQuestionAnswering:
    """`images` (b, 3, 64, 64) show how large the values of patches are."""
    answers = questions.answers()
    config = ViltConfig(
        **SHAPE,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=tokenizer.model_max_length,
        id2label=dict(enumerate(answers)),
        label2id={answer: number for number, answer in enumerate(answers)},
    )
    model = ViltForQuestionAnswering(config)
    tower = adapt.load_backbone("mini-clip").model.visual
    with torch.no_grad():
        _copy_image_embeddings(model, tower, images)
        _copy_class_token(model, tower, tokenizer.cls_token_id)
        _copy_blocks(model, tower)
    return model


def _copy_image_embeddings(model: ViltForQuestionAnswering, tower: VisionTransformer, images: Tensor) -> None:
    """CLIP normalises patches and positions before the first block and ViLT does not: the mean scale goes into both."""
    tokens = tower.conv1(images).flatten(2).mT + tower.positional_embedding[1:]
    scale = tower.ln_pre.weight / tokens.std(-1).mean()
    ours = model.vilt.embeddings
    ours.patch_embeddings.projection.weight.copy_(tower.conv1.weight * scale.view(-1, 1, 1, 1))
    ours.patch_embeddings.projection.bias.copy_(tower.ln_pre.bias)
    ours.position_embeddings.copy_(tower.positional_embedding * scale)
    ours.cls_token.copy_(tower.class_embedding * scale)


def _copy_class_token(model: ViltForQuestionAnswering, tower: VisionTransformer, cls: int) -> None:
    """ViLT pools at the text's first token, so `[CLS]` starts as CLIP's class token; the other words are random."""
    ours = model.vilt.embeddings.text_embeddings
    start = tower.class_embedding + tower.positional_embedding[0]
    ours.LayerNorm.load_state_dict(tower.ln_pre.state_dict())
    ours.word_embeddings.weight.normal_(0, float(start.std()))
    ours.word_embeddings.weight[cls] = start


def _copy_blocks(model: ViltForQuestionAnswering, tower: VisionTransformer) -> None:
    for ours, theirs in zip(model.vilt.encoder.layer, tower.transformer.resblocks, strict=True):
        inner = ours.attention.attention
        weights, biases = theirs.attn.in_proj_weight.chunk(3), theirs.attn.in_proj_bias.chunk(3)
        for projection, weight, bias in zip((inner.query, inner.key, inner.value), weights, biases, strict=True):
            projection.weight.copy_(weight)
            projection.bias.copy_(bias)
        pairs = {
            ours.attention.output.dense: theirs.attn.out_proj,
            ours.intermediate.dense: theirs.mlp.c_fc,
            ours.output.dense: theirs.mlp.c_proj,
            ours.layernorm_before: theirs.ln_1,
            ours.layernorm_after: theirs.ln_2,
        }
        for to, source in pairs.items():
            to.load_state_dict(source.state_dict())
    model.vilt.layernorm.load_state_dict(tower.ln_post.state_dict())

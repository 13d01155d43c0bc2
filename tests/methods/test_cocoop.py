"""CoCoOp: the length of the context, and the size of the network that shifts it."""

from __future__ import annotations

import pytest

import adapt
from adapt import Backbone, methods

NAMES = ("goldfish", "red_panda")


@pytest.mark.parametrize(
    ("config", "n_ctx"),
    [
        ({}, 4),  # as long as "a photo of a"
        ({"ctx_init": "an image"}, 2),
        ({"ctx_init": "", "n_ctx": 3}, 3),
        ({"ctx_init": ""}, 4),
    ],
)
def test_the_context_is_as_long_as_its_words_or_as_asked_for(
    open_clip: Backbone, config: dict[str, object], n_ctx: int
) -> None:
    model = adapt.wrap(open_clip, methods.CoCoOp(**config), NAMES)
    assert model.method.ctx.shape == (n_ctx, 128)


@pytest.mark.parametrize(("seen", "hidden"), [(240, 15), (64, 4), (8, 1)])
def test_the_networks_hidden_width_is_a_sixteenth_of_its_input_and_one_at_least(
    open_clip: Backbone, seen: int, hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods.CoCoOp, "_seen", lambda *_: seen)
    method = methods.CoCoOp()
    method.build(open_clip, NAMES)  # without a first step, for which the backbone's features do not have that length
    layers = method.meta_net
    assert (layers.linear1.weight.shape, layers.linear2.weight.shape) == ((hidden, seen), (128, hidden))

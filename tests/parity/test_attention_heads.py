"""SAVs and HEC in attention heads, and the vectors of the heads themselves, against the published implementations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny_natives
import torch
import torch.nn.functional as F
from PIL import Image
from published import Stored, case
from torch import Tensor
from trainings import watched

from adapt.backbones.native import ChatRows
from adapt.backbones.native_eyes import NativeEyes
from adapt.chats import Chat
from adapt.methods import HEC, SAVs

NAMES = ["heads_given", "heads_unequal", "heads_qwen", "heads_onevision"]
READ = ["heads_qwen", "heads_onevision"]


class Support:
    """The stored vectors of a case as a training, whose backbone reads the class names as the stored vectors."""

    def __init__(self, settings: Stored, tensors: Stored) -> None:
        given = "support" in tensors
        self.settings, self.vectors = settings, tensors["support" if given else "heads"]
        self.query, texts = (tensors[key] for key in (("query", "text") if given else ("query_heads", "text_heads")))
        self._labels = tensors["labels"]
        self.backbone = SimpleNamespace(
            heads=tuple(self.vectors.shape[1:]),
            device=torch.device("cpu"),
            question="?",
            read_texts=lambda names: texts.flatten(1),
        )
        self.model = SimpleNamespace(backbone=self.backbone, class_names=settings["names"])

    def features(self, part: str, *, unit: bool) -> Tensor:
        assert not unit
        return self.vectors.flatten(1)

    def labels(self, part: str) -> Tensor:
        return self._labels

    def built(self, method: Any) -> Any:
        method.build(self.backbone, self.settings["names"])
        return method

    def asked(self, vectors: Tensor) -> Any:
        return SimpleNamespace(features=F.normalize(vectors.flatten(1), dim=-1))


def hec(training: Support, by: str) -> HEC:
    settings = training.settings
    return training.built(
        HEC(
            by=by,
            heads=settings["k"],
            name_heads=settings["k_text"],
            temperature=settings["tau"],
            name_temperature=settings["tau_text"],
            ridge=settings["cov_reg"],
            alpha=settings["alpha"],
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_savs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, stored = case(name)
    training = Support(settings, stored)
    method = training.built(SAVs(heads=settings["k"]))
    with watched(monkeypatch, method, "keep") as calls, watched(monkeypatch, method, "score") as scored:
        method.prepare(training)
    [((_, _, fitted), _)] = calls
    stored.equal("savs.success_count", torch.stack([score for _, score in scored]))
    if settings["tie_at_cut"]:  # which of equal heads are kept is chance there
        method.heads = stored["savs.top_heads"]
        method.weight = torch.stack([fitted[head][0] for head in method.heads]).float()
    stored.equal("savs.top_heads", sorted(method.heads.tolist()), lambda heads: sorted(heads.tolist()))
    order = [method.heads.tolist().index(head) for head in stored["savs.top_heads"]]
    stored.scaled(
        "savs.class_activations", method.weight[order].transpose(0, 1), lambda means: F.normalize(means, dim=-1)
    )
    asked = training.asked(training.query)
    stored.equal("savs.votes", method.votes(asked.features).sum(1).long())
    logits = method.logits(asked)
    sure = ~stored["savs.tied"]
    stored.equal("savs.predictions", logits.argmax(-1)[sure], lambda own: own[sure])


@pytest.mark.parametrize("name", NAMES)
def test_hec(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, stored = case(name)
    training = Support(settings, stored)
    for by, prefix in (("images", "v"), ("names", "t")):
        method = hec(training, by)
        with watched(monkeypatch, method, "score") as scored:
            method.prepare(training)
        stored.scaled(f"{prefix}.scores", torch.stack([score for _, score in scored]).float())
        stored.equal(f"{prefix}.heads", sorted(method.heads.tolist()), lambda heads: sorted(heads.tolist()))
        stored.scaled(f"{prefix}.prob", method.logits(training.asked(training.query)).exp())
        if by == "images":
            best = method.heads.tolist().index(int(stored["v.heads"][0]))
            of_best = method.of_heads(training.asked(training.vectors).features)[:, best]
            stored.scaled("v.logits", (of_best * settings["tau"]).log_softmax(-1), lambda own: own.log_softmax(-1))
    if "vt.prob" in stored:
        method = hec(training, "both")
        method.prepare(training)
        stored.scaled("vt.prob", method.logits(training.asked(training.query)).exp())


@pytest.mark.parametrize("name", READ)
def test_heads_are_read_where_the_answer_begins(name: str) -> None:
    settings, stored = case(name)
    eyes = NativeEyes(tiny_natives.backbone(settings["family"], settings["seed"]), "heads")
    eyes.question = settings["prompt"]
    settings.equal("rendered", eyes.native.render(Chat.about(eyes.question), asks=True))
    with torch.no_grad():
        stored.scaled("text_heads", eyes.read_texts(settings["class_prompts"]).unflatten(-1, eyes.heads))
        if "query_images" in stored:
            pictures = [[Image.fromarray(each.permute(1, 2, 0).numpy())] for each in stored["query_images"]]
            stored.scaled("query_heads", eyes.read_images(pictures).unflatten(-1, eyes.heads))
            return
        for key, batch in (("query_heads", "query_batch"), ("text_heads", "text_batch")):
            rows = ChatRows(stored.under(f"{batch}."), torch.empty(0))  # padded on the left
            stored.scaled(key, eyes.at_answers(rows).unflatten(-1, eyes.heads))

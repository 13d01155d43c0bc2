"""Embeddings over HTTP are the model's features, in each of the forms in which clients ask for them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tiny_vision
import torch
from starlette.testclient import TestClient
from torch import Tensor

import adapt
from adapt import AdaptedModel, Backbone
from adapt.data import open_image
from adapt.methods import GDA, LoRA
from adapt.retrieval.index import index_texts
from adapt.serving.adapters import Served, ServedAdapters

Serve = Callable[..., TestClient]
TEXTS = ["a red panda", "a goldfish, and much more of it than fits into one bowl"]


def in_base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def uri(image: bytes) -> str:
    return f"data:image/png;base64,{in_base64(image)}"


def post(client: TestClient, **asked: Any) -> Any:
    return client.post("/v1/embeddings", json={"model": "lora"} | asked)


def embedded(client: TestClient, **asked: Any) -> Tensor:
    answer = post(client, **asked)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert [each["index"] for each in body["data"]] == [*range(len(body["data"]))]
    return torch.tensor([each["embedding"] for each in body["data"]])


def close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() < 1e-5)


@pytest.fixture
def expected(models: dict[str, AdaptedModel], images: list[bytes]) -> Tensor:
    """Features by `lora` of both texts and of the first two images."""
    found = models["lora"].predict(images[:2], features=True)
    return torch.cat([index_texts(models["lora"], TEXTS).features, torch.stack([each.features for each in found])])


def test_each_form_gives_the_features_of_the_model(serve: Serve, images: list[bytes], expected: Tensor) -> None:
    client, uris = serve(), [uri(image) for image in images[:2]]
    assert close(embedded(client, input=[*TEXTS, *uris]), expected)
    assert close(embedded(client, input=[uris[1], TEXTS[0], uris[0]]), expected[[3, 0, 2]])
    assert close(embedded(client, input=TEXTS[1]), expected[1:2])
    jina = [{"text": TEXTS[0]}, {"image": in_base64(images[0])}, {"image": uris[1]}]
    found = embedded(client, input=jina, normalized=True, embedding_type="float", user=None)
    assert close(found, expected[[0, 2, 3]])
    for part, row in (
        ({"type": "text", "text": TEXTS[1]}, 1),
        ({"type": "image_url", "image_url": {"url": uris[0]}}, 2),
    ):
        asked = {"messages": [{"role": "user", "content": [part]}], "encoding_format": "float"}
        assert close(embedded(client, **asked), expected[row : row + 1])


def test_the_client_of_openai_asks(serve: Serve, images: list[bytes], expected: Tensor) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=serve())
    inputs = [*TEXTS, *map(uri, images[:2])]
    for more in ({}, {"encoding_format": "float"}):  # by default it asks for base64
        found = client.embeddings.create(model="lora", input=inputs, **more).data
        assert close(torch.tensor([each.embedding for each in found]), expected)
    with pytest.raises(openai.BadRequestError, match="coop learned prompt tokens"):
        client.embeddings.create(model="coop", input=TEXTS)
    assert [each.id for each in client.models.list()] == ["coop", "lora"]


def test_base64_has_the_bytes_of_floats(serve: Serve) -> None:
    client = serve()
    floats = embedded(client, input=TEXTS)
    coded = post(client, input=TEXTS, encoding_format="base64").json()
    found = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4").copy() for each in coded["data"]]
    assert torch.equal(torch.tensor(np.stack(found)), floats)
    assert coded["usage"] == {"prompt_tokens": 5 + 15, "total_tokens": 5 + 15}
    assert (coded["object"], coded["model"], coded["data"][0]["object"]) == ("list", "lora", "embedding")


def test_fewer_dimensions_have_unit_length(serve: Serve, expected: Tensor) -> None:
    client = serve()
    short = torch.nn.functional.normalize(expected[:2, :4], dim=-1)
    assert close(embedded(client, input=TEXTS, dimensions=4), short)
    refused = post(client, input=TEXTS, dimensions=10_000).json()["error"]["message"]
    assert refused == f"dimensions is 10000; lora gives {expected.shape[-1]} values"


@pytest.mark.full
def test_eight_clients_at_once_get_the_answers_of_one(serve: Serve, images: list[bytes], expected: Tensor) -> None:
    """`model` names the adapter of each request; those of several adapters wait beside each other."""
    client = serve()
    asked = [
        {"model": model, "input": [uri(images[number % 4]), *([] if model == "coop" else [TEXTS[number % 2]])]}
        for number in range(12)
        for model in ("lora", "coop")
    ]
    alone = [embedded(client, **each) for each in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda each: embedded(client, **each), asked * 3))
    assert all(map(close, together, alone * 3))
    assert close(alone[0], expected[[2, 0]])
    assert not close(alone[0][:1], alone[1])
    counted = client.get("/metrics").text
    assert 'adapt_images_total{adapter="lora"} 48.0' in counted


def test_an_adapter_without_classes_embeds(serve: Serve, served: ServedAdapters, open_clip: Backbone) -> None:
    model = adapt.wrap(open_clip, LoRA(rank=2)).eval()
    served.now = Served({**served.now.models, "pairs": model}, served.now.default)
    client = serve()
    assert close(embedded(client, model="pairs", input=TEXTS), index_texts(model, TEXTS).features)
    refused = client.post("/predict", json={"images": [""], "adapters": ["pairs"]})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("pairs has no classes: send images and texts with its name to")


def test_a_model_of_images_alone_embeds_images(serve: Serve, served: ServedAdapters, images: list[bytes]) -> None:
    model = adapt.wrap(tiny_vision.backbone("dinov2"), GDA(), ("cat", "dog")).eval()
    served.now = Served({"eyes": model}, "eyes")
    client = serve()
    found = embedded(client, model="eyes", input=[uri(images[0])])
    assert close(found, model.image_features(model.batched([model.transform()(open_image(images[0]))])))
    refused = post(client, model="eyes", input=[TEXTS[0]]).json()["error"]["message"]
    assert "reads no texts, as a vision encoder backbone has no text tower: use a dual encoder" in refused


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"input": []}, 400, "expected at least one text or image, in input or in messages"),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, 400, "in input or in messages"),
        ({"input": [" "]}, 400, "a text has 1 characters; expected 1 to"),
        ({"input": "panda " * 900}, 400, "a text has 5,400 characters; expected 1 to"),
        ({"input": "panda " * 100}, 400, "shorten the text"),
        ({"input": [[1, 2]]}, 400, "input"),
        ({"input": [{"text": "a", "image": "b"}]}, 400, "input"),
        ({"input": [{"image": "https://a.org/b.png"}]}, 400, "image 1 is 'https://a.org/b.png'; expected data:"),
        ({"input": [{"image": "?"}]}, 400, "image 1 is not valid base64"),
        ({"input": [{"image": "YQ=="}]}, 400, "image 1"),
        ({"input": ["a"] * 5}, 400, "5 texts and images were sent; expected at most 4"),
        ({"input": "a", "encoding_format": "binary"}, 400, "encoding_format"),
        ({"input": "a", "normalized": False}, 400, "normalized"),
        ({"input": "a", "task": "retrieval.query"}, 400, "task"),
        ({"input": "a", "model": "nobody"}, 404, "there is no adapter 'nobody'"),
        ({"input": "a", "model": "coop"}, 400, "coop learned prompt tokens for its class names, and cannot encode"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}]}, 400, "has 2 parts"),
    ],
    ids=str,
)
def test_what_cannot_be_embedded_is_named(asked: dict[str, Any], status: int, words: str, serve: Serve) -> None:
    answer = post(serve(images=4), **asked)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]

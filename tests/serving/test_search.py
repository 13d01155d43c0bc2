"""Search of an index over HTTP gives what `adapt search` gives, to the last bit."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from starlette.testclient import TestClient

from adapt import AdaptedModel, AdaptError
from adapt.cli.index import search as command
from adapt.models.unadapted import unadapted
from adapt.retrieval.index import index_images, index_texts
from adapt.serving.adapters import ServedAdapters
from adapt.serving.admission import Limits
from adapt.serving.app import create_app

BACKBONE = "mini-clip"
ENTRIES = ["a goldfish in a bowl", "a lime tree", "two red pandas", "the sky"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Indexes of a backbone alone, and images to search them by."""
    from PIL import Image

    import adapt

    folder = tmp_path_factory.mktemp("indexes")
    model = adapt.wrap(adapt.load_backbone(BACKBONE), adapt.methods.ZeroShot(), ("object",)).eval()
    paths = []
    for number, colour in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200)]):
        paths.append(str(folder / f"{number}.png"))
        Image.new("RGB", (40, 30), colour).save(paths[-1])
    index_texts(model, ENTRIES).save(folder / "texts.safetensors")
    index_images(model, paths).save(folder / "photos.safetensors")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> ServedAdapters:
    return ServedAdapters([], indexes=[f"{folder}/texts.safetensors", f"pictures={folder}/photos.safetensors"])


def post(served: ServedAdapters, limits: Limits | None = None, **asked: Any) -> Any:
    with TestClient(create_app(served, limits), raise_server_exceptions=False) as client:
        return client.post("/search", json=asked)


def uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def searched(*arguments: object) -> list[list[dict[str, Any]]]:
    """What the command finds for each query."""
    ran = CliRunner().invoke(command, [*map(str, arguments), "--json"])
    assert ran.exit_code == 0, ran.output
    return [json.loads(line)["found"] for line in ran.stdout.splitlines()]


@pytest.mark.parametrize(("name", "index"), [("texts", "texts"), ("pictures", "photos")])
def test_texts_and_images_find_what_the_command_finds(
    name: str, index: str, served: ServedAdapters, folder: Path
) -> None:
    image = folder / "1.png"
    asked: dict[str, Any] = {"index": name, "input": ["a lime tree", uri(image), {"text": "red"}], "top_k": 2}
    answer = post(served, **asked)
    assert answer.status_code == 200, answer.text
    expected = searched(folder / f"{index}.safetensors", "a lime tree", image, "red", "--top-k", 2)
    assert answer.json() == {"results": expected}
    assert [len(found) for found in expected] == [2, 2, 2]
    assert post(served, index=name, input="red").json()["results"] == searched(folder / f"{index}.safetensors", "red")


def test_a_text_changes_an_image(served: ServedAdapters, folder: Path) -> None:
    image = folder / "1.png"
    found = post(served, index="texts", input=uri(image), text="at night", share=0.4).json()["results"]
    assert found == searched(folder / "texts.safetensors", image, "--text", "at night", "--slerp", 0.4)
    assert found != post(served, index="texts", input=uri(image)).json()["results"]


def test_a_pseudo_word_changes_an_image_as_the_command_has_it(folder: Path, tmp_path: Path) -> None:
    import adapt

    torch.manual_seed(1)
    model = adapt.wrap(adapt.load_backbone(BACKBONE), adapt.methods.PseudoWord(hidden=8))
    model.save(tmp_path / "word.safetensors")
    beside = ServedAdapters([f"{tmp_path}/word.safetensors"], indexes=[f"{folder}/texts.safetensors"])
    asked: dict[str, Any] = {"index": "texts", "input": uri(folder / "1.png"), "text": "at night"}
    expected = searched(
        folder / "texts.safetensors", folder / "1.png", "--text", "at night", "--adapter", tmp_path / "word.safetensors"
    )
    assert post(beside, **asked).json()["results"] == expected
    answer = post(beside, **asked, share=0.4)
    assert (answer.status_code, "leave" in answer.json()["detail"]) == (422, True), answer.text


def test_eight_at_once_find_what_one_finds(served: ServedAdapters, folder: Path) -> None:
    asked: dict[str, Any] = {"index": "texts", "input": ["a lime tree", uri(folder / "1.png")]}
    with TestClient(create_app(served)) as client:
        alone = client.post("/search", json=asked).json()["results"]
        with ThreadPoolExecutor(8) as pool:
            answers = [*pool.map(lambda _: client.post("/search", json=asked).json()["results"], range(16))]
    assert answers == [alone] * 16


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"index": "text", "input": "red"}, 404, "there is no index 'text'; did you mean 'texts'"),
        ({"index": "texts", "input": []}, 422, "there is nothing to search for: give a text or an image"),
        ({"index": "texts", "input": "red", "text": "at night"}, 422, "text changes images, but input has a text"),
        ({"index": "texts", "input": "red", "share": 0.9}, 422, "share is of the way to a text, but there is none"),
        ({"index": "texts", "input": "red", "top_k": 0}, 422, "top_k"),
        ({"index": "texts", "input": ["red"] * 5}, 422, "5 texts and images were sent; expected at most 4"),
        ({"index": "texts", "input": " "}, 422, "a text has 1 characters"),
        ({"index": "texts", "input": "https://a.b/c.png" * 999}, 422, "a text has"),
    ],
)
def test_what_cannot_be_searched_is_named(asked: Any, status: int, words: str, served: ServedAdapters) -> None:
    answer = post(served, Limits(images=4), **asked)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text


def test_an_index_of_an_adapter_is_searched_by_it(
    folder: Path, models: dict[str, AdaptedModel], open_clip: Any, saved: Path, tmp_path: Path
) -> None:
    index_texts(models["lora"], ENTRIES).save(tmp_path / "lora.safetensors")
    index = [f"texts={tmp_path}/lora.safetensors"]
    with_it = ServedAdapters([f"{saved}/lora.safetensors"], backbone=open_clip, indexes=index)
    found = post(with_it, index="texts", input=ENTRIES[2], top_k=1).json()["results"]
    assert [(each["entry"], round(each["cosine"], 5)) for each in found[0]] == [(ENTRIES[2], 1.0)]
    with pytest.raises(AdaptError, match="the name texts is given twice"):
        ServedAdapters([f"texts={saved}/lora.safetensors"], backbone=open_clip, indexes=index)
    with pytest.raises(AdaptError, match=r"nothing here fits the index .*: serve the adapter that it was made with"):
        ServedAdapters([f"{saved}/coop.safetensors"], backbone=open_clip, indexes=index)


def test_indexes_share_the_backbone_of_an_adapter(folder: Path, open_clip: Any, saved: Path, tmp_path: Path) -> None:
    import adapt

    bare = adapt.wrap(open_clip, adapt.methods.ZeroShot(), ("object",)).eval()
    index_texts(bare, ENTRIES).save(tmp_path / "bare.safetensors")
    served = ServedAdapters([f"{saved}/coop.safetensors"], backbone=open_clip, indexes=[f"{tmp_path}/bare.safetensors"])
    model = served.index("bare").model
    assert next(model.backbone.model.parameters()) is next(open_clip.model.parameters())
    assert post(served, index="bare", input=ENTRIES[0], top_k=1).json()["results"][0][0]["entry"] == ENTRIES[0]


def test_a_server_of_indexes_alone_classifies_by_what_is_loaded(
    served: ServedAdapters, folder: Path, open_clip: Any, saved: Path, tmp_path: Path
) -> None:
    with TestClient(create_app(served)) as client:
        image = base64.b64encode((folder / "1.png").read_bytes()).decode()
        answer = client.post("/predict", json={"images": [image]})
        assert (answer.status_code, "send images and texts to /search" in answer.text) == (404, True)
        assert client.get("/v1/models").json()["data"] == client.get("/adapters").json() == []
    own = index_texts(unadapted(open_clip, ("object",)), ENTRIES).save(tmp_path / "own.safetensors")
    emptied = ServedAdapters([], folder=saved, backbone=open_clip, indexes=[str(own)])
    with TestClient(create_app(emptied)) as client:
        assert client.post("/adapters", json={"path": "coop.safetensors"}).status_code == 201
        answer = client.post("/predict", json={"images": [image]})
        assert (answer.status_code, '"adapter":"coop"' in answer.text) == (200, True)
    with pytest.raises(AdaptError, match="there is nothing to serve"):
        ServedAdapters([])


def test_a_changed_index_is_loaded_again_and_stays_with_an_adapter_until_it_is_made_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import adapt

    backbone = adapt.load_backbone(BACKBONE)

    def trained(seed: int) -> Any:
        torch.manual_seed(seed)
        model = adapt.wrap(backbone, adapt.methods.LoRA(rank=1, towers=("vision",)), ("object",)).eval()
        with torch.no_grad():
            for parameter in model.method.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.save(tmp_path / "own.safetensors")
        return model

    index_images(trained(0), [str(folder / "0.png")]).save(tmp_path / "photos.safetensors")
    index_texts(unadapted(backbone, ("object",)), ENTRIES).save(tmp_path / "texts.safetensors")
    indexes = [f"{tmp_path}/photos.safetensors", f"{tmp_path}/texts.safetensors"]
    served = ServedAdapters([f"own={tmp_path}/own.safetensors"], None, backbone, indexes=indexes)
    old = served.now.models["own"]
    assert served.index("photos").model is old
    assert served.reload() == {"reloaded": [], "unchanged": ["own", "photos", "texts"], "failed": {}}

    index_texts(unadapted(backbone, ("object",)), ENTRIES[:2]).save(tmp_path / "texts.safetensors")
    new = trained(1)
    answer = served.reload()
    assert (answer["reloaded"], answer["unchanged"], list(answer["failed"])) == (["own", "texts"], [], ["photos"])
    assert served.index("photos").model is old
    assert served.index("texts").index.entries == tuple(ENTRIES[:2])

    (tmp_path / "texts.safetensors").rename(tmp_path / "gone.safetensors")
    assert "there is no index at" in served.reload()["failed"]["texts"]
    (tmp_path / "gone.safetensors").rename(tmp_path / "texts.safetensors")

    index_images(new, [str(folder / "1.png")]).save(tmp_path / "photos.safetensors")
    assert served.reload() == {"reloaded": ["photos"], "unchanged": ["own", "texts"], "failed": {}}
    assert served.index("photos").model is served.now.models["own"]
    assert served.index("photos").index.entries == (str(folder / "1.png"),)

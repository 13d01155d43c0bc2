"""What takes many passes of an image over HTTP: maps of what answers rest on, and boxes from windows."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_natives
from click.testing import CliRunner
from PIL import Image
from serving.asking import Held, hold, upload
from starlette.testclient import TestClient

import adapt
from adapt import AdaptedModel, methods
from adapt.cli.predict import predict as command
from adapt.models.many import SideBySide
from adapt.models.native_vlm import ChatModel
from adapt.models.occlusion import PLACES
from adapt.models.windows import count, windows
from adapt.serving.adapters import Served, ServedAdapters
from adapt.serving.app import create_app

Serve = Callable[..., TestClient]
SCENE = Path(__file__).parents[2] / "notebooks/scene.png"
NAMES = ["dog", "graduation cap", "dolphin"]


def scores_of(told: dict[str, Any], picture: Any) -> Any:
    with Image.open(picture) as opened:
        return told["offset"] + told["scale"] * np.asarray(opened).astype(float)


def test_the_server_says_what_the_command_says(tmp_path: Path) -> None:
    adapter = adapt.wrap(adapt.load_backbone("mini-clip", "cpu"), methods.ZeroShot(), NAMES).save(
        tmp_path / "a.safetensors"
    )

    def printed(*options: str) -> Any:
        ran = CliRunner().invoke(command, [str(adapter), str(SCENE), "--device", "cpu", "--json", *options])
        assert ran.exit_code == 0, ran.output
        return json.loads(ran.stdout.splitlines()[-1])

    with TestClient(create_app(ServedAdapters([str(adapter)], device="cpu"))) as client:

        def asked(**fields: Any) -> Any:
            answer = upload(client, [SCENE.read_bytes()], **fields)
            assert answer.status_code == 200, answer.text
            return answer.json()["results"][0]["answers"][0]

        drawn, expected = asked(explain=True), printed("--explain", "--maps", str(tmp_path / "why"))
        told, of_command = drawn["map"], expected["map"]
        scores = scores_of(told, BytesIO(base64.b64decode(told["scores"])))
        assert scores.shape == (64, 64)
        assert np.ptp(scores) > 0.1
        assert np.abs(scores - scores_of(of_command, of_command["scores"])).max() < 1e-4
        assert (told["threshold"], told["highest"]) == (None, pytest.approx(of_command["highest"], abs=1e-4))
        with Image.open(BytesIO(base64.b64decode(told["overlay"]))) as mine, Image.open(of_command["overlay"]) as own:
            assert np.abs(np.asarray(mine).astype(int) - np.asarray(own)).max() <= 1
        assert (drawn["class"], drawn["probability"]) == (expected["class"], pytest.approx(expected["probability"]))

        found, own = asked(boxes=True), printed("--boxes")
        assert len(own["boxes"]) > 1
        assert [[box["bbox"], box["label"]] for box in found["boxes"]] == [
            [box["bbox"], box["label"]] for box in own["boxes"]
        ]
        for mine, other in zip([found, *found["boxes"]], [own, *own["boxes"]], strict=True):
            assert mine["probability"] == pytest.approx(other["probability"], abs=1e-4)
        assert found["class"] == own["class"]
        assert {"map", "boxes"}.isdisjoint(asked())


def test_what_an_adapter_cannot_say_is_refused_and_told_by_its_card(
    serve: Serve, served: ServedAdapters, open_clip: adapt.Backbone, images: list[bytes]
) -> None:
    native: ChatModel = adapt.wrap(tiny_natives.backbone("llava"), methods.ZeroShot(), NAMES).eval()
    others: dict[str, Any] = {name: adapt.wrap(open_clip, methods.find(name)(), NAMES) for name in ("uniqa", "tpt")}
    others |= {"native": native, "words": adapt.wrap(tiny_natives.backbone("llava"), methods.ZeroShot())}
    served.now = Served({**served.now.models, **others}, served.now.default)
    client = serve()
    cards = {card["name"]: (card["explains"], card["boxes"]) for card in client.get("/adapters").json()}
    assert cards == {
        "coop": (True, True),
        "lora": (True, True),
        "uniqa": (True, False),
        "tpt": (False, True),
        "native": (False, True),
        "words": (False, False),
    }
    for adapters, fields, said in (
        (["uniqa"], {"boxes": True}, "uniqa draws maps, grades images or remembers earlier ones: leave boxes out"),
        (["tpt"], {"explain": True}, "tpt reads views of an image, of which no part can be covered"),
        (["native"], {"explain": True}, "draws no maps"),
        (["words"], {"boxes": True}, "words answers in words: send conversations"),
        (["coop", "lora"], {"boxes": True}, "explain and boxes take a single adapter, not coop, lora: name one in "),
        (["coop"], {"boxes": True, "explain": True}, "or leave out boxes"),
        (["coop"], {"boxes": True, "sets": 0.9}, "or leave out boxes"),
        (["coop"], {"explain": True, "sets": 0.9}, "leave out threshold, explain and at_a_time, or leave out sets"),
    ):
        answer = upload(client, images[:1], adapters=adapters, **fields)
        assert (answer.status_code, list(answer.json())) == (422, ["detail"])
        assert said in answer.json()["detail"]


def test_native_models_with_classes_find_boxes(serve: Serve, served: ServedAdapters) -> None:
    native: ChatModel = adapt.wrap(tiny_natives.backbone("llava"), methods.ZeroShot(), NAMES[:2]).eval()
    served.now = Served({"native": native}, "native")
    Image.new("RGB", (3, 3), "red").save(file := BytesIO(), "PNG")
    [result] = upload(serve(), [file.getvalue()], boxes=True, threshold=0.1).json()["results"]
    [expected] = native.find([file.getvalue()], 0.1)
    assert expected.boxes
    assert [box["bbox"] for box in result["answers"][0]["boxes"]] == [list(box.edges) for box in expected.boxes]


def hold_windows(monkeypatch: pytest.MonkeyPatch) -> Held:
    """Reading of windows waits, and that of whole images does not."""
    usual = SideBySide.pixels
    held = hold(monkeypatch, SideBySide, "pixels")
    waiting = SideBySide.pixels

    def pixels(self: SideBySide, image: object, **how: Any) -> Any:
        return (waiting if isinstance(image, Image.Image) else usual)(self, image, **how)

    monkeypatch.setattr(SideBySide, "pixels", pixels)
    return held


def test_parts_share_passes_of_eight_with_nobody_kept_out(
    serve: Serve, images: list[bytes], models: dict[str, AdaptedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a request for boxes goes on, others are answered, and a second one of its kind is told to come again."""
    client, held = serve(), hold_windows(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(upload, client, images[:1], boxes=True)
        assert held.begun.wait(30)
        assert upload(client, images, adapters=["coop", "lora"]).status_code == 200
        refused = upload(client, images[:1], explain=True)
        held.go.set()
        assert first.result().status_code == 200
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["detail"] == "requests with explain or boxes are answered 1 at a time: try again in a second"
    assert upload(client, images[:1], explain=True).status_code == 200
    told = client.get("/metrics").text
    passes = {
        line.split(" ")[0]: float(line.split(" ")[1])
        for line in told.splitlines()
        if line.startswith("adapt_pass_images")
    }
    assert passes["adapt_pass_images_sum"] == len(images) + len([*windows(24, 24)]) + 1 + PLACES
    assert (
        passes['adapt_pass_images_bucket{le="16.0"}'] - passes['adapt_pass_images_bucket{le="8.0"}'] == 1
    )  # the others


def test_a_request_that_nobody_waits_for_ends_and_gives_its_turn_back(
    serve: Serve, images: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, held = serve(seconds=2.0), hold_windows(monkeypatch)
    assert upload(client, images[:1], boxes=True).status_code == 504
    held.go.set()
    assert upload(client, images[:1], explain=True).status_code != 503
    assert len(held.names) <= 8 < count(24, 24)


def test_windows_and_covered_copies_count_as_pixels(serve: Serve, images: list[bytes]) -> None:
    client = serve(pixels=4 * 2**20 + 24 * 24)  # 82 covered copies of 224 x 224, and little more
    answers = [upload(client, images[:2], explain=True), upload(client, images[:1], boxes=True)]
    assert [each.status_code for each in answers] == [413, 413]
    assert f"{285 * 224 * 224:,} of them in maps, windows or covered copies" in answers[1].json()["detail"]
    assert upload(client, images[:1], explain=True).status_code == 200
    Image.new("L", (1000, 10)).save(file := BytesIO(), "PNG")  # which has thousands of windows
    long = upload(serve(), [file.getvalue()], boxes=True)
    assert (long.status_code, "in maps, windows or covered copies" in long.text) == (413, True)


@pytest.mark.parametrize("size", [(24, 24), (96, 64), (2, 1), (110, 100), (5, 300)])
def test_windows_are_counted_before_they_are_made(size: tuple[int, int]) -> None:
    assert count(*size) == len([*windows(*size)])

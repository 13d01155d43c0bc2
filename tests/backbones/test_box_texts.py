"""Boxes as each family writes and reads them."""

from __future__ import annotations

import json

import pytest
import tiny_natives

from adapt.backbones.box_texts import IN_WORDS, OF_FAMILY, THOUSANDTHS, BoxForm, Edges

SIZE, SEEN = (200, 100), (224, 112)
FAMILIES = {**OF_FAMILY, "others": THOUSANDTHS, "words": IN_WORDS}
BOX: Edges = (50.0, 25.0, 150.0, 75.0)
WRITTEN = {
    "qwen2_vl": "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(250,250),(750,750)<|box_end|>",
    "qwen2_5_vl": '```json\n[{"bbox_2d": [56, 28, 168, 84], "label": "dog"}]\n```',
    "qwen3_vl": '```json\n[{"bbox_2d": [250, 250, 750, 750], "label": "dog"}]\n```',
    "internvl": "<ref>dog</ref><box>[[250, 250, 750, 750]]</box>",
    "paligemma": "<loc0256><loc0256><loc0768><loc0768> dog",
    "llava": "[0.250, 0.375, 0.750, 0.625]",  # of a square of 200, in whose middle the picture is
    "others": "[250, 250, 750, 750]",
    "words": "two one one, two one one, three four four, three four four.",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_box_is_written_and_read_by_family(family: str) -> None:
    form = FAMILIES[family]
    written = form.write("dog", [BOX], SIZE, SEEN)
    assert written == WRITTEN[family]
    [found] = form.read(written, SIZE, SEEN, strict=True) or ()
    assert found.edges == pytest.approx(BOX, abs=0.2)
    assert found.name == ("dog" if "{name" in form.box else "")


@pytest.mark.parametrize("family", FAMILIES)
def test_several_boxes_and_none(family: str) -> None:
    form, boxes = FAMILIES[family], [BOX, (0.0, 0.0, 200.0, 100.0), (10.0, 20.0, 30.0, 90.0)]
    read = form.read(form.write("big dog", boxes, SIZE, SEEN), SIZE, SEEN, strict=True) or ()
    assert len(read) == 3
    for own, true in zip(read, boxes, strict=True):  # thousandths end at 999, and words have 64 columns
        assert own.edges == pytest.approx(true, abs=200 / 64 if family == "words" else 0.5)
    assert form.read(form.write("dog", [], SIZE, SEEN), SIZE, SEEN) == ()


def test_an_empty_list_is_no_box_without_its_fence_too() -> None:
    for answer in ("[]", " [ ]\n", "```\n[]\n```", "```json\n[]\n```"):
        assert OF_FAMILY["qwen3_vl"].read(answer, SIZE, SEEN, strict=True) == ()
    assert OF_FAMILY["qwen3_vl"].read("[] or so", SIZE, SEEN) is None


def test_special_tokens_may_be_gone() -> None:
    """Answers are decoded without them."""
    for answer, name in {"dog(250,250),(750,750)": "dog", "(250,250),(750,750)": ""}.items():
        [found] = OF_FAMILY["qwen2_vl"].read(answer, SIZE, SEEN, strict=True) or ()
        assert (found.name, found.edges) == (name, BOX)


@pytest.mark.parametrize(
    ("form", "answer", "edges"),
    [
        (OF_FAMILY["qwen3_vl"], "The dog is at [250, 250, 750, 750].", BOX),  # another form than its own
        (OF_FAMILY["qwen3_vl"], '[{"bbox_2d": [250, 250, 750, 750], "la', BOX),  # cut off
        (THOUSANDTHS, "[750, 750, 250, 250]", BOX),  # swapped corners
        (THOUSANDTHS, "[-30, 250, 1040, 750]", (0.0, 25.0, 200.0, 75.0)),  # within 5 %
        (THOUSANDTHS, "[250, 250, 750, 1060]", None),
        (THOUSANDTHS, "a dog", None),
        (THOUSANDTHS, "[1, 2, 3]", None),
        (THOUSANDTHS, "__import__('os').getcwd()", None),
        (IN_WORDS, "[1, 2, 3, 4]", None),
    ],
)
def test_other_answers(form: BoxForm, answer: str, edges: Edges | None) -> None:
    found = form.read(answer, SIZE, SEEN)
    assert (found and found[0].edges) == (edges and pytest.approx(edges))


def test_qwen_counts_the_pixels_of_the_picture_as_resized() -> None:
    backbone = tiny_natives.backbone("qwen2_5_vl")
    grid = backbone.marks((100, 50))[0].sizes["image_grid_thw"][0].tolist()
    across, down = (count * backbone.processor.image_processor.patch_size for count in (grid[2], grid[1]))
    chat = backbone.located("dog", [(0.0, 0.0, 100.0, 25.0)], (100, 50))
    assert f"[0, 0, {across}, {round(down / 2)}]" in chat.answer
    [found] = backbone.found(chat.answer, (100, 50)) or ()
    assert found.edges == pytest.approx((0, 0, 100, 25), abs=2)
    assert tiny_natives.backbone("paligemma").located("dog", [], (100, 50)).question.turns[0].text == "detect dog"


@pytest.mark.parametrize("name", ['5" pipe', "a\\b", "größe"])
def test_names_in_json_are_strings_of_json(name: str) -> None:
    form = OF_FAMILY["qwen3_vl"]
    answer = form.write(name, [BOX], SIZE, SIZE)
    [told] = json.loads(answer.removeprefix("```json").removesuffix("```"))
    assert told["label"] == name
    assert [box.name for box in form.read(answer, SIZE, SIZE) or ()] == [name]

"""Tables of protocols' results, and the papers' figures that stand beside them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import pytest

from adapt import AdaptError
from adapt.data.readers import published as data_sets
from adapt.protocols import papers as published
from adapt.protocols.protocol import PAPERS_TARGETS
from adapt.protocols.reproduction import ZERO_SHOT_TOLERANCE
from adapt.protocols.tables import (
    as_csv,
    as_markdown,
    as_numbers,
    as_text,
    note_other_images,
    numbered,
    read_results,
    table,
)

FIGURES = Path(__file__).parent / "papers_figures.md"
METHODS = ("CLIP zero-shot", "CoOp", "CoCoOp", "MaPLe", "PromptSRC")


def halves(base: float = 0.8, source: str = "emoji", runs: int = 3, **method: Any) -> dict[str, Any]:
    """Base-to-new results, as far as a table reads them."""
    figures = {"base": base, "new": 0.4, "harmonic": harmonic_mean([base, 0.4])}
    summary = {
        "shots": 16,
        "runs": runs,
        "mean": figures,
        "std": {name: 0.0123 * i for i, name in enumerate(figures, 1)},
        "zero_shot": {name: value / 2 for name, value in figures.items()},
    }
    recipe = {"method": {"name": "coop"} | method, "data": {"source": source}, "backbone": "mini-clip"}
    return {"protocol": "base_to_new", "recipe": recipe, "runs": [{"run": "seed-1"}] * runs, "summary": [summary]}


def curve(by_shots: dict[int, float], source: str = "emoji") -> dict[str, Any]:
    """Few-shot results over two seeds, as far as a table reads them."""
    summary = [
        {"shots": shots, "runs": 2, "mean": {"test": mean}, "std": {"test": 0.05}, "zero_shot": {"test": 0.25}}
        for shots, mean in by_shots.items()
    ]
    recipe = {"method": {"name": "lora"}, "data": {"source": source}, "backbone": "mini-clip"}
    runs = [
        {"run": f"seed-{seed}", "seed": seed, "shots": shots, "test": mean, "zero_shot_test": 0.25}
        for shots, mean in by_shots.items()
        for seed in (1, 2)
    ]
    return {
        "protocol": "few_shot",
        "recipe": recipe,
        "runs": runs,
        "summary": summary,
    }


def test_text_has_aligned_columns_of_means_and_deviations() -> None:
    assert as_text(table([halves(), halves(0.6, name="maple")])) == (
        "                            base         new    harmonic\n"
        "zero-shot, mini-clip        40.0        20.0        26.7\n"
        "coop, mini-clip       80.0 ± 1.2  40.0 ± 2.5  53.3 ± 3.7\n"
        "maple, mini-clip      60.0 ± 1.2  40.0 ± 2.5  48.0 ± 3.7"
    )


def test_markdown() -> None:
    assert as_markdown(table([curve({1: 0.5, 16: 0.625})])) == (
        "| shots | 1 | 16 |\n| --- | --- | --- |\n| zero-shot, mini-clip | 25.0 | 25.0 |\n"
        "| lora, mini-clip | 50.0 ± 5.0 | 62.5 ± 5.0 |"
    )


def test_csv_quotes_what_holds_commas() -> None:
    cells = table([halves(n_ctx=4, class_position="end"), halves(0.6, n_ctx=16)])
    assert as_csv(cells) == (
        ",base,new,harmonic\n"
        '"zero-shot, mini-clip",40.0,20.0,26.7\n'
        '"coop (n_ctx=4, class_position=end), mini-clip",80.0 ± 1.2,40.0 ± 2.5,53.3 ± 3.7\n'
        '"coop (n_ctx=16), mini-clip",60.0 ± 1.2,40.0 ± 2.5,48.0 ± 3.7'
    )


def test_csv_cells_are_no_formulas() -> None:
    assert as_csv([["", "=1+1"], ["@it", "-1.5"], ["-", "-1 ± 2"]]) == ",'=1+1\n'@it,-1.5\n'-,'-1 ± 2"


def test_one_seed_shows_no_deviation() -> None:
    assert [*map(str, table([halves(runs=1)])[2])] == ["coop, mini-clip", "80.0", "40.0", "53.3"]


def test_each_number_of_shots_has_its_own_number_of_runs() -> None:
    mixed = curve({1: 0.5, 16: 0.625})
    mixed["runs"].pop()
    mixed["summary"][1] |= {"runs": 1, "std": {"test": 0.0}}
    assert as_markdown(table([mixed])).endswith("| lora, mini-clip | 50.0 ± 5.0 | 62.5 |")
    assert as_numbers(table([mixed])).splitlines()[-1] == '"lora, mini-clip",50.0000,5.0000,2,62.5000,,1'


def test_an_average_over_domains_has_a_deviation_where_all_have_the_same_seeds() -> None:
    results = curve({1: 0.5}) | {"protocol": "leave_one_out"}
    of = {"a": [0.2, 0.4], "b": [0.5, 0.7], "c": [0.6]}
    results["runs"] = [
        {"run": f"{name}-{seed}", "seed": seed, "shots": 1, "setting": name, "test": value, "zero_shot_test": 0.25}
        for name, values in of.items()
        for seed, value in enumerate(values, 1)
    ]
    results["summary"] = [
        results["summary"][0] | {"setting": name, "runs": len(values), "mean": {"test": sum(values) / len(values)}}
        for name, values in of.items()
    ]
    assert as_markdown(table([results])).endswith("| lora, mini-clip | 30.0 ± 5.0 | 60.0 ± 5.0 | 60.0 | 50.0 |")
    assert as_numbers(table([results])).endswith(",60.0000,,1,50.0000,,1")
    results["runs"].pop()
    results["summary"].pop()  # the other two domains have the same seeds
    assert as_markdown(table([results])).endswith("| lora, mini-clip | 30.0 ± 5.0 | 60.0 ± 5.0 | 45.0 ± 14.1 |")


def test_results_of_other_images_are_told(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = curve({1: 0.5}), curve({1: 0.6})
    for hashes in ({"test_set": "a", "labels": "b"}, {"test_set": "a", "labels": None}, {}):
        ours["runs"][0] |= {"test_set": "a", "labels": "b"}
        theirs["runs"] = [row | hashes for row in theirs["runs"]]
        note_other_images([ours, theirs])
    assert not caplog.messages
    theirs["runs"][1] |= {"test_set": "a", "labels": "other"}
    note_other_images([ours, theirs])
    assert "results on emoji are of different test images or labels" in caplog.text


def test_titles_carry_the_settings_of_methods_that_appear_twice() -> None:
    rows = table([halves(n_ctx=4), halves(name="maple", n_ctx=2), halves()])
    assert [row[0] for row in rows] == [
        "", *(f"{each}, mini-clip" for each in ("zero-shot", "coop (n_ctx=4)", "maple", "coop")),
    ]  # fmt: skip


def test_curves_of_different_shots_share_a_table() -> None:
    assert table([curve({1: 0.5, 2: 0.6}), curve({2: 0.7, 4: 0.8})])[0] == ["shots", "1", "2", "4"]
    assert table([curve({4: 0.5, 16: 0.6}), curve({8: 0.8, 2: 0.7})])[0] == ["shots", "2", "4", "8", "16"]
    rows = table([curve({1: 0.5, 2: 0.6}), curve({2: 0.7, 4: 0.8})])[2:]
    assert [[*map(str, row)] for row in rows] == [
        ["lora, mini-clip", "50.0 ± 5.0", "60.0 ± 5.0", ""],
        ["lora (2), mini-clip", "", "70.0 ± 5.0", "80.0 ± 5.0"],
    ]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (halves(source="photos"), "base_to_new on emoji with mini-clip and of base_to_new on photos"),
        (curve({1: 0.5}), "base_to_new on emoji with mini-clip and of few_shot on emoji"),
    ],
    ids=["data", "protocol"],
)
def test_what_cannot_be_compared_is_refused(other: dict[str, Any], words: str) -> None:
    with pytest.raises(AdaptError, match=f"the results are of {words} .*; expected one protocol, data set"):
        table([halves(), other])


@pytest.mark.parametrize(
    "source",
    ["eurosat", "EuroSAT", "data/eurosat/split_zhou_EuroSAT.json", "/data/eurosat/split_zhou_EuroSAT.json.gz"],
)
def test_published_rows_stand_beside_a_published_data_set(source: str) -> None:
    assert table([halves(source=source)])[3:] == [
        ["CLIP zero-shot, published [S] (ViT-B/16)", "56.48", "64.05", "60.03"],
        ["CoOp, published [S] (ViT-B/16)", "92.19", "54.74", "68.69"],
        ["CoCoOp, published [S] (ViT-B/16)", "87.49", "60.04", "71.21"],
        ["MaPLe, published [R] (ViT-B/16)", "94.07", "73.23", "82.35"],
        ["PromptSRC, published [S] (ViT-B/16)", "92.90", "73.90", "82.32"],
    ]
    assert len(table([halves(source=source)], published=False)) == 3


def test_published_rows_are_of_the_protocol_and_have_its_columns() -> None:
    assert table([curve({1: 0.5, 3: 0.6, 8: 0.7}, "eurosat")])[3:] == [
        ["CLIP-LoRA, published [S] (ViT-B/16)", "72.3", "", "~89.7"],
        ["CLIP zero-shot, CLIP-LoRA protocol, published [S] (ViT-B/16)", "47.5", "47.5", "47.5"],
    ]


def test_published_rows_are_of_the_backbone() -> None:
    results = curve({1: 0.5, 16: 0.6}, "eurosat")
    results["recipe"]["backbone"] = "open_clip:RN50-quickgelu/openai"
    assert table([results])[3:] == [
        ["Tip-Adapter, published [F] (RN50)", "54.38", "70.54"],
        ["Tip-Adapter-F, published [F] (RN50)", "59.53", "84.54"],
        ["CLIP zero-shot, published [F] (RN50)", "37.52", "37.52"],
    ]


@pytest.mark.parametrize("source", ["emoji", "emoji@fluent-3d", "photos/mine", "split_zhou_Mine.json", "eurosat_small"])
def test_other_data_have_no_published_rows(source: str) -> None:
    assert len(table([halves(source=source)])) == 3


def test_results_are_read_from_a_file_or_from_all_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "emoji"
    folder.mkdir()
    for results in (halves(), curve({1: 0.5})):
        (folder / f"{results['protocol']}.json").write_text(json.dumps(results))
    assert read_results(folder / "base_to_new.json") == [halves()]
    assert read_results(folder) == [curve({1: 0.5}), halves()]
    assert read_results(tmp_path) == [curve({1: 0.5}), halves()]  # of several data sets


# The published figures themselves


def rows_of(protocol: str) -> list[dict[str, Any]]:
    return [row for row in published.rows() if row["protocol"] == protocol]


def number(text: str) -> float:
    return float(text.removeprefix("~"))


def test_every_row_is_of_a_known_protocol_data_set_and_source() -> None:
    for row in published.rows():
        assert row.keys() - {"source", "templates"} == {
            "protocol", "data", "method", "backbone", "seeds", "from", "values"
        }  # fmt: skip
        assert ("source" in row) == (row["from"] == "F"), row
        assert row["data"] in data_sets.sets() or row["protocol"] == published.FEW_NORMAL
        assert row["backbone"] in published.backbones()
        assert row["from"] in {"F", "A", "S", "R"}
        assert all(0 < number(value) < 100 for value in row["values"].values())
    columns = {
        "base_to_new": {"base", "new", "harmonic"},
        "few_shot": {"1", "2", "4", "8", "16"},
        "few_normal": {"1", "2", "4", "8", "16"},
        "zero_shot": {"test"},
        **{name: {"source", *targets, "average"} for name, targets in PAPERS_TARGETS.items()},
    }
    assert {row["protocol"] for row in published.rows()} == columns.keys()
    unlike = [row for row in published.rows() if row["values"].keys() != columns[row["protocol"]]]
    assert [(row["method"], row["values"]) for row in unlike] == [("CoOp", {"16": "92.00"})]  # of a sample of its log


def test_every_method_appears_once_for_each_protocol_and_data_set() -> None:
    counts = Counter((row["protocol"], row["data"], row["method"], row["backbone"]) for row in published.rows())
    assert [key for key, count in counts.items() if count > 1] == []
    eleven = {"imagenet", *PAPERS_TARGETS["cross_dataset"]}
    few_shot = ("CLIP-LoRA", "Tip-Adapter", "Tip-Adapter-F")
    for protocol, methods in {"base_to_new": METHODS, "few_shot": few_shot}.items():
        for method in methods:
            assert {data for kind, data, name, _ in counts if (kind, name) == (protocol, method)} == eleven


def test_harmonic_means_follow_from_their_rows() -> None:
    for row in rows_of("base_to_new"):
        base, new, found = (number(row["values"][key]) for key in ("base", "new", "harmonic"))
        assert found == pytest.approx(2 * base * new / (base + new), abs=0.011), row


@pytest.mark.parametrize(("protocol", "within"), [("cross_dataset", 0.01), ("domain_generalisation", 0.03)])
def test_averages_follow_from_their_rows(protocol: str, within: float) -> None:
    targets = PAPERS_TARGETS[protocol]
    for row in rows_of(protocol):
        mean = sum(number(row["values"][name]) for name in targets) / len(targets)
        assert number(row["values"]["average"]) == pytest.approx(mean, abs=within), row


@pytest.mark.parametrize(
    ("method", "base", "new"),
    [
        ("CLIP zero-shot", 69.34, 74.22),
        ("CoOp", 82.69, 63.22),
        ("CoCoOp", 80.47, 71.69),
        ("MaPLe", 82.28, 75.14),
        ("PromptSRC", 84.26, 76.10),
    ],
)
def test_base_to_new_rows_average_to_the_papers_averages(method: str, base: float, new: float) -> None:
    rows = [row["values"] for row in rows_of("base_to_new") if row["method"] == method]
    for key, expected in (("base", base), ("new", new)):
        assert sum(number(row[key]) for row in rows) / 11 == pytest.approx(expected, abs=0.011)


def cells_of(heading: str) -> list[list[str]]:
    """The rows of the table under `heading` in papers_figures.md, without the header."""
    lines = FIGURES.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    found = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip(" *") for cell in line.strip("|").split("|")])
    return found


def test_base_to_new_rows_are_those_of_the_notes() -> None:
    expected = {}
    for data, *cells in cells_of("Base to new")[:11]:
        name = {"Flowers102": "OxfordFlowers", "DTD": "DescribableTextures"}.get(data, data)
        entry = data_sets.find(name)
        assert entry is not None
        for method, cell in zip(METHODS, cells, strict=True):
            values = dict(zip(("base", "new", "harmonic"), cell.replace("†", "").split(" / "), strict=True))
            expected[entry.name, method] = (values, "R" if "†" in cell else "S")
    assert {(row["data"], row["method"]): (row["values"], row["from"]) for row in rows_of("base_to_new")} == expected


@pytest.mark.parametrize(
    ("protocol", "heading"), [("cross_dataset", "Cross-dataset"), ("domain_generalisation", "Domain generalisation")]
)
def test_transfer_rows_are_those_of_the_notes(protocol: str, heading: str) -> None:
    columns = ("source", *PAPERS_TARGETS[protocol], "average")
    expected = {
        "CLIP zero-shot" if method == "CLIP" else method: dict(
            zip(columns, (re.sub(r" .*", "", cell) for cell in cells), strict=True)
        )
        for method, *cells in cells_of(heading)
    }
    assert {row["method"]: row["values"] for row in rows_of(protocol)} == expected


def test_few_shot_rows_are_those_of_the_notes() -> None:
    names = ("imagenet", "sun397", "fgvc_aircraft", "eurosat", "stanford_cars", "food101", "oxford_pets")
    names += ("oxford_flowers", "caltech101", "dtd", "ucf101")
    expected: dict[str, dict[str, str]] = {name: {} for name in names}
    for shots, *cells in cells_of("Few-shot, CLIP-LoRA"):
        mark = "~" if "~" in shots else ""
        for name, cell in zip(names, cells):
            expected[name][shots.split()[0]] = mark + cell
    assert {row["data"]: row["values"] for row in rows_of("few_shot") if row["method"] == "CLIP-LoRA"} == expected


def test_rows_of_official_logs_are_those_of_the_notes() -> None:
    ours = {"fgvc": "fgvc_aircraft"}
    zero_shot, curves = {}, {}
    for cell, *figures in cells_of("Few-shot and zero-shot, RN50"):
        name, method = (ours.get(word, word) for word in cell.split(", "))
        if method == "zero-shot":
            zero_shot[name] = figures[0]
        else:
            curves[name, method] = dict(zip(("16", "8", "4", "2", "1"), figures, strict=True))
    log = [row for row in published.rows() if row.get("source", "").endswith("exp.log")]
    short = {"Tip-Adapter": "Tip", "Tip-Adapter-F": "Tip-F"}
    assert {row["data"]: row["values"]["test"] for row in log if row["protocol"] == "zero_shot"} == zero_shot
    found = {(row["data"], short[row["method"]]): row["values"] for row in log if row["protocol"] == "few_shot"}
    assert found == curves


def test_zero_shot_rows_of_imagenet_and_its_variants_are_those_of_the_notes() -> None:
    family = ("imagenet", "imagenet_a", "imagenet_v2", "imagenet_r", "imagenet_sketch")
    expected = {
        (*cell.split(", "), data): figure
        for cell, *figures in cells_of("Zero-shot, ImageNet")
        for data, figure in zip(family, figures, strict=True)
    }
    found = [row for row in rows_of("zero_shot") if "log" not in row.get("source", "log")]
    counts = {"eighty": "80 templates"}
    assert {
        (row["backbone"], counts.get(row.get("templates"), "1 template"), row["data"]): row["values"]["test"]
        for row in found
    } == expected


def test_two_official_codes_agree_within_what_is_allowed() -> None:
    """TPT's README has the 80 templates' figures of RN50 too, from a code of its own."""
    known = {
        "imagenet": 59.81,
        "imagenet_a": 23.24,
        "imagenet_v2": 52.91,
        "imagenet_r": 60.72,
        "imagenet_sketch": 35.48,
    }
    for data, figure in known.items():
        (row,) = (row for row in published.zero_shot_of(data, "RN50") if "80" in row["method"])
        assert abs(float(row["values"]["test"]) - figure) < ZERO_SHOT_TOLERANCE


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        ({"summary": []}, "summary"),
        (
            {"summary": [{"shots": 1, "mean": {}, "std": {}, "zero_shot": {}}]},
            "the figure test is missing for a number of shots or a domain",
        ),
        ({"recipe": {"method": {}, "backbone": "x", "data": {"source": "x"}}}, "recipe.method.name"),
        ({"runs": [{}]}, "runs.0.run"),
    ],
)
def test_damaged_results_are_refused_by_name(tmp_path: Path, damage: dict[str, Any], key: str) -> None:
    (tmp_path / "few_shot.json").write_text(json.dumps(curve({1: 0.5}) | damage))
    with pytest.raises(AdaptError, match=rf"few_shot\.json contains no valid results of a protocol: .*{key}"):
        read_results(tmp_path)


def test_results_that_differ_in_their_training_alone_are_numbered() -> None:
    assert numbered([halves(), halves(), halves(n_ctx=4)]) == ["coop", "coop (2)", "coop (n_ctx=4)"]  # type: ignore[list-item]

"""Tables over several data sets: averages as in papers, LaTeX, plain numbers, and paired tests."""

from __future__ import annotations

import csv
import io
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel

from adapt.common.errors import AdaptError
from adapt.protocols import plots
from adapt.protocols.tables import (
    Value,
    as_latex,
    as_markdown,
    as_numbers,
    as_text,
    curves,
    differences,
    several_sets,
    table_of_sets,
)


def halves(source: str, name: str, *runs: tuple[float, float], zero: float = 0.3, **method: Any) -> dict[str, Any]:
    """Base-to-new results with the accuracies of the base and new classes of each seed."""
    zero_shot = {"zero_shot_base": zero, "zero_shot_new": zero}
    rows = [
        {"run": f"seed-{seed}", "seed": seed, "shots": 16, "base": base, "new": new} | zero_shot
        for seed, (base, new) in enumerate(runs, 1)
    ]
    recipe = {"method": {"name": name} | method, "data": {"source": source}, "backbone": "mini-clip"}
    return {"protocol": "base_to_new", "recipe": recipe, "runs": rows, "summary": [{}]}


def curve(source: str, name: str, by_shots: dict[int, list[float]]) -> dict[str, Any]:
    """Few-shot results with the accuracies of each seed."""
    rows = [
        {"run": f"{shots}-{seed}", "seed": seed, "shots": shots, "test": value, "zero_shot_test": 0.25}
        for shots, values in by_shots.items() for seed, value in enumerate(values, 1)
    ]  # fmt: skip
    recipe = {"method": {"name": name}, "data": {"source": source}, "backbone": "mini-clip"}
    return {"protocol": "few_shot", "recipe": recipe, "runs": rows, "summary": [{}] * len(by_shots)}


TWO = [
    halves("dtd", "coop", (0.80, 0.40), (0.84, 0.44)),
    halves("eurosat", "coop", (0.90, 0.60), (0.92, 0.70), zero=0.5),
    halves("dtd", "maple", (0.70, 0.70), (0.72, 0.60)),
    halves("eurosat", "maple", (0.80, 0.80), (0.86, 0.70), zero=0.5),
]


def test_averages_are_those_of_papers() -> None:
    header, *rows = table_of_sets(TWO)
    assert header == ["", "", "dtd", "eurosat", "average"]
    blocks = [
        [[f"{title}, mini-clip", name] for title in ("zero-shot", "coop", "maple")]
        for name in ("base", "new", "harmonic")
    ]
    assert [row[:2] for row in rows] == [*blocks[0], [], *blocks[1], [], *blocks[2]]
    base, new, both = (rows[place][-1] for place in (1, 5, 9))
    assert isinstance(base, Value)
    assert isinstance(new, Value)
    assert isinstance(both, Value)
    assert base.mean == pytest.approx((0.82 + 0.91) / 2)
    assert base.std == pytest.approx(statistics.stdev([(0.80 + 0.90) / 2, (0.84 + 0.92) / 2]))
    assert both.mean == pytest.approx(statistics.harmonic_mean([base.mean, new.mean]))
    assert both.std == pytest.approx(
        statistics.stdev([statistics.harmonic_mean([0.85, 0.5]), statistics.harmonic_mean([0.88, 0.57])])
    )
    assert both.runs == 2
    assert str(rows[0][-1]) == "40.0"


def test_a_missing_result_leaves_its_average_empty() -> None:
    rows = table_of_sets(TWO[:3])
    assert rows[3][2:] != ["", "", ""]
    assert list(map(str, rows[3])) == ["maple, mini-clip", "base", "71.0 ± 1.4", "", ""]


def test_sets_of_different_seeds_have_no_deviation() -> None:
    rows = table_of_sets([TWO[0], halves("eurosat", "coop", (0.9, 0.6), (0.9, 0.6), (0.9, 0.6))])
    assert str(rows[2][-1]) == "86.0"


def test_curves_have_a_block_for_each_number_of_shots() -> None:
    results = [curve(source, "lora", {1: [0.4, 0.5], 16: [0.6, 0.7]}) for source in ("dtd", "photos/")]
    assert several_sets(results)
    assert as_text(table_of_sets(results)) == (
        "                                       dtd      photos     average\n"
        "zero-shot, mini-clip    1 shot        25.0        25.0        25.0\n"
        "lora, mini-clip         1 shot  45.0 ± 7.1  45.0 ± 7.1  45.0 ± 7.1\n\n"
        "zero-shot, mini-clip  16 shots        25.0        25.0        25.0\n"
        "lora, mini-clip       16 shots  65.0 ± 7.1  65.0 ± 7.1  65.0 ± 7.1"
    )
    assert as_markdown(table_of_sets(results)).count("\n") == 5


def test_latex_is_balanced_and_bold_within_noise() -> None:
    text = as_latex(table_of_sets(TWO))
    lines = text.splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrr}"
    assert lines[-1] == r"\end{tabular}"
    assert [line for line in lines if line.startswith("\\") and "rule" in line] == [
        r"\toprule", r"\midrule", r"\midrule", r"\midrule", r"\bottomrule",
    ]  # fmt: skip
    rows = [line for line in lines if line.endswith(r" \\")]
    assert all(line.count(" & ") == 4 for line in rows)
    assert text.count("{") == text.count("}")
    [coop] = [line for line in rows if line.startswith("coop, mini-clip & base")]
    assert (
        coop
        == r"coop, mini-clip & base & \textbf{82.0} $\pm$ 2.8 & \textbf{91.0} $\pm$ 1.4 & \textbf{86.5} $\pm$ 2.1 \\"
    )
    near = [["", "x"], ["a_1 & b", Value(0.5, 0.02, 4)], ["c", Value(0.49, 0.02, 4)], ["d", Value(0.4, 0.02, 4)]]
    assert as_latex(near).splitlines()[4:7] == [
        r"a\_1 \& b & \textbf{50.0} $\pm$ 2.0 \\", r"c & \textbf{49.0} $\pm$ 2.0 \\", r"d & 40.0 $\pm$ 2.0 \\",
    ]  # fmt: skip


def test_every_special_character_is_escaped() -> None:
    [row] = re.findall(r"^(.*) & 1", as_latex([["", "n"], [r"~^\&%$#_{}±", "1"]]), flags=re.MULTILINE)
    assert row == r"\textasciitilde{}\textasciicircum{}\textbackslash{}\&\%\$\#\_\{\}$\pm$"


def test_plain_numbers_have_columns_of_their_own() -> None:
    [header, first, second, *_] = csv.reader(io.StringIO(as_numbers(table_of_sets(TWO))))
    assert header[:5] == ["", "", "dtd mean", "dtd std (n-1)", "dtd runs"]
    assert first[:5] == ["zero-shot, mini-clip", "base", "30.0000", "", "1"]
    assert float(second[2]) == pytest.approx(82)
    assert float(second[3]) == pytest.approx(100 * statistics.stdev([0.8, 0.84]), abs=1e-4)
    assert second[4] == "2"


def test_differences_are_paired_over_seeds_and_data_sets() -> None:
    rows = {(row[0], row[1]): row[2:] for row in differences(TWO, "coop")[1:]}
    assert set(rows) == {("maple", "base"), ("maple", "new"), ("maple", "harmonic")}
    one, other = [0.70, 0.72, 0.80, 0.86], [0.80, 0.84, 0.90, 0.92]
    assert rows["maple", "base"] == ["-9.50", f"{ttest_rel(one, other).pvalue:.2g}", "4"]
    with pytest.raises(AdaptError, match="there is no row 'cop' to compare with; did you mean 'coop'"):
        differences(TWO, "cop")


def test_methods_that_share_no_seed_are_not_compared() -> None:
    with pytest.raises(AdaptError, match="coop and the other methods have no seed in common"):
        differences([curve("dtd", "coop", {1: [0.5]}), curve("dtd", "maple", {2: [0.5]})], "coop")


def test_one_pair_has_no_p_value() -> None:
    results = [halves("dtd", name, (base, 0.5)) for name, base in (("coop", 0.5), ("maple", 0.6))]
    assert differences(results, "coop")[1][2:] == ["+10.00", "", "1"]


def test_equal_differences_have_no_p_value() -> None:
    results = [halves("dtd", name, *[(base, 0.5)] * 3) for name, base in (("coop", 0.5), ("maple", 0.6))]
    assert differences(results, "coop")[1][2:] == ["+10.00", "", "3"]


def test_a_baseline_is_shown_wherever_it_is_known() -> None:
    results = [curve(source, "lora", {1: [0.4]}) for source in ("dtd", "eurosat")]
    results += [curve(source, "coop", {1: [0.4], 2: [0.5]}) for source in ("dtd", "eurosat")]
    rows = {(row[0], row[1]): row[2:] for row in table_of_sets(results) if row}
    assert [*map(str, rows["zero-shot, mini-clip", "2 shots"])] == ["25.0"] * 3
    assert [*map(str, rows["lora, mini-clip", "2 shots"])] == [""] * 3


def test_a_folder_is_one_data_set_however_it_is_spelt(tmp_path: Path) -> None:
    for name in ("one/photos", "two/photos"):
        (tmp_path / name).mkdir(parents=True)
    sources = [f"{tmp_path}/one/photos", f"{tmp_path}/two/photos"]
    results = [halves(source, "coop", (0.5, 0.5)) for source in sources]
    results += [halves(f"{source}/", "maple", (0.5, 0.5)) for source in sources]
    header, *rows = table_of_sets(results)
    assert header == ["", "", "one/photos", "two/photos", "average"]
    assert str(rows[2][-1]) == "50.0"


def test_what_does_not_share_a_table_is_refused() -> None:
    with pytest.raises(AdaptError, match="there are two results of coop on dtd"):
        table_of_sets([TWO[0], TWO[0], TWO[1]])
    with pytest.raises(AdaptError, match="expected one protocol, backbone and figure"):
        table_of_sets([TWO[0], curve("eurosat", "coop", {1: [0.5]})])
    sweeps = [each | {"protocol": "sweep"} for each in TWO[:2]]
    with pytest.raises(AdaptError, match="of few-shot, few-normal or base-to-new results, not of sweep"):
        table_of_sets(sweeps)


def test_settings_tell_methods_apart() -> None:
    rows = table_of_sets([*TWO[:2], halves("dtd", "coop", (0.5, 0.5), (0.6, 0.6), n_ctx=4)])
    assert [row[0] for row in rows[1:4]] == [f"{each}, mini-clip" for each in ("zero-shot", "coop", "coop (n_ctx=4)")]


SHOTS = [
    curve("dtd", "coop", {1: [0.30, 0.32], 4: [0.50, 0.54]}),
    curve("eurosat", "coop", {1: [0.40, 0.44], 4: [0.60, 0.70]}),
    curve("dtd", "maple", {1: [0.28, 0.30], 4: [0.52, 0.50]}),
    curve("eurosat", "maple", {1: [0.42, 0.46], 4: [0.64, 0.66]}),
]


def test_curves_are_the_figures_of_the_table() -> None:
    drawn = curves(SHOTS)
    assert list(drawn) == ["average", "dtd", "eurosat"]
    assert all(list(lines) == ["zero-shot", "coop", "maple"] for lines in drawn.values())
    first = drawn["average"]["coop"][4]
    assert first.mean == pytest.approx((0.52 + 0.65) / 2)
    assert first.std == pytest.approx(statistics.stdev([(0.50 + 0.60) / 2, (0.54 + 0.70) / 2]))
    assert drawn["eurosat"]["maple"][1] == (pytest.approx(0.44), pytest.approx(statistics.stdev([0.42, 0.46])), 2)
    assert drawn["dtd"]["zero-shot"] == {1: Value(0.25), 4: Value(0.25)}
    table = table_of_sets(SHOTS)
    assert [row for row in table if row and row[1] == "4 shots"][1] == [
        "coop, mini-clip", "4 shots", *(drawn[name]["coop"][4] for name in ("dtd", "eurosat", "average"))
    ]  # fmt: skip
    assert list(curves(SHOTS[::2])) == ["dtd"]  # no average of one


def test_a_method_without_all_sets_has_no_average() -> None:
    drawn = curves(SHOTS[:3])
    assert drawn["average"]["maple"] == {}
    assert len(drawn["dtd"]["maple"]) == 2


def test_methods_without_shots_in_common_have_no_average(tmp_path: Path) -> None:
    apart = [curve("dtd", "coop", {1: [0.3, 0.4]}), curve("eurosat", "coop", {4: [0.5, 0.6]})]
    assert list(curves(apart)) == ["dtd", "eurosat"]
    plots.draw(apart, tmp_path / "curves.png")


def test_panels_have_a_line_and_a_band_for_each_method(tmp_path: Path) -> None:
    figure = plots.few_shot_curves(SHOTS)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["average", "dtd", "eurosat"]
    for axes in shown:
        assert [len(line.get_xdata()) for line in axes.lines] == [2, 2, 2]  # type: ignore[arg-type]
        assert len(axes.collections) == 2  # no band of the baseline
    for suffix, begins in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        plots.draw(SHOTS, tmp_path / f"curves.{suffix}")
        assert (tmp_path / f"curves.{suffix}").read_bytes().startswith(begins)
    assert ">eurosat</text>" in (tmp_path / "curves.svg").read_text()  # words stay words


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="base-to-new results are drawn for one data set"):
        plots.draw(TWO, tmp_path / "halves.png")
    with pytest.raises(AdaptError, match="no picture of cross_dataset results"):
        plots.draw([SHOTS[0] | {"protocol": "cross_dataset"}], tmp_path / "other.png")  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []

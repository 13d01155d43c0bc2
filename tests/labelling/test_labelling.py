"""Labels by a person: what is proposed, what an answer changes, what a round trains, and what stays on disk."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

import adapt
from adapt.cli import main
from adapt.common.disk import write_csv
from adapt.common.errors import AdaptError
from adapt.data import load
from adapt.labelling.labelling import Annotation, Labelling, applied
from adapt.labelling.server import create_label_app
from adapt.recipe import read_recipe
from adapt.training.run_recipe import read_data, run_recipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def begun(five_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on two images of each class, and `photos/` with the other two, a test image and a new one."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "photos").mkdir()
    shutil.copytree(five_classes, folder / "plain")
    for name in load(five_classes).class_names:
        for number in (2, 3):
            shutil.move(folder / "plain/train" / name / f"{name}-{number}.png", folder / "photos")
    shutil.copy(folder / "plain/test/sky/sky-0.png", folder / "photos/of the test.png")
    Image.new("RGB", (8, 8), "orange").save(folder / "photos/new.png")
    (folder / "photos/broken.png").write_bytes(b"nothing")
    recipe = read_recipe("nearest_mean", ["backbone=mini-clip", "data.shots=null"], data=str(folder / "plain"))
    run_recipe(recipe, folder / "run", progress=False)
    return folder


def labelling(begun: Path, out: Path, *sources: Path) -> Labelling:
    return Labelling(begun / "run", sources or (begun / "photos",), out, progress=False)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def true_class(path: str) -> str:
    name = Path(path).stem.rpartition("-")[0]
    return name or "tin can"


@pytest.mark.full
def test_images_of_the_run_and_broken_ones_are_not_asked_about(
    begun: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proposals = labelling(begun, tmp_path / "out").propose(50)
    assert len(proposals) == 11
    assert not {"of the test.png", "broken.png"} & {Path(each.item.path).name for each in proposals}
    assert "left out 1 copies of images of the run" in caplog.text
    assert "broken.png" in caplog.text
    for each in proposals:
        assert each.label == each.likely[0][0]
        assert not each.reviewed
        assert sum(probability for _, probability in each.likely) == pytest.approx(1, abs=1e-5)
        assert [value for _, value in each.likely] == sorted((value for _, value in each.likely), reverse=True)


def test_the_lists_can_be_filled_in_and_trained_on(begun: Path, tmp_path: Path) -> None:
    own = labelling(begun, tmp_path / "out")
    proposals = own.propose(4)
    own.write()
    assert [row["path"] for row in rows(tmp_path / "out/proposals.csv")] == [each.item.path for each in proposals]
    listed = rows(tmp_path / "out/data.csv")
    assert [row["label"] for row in listed].count("") == 11
    split = load(tmp_path / "out/data.csv", root="/")
    assert (len(split.train), len(split.test), len(split.unlabelled)) == (10, 20, 11)
    assert split.class_names == load(begun / "plain").class_names
    text = (tmp_path / "out/data.csv").read_text()
    name = Path(proposals[0].item.path).name
    (tmp_path / "out/data.csv").write_text(text.replace(f"{name},,", f"{name},sky,"))
    result = CliRunner().invoke(main, [*own.command.split()[1:], "--quiet"])
    assert result.exit_code == 0, result.output
    assert len(load(tmp_path / "out/data.csv", root="/").train) == 11
    own.close()
    again = labelling(begun, tmp_path / "out")  # which does not lose what was filled in
    assert again.answers == 1
    assert rows(tmp_path / "out/annotations.csv")[0]["label"] == "sky"


def test_a_round_trains_on_the_answers(begun: Path, tmp_path: Path) -> None:
    own = labelling(begun, tmp_path / "out")
    first, second, third, *_ = own.propose(3)
    own.annotate(Annotation(first.item.path, "label", true_class(first.item.path)))
    own.annotate(Annotation(second.item.path, "drop"))
    own.annotate(Annotation(third.item.path, "skip"))
    assert [each.item.path for each in own.left] == [own.proposals[3].item.path]  # in place of the one skipped
    assert (own.answers, own.asked) == (2, 3)
    assert [row["action"] for row in rows(tmp_path / "out/annotations.csv")] == ["label", "drop", "skip"]
    done = own.learn()
    assert (done.round, done.answers, done.train_images, done.known) == (1, 2, 11, 3)
    assert done.as_proposed == (first.label == true_class(first.item.path))
    metrics = json.loads((tmp_path / "out/round-1/metrics.json").read_text())
    assert done.accuracy == metrics["adapted"]["accuracy"]
    assert done.before == json.loads((begun / "run/metrics.json").read_text())["adapted"]["accuracy"]
    assert {first.item.path, second.item.path, third.item.path}.isdisjoint(each.item.path for each in own.propose(50))
    assert len(own.proposals) == 8


@pytest.mark.full
def test_the_command_trains_the_same_adapter(begun: Path, tmp_path: Path) -> None:
    own = labelling(begun, tmp_path / "out")
    for each in own.propose(6):
        own.annotate(Annotation(each.item.path, "label", true_class(each.item.path)))
    own.learn()
    own.write()
    result = CliRunner().invoke(main, [*own.command.split()[1:], "--quiet"])
    assert result.exit_code == 0, result.output
    one, other = (adapt.load(folder) for folder in (tmp_path / "out/round-1", tmp_path / "out-trained"))
    for name, tensor in one.method.state_dict().items():
        assert tensor.equal(other.method.state_dict()[name]), name


def test_the_last_answers_can_be_taken_back(begun: Path, tmp_path: Path) -> None:
    own = labelling(begun, tmp_path / "out")
    before = own.split
    for each in own.propose(2):
        own.annotate(Annotation(each.item.path, "label", "sky"))
    assert len(own.split.train) == 12
    own.undo()
    assert len(own.left) == 1
    assert len(rows(tmp_path / "out/annotations.csv")) == 1
    own.write()
    own.undo()
    own.undo()  # nothing is left to take back
    assert own.split == before
    assert not (tmp_path / "out/annotations.csv").exists()
    own.close()  # as if the process was killed
    assert labelling(begun, tmp_path / "out").split == before  # and nothing counts as filled in by hand


@pytest.mark.full
def test_answers_and_rounds_are_there_again(begun: Path, tmp_path: Path) -> None:
    own = labelling(begun, tmp_path / "out")
    [first] = own.propose(1)
    own.annotate(Annotation(first.item.path, "label", "sky"))
    own.learn()
    own.propose(3)
    own.annotate(Annotation(own.proposals[0].item.path, "label", "tin can"))
    own.close()
    again = Labelling(begun / "run", [], tmp_path / "out", progress=False)  # its sources are known
    assert again.split == own.split
    assert again.rounds == own.rounds
    again.propose(3)
    assert (again.answers, len(again.left)) == (1, 2)
    again.undo()  # an answer to the process before
    assert again.left[0].item.path == own.proposals[0].item.path
    again.annotate(Annotation(again.left[0].item.path, "label", again.left[0].label))
    (tmp_path / "out/round-2").mkdir()  # of a round that was interrupted
    done = again.learn()
    assert (done.round, done.answers, done.as_proposed, done.train_images) == (3, 1, 1, 12)
    assert done.before == again.rounds[-2].accuracy
    with pytest.raises(AdaptError, match="there are no new answers to train on"):
        again.learn()


def test_a_folder_belongs_to_one_run_and_one_process(begun: Path, tmp_path: Path) -> None:
    own = labelling(begun, tmp_path / "out")
    with pytest.raises(AdaptError, match="is in use by another labelling"):
        labelling(begun, tmp_path / "out")
    [first] = own.propose(1)
    own.annotate(Annotation(first.item.path, "label", "sky"))
    own.close()
    shutil.copytree(begun / "run", tmp_path / "other")
    with pytest.raises(AdaptError, match=r"has answers about the run .* or correct the run in .*labelling\.json"):
        Labelling(tmp_path / "other", [], tmp_path / "out", progress=False)
    with pytest.raises(AdaptError, match="is inside the run's data"):
        labelling(begun, begun / "plain" / "labels")


def test_skipped_images_are_replaced(begun: Path, tmp_path: Path) -> None:
    own = labelling(begun, tmp_path / "out")
    own.propose(1)
    for _ in range(10):
        own.annotate(Annotation(own.left[0].item.path, "skip"))
        assert len(own.left) == 1
    own.annotate(Annotation(own.left[0].item.path, "skip"))
    assert own.left == []  # of eleven


def test_images_that_go_are_left_out(begun: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(begun / "photos", tmp_path / "photos")
    own = labelling(begun, tmp_path / "out", tmp_path / "photos")
    first, *others = own.propose(11)
    own.annotate(Annotation(first.item.path, "label", "sky"))
    Path(others[0].item.path).unlink()
    own.learn()
    assert len(own.propose(11)) == 9
    assert "left out 1 images that are gone" in caplog.text
    own.close()
    shutil.rmtree(tmp_path / "photos")
    again = labelling(begun, tmp_path / "out", begun / "photos")
    assert "of an earlier command, is gone" in caplog.text
    assert len(again.propose(11)) == 11


def test_a_failed_round_leaves_nothing_behind(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun / "photos", tmp_path / "photos")
    own = labelling(begun, tmp_path / "out", tmp_path / "photos")
    [only] = own.propose(1)
    own.annotate(Annotation(only.item.path, "label", "sky"))
    (tmp_path / "cache").rename(tmp_path / "cache before")
    Path(only.item.path).unlink()
    with pytest.raises(AdaptError, match="does not exist"):
        own.learn()
    assert not (tmp_path / "out/round-1").exists()
    own.undo()
    assert own.answers == 0


def test_further_photographs_join_those_before(begun: Path, tmp_path: Path) -> None:
    own = labelling(begun, tmp_path / "out")
    [first] = own.propose(1)
    own.annotate(Annotation(first.item.path, "label", "sky"))
    own.close()
    (tmp_path / "more").mkdir()
    Image.new("RGB", (8, 8), "purple").save(tmp_path / "more/new.png")
    again = labelling(begun, tmp_path / "out", tmp_path / "more")
    assert first.item.path in {item.path for item in again.split.train}
    assert len(again.split.unlabelled) == 11


def test_wrong_answers_are_refused(begun: Path, tmp_path: Path) -> None:
    own = labelling(begun, tmp_path / "out")
    [only] = own.propose(1)
    wrong: Any = "keep"
    for annotation, message in (
        (Annotation("/elsewhere.png", "drop"), "'/elsewhere.png' does not wait for an answer"),
        (Annotation(only.item.path, "label", "skye"), "no class is called 'skye'; did you mean 'sky'"),
        (Annotation(only.item.path, wrong), "the action 'keep' is unknown"),
    ):
        with pytest.raises(AdaptError, match=message):
            own.annotate(annotation)
    own.annotate(Annotation(only.item.path, "drop"))
    with pytest.raises(AdaptError, match="does not wait for an answer"):
        own.annotate(Annotation(only.item.path, "drop"))


def listed(begun: Path, path: Path, columns: str, *lines: str) -> Path:
    path.write_text("\n".join([columns, *(f"{begun}/plain/{line}" for line in lines)]), encoding="utf-8")
    return path


def test_doubtful_images_keep_change_or_lose_their_label(begun: Path, tmp_path: Path) -> None:
    doubtful = listed(
        begun, tmp_path / "suspects.csv", "path,class,likelier,share", "train/sky/sky-1.png,sky,tin can,0.01",
        "train/goldfish/goldfish-0.png,goldfish,sky,0.02", "test/sky/sky-2.png,sky,goldfish,0.03",
    )  # fmt: skip
    own = labelling(begun, tmp_path / "out", doubtful)
    one, two, three = own.propose(10)
    assert (one.label, one.reviewed, one.why) == ("sky", True, "train image; likelier tin can; share 0.01")
    own.annotate(Annotation(one.item.path, "label", "tin can"))
    own.annotate(Annotation(two.item.path, "label", "goldfish"))
    own.annotate(Annotation(three.item.path, "drop"))
    split, before = own.split, read_data(read_recipe("nearest_mean", ["data.shots=null"], data=str(begun / "plain")))
    assert (len(split.train), len(split.test)) == (10, 19)
    changed = [item for item in split.train if item not in before.train]
    assert [(Path(item.path).name, item.answer) for item in changed] == [("sky-1.png", "tin can")]
    done = own.learn()
    assert done.as_proposed == 1
    predictions = rows(begun / "run/predictions.csv")
    kept = [row for row in predictions if not row["path"].endswith("sky-2.png")]
    assert len(kept) == len(predictions) - 1 == 19
    right = [row["class"] == row["predicted"] for row in kept]
    assert done.before == pytest.approx(sum(right) / 19)  # of the images that are tested afterwards too
    assert own.propose(10) == []


def test_copies_are_shown_beside_their_originals(begun: Path, tmp_path: Path) -> None:
    original = f"{begun}/plain/train/sky/sky-0.png"
    doubtful = listed(
        begun, tmp_path / "duplicates.csv", "path,part,class,train_path,train_class,correlation",
        f"test/sky/sky-1.png,test,sky,{original},sky,0.99",
    )  # fmt: skip
    [only] = labelling(begun, tmp_path / "out", doubtful).propose(10)
    assert only.other == original
    assert only.why == "test image; correlation 0.99; the other picture: train, sky"


def test_both_of_two_contradicting_images_are_asked_about(begun: Path, tmp_path: Path) -> None:
    doubtful = listed(
        begun, tmp_path / "contradictions.csv", "path,part,class,other_path,other_part,other_class",
        f"train/sky/sky-1.png,train,sky,{begun}/plain/train/goldfish/goldfish-0.png,train,goldfish",
        "train/sky/gone.png,train,sky,,,",
    )  # fmt: skip
    own = labelling(begun, tmp_path / "out", doubtful)
    assert [(Path(each.item.path).name, Path(each.other).name) for each in own.propose(10)] == [
        ("sky-1.png", "goldfish-0.png"), ("goldfish-0.png", "sky-1.png"),
    ]  # fmt: skip


def test_doubtful_images_come_before_photographs(begun: Path, tmp_path: Path) -> None:
    doubtful = listed(begun, tmp_path / "few.csv", "path,class", "train/sky/sky-1.png,sky")
    proposals = labelling(begun, tmp_path / "out", doubtful, begun / "photos").propose(3)
    assert [each.reviewed for each in proposals] == [True, False, False]


def test_a_class_keeps_its_last_image(begun: Path, tmp_path: Path) -> None:
    lines = [f"train/sky/sky-{number}.png,sky" for number in (0, 1)]
    own = labelling(begun, tmp_path / "out", listed(begun, tmp_path / "few.csv", "path,class", *lines))
    one, two = own.propose(10)
    own.annotate(Annotation(one.item.path, "drop"))
    with pytest.raises(AdaptError, match="no training image of 'sky'"):
        own.annotate(Annotation(two.item.path, "drop"))
    assert len(own.left) == 1
    assert len(rows(tmp_path / "out/annotations.csv")) == 1


def test_the_last_word_on_an_image_counts(begun: Path) -> None:
    split = load(begun / "plain")
    path = split.train[0].path
    twice = [Annotation(path, "label", "sky"), Annotation(path, "skip"), Annotation(path, "label", "tin can")]
    assert applied(split, twice).train[0].answer == "tin can"
    assert applied(split, []) == split


@pytest.mark.parametrize(
    ("method", "data", "message"),
    [
        ("coop", "emoji-labels", "expected one class per image"),
        ("abmil", "emoji-items", "items of several images, but only single images can be labelled"),
    ],
)
def test_other_kinds_of_data_are_refused(method: str, data: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text(read_recipe(method, [], data=data).to_yaml())
    with pytest.raises(AdaptError, match=message):
        Labelling(tmp_path / "run", [], tmp_path / "out", progress=False)


def test_nothing_to_ask_about_is_said(begun: Path, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="there are no unlabelled images"):
        Labelling(begun / "run", [], tmp_path / "out", progress=False)
    with pytest.raises(AdaptError, match="does not exist; expected a folder of images"):
        labelling(begun, tmp_path / "out", tmp_path / "gone")
    with pytest.raises(AdaptError, match="is not the folder of a run"):
        Labelling(begun / "photos", [], tmp_path / "out", progress=False)


def test_the_command_writes_proposals(begun: Path, tmp_path: Path) -> None:
    command = ["label", str(begun / "photos"), "--adapter", str(begun / "run"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, "--propose", "5", "--quiet"])
    assert result.exit_code == 0, result.output
    assert "5 proposals, the most useful first" in result.output
    proposed = rows(tmp_path / "out/proposals.csv")
    assert [row["answer"] for row in proposed] == [""] * 5
    assert all(row["label"] for row in proposed)  # what is proposed, which no answer follows from
    proposed[0]["answer"] = "sky"
    write_csv(tmp_path / "out/proposals.csv", proposed)
    assert CliRunner().invoke(main, [*command, "--propose", "5", "--quiet"]).exit_code == 0
    assert proposed[0]["path"] not in [row["path"] for row in rows(tmp_path / "out/proposals.csv")]
    [annotation] = rows(tmp_path / "out/annotations.csv")
    assert (annotation["path"], annotation["label"]) == (proposed[0]["path"], "sky")


def test_a_list_that_is_not_there_is_named(begun: Path, tmp_path: Path) -> None:
    command = ["label", str(tmp_path / "suspects.csv"), "--adapter", str(begun / "run"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, "--propose", "5", "--quiet"])
    assert result.exit_code == 2
    assert "suspects.csv does not exist; expected a folder of images, a .csv or an image" in result.output


# the server of the page


@pytest.fixture
def client(begun: Path, tmp_path: Path) -> Any:
    testclient = pytest.importorskip("starlette.testclient")
    own = labelling(begun, tmp_path / "out")
    own.propose(2)
    return testclient.TestClient(create_label_app(own, 2), base_url="http://localhost")


def test_pictures_answers_and_rounds_by_http(client: Any, tmp_path: Path) -> None:
    state = client.get("/state").json()
    assert (state["asked"], state["answers"], len(state["left"]), state["rounds"]) == (2, 0, 2, [])
    one, two = (each["path"] for each in state["left"])
    assert client.get("/picture", params={"path": one}).headers["content-type"] == "image/jpeg"
    state = client.post("/answer", json={"path": one, "action": "label", "label": "sky"}).json()
    assert [each["path"] for each in state["left"]] == [two]
    assert client.post("/undo").json()["answers"] == 0
    assert client.post("/learn").json() == {
        "detail": "there are no new answers to train on: label or drop an image first"
    }
    for path, action in ((one, "skip"), (two, "drop")):
        state = client.post("/answer", json={"path": path, "action": action}).json()
    assert (state["answers"], len(state["left"])) == (1, 1)
    client.post("/answer", json={"path": state["left"][0]["path"], "action": "drop"})
    state = client.post("/learn").json()
    assert [each["answers"] for each in state["rounds"]] == [2]
    assert (len(state["left"]), state["training"]) == (2, False)
    assert len(rows(tmp_path / "out/proposals.csv")) == 2


def test_a_round_that_is_stopped_is_said(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = client.get("/state").json()["left"][0]["path"]
    client.post("/answer", json={"path": path, "action": "label", "label": "sky"})

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adapt.labelling.labelling.run_recipe", stopped)
    assert client.post("/learn").json() == {
        "detail": "the round was stopped: the answers are kept, and the same command goes on"
    }
    assert (client.get("/state").json()["answers"], client.get("/state").json()["training"]) == (1, False)


def test_what_the_server_refuses(client: Any, begun: Path) -> None:
    elsewhere = str(begun / "plain/train/sky/sky-0.png")
    assert client.get("/picture", params={"path": elsewhere}).status_code == 422
    refused = client.post("/answer", json={"path": elsewhere, "action": "drop"})
    assert refused.json() == {"detail": f"{elsewhere!r} does not wait for an answer"}
    assert client.post("/answer", json={"path": elsewhere, "action": "burn"}).status_code == 422
    other = {"Origin": "http://elsewhere.example"}
    assert client.post("/undo", headers=other).status_code == 403
    assert client.get("/state", headers={"Host": "elsewhere.example"}).status_code == 400

"""Pairs of one entity: how they are read and divided, drawn together, learned from, measured, and found again."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from pathlib import Path
from random import Random

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image

import adapt
from adapt import AdaptError, Backbone, methods
from adapt.cli import main
from adapt.data import Item, Split, load, read_csv
from adapt.data.decoding.draws import Epochs
from adapt.data.emoji.bundled import misread
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.retrieval import linked
from adapt.methods.base import Encoded, PairStep
from adapt.methods.clippings import supervised_contrast
from adapt.retrieval.index import index_pairs, load_index
from adapt.tasks.records import Record


@pytest.fixture
def records(tiny_split: Split) -> Split:
    """Images of a class are of one entity, each with a text of its own."""

    def part(items: tuple[Item, ...]) -> tuple[Item, ...]:
        return tuple(
            replace(item, label=Record(entity=item.answer), text=f"{item.answer} {number}")
            for number, item in enumerate(items)
        )

    return Split("records", (), part(tiny_split.train), part(tiny_split.val), part(tiny_split.test))


def csv_of(folder: Path, lines: list[str], header: str = "path,text,entity") -> Path:
    for number, line in enumerate(lines):
        Image.new("RGB", (8, 8), (9 * number, 255 - 9 * number, 90)).save(folder / line.partition(",")[0])
    (folder / "records.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder / "records.csv"


def test_entities_number_their_pairs_and_stay_in_one_part(tmp_path: Path) -> None:
    lines = [f"{number}.png,text {number},{number // 3 if number < 27 else ''}" for number in range(30)]
    split = read_csv(csv_of(tmp_path, lines))
    parts = {item.unit: part for part in ("train", "val", "test") for item in getattr(split, part) if item.unit}
    assert len(parts) == 9
    assert set(parts.values()) == {"train", "val", "test"}
    for part, items in (("train", split.train), ("val", split.val), ("test", split.test)):
        assert {parts[item.unit] for item in items if item.unit} <= {part}
    items = list(split.items())
    of_each: dict[str, set[int]] = {}
    for item, number in zip(items, split.task.numbers(items, ()).tolist(), strict=True):
        of_each.setdefault(item.unit or item.path, set()).add(number)
    assert all(len(numbers) == 1 for numbers in of_each.values())
    assert len(set.union(*of_each.values())) == 9 + 3  # those without an entity are by themselves
    held = replace(split, train=tuple(split.items()), val=(), test=()).with_validation(1)
    assert {item.unit for item in held.val if item.unit}.isdisjoint(item.unit for item in held.train)


def test_what_a_csv_says_of_entities_is_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(AdaptError, match=r"csv': no task reads the columns entity, label, path together"):
        read_csv(csv_of(tmp_path, ["a.png,cat,one"], "path,label,entity"))
    twice = csv_of(tmp_path, ["a.png,a cat,one", "a.png,a feline,two"])
    with pytest.raises(AdaptError, match="is of two entities, 'one' and 'two'"):
        read_csv(twice)
    boxes = csv_of(tmp_path, ["a.png,a cat,one,0,0,4,4", "a.png,a dog,two,4,4,8,8"], "path,text,entity,x0,y0,x1,y1")
    with pytest.raises(AdaptError, match="is of two entities"):  # whose parts would share a picture
        read_csv(boxes)
    linked_twice = csv_of(tmp_path, ["a.png,a cat,one"])
    (tmp_path / "b.png").unlink(missing_ok=True)
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    linked_twice.write_text("path,text,entity\na.png,a cat,one\nb.png,a dog,two\n")
    read_csv(linked_twice)
    assert "left out 1 links of pictures that count elsewhere" in caplog.text


def test_pairs_of_an_entity_follow_each_other_and_each_is_drawn_once() -> None:
    entities = ["a"] * 7 + ["b"] * 2 + ["c"] * 3
    epochs = Epochs(12, 12, shuffle=True, seed=0, drop_last=False, entities=entities, together=3)
    [batch] = list(epochs)
    order = [draw.position for draw in batch]
    assert sorted(order) == list(range(12))
    runs = [entities[position] for position in order]
    assert len(list(groupby(runs))) <= 5  # the first in three parts, the others whole
    epochs.epoch = 1
    assert [draw.position for draw in next(iter(epochs))] != order


def test_the_loss_counts_what_has_another_of_its_kind() -> None:
    features = F.normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    labels = torch.tensor([0, 0, 1, 1, 2])
    logits = features @ features.T / 0.1
    by_hand = []
    for one, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        others = torch.cat([logits[one, :one], logits[one, one + 1 :]])
        by_hand.append(others.logsumexp(0) - logits[one, other])
    same = labels[:, None] == labels
    assert torch.allclose(supervised_contrast(logits, same), torch.stack(by_hand).mean(), atol=1e-6)
    assert supervised_contrast(logits, torch.eye(5, dtype=torch.bool)) == 0
    assert supervised_contrast(logits, torch.ones(5, 5, dtype=torch.bool)) == 0


def test_training_brings_an_entitys_pairs_together(open_clip: Backbone, records: Split) -> None:
    torch.manual_seed(0)
    model = adapt.wrap(open_clip, methods.CLIPPINGS(rank=2, temperature=0.2), ())
    settings = {"iterations": 15, "batch_size": 12, "lr": 0.01, "schedule": "constant", "augment": "none"}
    # of other entities than what they look like, so that there is something to learn
    items = [item.labelled(Record(entity=str(number % 3))) for number, item in enumerate(records.train)]
    result = adapt.fit(model, items, items, optimizer="adamw", progress=False, **settings)
    assert result.history[0]["loss"] > result.history[-1]["loss"] + 0.5
    assert result.metrics["adapted"]["linked"] > result.metrics["zero_shot"]["linked"]
    assert f"of {len(items)} pairs are nearest to another of their entity" in str(result)


@pytest.mark.full
def test_pairs_without_entities_are_contrasted(open_clip: Backbone, records: Split) -> None:
    torch.manual_seed(0)
    model = adapt.wrap(open_clip, methods.CLIPPINGS(rank=2), ())
    unnamed = [item.labelled(Record()) for item in records.train]
    result = adapt.fit(model, unnamed, unnamed, epochs=1, batch_size=4, augment="none", progress=False)
    images, texts = torch.randn(4, 3, 32, 32), [item.text for item in unnamed[:4]]
    step = model.step([images, texts], torch.arange(4))
    assert isinstance(step, PairStep)
    assert set(model.method.loss(step)) == {"cross_entropy"}
    assert "linked" not in result.metrics["adapted"]


def test_entities_of_one_pair_each_teach_nothing(open_clip: Backbone, records: Split) -> None:
    model = adapt.wrap(open_clip, methods.CLIPPINGS(rank=2), ())
    alone = [item.labelled(Record(entity=str(number))) for number, item in enumerate(records.train)]
    with pytest.raises(AdaptError, match=f"each of the {len(alone)} entities in the training data has only one pair"):
        adapt.fit(model, alone, epochs=1, progress=False)


def test_linked_is_the_share_whose_nearest_other_pair_is_of_its_entity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapt.evaluation.retrieval._PAIRS_AT_ONCE", 3)  # none is compared with itself in any part
    features = F.normalize(torch.tensor([[0.1, 0.9], [1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.8, 0.3]]), dim=-1)
    entities = ["alone", "a", "a", "b", "b"]
    items = [Item.of(path=f"{n}.png", text="t", entity=e) for n, e in enumerate(entities)]
    two_texts = [Item.of(path="5.png", text=text, entity="") for text in ("one", "other")]  # of an image: no records
    assert linked([*items, *two_texts], torch.cat([features, -torch.ones(2, 2)]), {}).images == 4
    scores = linked(items, features, {})
    assert scores.images == 4
    assert "calibration_error" not in scores.figures()  # a cosine is no probability
    assert scores.actual == ("a", "a", "b", "b")
    assert scores.predicted == ("a", "a", "alone", "a")
    assert scores.accuracy == 0.5


def test_retrieval_takes_the_texts_of_an_entity_for_right(open_clip: Backbone, records: Split) -> None:
    model = adapt.wrap(open_clip, methods.ZeroShot(), ()).eval()
    unnamed = [item.labelled(Record()) for item in records.test]
    by_entity, by_image = (evaluate(model, items).figures() for items in (records.test, unnamed))
    assert by_entity["recall"]["image_to_text"]["5"] > by_image["recall"]["image_to_text"]["5"]


def test_half_precision_leaves_the_comparison_of_pairs_whole(open_clip: Backbone) -> None:
    model = adapt.wrap(open_clip, methods.CLIPPINGS(rank=2), ())
    features = F.normalize(torch.randn(6, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    step = PairStep(model, [Encoded(features), [""] * 6], torch.tensor([0, 0, 1, 1, 2, 2]))
    step.text_features = features
    [whole] = model.method.loss(step).values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        [half] = model.method.loss(step).values()
    assert abs(float(whole - half)) < 1e-6


def test_an_index_of_pairs_finds_their_entities_again(tmp_path: Path, open_clip: Backbone) -> None:
    lines = ["a.png,a cat,felines", "b.png,a dog,canines", "c.png,a bird,"]
    items = [item for item, _ in adapt.data.readers.csv_file.read_pairs(csv_of(tmp_path, lines))]
    model = adapt.wrap(open_clip, methods.CLIPPINGS(rank=2, image_share=0.25), ()).eval()
    made = index_pairs(model, items)
    assert made.header.kind == "pairs"
    assert made.entries == ("felines", "canines", str(tmp_path / "c.png"))
    with torch.no_grad():
        images = model.image_features(torch.stack([model.transform()(adapt.data.open_image(item)) for item in items]))
        texts = model.encode_texts([item.text for item in items])
    assert torch.allclose(made.features, F.normalize(0.25 * images + 0.75 * texts, dim=-1), atol=1e-5)
    found = load_index(made.save(tmp_path / "known.safetensors"))
    found.check(model)
    assert found.nearest(index_pairs(model, items[:1]).features, 1)[1].item() == 0
    with pytest.raises(AdaptError, match="is not an image-text pair"):
        index_pairs(model, [Item.of(path="a.png")])


def test_records_are_searched_by_a_csv(tmp_path: Path) -> None:
    from adapt.common import plain

    csv_of(tmp_path, ["a.png,a dog's face,dog", "b.png,a sunflower,sunflower"])
    known = str(tmp_path / "known.safetensors")
    runner = CliRunner()
    made = runner.invoke(
        main, ["index", str(tmp_path / "records.csv"), "--pairs", "--backbone", "mini-clip", "--out", known]
    )
    assert made.exit_code == 0
    assert "2 pairs" in made.output
    found = runner.invoke(main, ["search", known, str(tmp_path / "records.csv"), "--top-k", "1", "--json"])
    said = [plain.parse(line.encode()) for line in found.stdout.splitlines()]
    assert [(each["query"], each["found"][0]["entry"]) for each in said] == [("a.png", "dog"), ("b.png", "sunflower")]
    other = tmp_path / "lists" / "records.csv"  # the list in another folder than its images, of which one names nothing
    other.parent.mkdir()
    other.write_text("path,text,entity\na.png,a dog's face,dog\nb.png,a sunflower,\n")
    root, known = ["--root", str(tmp_path)], str(tmp_path / "lists" / "known.safetensors")
    made = runner.invoke(main, ["index", str(other), "--pairs", *root, "--backbone", "mini-clip", "--out", known])
    assert made.exit_code == 0
    found = runner.invoke(main, ["search", known, str(other), "--top-k", "1", "--json", *root])
    said = [plain.parse(line.encode()) for line in found.stdout.splitlines()]
    assert [(each["query"], each["found"][0]["entry"]) for each in said] == [("a.png", "dog"), ("b.png", "b.png")]
    new = str(tmp_path / "new.safetensors")
    refused = runner.invoke(main, ["index", str(tmp_path), *root, "--backbone", "mini-clip", "--out", new])
    assert "--root is the folder of the images for --pairs" in refused.output
    refused = runner.invoke(main, ["search", known, "a dog", *root])
    assert "--root is the image folder of a .csv of pairs, but no query is a .csv" in refused.output
    (tmp_path / "new.csv").write_text("path\na.png\n")
    refused = runner.invoke(main, ["search", known, str(tmp_path / "new.csv")])
    assert "new.csv': " in refused.output
    assert "a.png' is not an image with a text. Expected the columns path,text" in refused.output
    texts = str(tmp_path / "texts.safetensors")
    source = str(tmp_path / "records.csv")
    assert runner.invoke(main, ["index", source, "--backbone", "mini-clip", "--out", texts]).exit_code == 0
    refused = runner.invoke(main, ["search", texts, source])
    assert "is an index of texts, but a query is a .csv of pairs: give an index made by" in refused.output


def test_bundled_records_have_other_concepts_in_each_part_and_misread_names() -> None:
    split = load("emoji-records")
    parts = [{item.unit for item in part} for part in (split.train, split.val, split.test)]
    assert not (parts[0] & parts[1])
    assert not (parts[0] & parts[2])
    assert not (parts[1] & parts[2])
    assert (len(split.train), len(split.val), len(split.test)) == (1052, 180, 1552)
    assert sum(item.text == item.unit for item in split.test) < len(split.test) / 10
    assert "fluent-3d" not in {item.domain for item in split.train}
    assert sum(item.domain == "fluent-3d" for item in split.test) == 328
    assert misread("dog face", Random(1)) == misread("dog face", Random(1)) != "dog face"

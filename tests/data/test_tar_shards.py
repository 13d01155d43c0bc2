"""Tar shards: the items, order and adapter of the same files, also at a web address; what is damaged is named."""

from __future__ import annotations

import functools
import io
import json
import tarfile
import threading
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from adapt import AdaptError
from adapt.cli import main
from adapt.data import load, open_image
from adapt.data.decoding.files import tar_places
from adapt.data.readers.tar_shards import TarShards, expanded
from adapt.formats.tensor_file import read as read_tensors
from adapt.recipe import build_recipe
from adapt.training.run_recipe import run_recipe


def pack(shard: Path, files: Mapping[str, str | bytes]) -> Path:
    """A shard with these files, in this order."""
    shard.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shard, "w") as opened:
        for name, content in files.items():
            inside = content.encode() if isinstance(content, str) else content
            header = tarfile.TarInfo(name)
            header.size = len(inside)
            opened.addfile(header, io.BytesIO(inside))
    return shard


def png(colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(five_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `five_classes` in their order, seven to a shard, with the names of their classes."""
    folder = tmp_path_factory.mktemp("shards")
    for part in ("train", "test"):
        images = sorted((five_classes / part).rglob("*.png"))
        for number, start in enumerate(range(0, len(images), 7)):
            files: dict[str, str | bytes] = {}
            for path in images[start : start + 7]:
                key = f"{images.index(path):04d}"
                files |= {f"{key}.png": path.read_bytes(), f"{key}.cls": path.parent.name}
            pack(folder / part / f"{number:03d}.tar", files)
    return folder


def test_items_are_those_of_the_files_in_their_order(shards: Path, five_classes: Path) -> None:
    ours, theirs = load(shards), load(five_classes)
    assert ours.class_names == theirs.class_names
    for part in ("train", "val", "test"):
        items, expected = getattr(ours, part), getattr(theirs, part)
        assert [item.class_names for item in items] == [item.class_names for item in expected]
        for one, other in zip(items, expected, strict=True):
            assert open_image(one.path).tobytes() == open_image(other.path).tobytes()
    assert ours.train[8].path == f"{shards}/train/001.tar!0008.png"


def recipe_on(model_folder: Path, data: Path, epochs: int) -> Any:
    return build_recipe(
        {
            "method": {"name": "lora"},
            "backbone": str(model_folder),
            "data": {"source": str(data), "shots": 2, "template": "{} texture."},
            "train": {"epochs": epochs, "batch_size": 3, "lr": 0.01, "workers": 1},
            "cache": False,
        },
        "shards",
    )


@pytest.mark.usefixtures("in_workers")
@pytest.mark.full
def test_the_adapter_is_that_of_the_files_and_resumes_within_a_shard(
    shards: Path, five_classes: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    found = []
    for name, data in (("files", five_classes), ("shards", shards)):
        run_recipe(recipe_on(model_folder, data, 2), tmp_path / name, progress=False)
        found.append(read_tensors(tmp_path / name / "adapter.safetensors"))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(x, found[1][name]) for name, x in found[0].items())
    from stopping import interrupt, stopped_at

    with stopped_at(5, interrupt):  # in the second epoch of four steps
        run_recipe(recipe_on(model_folder, shards, 2), tmp_path / "stopped", progress=False)
    run_recipe(recipe_on(model_folder, shards, 2), tmp_path / "stopped", resume=True, progress=False)
    again = read_tensors(tmp_path / "stopped" / "adapter.safetensors")
    assert all(torch.equal(x, again[name]) for name, x in found[0].items())


def test_class_numbers_are_lines_of_a_file(tmp_path: Path) -> None:
    files = {f"{i}.{suffix}": content for i in range(6) for suffix, content in (("png", png()), ("cls", str(i % 2)))}
    pack(tmp_path / "set/train-000.tar", files)
    pack(tmp_path / "set/test-000.tar", files)
    with pytest.raises(AdaptError, match=r"the sample '0' has the class number 0: put classnames\.txt"):
        load(tmp_path / "set")
    (tmp_path / "set/classnames.txt").write_text("red panda\nsky\n")
    split = load(tmp_path / "set")
    assert split.class_names == ("red panda", "sky")
    assert [item.class_names[0] for item in split.test] == ["red panda", "sky"] * 3
    (tmp_path / "set/classnames.txt").write_text("red panda\n")
    with pytest.raises(AdaptError, match=r"has the class '1', but classnames\.txt has 1 names"):
        load(tmp_path / "set")


def test_captions_are_pairs_one_for_each_line(tmp_path: Path) -> None:
    pack(tmp_path / "train.tar", {"a.png": png(), "a.txt": "a red square\nsomething red\n", "a.json": "{}"})
    pack(tmp_path / "test.tar", {"b/c.png": png(), "b/c.txt": "another"})
    split = load(tmp_path)
    assert [(item.path.rpartition("/")[2], item.text) for item in split.train] == [
        ("train.tar!a.png", "a red square"),
        ("train.tar!a.png", "something red"),
    ]
    assert split.test[0].path == f"{tmp_path}/test.tar!b/c.png"


def test_conversations_are_about_the_images_of_their_sample(tmp_path: Path) -> None:
    chat = {"image": "elsewhere.jpg", "conversations": [
        {"from": "human", "value": "<image><image>\nSame?"}, {"from": "gpt", "value": "Yes."},
    ]}  # fmt: skip
    one = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]}
    files = {"./a.0.png": png(), "./a.1.png": png((1, 2, 3)), "./a.json": json.dumps(chat), "b.json": json.dumps(one)}
    pack(tmp_path / "train-0.tar", files)
    with pytest.raises(AdaptError, match="the sample 'b' has 0 images"):
        load(tmp_path)
    pack(tmp_path / "train-0.tar", {name: content for name, content in files.items() if name != "b.json"})
    [item] = load(tmp_path).train
    assert item.paths == (f"{tmp_path}/train-0.tar!./a.0.png", f"{tmp_path}/train-0.tar!./a.1.png")
    assert open_image(item.paths[1]).getpixel((0, 0)) == (1, 2, 3)
    assert item.task.name == "conversations" or item.task.images


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.png": png()}, "the sample 'a' has neither a class"),
        ({"a.png": png(), "a.cls": "sky", "b.png": png()}, r"the sample 'b' has no \.cls, which the first sample has"),
        ({"a.cls": "sky"}, "the sample 'a' has 0 images; expected one"),
        ({"a.png": png(), "a.txt": " \n"}, "the sample 'a' has an empty caption"),
        ({"a.png": png(), "a.json": "{"}, r"the sample 'a' has a \.json that cannot be read"),
        ({"a.png": png(), "a.json": "[]"}, r"the sample 'a' is \[\]; expected an object"),
        ({"a.png": png(), "a.cls": b"\xff"}, "cannot be read: 'utf-8' codec"),
        ({}, "have no samples"),
    ],
)
def test_what_is_missing_is_named(files: dict[str, str | bytes], message: str, tmp_path: Path) -> None:
    pack(tmp_path / "set/train.tar", files)
    with pytest.raises(AdaptError, match=message):
        load(tmp_path / "set")


@pytest.mark.parametrize("kept", [0, 100, 700, 1600])
def test_a_damaged_shard_is_named(kept: int, tmp_path: Path) -> None:
    whole = pack(tmp_path / "set/train-000.tar", {"a.png": png(), "a.cls": "sky", "b.png": png(), "b.cls": "sky"})
    damaged = tmp_path / "set/train-001.tar"
    damaged.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(AdaptError, match=r"tar shard '.*train-001\.tar' cannot be read"):
        load(tmp_path / "set")


def test_a_compressed_shard_and_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(AdaptError, match="no uncompressed tar archive"):
        load(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar", "w") as opened:
        for _ in range(2):
            opened.addfile(tarfile.TarInfo("a.cls"), io.BytesIO())
    with pytest.raises(AdaptError, match=r"its file 'a\.cls' is sparse, or there twice"):
        load(tmp_path / "a.tar")


def test_a_shard_that_changed_is_looked_up_again(tmp_path: Path) -> None:
    shard = pack(tmp_path / "a.tar", {"a.png": png()})
    assert list(tar_places(str(shard))) == ["a.png"]
    pack(shard, {"b.png": png(), "c.png": png()})
    assert list(tar_places(str(shard))) == ["b.png", "c.png"]
    with pytest.raises(AdaptError, match=r"'.*a\.tar!a\.png' does not exist: the archive has no such member"):
        open_image(f"{shard}!a.png")


def test_patterns_with_braces() -> None:
    assert expanded("{train,val}-{08..10}.tar") == [
        "train-08.tar", "train-09.tar", "train-10.tar", "val-08.tar", "val-09.tar", "val-10.tar",
    ]  # fmt: skip
    assert expanded("one.tar") == ["one.tar"]
    for pattern in ("{0..99999}{0..9}.tar", "{0..999999999999}.tar", "{5..4}.tar"):
        with pytest.raises(AdaptError, match="stands for"):
            expanded(pattern)


def test_a_pattern_takes_some_shards_and_names_what_is_missing(shards: Path) -> None:
    split = load(f"{shards}/{{train,test}}/{{000..001}}.tar")
    assert (len(split.train), len(split.test)) == (14, 14)
    with pytest.raises(AdaptError, match=r"'.*train/003\.tar' does not exist"):
        load(f"{shards}/train/{{000..003}}.tar")


def test_an_archive_beside_class_folders_is_no_shard(five_classes: Path, shards: Path, tmp_path: Path) -> None:
    reader = TarShards()
    assert reader.claims(str(shards))
    assert not reader.claims(str(five_classes))
    (tmp_path / "cat").mkdir()
    pack(tmp_path / "images.tar", {"a.png": png()})
    assert not reader.claims(str(tmp_path))
    (tmp_path / "cat").rmdir()
    assert reader.claims(str(tmp_path))
    (tmp_path / "a.png").write_bytes(png())
    assert not reader.claims(str(tmp_path))


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a word, and a file `short.tar` only in part."""

    def log_message(self, format: str, *args: object) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]

    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.write(source.read(600) if self.path.endswith("short.tar") else source.read())


@pytest.fixture
def served(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(shards)))
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_shards_at_a_web_address_are_downloaded_once(served: ThreadingHTTPServer, shards: Path) -> None:
    address = f"http://127.0.0.1:{served.server_port}"
    split = load(address + "/{train,test}/{000..002}.tar")
    assert [item.class_names for item in split.train] == [item.class_names for item in load(shards).train]
    assert open_image(split.train[0].path).size == (8, 8)
    assert len(served.asked) == 6  # type: ignore[attr-defined]
    load(address + "/{train,test}/{000..002}.tar")
    assert len(served.asked) == 6  # type: ignore[attr-defined]
    for version in ("1.tar", "2.tar"):  # of the same name, which are other files
        load(f"{address}/train/000.tar?version={version}")
    assert len(served.asked) == 8  # type: ignore[attr-defined]


def test_a_shard_that_ends_early_is_not_kept(served: ThreadingHTTPServer, shards: Path, tmp_path: Path) -> None:
    (shards / "short.tar").write_bytes((shards / "train/000.tar").read_bytes())
    try:
        with pytest.raises(AdaptError, match=r"short\.tar' cannot be downloaded: .*received 600 bytes"):
            load(f"http://127.0.0.1:{served.server_port}/short.tar")
    finally:
        (shards / "short.tar").unlink()
    with pytest.raises(AdaptError, match=r"none\.tar' cannot be downloaded: the server answers 404 File not found"):
        load(f"http://127.0.0.1:{served.server_port}/none.tar")
    assert list((tmp_path / "cache").rglob("*.tar*")) == []


def test_data_check_counts_shards(shards: Path) -> None:
    done = CliRunner().invoke(main, ["data", "check", str(shards)])
    assert done.exit_code == 0, done.output
    assert "20" in done.output

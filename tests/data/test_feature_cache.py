"""The cache of image features: what it computes, shares, validates and deletes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from sample_transforms import Encoder, to_tensor, with_noise
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.data import FeatureCache, Item, open_image
from adapt.data.decoding import cache


def _shards(store: FeatureCache) -> list[Path]:
    return sorted(store.directory.rglob("*.safetensors"))


def test_features_come_in_the_order_of_the_items(store: FeatureCache, items: list[Item], encode: Encoder) -> None:
    expected = torch.tensor([[i, 2 * i, 255 - i] for i in range(10)]).float()
    assert torch.equal(store.features(items, to_tensor, encode, "k", batch_size=3), expected)
    assert torch.equal(store.features(items[::-1], to_tensor, encode, "k"), expected.flip(0))
    assert encode.images == 10


def test_only_what_is_missing_is_decoded(store: FeatureCache, items: list[Item], encode: Encoder) -> None:
    decoded = []

    def transform(picture: Any) -> Tensor:
        decoded.append(picture)
        return to_tensor(picture)

    store.features(items[:6], transform, encode, "k")
    FeatureCache(store.directory).features(items[4:], transform, encode, "k")
    assert (encode.images, len(decoded)) == (10, 10)


def test_rows_may_differ_in_length(store: FeatureCache, items: list[Item]) -> None:
    """As the tokens of images of different sizes do; they are stored, and computed once."""
    computed = []

    def encode(images: Tensor) -> list[Tensor]:
        computed.append(len(images))
        return [image.flatten()[: 1 + int(image[0, 0, 0]) % 3] for image in images]

    first = store.rows(items, to_tensor, encode, "k")
    assert [len(row) for row in first] == [1 + number % 3 for number in range(10)]
    again = FeatureCache(store.directory).rows(items[::-1], to_tensor, encode, "k")
    assert all(torch.equal(one, other) for one, other in zip(first[::-1], again, strict=True))
    assert computed == [10]


def test_another_key_is_another_feature(store: FeatureCache, items: list[Item], encode: Encoder) -> None:
    store.features(items, to_tensor, encode, "one")
    store.features(items, to_tensor, encode, "two")
    assert encode.images == 20


def test_content_counts_and_not_the_path(store: FeatureCache, items: list[Item], encode: Encoder) -> None:
    copy = shutil.copy(items[0].path, items[0].path + ".copy.png")
    features = store.features([items[0], Item.of(path=copy, label="b")], to_tensor, encode, "k")
    assert encode.images == 1
    assert torch.equal(features[0], features[1])
    shutil.copy(items[5].path, items[0].path)
    assert store.features(items[:1], to_tensor, encode, "k")[0, 0] == 5
    assert encode.images == 2


@pytest.mark.usefixtures("in_workers")
def test_views_are_seeded_by_image_and_number(store: FeatureCache, items: list[Item], encode: Encoder) -> None:
    two = store.features(items, with_noise, encode, "k", views=2)
    three = store.features(items[3:], with_noise, encode, "k", views=3, workers=1)
    assert (two.shape, three.shape) == ((10, 2, 3), (7, 3, 3))
    assert encode.images == 20 + 7
    assert torch.equal(two[3:], three[:, :2])
    assert len(three[:, :, 0].unique()) == 21


def test_what_an_earlier_version_has_stored_is_found(store: FeatureCache, items: list[Item]) -> None:
    """Folder, row and view are named as ever: another seed would put other views beside those that are stored."""
    seeds = store.features(items[:2], _seed, lambda images: images[:, :, 0, 0], "k", views=2).long()
    for item, views in zip(items, seeds):
        content = hashlib.blake2b(Path(item.path).read_bytes()).digest()
        rows = [hashlib.blake2b(content + str(view).encode(), digest_size=16).digest() for view in range(2)]
        expected = [int.from_bytes(row[:8]) >> 1 for row in rows]
        assert views.tolist() == [[seed >> 43, seed >> 22 & 0x1FFFFF, seed & 0x3FFFFF] for seed in expected]
    name = hashlib.sha256(f"{cache._FORMAT}\nk".encode()).hexdigest()[:32]
    assert [folder.name for folder in store.directory.iterdir()] == [name]
    assert [len(shard.stem) for shard in _shards(store)] == [32]


def _seed(picture: Any) -> Tensor:
    """The seed that torch's generator has, in three parts that float32 holds."""
    seed = torch.initial_seed()
    return torch.tensor([seed >> 43, seed >> 22 & 0x1FFFFF, seed & 0x3FFFFF]).float().view(3, 1, 1)


def test_features_can_take_part_in_a_backward(store: FeatureCache, items: list[Item], encode: Encoder) -> None:
    weight = torch.ones(3, requires_grad=True)
    (store.features(items, to_tensor, encode, "k") @ weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad[0] == 45


def test_dtypes_are_kept(store: FeatureCache, items: list[Item]) -> None:
    for _ in range(2):
        assert store.features(items, to_tensor, lambda x: x[:, :, 0, 0].bfloat16(), "k").dtype == torch.bfloat16


def test_progress_counts_what_is_computed(store: FeatureCache, items: list[Item], encode: Encoder) -> None:
    calls: list[tuple[int, int]] = []
    store.features(items[:2], to_tensor, encode, "k")
    for _ in range(2):
        store.features(items, to_tensor, encode, "k", batch_size=5, progress=lambda *call: calls.append(call))
    assert calls == [(5, 8), (8, 8)]


def test_large_sets_are_written_shard_by_shard(
    store: FeatureCache, items: list[Item], encode: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_SHARD_ROWS", 4)
    broken = Item.of(path=__file__, label="a")
    with pytest.raises(AdaptError, match=r"test_feature_cache.py' cannot be decoded"):
        store.features([*items, broken], to_tensor, encode, "k", batch_size=2)
    assert len(_shards(store)) == 2
    store.features(items, to_tensor, encode, "k", batch_size=2)
    assert encode.images == 10 + 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "id", "feature", "extra", "foreign"])
def test_a_damaged_shard_is_computed_again(
    store: FeatureCache, items: list[Item], encode: Encoder, damage: str
) -> None:
    expected = store.features(items, to_tensor, encode, "k")
    (shard,) = _shards(store)
    content = shard.read_bytes()
    first = 8 + int.from_bytes(content[:8], "little")  # byte of the features; the ids stand at the end
    damaged = {
        "truncated": content[:-5],
        "empty": b"",
        "id": content[:-1] + bytes([content[-1] ^ 1]),
        "feature": content[:first] + bytes([content[first] ^ 1]) + content[first + 1 :],
        "extra": save(load_file(shard) | {"more": torch.zeros(1)}),
        "foreign": b"\x02" + bytes(7) + b"{}",
    }
    shard.write_bytes(damaged[damage])
    assert torch.equal(store.features(items, to_tensor, encode, "k"), expected)
    assert encode.images == 20
    assert torch.equal(store.features(items, to_tensor, encode, "k"), expected)
    assert encode.images == 20


def test_nothing_half_written_is_read(store: FeatureCache, items: list[Item], encode: Encoder) -> None:
    store.features(items, to_tensor, encode, "k")
    (shard,) = _shards(store)
    killed = shard.rename(shard.with_name("tmp123.tmp"))
    store.features(items, to_tensor, encode, "k")
    assert encode.images == 20
    os.utime(killed, (0, 0))
    store.features(items, to_tensor, encode, "another")
    assert not killed.exists()


def test_above_the_limit_the_longest_unused_go(store: FeatureCache, items: list[Item], encode: Encoder) -> None:
    for number, key in enumerate("abc"):
        store.features(items[:2], to_tensor, encode, key)
        newest = max(_shards(store), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (time.time() - 100 + number,) * 2)
    store.features(items[:2], to_tensor, encode, "a")  # used again: "b" is now the oldest
    store.max_bytes = sum(path.stat().st_size for path in _shards(store))
    store.features(items[:2], to_tensor, encode, "d")
    assert len(_shards(store)) == 3
    for key, hit in (("a", True), ("c", True), ("d", True), ("b", False)):
        before = encode.images
        store.features(items[:2], to_tensor, encode, key)
        assert (encode.images == before) is hit, key


def _fill(directory: Path, items: list[Item], barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    store, encode = FeatureCache(directory), Encoder()
    barrier.wait()
    for start in range(9):
        features = store.features(items[start : start + 2], to_tensor, encode, "k")
        assert features[:, 0].tolist() == [start, start + 1]
    results.put(encode.images)


def test_two_processes_fill_one_cache(store: FeatureCache, items: list[Item], encode: Encoder) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    both = [context.Process(target=_fill, args=(store.directory, items, barrier, results)) for _ in range(2)]
    for process in both:
        process.start()
    counts = [results.get(timeout=30) for _ in both]
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert 10 <= sum(counts) <= 20
    store.features(items, to_tensor, encode, "k")
    assert encode.images == 0


def test_shards_that_others_delete_at_the_same_time_are_not_missed(
    store: FeatureCache, items: list[Item], encode: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that is gone when it is opened, one that is gone when it is deleted as damaged, and one when trimmed."""
    store.features(items[:5], to_tensor, encode, "k")
    (shard,) = _shards(store)
    (shard.parent / "-gone.safetensors").symlink_to(shard.parent / "gone")
    (shard.parent / "-wrong.safetensors").write_bytes(b"damaged")
    unlink = Path.unlink

    def second(path: Path, missing_ok: bool = False) -> None:
        os.unlink(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", second)
    store.features(items[:5], to_tensor, encode, "k")
    assert encode.images == 5
    assert not (shard.parent / "-wrong.safetensors").exists()
    store.clear()
    assert not shard.exists()


def test_shards_are_read_until_all_is_found(store: FeatureCache, items: list[Item], encode: Encoder) -> None:
    for part in (items[:5], items[5:]):
        store.features(part, to_tensor, encode, "k")
    first, second = _shards(store)
    second.write_bytes(b"damaged")
    rows = [store.features([item], to_tensor, encode, "k") for item in items if _in(first, item)]
    assert len(rows) == 5
    assert encode.images == 10
    assert second.read_bytes() == b"damaged"  # was never opened


def _in(shard: Path, item: Item) -> bool:
    """Whether `shard` has the features of `item`, the colour of its first pixel."""
    return float(to_tensor(open_image(item))[0, 0, 0]) in load_file(shard)["features"][:, 0].tolist()


def test_the_default_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path))
    assert FeatureCache().directory == tmp_path
    monkeypatch.delenv("ADAPT_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert FeatureCache().directory == Path("/home/someone/.cache/adapt/features")


def test_a_pipe_among_the_shards_is_passed_over(store: FeatureCache, items: list[Item], encode: Encoder) -> None:
    store.features(items, to_tensor, encode, "k")
    os.mkfifo(_shards(store)[0].with_name("0.safetensors"))
    store.features(items, to_tensor, encode, "k")
    assert encode.images == 10
    assert sum(files for files, _ in store.sizes().values()) == 1


def test_what_is_refused(store: FeatureCache, items: list[Item]) -> None:
    with pytest.raises(AdaptError, match="no images to compute features of"):
        store.features([], to_tensor, Encoder(), "k")
    with pytest.raises(ValueError, match=r"a row of shape \(3, 8, 8\); expected \(d,\)"):
        store.features(items, to_tensor, lambda images: images, "k")
    with pytest.raises(ValueError, match="shorter"):
        store.features(items, to_tensor, lambda images: images[1:, :, 0, 0], "k")


def test_its_size_is_told_and_it_can_be_cleared(store: FeatureCache, items: list[Item], encode: Encoder) -> None:
    for key in ("one", "two"):
        store.features(items, to_tensor, encode, key)
    mine = store.directory / "mine.txt"
    mine.write_text("not a shard")
    files = list(store.directory.rglob("*.safetensors"))
    assert sorted(store.sizes().values()) == sorted((1, file.stat().st_size) for file in files)
    assert len(files) == 2
    store.clear()
    assert store.sizes() == {}
    assert mine.exists()


def test_the_limit_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert FeatureCache(tmp_path).max_bytes == 4 * 2**30
    monkeypatch.setenv("ADAPT_CACHE_GIB", "0.5")
    assert FeatureCache(tmp_path).max_bytes == 2**29
    for wrong in ("much", "0", "-1", "inf", "nan"):
        monkeypatch.setenv("ADAPT_CACHE_GIB", wrong)
        with pytest.raises(AdaptError, match=f"ADAPT_CACHE_GIB is '{wrong}'; expected the maximum size"):
            FeatureCache(tmp_path)


def test_images_that_do_not_change_are_read_once(
    store: FeatureCache, items: list[Item], encode: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a comparison, which reads the features of the same images a hundred times."""
    read = []
    monkeypatch.setattr(cache, "read_bytes", lambda path: read.append(path) or Path(path).read_bytes())
    with cache.unchanging_images():
        first = store.features(items, to_tensor, encode, "k")
        with cache.unchanging_images():
            assert torch.equal(store.features(items[::-1], to_tensor, encode, "k"), first.flip(0))
    assert read == [item.path for item in items]
    shutil.copy(items[0].path, items[1].path)
    assert torch.equal(store.features(items, to_tensor, encode, "k")[1], first[0])

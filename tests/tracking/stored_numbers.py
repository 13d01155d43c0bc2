"""What TensorBoard, Weights & Biases and MLflow have stored, read back: `{(name, step): value}` and the last figures.

A number that is stored twice for one step is an error.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Numbers = dict[tuple[str, int], float]


def single(value: float) -> float:
    """The number as TensorBoard's scalars have it, in single precision."""
    return struct.unpack("f", struct.pack("f", value))[0]


def tensorboard(folder: Path) -> Numbers:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return _once((tag, event.step, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag))


def mlflow(uri: str) -> tuple[Numbers, Any]:
    """Its numbers and the run itself, the only one."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("adapt").experiment_id])
    stored = [client.get_metric_history(run.info.run_id, name) for name in run.data.metrics]
    return _once((each.key, each.step, each.value) for history in stored for each in history), run


def wandb(folder: Path) -> tuple[Numbers, dict[str, Any], set[str]]:
    """The numbers of steps, the summary, and the ids of the runs."""
    from wandb.proto.wandb_internal_pb2 import Record

    steps: list[tuple[str, int, float]] = []
    summary: dict[str, Any] = {}
    ids: set[str] = set()
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for part in _records(file.read_bytes()):
            record = Record.FromString(part)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("summary"):
                summary |= _items(record.summary.update)
            if record.HasField("history"):
                items = _items(record.history.item)
                step = record.history.step.num
                steps += [(name, step, value) for name, value in items.items() if not name.startswith("_")]
    return _once(steps), summary, ids


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a log as LevelDB writes it, in blocks of 32 KiB, behind seven bytes that name W&B."""
    place, kept = 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        kept += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield kept
            kept = b""


def _once(numbers: Iterable[tuple[str, int, float]]) -> Numbers:
    found: Numbers = {}
    for name, step, value in numbers:
        assert (name, step) not in found, f"{name} is stored twice for step {step}"
        found[name, step] = value
    return found

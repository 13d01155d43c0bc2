"""What comes of files that make no sense though nothing in them is damaged: a refusal, or the file's own answer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
import yaml
from click.testing import CliRunner
from equal_runs import CASES, KINDS
from faults import outcomes, semantics
from faults.adapters import saved
from faults.outcomes import Outcome
from PIL import Image

import adapt
from adapt import AdaptError, methods
from adapt.cli import main
from adapt.common.shown import unseen
from adapt.formats import tensor_file
from adapt.formats.adapter import read_header, read_tensors
from adapt.recipe import read_recipe
from adapt.recipe.file import read_file
from adapt.recipe.shipped import shipped
from adapt.retrieval.index import index_texts, load_index
from adapt.testing import Case as Trial
from adapt.training.fit import fit_plan
from adapt.training.loop import Trainer
from adapt.training.run_recipe import build, plan_of

PICTURES = [Image.effect_noise((40, 40), 60 + 20 * number).convert("RGB") for number in range(3)]
MORE = ("das_vilt", "das_bridgetower", "compose_llm", "lora_llm", "lora_siglip")  # of `faults.adapters`
ADAPTERS = (*CASES, *((name, "untrained") for name in MORE))
KEPT = ("method", "class_names", "fingerprint", "logit_scale", "answers")
TEXTS = ("a red panda", "two goldfish in a bowl", "the sea")


@dataclass(frozen=True)
class Case:
    """One file, by what it was made of and the seed."""

    of: str
    seed: int
    outcome: Outcome

    @property
    def bad(self) -> bool:
        return self.outcome.kind not in ("refused", "answered") or self.outcome.seconds > 10


@cache
def backbone(kind: str) -> Any:
    return KINDS[kind]()


@cache
def trained(name: str, kind: str) -> tuple[bytes, Any]:
    """The file of a small run of a method, and its backbone; of a name in `MORE` that of a model that did not learn."""
    if kind == "untrained":
        return saved(name)[:2]
    method = methods.find(name)
    trial = Trial(method, method.example, backbone(kind))
    with TemporaryDirectory() as folder:
        out = trial.train(trial.new(), out=Path(folder) / "run", test_set=trial.split.test).adapter
        return out.read_bytes(), trial.backbone


def adapters(name: str, kind: str, seeds: range) -> Iterator[Case]:
    whole, on = trained(name, kind)
    with TemporaryDirectory() as folder:
        source, path = Path(folder) / "whole.safetensors", Path(folder) / "a.safetensors"
        source.write_bytes(whole)
        for seed in seeds:
            semantics.resigned(source, path, random.Random(f"{name} {seed}"), of_tensors=0.25)
            yield Case(name, seed, outcomes.of(lambda: _adapter(path, on)))


def _adapter(path: Path, on: Any) -> tuple[str, str]:
    """Inspects, loads and asks an adapter; what it says must be what the file does."""
    said = CliRunner().invoke(main, ["inspect", str(path), "--words", "0"])
    _one_line(said)
    try:
        model = adapt.load(path, on)
        question = {} if on.kind == "dual encoder" else {"question": "what is it ?"}
        found = model.predict(PICTURES, **question)
    except AdaptError as error:
        return _refused(error)
    assert said.exit_code == 0, said.output
    for each in found:
        assert not model.class_names or {name for name, _ in each.top} <= {*model.class_names, "none"}
        assert all(0 <= probability <= 1 for _, probability in each.top), each
    again = model.save(path.with_name("again.safetensors"))
    file, kept = read_header(path), read_header(again)
    for key in KEPT:
        told, is_now = (json.loads(json.dumps(getattr(header, key))) for header in (file, kept))
        assert told in (None, is_now) or _nearly(key, told, is_now), f"{key}: {told} became {is_now}"
    made = methods.find(file.method)
    config = made(**file.config).config.model_dump(mode="json")
    told = {key: value for key, value in config.items() if value is not None}  # the rest follows from it
    assert told == {key: kept.config[key] for key in told}, f"{config} became {kept.config}"
    tensors, now = read_tensors(path), read_tensors(again)
    assert tensors.keys() == now.keys()
    assert all(torch.equal(tensors[name].to(now[name].dtype), now[name]) for name in now)
    return "answered", ""


def _nearly(key: str, told: Any, is_now: Any) -> bool:
    """Whether a scale is the same to rounding, answers leave out what they do not use, or a newer key is left out."""
    if key == "fingerprint":
        return bool(told | is_now == told)
    if key == "logit_scale":
        return is_now is not None and abs(told - is_now) <= 1e-3 * is_now
    unused = {"logit_bias": None, "pooling": "features"}
    plain = {"blend": 1.0, "template": [], "temperature": 1.0}
    return key == "answers" and unused | told == unused | (is_now or plain)


def _one_line(said: Any) -> None:
    if said.exception is not None and not isinstance(said.exception, SystemExit):
        raise said.exception
    assert not any(map(unseen, said.output.splitlines())), said.output


def _refused(error: AdaptError) -> tuple[str, str]:
    said = str(error)
    assert said
    assert "\n" not in said, said
    assert len(said) < 5000, f"{len(said)} characters: {said[:300]}"
    return "refused", said


def indexes(seeds: range) -> Iterator[Case]:
    on = backbone("dual encoder")
    asked = index_texts(_plain_model(on), ["a goldfish"]).features
    with TemporaryDirectory() as folder:
        source, path = Path(folder) / "whole.safetensors", Path(folder) / "a.safetensors"
        index_texts(_plain_model(on), TEXTS).save(source)
        for seed in seeds:
            draw = random.Random(f"index {seed}")
            _index_otherwise(source, path, draw)
            yield Case("index", seed, outcomes.of(lambda: _index(path, on, asked)))


def _plain_model(on: Any) -> Any:
    return adapt.wrap(on, methods.ZeroShot(), ("object",)).eval()


def _index_otherwise(source: Path, path: Path, draw: random.Random) -> None:
    metadata, tensors = tensor_file.describe(source).metadata, tensor_file.read(source)
    kind = draw.random()
    if kind < 0.4:
        semantics.otherwise(metadata, draw)
        metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    elif kind < 0.6:
        entries = semantics.otherwise({"entries": json.loads(bytes(tensors["entries"].tolist()))}, draw).get("entries")
        tensors["entries"] = torch.frombuffer(bytearray(json.dumps(entries).encode()), dtype=torch.uint8)
    elif kind < 0.8:
        shape = len(TEXTS), draw.choice((0, 1, 2, 63, 65, 128, 1000))
        tensors["features"] = torch.nn.functional.normalize(torch.ones(shape), dim=-1)
    else:
        tensors = semantics.tensors_otherwise(tensors, draw)
    tensor_file.write(tensors, path, metadata)


def _index(path: Path, on: Any, asked: Any) -> tuple[str, str]:
    try:
        index = load_index(path)
        index.check(_plain_model(on))
        cosines, places = index.nearest(asked, 5)
    except AdaptError as error:
        return _refused(error)
    assert cosines.isfinite().all()
    assert [index.entries[place] for place in places[0]]
    return "answered", ""


def recipes(seeds: range) -> Iterator[Case]:
    names = sorted(shipped())
    on, split = backbone("dual encoder"), Trial(methods.CoOp, {}, backbone("dual encoder")).split
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        for seed in seeds:
            draw = random.Random(f"recipe {seed}")
            name = draw.choice(names)
            raw = _recipe_file(name)
            for _ in range(draw.choice((1, 1, 2))):
                semantics.otherwise(raw, draw)
            path.write_text(yaml.safe_dump(raw, allow_unicode=True))
            yield Case(f"recipe {name}", seed, outcomes.of(lambda: _recipe(path, on, split)))


def _recipe_file(name: str) -> dict[str, Any]:
    """All that the file of a shipped recipe says, on data that is there."""
    file = read_file(shipped()[name], name)
    beside = {key: getattr(file, key) for key in ("on", "expected", "variants", "compared", "preferred")}
    return {
        **file.on_data("emoji"),
        **{key: value for key, value in beside.items() if key in ("on", "compared") or value},
    }


class _Begun(Exception):
    """The first step of a training is taken."""


def _one_step(trainer: Trainer, group: Any, taken: Any = Trainer._step) -> Any:
    taken(trainer, group)
    raise _Begun


def _recipe(path: Path, on: Any, split: Any) -> tuple[str, str]:
    """Reads a recipe, and trains by it as far as the first step; a method without steps is trained and measured."""
    try:
        recipe = read_recipe(path)
        recipe.to_yaml()
        here = {} if recipe.train is None else {"workers": 0}
        with patch.object(Trainer, "_step", _one_step), suppress(_Begun):
            fit_plan(plan_of(recipe, build(recipe, split.class_names, on), split, **here), None)
    except AdaptError as error:
        return _refused(error)
    return "answered", ""

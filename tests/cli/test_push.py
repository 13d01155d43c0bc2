"""`adapt push`, and names on the hub wherever an adapter is given."""

from __future__ import annotations

import json
from pathlib import Path

from hub_stand_in import Repository, StandIn
from huggingface_hub import ModelCard


def test_a_run_is_published_bit_for_bit(run, hub: StandIn, trained, photos: Path) -> None:
    result = run("push", trained("coop"), "user/coop", "--license", "mit", "--private", "--message", "first")
    assert (result.exit_code, result.stdout) == (0, f"published at {hub.address}/user/coop\n")
    repository = hub.repositories["user/coop"]
    assert repository.private
    assert hub.messages == ["first"]
    assert repository.files["adapter.safetensors"] == (trained("coop") / "adapter.safetensors").read_bytes()
    card = ModelCard(repository.files["README.md"].decode())
    assert card.data.license == "mit"
    assert card.data.eval_results[0].dataset_name == photos.name
    assert f"Trained on 2 images a class of `{photos.name}` (seed 1)" in card.text
    for command, *rest in (["predict", photos / "test", "--json"], ["eval", "--data", photos, "--json"]):
        here, there = (run(command, name, *rest) for name in (trained("coop"), "hf://user/coop"))
        assert (there.exit_code, there.stdout) == (0, here.stdout)
    inspected = run("inspect", "hf://user/coop", "--json")
    assert json.loads(inspected.stdout)["class_names"] == ["goldfish", "lime tree", "sky"]


def test_one_of_the_hub_beside_one_of_here(run, hub: StandIn, trained, photos: Path) -> None:
    assert run("push", trained("coop"), "user/coop").exit_code == 0
    result = run("predict", "hf://user/coop", trained("lora"), photos / "test", "--csv")
    assert result.exit_code == 0, result.stderr
    heading = result.stdout.splitlines()[0]
    assert heading == "image,coop,coop probability,lora,lora probability"


def test_a_lora_of_the_hub_becomes_a_folder_of_pefts(run, hub: StandIn, trained, tmp_path: Path) -> None:
    assert run("push", trained("lora"), "user/lora").exit_code == 0
    assert run("convert", "hf://user/lora", tmp_path / "peft", "--to", "peft").exit_code == 0
    back = run("convert", tmp_path / "peft", tmp_path / "back.safetensors")  # it tells backbone and classes
    assert (back.exit_code, back.stdout) == (0, f"written to {tmp_path}/back.safetensors\n")


def test_refusals(run, refused, hub: StandIn, adapter: Path, photos: Path, tmp_path: Path) -> None:
    refused(run("push", tmp_path / "none", "user/coop"), "there is no adapter at", "or the folder of a run")
    refused(
        run("push", adapter, "coop"), "hf://coop is not the name of a repository on the hub: expected hf://user/name"
    )
    refused(run("push", adapter, "another/coop"), "the hub refuses the request for ")
    refused(run("predict", "hf://user/none", photos / "test"), "the hub has no repository user/none")
    hub.repositories["user/empty"] = Repository()
    refused(run("eval", "hf://user/empty", "--data", photos), "hf://user/empty contains no adapter")

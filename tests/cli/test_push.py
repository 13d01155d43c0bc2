"""`adapt push`, and names on the hub wherever an adapter is given."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile

import pytest
from hub_stand_in import Repository, StandIn
from huggingface_hub import ModelCard

from adapt.formats.certificate import Certificate


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


@pytest.mark.full
def test_the_certificate_goes_along(run, refused, hub: StandIn, trained, tmp_path: Path, caplog) -> None:
    """Without one, a push says how to make one; one of an earlier file is not published, and goes from the hub."""
    file = Path(copyfile(trained("coop") / "adapter.safetensors", tmp_path / "mine.safetensors"))
    missing = "no certificate of its latency, memory and operations: make one with `adapt certify {}`, and push again"
    assert run("push", file, "user/coop").exit_code == 0
    assert [each.message.endswith(missing.format(file)) for each in caplog.records].count(True) == 1
    caplog.clear()
    assert "## Cost" not in hub.repositories["user/coop"].files["README.md"].decode()
    result = run("certify", file, "--seconds", 0.01, "--json")
    assert result.exit_code == 0, result.stderr
    place = tmp_path / "mine.certificate.json"
    told = json.loads(place.read_text())
    assert json.loads(result.stdout) == told
    assert told["file_bytes"] == file.stat().st_size
    assert [each["images"] for each in told["latency"]] == [1, 32]
    refused(run("certify", file), f"{place} exists already; name a new file with --out, or delete it")
    shown = run("certify", file, "--seconds", 0.01, "--quiet", "--out", tmp_path / "again.json").stdout
    assert f"operations           {told['operations'] / 1e9:.4g} GFLOPs an image\n" in shown
    pushed = run("push", file, "user/coop")
    assert (pushed.exit_code, "certificate" in caplog.text) == (0, False)
    files = hub.repositories["user/coop"].files
    assert json.loads(files["adapter.certificate.json"]) == told
    card = ModelCard(files["README.md"].decode()).text
    inspected = run("inspect", file).stdout
    for title, text in Certificate(**told).rows().items():
        assert f"| {title} | {text} |\n" in card
        assert f"  {title:20} {text}\n" in inspected
    assert "  operations " in run("inspect", "hf://user/coop").stdout
    refused(run("certify", "hf://user/coop"), "say with --out where to write the certificate")
    assert run("certify", "hf://user/coop", "--seconds", 0.01, "--out", tmp_path / "hub.json").exit_code == 0
    file.write_bytes((trained("lora") / "adapter.safetensors").read_bytes())
    assert run("push", file, "user/coop").exit_code == 0
    assert f"{place} is of another adapter than {file}: delete it, and measure again" in caplog.text
    assert "adapter.certificate.json" not in hub.repositories["user/coop"].files
    refused(run("certify", tmp_path / "none"), "there is no adapter file at")


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

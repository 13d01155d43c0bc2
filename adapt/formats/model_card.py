"""The model card of an adapter: README.md, written from the run that the adapter's header records."""

from __future__ import annotations

import json
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from adapt.backbones.sources import hub_names, is_portable
from adapt.common.errors import AdaptError
from adapt.common.plain import within
from adapt.common.shown import shown
from adapt.formats.adapter import Header
from adapt.formats.rebuild import method_called

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

    from adapt.formats.certificate import Certificate


class WithPeft(NamedTuple):
    """The values with which peft alone, without adapt, can classify like the adapter."""

    base: str | None  # the name by which transformers loads the CLIP; None if that is not enough
    template: str
    scale: float | None  # of the cosines


def model_card(
    header: Header,
    kind: str,
    *,
    address: str,
    place: str,
    peft: WithPeft | None = None,
    license: str | None = None,
    certificate: Certificate | None = None,
) -> str:
    """Return the text of an adapter's model card; `kind` is the kind of backbone, such as `dual encoder`.

    `address` is the adapter's name for `adapt.load`, and `place` is the adapter's name for huggingface_hub and peft.
    Raises AdaptError if `license` is not an identifier such as apache-2.0.
    """
    from huggingface_hub import ModelCard

    shots = within(header.recipe, "data", "shots", kind=int)
    if license is not None and not license.replace("-", "").replace(".", "").isalnum():
        raise AdaptError(f"license is {license!r}; expected an identifier of the Hugging Face Hub, such as apache-2.0")
    card = ModelCard.from_template(
        _metadata(header, kind, license, of_peft=peft is not None),
        template_str=files("adapt.formats").joinpath("model_card.md").read_text(encoding="utf-8"),
        literal=partial(json.dumps, ensure_ascii=False),
        address=address,
        place=place,
        title=_title(header),
        method=method_called(header.method).title,
        backbone=_backbone(header),
        portable=is_portable(header.backbone),
        class_names=list(header.class_names),
        question=kind not in ("dual encoder", "vision encoder"),
        data=_data(header),
        amount="all images" if shots is None else f"{shots} images a class",
        seed=header.seed,
        accuracies=header.accuracies(),
        peft=peft,
        cost={} if certificate is None else {title: shown(text) for title, text in certificate.rows().items()},
    )
    return str(card.content)


def _metadata(header: Header, kind: str, license: str | None, *, of_peft: bool) -> ModelCardData:
    """Return the metadata at the top of the card for the Hugging Face Hub: task, base model, tags, accuracy."""
    from huggingface_hub import EvalResult, ModelCardData

    task, data, base, measured = _task(header, kind), _data(header), hub_names(header.backbone), None
    if data is not None and (accuracy := within(header.metrics, "adapted", "accuracy", kind=float)) is not None:
        measured = [EvalResult(task, "custom", data, "accuracy", accuracy, dataset_split="test")]
    return ModelCardData(
        license=license,
        library_name="adapt",
        base_model=base or None,
        base_model_relation="adapter" if base else None,
        pipeline_tag=task,
        tags=["adapt", header.method, *(["peft"] if of_peft else [])],
        model_name=_title(header) if measured else None,
        eval_results=measured,
    )


def _task(header: Header, kind: str) -> str:
    """Return the Hugging Face Hub's name of the model's task, such as `zero-shot-image-classification`."""
    if kind == "dual encoder":
        return "zero-shot-image-classification" if header.class_names else "image-feature-extraction"
    if kind == "vision encoder":
        return "image-classification"
    return "visual-question-answering" if header.class_names else "image-text-to-text"


def _title(header: Header) -> str:
    data = _data(header)
    return f"{header.method} of {_backbone(header)}" + (f" for {data}" if data else "")


def _backbone(header: Header) -> str:
    """Return the backbone's public name, or for a local folder only the folder's name, to keep its path private."""
    name = header.backbone
    if name is None:
        return "a model without a name"
    return shown(name if is_portable(name) else Path(name).name)


def _data(header: Header) -> str | None:
    """Return the name of the data set, or of its folder without the path; None if the header has no recipe."""
    source = within(header.recipe, "data", "source", kind=str)
    return None if source is None else shown(Path(source).name)

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
    from adapt.formats.certificate import Certificate

# the Hugging Face Hub's names of what models do, with and without class names, by the kind of backbone
_TASKS = {
    "dual encoder": ("zero-shot-image-classification", "image-feature-extraction"),
    "vision encoder": ("image-classification", "image-classification"),
}
_OF_ANSWERS = ("visual-question-answering", "image-text-to-text")


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
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    if license is not None and not license.replace("-", "").replace(".", "").isalnum():
        raise AdaptError(f"license is {license!r}; expected an identifier of the Hugging Face Hub, such as apache-2.0")
    # of a local folder, only the name is told, to keep its path private
    source, name = within(header.recipe, "data", "source", kind=str), header.backbone
    portable = is_portable(name)
    data = None if source is None else shown(Path(source).name)
    backbone = "a model without a name" if name is None else shown(name if portable else Path(name).name)
    title = f"{header.method} of {backbone}" + (f" for {data}" if data else "")
    task = _TASKS.get(kind, _OF_ANSWERS)[not header.class_names]
    base, measured = hub_names(name), None
    if data is not None and (accuracy := within(header.metrics, "adapted", "accuracy", kind=float)) is not None:
        measured = [EvalResult(task, "custom", data, "accuracy", accuracy, dataset_split="test")]
    metadata = ModelCardData(
        license=license,
        library_name="adapt",
        base_model=base or None,
        base_model_relation="adapter" if base else None,
        pipeline_tag=task,
        tags=["adapt", header.method, *(["peft"] if peft is not None else [])],
        model_name=title if measured else None,
        eval_results=measured,
    )
    shots = within(header.recipe, "data", "shots", kind=int)
    card = ModelCard.from_template(
        metadata,
        template_str=files("adapt.formats").joinpath("model_card.md").read_text(encoding="utf-8"),
        literal=partial(json.dumps, ensure_ascii=False),
        address=address,
        place=place,
        title=title,
        method=method_called(header.method).title,
        backbone=backbone,
        portable=portable,
        class_names=list(header.class_names),
        question=kind not in _TASKS,
        data=data,
        amount="all images" if shots is None else f"{shots} images a class",
        seed=header.seed,
        accuracies=header.accuracies(),
        peft=peft,
        cost={} if certificate is None else {title: shown(text) for title, text in certificate.rows().items()},
    )
    return str(card.content)

"""Zero-shot classification with hand-written prompts.

Paper: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021.
Reference: CoOp `ff61507`, `trainers/zsclip.py` (one template, or the mean of the unit-length features of several).
Deviations: none.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from adapt.methods.base import ImageStep, Method, MethodConfig


def check_template(template: str) -> str:
    """Return a template unchanged. Raises ValueError if the template has no placeholder {} for the class name."""
    if "{}" not in template:
        raise ValueError("a template must contain {} where the class name goes")
    return template


def check_templates(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Return one or several templates unchanged. Raises ValueError for an empty list, or a template without {}."""
    if not value:
        raise ValueError("there is no template: give at least one template")
    for template in [value] if isinstance(value, str) else value:
        check_template(template)
    return value


Template = Annotated[str, AfterValidator(check_template)]
Templates = Annotated[str | tuple[str, ...], AfterValidator(check_templates)]


class TemplateConfig(MethodConfig):
    """The settings of methods with one hand-written prompt."""

    template: Template = "a photo of a {}."
    """The prompt, with {} for the class name."""


class TemplatesConfig(MethodConfig):
    """The settings of methods with one or several hand-written prompts."""

    template: Templates = "a photo of a {}."
    """One template, or several whose features are averaged."""


class ZeroShot(Method[ImageStep]):
    """Zero-shot classification by the frozen model with hand-written prompt templates, without any training."""

    name = "zero_shot"
    title = "Zero-shot CLIP (Radford et al., ICML 2021)"
    serves = ("dual encoder", "fusion encoder", "vision LLM", "native VLM")
    tasks = frozenset({"classes", "pairs", "records"})
    Config = TemplatesConfig

    def __init__(self, template: str | tuple[str, ...] = "a photo of a {}.", **config: object) -> None:
        super().__init__(template=template, **config)

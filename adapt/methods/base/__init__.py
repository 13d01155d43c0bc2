"""The interface of methods, the batches that they see, and the training that is passed to them."""

from adapt.methods.base.method import KINDS, Context, Method, MethodConfig
from adapt.methods.base.mixture import Mixture
from adapt.methods.base.space import Space
from adapt.methods.base.step import BlockInputs, Encoded, ImageStep, PairStep, Step, Terms, checked, contrast, total
from adapt.methods.base.training import Training
from adapt.methods.base.traits import Choice, Grid, Trial, trait

__all__ = [
    "KINDS", "BlockInputs", "Choice", "Context", "Encoded", "Grid", "ImageStep", "Method", "MethodConfig", "Mixture",
    "PairStep", "Space", "Step", "Terms", "Training", "Trial", "checked", "contrast", "total", "trait",
]  # fmt: skip

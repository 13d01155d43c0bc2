"""Methods of adaptation, one file for each paper: `coop.py` holds the method called `coop`.

Installed packages provide methods by entry points in the group `adapt.methods`, named after the method; `register` adds
one in this process. `adapt.methods.CoOp` and the like are imported on first use, so listing names costs nothing. A
plug-in is a Python file with methods of a user, which only `adapt --plugin FILE` runs, never a recipe or an adapter.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from adapt.common.errors import AdaptError
from adapt.common.listing import Listing

if TYPE_CHECKING:  # editors and type checkers do not see methods found by their files
    from adapt.methods.abmil import ABMIL as ABMIL
    from adapt.methods.adem_vl import ADEMVL as ADEMVL
    from adapt.methods.anovl import AnoVL as AnoVL
    from adapt.methods.base import Method
    from adapt.methods.bitfit import BitFit as BitFit
    from adapt.methods.cafo import CaFo as CaFo
    from adapt.methods.clap import CLAP as CLAP
    from adapt.methods.clip_adapter import CLIPAdapter as CLIPAdapter
    from adapt.methods.clip_svd import CLIPSVD as CLIPSVD
    from adapt.methods.clippings import CLIPPINGS as CLIPPINGS
    from adapt.methods.close import Close as Close
    from adapt.methods.cocoop import CoCoOp as CoCoOp
    from adapt.methods.compose import Compose as Compose
    from adapt.methods.coop import CoOp as CoOp
    from adapt.methods.ctp_tft import CTPTFT as CTPTFT
    from adapt.methods.das import DAS as DAS
    from adapt.methods.descriptions import Descriptions as Descriptions
    from adapt.methods.detpro import DetPro as DetPro
    from adapt.methods.dino_linear import DINOLinear as DINOLinear
    from adapt.methods.dpl import DPL as DPL
    from adapt.methods.finetune import FineTune as FineTune
    from adapt.methods.gda import GDA as GDA
    from adapt.methods.gpt4image import GPT4Image as GPT4Image
    from adapt.methods.hec import HEC as HEC
    from adapt.methods.hicropl import HiCroPL as HiCroPL
    from adapt.methods.ivlp import IVLP as IVLP
    from adapt.methods.kernel_ridge import KernelRidge as KernelRidge
    from adapt.methods.kgcoop import KgCoOp as KgCoOp
    from adapt.methods.knn import KNN as KNN
    from adapt.methods.lda import LDA as LDA
    from adapt.methods.linear_probe import LinearProbe as LinearProbe
    from adapt.methods.lm4visual import LM4Visual as LM4Visual
    from adapt.methods.ln_tuning import LNTuning as LNTuning
    from adapt.methods.locality import Locality as Locality
    from adapt.methods.lora import LoRA as LoRA
    from adapt.methods.lp_plus_plus import LPPlusPlus as LPPlusPlus
    from adapt.methods.maple import MaPLe as MaPLe
    from adapt.methods.mma import MMA as MMA
    from adapt.methods.mmrl import MMRL as MMRL
    from adapt.methods.mmrlpp import MMRLPP as MMRLPP
    from adapt.methods.modx import ModX as ModX
    from adapt.methods.mqt import MQT as MQT
    from adapt.methods.mrl import MRL as MRL
    from adapt.methods.nearest_mean import NearestMean as NearestMean
    from adapt.methods.ogen import OGEN as OGEN
    from adapt.methods.ola_vlm import OLAVLM as OLAVLM
    from adapt.methods.patch_memory import PatchMemory as PatchMemory
    from adapt.methods.prograd import ProGrad as ProGrad
    from adapt.methods.projector import Projector as Projector
    from adapt.methods.proker import ProKeR as ProKeR
    from adapt.methods.prolip import ProLIP as ProLIP
    from adapt.methods.prompt_src import PromptSRC as PromptSRC
    from adapt.methods.promptkd import PromptKD as PromptKD
    from adapt.methods.pseudo_word import PseudoWord as PseudoWord
    from adapt.methods.rehark import ReHARK as ReHARK
    from adapt.methods.ridge import Ridge as Ridge
    from adapt.methods.savs import SAVs as SAVs
    from adapt.methods.ss_text import SSText as SSText
    from adapt.methods.stata import StatA as StatA
    from adapt.methods.svlc import SVLC as SVLC
    from adapt.methods.task_res import TaskRes as TaskRes
    from adapt.methods.tcp import TCP as TCP
    from adapt.methods.tda import TDA as TDA
    from adapt.methods.tip_adapter import TipAdapter as TipAdapter
    from adapt.methods.tpt import TPT as TPT
    from adapt.methods.transclip import TransCLIP as TransCLIP
    from adapt.methods.two_stage import TwoStage as TwoStage
    from adapt.methods.uniqa import UniQA as UniQA
    from adapt.methods.vl2v import VL2V as VL2V
    from adapt.methods.vl2v_sd import VL2VSD as VL2VSD
    from adapt.methods.vladva import VladVA as VladVA
    from adapt.methods.vlora import VLoRA as VLoRA
    from adapt.methods.xbt import XBT as XBT
    from adapt.methods.zero_shot import ZeroShot as ZeroShot

M = TypeVar("M", bound="type[Method]")


def register(cls: M) -> M:
    """Register a method under its name in this process; also usable as a decorator.

    Raises AdaptError if `cls` is not a method, has no name, or has the name of another method.
    """
    _listing.register(cls)
    return cls


def _base() -> type[Method]:
    from adapt.methods.base import Method

    return Method


def _check(cls: type[Method]) -> None:
    from adapt.methods.base import KINDS, MethodConfig

    if not (isinstance(cls.Config, type) and issubclass(cls.Config, MethodConfig)):
        raise AdaptError(
            f"{cls.name}: Config is {cls.Config!r}; expected a subclass of adapt.methods.base.MethodConfig"
        )
    if not set(cls.serves) or set(cls.serves) - set(KINDS):
        raise AdaptError(f"{cls.name}: serves is {cls.serves!r}; expected one or more of {', '.join(KINDS)}")


_ADVICE = ". For a method of your own, use `adapt --plugin FILE` or `adapt.methods.register`, or install its package"
_listing: Listing[Method] = Listing(
    __name__, __path__, "adapt.methods", _base, "method", frozenset({"base"}), "`adapt methods`", _ADVICE, _check
)
names, find, classes = _listing.names, _listing.find, _listing.classes
known, classes_of = _listing.known, _listing.classes_of


_plugins: dict[Path, None] = {}


def plugins() -> tuple[Path, ...]:
    """Return the plug-in files (Python files with users' methods) that this process has run."""
    return tuple(_plugins)


def run_plugins(paths: Iterable[Path]) -> None:
    """Run each plug-in file once, and register the file's methods. Raises AdaptError if a file defines no method.

    A plug-in can import other files in its folder if no installed library has the same name.
    """
    for path in paths:
        if path.resolve() in _plugins:
            continue
        name = f"adapt_plugin_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path) if path.suffix == ".py" else None
        if spec is None or spec.loader is None or not path.is_file():
            raise AdaptError(f"--plugin is {path}; expected a Python file with methods, such as mine.py")
        if (beside := str(path.resolve().parent)) not in sys.path:
            sys.path.append(beside)  # for what the file imports now, and later
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # so that its classes can be pickled
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise AdaptError(f"--plugin {path} cannot be run: {type(error).__name__}: {error}") from error
        classes = classes_of(module)
        if not classes:
            raise AdaptError(f"--plugin {path} defines no method; expected a subclass of adapt.methods.base.Method")
        for cls in classes:
            register(cls)
        _plugins[path.resolve()] = None


if not TYPE_CHECKING:  # type checkers would otherwise accept a misspelt name

    def __getattr__(attribute: str) -> type[Method]:
        if not attribute.startswith("_"):
            for name in _listing.files():
                for cls in classes_of(importlib.import_module(f"{__name__}.{name}")):
                    if cls.__name__ == attribute:
                        return cls
        raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")

"""Silence for third-party libraries: users can act on our messages, but not on the libraries'."""

from __future__ import annotations

import logging as standard
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Turn off the warnings and progress bars of third-party libraries, but not the warnings of adapt."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("default", module=r"adapt\.")
        from transformers.utils import logging

        logging.set_verbosity_error()
        standard.getLogger("bitsandbytes").setLevel(standard.ERROR)  # it warns that an optional kernel is missing
        logging.disable_progress_bar()
        yield

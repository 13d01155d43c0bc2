"""Silence for third-party libraries: users can act on our messages, but not on the libraries'."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Turn off the warnings and progress bars of third-party libraries, but not the warnings of adapt."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported, which takes a second
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("default", module=r"adapt\.")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns that an optional kernel is missing
        if "transformers" in sys.modules:
            from transformers.utils import logging as of_transformers

            of_transformers.set_verbosity_error()
            of_transformers.disable_progress_bar()
        yield

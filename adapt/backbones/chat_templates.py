"""Chat templates of model folders, which are programs of others: rendered in a sandbox, and tried in a child before.

The sandbox of jinja keeps a template from everything but time and memory. So each template first renders a few
conversations in a process that has little of both. One that is slow only for other conversations is not found.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from adapt.backbones.sources import reason
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("adapt")
SECONDS, MEMORY = 5, 2**30  # of a child's processor; bytes of its memory
_NO_MEMORY = 3  # the child's exit status
Messages = Sequence[object]  # in the form of `Chat.messages`


def rendered(apply: Callable[[], object], who: str) -> str:
    """Return the text that `apply` renders. Raises AdaptError, which begins with `who`, if the template fails."""
    from jinja2 import TemplateError

    try:
        return str(apply())
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise AdaptError(f"{who}: {reason(error)}") from error


def check(template: str, conversations: Sequence[Messages], tokenizer: PreTrainedTokenizerBase, who: str) -> None:
    """Raise AdaptError, which calls the template `who`, if it takes too long or too much memory for conversations."""
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    _check(json.dumps([SECONDS, template, conversations, tokens]), who)


@lru_cache(maxsize=64)
def _check(given: str, who: str) -> None:
    line = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import _try; _try()"]
    try:
        child = subprocess.run(line, input=given, capture_output=True, text=True, timeout=10 * SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise AdaptError(f"{who} takes longer than {10 * SECONDS} seconds: correct it") from None
    if child.returncode == _NO_MEMORY:
        raise AdaptError(f"{who} takes more than {MEMORY // 2**20:,} MiB of memory: correct it")
    if -child.returncode in (signal.SIGKILL, signal.SIGXCPU):
        raise AdaptError(f"{who} takes more than {SECONDS} seconds: correct it")
    if child.returncode:
        why = (child.stderr.strip().splitlines() or [f"status {child.returncode}"])[-1]
        logger.warning("%s is used without a limit of time and memory, as it could not be tried: %s", who, why)


def _try() -> None:
    """Render the conversations on standard input, in a child process; errors of the template are left to its user."""
    import resource

    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag around an answer, which transformers has."""

        tags = frozenset(("generation",))  # type: ignore[assignment]

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    seconds, template, conversations, tokens = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    environment.filters["tojson"] = lambda value, **options: json.dumps(value)
    try:
        compiled = environment.from_string(template)
    except MemoryError:
        sys.exit(_NO_MEMORY)
    except Exception:  # noqa: BLE001  # of whatever kind: it comes again where it can be told
        return
    for messages in conversations:
        for asks in (False, True):
            try:
                compiled.render(**tokens, messages=messages, add_generation_prompt=asks)
            except MemoryError:
                sys.exit(_NO_MEMORY)
            except Exception:  # noqa: BLE001  # as above
                continue

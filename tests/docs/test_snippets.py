"""Every Python snippet of README and docs/ runs, those of a page one after the other."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pages
import pytest
import uvicorn
import yaml
from selection import by_turns

import adapt
from adapt.methods import ZeroShot
from adapt.recipe import build_recipe
from adapt.serving.adapters import ServedAdapters
from adapt.serving.app import create_app

SERVING = pages.ROOT / "docs" / "serving.md"  # whose snippet asks a server
WITH_SNIPPETS = [page for page in pages.PAGES if "```python" in page.read_text(encoding="utf-8") and page != SERVING]


@by_turns("page", WITH_SNIPPETS, take=6, one_in=1, ids=pages.name)
def test_the_snippets_of_a_page_run(page: Path, desk: Path) -> None:
    run, left_out = 0, []
    for example in pages.document(page).examples():
        try:
            example.evaluate()
            run += 1
        except SkipTest as reason:  # which the page gives in a comment
            left_out.append(str(reason))
    assert run
    assert set(left_out) <= {"downloads weights"}


def test_the_client_of_the_guide_talks_to_a_server(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints the answer, and the answer again piece by piece."""
    model: Any = adapt.wrap(adapt.load_backbone("mini-vlm", "cpu"), ZeroShot())
    served = ServedAdapters([f"chats={model.save('chats.safetensors')}"])
    config = uvicorn.Config(create_app(served), port=0, log_level="critical")
    listening = config.bind_socket()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        text = SERVING.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
        capsys.readouterr()
        exec(text.replace(":8000", f":{listening.getsockname()[1]}"), {})
    finally:
        server.should_exit = True
        thread.join(30)
    answer = model.answer("photo.png", "what is it?").text
    assert capsys.readouterr().out == f"{answer}\n{answer}"


def test_the_recipe_of_the_guide_is_one() -> None:
    text = (pages.ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    block = text.partition("```yaml\n")[2].partition("```")[0]
    assert build_recipe(yaml.safe_load(block), "the guide").method == {"name": "lora", "rank": 4}


def test_a_snippet_that_fails_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    first, second = pages.document(page).examples()
    first.evaluate()
    with pytest.raises(AssertionError):
        second.evaluate()

"""The web page of `adapt label`: one image after another, answered by the keyboard, and a round of training."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel

from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.data.decoding.images import open_image
from adapt.labelling.labelling import Annotation, Labelling, LabelRound
from adapt.labelling.proposals import Proposal
from adapt.serving.web import Guard, page, problem

SIDE = 640  # pixels that a picture on the page has at most


class State(BaseModel):
    """The content of the page: the proposals of a round that wait for an answer, and the results of rounds before."""

    classes: tuple[str, ...]
    asked: int
    answers: int
    left: list[JsonObject]
    rounds: list[LabelRound]
    command: str
    training: bool


def _card(proposal: Proposal) -> JsonObject:
    """Return a proposal in the form in which the page gets it."""
    return {
        "path": proposal.item.path,
        "file": Path(proposal.item.path).name,
        "label": proposal.label,
        "reviewed": proposal.reviewed,
        "likely": [{"name": name, "probability": probability} for name, probability in proposal.likely],
        "why": proposal.why,
        "other": proposal.other,
    }


def create_label_app(labelling: Labelling, a_round: int) -> FastAPI:
    """Return the FastAPI application of the page, which asks for `a_round` answers before it trains.

    Only pages of this application, under a loopback address, may send requests. Answers wait for each other, and are
    refused during training.
    """
    app, one_at_a_time, training = FastAPI(title="adapt label", docs_url=None, redoc_url=None), Lock(), Event()
    app.add_middleware(Guard, hosts=("localhost",), tokens=())
    app.add_route("/", page("label.html"), include_in_schema=False)

    @app.get("/state")
    def state() -> State:
        return State(
            classes=labelling.data.class_names,
            asked=labelling.asked,
            answers=labelling.answers,
            left=list(map(_card, labelling.left)),
            rounds=labelling.rounds,
            command=labelling.command,
            training=training.is_set(),
        )

    @contextmanager
    def alone() -> Iterator[None]:
        if training.is_set():
            raise AdaptError("a round is being trained: wait until it is done")
        with one_at_a_time:
            yield

    @app.exception_handler(AdaptError)
    async def mistake(request: Request, error: AdaptError) -> Response:
        return problem(request.url.path, str(error), 422)

    @app.get("/picture")
    def picture(path: Annotated[str, Query()]) -> Response:
        """Return a picture that waits for an answer, or one to compare it with, as a small JPEG."""
        shown = {each for proposal in labelling.proposals for each in (proposal.item.path, proposal.other)}
        if path not in shown:
            raise AdaptError(f"{path!r} does not wait for an answer")
        image = open_image(path, turned=labelling.data.turned)
        image.thumbnail((SIDE, SIDE))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=90)
        return Response(content.getvalue(), media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @app.post("/answer")
    def answer(annotation: Annotation) -> State:
        with alone():
            labelling.annotate(annotation)
            return state()

    @app.post("/undo")
    def undo() -> State:
        with alone():
            labelling.undo()
            return state()

    @app.post("/learn")
    def learn() -> State:
        """Train on the answers so far, and propose the next labels."""
        with alone():
            training.set()
            try:
                labelling.learn()
                labelling.propose(a_round)
                labelling.write()
            except KeyboardInterrupt:
                raise AdaptError("the round was stopped: the answers are kept, and the same command goes on") from None
            finally:
                training.clear()
            return state()

    return app

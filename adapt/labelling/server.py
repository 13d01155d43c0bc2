"""The web page of `adapt label`: one image after another, answered by the keyboard, and a round of training."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel

from adapt.data.decoding.images import open_image
from adapt.errors import AdaptError
from adapt.labelling.decisions import Action, Decision
from adapt.labelling.labelling import Labelling, Round
from adapt.labelling.questions import Question
from adapt.serving.guard import Guard
from adapt.serving.pages import page
from adapt.serving.problems import problem

SIDE = 640  # pixels that a picture on the page has at most


class Likely(BaseModel):
    """A class and its probability."""

    name: str
    probability: float


class Asked(BaseModel):
    """A question on the page."""

    path: str
    file: str
    label: str
    reviewed: bool
    likely: list[Likely]
    why: str
    other: str

    @classmethod
    def of(cls, question: Question) -> Asked:
        """Return a question in the form in which the page gets it."""
        return cls(
            path=question.item.path,
            file=Path(question.item.path).name,
            label=question.label,
            reviewed=question.reviewed,
            likely=[Likely(name=name, probability=probability) for name, probability in question.likely],
            why=question.why,
            other=question.other,
        )


class State(BaseModel):
    """What the page shows: the open questions of a round, and the results of the rounds before."""

    classes: tuple[str, ...]
    asked: int
    answers: int
    left: list[Asked]
    rounds: list[Round]
    command: str


class Answer(BaseModel):
    """An answer to a question."""

    path: str
    action: Action
    label: str = ""


def create_label_app(labelling: Labelling, a_round: int) -> FastAPI:
    """Return the FastAPI application of the page, which asks `a_round` questions before it trains.

    Only pages of this application, under a loopback address, may send requests. Requests are answered one at a time.
    """
    app, one_at_a_time = FastAPI(title="adapt label", docs_url=None, redoc_url=None), threading.Lock()
    app.add_middleware(Guard, hosts=("localhost",), token=None)
    app.add_route("/", page("label.html"), include_in_schema=False)

    def state() -> State:
        return State(
            classes=labelling.class_names,
            asked=len(labelling.questions),
            answers=labelling.answers,
            left=[Asked.of(question) for question in labelling.left],
            rounds=labelling.rounds,
            command=labelling.command,
        )

    @app.exception_handler(AdaptError)
    async def mistake(request: Request, error: AdaptError) -> Response:
        return problem(request.url.path, str(error), 422)

    @app.get("/state")
    def get_state() -> State:
        with one_at_a_time:
            return state()

    @app.get("/picture")
    def picture(path: Annotated[str, Query()]) -> Response:
        """Return a picture of an open question, or one to compare it with, as a small JPEG."""
        shown = {each for question in labelling.questions for each in (question.item.path, question.other)}
        if path not in shown:
            raise AdaptError(f"there is no open question about {path!r}")
        image = open_image(path, turned=labelling.turned)
        image.thumbnail((SIDE, SIDE))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=90)
        return Response(content.getvalue(), media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @app.post("/answer")
    def answer(given: Answer) -> State:
        with one_at_a_time:
            labelling.decide(Decision(given.path, given.action, given.label))
            return state()

    @app.post("/undo")
    def undo() -> State:
        with one_at_a_time:
            labelling.undo()
            return state()

    @app.post("/learn")
    def learn() -> State:
        """Train on the answers so far, and ask the next questions."""
        with one_at_a_time:
            labelling.learn()
            labelling.ask(a_round)
            return state()

    return app

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
from adapt.labelling.annotations import Annotation
from adapt.labelling.labelling import Labelling, LabelRound
from adapt.labelling.proposals import Proposal
from adapt.serving.guard import Guard
from adapt.serving.pages import page
from adapt.serving.problems import problem

SIDE = 640  # pixels that a picture on the page has at most


class Likely(BaseModel):
    """A class and its probability."""

    name: str
    probability: float


class ProposalCard(BaseModel):
    """A proposal on the page."""

    path: str
    file: str
    label: str
    reviewed: bool
    likely: list[Likely]
    why: str
    other: str

    @classmethod
    def of(cls, proposal: Proposal) -> ProposalCard:
        """Return a proposal in the form in which the page gets it."""
        return cls(
            path=proposal.item.path,
            file=Path(proposal.item.path).name,
            label=proposal.label,
            reviewed=proposal.reviewed,
            likely=[Likely(name=name, probability=probability) for name, probability in proposal.likely],
            why=proposal.why,
            other=proposal.other,
        )


class State(BaseModel):
    """The content of the page: the proposals of a round that wait for an answer, and the results of rounds before."""

    classes: tuple[str, ...]
    asked: int
    answers: int
    left: list[ProposalCard]
    rounds: list[LabelRound]
    command: str


def create_label_app(labelling: Labelling, a_round: int) -> FastAPI:
    """Return the FastAPI application of the page, which asks about `a_round` images before it trains.

    Only pages of this application, under a loopback address, may send requests. Requests are answered one at a time.
    """
    app, one_at_a_time = FastAPI(title="adapt label", docs_url=None, redoc_url=None), threading.Lock()
    app.add_middleware(Guard, hosts=("localhost",), token=None)
    app.add_route("/", page("label.html"), include_in_schema=False)

    def state() -> State:
        return State(
            classes=labelling.class_names,
            asked=len(labelling.proposals),
            answers=labelling.answers,
            left=[ProposalCard.of(proposal) for proposal in labelling.left],
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
        """Return a picture that waits for an answer, or one to compare it with, as a small JPEG."""
        shown = {each for proposal in labelling.proposals for each in (proposal.item.path, proposal.other)}
        if path not in shown:
            raise AdaptError(f"{path!r} does not wait for an answer")
        image = open_image(path, turned=labelling.turned)
        image.thumbnail((SIDE, SIDE))
        content = io.BytesIO()
        image.save(content, "JPEG", quality=90)
        return Response(content.getvalue(), media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    @app.post("/answer")
    def answer(annotation: Annotation) -> State:
        with one_at_a_time:
            labelling.annotate(annotation)
            return state()

    @app.post("/undo")
    def undo() -> State:
        with one_at_a_time:
            labelling.undo()
            return state()

    @app.post("/learn")
    def learn() -> State:
        """Train on the answers so far, and propose the next labels."""
        with one_at_a_time:
            labelling.learn()
            labelling.propose(a_round)
            return state()

    return app

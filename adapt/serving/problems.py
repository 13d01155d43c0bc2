"""The bodies of error responses: `{"detail": …}`, and OpenAI's form for the paths of its interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel
from starlette.responses import JSONResponse

OPENAI = "/v1/"  # below which paths are those of OpenAI's interface


class Problem(BaseModel):
    """An error message of one line."""

    detail: str


class Mistake(BaseModel):
    """An error message of one line, and its kind."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: None = None
    code: None = None


class Mistaken(BaseModel):
    """An error in the form of OpenAI's interface."""

    error: Mistake

    @classmethod
    def of(cls, message: str, status: int) -> dict[str, object]:
        """Return the body of an error response."""
        mistake = Mistake(message=message, type="server_error" if status >= 500 else "invalid_request_error")
        return cls(error=mistake).model_dump()


def problem(path: str, message: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the response for an error of a request to `path`."""
    if not path.startswith(OPENAI):
        return JSONResponse(Problem(detail=message).model_dump(), status, headers)
    status = 400 if status == 422 else status  # as OpenAI's interface has it
    return JSONResponse(Mistaken.of(message, status), status, headers)

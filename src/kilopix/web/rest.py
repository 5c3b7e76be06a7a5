"""The REST endpoint: pictures for programs, in the form of OpenAI's images endpoint, with its description.

In: JSON. Out: PNG files in base64 with the seed of each, or an error that says what to do.
"""

import asyncio
import base64
import io
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from kilopix.web.guard import error_body
from kilopix.web.requests import Limits, Order, Refused, explain, request_type, to_order
from kilopix.web.worker import Closing, QueueFull, Worker

_LOOK_FOR_CLIENT_EVERY = 0.25
CLIENT_LEFT = 499


class Settings(BaseModel):
    """The settings that the pictures were made with."""

    sampler: str
    steps: int
    guidance: float
    negative_prompt: str


class PictureData(BaseModel):
    """One picture."""

    b64_json: str = Field(description="A PNG file in base64.")
    seed: int = Field(description="The same prompt, settings and seed give the same picture.")


class PictureAnswer(BaseModel):
    """The pictures of a request, in the order of their seeds."""

    created: int = Field(description="Seconds since 1970.")
    model: str
    size: str
    settings: Settings
    data: list[PictureData]
    warnings: list[str] = Field(
        default=[],
        description="What of the prompt the model was never taught, and what it knows; mostly empty.",
    )


class ModelCard(BaseModel):
    """One model that is served."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "kilopix"
    size: str
    images_seen: int
    settings: Settings


class ModelList(BaseModel):
    """The models that are served; the first is the one that is meant when none is named."""

    object: str = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Whether pictures are made, and for how many."""

    status: str
    running: int = Field(description="requests in work")
    waiting: int = Field(description="requests in the queue")
    made: int = Field(description="pictures made since the start")


class ErrorDetail(BaseModel):
    """What is wrong and what to do."""

    message: str
    type: str
    param: str | None = Field(description="The field at fault.")
    code: str | None


class ErrorAnswer(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The body cannot be read."},
    413: {"model": ErrorAnswer, "description": "The body is too large."},
    422: {"model": ErrorAnswer, "description": "A field is wrong; `param` names it."},
    429: {
        "model": ErrorAnswer,
        "description": "The queue is full.",
        "headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
    },
    500: {"model": ErrorAnswer, "description": "The pictures could not be made."},
    503: {"model": ErrorAnswer, "description": "The server is shutting down."},
}


def build_rest(worker: Worker, limits: Limits) -> FastAPI:
    """The app; its description is at /openapi.json."""
    app = FastAPI(
        title="kilopix",
        version=version("kilopix"),
        summary="Pictures from prompts.",
        description="Text-to-image models trained with kilopix. Give a prompt, get PNG files.",
        docs_url=None,  # their pages load scripts from the internet
        redoc_url=None,
    )
    form = request_type(limits)
    offers = {name: model.offer for name, model in worker.models.items()}
    started = int(time.time())
    _tell_errors(app)

    async def generate(request: Request, body: form) -> PictureAnswer | Response:  # pyright: ignore[reportInvalidTypeForm]
        """Make pictures; each depends on its prompt, its seed and the settings alone."""
        order = to_order(body, offers)
        images = await _made(worker, order, request)
        if images is None:
            return Response(status_code=CLIENT_LEFT)
        side = offers[order.model].side
        data = [
            PictureData(b64_json=to_base64(image), seed=seed)
            for image, (_, seed) in zip(images, order.jobs, strict=True)
        ]
        created = int(time.time())
        note = worker.models[order.model].note([prompt for prompt, _ in order.jobs])
        return PictureAnswer(
            created=created,
            model=order.model,
            size=f"{side}x{side}",
            settings=_settings(order.sampling),
            data=data,
            warnings=[note] if note else [],
        )

    async def models() -> ModelList:
        """The models that are served, with their own settings."""
        cards = [
            ModelCard(
                id=name,
                created=started,
                size=f"{model.offer.side}x{model.offer.side}",
                images_seen=model.generator.images_seen,
                settings=_settings(model.offer.sampling),
            )
            for name, model in worker.models.items()
        ]
        return ModelList(data=cards)

    async def health(response: Response) -> Health:
        """Whether the server works, for supervisors and load balancers."""
        response.status_code = 200 if worker.alive else 503
        status = "ok" if worker.alive else "stopped"
        return Health(status=status, running=worker.running, waiting=worker.waiting, made=worker.made)

    app.post(
        "/v1/images/generations",
        response_model=PictureAnswer,
        responses=_ERRORS,
        tags=["pictures"],
        operation_id="generate",
    )(generate)
    app.get("/v1/models", tags=["pictures"], operation_id="models")(models)
    app.get("/healthz", tags=["server"], operation_id="health", responses={503: {"model": Health}})(health)
    return app


async def _made(worker: Worker, order: Order, request: Request) -> Sequence[Image.Image] | None:
    """The pictures of an order; None if the client left, with which its order is dropped."""
    ticket = worker.submit(order)
    waited = asyncio.wrap_future(ticket.future)
    try:
        while True:
            done, _ = await asyncio.wait([waited], timeout=_LOOK_FOR_CLIENT_EVERY)
            if done:
                return waited.result()
            if await request.is_disconnected():
                return None
    finally:
        ticket.drop()


def _settings(sampling: Any) -> Settings:
    return Settings(
        sampler=sampling.sampler,
        steps=sampling.steps,
        guidance=sampling.guidance.scale,
        negative_prompt=sampling.negative_prompt,
    )


def to_base64(image: Image.Image, kind: str = "PNG") -> str:
    """A picture as a file in base64."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def _tell_errors(app: FastAPI) -> None:
    """Let every error be told in one form."""

    def told(status: int, kind: str, message: str, field: str = "", wait: int | None = None) -> JSONResponse:
        headers = None if wait is None else {"Retry-After": str(wait)}
        return JSONResponse(error_body(message, kind, field), status, headers)

    async def refused(request: Request, error: Any) -> JSONResponse:
        return told(422, "invalid_request_error", str(error), error.field)

    async def invalid(request: Request, error: Any) -> JSONResponse:
        return await refused(request, explain(error.errors()))

    async def http(request: Request, error: Any) -> JSONResponse:
        message = {404: "there is nothing here; see /openapi.json for what there is."}.get(error.status_code)
        return told(error.status_code, "invalid_request_error", message or str(error.detail))

    async def full(request: Request, error: Any) -> JSONResponse:
        return told(429, "queue_full", str(error), wait=error.retry_after)

    async def closing(request: Request, error: Any) -> JSONResponse:
        return told(503, "closing", str(error), wait=30)

    async def failed(request: Request, error: Exception) -> JSONResponse:
        return told(500, "server_error", "the pictures could not be made; the server's log says why.")

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(QueueFull, full)
    app.add_exception_handler(Closing, closing)
    app.add_exception_handler(Exception, failed)

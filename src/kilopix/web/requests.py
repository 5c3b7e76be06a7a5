"""What may be asked of the server: limits, the form of a request, and the check of one.

In: JSON values from a program, or the values of the page's fields. Out: an `Order` for the worker, or one
`Refused` that names the field and says what to do. The page and the REST endpoint share this check.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from kilopix.config import Config
from kilopix.diffusion.samplers import SamplerName
from kilopix.diffusion.sampling import SamplingChanges, SamplingConfig
from kilopix.english import counted

LARGEST_SEED = 2**53 - 1
"""The largest whole number that JavaScript holds exactly, so that a seed survives every client."""
_DRAWN_BELOW = 1_000_000  # short enough to be told to another person
_ECHOED = 80


class Limits(Config):
    """The most that one client may ask for, and how many may wait."""

    queue: int = Field(default=64, ge=1, description="requests that wait, beyond the ones in work")
    batch: int = Field(default=16, ge=1, description="pictures that are made together")
    images: int = Field(default=8, ge=1, description="pictures of one request")
    steps: int = Field(default=100, ge=1, le=1000, description="sampling steps")
    guidance: float = Field(default=30.0, ge=1, description="guidance scale")
    prompt: int = Field(default=1000, ge=1, description="characters of a prompt")
    body: int = Field(default=64 * 1024, ge=1024, description="bytes of a request to the REST endpoint")
    page_body: int = Field(default=1024 * 1024, ge=1024, description="bytes of a request by the page")


class PictureRequest(BaseModel):
    """A request for pictures, in the form of OpenAI's images endpoint, with a diffusion model's settings."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: str = Field(description="What the pictures are to show.")
    model: str | None = Field(default=None, description="A name from /v1/models; the first if left out.")
    n: int = Field(default=1, description="How many pictures; each has the seed after the one before.")
    seed: int | None = Field(
        default=None, ge=0, le=LARGEST_SEED, description="Seed of the first picture; drawn if left out."
    )
    steps: int | None = Field(default=None, description="Sampling steps; the model's own if left out.")
    guidance: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="Guidance scale, 1 is off; if left out, the model's own.",
    )
    sampler: SamplerName | None = Field(default=None, description="The model's own if left out.")
    negative_prompt: str | None = Field(default=None, description="What guidance leads away from.")
    size: str | None = Field(
        default=None,
        max_length=16,
        description="The model's own, such as 256x256, or auto; no other.",
    )
    response_format: Literal["b64_json"] = Field(default="b64_json", description="PNG files in base64.")


@dataclass(frozen=True)
class Order:
    """Pictures that the worker is to make: of one model, with the same settings."""

    model: str
    jobs: tuple[tuple[str, int], ...]
    sampling: SamplingConfig


@dataclass(frozen=True)
class Offer:
    """What can be asked of a model: its name, its side in pixels, its own settings."""

    name: str
    side: int
    sampling: SamplingConfig


class Refused(ValueError):
    """A request that is not taken: the field at fault, and what to do about it."""

    def __init__(self, field: str, message: str):
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


def request_type(limits: Limits) -> type[PictureRequest]:
    """The request with this server's limits in it, so that its OpenAPI description tells them."""

    def bounded(name: str, kind: Any, **bounds: Any) -> Any:
        old = PictureRequest.model_fields[name]
        return kind, Field(default=old.default, description=old.description, **bounds)

    text: dict[str, Any] = {"max_length": limits.prompt}
    return create_model(
        "PictureRequest",
        __base__=PictureRequest,
        __doc__=PictureRequest.__doc__,
        prompt=(str, Field(description=PictureRequest.model_fields["prompt"].description, **text)),
        n=bounded("n", int, ge=1, le=limits.images),
        steps=bounded("steps", int | None, ge=1, le=limits.steps),
        guidance=bounded("guidance", float | None, ge=0, le=limits.guidance, allow_inf_nan=False),
        negative_prompt=bounded("negative_prompt", str | None, **text),
    )


def read_request(form: type[PictureRequest], values: Mapping[str, Any]) -> PictureRequest:
    """Check values against the form; the first fault is told."""
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise explain(error.errors()) from None


def explain(errors: Any) -> Refused:
    """The first of pydantic's errors in plain words."""
    error = errors[0]
    field = ".".join(str(part) for part in error["loc"] if part != "body")
    context, kind = error.get("ctx") or {}, error["type"]
    if kind == "json_invalid":
        return Refused("", f"the body is not JSON ({context.get('error', 'broken')}).")
    if kind == "extra_forbidden":
        known = ", ".join(PictureRequest.model_fields)
        return Refused(shortened(field), f"is not known; the fields are {known}.")
    if kind == "missing" and field:
        return Refused(field, "is missing.")
    if kind == "string_too_long":
        return Refused(field, f"is longer than {context['max_length']} characters; shorten it.")
    if kind == "string_unicode":
        return Refused(field, "is not valid Unicode; send UTF-8.")
    if kind in ("less_than_equal", "greater_than_equal"):
        bound = context.get("le", context.get("ge"))
        word = "most" if kind == "less_than_equal" else "least"
        return Refused(field, f"must be at {word} {bound:g} (got {shortened(repr(error['input']))}).")
    if not field:
        return Refused("", "the body must be a JSON object, sent as application/json.")
    message = error["msg"][:1].lower() + error["msg"][1:]
    return Refused(field, f"{message} (got {shortened(repr(error['input']))}).")


def shortened(text: str) -> str:
    """A text short enough to be told back."""
    return text if len(text) <= _ECHOED else text[: _ECHOED - 3] + "..."


def to_order(request: PictureRequest, offers: Mapping[str, Offer]) -> Order:
    """What a checked request asks of the worker; a seed that is not given is drawn."""
    name = request.model if request.model is not None else next(iter(offers))
    if name not in offers:
        raise Refused("model", f"{shortened(name)!r} is not served; choose from {', '.join(offers)}.")
    offer = offers[name]
    check_text("prompt", request.prompt)
    if not request.prompt.strip():
        raise Refused("prompt", "is empty; say what the picture is to show.")
    if request.negative_prompt:
        check_text("negative_prompt", request.negative_prompt)
    own = f"{offer.side}x{offer.side}"
    if request.size not in (None, "auto", own):
        raise Refused("size", f"{name} makes pictures of {own}; ask for that, or leave size out.")
    seed = secrets.randbelow(_DRAWN_BELOW) if request.seed is None else request.seed
    if seed + request.n - 1 > LARGEST_SEED:
        raise Refused(
            "seed", f"must be at most {LARGEST_SEED - request.n + 1} for {counted(request.n, 'picture')}."
        )
    changes = SamplingChanges(request.sampler, request.steps, request.guidance, request.negative_prompt)
    jobs = tuple((request.prompt.strip(), seed + i) for i in range(request.n))
    return Order(name, jobs, changes.apply(offer.sampling))


def check_text(field: str, text: str) -> None:
    """Refuse what no text encoder should see: control characters, and halves of surrogate pairs."""
    bad = next((c for c in text if (ord(c) < 32 and c not in "\n\r\t") or 0xD800 <= ord(c) <= 0xDFFF), None)
    if bad is not None:
        raise Refused(field, f"holds the character U+{ord(bad):04X}, which is no text; take it out.")

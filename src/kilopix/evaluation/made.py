"""How a folder of pictures was made: `made.json` at its top, from which score cards take the protocol.

In: what kilopix writes beside the pictures that it makes, or what someone wrote down of pictures made
elsewhere. Out: a `Made`. What is not known stays None, and the card says so.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, FiniteFloat

from kilopix.config import Config, parse
from kilopix.runtime import read_json, write_json
from kilopix.types import UserError

MADE = "made.json"
PLAIN = "plain"
_SHA256 = "^[0-9a-f]{64}$"


class Made(Config):
    """The facts of a set of pictures that a score depends on.

    `prompt_style` is `plain` or says how the prompts were lengthened; `prompts_sha256` is the hash of the
    texts that the model was given.
    """

    checkpoint: str
    checkpoint_sha256: str | None = Field(default=None, pattern=_SHA256)
    recipe_sha256: str | None = Field(default=None, pattern=_SHA256)
    prompt_style: str | None = None
    prompts_sha256: str | None = Field(default=None, pattern=_SHA256)
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    sampler: str | None = None
    steps: int | None = Field(default=None, ge=1)
    guidance: FiniteFloat | None = None

    @property
    def plain(self) -> bool | None:
        """Whether the prompts were given as they are; None if that is not known."""
        return None if self.prompt_style is None else self.prompt_style == PLAIN


def write_made(root: Path, made: Made) -> None:
    """Write the facts beside the pictures."""
    write_json(root / MADE, made.model_dump(mode="json"))


def read_made(root: Path, given: Path | None = None) -> Made:
    """The facts of the pictures below `root`: from the file `given`, else from beside them, else none.

    Pictures of which nothing is known are named by their folder.
    """
    path = given or root / MADE
    if given is None and not path.exists():
        return Made(checkpoint=root.resolve().name or str(root.resolve()))
    values: Any = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object with the keys {', '.join(Made.model_fields)}.")
    return parse(Made, values, str(path))


def made_by_sampling(path: Path, files: Collection[str]) -> Made:
    """The facts of `files` by the `samples.json` that lists them, as `kilopix sample` writes it.

    Where steps or guidance differ from image to image, neither is one fact of the set, and stays unknown.
    """
    values: Any = read_json(path)
    images = values.get("images") if isinstance(values, dict) else None
    sampling = values.get("sampling", {}) if isinstance(values, dict) else None
    if not isinstance(images, list) or not isinstance(sampling, dict):
        raise UserError(f"{path}: not a list of samples; make the pictures again.")
    scored = [image for image in images if isinstance(image, dict) and image.get("file") in files]
    guidance = sampling.get("guidance")
    scale = guidance.get("scale") if isinstance(guidance, dict) else None
    seeds: list[Any] = [image.get("seed") for image in scored]
    known = bool(seeds) and all(isinstance(seed, int) for seed in seeds)
    facts = {
        "checkpoint": Path(str(values["weights"])).name
        if "weights" in values
        else path.resolve().parent.name,
        "checkpoint_sha256": values.get("weights_sha256"),
        "prompt_style": "as given",
        "seeds": sorted(set(seeds)) if known else None,
        "sampler": sampling.get("sampler"),
        "steps": _same(image.get("steps", sampling.get("steps")) for image in scored),
        "guidance": _same(image.get("guidance", scale) for image in scored),
    }
    return parse(Made, facts, str(path))


def _same(values: Iterable[Any]) -> Any:
    """The one value that all are; None if they differ."""
    found = list(values)
    return found[0] if found and all(one == found[0] for one in found) else None

"""kilopix: text-to-image diffusion training that anyone can afford and repeat.

from kilopix import Generator
image = Generator.from_pretrained("run")("a photo of a fox")[0]
"""

from typing import TYPE_CHECKING, Any

from kilopix.errors import PromptWarning

if TYPE_CHECKING:
    from kilopix.generator import Generator

__all__ = ["Generator", "PromptWarning"]


def __getattr__(name: str) -> Any:
    """Load `Generator`, and with it torch, when it is first asked for."""
    if name == "Generator":
        from kilopix.generator import Generator

        return Generator
    raise AttributeError(f"module 'kilopix' has no attribute {name!r}")

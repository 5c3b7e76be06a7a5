"""A batch for a training step, as `StepLoader.load` makes it, against the way it was made before.

Before: all text states of a batch were summed to see whether they are finite, and whole batches copied to
replace the texts that are dropped. Random latents and int8 states of Flan-T5-XL's width, 50 to 180 tokens.
"""

import tempfile
from pathlib import Path

import torch

from kilopix.data.loader import SampleOrder, collate, read_sample
from kilopix.data.parts import threads_here
from kilopix.data.shards import Shards
from kilopix.diffusion.objective import draw
from kilopix.recipe import load_recipe
from kilopix.runtime import torch_generator
from kilopix.step import StepLoader
from kilopix.training.parallel import Processes
from loading import WIDTH, write_shards
from timing import side_by_side

COUNT, BATCH = 1024, 256


def before(shards: Shards, loader: StepLoader, position: int) -> list[torch.Tensor]:
    """A batch with a check of every number, and dropped texts by a choice among whole batches."""
    recipe, order = loader.recipe, SampleOrder(len(shards), loader.recipe.seed)
    decisions = draw(recipe.objective, BATCH, torch_generator("step", recipe.seed, position))
    samples = [
        read_sample(shards, order, position + i, bool(decisions.augmented[i]), bool(decisions.short[i]))
        for i in range(BATCH)
    ]
    batch = collate(samples, shards.index.text_storage, torch.bfloat16)
    moments, text = batch.moments, batch.text
    parts = (moments.mean, moments.std, text.states, batch.window)
    assert all(bool(part.sum(dtype=torch.float32).isfinite()) for part in parts)
    empty = shards.empty_text.states.to(torch.bfloat16)
    padded = torch.cat([empty, empty.new_zeros(1, text.states.shape[1] - empty.shape[1], WIDTH)], dim=1)
    states = torch.where(decisions.drop_text[:, None, None], padded, text.states)
    noise = [
        torch.randn(2, *moments.mean.shape[1:], generator=torch_generator("image", recipe.seed, position + i))
        for i in range(BATCH)
    ]
    draws = torch.stack(noise)
    return [moments.mean + moments.std * draws[:, 0], draws[:, 1].contiguous(), states]


def main() -> None:
    """Print samples a second of both, in one run."""
    recipe = load_recipe("dit_i_256_ta", [])
    with tempfile.TemporaryDirectory() as name, threads_here(1):
        write_shards(Path(name), COUNT, "int8", WIDTH, (50, 180))
        shards = Shards(Path(name))
        loader = StepLoader(shards, recipe, Processes(), BATCH)
        places = range(0, COUNT, BATCH)
        taken = side_by_side(
            {
                "before": lambda: [before(shards, loader, place) for place in places],
                "now": lambda: [loader.load((place, BATCH)) for place in places],
            }
        )
    for what, seconds in taken.items():
        print(f"{what}: {COUNT / seconds:.0f} samples/s")
    print(f"ratio: {taken['before'] / taken['now']:.2f}")


if __name__ == "__main__":
    main()

"""How far a run has come, in a minute: losses by noise level, what the caption is worth, one object and two.

    python benchmarks/study/probe.py VALIDATION_SHARDS RUN [RUN ...]

Scores of a few dozen pictures are too noisy to choose between two recipes early on. What a network has learnt
of its captions shows sooner in its loss: with the short caption of the sample, against that of another sample
(the difference is what the caption is worth; nothing, for a network that ignores it). Losses are those of the
velocity, whatever the network predicts, so that they can be compared.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from levels import velocity_losses

from kilopix.data.loader import collate
from kilopix.data.shards import Shards
from kilopix.evaluation.tasks import score_images
from kilopix.generator import Generator
from kilopix.pretrained.judge import load_judge
from kilopix.stages.evaluate import JUDGE_OPTIONS, task_prompts
from kilopix.types import TextStates

LEVELS = (0.3, 0.5, 0.7, 0.85, 0.95)


@torch.inference_mode()
def losses(generator: Generator, shards: Shards, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The velocity's loss at every level, and how much more it is with the caption of another sample."""
    numbers = range(0, len(shards), max(1, len(shards) // count))[:count]
    batch = collate([shards.plain(i, short=True) for i in numbers], shards.index.text_storage)
    moments = generator.whitening.whiten(batch.moments) if generator.whitening else batch.moments
    data = moments.mean
    half = len(data) // 2
    other = TextStates(batch.text.states.roll(half, 0), batch.text.mask.roll(half, 0))
    own, others = (
        velocity_losses(generator, data, text, LEVELS, "probe").mean(1) for text in (batch.text, other)
    )
    return own, others - own


def task_shares(generator: Generator, pictures: int) -> dict[str, float]:
    """The share of right pictures of one and of two objects, of about `pictures` each."""
    asked = []
    for tag in ("single_object", "two_object"):
        prompts = [prompt for prompt in task_prompts(generator.recipe) if prompt.tag == tag]
        asked += [prompt for prompt in prompts for _ in range(max(1, round(pictures / len(prompts))))]
    images = generator.generate([(prompt.text, i) for i, prompt in enumerate(asked)], batch_size=48)
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    results = score_images(asked, load_judge("cpu").detect(pixels.contiguous()), JUDGE_OPTIONS)
    return {task.tag: task.value for task in results.tasks}


def main() -> None:
    """Print a line for every run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("validation", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=192)
    parser.add_argument("--pictures", type=int, default=72, help="of one object, and of two; 0 for none")
    arguments = parser.parse_args()
    shards = Shards(arguments.validation)
    print("levels", *LEVELS)
    for run in arguments.runs:
        generator = Generator.from_pretrained(run, "cpu")
        loss, worth = losses(generator, shards, arguments.samples)
        shares = task_shares(generator, arguments.pictures) if arguments.pictures else {}
        first = " ".join(f"{x:.3f}" for x in loss.tolist())
        second = " ".join(f"{x:.4f}" for x in worth.tolist())
        told = "".join(f"; {tag.replace('_', ' ')} {share:.1%}" for tag, share in shares.items())
        print(f"{run}: loss {first}; caption {second}{told}", flush=True)


if __name__ == "__main__":
    main()

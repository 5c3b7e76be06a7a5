"""What each way of storing text states loses: in the states, and in the loss of a training run.

    python benchmarks/text_storage.py [images]

The states are those of all-MiniLM-L6-v2 for the embedded world's captions; three runs of the demo's network,
equal but for the storage, see the same pictures with the same noise, and one more has another seed.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

from kilopix.data.shards import Shards
from kilopix.data.text_storage import STORAGES, pack, stack, view
from kilopix.pretrained.text_encoder import MiniLMConfig, encode_in_batches, load_text_encoder
from kilopix.recipe import load_recipe
from kilopix.stages import caption, encode, mini, train


def errors_in_states(captions: list[str]) -> None:
    """The relative error of a token's states, and its cosine with the exact ones."""
    import numpy as np

    exact = encode_in_batches(load_text_encoder(MiniLMConfig()), captions)
    tokens = torch.cat(exact)
    print(f"{len(captions)} captions, {len(tokens)} tokens")
    for storage in STORAGES:
        views = [
            view(np.frombuffer(bytearray(pack(one, storage)), np.uint8), storage, tokens.shape[1])
            for one in exact
        ]
        stored = torch.cat([stack([one], storage).states[0] for one in views])
        relative = (stored - tokens).norm(dim=1) / tokens.norm(dim=1)
        cosine = torch.nn.functional.cosine_similarity(stored, tokens, dim=1)
        print(f"  {storage}: relative error {relative.mean():.2e} mean, {relative.max():.2e} worst; ", end="")
        print(f"1 - cosine {(1 - cosine.double()).clamp_min(0).max():.1e} worst")


def losses(run: Path) -> list[float]:
    """The losses in a run's log."""
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def main(images: int) -> None:
    """Measure both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mini.run(folder / "world", 60, classes=12, val_per_class=1)
        made = caption.run(folder / "world" / "train", folder / "captions.parquet", "structured")
        errors_in_states([row.caption for row in made.rows])
        settings = [
            f"training.images={images}",
            "training.log_every=200",
            f"training.checkpoint_every={images}",
        ]
        curves = {}
        for storage, seed in [*((storage, 0) for storage in STORAGES), ("float16", 1)]:
            place = folder / f"{storage}-{seed}"
            recipe = load_recipe("mini", [*settings, f"data.text_storage={storage}"])
            shards = folder / f"shards-{storage}"
            encode.run(folder / "captions.parquet", shards, recipe)
            assert Shards(shards).index.text_storage == storage
            train.run(shards, place, recipe.model_copy(update={"seed": seed}))
            curves[storage, seed] = torch.tensor(losses(place))
        base = curves["float16", 0]
        half = len(base) // 2
        print(f"training on {images} pictures; mean loss of the second half, and how far from float16's")
        for (storage, seed), curve in curves.items():
            apart = (curve[half:] - base[half:]).abs().mean()
            print(f"  {storage}, seed {seed}: {curve[half:].mean():.4f}, {apart:.1e} apart on average")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)

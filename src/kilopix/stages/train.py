"""Shards to a run: what is checked and written before and after training (`kilopix.engine`).

In: a recipe and shards. Out: a run folder:

    recipe.json        the resolved recipe          log.jsonl          loss, rate, images/s
    checkpoints/       from which it goes on        skipped.jsonl      batches left out, with their samples
    model.safetensors  the averaged weights at the end, with the recipe in the header
    codec.safetensors  the patch codec, if one is used

One process, or as many as `torchrun` started. Every random decision of a step is drawn from the seed and the
place of its images, so a run that was stopped and started again is the run that was not.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kilopix.config import parse
from kilopix.data.checked_batches import check_hashes
from kilopix.data.shards import CODEC, INDEX, Shards, read_index
from kilopix.data.trained_on import TrainedOn
from kilopix.engine import CHECKPOINTS, go_on_from, start, train
from kilopix.graft import beginning
from kilopix.network import build_network, training_flops_per_image
from kilopix.recipe import Recipe, check_shards
from kilopix.runtime import atomic_path, read_json, say, sha256_of_file, write_json
from kilopix.training.checkpoint import checkpoints, newest_checkpoint, save_weights
from kilopix.training.logs import LOG, cut_log
from kilopix.training.parallel import Processes, join_processes
from kilopix.types import UserError
from kilopix.watch import ScoreAverage

AFTER_TRAINING = ("sampling", "evaluation", "validation", "preview", "scores")
"""Sections of a recipe that training does not depend on, so that they may change under a run."""
HOW = {
    "micro_batch",
    "compile",
    "activation_checkpointing",
    "parallel",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "verify_shards",
    "guard",
    "watchdog",
    "log_every",
    "track",
}
"""Settings of `training` that say how a run is computed and watched, not what it learns."""
MODEL, RECIPE = "model.safetensors", "recipe.json"


def run(
    shards_folder: Path,
    out: Path,
    recipe: Recipe,
    device: str = "auto",
    validation: Path | None = None,
    score: ScoreAverage | None = None,
) -> bool:
    """Train; the same command again goes on from the newest checkpoint, or says that it is done.

    `validation` names shards of held-out pictures; `score` scores a file of averaged weights.
    Returns whether training is finished; False after a signal that asked it to stop.
    """
    training = recipe.training
    with join_processes(device, training.parallel, training.watchdog.timeout_minutes) as processes:
        return _run(shards_folder, out, recipe, processes, validation, score)


def _run(
    shards_folder: Path,
    out: Path,
    recipe: Recipe,
    processes: Processes,
    validation: Path | None,
    score: ScoreAverage | None,
) -> bool:
    if shards_folder.resolve() == out.resolve():
        raise UserError(f"{out}: holds the shards; choose another folder for the run.")
    shards = Shards(shards_folder)
    index = shards.index
    check_shards(recipe, shards_folder, index.text_encoder, index.autoencoder, index.image_size)
    header = {"recipe": recipe.model_dump(mode="json"), "shards": sha256_of_file(shards_folder / INDEX)}
    header |= {
        "latent_channels": index.latent_shape[0],
        "text_width": index.text_width,
        "text_fingerprint": index.text_fingerprint,
        "autoencoder_fingerprint": index.autoencoder_fingerprint,
        "latent_whitening": asdict(shards.whitening) if shards.whitening else None,
        "trained_on": TrainedOn.of(shards, recipe.data.captioner).model_dump(mode="json"),
    }
    begun = processes.once(lambda: (out / MODEL).exists() or bool(checkpoints(out / CHECKPOINTS)))
    weights = beginning(recipe, header, out / RECIPE, begun, processes.main)
    if processes.once(lambda: _open_run(shards_folder, out, header)):
        if processes.main:
            say(f"{out}: already trained on {recipe.training.images:,} images.")
        return True
    if recipe.training.verify_shards:
        _verify(shards, processes)
    newest = processes.once(lambda: newest_checkpoint(out / CHECKPOINTS))
    state = start(recipe, shards, out, header, processes, weights, newest)
    if newest:
        go_on_from(state, newest)
        if processes.main:
            say(f"{out}: going on from {state.images_seen:,} images.")
    if processes.main:
        cut_log(out / LOG, state.images_seen)
    finished = train(state, validation, score)
    if finished:
        ended = {**header, "images_seen": state.images_seen}
        save_weights(out / MODEL, state.average.network, ended, processes.main)
    if processes.main:
        minutes = f"{state.seconds / 60:.1f} minutes"
        trained = f"{out / MODEL}: trained on {state.images_seen:,} images in {minutes}."
        stopped = f"{out}: stopped at {state.images_seen:,} images; the same command goes on from there."
        say(trained if finished else stopped)
    return finished


def describe(shards_folder: Path, recipe: Recipe) -> None:
    """Print the resolved recipe, the network's parameters, and the FLOPs of a picture and of the run."""
    index = read_index(shards_folder)
    check_shards(recipe, shards_folder, index.text_encoder, index.autoencoder, index.image_size)
    network = build_network(recipe, index.latent_shape[0], index.text_width)
    parameters = sum(p.numel() for p in network.parameters())
    flops = training_flops_per_image(recipe, index.latent_shape[0], index.text_width, text_tokens=64)
    say(json.dumps(recipe.model_dump(mode="json"), indent=1))
    say(f"parameters: {parameters / 1e6:.2f} million")
    say(f"FLOPs: {flops / 1e9:.2f} billion a picture trained (64 text tokens)")
    say(f"run: {flops * recipe.training.images:.2e} FLOPs on {recipe.training.images:,} pictures")


def _open_run(shards_folder: Path, out: Path, header: dict[str, Any]) -> bool:
    """Record what the run is, or refuse the folder of another run; returns whether it is finished."""
    record = out / RECIPE
    if record.exists():
        before = read_json(record)
        if changed := _changed(parse(Recipe, before["recipe"], str(record)), header["recipe"]):
            raise UserError(
                f"{out}: a run of another recipe lives there ({', '.join(changed)} differ); choose another."
            )
        if before["shards"] != header["shards"]:
            raise UserError(
                f"{out}: this run was begun on other shards; choose another folder for the new run."
            )
    else:
        write_json(record, header)
    if (shards_folder / CODEC).exists() and not (out / CODEC).exists():
        with atomic_path(out / CODEC) as temporary:
            shutil.copyfile(shards_folder / CODEC, temporary)
    return (out / MODEL).exists()


def _changed(before: Recipe, now: dict[str, Any]) -> list[str]:
    """The sections of a recipe that would make another run of it."""
    then = before.model_dump(mode="json")
    then["training"] = {k: v for k, v in then["training"].items() if k not in HOW}
    now = {**now, "training": {k: v for k, v in now["training"].items() if k not in HOW}}
    return [key for key in now if key not in AFTER_TRAINING and then.get(key) != now[key]]


def _verify(shards: Shards, processes: Processes) -> None:
    """Compare the shards with their hashes, each process some of the files."""
    files = list(shards.index.files.items())[processes.rank :: processes.count]
    problem = None
    try:
        check_hashes(shards.folder, dict(files))
    except UserError as error:
        problem = str(error)
    if found := [text for text in processes.gather(problem) if text]:
        raise UserError(found[0])

"""Shards to a run: what is checked and written before and after training (`kilopix.engine`).

In: a recipe and shards. Out: a run folder:

    recipe.json        the resolved recipe          log.jsonl          loss, rate, images/s
    checkpoints/       from which it goes on        skipped.jsonl      batches left out, with their samples
    model.safetensors  the averaged weights at the end, with the recipe in the header
    finished.json      the digest of those
    codec.safetensors  the patch codec, if one is used

One process, or as many as `torchrun` started. Every random decision of a step is drawn from the seed and the
place of its images, so a run that was stopped and started again is the run that was not.
"""

import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from kilopix.artefacts.digests import Damaged, check_tensors
from kilopix.artefacts.locks import own_folder
from kilopix.computing import MICRO_BATCH
from kilopix.config import parse
from kilopix.data.checked_batches import check_hashes
from kilopix.data.shards import CODEC, INDEX, Shards, read_index
from kilopix.data.trained_on import TrainedOn
from kilopix.engine import go_on_from, start, train
from kilopix.english import counted
from kilopix.graft import beginning
from kilopix.jobs import Folder, State, clear, state_of
from kilopix.model_files import CHECKPOINTS, FINISHED, RECIPE, REPLACED, model_fault
from kilopix.model_files import WEIGHTS as MODEL
from kilopix.network import build_network, training_flops_per_image
from kilopix.progress import working
from kilopix.recipe import Recipe, check_shards
from kilopix.runtime import atomic_path, read_json, say, sha256_of_file, sha256_of_text, write_json
from kilopix.training.checkpoint import checkpoints, newest_checkpoint, save_weights
from kilopix.training.logs import LOG, SKIPPED, cut_log
from kilopix.training.parallel import Processes, join_processes
from kilopix.types import UserError
from kilopix.watch import ScoreAverage

AFTER_TRAINING = ("sampling", "evaluation", "validation", "preview", "scores")
"""Sections of a recipe that training does not depend on, so that they may change under a run."""
HOW = {
    "micro_batch",
    "compile",
    "compile_mode",
    "activation_checkpointing",
    "parallel",
    "communication",
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
FOLDER = Folder(
    (
        MODEL,
        FINISHED,
        LOG,
        "average-*",
        "averages/*",
        "previews/*",
        "scores/*",
        "*.jsonl",
        f"{CHECKPOINTS}/*",
    ),
    (CODEC, MICRO_BATCH, "processes/*", "tensorboard/*", "wandb*"),
    record=RECIPE,
)


def run(
    shards_folder: Path,
    out: Path,
    recipe: Recipe,
    device: str = "auto",
    validation: Path | None = None,
    score: ScoreAverage | None = None,
    overwrite: bool = False,
) -> bool:
    """Train; the same command again goes on from the newest checkpoint, or says that it is done.

    `validation` names shards of held-out pictures; `score` scores a file of averaged weights.
    Returns whether training is finished; False after a signal that asked it to stop.
    """
    training = recipe.training
    with (
        ExitStack() as held,
        join_processes(device, training.parallel, training.watchdog.timeout_minutes) as processes,
    ):
        processes.once(lambda: held.enter_context(own_folder(out, "train")))
        return _run(shards_folder, out, recipe, processes, validation, score, overwrite)


def _run(
    shards_folder: Path,
    out: Path,
    recipe: Recipe,
    processes: Processes,
    validation: Path | None,
    score: ScoreAverage | None,
    overwrite: bool,
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
    header["run"] = sha256_of_text(json.dumps(_job(header, out), sort_keys=True))
    found: State = processes.once(lambda: _state(out, header, overwrite))
    begun = found == "same" and processes.once(lambda: _has_weights(out))
    before = out / RECIPE if found == "same" else None
    weights = _beginning(recipe, header, before, begun, processes)
    if processes.once(lambda: _open_run(shards_folder, out, header, found)):
        if processes.main:
            say(f"{out}: already trained on {counted(recipe.training.images, 'image')}.")
        return True
    if recipe.training.verify_shards:
        _verify(shards, processes)
    passed: list[Path] = []

    def look() -> Path | None:
        return newest_checkpoint(out / CHECKPOINTS, header["run"], passed)

    while True:
        newest = processes.once(look)
        with working("prepare the network", quiet=not processes.main):
            state = start(recipe, shards, out, header, processes, weights, newest)
            try:
                if newest:
                    go_on_from(state, newest)
                break
            except Damaged as error:  # which all processes meet, since they read it together
                passed += [newest] if newest else []
                if processes.main:
                    say(f"{error} Looking at the checkpoint before.")
    if newest and processes.main:
        say(f"{out}: going on from {counted(state.images_seen, 'image')}.")
    if processes.main:
        cut_log(out / LOG, state.images_seen)
    finished = train(state, validation, score)
    if finished:
        ended = {**header, "images_seen": state.images_seen}
        save_weights(out / MODEL, state.average.network, ended, processes.main)
        if processes.main:
            record = {"model": check_tensors(out / MODEL), "images_seen": state.images_seen}
            write_json(out / FINISHED, record)
    if processes.main:
        minutes = f"{state.seconds / 60:.1f} minutes"
        trained = f"{out / MODEL}: trained on {counted(state.images_seen, 'image')} in {minutes}."
        stopped = (
            f"{out}: stopped at {counted(state.images_seen, 'image')}; the same command goes on from there."
        )
        say(trained if finished else stopped)
        if finished and state.guard.in_a_row:
            say(
                f"{out}: the last {counted(state.guard.in_a_row, 'batch')} could not be trained on (see "
                f"{out / SKIPPED}); the weights are those from before. If they are no good, lower "
                "optimizer.lr or training.clip_norm, in a new folder."
            )
    return finished


def _beginning(
    recipe: Recipe, header: dict[str, Any], before: Path | None, begun: bool, processes: Processes
) -> dict[str, Tensor] | None:
    """The weights to begin from, if any; where processes share a network, the main one alone has them."""
    if not processes.sharded:
        return beginning(recipe, header, before, begun, processes.main)
    weights: dict[str, Tensor] | None = None

    def read() -> dict[str, Any]:
        nonlocal weights
        weights = beginning(recipe, header, before, begun, tell=True)
        return header

    header |= processes.once(read)
    return weights


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
    say(f"run: {flops * recipe.training.images:.2e} FLOPs on {counted(recipe.training.images, 'picture')}")


def _state(out: Path, header: dict[str, Any], overwrite: bool) -> State:
    """Whether the folder is free or of this run; that of another run is refused, or may be replaced."""
    now = _job(header, out / RECIPE)
    then = _job(read_json(out / RECIPE), out / RECIPE) if (out / RECIPE).exists() else now
    more = then["training"]["images"] < now["training"]["images"]
    longer = f" To train it on more images, begin one in another OUT with --start-from {out}." if more else ""
    kind = replace(FOLDER, instead=f"{FOLDER.instead}{longer}")
    return state_of(out, kind, now, overwrite, read=lambda _: then)


def _has_weights(out: Path) -> bool:
    return (out / MODEL).exists() or bool(checkpoints(out / CHECKPOINTS))


def _open_run(shards_folder: Path, out: Path, header: dict[str, Any], state: State) -> bool:
    """Take the folder, if it is not this run's already, and record the run; whether it is finished."""
    if state == "other":
        clear(out, FOLDER)
    if state != "same":
        write_json(out / RECIPE, header)
    codec, ours = shards_folder / CODEC, out / CODEC
    if codec.exists() and not (ours.exists() and sha256_of_file(ours) == sha256_of_file(codec)):
        with atomic_path(out / CODEC) as temporary:
            shutil.copyfile(shards_folder / CODEC, temporary)
    if (out / MODEL).exists() and (fault := model_fault(out)):
        if fault == REPLACED:
            raise UserError(f"{out / MODEL}: {fault}. Move it elsewhere; the same command makes it anew.")
        say(f"{out / MODEL}: {fault}; made anew from the newest checkpoint.")
        (out / MODEL).unlink()
    return (out / MODEL).exists()


def _job(header: dict[str, Any], place: Path) -> dict[str, Any]:
    """What makes a run another one: its shards, and the settings that training depends on."""
    if not {"recipe", "shards"} <= header.keys():
        raise UserError(f"{place}: not the record of a run; choose another folder.")
    recipe = parse(Recipe, header["recipe"], str(place)).model_dump(mode="json")
    recipe["training"] = {key: value for key, value in recipe["training"].items() if key not in HOW}
    return {"shards": header["shards"]} | {k: v for k, v in recipe.items() if k not in AFTER_TRAINING}


def _verify(shards: Shards, processes: Processes) -> None:
    """Compare the shards with their hashes, each process some of the files."""
    files = list(shards.index.files.items())[processes.rank :: processes.count]
    problem = None
    try:
        check_hashes(shards.folder, dict(files), quiet=not processes.main)
    except UserError as error:
        problem = str(error)
    if found := [text for text in processes.gather(problem) if text]:
        raise UserError(found[0])

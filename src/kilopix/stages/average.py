"""A run to averaged weights of any width, from the snapshots that training stored.

In: a run that was trained with `training.average.kind = "power"`. Out: a safetensors file like
`model.safetensors`, for the width and the moment that are asked for.
"""

from pathlib import Path

from kilopix.artefacts.locks import own_file
from kilopix.english import counted
from kilopix.jobs import OPTION, check_weights
from kilopix.progress import working
from kilopix.runtime import no_folder, say
from kilopix.training.checkpoint import save_tensors
from kilopix.training.posthoc import WIDEST, Profile
from kilopix.training.snapshots import FOLDER, nearest_moment, reconstruct, stored_snapshots
from kilopix.types import UserError

FAR = 0.05
"""A sum whose profile is further than this from the wanted one is another average, which the user is told."""


def run(
    run_folder: Path,
    sigma_rel: float,
    at: int | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the average of width `sigma_rel` at the stored moment nearest to `at`, or at the newest."""
    if not 0 < sigma_rel <= WIDEST:
        raise UserError(f"--sigma-rel {sigma_rel}: must be above 0 and at most {WIDEST}.")
    if not run_folder.is_dir():
        raise UserError(f"{run_folder}: {no_folder(run_folder)}; give a run.")
    stored = stored_snapshots(run_folder / FOLDER)
    if not stored:
        raise UserError(
            f"{run_folder / FOLDER}: no snapshots of averages. Runs with training.average.kind=power store "
            "them, the first after training.average.snapshot_every images."
        )
    images = nearest_moment(list(stored), at)
    out = out or run_folder / f"average-{sigma_rel:g}.safetensors"
    with own_file(out, "average"):
        with working("average"):
            tensors, header, mismatch = reconstruct(stored, Profile(images, sigma_rel))
        check_weights(out, header, "average", overwrite, OPTION)
        save_tensors(out, tensors, header)
    count = sum(profile.images <= images for profile in stored)
    say(
        f"{out}: sigma_rel {sigma_rel:g} at {counted(images, 'image')}, from "
        f"{counted(count, 'snapshot')}; its profile is "
        f"met to {mismatch:.2%}."
    )
    if mismatch > FAR:
        say("That is coarse: a width nearer to the stored ones, or a later moment, is met better.")
    return out

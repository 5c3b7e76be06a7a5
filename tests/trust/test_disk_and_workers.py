"""Every command under every refusal of the system: one line, nothing lost, and the same command goes on."""

import contextlib
import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from refusals import Commands, Ended, Refusal, build_library

from tiny import TINY
from tiny_models import save_clip, save_detector, save_instruct, save_vlm
from tiny_networks import draw_pictures, inception_tensors, save_inception

pytestmark = pytest.mark.slow

RECIPE = [*TINY, "training.images=64", "data.augment.setting=1/2"]
POWER = ["training.average.kind=power", "training.average.snapshot_every=32"]
REFUSALS = (
    *(Refusal("full disk, at a write", "write", errno.ENOSPC, after) for after in (0, 1, 3, 8, 20)),
    *(Refusal("quota, at a flush", "sync", errno.EDQUOT, after) for after in (0, 2)),
    *(Refusal("no network, at a close", "close", errno.EIO, after) for after in (0, 3)),
    *(Refusal("read-only", "create", errno.EROFS, after) for after in (0, 4)),
    *(Refusal("no permission", "create", errno.EACCES, after) for after in (0, 2)),
    *(Refusal("bad sectors, at a read", "read", errno.EIO, after) for after in (0, 2, 6)),
    *(Refusal("stale handle, at an opening", "open", errno.ESTALE, after) for after in (0, 3)),
    *(Refusal("a file that vanished", "open", errno.ENOENT, after) for after in (1, 5)),
    *(Refusal("too many open files", files=files) for files in (8, 12, 20)),
)
STEPS = {
    "mini": "mini {out} --classes 2 --images-per-class 2 --val-per-class 1 --workers 1",
    "caption": "caption {world}/world/train {out}.parquet --workers 1",
    "captions": "captions {world}/captions.parquet --out {out}.json",
    "augment": "augment {world}/captions.parquet {out} --size 32 --workers 1 --part-rows 3",
    "encode": "encode {world}/captions.parquet {out} {recipe} --augmented {world}/augmented/manifest.parquet "
    "--workers 1 --part-rows 3 --device cpu",
    "verify": "verify {world}/shards",
    "inspect": "inspect {world}/shards {out}.html --device cpu",
    "train": "train {world}/shards {out} {recipe} {power} --device cpu",
    "average": "average {world}/run --sigma-rel 0.12 --out {out}.safetensors",
    "sample": "sample {world}/run cat car --out {out} --device cpu",
    "evaluate": "evaluate {world}/run {world}/val.parquet --out {out} --device cpu",
    "fidelity": "fidelity {world}/drawn {world}/real weights.inception={world}/inception.safetensors "
    "--out {out} --only inception --cache {out}-cache --workers 1 --device cpu",
    "geneval": "geneval {world}/made --out {out} --detector {world}/detector --clip {world}/clip "
    "--any-prompts --allow-doubled --device cpu",
    "dpg": "dpg {world}/drawn --questions {world}/questions.csv --out {out} --model {world}/vlm --device cpu",
    "lengthen": "lengthen {out}.jsonl --model {world}/instruct --prompts {world}/prompts.txt --max-tokens 4 "
    "--device cpu",
    "sample-benchmark": "sample-benchmark dpg {world}/run {out} --questions {world}/questions.csv -n 1 "
    "--device cpu",
    "compare": "compare {world}/scores --out {out}",
    "convert": "convert inception {world}/inception.pth {out}.safetensors",
    "fetch": "fetch {world}/parquet {out} --limit 4",
    "fetch-dpg": "fetch-dpg {out}.csv --url file://{world}/questions.csv --sha256 {sha256}",
    "export": "export {world}/run {out} --device cpu",
    "export diffusers": "export {world}/run {out} --format diffusers --device cpu",
    "report": "report {world}/run {out}.html --scores {world}/scores --samples {world}/samples",
    "plan": "plan mini {recipe} --device h100-sxm --shards {world}/shards",
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    library = build_library(tmp_path_factory.mktemp("library"))
    if library is None:
        pytest.skip("no C compiler, or no LD_PRELOAD")
    with Commands(library) as called:
        yield called


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Path:
    """All that the commands read."""
    import torch
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    world = tmp_path_factory.mktemp("refused")

    def make(name: str, out: str) -> None:
        done = commands(*words(name, world, world / out))
        assert done.code == 0, f"{name}: {done.err}"

    assert (
        commands(*f"mini {world}/world --classes 2 --images-per-class 4 --val-per-class 8".split()).code == 0
    )
    make("caption", "captions")
    assert commands("caption", world / "world" / "val", world / "val.parquet").code == 0
    make("augment", "augmented")
    make("encode", "shards")
    make("train", "run")
    make("evaluate", "scores")
    make("sample", "samples")
    save_inception(world / "inception.safetensors")
    torch.save(inception_tensors(), world / "inception.pth")
    save_detector(world / "detector")
    save_clip(world / "clip")
    save_vlm(world / "vlm")
    save_instruct(world / "instruct")
    draw_pictures(world / "real", 6, 1)
    names = draw_pictures(world / "many" / "cat", 1, 2)
    for number in range(1100):  # more than one part of them
        os.link(world / "many" / "cat" / names[0], world / "many" / "cat" / f"{number}.png")
    names = draw_pictures(world / "drawn", 4, 0)
    (world / "parquet").mkdir()
    drawn = [str(world / "drawn" / name) for name in names]
    rows = Dataset.from_dict({"image": drawn}, features=Features({"image": ImageFeature()}))
    rows.to_parquet(world / "parquet" / "train.parquet")
    (world / "prompts.txt").write_text("a cat\na car\n", encoding="utf-8")
    (world / "many.txt").write_text("".join(f"a cat {i}\n" for i in range(20)), encoding="utf-8")
    with open(world / "questions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple"
        writer.writerow([*head.split(","), "question_natural_language"])
        for name in names:
            writer.writerow(
                [Path(name).stem, "a cat", "", 1, 0, "x", "y", "entity - whole (a)", "Is it a cat?"]
            )
    for number, name in enumerate(names):
        for root, count in (("made", 1), ("many-made", 9)):  # the second is more than one part
            folder = world / root / f"{number:05d}"
            (folder / "samples").mkdir(parents=True)
            for i in range(count):
                shutil.copyfile(world / "drawn" / name, folder / "samples" / f"{i:04d}.png")
            asked: dict[str, object] = {"tag": "single_object", "prompt": "a photo of a cat"}
            asked["include"] = [{"class": "cat", "count": 1}]
            (folder / "metadata.jsonl").write_text(json.dumps(asked), encoding="utf-8")
    return world


def words(name: str, world: Path, out: Path, steps: Mapping[str, str] = STEPS) -> list[str]:
    """The command of that name, with its places filled in."""
    from kilopix.runtime import sha256_of_file

    places = {"world": world, "out": out, "sha256": ""}
    if name == "fetch-dpg":
        places["sha256"] = sha256_of_file(world / "questions.csv")
    found: list[str] = []
    for word in steps[name].split():
        several = {"{recipe}": RECIPE, "{power}": POWER}.get(word)
        found += several or [word.format(**places)]
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """The results that do not depend on the time, by name."""
    endings = (".arrow", ".parquet", ".safetensors", ".png", ".jpg", ".csv")
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix in endings
    }


@pytest.mark.parametrize("name", STEPS)
def test_every_refusal_is_one_line_and_nothing_is_lost(
    name: str, world: Path, commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole = tmp_path / "whole"
    whole.mkdir()
    done = commands(*words(name, world, whole / "out"))
    assert done.code == 0, done.err
    counts, faults = Counter[str](), []
    for number, refusal in enumerate(REFUSALS):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        below = world if refusal.call in ("read", "open") else folder
        ended = commands(*words(name, world, folder / "out"), below=below, refusal=refusal)
        fault = ended.fault
        counts["refused" if ended.code else "ended well"] += 1
        again = commands(*words(name, world, folder / "out"))
        if fault is None and again.code:
            fault = "does not go on"
            ended = again
        elif fault is None and contents(folder).keys() != contents(whole).keys():
            fault = f"other files: {sorted(contents(folder).keys() ^ contents(whole).keys())}"
        elif fault is None and (other := [k for k, v in contents(whole).items() if contents(folder)[k] != v]):
            fault = f"other contents: {other}"
        if fault:
            faults.append(f"{name}: {refusal}: {fault}\n{ended.out}{ended.err}")
            with capsys.disabled():
                print(faults[-1])
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"| {name} | {len(REFUSALS)} | {counts['refused']} | {counts['ended well']} | {len(faults)} |")
    assert not faults, "\n\n".join(faults)


def places(folder: Path) -> dict[str, Path]:
    """Where nothing can be written, by what is wrong there."""
    (folder / "file").write_text("a file", encoding="utf-8")
    (folder / "loop").symlink_to(folder / "loop")
    return {
        "a parent is a file": folder / "file" / "out",
        "a grandparent is a file": folder / "file" / "of" / "out",
        "a name too long": folder / ("long" * 70),
        "a path too long": folder.joinpath(*["x" * 200] * 22),
        "a circle of links": folder / "loop" / "out",
        "itself a circle of links": folder / "loop",
    }


@pytest.mark.parametrize("name", [name for name, words in STEPS.items() if "{out}" in words])
def test_a_place_that_cannot_be_is_one_line_that_names_it(
    name: str, world: Path, commands: Commands, tmp_path: Path
):
    faults = []
    for what, out in places(tmp_path).items():
        ended = commands(*words(name, world, out))
        told = ended.fault or (None if ended.code == 2 else f"code {ended.code}")
        if told is None and str(out)[:200] not in ended.err and out.parent.name not in ended.err:
            told = "does not name the place"
        if told and not (what == "itself a circle of links" and ended.code == 0):  # a file beside the link
            faults.append(f"{what}: {told}\n{ended.out}{ended.err}")
    assert not faults, "\n\n".join(faults)


WORKERS = {
    "mini": "mini {out} --classes 2 --images-per-class 200 --val-per-class 1 --workers 2",
    "caption": "caption {world}/many {out}.parquet --workers 2",
    "augment": "augment {world}/captions.parquet {out} --size 32 --workers 2 --part-rows 2",
    "encode": "encode {world}/captions.parquet {out} {recipe} --workers 2 --part-rows 2 --device cpu",
    "fidelity": STEPS["fidelity"].replace("--workers 1", "--workers 2 rows_per_part=2"),
    "geneval": STEPS["geneval"].replace("/made", "/many-made") + " --device cpu",
    "dpg": STEPS["dpg"] + " --device cpu",
    "lengthen": STEPS["lengthen"].replace("prompts.txt", "many.txt") + " --device cpu",
}


def workers_of(pid: int) -> list[int]:
    """The worker processes of a command."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            parent = re.search(r"^PPid:\t(\d+)$", status.read_text(encoding="utf-8"), re.MULTILINE)
            if parent and int(parent[1]) == pid and b"spawn_main" in (status.parent / "cmdline").read_bytes():
                found.append(int(status.parent.name))
    return found


def kill_workers(running: subprocess.Popen[str], most: int, killed: set[int]) -> None:
    """Kill workers of a command as they appear, one after the other, until it ends or `most` were killed."""
    while running.poll() is None and len(killed) < most:
        for worker in workers_of(running.pid):
            if worker not in killed and len(killed) < most:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
                killed.add(worker)
        time.sleep(0.05)


@pytest.mark.parametrize("most", [1, 1000])
@pytest.mark.parametrize("name", WORKERS)
def test_a_killed_worker_is_replaced_or_named_and_nothing_is_lost(
    name: str, most: int, world: Path, commands: Commands, tmp_path: Path
):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    done = commands(*words(name, world, tmp_path / "whole" / "out", WORKERS))
    assert done.code == 0, done.err
    killed: set[int] = set()
    command = [sys.executable, "-m", "kilopix.cli", *words(name, world, tmp_path / "killed" / "out", WORKERS)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killer = threading.Thread(target=kill_workers, args=(running, most, killed))
    killer.start()
    try:
        out, err = running.communicate(timeout=300)
    finally:
        running.kill()
    killer.join()
    ended = Ended(running.returncode, out, err)
    assert killed
    assert ended.fault is None, out + err
    assert "was killed by SIGKILL; out of memory is the usual reason" in out + err
    assert ended.code == (0 if most == 1 else 2), out + err
    again = commands(*words(name, world, tmp_path / "killed" / "out", WORKERS))
    assert again.code == 0, again.err
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [
        (["training.images=1"], 0, "trained on 1 image "),
        (["training.batch_size=1000"], 0, "trained on 64 images"),
        (["training.schedule.warmup_images=100000", "training.schedule.warmup_share=1"], 0, "trained on 64"),
        (["optimizer.lr=0"], 2, "optimizer.lr: Input should be greater than 0"),
        (["optimizer.lr=1e9"], 0, "could not be trained on"),
        (["optimizer.lr=1e9", "training.images=640"], 2, "5 batches in a row could not be trained on"),
    ],
)
def test_odd_settings_of_training_end_in_a_clear_word(
    settings: list[str], code: int, told: str, world: Path, commands: Commands, tmp_path: Path
):
    ended = commands("train", world / "shards", tmp_path / "run", *RECIPE, *settings, "--device", "cpu")
    assert ended.fault is None, ended.err
    assert ended.code == code, ended.err
    assert told in ended.out + ended.err


def test_odd_data_end_in_a_clear_word(world: Path, commands: Commands, tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def run(*arguments: object) -> Ended:
        ended = commands(*arguments)
        assert ended.fault is None, ended.err
        return ended

    table = pq.read_table(world / "captions.parquet")
    wordless = table.set_column(
        table.schema.get_field_index("caption"), "caption", pa.array([""] * len(table))
    )
    pq.write_table(wordless, world / "wordless.parquet")
    pq.write_table(table.slice(0, 1), world / "one.parquet")
    recipe = [*RECIPE, "--device", "cpu"]
    shards = ["--codec", world / "shards", *recipe]
    told = run("encode", world / "wordless.parquet", tmp_path / "wordless", *shards)
    assert f"{len(table)} of {len(table)} captions without words" in told.out
    assert run("train", tmp_path / "wordless", tmp_path / "wordless-run", *recipe).code == 0
    assert "there is only" in run("augment", world / "one.parquet", tmp_path / "augmented", "--size", 32).err
    told = run("encode", world / "one.parquet", tmp_path / "unfit", *recipe)
    assert "independent components" in told.err
    assert run("encode", world / "one.parquet", tmp_path / "one", *shards).code == 0
    validation = ["--validation", tmp_path / "one", "validation.every=32"]
    assert run("train", tmp_path / "one", tmp_path / "run-one", *recipe).code == 0
    assert run("train", world / "shards", tmp_path / "run", *recipe, *validation).code in (
        0,
        2,
    )

"""Two processes against one, and four accumulations against one: the same losses and weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine_worker import Job, in_processes
from kilopix.runtime import read_tensors
from kilopix.training.checkpoint import checkpoints, read_progress, read_weights
from optimizer_worker import GATHER, Steps
from tiny import TINY

STEPS = 20
RUN = ["training.images=160", "training.batch_size=8", "training.checkpoint_every=80", "training.log_every=8"]
DIT = [*TINY, *RUN, "optimizer.kind=adamw", "optimizer.lr=2e-3"]
RIN = [
    *(setting for setting in DIT if not setting.startswith("model.")),
    "model.latents=8",
    "model.latent_width=32",
    "model.token_width=16",
    "model.blocks=2",
    "model.layers=1",
    "model.patch=1",
    "model.read_write_heads=2",
    "model.compute_heads=2",
    "model.text_heads=2",
    "model.registers=2",
    "optimizer.kind=lamb",
    "optimizer.lr=1e-3",
]
KINDS = {"dit": ("mini", DIT), "cad": ("mini_cad", RIN), "muon": ("mini", [*DIT, "optimizer.kind=muon"])}
LOWER = ["training.precision=bfloat16", "training.communication=bfloat16"]
FOUR, FSDP = ["training.micro_batch=2"], ["training.parallel=fsdp"]


@pytest.fixture(scope="module")
def job(tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("processes")

    def make(name: str, kind: str, *settings: str, **breaks) -> Job:
        recipe, overrides = KINDS[kind]
        return Job(str(tiny_demo / "shards"), str(folder / name), recipe, [*overrides, *settings], **breaks)

    return make


@pytest.fixture(scope="module")
def alone(job) -> dict[str, Job]:
    """Every kind in one process, whole."""
    jobs = {kind: job(kind, kind) for kind in KINDS}
    assert all(each.do() for each in jobs.values())
    return jobs


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("steps")

    def make(name: str, *what) -> Steps:
        return Steps(str(folder / name), *what)

    return make


@pytest.fixture(scope="module")
def steps_alone(steps) -> dict[str, Steps]:
    """Twenty steps of an optimizer in one process, and its first ten."""
    jobs = {kind: steps(kind, kind, "ddp", 0, STEPS) for kind in ("muon", "lamb")}
    jobs["ten"] = steps("ten", "muon", "ddp", 0, 10)
    assert all(each.do() for each in jobs.values())
    return jobs


def steps_together(steps, ten: Steps, processes: int) -> dict[str, Steps]:
    """The same in several: whole, in halves, the second half of one process's first, and what is sent."""
    jobs: dict[str, Steps] = {}
    for style in ("ddp", "fsdp"):
        first = steps(f"first-{style}-{processes}", "muon", style, 0, 10)
        parts = {
            "muon": ("muon", style, 0, STEPS),
            "second": ("muon", style, 10, STEPS, first.checkpoint),
            "taken up": ("muon", style, 10, STEPS, ten.checkpoint),
            "one round": ("muon", style, 0, 2, "", 2**27),
            "lamb": ("lamb", style, 0, STEPS),
        }
        jobs[f"first {style}"] = first
        for name, what in parts.items():
            jobs[f"{name} {style}"] = steps(f"{name}-{style}-{processes}", *what)
    return jobs


@pytest.fixture(scope="module")
def together(job, steps, alone: dict[str, Job], steps_alone: dict[str, Steps]) -> dict[str, Job | Steps]:
    """In two processes, one after the other; two were begun by one process, of which one stops again."""
    jobs = {
        "dit ddp": job("dit-ddp", "dit", "training.micro_batch=2"),
        "cad ddp": job("cad-ddp", "cad", "training.micro_batch=3"),
        "dit fsdp": job("dit-fsdp", "dit", *FSDP, "training.micro_batch=2"),
        "cad fsdp": job("cad-fsdp", "cad", *FSDP, "training.activation_checkpointing=true"),
        "muon ddp": job("muon-ddp", "muon"),
        "muon fsdp": job("muon-fsdp", "muon", *FSDP),
        "dit bf16": job(
            "dit-bf16", "dit", *FSDP, *LOWER, "training.images=64", "training.checkpoint_every=32"
        ),
        "resumed": job("resumed", "dit", stop_at=48),
        "resumed fsdp": job("resumed-fsdp", "dit", *FSDP, stop_at=48),
        "grafted fsdp": job("grafted-fsdp", "dit", *FSDP, *grafted(alone)),
        "dit begins": job("dit-begins", "dit", check=["start", "fsdp"]),
        "cad begins": job("cad-begins", "cad", check=["start", "fsdp"]),
        "dit sends fsdp": job("dit-sends-fsdp", "dit", check=["lower", "fsdp"]),
        "cad sends fsdp": job("cad-sends-fsdp", "cad", check=["lower", "fsdp"]),
        "dit sends ddp": job("dit-sends-ddp", "dit", check=["lower", "ddp"]),
    }
    assert jobs["resumed"].do() is jobs["resumed fsdp"].do() is False
    jobs["resumed"].stop_at, jobs["resumed fsdp"].stop_at = 96, 10**9
    optimizers = steps_together(steps, steps_alone["ten"], 2)
    done = in_processes([*jobs.values(), *optimizers.values()])
    assert done.returncode == 0, done.stderr[-3000:]
    return {**jobs, **{f"steps of {name}": each for name, each in optimizers.items()}}


def grafted(alone: dict[str, Job]) -> list[str]:
    """Settings of a short run that begins from another one's weights."""
    source = f"training.start_from={alone['dit'].out}/model.safetensors"
    return [source, "training.images=32", "training.checkpoint_every=32"]


def losses(run: Job) -> list[float]:
    return [
        json.loads(line)["loss"]
        for line in (Path(run.out) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def without_key_biases(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights but for the biases of keys: attention does not depend on them, so that their gradients are
    rounding errors, which Adam and LAMB scale to the size of any other."""
    kept = dict(tensors)
    for name in tensors:
        if name.endswith("qkv.bias"):
            queries, _, values = tensors[name].chunk(3)
            kept[name] = torch.cat([queries, values])
        elif name.endswith("kv.bias"):
            kept[name] = tensors[name].chunk(2)[1]
    return kept


def assert_same(a: Job, b: Job) -> None:
    ours, theirs = (without_key_biases(read_weights(Path(x.out) / "model.safetensors")[0]) for x in (a, b))
    assert ours.keys() == theirs.keys()
    gaps = {name: float((ours[name] - theirs[name]).abs().max()) for name in ours}
    assert {name: gap for name, gap in gaps.items() if gap > 1e-5} == {}
    first, second = losses(a), losses(b)
    assert len(first) == len(second) == STEPS
    assert first[0] != pytest.approx(first[-1], rel=1e-3), "it learnt nothing"
    assert first == pytest.approx(second, abs=1e-5)


@pytest.mark.parametrize("kind", ["dit", "cad"])
def test_four_accumulations_are_one_batch(kind: str, alone: dict[str, Job], job):
    accumulated = job(f"{kind}-accumulated", kind, *FOUR)
    assert accumulated.do()
    assert_same(accumulated, alone[kind])


@pytest.mark.parametrize("name", ["dit ddp", "cad ddp", "dit fsdp", "cad fsdp", "muon ddp", "muon fsdp"])
def test_two_processes_are_one(name: str, alone: dict[str, Job], together: dict[str, Job]):
    assert_same(together[name], alone[name.split()[0]])


def test_one_to_two_to_one_process_in_the_same_order(alone: dict[str, Job], together: dict[str, Job]):
    resumed = together["resumed"]
    stopped = read_progress(checkpoints(Path(resumed.out) / "checkpoints")[-1])
    assert stopped.processes == 2
    assert 96 <= stopped.images_seen < 160
    resumed.stop_at = 10**9
    assert resumed.do()
    assert_same(resumed, alone["dit"])
    order = alone["dit"].sample_ids(1)
    assert sorted(order) == list(range(0, 160, 8))
    lines = [json.loads(line) for line in resumed.ids(1).read_text(encoding="utf-8").splitlines()]
    assert len(lines) > 3, "the second process was given nothing"
    # What two processes were given, one after the other, is what one is given; the first also wrote down
    # what it was given alone.
    for line in lines:
        assert line["ids"] == order[line["position"]][4:]
    for line in map(json.loads, resumed.ids(0).read_text(encoding="utf-8").splitlines()):
        assert line["ids"] in (order[line["position"]], order[line["position"]][:4])


def test_one_process_to_two_that_share_its_network(alone: dict[str, Job], together: dict[str, Job]):
    assert_same(together["resumed fsdp"], alone["dit"])


def test_two_processes_share_a_network_that_begins_from_other_weights(
    alone: dict[str, Job], together: dict[str, Job], job
):
    one, two = job("grafted", "dit", *grafted(alone)), together["grafted fsdp"]
    assert one.do()
    records = [
        json.loads((Path(each.out) / "recipe.json").read_text(encoding="utf-8")) for each in (one, two)
    ]
    assert records[0]["started_from"] == records[1]["started_from"]
    ours, theirs = (
        without_key_biases(read_weights(Path(x.out) / "model.safetensors")[0]) for x in (one, two)
    )
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)
    assert losses(one) == pytest.approx(losses(two), abs=1e-5)


def test_what_two_processes_wrote_one_reads(alone: dict[str, Job], together: dict[str, Job], job):
    continued = job("continued", "cad")
    shutil.copytree(together["cad fsdp"].out, continued.out)
    (Path(continued.out) / "model.safetensors").unlink()
    for newest in checkpoints(Path(continued.out) / "checkpoints")[1:]:
        shutil.rmtree(newest)
    assert continued.do()
    assert_same(continued, alone["cad"])


@pytest.mark.parametrize("kind", ["dit", "cad"])
def test_a_shared_network_begins_as_one_process_begins_it_and_is_whole_nowhere(
    kind: str, together: dict[str, Job]
):
    main, other = together[f"{kind} begins"].found
    for found in (main, other):
        assert found["wrong"] == []
        assert found["sharded"]
        assert found["buffers"]
        assert abs(found["part"] - found["whole"] / 2) < 0.01 * found["whole"]
    # Network and average, a part of each, and a tensor or two that are whole while they are handed out.
    assert other["alive"] < 2 * other["part"] + 3 * other["largest"]
    assert 2 * other["part"] + 3 * other["largest"] < 2 * other["whole"]


@pytest.mark.parametrize("name", ["dit sends fsdp", "cad sends fsdp", "dit sends ddp"])
def test_gradients_that_are_sent_in_bfloat16_are_near_those_in_float32(name: str, together: dict[str, Job]):
    for found in together[name].found:
        assert found["missing"] == found["zero"] == []
        assert found["types"] == ["torch.float32"]
        assert found["changed"], "nothing was sent in bfloat16"
        assert found["distance"] < 2.5 * found["of computing"] < 0.05
        assert found["held"] == (name == "dit sends ddp"), "whole gradients wait for the last micro-batch"


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_a_run_that_sends_bfloat16_keeps_float32_and_goes_on_in_one_process(together: dict[str, Job], job):
    run = together["dit bf16"]
    newest = checkpoints(Path(run.out) / "checkpoints")[-1]
    for path in (Path(run.out) / "model.safetensors", *newest.glob("*.safetensors")):
        assert {value.dtype for value in read_tensors(path)[0].values()} == {torch.float32}, path
    finished = read_weights(Path(run.out) / "model.safetensors")[0]
    continued = job("continued-bf16", "dit", *LOWER, "training.images=64", "training.checkpoint_every=32")
    shutil.copytree(run.out, continued.out)
    (Path(continued.out) / "model.safetensors").unlink()
    shutil.rmtree(checkpoints(Path(continued.out) / "checkpoints")[-1])
    assert continued.do()
    ended = read_weights(Path(continued.out) / "model.safetensors")[0]
    assert all(torch.allclose(ended[name], finished[name], atol=0.02) for name in finished)


@pytest.mark.slow
def test_compiled_gradients_of_two_processes_are_those_of_uncompiled_ones(job):
    jobs = {
        f"{kind} {style}": job(f"compiled-{kind}-{style}", kind, check=["compiled", style])
        for kind in ("dit", "cad")
        for style in ("ddp", "fsdp")
    }
    done = in_processes(list(jobs.values()))
    assert done.returncode == 0, done.stderr[-3000:]
    for name, each in jobs.items():
        for found in each.found:
            # Sums over the batch of the gradients of these scales are taken in another order.
            left = {key: gap for key, gap in found["gaps"].items() if not key.endswith("key_norm.weight")}
            assert left == {}, name
            assert max(found["gaps"].values(), default=0.0) < 1e-8, name
            assert found["missing"] == found["breaks"] == found["uncompiled"] == [], name
            assert found["names"], name
            assert 0 < found["graphs"] <= 14, name


def test_a_hanging_and_a_dead_process(job, alone: dict[str, Job]):
    hangs = job("hangs", "dit", "training.watchdog.seconds=1", hang_at=80, hang_seconds=6.0)
    dies = job("dies", "dit", "training.checkpoint_every=32", die_at=80)
    done = in_processes([hangs, dies])
    assert done.returncode != 0
    report = done.stderr[done.stderr.index("takes longer than") :]
    assert "process 1 (" in report
    assert "waiting for data" in report
    assert "computing, or waiting for the other processes" in report
    assert_same(hangs, alone["dit"])
    assert "another process ended or answered no more" in done.stderr
    assert "the same command goes on from the last checkpoint" in done.stderr
    assert not (Path(dies.out) / "model.safetensors").exists()
    dies.die_at = 10**9
    assert dies.do()
    assert_same(dies, alone["dit"])


def gaps(a: Steps, b: Steps) -> dict[str, float]:
    """How far tensors are apart, relative to their norms; only those that are."""
    ours, theirs = a.tensors(), b.tensors()
    assert ours.keys() == theirs.keys()
    apart = {name: float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in ours}
    return {name: gap for name, gap in apart.items() if gap > 0}


def check_steps(jobs: dict[str, Steps], alone: dict[str, Steps], continued: Callable[[Steps], Steps]) -> None:
    for style in ("ddp", "fsdp"):
        whole, first = jobs[f"muon {style}"], jobs[f"first {style}"]
        assert gaps(jobs[f"second {style}"], whole) == {}, "a stop between is to be seen"
        for same in (whole, jobs[f"taken up {style}"], continued(first)):
            assert max(gaps(same, alone["muon"]).values(), default=0.0) < 1e-6
        assert max(gaps(jobs[f"lamb {style}"], alone["lamb"]).values(), default=0.0) < 1e-6
    # A few collectives for all matrices, and one for the norm, of every step.
    assert jobs["one round ddp"].sent() == {GATHER: 2}
    assert jobs["one round fsdp"].sent() == {"all_to_all_single": 4, "all_reduce": 2}
    assert jobs["muon ddp"].sent()[GATHER] > STEPS, "several rounds were not tried"


def test_optimizers_in_two_processes_are_those_in_one(steps, steps_alone: dict[str, Steps], together):
    jobs = {name.removeprefix("steps of "): each for name, each in together.items()}

    def continued(half: Steps) -> Steps:
        rest = steps(f"{Path(half.out).name}-alone", "muon", "ddp", 10, STEPS, half.checkpoint)
        assert rest.do()
        return rest

    check_steps(jobs, steps_alone, continued)


@pytest.mark.slow
def test_optimizers_in_three_processes_go_on_from_two(steps, steps_alone: dict[str, Steps], together):
    jobs = steps_together(steps, steps_alone["ten"], 3)
    moved = {
        style: steps(
            f"moved-{style}", "muon", style, 10, STEPS, together[f"steps of first {style}"].checkpoint
        )
        for style in ("ddp", "fsdp")
    }
    done = in_processes([*jobs.values(), *moved.values()], 3)
    assert done.returncode == 0, done.stderr[-3000:]
    check_steps(jobs, steps_alone, lambda half: moved[half.style])

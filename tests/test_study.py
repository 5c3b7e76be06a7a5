"""The study's tables and claims, and a very small study from pictures to tables."""

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

STUDY = Path(__file__).parents[1] / "benchmarks" / "study"
sys.path.insert(0, str(STUDY))

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import arms  # noqa: E402
import ceiling  # noqa: E402
import choose  # noqa: E402
import guidance  # noqa: E402
import methods  # noqa: E402
import probe  # noqa: E402
import race  # noqa: E402
import tables  # noqa: E402
import trials  # noqa: E402
import visible  # noqa: E402

import kilopix.step  # noqa: E402
import run  # noqa: E402
import study_figures  # noqa: E402
from kilopix.data.manifest import read_manifest  # noqa: E402
from kilopix.data.shards import Shards  # noqa: E402
from kilopix.diffusion.objective import ObjectiveConfig  # noqa: E402
from kilopix.english import plural  # noqa: E402
from kilopix.evaluation.protocol import Card, Score, write_card  # noqa: E402
from kilopix.generator import Generator  # noqa: E402
from kilopix.network import build_network  # noqa: E402
from kilopix.step import StepLoader, StepLoss  # noqa: E402
from kilopix.training.parallel import Processes  # noqa: E402
from kilopix.types import TextStates, UserError  # noqa: E402

SHA = "0" * 64
SMALL = [
    *("world.classes=3", "world.images_per_class=16", "world.val_per_class=8", "training.images=32"),
    *("sampling.steps=1", "evaluation.prompts_per_task=2", "evaluation.images_per_prompt=1"),
    *("evaluation.fidelity_images=16", "training.checkpoint_every=16", "training.keep_every=16"),
    *("training.batch_size=8", "validation.every=16", "validation.samples=8"),
]


@pytest.fixture
def study() -> arms.Study:
    return arms.load_study(STUDY / "study.toml")


def keep(kept: Path, arm: str, seed: int, value: float) -> None:
    names = ("mean of six tasks", "single object", "two object", "KID")
    card = Card(
        checkpoint="m", resolution=64, images=4, evaluator="judge", evaluator_sha256=SHA, kilopix_version="0",
        scores=tuple(Score(name=name, value=value, n=4) for name in names),
    )  # fmt: skip
    write_card(kept / arm / f"seed{seed}" / "card.json", card)


def test_the_study_names_its_arms(study: arms.Study):
    assert len(study.arms) >= 7
    assert len(study.claims) >= 3
    assert len(study.seeds) >= 3
    assert {arm.augment for arm in study.arms.values()} == {"none", "cutmix", "crop"}
    for claim in study.claims:
        seen = {study.recipe(study.arms[arm], 1).training.images for arm in (claim.better, claim.base)}
        assert len(seen) == 1, "arms are compared after the same number of pictures"


def test_a_change_is_made_to_every_arm():
    changed = arms.load_study(STUDY / "study.toml", ("training.images=64",))
    assert {changed.recipe(arm, 1).training.images for arm in changed.arms.values()} == {64}


def test_a_claim_about_an_unknown_arm_is_refused(tmp_path: Path):
    text = (
        (STUDY / "study.toml")
        .read_text(encoding="utf-8")
        .replace('better = "ta_cutmix"', 'better = "ta_cutmax"')
    )
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="ta_cutmax"):
        arms.load_study(tmp_path / "study.toml")


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_intervals_are_students(n: int):
    values = np.random.default_rng(n).normal(size=n)
    found = tables.over_seeds(list(values))
    low, high = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    assert (found.low, found.value, found.high) == pytest.approx((low, values.mean(), high), abs=2e-3)


def test_one_seed_says_nothing_of_the_others():
    found = tables.over_seeds([0.5])
    assert math.isinf(found.low)
    assert math.isinf(found.high)


@pytest.mark.parametrize(
    ("better", "base", "shown"),
    [
        ([0.5, 0.52, 0.51], [0.2, 0.21, 0.22], "confirmed"),
        ([0.2, 0.21, 0.22], [0.5, 0.52, 0.51], "contradicted"),
        ([0.5, 0.1, 0.3], [0.2, 0.3, 0.25], "not shown"),
        ([0.5, 0.52], [0.2, 0.21], "open: fewer than three seeds"),
    ],
)
def test_what_is_shown_of_a_claim(
    study: arms.Study, tmp_path: Path, better: list[float], base: list[float], shown: str
):
    claim = study.claims[0]
    for arm, values in ((claim.better, better), (claim.base, base)):
        for seed, value in enumerate(values):
            keep(tmp_path, arm, seed, value)
    results = tables.read_results(study, tmp_path)
    found = tables.difference(results, claim)
    assert tables.verdict(claim, found) == shown
    assert shown in tables.claims_table(results)


def test_tables_go_between_their_markers():
    page = "a\n<!-- scores -->\nold\n<!-- /scores -->\nb\n"
    assert tables.fill(page, "scores", "new") == "a\n<!-- scores -->\nnew\n<!-- /scores -->\nb\n"
    with pytest.raises(UserError, match="claims"):
        tables.fill(page, "claims", "new")


def test_only_pictures_in_which_both_are_seen_are_kept(
    tiny_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("one", "two"):
        shutil.copytree(tiny_demo / "augmented", tmp_path / name)
    rows = read_manifest(tmp_path / "one" / "manifest.parquet").rows
    assert len(rows) > 3
    seen = {row.path: (i % 2 == 0, i % 3 > 0) for i, row in enumerate(rows)}
    monkeypatch.setattr(visible, "found", lambda _, rows: [seen[row.path] for row in rows])
    visible.keep_visible([tmp_path / "one", tmp_path / "two"], tmp_path / "visible.parquet")
    kept = read_manifest(tmp_path / "visible.parquet")
    wanted = [path for path, both in seen.items() if all(both)]
    assert [row.path for row in kept.rows] == [f"{name}/{path}" for name in ("one", "two") for path in wanted]
    assert all((kept.root / row.path).is_file() for row in kept.rows)
    with pytest.raises(UserError, match="above"):
        visible.keep_visible([tmp_path / "one"], tmp_path / "two" / "visible.parquet")


def test_a_seam_is_an_edge_in_the_middle_that_is_not_beside():
    flat = np.full((64, 64), 100.0)
    assert run.middle_edge(flat) == 0
    pasted = flat.copy()
    pasted[:32, :32] = 140
    assert run.middle_edge(pasted) == pytest.approx(20)
    blocks = np.kron(np.indices((8, 8)).sum(0) % 2 * 30.0, np.ones((8, 8)))
    assert run.middle_edge(blocks) == pytest.approx(0)
    assert run.middle_edge(np.roll(pasted, 8, (0, 1))) < 0


def test_what_is_found_of_two_objects_is_counted():
    asked = "a photo of a cat and an umbrella"
    verdicts = [
        ["two_object", asked, 1, ["umbrella", "cat"]],
        ["two_object", asked, 0, ["cat", "cat"]],
        ["two_object", asked, 0, ["car"]],
        ["two_object", asked, 0, []],
        ["single_object", "a photo of a cat", 1, ["cat"]],
    ]
    assert list(study_figures.found_of_two(verdicts).values()) == [1, 1, 1, 1]


def lane(*points: tuple[float, float, float]) -> list[dict]:
    """Points of a race: minutes, mean of six tasks, KID; a hundred images a minute."""
    return [
        {"images": 100 * minutes, "minutes": minutes, "mean of six tasks": [mean] * 3, "KID": [kid] * 3}
        for minutes, mean, kid in points
    ]


def test_a_race_says_when_the_second_had_what_the_first_ends_with():
    base = lane((10, 0.1, 0.5), (20, 0.2, 0.4))
    ours = lane((5, 0.15, 0.38), (10, 0.25, 0.3), (15, 0.18, 0.45))
    found = race.conclude({"base line": base, "recommended": ours})
    assert found["mean of six tasks"] == {
        "goal": 0.2, "minutes_of_base_line": 20, "minutes": 10, "images": 1000, "times_as_fast": 2,
    }  # fmt: skip
    kid = found["KID"]
    assert kid is not None
    assert (kid["minutes"], kid["times_as_fast"]) == (5, 4)
    slower = race.conclude({"base line": base, "recommended": lane((5, 0.1, 0.6))})
    assert slower == {"mean of six tasks": None, "KID": None}
    nothing = race.conclude({"base line": lane((20, 0.0, 0.4)), "recommended": ours})
    assert nothing["mean of six tasks"] is None
    assert nothing["KID"] is not None


def test_the_race_is_between_the_published_way_and_the_demos():
    base, ours = (race.load_recipe(race.LANES[name]) for name in ("base line", "recommended"))
    assert (base.optimizer.kind, base.objective.prediction, base.objective.time.kind) == (
        "lamb",
        "noise",
        "uniform",
    )
    assert base.training.batch_size == ours.training.batch_size
    assert (base.model, base.autoencoder, base.world) == (ours.model, ours.autoencoder, ours.world)


def test_the_caption_is_worth_something_to_a_network_that_reads_it(lively: Path, tiny_demo: Path):
    shards = Shards(tiny_demo / "shards")
    loss, worth = probe.losses(Generator.from_pretrained(lively, "cpu"), shards, 16)
    assert loss.shape == worth.shape == (len(probe.LEVELS),)
    assert bool((worth.abs() > 1e-4).all())
    assert probe.losses(deaf(lively), shards, 16)[1].abs().max() == 0


def deaf(run_folder: Path) -> Generator:
    """A network that has learnt nothing from its captions."""
    generator = Generator.from_pretrained(run_folder, "cpu")
    for name, weight in generator.network.named_parameters():
        if "text" in name or "cross_attention" in name:
            weight.detach().zero_()
    return generator


@pytest.mark.slow
def test_a_very_small_study_runs_and_goes_on(tmp_path: Path):
    kept = tmp_path / "kept"
    command = [sys.executable, str(STUDY / "run.py"), str(tmp_path / "out"), "--kept", str(kept)]
    command += ["--only", "ta_short", "ta_cutmix", "seed0", "--set", *SMALL]
    subprocess.run(command, check=True, capture_output=True)
    cards = sorted(path.parent.parent.name for path in kept.glob("*/seed0/card.json"))
    assert cards == ["ta_cutmix", "ta_short"]
    verdicts = json.loads((kept / "ta_cutmix" / "seed0" / "verdicts.json").read_text(encoding="utf-8"))
    assert len({tag for tag, *_ in verdicts}) == 6
    assert len(verdicts) >= 6 * 2
    facts = json.loads((kept / "ta_cutmix" / "seed0" / run.FACTS).read_text(encoding="utf-8"))
    assert {line["set"] for line in facts["fixed"]} == {"training", "held_out"}
    assert len(facts["seam"]) == sum(tag in ("single_object", "colors") for tag, *_ in verdicts)
    with Image.open(kept / "ta_cutmix" / "seed0" / run.PICTURES) as strip:
        assert strip.size == (12 * 64, 64)
    chosen = json.loads((kept / "ta_cutmix" / "seed0" / run.CHOICES).read_text(encoding="utf-8"))
    assert len(chosen) == 7
    assert {len(answers) for answers in chosen.values()} == {choose.COUNT}
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "2 were done, 0 done now" in again.stdout
    subprocess.run([*command, "--curves"], check=True, capture_output=True)
    scored = json.loads((kept / "ta_cutmix" / "seed0" / run.CURVES).read_text(encoding="utf-8"))
    assert [point["images"] for point in scored] == [16, 32]
    assert all("KID" in point["scores"] for point in scored)


def test_questions_have_two_captions_of_which_the_picture_shows_one():
    asked = choose.questions(classes=6, count=40)
    assert len(asked) == 7 * 40
    assert asked == choose.questions(classes=6, count=40)
    for question in asked:
        items = question.scene.objects
        assert question.right != question.wrong
        assert all(item.name in question.right or plural(item.name) in question.right for item in items)
        if question.task in ("position", "color attr"):
            assert sorted(re.split(r"\W+", question.right.lower().replace(" an ", " a "))) == sorted(
                re.split(r"\W+", question.wrong.lower().replace(" an ", " a "))
            )
        if question.task == "color attr":
            assert all(f"{item.color} {item.name}" in question.right for item in items)
        if question.task == "position":
            first, second = items
            dx, dy = first.x - second.x, first.y - second.y
            relation = "left of" if dx < -0.3 else "right of" if dx > 0.3 else "above" if dy < 0 else "below"
            assert f"{first.name} {relation} a" in question.right
        if question.task == "place":
            large, small = items
            corner = ("top " if small.y < large.y else "bottom ") + ("left" if small.x < large.x else "right")
            assert f"{large.name}. In the {corner} corner, a" in question.right
            assert corner not in question.wrong
        if question.task == "counting":
            assert question.right.startswith(f"a photo of {choose.NUMBERS[len(items)]} ")


def test_a_network_that_reads_captions_prefers_one_and_a_deaf_one_none(lively: Path):
    asked = choose.questions(classes=3, count=4)
    found = choose.margins(Generator.from_pretrained(lively, "cpu"), asked)
    assert found.shape == (28,)
    assert bool((found.abs() > 1e-6).all())
    assert torch.equal(found, choose.margins(Generator.from_pretrained(lively, "cpu"), asked))
    assert choose.margins(deaf(lively), asked).abs().max() == 0


def test_a_network_that_knows_the_caption_chooses_it(lively: Path, monkeypatch: pytest.MonkeyPatch):
    """The loss is taken with each caption for its own picture: one that is smaller for `right` wins."""
    generator = Generator.from_pretrained(lively, "cpu")
    asked = choose.questions(generator.recipe.world.classes, 3)
    states = generator.text_cache.encode([question.right for question in asked]).states.mean((1, 2))

    def losses(_: Generator, data: torch.Tensor, text: TextStates, levels: tuple[float, ...], seed: str):
        right = torch.isclose(text.states.mean((1, 2)), states, atol=1e-6)
        return torch.where(right, 0.5, 1.0).expand(len(levels), len(data))

    monkeypatch.setattr(choose, "velocity_losses", losses)
    assert choose.choices(generator, 3) == {task: [True] * 3 for task in choose_tasks(asked)}


def choose_tasks(asked: list[choose.Question]) -> list[str]:
    tasks = list(dict.fromkeys(question.task for question in asked))
    assert len(tasks) == 7
    return tasks


def test_a_claim_that_less_is_better_is_read_the_other_way(study: arms.Study):
    claim = study.claims[0].model_copy(update={"lower": True})
    assert tables.verdict(claim, (tables.Interval(-2.0, -3.0, -1.0), 3)) == "confirmed"
    assert tables.verdict(claim, (tables.Interval(2.0, 1.0, 3.0), 3)) == "contradicted"


def test_every_claims_score_is_one_that_is_kept(study: arms.Study):
    kept = {*tables.JUDGED, "KID", "seam", *(tables.CHOOSES + t for t in ("mean", "place", *tables.TASKS))}
    kept |= {tables.STANDS + task for task in tables.JUDGED}
    assert {claim.score for claim in study.claims} <= kept


def test_intervals_of_shares_end_where_shares_do(study: arms.Study, tmp_path: Path):
    for seed, value in enumerate((0.0, 0.02, 0.1)):
        keep(tmp_path, "aio", seed, value)
    table = tables.scores_table(tables.read_results(study, tmp_path), ["two object"])
    assert "| 4.0 (0.0 to 17.1) |" in table


def test_the_judge_finds_more_of_whole_pictures_than_of_pasted_ones(tiny_demo: Path):
    pasted = read_manifest(tiny_demo / "augmented" / "manifest.parquet")
    plain = read_manifest(tiny_demo / "captions.parquet")
    answers = ceiling.found(pasted.root, pasted.rows)
    assert len(answers) == len(pasted.rows) > 20
    whole = [first for first, _ in ceiling.found(plain.root, [replace(r, partner="x/y") for r in plain.rows])]
    assert sum(whole) / len(whole) > 0.9
    assert 0 < sum(first and second for first, second in answers) / len(answers) < sum(whole) / len(whole)


@pytest.mark.parametrize(("file", "count"), [("trials.toml", 19), ("trials_cad_i.toml", 4)])
def test_a_trial_changes_one_thing_of_the_studys_arm(study: arms.Study, file: str, count: int):
    trials_study = trials.load_trials(file)
    assert file in trials.FILES
    assert len(trials_study.arms) == count
    base = study.recipe(study.arms[trials_study.against], 0).model_dump()
    kept = ("checkpoint_every", "keep_every")  # says nothing of what is trained
    for arm in trials_study.arms.values():
        assert (arm.captions, arm.augment) == ("structured", "cutmix")
        changed = trials_study.recipe(arm, 0).model_dump()
        for key in kept:
            changed["training"][key] = base["training"][key]
        sections = {name for name in base if base[name] != changed[name]} - {"sampling"}
        assert len(sections) == (arm.method == "usual"), arm.title
        assert arm.method == "usual" or not arm.overrides
        assert bool(arm.encoding) == ("autoencoder" in sections)


def test_what_chance_does_is_what_arm_and_seed_do_not_explain():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (60, 40))
    values = rng.normal(size=(60, 1)) + rng.normal(size=(1, 40)) + noise
    deviation, degrees = trials.spread(values.tolist())
    assert degrees == 59 * 39
    assert deviation == pytest.approx(0.1, rel=0.05)


def test_a_trial_is_told_from_its_arm_by_what_chance_does(tmp_path: Path):
    study = arms.load_study(STUDY / "study.toml")
    for i, arm in enumerate(trials.ALIKE):
        for seed in study.seeds:
            keep(tmp_path, arm, seed, 0.1 * i + (0.01 if (i + seed) % 2 else -0.01))
    results = tables.read_results(study, tmp_path)
    trial = replace(results, study=trials.load_trials("trials.toml"))
    trial.scores["routed"] = {0: {"KID": results.values("ta_cutmix", "KID")[0] + 0.05}}
    found = trials.difference(trial, results, "routed", "KID")
    assert found.value == pytest.approx(0.05)
    deviation, degrees = trials.chance(results, "KID")
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, degrees) * deviation * 2**0.5)
    assert degrees == 12
    assert trials.cell(found, "KID").startswith("**+50 (")
    assert trials.cell(replace(found, low=-0.01), "KID").startswith("+50 (")


def test_contrastive_loss_is_less_for_what_is_far_from_the_next_sample():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 4, 3, 2, 2, generator=generator)
    t, config = torch.full((4,), 0.5), ObjectiveConfig()
    target = noise - latents
    own = methods.contrastive_loss(config, lambda x, t: target, latents, noise, t, 0.05)
    apart = (target - target.roll(1, 0)).square().mean((1, 2, 3))
    assert own == pytest.approx(-0.05 * apart)
    further = methods.contrastive_loss(config, lambda x, t: target / 0.95, latents, noise, t, 0.05)
    assert further.mean() < own.mean()


def test_alignment_reaches_the_first_half_of_the_blocks_alone(tiny_demo: Path):
    shards = tiny_demo / "shards"
    recipe = Generator.from_pretrained(tiny_demo / "run", "cpu").recipe
    index = Shards(shards).index
    network = build_network(recipe, index.latent_shape[0], index.text_width)
    names = set(network.state_dict())
    loss = methods.AlignedLoss(network, recipe, torch.float32, shards)
    usual = StepLoss(network, recipe, torch.float32)
    assert set(network.state_dict()) == names
    batch = StepLoader(Shards(shards), recipe, Processes(), 8).load((0, 8))
    extra = loss(batch) - usual(batch)
    assert 0 < extra < 1
    extra.backward()
    half = len(network.blocks) // 2
    reached = [
        any(p.grad is not None and p.grad.any() for p in block.parameters()) for block in network.blocks
    ]
    assert any(reached[:half])
    assert not any(reached[half:])
    features = loss._features
    assert features(batch.latents[:2]) == pytest.approx(features(batch.latents)[:2], abs=2e-3)


def test_another_way_of_training_ends_with_its_context(tiny_demo: Path):
    usual = kilopix.step.loss_per_sample
    with methods.trained_by("contrastive", tiny_demo / "shards"):
        assert kilopix.step.loss_per_sample is methods.contrastive_loss
    assert kilopix.step.loss_per_sample is usual


def test_every_guidance_is_one_that_can_be_sampled_with():
    config = Generator.from_pretrained("mini", "cpu").recipe.sampling
    own = config.guidance.model_dump()
    assert len(guidance.SETTINGS) == 9
    for name, values in guidance.SETTINGS.items():
        changed = guidance.Guided(values=values).apply(config)
        assert changed.model_copy(update={"guidance": config.guidance}) == config
        found = changed.guidance.model_dump()
        assert all(found[key] == value for key, value in {**own, **values}.items()), name


def test_guidance_is_told_by_differences_of_the_same_training():
    def card(value: float) -> Card:
        return Card(
            checkpoint="m", resolution=64, images=4, evaluator="judge", evaluator_sha256=SHA,
            kilopix_version="0", scores=tuple(Score(name=name, value=value, n=4) for name in guidance.SCORES),
        )  # fmt: skip

    cards = {guidance.OWN: [card(0.1), card(0.5)], "none": [card(0.2), card(0.6)]}
    own, other = guidance.table(cards).splitlines()[2:]
    assert own.startswith(f"| {guidance.OWN} | 300 (")
    assert other.startswith("| none | +100 (100 to 100) | +10.0 (10.0 to 10.0)")

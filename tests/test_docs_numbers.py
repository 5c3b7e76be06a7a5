"""Numbers, names and lists in the documentation are those of the code that they speak of.

What stands on two pages is computed here once and looked for on both; commands are parsed by
`tests/test_docs.py`.
"""

import importlib
import itertools
import json
import re
import sys
import tomllib
from collections.abc import Iterator

import pytest

from kilopix.budget import IMAGENET, TOKENS, Budget, Encoded
from kilopix.data.world.objects import OBJECTS
from kilopix.diffusion.samplers import SAMPLERS
from kilopix.diffusion.sampling import PRESETS
from kilopix.evaluation.geneval_prompts import official_prompts
from kilopix.hardware import device_named
from kilopix.model_files import SHIPPED, SHIPPED_MODEL
from kilopix.recipe import Recipe, load_recipe, recipe_names
from kilopix.stages.plan import ASSUMED, Question, plan
from kilopix.training.averages import ExponentialConfig, PowerConfig
from kilopix.training.checkpoint import read_weights
from kilopix.training.guard import GuardConfig
from kilopix.training.watching import ValidationConfig
from test_docs import DOCS, ROOT, blocks, lines, pages
from test_recipes import PARAMETERS

PACKAGE = ROOT / "src" / "kilopix"
WORDS = {"six": 6, "eight": 8, "twelve": 12, "twenty-four": 24, "sixty-four": 64}
STUDY = "study.md"


def page(name: str) -> str:
    return (ROOT / name if name == "README.md" else DOCS / name).read_text()


def section(name: str, title: str) -> str:
    """A page's text from a heading to the next of its level or a higher one."""
    level = len(title.split()[0])
    found: list[str] = []
    inside = fenced = False
    for line in page(name).splitlines():
        fenced ^= line.startswith("```")
        if not fenced and re.match(rf"#{{1,{level}}} ", line):  # in a block it is a comment
            inside = line == title
        elif inside:
            found.append(line)
    assert found, f"{name} has no heading {title!r}"
    return "\n".join(found) + "\n"


def rows(text: str) -> Iterator[list[str]]:
    """The rows of the tables in a text, without heads."""
    for line in re.sub(r"^\|.*\n\|[-:| ]+\|$", "", text, flags=re.MULTILINE).splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


# What there is: modules, recipes, extras, settings


def test_the_readmes_tree_names_every_module_with_a_phrase():
    (tree,) = re.findall(r"```\n(.*?)```", section("README.md", "## The tree"), flags=re.DOTALL)
    inside = re.findall(r"^  (\S+)(?: +(\S.*))?$", tree, flags=re.MULTILINE)
    named = [name for name, _ in inside]
    there = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.*")))
    }
    assert sorted(named) == sorted(there - {"__init__.py", "__pycache__/"})
    assert [name for name, phrase in inside if len(phrase.split()) < 2] == []
    folders = re.findall(r"(?<!\S)(\S+)/(?=\s)", re.sub(r"^  .*$", "", tree, flags=re.MULTILINE))
    assert {"recipes", "tests", "docs"} <= set(folders)
    assert [name for name in folders if not (ROOT / name).is_dir()] == []


def test_the_reference_has_every_stage():
    stages = {p.stem for p in (PACKAGE / "stages").glob("*.py") if p.stem != "__init__"}
    assert set(re.findall(r"^::: kilopix\.stages\.(\w+)$", page("api/stages.md"), re.MULTILINE)) == stages


def test_every_recipe_is_in_the_table_and_has_its_costs():
    listed = []
    for names, *_ in rows(section("recipes.md", "## The recipes")):
        first, *others = re.findall(r"`(\w+)`", names)
        stem = first.rpartition("_")[0]  # of which `_ta` and the like are the ends
        listed += [first, *(stem + name if name.startswith("_") else name for name in others)]
    assert sorted(listed) == sorted(recipe_names())
    costs = {name.strip("`") for name, *_ in rows(section("recipes.md", "## What they cost"))}
    assert costs == {name for name in recipe_names() if not name.startswith("mini")}


def test_recipes_named_by_commands_are_installed():
    seen = 0
    for block in blocks("sh", "bash"):
        for words in lines(block):
            for flag, value in itertools.pairwise(words):
                if flag in ("-r", "--recipe") and value != "RECIPE":
                    assert value in recipe_names(), f"{block.where}: the reader has no {value}"
                    seen += 1
    assert seen >= 10


def test_the_extras_are_those_that_can_be_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = {name.strip("`"): brings for name, brings, _ in rows(section("start.md", "## Install"))}
    extras = {f"kilopix[{name}]" for name in project["optional-dependencies"]} - {
        "kilopix[docs]",
        "kilopix[dev]",
    }
    assert set(table) == extras
    (every,) = project["optional-dependencies"]["all"]
    for name in re.findall(r"\w+(?=[,\]])", every):
        first = re.split(r"[>\[<=]", project["optional-dependencies"][name][0])[0]
        said = table[f"kilopix[{name}]"].lower()
        assert first in said, f"{name}: {said}"


def test_blocks_of_defaults_are_the_defaults():
    averages = {
        config.model_fields["kind"].default: config().model_dump()
        for config in (ExponentialConfig, PowerConfig)
    }
    seen = []
    for block in blocks("toml"):
        values = tomllib.loads(block.text)
        if average := values.get("training", {}).get("average"):
            average["sigma_rel"] = tuple(average.get("sigma_rel", ()))
            given = {key: value for key, value in average.items() if value != ()}
            assert given == averages[average["kind"]], block.where
            seen.append(average["kind"])
        if "validation" in values:
            assert values["validation"] == ValidationConfig().model_dump(), block.where
            seen.append("validation")
    assert sorted(seen) == ["exponential", "power", "validation"]
    every = ValidationConfig()
    assert 2_650 < 4 * every.samples * every.levels / 3 < 2_750
    assert "as much as training on about 2,700 images" in page("monitoring.md")


def test_settings_in_running_text_are_the_defaults():
    guard, published = GuardConfig(), PRESETS["published"]
    recommended = PRESETS["recommended"]
    training = page("training.md")
    assert f"`training.guard.patience` ({guard.patience})" in training
    assert f"It has gone back `training.guard.returns` ({guard.returns}) times" in training
    assert f"more than {guard.norm_factor:g} times the running mean of the gradient norm" in training
    assert f"or {guard.loss_factor:g} times that of the loss" in training
    sampling = page("sampling.md")
    assert (
        f"`--preset recommended` is `{recommended.sampler}` with `{recommended.spacing.kind}` spacing, "
        f"{recommended.steps} steps, guidance {recommended.guidance.scale:g}." in sampling
    )
    assert (
        f"`{published.sampler}`, {published.steps} steps, guidance {published.guidance.scale:g}" in sampling
    )
    named = [
        name
        for cell, *_ in rows(section("sampling.md", "## Samplers"))
        for name in re.findall(r"`(\w+)`", cell)
    ]
    assert sorted(named) == sorted(SAMPLERS)


def test_the_servers_limits_are_those_of_its_code():
    pytest.importorskip("gradio")
    from kilopix.web.requests import Limits
    from kilopix.web.rest import _ERRORS

    limits, text = Limits(), page("serve.md")
    for said in (
        f"text, at most {limits.prompt:,} characters",
        f"1 to {limits.images} (`--max-images`)",
        f"1 to {limits.steps} (`--max-steps`)",
        f"0 to {limits.guidance:g}; 1 is off",
        f"larger than {limits.body // 1024} KiB",
        f"`--queue` requests ({limits.queue})",
        f"`--batch` pictures ({limits.batch})",
        ", ".join(f"`{name}`" for name in ("euler", "ddim", "heun", "ddpm", "dpmpp_2m", "dpmpp_2m_sde")),
    ):
        assert said in text, said
    statuses = {
        int(first) for first, *_ in rows(section("serve.md", "## The REST endpoint")) if first.isdigit()
    }
    assert {int(status) for status in _ERRORS} <= statuses


def test_files_tests_and_modules_that_the_text_names_are_there():
    for path in [*pages(), ROOT / "README.md"]:
        text = path.read_text()
        for name in re.findall(r"`((?:tests|benchmarks|src|docs|examples|tools|recipes)/[^`*\s]+)`", text):
            file, _, test = name.partition("::")
            if "ARM" in file:
                continue
            assert (ROOT / file).exists(), f"{path.name}: {name}"
            assert not test or f"def {test}(" in (ROOT / file).read_text(), f"{path.name}: {name}"
        for name in re.findall(r"`(kilopix\.[a-z_.]+)`", text):
            module, _, attribute = name.rpartition(".")
            try:
                importlib.import_module(name)
            except ImportError:
                assert hasattr(importlib.import_module(module), attribute), f"{path.name}: {name}"


# The embedded world and its model


def test_numbers_of_objects_are_those_of_the_world_the_model_and_the_study():
    recipe = installed()
    assert (len(OBJECTS), recipe.world.classes) == (64, 12)
    study = re.search(r"world\.classes=(\d+)", page(STUDY))
    assert study
    known = {len(OBJECTS), recipe.world.classes}
    counted = 0
    for path in [*pages(), ROOT / "README.md"]:
        here = known | {int(study[1])} if path.name == STUDY else known
        for number in re.findall(r"([\w-]+) (?:of its \d+ )?(?:everyday )?objects\b", path.read_text()):
            count = int(number) if number.isdigit() else WORDS.get(number)
            if count is not None:
                assert count in here, f"{path.name}: {number} objects"
                counted += 1
    assert counted >= 6
    assert f"A small model of {recipe.world.classes} everyday objects is installed" in page("start.md")
    assert f"({recipe.world.classes} of its {len(OBJECTS)} everyday objects) is installed" in page(
        "generate.md"
    )
    for name in ("README.md", "index.md"):
        assert "It draws twelve objects" in page(name)


def installed() -> Recipe:
    return Recipe.model_validate(read_weights(SHIPPED / f"{SHIPPED_MODEL}.safetensors")[1]["recipe"])


def test_what_is_said_of_the_installed_model_is_what_was_measured():
    seen = read_weights(SHIPPED / f"{SHIPPED_MODEL}.safetensors")[1]["images_seen"]
    for name in ("generate.md", STUDY):
        assert f"{seen // 1000},000" in page(name), name
    card = json.loads((ROOT / "benchmarks" / "results" / "mini" / "card.json").read_text())
    scores = {row["name"]: row["value"] for row in card["scores"]}
    percent = {name: f"{100 * value:.0f}%" for name, value in scores.items()}
    said = f"come out as asked ({percent['single object']} and {percent['colors']} of pictures)"
    assert f"{said}, and so do two objects in {percent['two object']}" in page("generate.md")
    assert f'"a photo of a cat and a banana" in {percent["two object"]}' in page(STUDY)


def test_genevals_prompts_are_as_many_everywhere():
    found = [n for p in pages() for n in re.findall(r"(?:GenEval's|the|All) (\d+) prompts", p.read_text())]
    assert len(found) >= 3
    assert set(found) == {str(len(official_prompts()))}


# What a run costs


def budget(name: str, pictures: int = IMAGENET, *settings: str) -> Budget:
    recipe = load_recipe(name, settings)
    return Budget(recipe, Encoded.of(recipe), pictures)


def gigabytes(value: float) -> str:
    return f"{value / 1e9:,.0f} GB"


MEMORY: dict[tuple[object, ...], tuple[float, float, int]] = {}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_the_table_of_costs_is_what_kilopix_plans(name: str):
    (row,) = (cells for cells in rows(section("recipes.md", "## What they cost")) if cells[0] == f"`{name}`")
    pictures = 600_000 if name.endswith("aesthetic") else 2_000 if "own" in name else IMAGENET
    found = budget(name, pictures)
    recipe, device = found.recipe, device_named("rtx-4090" if "own" in name else "h100-sxm")
    # Recipes of one network differ in none of these, and counting them takes seconds.
    data, share = recipe.data, recipe.training.batch_size if "own" in name else 1024 // 8
    alike = recipe.model, data.image_size, recipe.text.max_tokens, data.text_storage, recipe.optimizer.kind
    if (alike, share) not in MEMORY:
        memory = found.memory
        MEMORY[alike, share] = memory.fixed(), memory.per_image, memory.largest(device.memory, share)
    fixed, per_image, largest = MEMORY[alike, share]
    assert row[1:] == [
        f"{found.parameters / 1e6:.1f} M",
        f"{found.flops_per_image / 1e12:.2f}",
        f"{recipe.training.images / 1e6:.1f} M",
        f"{found.flops:.1e}",
        gigabytes(found.shard_bytes),
        f"{found.checkpoint_bytes / 1e9:.1f} GB",
        f"{fixed / 1e9:.1f} GB + {per_image / 1e6:,.0f} MB",
        str(largest),
        f"{found.device_hours(device, ASSUMED[recipe.model.kind]):.1f}",
    ]


def test_the_printed_plan_is_the_plan():
    text = section("recipes.md", "## What they cost")
    (printed,) = re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
    question = Question(device="h100-sxm", devices=8)
    assert printed.splitlines() == plan("dit_i_256_ta", load_recipe("dit_i_256_ta"), question)
    assert f"{ASSUMED['dit']:.0%} of an H100's peak for DiT-I and {ASSUMED['rin']:.0%} for CAD-I" in text
    assert f"Captions are taken to have {TOKENS['model']} tokens" in text


def imagenet_budget() -> tuple[list[str], dict[str, float]]:
    """What benchmarks/imagenet_budget.py prints, and the rates that it takes."""
    import contextlib
    import dataclasses
    import io

    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        script = importlib.import_module("imagenet_budget")
    finally:
        sys.path.pop(0)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        script.main([])
    return printed.getvalue().splitlines(), dataclasses.asdict(script.Rates())


def test_imagenets_hours_and_disk_are_what_the_script_prints():
    printed, rates = imagenet_budget()
    text = page("data.md")
    assert len([line for line in printed if line.startswith("| ")]) == 13
    for line in filter(None, printed):
        assert line in text, line
    taken = [row[1].split()[0] for row in rows(section("data.md", "## Hours")) if len(row) == 3]
    assert taken == [
        f"{rates[name]:g}" for name in ("cutmix", "load", "caption", "autoencoder", "text", "cores_per_gpu")
    ]
    assert f"{rates['tokens']:g} tokens in bfloat16" in text
    assert f"a caption of {rates['tokens']:g} tokens (assumed), and a short one of {TOKENS['aio']}" in text
    assert f"{IMAGENET:,} training images" in text


def test_the_disk_of_imagenets_shards_is_one_number_on_all_pages():
    int8 = budget("dit_i_256_ta_cutmix")
    composed, by_model = gigabytes(int8.shard_bytes), gigabytes(2 * IMAGENET * int8.row_bytes())
    half = budget("dit_i_256_ta_cutmix", IMAGENET, "data.text_storage=bfloat16")
    assert f"int8, `--online` | {composed} |" in page("data.md")
    assert f"int8 | {by_model} |" in page("data.md")
    assert f"or float16, `--online` | {gigabytes(half.shard_bytes)} |" in page("data.md")
    assert gigabytes(budget("cad_i_256_published").shard_bytes) == gigabytes(half.shard_bytes)
    assert f"text in int8: {by_model.split()[0]} to {composed}" in page("clusters.md")
    assert f"the {composed} of `dit_i_256_ta_cutmix` become {by_model}" in page("recipes.md")
    for path in [*pages(), ROOT / "README.md"]:
        assert not re.search(r"\d TB\b(?!/s)", path.read_text()), (
            f"{path.name}: a size in TB that nothing computes"
        )


def test_the_arithmetic_of_the_plan_is_right():
    ours, published = budget("dit_i_256_ta_cutmix"), budget("cad_i_256_published")
    device = device_named("h100-sxm")
    peak = device.peak("bfloat16")
    assert peak
    hours = ours.device_hours(device, 0.4)
    share = published.flops / (500 * 3600 * peak)
    text = page("plan.md")
    for said in (
        f"| {published.flops_per_image / 1e12:.3f} T | {ours.flops_per_image / 1e12:.3f} T |",
        f"| {published.flops:.1e} | {ours.flops:.1e} |".replace("e+", "e"),
        f"H100's {peak / 1e12:.0f} TFLOP/s | {share:.0%} | 40% |",
        f"| H100 hours | 500 | {hours:.1f} |",
        f"{published.flops_per_image / ours.flops_per_image:.2f} (network) x "
        f"{published.recipe.training.images / ours.recipe.training.images:.0f} (images) x "
        f"{0.4 / share:.2f} (utilisation)",
        f"The five times are {published.flops_per_image / ours.flops_per_image:.2f}",
    ):
        assert said in text, said
    assert 4.95 < 500 / hours < 5.05
    for used in (0.25, 0.30, 0.40, 0.50):
        cells = [f"{ours.flops_per_image * n * 1e6 / (used * peak) / 3600:.0f}" for n in (256, 192, 128)]
        assert f"| {used:.0%} | {' | '.join(cells)} |" in text
    later = [f"{budget(name).device_hours(device, 0.4):.0f}" for name in ("dit_i_512", "dit_i_1024")]
    assert f"512 and 1,024 pixels are {' and '.join(later)} further hours" in text

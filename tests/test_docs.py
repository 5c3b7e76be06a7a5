"""The documentation is true: its commands are real and run, its examples are valid, its site builds.

Every `kilopix` line of every page is parsed by the command line itself, with its options and recipe settings.
The pages in `RUN` are also run, each from top to bottom in one folder; what is only parsed has its reason in
`PARSED_ONLY`. A page or command in neither fails.
"""

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import yaml
from typer.main import get_command

from kilopix.cli import app
from kilopix.errors import UserError
from kilopix.recipe import Recipe, load_recipe, recipe_names
from tiny import Cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMMANDS = get_command(app)
SHELL = ("sh", "bash")
USAGE: type[Exception] = typer.BadParameter.__base__ or Exception  # whichever click typer is built on

SMALLER = {
    "mini": ["--images-per-class", "6", "--val-per-class", "4", "--workers", "1"],
    "caption": ["--workers", "1"],
    "augment": ["--workers", "1"],
    "encode": ["--workers", "1"],
    "train": ["training.images=64", "training.checkpoint_every=64", "training.batch_size=16"],
    "evaluate": [
        "evaluation.prompts_per_task=2",
        "evaluation.images_per_prompt=1",
        "evaluation.fidelity_images=16",
        "--steps",
        "2",
    ],
    "sample": ["--steps", "2"],
}
"""What is added to a command when it is run here, so that it takes seconds."""

RUN = {"generate.md"}
"""Pages whose commands are run, from top to bottom, in an empty folder."""

AS_SEEN = {"README.md", "start.md"}
"""Those that test_first_hour.py runs, in a terminal and in a pipe."""

PARSED_ONLY = {
    "averages.md": "needs a run with stored averages; tests of its own make one",
    "clusters.md": "needs a cluster",
    "data.md": "needs ImageNet and the paper's encoders",
    "evaluation.md": "needs the evaluators' weights from the hub; each command has a test of its own",
    "monitoring.md": "needs shards and a long run; tests of its own make short ones",
    "recipes.md": "needs ImageNet and GPUs; tests/test_recipes.py shrinks every recipe and runs it",
    "serve.md": "serves until it is stopped; tests/test_serve.py starts it",
    "training.md": "needs several GPUs or machines; tests/test_distributed.py trains on several processes",
    "sources.md": "needs a data set, a server, or a model of the hub",
}
"""Pages whose commands are parsed and not run, and why."""

NOT_KILOPIX = {
    "python3": "makes an environment",
    ".": "enters it",
    "pip": "installs",
    "ray": "starts a cluster",
    "export": "sets a variable for the cluster",
    "curl": "asks a server that runs",
    "torchrun": "starts processes; what it starts is parsed",
    "sbatch": "hands a job to Slurm",
    "vllm": "starts a server",
    "until": "waits for it",
    "for": "goes through values, of which the first is parsed",
    "done": "ends that",
    "runs=(dit_a": "a variable of a job script",
    "run=${runs[$SLURM_ARRAY_TASK_ID]}": "a variable of a job script",
    "python": "a benchmark, run by `make bench`",
    "make": "checked with the README",
}
"""First words of shell lines that are no command of kilopix."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def blocks(*languages: str, only: str = "") -> list[Block]:
    found = []
    for path in [*pages(), ROOT / "README.md"]:
        text, name = (
            path.read_text(encoding="utf-8"),
            str(path.relative_to(DOCS if DOCS in path.parents else ROOT)),
        )
        for match in re.finditer(r"^```(\w+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
            line = text[: match.start()].count("\n") + 1
            if match[1] in languages and only in ("", name):
                found.append(Block(name, line, match[1], match[2]))
    return found


def lines(block: Block) -> Iterator[list[str]]:
    values: dict[str, str] = {}
    for line in block.text.replace("\\\n", " ").splitlines():
        if loop := re.match(r"for (\w+) in (\S+)", line):
            values[loop[1]] = loop[2].rstrip(";")
        for name, value in values.items():
            line = line.replace(f"${name}", value)
        words = shlex.split(line, comments=True)
        if words:
            yield words


def commands(only: str = "") -> list[tuple[str, list[str]]]:
    """Every `kilopix` command of the pages' shell blocks: where it stands, and its words."""
    found = [(b.where, w) for b in blocks(*SHELL, only=only) for w in lines(b) if "kilopix" in w]
    return [(where, words[words.index("kilopix") + 1 :]) for where, words in found]


def parse(words: list[str]) -> None:
    """Let the command line take the words as it would, without calling the command."""
    name, *rest = words
    command = COMMANDS.commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    with command.make_context(name, list(rest)) as context:
        overrides = context.params.get("overrides")
        if overrides is not None:
            recipe = context.params.get("recipe")
            load_recipe(recipe if recipe in recipe_names() else "mini", overrides)


def test_every_command_is_one_that_the_command_line_takes(monkeypatch: pytest.MonkeyPatch):
    found = commands()
    assert len(found) >= 45
    for where, words in found:
        try:
            parse(words)
        except (USAGE, UserError) as error:
            pytest.fail(f"{where}: kilopix {' '.join(words)}: {error!r}")
    for wrong in (
        ["train", "shards"],
        ["train", "shards", "run", "optimizer.lrr=1"],
        ["sample", "--nothing"],
    ):
        with pytest.raises((USAGE, UserError), match=r"Missing|unknown key|No such option"):
            parse(wrong)


def test_commands_in_running_text_have_such_options():
    known = COMMANDS.commands  # pyright: ignore[reportAttributeAccessIssue]
    seen = 0
    for path in [*pages(), ROOT / "README.md"]:
        for text in re.findall(r"`kilopix ([^`\n]+)`", path.read_text(encoding="utf-8")):
            name, *rest = text.split()
            assert name in known, f"{path.name}: kilopix {text}"
            options = {option for p in known[name].params for option in (*p.opts, *p.secondary_opts)}
            options.add("--help")
            unknown = [word for word in rest if word.startswith("--") and word.split("=")[0] not in options]
            assert not unknown, f"{path.name}: kilopix {text}: {unknown}"
            seen += 1
    assert seen >= 40


def test_every_other_line_of_shell_is_known():
    for block in blocks(*SHELL):
        for words in lines(block):
            assert words[0] == "kilopix" or words[0] in NOT_KILOPIX, f"{block.where}: {' '.join(words)}"


def test_every_page_with_commands_is_run_or_has_its_reason():
    with_commands = {where.split(":")[0] for where, _ in commands()} - AS_SEEN
    assert with_commands == RUN | set(PARSED_ONLY)
    assert not RUN & set(PARSED_ONLY)


@pytest.mark.parametrize("page", sorted(RUN))
def test_a_page_runs_from_top_to_bottom(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli):
    monkeypatch.chdir(tmp_path)
    ran = 0
    for where, words in commands(page):
        more = [] if "--dry-run" in words else SMALLER.get(words[0], [])
        done = cli(*words, *more)
        assert done.code == 0, f"{where}: kilopix {' '.join(words)}: {done.err}"
        ran += 1
    values: dict[str, object] = {"__name__": "page"}
    for block in blocks("python", only=page):
        exec(compile(block.text, block.where, "exec"), values)
        ran += 1
    assert ran == len(commands(page)) + len(blocks("python", only=page)) >= 3


def test_python_blocks_are_python():
    found = blocks("python", "py")
    assert len(found) >= 2
    for block in found:
        for node in ast.walk(ast.parse(block.text, block.where)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kilopix"):
                module = __import__(node.module or "", fromlist=["_"])
                missing = [name.name for name in node.names if not hasattr(module, name.name)]
                assert not missing, f"{block.where}: {node.module} has no {missing}"


def test_toml_blocks_are_recipes(tmp_path: Path):
    found = blocks("toml")
    assert found
    for block in found:
        assert set(tomllib.loads(block.text)) <= {*Recipe.model_fields, "base"}, block.where
        path = tmp_path / "recipe.toml"
        path.write_text(block.text, encoding="utf-8")
        load_recipe(str(path))


def test_json_blocks_are_json():
    found = blocks("json")
    assert found
    for block in found:
        rows = block.text.splitlines()
        whole = [block.text] if len(rows[0]) == 1 else rows  # one value, or one a line
        for text in filter(str.strip, whole):
            try:
                json.loads(text)
            except json.JSONDecodeError as error:
                pytest.fail(f"{block.where}: {error}")


def test_troubleshooting_quotes_what_kilopix_says():
    said = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr | ast.Constant):
                said.append(
                    "".join(
                        part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "\0"
                        for part in (node.values if isinstance(node, ast.JoinedStr) else [node])
                    )
                )
    rows = re.findall(
        r"^\| `(.+?)` \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert len(rows) >= 35
    for quoted in rows:
        for piece in quoted.split(" ... "):
            assert any(piece in text for text in said), f"nothing in kilopix says {piece!r}"


def nav_files(entry: object) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for value in entry.values():
            yield from nav_files(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from nav_files(value)


def test_the_navigation_has_every_page():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = list(nav_files(settings["nav"]))
    results = {f"results/{path.name}" for path in (ROOT / "benchmarks" / "results").glob("*.md")}
    there = {str(path.relative_to(DOCS)) for path in pages()} | results | {"changelog.md", "log.md"}
    assert set(listed) == there
    assert len(listed) == len(set(listed))


def test_the_site_builds_without_a_warning(tmp_path: Path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={
            "PATH": "",
            "NO_MKDOCS_2_WARNING": "1",
            "PYTHONPATH": str(ROOT / "src"),
            # No address answers there, so that a build which asks the network for anything fails.
            "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9",
        },
    )
    assert built.returncode == 0, built.stderr
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "googleapis" not in home
    assert "gstatic" not in home
    generator = (tmp_path / "site" / "api" / "generator.html").read_text(encoding="utf-8")
    assert "from_pretrained" in generator


def test_figures_are_drawn_by_the_code_and_used(tmp_path: Path):
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import figures
    finally:
        sys.path.pop(0)
    assert {path.name for path in (DOCS / "figures").iterdir()} == set(figures.FIGURES)
    text = "".join(path.read_text(encoding="utf-8") for path in DOCS.glob("*.md"))
    assert all(f"](figures/{name})" in text for name in figures.FIGURES)
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        figures.save("seams.svg", tmp_path / str(number))
    first, second = ((tmp_path / str(number) / "seams.svg").read_bytes() for number in range(2))
    assert first == second
    assert b"<svg" in first


def test_the_seams_in_the_text_are_those_measured():
    found = json.loads((ROOT / "benchmarks" / "results" / "seams.json").read_text(encoding="utf-8"))
    concepts = (DOCS / "concepts.md").read_text(encoding="utf-8")
    for row in found["levels"]:
        assert f"| {row['t']:g} | {row['seam']:.1%} " in concepts
    seam = {row["t"]: row for row in found["levels"]}
    assert seam[0.0]["seam"] > 0.7
    assert seam[0.8]["seam_interval"][0] <= 0.5 < seam[0.4]["seam"] < seam[0.0]["seam"]

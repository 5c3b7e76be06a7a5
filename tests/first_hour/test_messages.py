"""What the first mistakes are answered with: each names what is wrong, and what to do."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kilopix.cli import app
from kilopix.english import counted
from kilopix.errors import UserError
from kilopix.hardware import device_named
from kilopix.recipe import load_recipe
from tiny import Cli, Outcome

REPOSITORY = Path(__file__).parents[2]


def refused(done: Outcome) -> str:
    assert done.code == 2, done
    assert done.err.startswith("Error: "), done.err
    assert done.err.count("\n") == 1
    return done.err


READERS = [
    "caption NONE c.parquet",
    "captions NONE",
    "augment NONE a",
    "encode NONE s",
    "verify NONE",
    "inspect NONE",
    "train NONE r",
    "train NONE r --dry-run",
    "plan mini --shards NONE",
    "average NONE --sigma-rel 0.1",
    "sample NONE x",
    "export NONE e",
    "export mini e --scores NONE",
    "serve NONE --port 0",
    "serve mini --shards NONE --port 0",
    "report NONE",
    "geneval NONE",
    "dpg NONE --questions q.csv --model x",
    "fidelity NONE world",
    "compare NONE other",
    "evaluate mini NONE",
    "sample-benchmark geneval NONE p",
]


@pytest.mark.parametrize("command", READERS)
def test_a_path_that_is_not_there_is_said_not_to_be(
    command: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    if command.startswith("dpg"):
        text = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
        (tmp_path / "q.csv").write_text(text + "question_natural_language\n", encoding="utf-8")
    if command.startswith(("dpg", "serve")):
        pytest.importorskip("gradio")
    said = refused(cli(*command.replace("NONE", "none_of_it").split()))
    assert re.search(r"none_of_it: no such (folder|file|manifest)", said) or command.startswith("dpg"), said
    assert "index.json" not in said
    assert "recipe.json" not in said
    assert "card.json" not in said


@pytest.mark.parametrize("name", ["verify", "train"])
def test_a_folder_that_holds_no_shards_is_another_mistake(name: str, cli: Cli, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    more = [tmp_path / "run"] if name == "train" else []
    assert "no index.json in it" in refused(cli(name, tmp_path / "empty", *more))
    assert "a file, not a folder of shards" in refused(cli(name, tmp_path / "file", *more))


def test_a_folder_where_a_manifest_belongs_is_said_to_be_one(cli: Cli, tmp_path: Path):
    said = refused(cli("captions", tmp_path))
    assert "a folder, not a manifest; `kilopix caption` writes one" in said


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("training.image_size=3", "unknown key 'training.image_size'; did you mean 'data.image_size'?"),
        ("image_size=3", "unknown key 'image_size'; did you mean 'data.image_size'?"),
        ("model.imge_size=3", "unknown key 'model.imge_size'; did you mean 'data.image_size'?"),
        ("training.batch=3", "did you mean 'batch_size'?"),
        ("model.widht=3", "did you mean 'width'?"),
        ("trraining.images=3", "unknown key 'trraining'; did you mean 'training'?"),
        ("data.heads=3", "did you mean 'model.heads'?"),
        ("sampling.half_life_images=3", "did you mean 'training.average.half_life_images'?"),
        ("model.zzz=3", "known keys are"),
    ],
)
def test_a_setting_is_looked_for_in_every_section(setting: str, hint: str):
    with pytest.raises(UserError, match=re.escape(hint)):
        load_recipe("mini", [setting])


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("h100", "did you mean 'h100-sxm' or 'h100-pcie' or 'h100-nvl'?"),
        ("A100", "did you mean 'a100-80gb' or 'a100-40gb'?"),
        ("3090", "did you mean 'rtx-3090' or 'rtx-3090-ti'?"),
        ("rtx4090", "did you mean 'rtx-4090'?"),
        ("abacus", "is not known; known are b200"),
    ],
)
def test_a_device_is_known_by_a_part_of_its_name(asked: str, hint: str):
    with pytest.raises(UserError, match=re.escape(hint)):
        device_named(asked)


@pytest.mark.parametrize(
    ("command", "ending"),
    [
        ("caption world cap.csv", ".parquet"),
        ("captions c.parquet --out c.txt", ".json"),
        ("inspect shards page.png", ".html"),
        ("report run report.pdf", ".html"),
        ("average run --sigma-rel 0.1 --out a.pt", ".safetensors"),
        ("convert inception x.pth inception.pt", ".safetensors"),
        ("lengthen longer.txt --model x", ".jsonl"),
        ("fetch-dpg dpg.tsv", ".csv"),
    ],
)
def test_an_ending_of_another_format_is_refused_before_any_work(command: str, ending: str, cli: Cli):
    said = refused(cli(*command.split()))
    assert f"a file ending in {ending} is written; name it" in said


FOLDERS = [
    "mini NAME",
    "fetch x NAME",
    "augment c.parquet NAME",
    "encode c.parquet NAME",
    "train shards NAME",
    "sample mini x --out NAME",
    "export mini NAME",
    "demo NAME",
    "sample-benchmark geneval mini NAME",
    "geneval pictures --out NAME",
    "dpg pictures --questions q.csv --model x --out NAME",
    "fidelity a b --out NAME",
    "compare a b --out NAME",
    "evaluate mini c.parquet --out NAME",
]


@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_is_not_named_as_a_file_nor_put_in_place_of_one(command: str, cli: Cli, tmp_path: Path):
    assert "a folder is written; name it without .parquet" in refused(
        cli(*command.replace("NAME", "made.parquet").split())
    )
    (tmp_path / "made").write_text("mine", encoding="utf-8")
    assert "is a file, and a folder is written" in refused(
        cli(*command.replace("NAME", str(tmp_path / "made")).split())
    )


def test_one_is_one_everywhere(cli: Cli, tmp_path: Path):
    assert [counted(n, "image") for n in (0, 1, 2, 1281167)] == [
        "0 images",
        "1 image",
        "2 images",
        "1,281,167 images",
    ]
    sampled = cli("sample", "mini", "a cat", "--steps", 1, "--out", tmp_path / "p", "--device", "cpu")
    assert "grid.png: 1 picture.\n" in sampled.out
    drawn = cli("mini", tmp_path / "w", "--classes", 1, "--images-per-class", 2, "--size", 16)
    assert "of 1 class, 16 x 16" in drawn.out


def test_help_names_no_file_of_the_documentation_and_says_what_serve_takes(cli: Cli):
    from typer.main import get_command

    names = list(get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]
    assert len(names) > 20
    for name in names:
        said = cli(name, "--help").out
        assert not re.search(r"docs/|\.md\b", said), name
    said = re.sub(r"[\s│]+", " ", cli("serve", "--help").out)
    assert "`mini`, which is installed" in said


def test_the_version_is_told(cli: Cli):
    done = cli("--version")
    assert done.code == 0
    assert re.fullmatch(r"kilopix \d+\.\d+\.\d+\S*\n", done.out)


def test_the_hub_is_asked_with_its_present_command():
    old = "huggingface-" + "cli"
    files = [
        *(REPOSITORY / "src").rglob("*.py"),
        *(REPOSITORY / "docs").rglob("*.md"),
        REPOSITORY / "README.md",
    ]
    assert [file for file in files if old in file.read_text(encoding="utf-8")] == []


PYTHON = """#!/bin/sh
case "$*" in
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/kilopix" ;;
    "--version") echo "kilopix 1.2.3" ;;

    *"index-url"*) echo "ERROR: $INDEX_SAYS" >&2; [ -z "$INDEX_SAYS" ] ;;
    *"version as v"*) exit 1 ;;
esac
"""


@pytest.mark.parametrize("says", ["", "No space left on device"])
def test_installing_says_what_it_does(says: str, tmp_path: Path):
    """With a Python that does nothing, and an index that has PyTorch or not."""
    if shutil.which("nvidia-smi"):
        pytest.skip("with a GPU, PyTorch comes with the others")
    python = tmp_path / "python"
    python.write_text(PYTHON, encoding="utf-8")
    python.chmod(0o755)
    shutil.copy(REPOSITORY / "constraints.txt", tmp_path)
    done = subprocess.run(
        ["sh", str(REPOSITORY / "tools" / "install.sh"), str(python), "env"],
        cwd=tmp_path,
        env=os.environ | {"INDEX_SAYS": says},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    steps = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert [step[:5] for step in steps] == ["[1/3]", "[2/3]", "[3/3]"]
    assert "creating the environment env" in steps[0]
    assert re.search(r"installing PyTorch [\d.]+, its CPU build .*\(about \d+ MB\)", steps[1])
    assert "ready: kilopix 1.2.3 in env" in done.stdout
    assert says in done.stdout
    assert ("several GB" in done.stdout) == bool(says)

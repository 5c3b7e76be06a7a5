from dataclasses import replace
from pathlib import Path

import pytest

from kilopix.evaluation.geneval import Prompt
from kilopix.evaluation.geneval_folder import (
    check_official,
    metadata_path,
    metadata_text,
    read_folder,
    sample_path,
)
from kilopix.evaluation.geneval_prompts import official_prompts
from kilopix.types import UserError


def lay(root: Path, prompts: list[Prompt], pictures: int = 2) -> Path:
    for number, prompt in enumerate(prompts):
        for i in range(pictures):
            path = sample_path(root, number, i)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        metadata_path(root, number).write_text(metadata_text(prompt), encoding="utf-8")
    return root


def test_what_is_written_is_read(tmp_path: Path):
    prompts = official_prompts()
    lay(tmp_path, prompts)
    (tmp_path / "00003" / "grid.png").touch()
    (tmp_path / "made.json").touch()
    asked = read_folder(tmp_path)
    assert [one.prompt for one in asked] == prompts
    assert asked[552].files == ("00552/samples/0000.png", "00552/samples/0001.png")
    assert check_official(tmp_path, prompts) is False


def test_pictures_are_in_the_order_of_their_numbers(tmp_path: Path):
    lay(tmp_path, official_prompts()[:1], 1)
    for name in ("10.png", "2.png"):
        (tmp_path / "00000" / "samples" / name).touch()
    assert [file[-6:] for file in read_folder(tmp_path)[0].files] == ["00.png", "/2.png", "10.png"]


def test_what_is_out_of_place_is_named(tmp_path: Path):
    def expect(message: str, **options) -> None:
        with pytest.raises(UserError, match=message):
            read_folder(tmp_path, **options)

    expect("holds no folders 00000")
    lay(tmp_path, official_prompts()[:3])
    expect("00000/samples: 2 pictures, where 4 are expected", per_prompt=4)
    samples = tmp_path / "00001" / "samples"
    (samples / "0001.png").unlink()
    expect("00001/samples: 1 picture, where 2 are expected")
    (samples / "0001.jpg").touch()
    expect("0001.jpg: not a picture named")
    (samples / "0001.jpg").unlink()
    (samples / "0.png").touch()
    expect("0.png .*0000.png|0000.png .*0.png have the same number")
    (samples / "0.png").rename(samples / "0001.png")
    (tmp_path / "1").mkdir()
    expect("have the same number")
    (tmp_path / "1").rmdir()
    metadata_path(tmp_path, 2).write_text("{}\n", encoding="utf-8")
    expect("00002/metadata.jsonl, line 1: the key 'tag' is missing")
    metadata_path(tmp_path, 2).unlink()
    expect("00002/metadata.jsonl: missing")
    with pytest.raises(UserError, match="no such folder"):
        read_folder(tmp_path / "nowhere")


def test_only_all_553_prompts_are_official(tmp_path: Path):
    prompts = official_prompts()

    def expect(message: str, given: list[Prompt]) -> None:
        with pytest.raises(UserError, match=message):
            check_official(tmp_path, given)

    expect("prompt 7 .* is missing", prompts[:7] + prompts[8:])
    expect("prompt 0 .* is there more than once", [*prompts, prompts[0]])
    foreign = replace(prompts[0], tag="two_object", text="a photo of love")
    expect("'a photo of love' is not one of the 553", [*prompts, foreign])


def test_plain_and_lengthened_prompts_are_never_mixed(tmp_path: Path):
    prompts = official_prompts()
    longer = [replace(prompt, text=f"{prompt.text}, in soft light") for prompt in prompts]
    assert check_official(tmp_path, longer) is True
    assert check_official(tmp_path, prompts[::-1]) is False
    with pytest.raises(UserError, match=r"1 of 553 prompts are lengthened, such as .* never one score"):
        check_official(tmp_path, [longer[0], *prompts[1:]])

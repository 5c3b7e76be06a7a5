"""GenEval: every picture's verdict, its reasons, the summary and the prompts agree with golden values."""

import json
import math

from kilopix.evaluation.geneval import GenevalOptions, Prompt, prompts_from_text, prompts_to_text
from kilopix.evaluation.geneval_folder import metadata_text
from kilopix.evaluation.geneval_prompts import official_prompts
from kilopix.evaluation.tasks import score_images
from kilopix.types import Detection


def read_prompt(image: dict) -> Prompt:
    keys = ("tag", "include", "exclude", "prompt")
    return prompts_from_text(json.dumps({key: image[key] for key in keys}), "golden")[0]


def read_detections(image: dict) -> list[Detection]:
    return [Detection(d["class"], tuple(d["box"]), d["score"], d["color"]) for d in image["detections"]]


def normal(line: str) -> str:
    """The published code joins the relations that hold from a set, in an order that changes by the run."""
    head, found, relations = line.partition(", found ")
    if not relations.endswith(" target"):
        return line
    return head + found + " and ".join(sorted(relations.removesuffix(" target").split(" and "))) + " target"


def test_every_image_and_the_summary_agree(golden_files):
    for path in golden_files("geneval/geneval_*.json"):
        golden = json.loads(path.read_text(encoding="utf-8"))
        images = golden["images"]
        results = score_images(
            [read_prompt(image) for image in images],
            [read_detections(image) for image in images],
            GenevalOptions(**golden["options"]),
        )
        for number, (image, verdict) in enumerate(zip(images, results.verdicts, strict=True)):
            where = f"{path.name}, image {number}"
            assert verdict.correct == image["correct"], where
            assert sorted(map(normal, verdict.reason)) == sorted(map(normal, image["reason"])), where

        summary = golden["summary"]
        assert len(results.verdicts) == summary["images"]
        assert len(set(results.prompts)) == summary["prompts"]
        assert {task.tag: task.value for task in results.tasks} == summary["tasks"]
        assert [task.tag for task in results.tasks] == list(summary["tasks"])
        for mine, theirs in (
            (results.overall, summary["overall"]),
            (results.correct_images, summary["correct_images"]),
            (results.correct_prompts, summary["correct_prompts"]),
        ):
            assert math.isclose(mine, theirs, rel_tol=1e-12)


def test_the_official_prompts_are_the_same_bytes(golden_files):
    for path in golden_files("geneval/*.jsonl"):
        text = path.read_text(encoding="utf-8")
        assert prompts_to_text(official_prompts()) == text
        assert prompts_from_text(text, path.name) == official_prompts()


def test_every_folder_of_pictures_describes_its_prompt_in_the_official_bytes(golden_files):
    for path in golden_files("geneval/*.jsonl"):
        assert [metadata_text(prompt) for prompt in official_prompts()] == path.read_text(
            encoding="utf-8"
        ).splitlines()

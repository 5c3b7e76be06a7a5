"""Speed of GenEval's rules and DPG-Bench's scores, and of the networks before them.

python benchmarks/evaluators.py            # the rules
python benchmarks/evaluators.py networks   # also detector and colour classifier, of full size
"""

import random
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

from kilopix.evaluation.dpg import Item, Question, score_items
from kilopix.evaluation.geneval import COLORS
from kilopix.evaluation.geneval_prompts import OBJECTS, official_prompts
from kilopix.evaluation.statistics import bootstrap
from kilopix.evaluation.tasks import observations, score_images
from kilopix.types import Detection
from run import seconds

PICTURES = 4
DPG_PROMPTS, DPG_QUESTIONS = 1065, 14  # the official file has 1,065 prompts and about 14 questions each


def geneval_rules() -> float:
    """Seconds that the rules take a picture: four a prompt, ten detections each, half of them asked for."""
    rng = random.Random(0)
    prompts = [prompt for prompt in official_prompts() for _ in range(PICTURES)]
    found = []
    for prompt in prompts:
        names = [clause.name for clause in prompt.include] * 5 + list(OBJECTS)
        found.append([_detection(rng, rng.choice(names[: 5 * len(prompt.include) + 5])) for _ in range(10)])
    judged = seconds(lambda: score_images(prompts, found), 3)
    results = score_images(prompts, found)
    interval = seconds(lambda: bootstrap(observations(results)), 1)
    print(
        f"GenEval's rules: {len(prompts) / judged:.0f} pictures/s ({len(prompts)} in {judged:.3f} s); "
        f"the interval of the mean takes {interval / judged:.1f} times as long as they"
    )
    return judged / len(prompts)


def _detection(rng: random.Random, name: str) -> Detection:
    x, y = rng.uniform(0, 400), rng.uniform(0, 400)
    box = (x, y, x + rng.uniform(10, 112), y + rng.uniform(10, 112))
    return Detection(name, box, rng.uniform(0.1, 1), rng.choice(COLORS))


def dpg_scores() -> None:
    """Answers a second that DPG-Bench's scores take in."""
    rng = random.Random(0)
    kinds = ["entity - whole", "entity - part", "attribute - color", "relation - spatial", "global -"]
    items = []
    for number in range(DPG_PROMPTS):
        questions = tuple(
            Question(i, rng.choice(kinds), (rng.randrange(i),)) for i in range(1, DPG_QUESTIONS + 1)
        )
        answers = tuple(tuple(rng.choices(["yes", "no"], k=DPG_QUESTIONS)) for _ in range(PICTURES))
        items.append(Item(str(number), questions, answers))
    taken = seconds(lambda: score_items(items), 3)
    count = DPG_PROMPTS * DPG_QUESTIONS * PICTURES
    print(f"DPG-Bench's scores: {count / taken:.0f} answers/s ({count} in {taken:.3f} s)")


def networks(rules: float) -> None:
    """Mask2Former with Swin-S and CLIP ViT-L/14, full size, random weights, pictures of 512 pixels."""
    from transformers import CLIPConfig, CLIPModel, Mask2FormerConfig, SwinConfig
    from transformers import Mask2FormerForUniversalSegmentation as Mask2Former

    from kilopix.pretrained.clip import _ClipColors
    from kilopix.pretrained.detector import DetectorConfig, load_detector

    device = "cuda" if torch.cuda.is_available() else "cpu"
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(embed_dim=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24], out_features=stages)
    names = dict(enumerate(OBJECTS))
    numbers = {name: i for i, name in names.items()}
    config = Mask2FormerConfig(backbone_config=swin, id2label=names, label2id=numbers)
    with tempfile.TemporaryDirectory() as folder:
        Mask2Former(config).save_pretrained(folder)
        detector = load_detector(DetectorConfig(name=folder), OBJECTS, device)
        batch = 8 if device == "cuda" else 1
        images = torch.randint(0, 256, (batch, 3, 512, 512), dtype=torch.uint8)
        taken = seconds(lambda: detector.detect(images, 0.1), 1) / batch
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 14}
    sizes = {"num_attention_heads": 16, "image_size": 224}
    clip = CLIPModel(CLIPConfig(vision_config=vision | sizes, projection_dim=768))
    colors = _ClipColors("clip", Path(), clip, None, COLORS, device)
    colors._texts["car"] = torch.randn(len(COLORS), 768, device=device)
    cutouts = [Image.new("RGB", (100, 80), "red")] * 16
    classified = seconds(lambda: colors.colors(cutouts, "car"), 1) / len(cutouts)
    print(
        f"detector on {device}: {1 / taken:.2f} pictures/s, {taken / rules:.0f} times the rules' time; "
        f"colours: {1 / classified:.1f} objects/s"
    )


def main() -> None:
    """Run the measurements."""
    rules = geneval_rules()
    dpg_scores()
    if "networks" in sys.argv[1:]:
        networks(rules)


if __name__ == "__main__":
    main()

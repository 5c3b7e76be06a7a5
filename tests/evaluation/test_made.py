"""What a list of samples says of how they were made."""

import json
from pathlib import Path

import pytest

from kilopix.evaluation.made import made_by_sampling
from kilopix.types import UserError


def test_settings_of_a_sweep_are_those_of_the_pictures(tmp_path: Path):
    path = tmp_path / "samples.json"
    images = [
        {"file": f"{i}.png", "prompt": "a", "seed": i, "steps": 10 + i, "guidance": 2.0} for i in range(3)
    ]
    sampling = {"sampler": "heun", "steps": 25, "guidance": {"scale": 7.0}}
    path.write_text(json.dumps({"weights": "run/model.safetensors", "sampling": sampling, "images": images}))
    made = made_by_sampling(path, {"0.png", "1.png"})
    assert (made.steps, made.guidance, made.seeds, made.sampler) == (None, 2.0, (0, 1), "heun")
    assert made_by_sampling(path, {"2.png"}).steps == 12
    path.write_text(json.dumps({"images": [{"file": "0.png", "prompt": "a"}]}))
    assert made_by_sampling(path, {"0.png"}).checkpoint == tmp_path.name
    path.write_text("[]")
    with pytest.raises(UserError, match=r"samples\.json: not a JSON object"):
        made_by_sampling(path, {"0.png"})

import pytest
import torch

from kilopix.training.parallel import join_processes


@pytest.mark.parametrize("name", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_gpu_s_segments_grow_unless_its_allocator_was_set_otherwise(
    name: str | None, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", asked.append)
    monkeypatch.setattr("kilopix.training.parallel.pick_device", lambda device: device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(f"device {device}"))
    for known in ("WORLD_SIZE", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(known, raising=False)
    if name:
        monkeypatch.setenv(name, "max_split_size_mb:512")
    with join_processes("cuda:1", "ddp", 1.0):
        pass
    assert asked == [*([] if name else ["expandable_segments:True"]), "device cuda:1"]
    asked.clear()
    with join_processes("cpu", "ddp", 1.0):
        pass
    assert asked == []

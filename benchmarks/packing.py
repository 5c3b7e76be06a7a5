"""What it gains to pack texts in a thread, in their stored form: a slow encoder, the old way against the new.

The encoder sleeps as a host does that waits for a device, and gives states of Flan-T5-XL's width. `python
benchmarks/packing.py` prints seconds and their ratio, from one run on one core.
"""

import time

import torch

from kilopix.data.text_storage import pack
from kilopix.pace import pack_in_batches
from kilopix.pretrained.memory import BatchSize
from kilopix.pretrained.text_encoder import encode_in_batches
from kilopix.types import TextStates

WIDTH, TOKENS, TEXTS, SECONDS_A_TOKEN = 2048, 115, 1024, 1e-5
"""1e-5 seconds a token: about 100,000 tokens a second, as a GPU with Flan-T5-XL."""


class Slow:
    """An encoder that takes its time on a device; the states it gives are drawn once."""

    name, width, max_tokens, fingerprint = "slow", WIDTH, 256, "slow"

    def __init__(self):
        self.states = torch.randn(64, TOKENS, WIDTH)

    def token_counts(self, texts):
        """All texts are as long."""
        return [TOKENS] * len(texts)

    def encode(self, texts):
        """Wait as for a device."""
        time.sleep(len(texts) * TOKENS * SECONDS_A_TOKEN)
        return TextStates(self.states[: len(texts)], torch.ones(len(texts), TOKENS, dtype=torch.bool))


def main() -> None:
    """Both ways, and that they give the same bytes."""
    torch.set_num_threads(1)
    texts, encoder, tokens = [str(i) for i in range(TEXTS)], Slow(), 64 * TOKENS
    device = TEXTS * TOKENS * SECONDS_A_TOKEN
    for storage in ("int8", "bfloat16"):
        old, new = [], []
        for _ in range(3):  # in turn, and the fastest of each, since other programs disturb
            start = time.perf_counter()
            before = [pack(states, storage) for states in encode_in_batches(encoder, texts, tokens)]
            between = time.perf_counter()
            assert pack_in_batches(encoder, texts, storage, BatchSize(tokens)) == before
            old.append(between - start)
            new.append(time.perf_counter() - between)
        print(
            f"{storage}: {TEXTS} texts of {TOKENS} tokens, {device:.2f} s of the device: "
            f"{min(old):.2f} s before, {min(new):.2f} s now, {min(old) / min(new):.2f} times"
        )


if __name__ == "__main__":
    main()

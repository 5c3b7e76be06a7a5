"""Encoding beside the device: equal bytes whatever the batch, errors in the thread, memory that runs out."""

import threading
from collections.abc import Iterator

import pytest
import torch

from kilopix.behind import behind
from kilopix.data.text_storage import STORAGES, pack
from kilopix.pace import Pace, measured_batches, pack_in_batches
from kilopix.pretrained.memory import BatchSize
from kilopix.pretrained.text_encoder import encode_in_batches
from kilopix.types import LatentMoments, TextStates, UserError

TEXTS = [f"{i} " + "word " * (i * 7 % 30) for i in range(60)] * 2


class Encoder:
    """A text encoder whose states depend on the text alone, on a device that holds so many tokens at once."""

    name, width, max_tokens, fingerprint = "made", 8, 40, "made"

    def __init__(self, holds: int = 10**9):
        self.holds = holds
        self.batches: list[int] = []
        self.refused = 0

    def token_counts(self, texts):
        return [min(len(text.split()), self.max_tokens) for text in texts]

    def encode(self, texts):
        counts = torch.tensor(self.token_counts(texts))
        mask = torch.arange(int(counts.max()))[None] < counts[:, None]
        if mask.numel() > self.holds:
            self.refused += 1
            raise torch.OutOfMemoryError("too large")
        self.batches.append(mask.numel())
        seeds = [torch.Generator().manual_seed(len(text)) for text in texts]
        states = torch.stack([torch.randn(self.max_tokens, self.width, generator=g) for g in seeds])
        return TextStates(states[:, : mask.shape[1]] * mask[..., None], mask)


class Pictures:
    """An autoencoder in name."""

    name, channels, downsampling, fingerprint = "made", 4, 8, "made"

    def encode(self, images):
        small = images[:, :1, ::8, ::8].expand(-1, 4, -1, -1)
        return LatentMoments(small, small)

    def decode(self, latents):
        return latents


@pytest.mark.parametrize("storage", STORAGES)
def test_packed_texts_are_those_of_one_at_a_time(storage):
    wanted = [pack(states, storage) for states in encode_in_batches(Encoder(), TEXTS)]
    for tokens in (1, 100, 10_000):
        assert pack_in_batches(Encoder(), TEXTS, storage, BatchSize(tokens)) == wanted
    made = pack_in_batches(Encoder(), TEXTS, storage, BatchSize(100))
    assert made[0] is made[60], "equal texts are stored once"


def test_texts_that_do_not_fit_are_encoded_in_smaller_batches_from_then_on():
    encoder, tokens = Encoder(holds=120), BatchSize(1000)
    assert pack_in_batches(encoder, TEXTS, "int8", tokens) == pack_in_batches(
        Encoder(), TEXTS, "int8", BatchSize(1000)
    )
    assert tokens.most <= 120
    assert encoder.refused <= 4, "a size that did not fit is not tried again"


def test_states_that_are_not_finite_end_the_work_with_their_message():
    class Broken(Encoder):
        def encode(self, texts):
            answer = super().encode(texts)
            return TextStates(answer.states + float("nan"), answer.mask)

    with pytest.raises(UserError, match=r"data\.text_storage='int8'.*not finite"):
        pack_in_batches(Broken(), TEXTS, "int8", BatchSize(100))


def test_a_step_is_finished_while_the_next_ones_are_begun_and_few_wait():
    begun: list[int] = []
    let_go = threading.Event()

    def steps() -> Iterator:
        for number in range(9):
            begun.append(number)
            if number == 2:
                let_go.set()  # the first one is not finished before two more are begun
            yield lambda number=number: (let_go.wait(10), number)

    finished = 0
    for held, number in behind(steps(), most=2):
        assert held, "the thread waits for what should have been begun beside it"
        assert number == finished
        assert len(begun) <= finished + 3
        finished += 1
    assert finished == 9


def test_an_error_in_the_thread_is_raised_and_begins_nothing_more():
    begun: list[int] = []

    def steps() -> Iterator:
        for number in range(9):
            begun.append(number)
            yield lambda number=number: 1 // (3 - number)

    with pytest.raises(ZeroDivisionError):
        list(behind(steps(), most=2))
    assert len(begun) <= 3 + 3


def test_a_device_gets_batches_by_what_they_take_and_a_cpu_its_own():
    class Memory:
        """Of 64 MiB; a picture of 64 pixels takes 1 MiB, a text 64 KiB."""

        def free(self):
            return 2**26

        def peak(self, work):
            encoder.batches.clear()
            work()
            return sum(encoder.batches) * 2**16 // 40 if encoder.batches else work.args[0] * 2**20

    encoder = Encoder()
    images, tokens = measured_batches(encoder, Pictures(), "cpu", 64, Memory())
    assert (images, tokens) == (32, 512 * 40), "70% of the memory, as a power of two"
    pace = Pace.of(encoder, Pictures(), "cpu", 64)
    assert (pace.images.most, pace.tokens.most, pace.threads) == (16, 2048, 1)

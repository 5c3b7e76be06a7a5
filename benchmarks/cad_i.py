"""CAD-I's training step, optimizer and sampling, against the published order of operations, in one run.

    python benchmarks/cad_i.py            base size, batch 8: minutes, and several GB
    python benchmarks/cad_i.py memory kilopix|published step|training     peak memory, in a process of its own

Seconds are given in units of the machine's own float32 matrix product (1024 cubed), so that they carry over.
`published` is kilopix's network called as the published code calls its own: text trunk, keys and values in
every pass and step, a graph for the first pass, padding multiplied, every sample self-conditioned, and LAMB
one operation at a time. The floor is the number of operations that cannot be left out, over the product's
rate.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from kilopix.models import rin_blocks
from kilopix.models.rin import RIN, RIN_SIZES, RINContext, flops_per_image
from kilopix.training.lamb import LambConfig
from kilopix.training.optim import build_optimizer
from kilopix.types import TextStates

BATCH, TOKENS, CLIP, KEEP = 8, 128, 2.0, 0.9
CHANNELS, TEXT_WIDTH, SIDE = 4, 2048, 32
PUBLISHED = {"step": 11.8, "optimizer": 0.5, "sampling": 8.0, "memory": 4.6, "rate": 150e9}
"""What the published code took on two cores whose product ran at 150 GFLOP/s: seconds, and GB."""


def network() -> RIN:
    """The base size, of fixed random weights."""
    torch.manual_seed(0)
    net = RIN(RIN_SIZES["base"].model_copy(update={"coherence": False}), CHANNELS, TEXT_WIDTH, SIDE)
    nn.init.normal_(net.ln_previous.weight, std=0.5)  # so that the previous latents are seen
    return net


def batch(size: int = BATCH) -> tuple[Tensor, Tensor, Tensor, TextStates, Tensor]:
    """Noisy latents, noise, levels, texts of 40 to 128 tokens, and which samples are self-conditioned."""
    generator = torch.Generator().manual_seed(1)
    x, noise = (torch.randn(size, CHANNELS, SIDE, SIDE, generator=generator) for _ in range(2))
    gamma = torch.rand(size, generator=generator)
    lengths = torch.randint(40, TOKENS + 1, (size,), generator=generator)
    mask = torch.arange(TOKENS)[None] < lengths[:, None]
    states = torch.randn(size, TOKENS, TEXT_WIDTH, generator=generator)
    keep = torch.arange(size) >= round(size * (1 - KEEP))
    return x, noise, gamma, TextStates(states, mask), keep


def padded_context(net: RIN, text: TextStates) -> RINContext:
    """The text's part of the network with its padding, as the published code computes it."""
    own = net.text_registers.expand(len(text.states), -1, -1)
    mask = torch.cat([text.mask.new_ones(own.shape[:2]), text.mask], dim=1)
    whole = rin_blocks.Packing(mask, None)
    x = torch.cat([own, net.map_text_tokens(text.states)], dim=1)
    for block in net.transformers_blocks:
        x = block(x, whole)
    pairs = [block.get_submodule("retrieve_cond.ca.kv")(x) for block in net.rin_blocks]
    return RINContext(pairs, mask)


def published_step(net: RIN) -> Tensor:
    """Loss and gradients in the published order."""
    x, noise, gamma, text, keep = batch()
    empty = x.new_zeros(len(x), net.config.latents, net.config.latent_width)
    _, latents = net(x, gamma, padded_context(net, text), empty)
    latents = latents.detach() * keep[:, None, None]
    prediction, _ = net(x, gamma, padded_context(net, text), latents)
    return (prediction - noise).square().mean()


def kilopix_step(net: RIN) -> Tensor:
    """The same loss as kilopix trains."""
    x, noise, gamma, text, keep = batch()
    prediction = net.self_conditioned(x, gamma, net.encode_text(text), keep)
    return (prediction - noise).square().mean()


def whole_step(net: RIN, loss_of: Callable[[RIN], Tensor]) -> float:
    """Both passes, backward and clipping; returns the loss."""
    net.zero_grad()
    loss = loss_of(net)
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), CLIP)
    return loss.item()


def gradient_gap(net: RIN) -> float:
    """How far apart the gradients of the two orders are at most, relative to their norms."""
    whole_step(net, published_step)
    before = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    whole_step(net, kilopix_step)
    after = [p.grad for p in net.parameters() if p.grad is not None]
    return max(float((a - b).norm() / b.norm()) for a, b in zip(after, before, strict=True))


class PublishedLamb:
    """LAMB, one parameter and one operation at a time."""

    def __init__(self, net: RIN):
        self.params = list(net.parameters())
        self.state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.params]
        self.steps = 0

    @torch.no_grad()
    def step(self) -> None:
        """One step of all parameters."""
        self.steps += 1
        for p, (m, v) in zip(self.params, self.state, strict=True):
            assert p.grad is not None
            m.mul_(0.9).add_(p.grad, alpha=0.1)
            v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            hat = m / (1 - 0.9**self.steps)
            update = hat / ((v / (1 - 0.999**self.steps)).sqrt() + 1e-8)
            update.add_(p, alpha=0.01)
            ratio = p.norm() / update.norm()
            p.add_(update, alpha=-1e-3 * float(ratio))


@torch.no_grad()
def sample_steps(net: RIN, fast: bool, steps: int = 10) -> Tensor:
    """Ten guided DDIM steps of one image: the network's part, two samples a step after the first."""
    x, _, _, text, _ = batch(2)
    x = x[:1]
    memory, context = None, net.encode_text(text) if fast else None
    for i in range(steps):
        gamma, after = torch.tensor(i / steps + 1e-3), torch.tensor((i + 1) / steps)
        size = 1 if i == 0 else 2
        if fast:
            assert context is not None
            here = context.rows(slice(size))
        else:
            here = padded_context(net, TextStates(text.states[:size], text.mask[:size]))
        if memory is not None and len(memory) != size:
            memory = torch.cat([memory, memory])
        eps, memory = net(x.expand(size, -1, -1, -1), gamma.expand(size), here, memory)
        eps = eps[:1] if size == 1 else torch.lerp(eps[1:], eps[:1], 3.0)
        data = (x - (1 - gamma).sqrt() * eps) / gamma.sqrt()
        x = after.sqrt() * data + (1 - after).sqrt() * (x - gamma.sqrt() * data) / (1 - gamma).sqrt()
    return x


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The fastest of several runs, after one that is not counted."""
    work()
    times: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def product_rate() -> float:
    """FLOP/s of a float32 product of two 1024 x 1024 matrices."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / seconds(lambda: a @ a, 20)


def peak_of(which: str, what: str) -> float:
    """Peak memory in GB, in a process of its own."""
    command = [sys.executable, __file__, "memory", which, what]
    out = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    return float(out.stdout.split()[-1])


def measure_memory(which: str, what: str) -> None:
    """Print the process's peak after a step (passes, backward, clipping), or two of them with LAMB."""
    net = network()
    loss_of = kilopix_step if which == "kilopix" else published_step
    whole_step(net, loss_of)
    if what == "training":
        optimizer = build_optimizer(LambConfig(), net) if which == "kilopix" else PublishedLamb(net)
        optimizer.step()
        whole_step(net, loss_of)
    print(_peak())


def _peak() -> float:
    """This process's peak memory in GB; `getrusage` would count the parent's, from which it was forked."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if "VmHWM" in line
    ]
    return int(line.split()[1]) * 1024 / 1e9


def pair(ours: Callable[[], object], published: Callable[[], object], repeats: int) -> tuple[float, float]:
    """The fastest of several runs of each, taken in turn, so that both meet the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repeats + 1):
        for work, taken in zip((ours, published), times, strict=True):
            started = time.perf_counter()
            work()
            if i:  # the first run is not counted
                taken.append(time.perf_counter() - started)
    return min(times[0]), min(times[1])


def line(name: str, times: tuple[float, float], floor: float, rate: float, bar: float) -> None:
    """One measurement: against the published way in this run, and against the published figure."""
    ours, published = times
    quoted = PUBLISHED[name] * PUBLISHED["rate"]
    print(
        f"{name}: {ours:.2f} s, {ours / published:.2f} of the published order in this run "
        f"({published:.2f} s); {ours * rate / quoted:.2f} of the published figure, in products (bar {bar}); "
        f"floor {floor:.2f} s",
        flush=True,
    )


def main(repeats: int = 3) -> None:
    """Measure all; a line's rate is the fastest product before and after it."""
    net = network()
    text, one = flops_per_image(net.config, SIDE, CHANNELS, TEXT_WIDTH, TOKENS)
    _, _, _, texts, keep = batch()
    registers = net.config.registers
    share = float((texts.mask.sum() + BATCH * registers) / (BATCH * (TOKENS + registers)))
    print(f"base size, batch {BATCH}, {torch.get_num_threads()} threads, {product_rate() / 1e9:.0f} GFLOP/s")
    print(f"largest difference of a gradient, relative to its norm: {gradient_gap(net):.1e}")
    step = pair(lambda: whole_step(net, kilopix_step), lambda: whole_step(net, published_step), repeats)
    rate = product_rate()
    fewest = BATCH * 3 * (share * text + one) + int(keep.sum()) * one
    line("step", step, fewest / rate, rate, 0.93)
    ours, published = build_optimizer(LambConfig(), net), PublishedLamb(net)
    elements = sum(p.numel() for p in net.parameters())
    bandwidth = _bandwidth()
    line("optimizer", pair(ours.step, published.step, repeats), 28 * elements / bandwidth, rate, 0.8)
    del ours, published
    net.zero_grad()
    gap = (sample_steps(net, True) - sample_steps(net, False)).norm() / sample_steps(net, True).norm()
    print(f"difference of the two samples, relative: {gap:.1e}")
    times = pair(lambda: sample_steps(net, True), lambda: sample_steps(net, False), repeats)
    rate = product_rate()
    line("sampling", times, (19 * one + 2 * text) / rate, rate, 0.85)
    for name in ("step", "training"):
        memory, before = peak_of("kilopix", name), peak_of("published", name)
        print(
            f"memory of a {name}: {memory:.2f} GB, {memory / before:.2f} of the published order in this run "
            f"({before:.2f} GB); {memory / PUBLISHED['memory']:.2f} of the published figure (bar 0.9)"
        )


def _bandwidth() -> float:
    """Bytes a second that a sum of two large tensors moves; LAMB must move 28 bytes a weight."""
    a, b = torch.ones(2**26), torch.ones(2**26)
    return 12 * 2**26 / seconds(lambda: a.add_(b), 5)


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        measure_memory(sys.argv[2], sys.argv[3])
    else:
        main()

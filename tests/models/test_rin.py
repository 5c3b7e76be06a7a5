import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kilopix.config import parse
from kilopix.errors import UserError
from kilopix.models.published import constants, load_published, published_config, to_published
from kilopix.models.rin import RIN, RIN_SIZES, RINConfig, flops_per_image
from kilopix.types import TextStates

SMALL = RINConfig(
    latents=6,
    latent_width=32,
    token_width=16,
    blocks=2,
    layers=2,
    read_write_heads=2,
    compute_heads=4,
    text_heads=4,
    registers=3,
)


def network(config: RINConfig = SMALL, random: bool = True) -> RIN:
    torch.manual_seed(0)
    net = RIN(config, channels=4, text_width=12, latent_side=8)
    if random:  # leave the start, at which previous latents are not seen
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def text(batch: int, lengths: list[int] | None = None, tokens: int = 6) -> TextStates:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(tokens)[None] < torch.tensor(lengths or [tokens] * batch)[:, None]
    return TextStates(torch.randn(batch, tokens, 12, generator=generator), mask)


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 4, 8, 8, generator=generator), torch.rand(batch, generator=generator)


def test_padding_changes_nothing_and_is_not_read():
    net, (x, gamma) = network(), inputs(3)
    short = text(3, [6, 2, 4])
    poisoned = TextStates(short.states.masked_fill(~short.mask[..., None], 1e4), short.mask)
    out, latents = net(x, gamma, net.encode_text(short))
    torch.testing.assert_close(net(x, gamma, net.encode_text(poisoned))[0], out)
    for i, length in enumerate([6, 2, 4]):
        alone = TextStates(short.states[i : i + 1, :length], short.mask[i : i + 1, :length])
        one, its_latents = net(x[i : i + 1], gamma[i : i + 1], net.encode_text(alone))
        torch.testing.assert_close(one, out[i : i + 1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(its_latents, latents[i : i + 1], atol=1e-5, rtol=1e-4)


def test_no_previous_latents_are_zeros():
    net, (x, gamma) = network(), inputs(2)
    context = net.encode_text(text(2))
    zeros = torch.zeros(2, SMALL.latents, SMALL.latent_width)
    for found, expected in zip(net(x, gamma, context), net(x, gamma, context, zeros), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("keep", [[False] * 3, [True] * 3, [True, False, True]])
def test_self_conditioning_is_two_passes_of_which_the_first_has_no_gradient(keep):
    net, (x, gamma) = network(), inputs(3)
    kept = torch.tensor(keep)

    def gradients(prediction: torch.Tensor) -> list[torch.Tensor]:
        net.zero_grad()
        prediction.square().mean().backward()
        return [p.grad.clone() for p in net.parameters() if p.grad is not None]

    context = net.encode_text(text(3, [6, 2, 4]))
    latents = net(x, gamma, context)[1].detach() * kept[:, None, None]
    expected = net(x, gamma, net.encode_text(text(3, [6, 2, 4])), latents)[0]
    found = net.self_conditioned(x, gamma, net.encode_text(text(3, [6, 2, 4])), kept)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    """The published self-conditioning clears the gradients of the micro-batches before."""
    net, (x, gamma) = network(), inputs(4)
    keep = torch.tensor([True, False, True, True])

    def run(rows: slice) -> None:
        states = text(4)
        part = TextStates(states.states[rows], states.mask[rows])
        out = net.self_conditioned(x[rows], gamma[rows], net.encode_text(part), keep[rows])
        (out.square().mean() * len(out) / 4).backward()

    run(slice(4))
    whole = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    run(slice(0, 1))
    run(slice(1, 4))
    for found, expected in zip(net.parameters(), whole, strict=True):
        torch.testing.assert_close(found.grad, expected, atol=1e-6, rtol=1e-4)


def test_text_coherence_level_and_memory_matter():
    net, (x, gamma) = network(), inputs(1)
    base, latents = net(x, gamma, net.encode_text(text(1)))
    others = [
        net(x, gamma, net.encode_text(text(1, [3])))[0],
        net(x, gamma, net.encode_text(text(1), torch.zeros(1)))[0],
        net(x, gamma * 0.5, net.encode_text(text(1)))[0],
        net(x, gamma, net.encode_text(text(1)), latents)[0],
    ]
    assert all((other - base).abs().max() > 1e-3 for other in others)
    same = net(x, gamma, net.encode_text(text(1), torch.ones(1)))[0]
    assert torch.equal(same, base)


def test_every_parameter_learns():
    net, (x, gamma) = network(), inputs(2)
    net.self_conditioned(
        x, gamma, net.encode_text(text(2)), torch.tensor([True, False])
    ).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_sizes_have_the_published_number_of_parameters():
    for name, coherence, millions in (("L", False, 330.2), ("L", True, 331.5)):
        config = RIN_SIZES[name].model_copy(update={"coherence": coherence})
        with torch.device("meta"):
            net = RIN(config, channels=4, text_width=2048, latent_side=32)
        assert abs(sum(p.numel() for p in net.parameters()) / 1e6 - millions) < 0.1


def test_flops_agree_with_torch_and_with_the_published_count():
    net, (x, gamma) = network(), inputs(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x, gamma, net.encode_text(text(1)), torch.zeros(1, SMALL.latents, SMALL.latent_width))
    estimate = sum(flops_per_image(SMALL, 8, 4, 12, 6))
    assert abs(estimate / counter.get_total_flops() - 1) < 0.05
    base = RIN_SIZES["base"].model_copy(update={"coherence": False})
    trunk, one = flops_per_image(base, 32, 4, 2048, 128)
    assert abs((trunk + one) / 49.3e9 - 1) < 0.04


def test_a_published_state_dict_that_does_not_fit_is_an_error():
    net = network()
    state = to_published(net)
    load_published(network(random=False), state)
    with pytest.raises(UserError, match="lack 1 entries"):
        load_published(net, {k: v for k, v in state.items() if k != "latents"})
    with pytest.raises(UserError, match="does not know 1 entries"):
        load_published(net, state | {"more": torch.zeros(1)})
    with pytest.raises(UserError, match=r"latents has shape \(1,\)"):
        load_published(net, state | {"latents": torch.zeros(1)})
    with pytest.raises(UserError, match="constant cond_mask"):
        load_published(net, state | {"cond_mask": ~state["cond_mask"]})
    assert len(constants(net)) > 10


def test_a_published_config_that_is_not_known_is_an_error():
    good = {"data_size": 8, "use_cond_rin_block": True, "concat_cond_token_to_latents": False}
    with pytest.raises(UserError, match="num_latents = None"):
        published_config("RINTextCond", good)
    with pytest.raises(UserError, match="class 'RINClassCond'"):
        published_config("RINClassCond", good)


def test_heads_that_do_not_divide_are_an_error():
    with pytest.raises(UserError, match="compute_heads 5 must divide"):
        parse(RINConfig, {"compute_heads": 5}, "recipe")

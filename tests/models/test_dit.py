import pytest
import torch

from kilopix.config import parse
from kilopix.diffusion.objective import ObjectiveConfig, loss_per_sample
from kilopix.errors import UserError
from kilopix.models.dit import (
    DIT_SIZES,
    DiT,
    DiTConfig,
    RoutingConfig,
    flops_per_image,
    token_positions,
)
from kilopix.models.layers import rotary_2d
from kilopix.types import TextStates

SMALL = DiTConfig(width=32, depth=2, heads=2, patch=2, text_layers=1, registers=2)


def text(batch: int, tokens: int = 6, width: int = 12, seed: int = 0) -> TextStates:
    generator = torch.Generator().manual_seed(seed)
    return TextStates(
        torch.randn(batch, tokens, width, generator=generator), torch.ones(batch, tokens).bool()
    )


def network(config: DiTConfig = SMALL, random: bool = True) -> DiT:
    torch.manual_seed(0)
    net = DiT(config, channels=4, text_width=12)
    if random:  # leave the zero-initialised start, so that every part shows in the output
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def test_a_new_network_predicts_zero_and_its_blocks_are_the_identity():
    net = network(random=False)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.9])
    context = net.encode_text(text(2))
    assert torch.equal(net(x, t, context), torch.zeros_like(x))
    tokens = torch.randn(2, 18, 32)
    modulation = torch.zeros(2, 6, 32)
    rotary = rotary_2d(torch.zeros(1, 18, 2), 16)
    assert torch.equal(
        net.blocks[0](tokens, modulation, rotary, context.keys_values[0], context.mask), tokens
    )


def test_padding_and_neighbours_change_nothing():
    net = network()
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.9])
    plain = text(2)
    states = torch.cat([plain.states, torch.full((2, 3, 12), 50.0)], dim=1)
    mask = torch.cat([plain.mask, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    padded = TextStates(states, mask)
    one = net(x[:1], t[:1], net.encode_text(TextStates(plain.states[:1], plain.mask[:1])))
    both = net(x, t, net.encode_text(plain))
    with_padding = net(x, t, net.encode_text(padded))
    torch.testing.assert_close(both[:1], one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both, with_padding, atol=1e-5, rtol=1e-5)


def test_text_time_and_place_matter():
    net = network()
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    base = net(x, t, net.encode_text(text(1)))
    assert not torch.allclose(base, net(x, t, net.encode_text(text(1, seed=1))), atol=1e-3)
    assert not torch.allclose(base, net(x, torch.tensor([0.6]), net.encode_text(text(1))), atol=1e-3)
    window = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    assert not torch.allclose(base, net(x, t, net.encode_text(text(1)), window), atol=1e-3)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert torch.equal(base, net(x, t, net.encode_text(text(1)), whole))


def test_a_window_places_its_tokens_in_the_whole_picture():
    whole = token_positions(4, 4, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    corner = token_positions(2, 2, torch.tensor([[0.5, 0.5, 1.0, 1.0]]))
    torch.testing.assert_close(corner[0], whole[0][[10, 11, 14, 15]])


def test_the_network_knows_where_a_token_lies():
    """The same content moved by one patch is answered differently, even in the middle of the picture."""
    net = network(DiTConfig(width=32, depth=2, heads=2, patch=1, text_layers=0, registers=0))
    with torch.no_grad():
        out = net(torch.ones(1, 4, 8, 8), torch.tensor([0.5]), net.encode_text(text(1)))
    assert out.std(dim=(2, 3)).min() > 1e-3


def test_two_networks_of_one_seed_are_equal_and_every_parameter_learns():
    net = network()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), network().parameters(), strict=True))
    net(
        torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.9]), net.encode_text(text(2))
    ).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_overfits_one_batch():
    net = network(random=False).train()
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(4, 4, 8, 8, generator=generator)
    noise = torch.randn(4, 4, 8, 8, generator=generator)
    t, states = torch.tensor([0.2, 0.4, 0.6, 0.8]), text(4)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(150):
        context = net.encode_text(states)
        loss = loss_per_sample(
            ObjectiveConfig(), lambda x, t, c=context: net(x, t, c), latents, noise, t
        ).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_heads_that_do_not_divide_the_width_are_an_error():
    with pytest.raises(UserError, match="width 100 over heads 3"):
        parse(DiTConfig, {"width": 100, "heads": 3}, "recipe")


def test_flops_agree_with_torch():
    from torch.utils.flop_counter import FlopCounterMode

    net = network()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.randn(1, 4, 8, 8), torch.tensor([0.5]), net.encode_text(text(1)))
    estimate = flops_per_image(SMALL, latent_side=8, channels=4, text_tokens=6)
    assert abs(estimate / counter.get_total_flops() - 1) < 0.1


def test_sizes_are_those_of_the_table():
    counts = {}
    for name, config in DIT_SIZES.items():
        with torch.device("meta"):
            net = DiT(config, channels=4, text_width=2048)
        counts[name] = sum(p.numel() for p in net.parameters()) / 1e6
    assert 380 < counts["L"] < 420
    assert counts["S"] < 0.3 * counts["B"] < 0.3 * counts["L"]


def test_routing_is_off_for_few_tokens_and_in_sampling():
    config = SMALL.model_copy(update={"depth": 5, "routing": RoutingConfig(share=0.5, first=1, after=1)})
    net = network(config)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.9])
    context = net.encode_text(text(2))
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(net(x, t, context), net(x, t, context, routing=generator))


def test_routed_tokens_pass_by_the_middle_blocks():
    """With blocks that do nothing but the middle one, only the tokens that stayed differ."""
    routing = RoutingConfig(share=0.75, first=1, after=1, min_tokens=16)
    net = network(SMALL.model_copy(update={"depth": 3, "patch": 1, "routing": routing}))
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    context = net.encode_text(text(1))
    seen = []
    for block in net.blocks:
        block.register_forward_hook(lambda block, given, out: seen.append(given[0].shape[1]))
    whole = net(x, t, context)
    routed = net(x, t, context, routing=torch.Generator().manual_seed(0))
    registers = SMALL.registers
    assert seen == [64 + registers] * 3 + [64 + registers, 16 + registers, 64 + registers]
    assert routed.isfinite().all()
    assert not torch.allclose(whole, routed)
    again = net(x, t, context, routing=torch.Generator().manual_seed(0))
    assert torch.equal(routed, again)


def test_without_rows_lost_routing_to_the_last_block_gives_all_tokens_back():
    routing = RoutingConfig(share=0.5, first=0, after=0, min_tokens=16)
    net = network(SMALL.model_copy(update={"routing": routing, "patch": 1}))
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.5, 0.2])
    out = net(x, t, net.encode_text(text(2)), routing=torch.Generator().manual_seed(0))
    assert out.shape == x.shape
    assert out.isfinite().all()

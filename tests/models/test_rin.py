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


PUBLISHED = {
    "data_size": 8,
    "data_dim": 16,
    "num_input_channels": 4,
    "num_latents": 6,
    "latents_dim": 32,
    "label_dim": 12,
    "num_processing_layers": 2,
    "num_blocks": 2,
    "path_size": 2,
    "num_cond_tokens": 5,
    "concat_cond_token_to_latents": False,
    "use_cond_rin_block": True,
}


def shapes(kind: str = "CADRINTextCond", **arguments: object) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        net = RIN(*published_config(kind, {**PUBLISHED, **arguments}))
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


@pytest.mark.parametrize(
    ("argument", "value", "entry", "shape"),
    [
        ("data_size", 12, "data_pos_embedding", (36, 16)),
        ("path_size", 4, "data_pos_embedding", (4, 16)),
        ("path_size", 4, "map_tokens_to_patches.1.weight", (64, 16)),
        ("data_dim", 48, "data_pos_embedding", (16, 48)),
        ("num_input_channels", 3, "patch_extractor.weight", (16, 3, 2, 2)),
        ("num_latents", 9, "latents", (9, 32)),
        ("latents_dim", 64, "latents", (6, 64)),
        ("label_dim", 20, "map_text_tokens.weight", (32, 20)),
        ("num_text_registers", 5, "text_registers", (5, 32)),
        ("latent_mlp_multiplier", 3, "rin_blocks.0.retriever_ca.ffn.0.weight", (96, 32)),
        ("latent_mlp_multiplier", 3, "rin_blocks.1.processer_sa.1.ffn.0.weight", (96, 32)),
        ("latent_mlp_multiplier", 3, "rin_blocks.0.retrieve_cond.ffn.0.weight", (96, 32)),
        ("latent_mlp_multiplier", 3, "linear_previous.1.0.weight", (96, 32)),
        ("latent_mlp_multiplier", 3, "rin_blocks.0.writer_ca.ffn.0.weight", (64, 16)),
        ("latent_mlp_multiplier", 3, "transformers_blocks.0.ffn.0.weight", (128, 32)),
        ("data_mlp_multiplier", 2, "rin_blocks.0.writer_ca.ffn.0.weight", (32, 16)),
        ("data_mlp_multiplier", 2, "rin_blocks.1.writer_ca.ffn.3.weight", (16, 32)),
        ("data_mlp_multiplier", 2, "rin_blocks.0.retriever_ca.ffn.0.weight", (128, 32)),
    ],
)
def test_a_published_argument_shapes_the_network(argument: str, value: int, entry: str, shape: tuple):
    assert shapes(**{argument: value})[entry] == shape


def test_published_arguments_without_shapes_are_honoured_too():
    config, *_ = published_config("RINTextCond", PUBLISHED | {"read_write_heads": 8, "compute_heads": 4})
    assert (config.read_write_heads, config.compute_heads, config.text_heads) == (8, 4, 16)
    assert published_config("RINTextCond", PUBLISHED)[0].compute_heads == 16, "the published default"
    assert not config.coherence
    names = shapes(num_blocks=3, num_processing_layers=1)
    assert "rin_blocks.2.processer_sa.0.sa.qkv.weight" in names
    assert not any(name.startswith(("rin_blocks.3", "rin_blocks.0.processer_sa.1")) for name in names)
    assert shapes(num_cond_tokens=77) == shapes(), "only read where conditions are joined to the latents"


def test_tokens_mlps_of_another_width_load_compute_and_are_counted():
    x, gamma = inputs(1)
    counted, estimated = [], []
    for multiplier in (2, 4):
        config, *others = published_config("CADRINTextCond", PUBLISHED | {"data_mlp_multiplier": multiplier})
        net = RIN(config, *others)
        load_published(RIN(config, *others), to_published(net))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(x, gamma, net.encode_text(text(1)), torch.zeros(1, config.latents, config.latent_width))
        counted.append(counter.get_total_flops())
        estimated.append(sum(flops_per_image(config, 8, 4, 12, 6)))
    assert estimated[1] - estimated[0] == counted[1] - counted[0] > 0


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("concat_cond_token_to_latents", True),
        ("use_cond_rin_block", False),
        ("use_cond_token", False),
        ("modulate_conditioning", True),
        ("use_biases", False),
        ("time_scaling", 100.0),
        ("time_scaling", "1000"),
        ("noise_embedding_type", "fourier"),
        ("data_positional_embedding_type", "positional"),
        ("retrieve_attention_scores", True),
        ("use_16_bits_layer_norm", True),
        ("rw_dropout", 0.1),
        ("compute_dropout", 0.1),
        ("compute_dropout", False),
        ("rw_stochastic_depth", 0.1),
        ("compute_stochastic_depth", 0.1),
        ("weight_init", "orthogonal"),
        ("bias_init", "uniform"),
        ("data_mlp_multiplier", 2.5),
        ("data_mlp_multiplier", True),
        ("data_mlp_multiplier", 0),
        ("num_latents", 0),
        ("num_latents", "6"),
        ("latents_dim", 8),
        ("latents_dim", 40),
        ("label_dim", 0),
        ("data_size", 9),
        ("num_cond_tokens", "many"),
        ("read_write_heads", 3),
        ("compute_heads", 5),
    ],
)
def test_a_published_argument_that_is_not_known_is_refused_by_name(argument: str, value: object):
    with pytest.raises(UserError, match=rf"{argument}\b.*{value}"):
        published_config("CADRINTextCond", {**PUBLISHED, argument: value})


def test_the_values_that_released_configs_write_out_are_taken():
    written = {
        "rw_dropout": 0.0,
        "compute_dropout": 0,
        "rw_stochastic_depth": 0,
        "compute_stochastic_depth": 0,
        "time_scaling": 1000.0,
        "noise_embedding_type": "positional",
        "data_positional_embedding_type": "learned",
        "weight_init": "xavier_uniform",
        "bias_init": "zeros",
        "use_cond_token": True,
        "use_biases": True,
        "modulate_conditioning": False,
        "use_16_bits_layer_norm": False,
    }
    assert shapes(**written) == shapes()


def test_a_published_config_that_is_not_known_is_an_error():
    some = {k: v for k, v in PUBLISHED.items() if k != "num_latents"}
    with pytest.raises(UserError, match="num_latents is missing"):
        published_config("RINTextCond", some)
    with pytest.raises(UserError, match="class 'RINClassCond'"):
        published_config("RINClassCond", PUBLISHED)
    with pytest.raises(UserError, match="unknown argument 'num_latent'; did you mean 'num_latents'"):
        published_config("RINTextCond", PUBLISHED | {"num_latent": 3})
    with pytest.raises(UserError, match="unknown argument 'modulate_conditioning'"):
        published_config("RINTextCond", PUBLISHED | {"modulate_conditioning": False})
    without = {k: v for k, v in PUBLISHED.items() if k != "use_cond_rin_block"}
    with pytest.raises(UserError, match="use_cond_rin_block = False"):
        published_config("RINTextCond", without)


def test_heads_that_do_not_divide_are_an_error():
    with pytest.raises(UserError, match="compute_heads 5 must divide"):
        parse(RINConfig, {"compute_heads": 5}, "recipe")

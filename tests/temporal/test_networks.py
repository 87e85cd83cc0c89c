"""Networks over time: what they see, instant by instant and at once, and a plain restatement of the convolution."""

import numpy as np
import pytest
import torch

from endofm_lab.errors import UserError
from endofm_lab.temporal.networks import DilatedLayer, NetworkConfig, build_network

KINDS = ("tcn", "tcn++", "transformer", "gru", "linear")


def network_of(kind, offline=False, several=False, **sizes):
    torch.manual_seed(0)
    config = NetworkConfig(kind, offline, **{"width": 16, "layers": 3, "stages": 2, "heads": 2, "window": 9, **sizes})
    return build_network(config, 5, 4, several).eval()


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(40, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_causal_network_never_looks_ahead(kind, several, inputs):
    network = network_of(kind, several=several)
    changed = inputs.clone()
    changed[25:] = 100 * torch.randn(15, 5)
    with torch.no_grad():
        before, after = network(inputs), network(changed)
    torch.testing.assert_close(before[:, :25], after[:, :25], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 25:], after[:, 25:])


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_an_offline_network_sees_both_sides(kind, inputs):
    network = network_of(kind, offline=True)
    for at in (15, 25):
        changed = inputs.clone()
        changed[at] += 10
        with torch.no_grad():
            assert not torch.allclose(network(inputs)[-1, 20], network(changed)[-1, 20])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_instant_by_instant_a_causal_network_gives_the_answers_of_the_whole_recording(kind, inputs):
    network = network_of(kind)
    state = network.begin()
    streamed = torch.stack([network.step(x, state) for x in inputs])
    torch.testing.assert_close(streamed, network(inputs)[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offline", [False, True])
@torch.no_grad()
def test_recordings_shorter_than_what_a_network_sees_are_taken(kind, offline, inputs):
    network = network_of(kind, offline)
    assert network(inputs[:1]).shape[1:] == (1, 4) and network(inputs[:1]).isfinite().all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dilations", [(1,), (4,), (1, 8)])
@torch.no_grad()
def test_the_dilated_layer_is_the_sum_over_three_instants_per_dilation(causal, dilations):
    torch.manual_seed(0)
    layer = DilatedLayer(3, dilations, causal, dropout=0.5).eval()
    x = torch.randn(1, 3, 12)
    values = x[0].double().numpy()
    joined = np.zeros((3 * len(dilations), 12))
    for part, (dilation, convolution) in enumerate(zip(dilations, layer.dilated, strict=True)):
        weight, bias = convolution.weight.double().numpy(), convolution.bias.double().numpy()
        for t in range(12):
            places = [t - 2 * dilation, t - dilation, t] if causal else [t - dilation, t, t + dilation]
            for c in range(3):
                total = bias[c]
                for k, place in enumerate(places):
                    if 0 <= place < 12:
                        total += sum(weight[c, i, k] * values[i, place] for i in range(3))
                joined[3 * part + c, t] = max(total, 0)
    mixed = layer.mix.weight[..., 0].double().numpy() @ joined + layer.mix.bias.double().numpy()[:, None]
    np.testing.assert_allclose(layer(x)[0].numpy(), values + mixed, atol=1e-5)


def test_a_temporal_convolution_sees_as_far_as_its_description_says(inputs):
    network = network_of("tcn", stages=1)  # three layers: 2 ** 4 - 1 = 15 instants
    x = inputs.clone().requires_grad_()
    network(x)[0, 30].sum().backward()
    assert np.flatnonzero(x.grad.abs().sum(1).numpy()).tolist() == list(range(16, 31))


def test_the_transformer_sees_its_window_per_layer(inputs):
    network = network_of("transformer", layers=1)
    x = inputs.clone().requires_grad_()
    network(x)[0, 30].sum().backward()
    assert np.flatnonzero(x.grad.abs().sum(1).numpy()).tolist() == list(range(22, 31))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind, inputs):
    network = network_of(kind, offline=True).train()
    network(inputs).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_impossible_networks_are_refused():
    for wrong in (
        {"kind": "lstm"},
        {"width": 0},
        {"layers": 99},
        {"dropout": 1.0},
        {"kind": "transformer", "heads": 3},
    ):
        with pytest.raises(UserError):
            NetworkConfig(**wrong)

"""Networks over time: multi-stage temporal convolution, a transformer and a recurrent network.

Each takes the inputs of one recording (T, D) and returns logits (S, T, K) of its S stages, of which the last answers. A
causal network answers from the present and the past; it can also be used instant by instant, with the same answers:

>>> state = network.begin()  # doctest: +SKIP
>>> logits = network.step(inputs[0], state)  # (K,); the state keeps what later instants need

Letters: T instants, D inputs, C channels, K classes, L layers.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from endofm_lab.errors import UserError

Kind = Literal["tcn", "tcn++", "transformer", "gru", "linear"]
MOST = {"width": 1024, "layers": 16, "stages": 8, "heads": 16, "window": 100_000, "classes": 10_000, "inputs": 100_000}


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that fixes the shapes of a network.

    Attributes:
        kind: "tcn" is the multi-stage temporal convolution of TeCNO, "tcn++" that of MS-TCN++ with dual dilation in its
            first stage, "transformer" has attention with a bias for near instants, "gru" is recurrent, and "linear"
            answers from each instant alone.
        offline: answer from the whole recording; otherwise from the present and the past.
        width: C of the hidden layers.
        layers: layers per stage; a temporal convolution of L layers sees 2 ** (L + 1) - 1 instants.
        stages: stages of a temporal convolution; each later one refines the answers of the one before.
        heads: heads of the transformer.
        window: instants that the transformer looks back, or to both sides.
        dropout: share of activations that are dropped in training.
    """

    kind: Kind = "tcn"
    offline: bool = False
    width: int = 64
    layers: int = 8
    stages: int = 2
    heads: int = 4
    window: int = 256
    dropout: float = 0.3

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f"network is {self.kind!r}; choose one of {', '.join(get_args(Kind))}.")
        for name in ("width", "layers", "stages", "heads", "window"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= MOST[name]:
                raise UserError(f"{name} is {value}; give a whole number from 1 to {MOST[name]:,}.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; give a share from 0 up to 1.")
        if self.kind == "transformer" and self.width % self.heads:
            raise UserError(f"width is {self.width} with {self.heads} heads; give a multiple of the heads.")


class Network(nn.Module):
    """The contract of a network: `forward` on a whole recording, and `begin` and `step` if it is causal."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (S, T, K) of inputs (T, D)."""
        raise NotImplementedError

    def begin(self) -> Any:
        """The state before the first instant."""
        raise NotImplementedError

    def step(self, x: Tensor, state: Any) -> Tensor:
        """Logits (K,) of the next instant with inputs (D,); changes the state."""
        raise NotImplementedError


def build_network(config: NetworkConfig, n_inputs: int, n_classes: int, several: bool) -> Network:
    """A freshly initialised network.

    Args:
        config: kind and sizes.
        n_inputs: D.
        n_classes: K.
        several: any number of classes may be true at once, so stages hand on sigmoids instead of a softmax.
    """
    classes: dict[str, type[Network]] = {"tcn": MultiStageTCN, "tcn++": MultiStageTCN, "linear": Linear}
    classes |= {"transformer": Transformer, "gru": Recurrent}
    return classes[config.kind](config, n_inputs, n_classes, several)  # type: ignore[call-arg]


class Linear(Network):
    """An answer from each instant alone; ``layer`` is the logistic regression."""

    def __init__(self, config: NetworkConfig, n_inputs: int, n_classes: int, several: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(n_inputs, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) -> (1, T, K)."""
        return self.layer(x)[None]

    def begin(self) -> None:
        """No state."""

    def step(self, x: Tensor, state: None) -> Tensor:
        """(D,) -> (K,)."""
        return self.layer(x)


class DilatedLayer(nn.Module):
    """A residual layer of dilated convolutions of three instants over (1, C, T).

    With several dilations their outputs are joined (dual dilation). A causal layer looks at the instants t, t - d and
    t - 2 d; an offline one at t - d, t and t + d. Beyond the ends of the recording there are zeros.

    Source: MS-TCN (Farha and Gall 2019, arXiv 1903.01945); causal as in TeCNO (2003.10751); several dilations as in
    MS-TCN++ (2006.09220), section 3.2.
    """

    def __init__(self, width: int, dilations: tuple[int, ...], causal: bool, dropout: float) -> None:
        super().__init__()
        self.causal, self.dilations = causal, dilations
        self.dilated = nn.ModuleList([nn.Conv1d(width, width, 3, dilation=d) for d in dilations])
        self.mix = nn.Conv1d(len(dilations) * width, width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, T) -> (1, C, T)."""
        pads = [(2 * d, 0) if self.causal else (d, d) for d in self.dilations]
        parts = [layer(F.pad(x, pad)) for layer, pad in zip(self.dilated, pads, strict=True)]
        return x + self.dropout(self.mix(F.relu(torch.cat(parts, dim=1))))

    def begin(self) -> deque[Tensor]:
        """The inputs of the past that the largest dilation needs: zeros."""
        n, width = 2 * max(self.dilations), self.mix.out_channels
        return deque([self.mix.weight.new_zeros(1, width, 1)] * n, maxlen=n)

    def step(self, x: Tensor, past: deque[Tensor]) -> Tensor:
        """(1, C, 1) -> (1, C, 1) at the next instant."""
        parts = []
        for layer, d in zip(self.dilated, self.dilations, strict=True):
            weight, bias = layer.parameters()
            parts.append(F.conv1d(torch.cat([past[-2 * d], past[-d], x], dim=2), weight, bias))
        past.append(x)
        return x + self.dropout(self.mix(F.relu(torch.cat(parts, dim=1))))


class Stage(nn.Module):
    """One stage of a temporal convolution: (1, D, T) to logits (1, K, T)."""

    def __init__(self, config: NetworkConfig, n_inputs: int, n_classes: int, dual: bool) -> None:
        super().__init__()
        L, width = config.layers, config.width
        dilations = [(2**n, 2 ** (L - 1 - n)) if dual else (2**n,) for n in range(L)]
        self.first = nn.Conv1d(n_inputs, width, 1)
        self.layers = nn.ModuleList([DilatedLayer(width, d, not config.offline, config.dropout) for d in dilations])
        self.last = nn.Conv1d(width, n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(1, D, T) -> (1, K, T)."""
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)

    def step(self, x: Tensor, state: list[deque[Tensor]]) -> Tensor:
        """(1, D, 1) -> (1, K, 1) at the next instant."""
        x = self.first(x)
        for layer, past in zip(self.layers, state, strict=True):
            x = layer.step(x, past)  # type: ignore[operator]
        return self.last(x)


class MultiStageTCN(Network):
    """Stages of dilated convolutions, each of which refines the probabilities of the stage before."""

    def __init__(self, config: NetworkConfig, n_inputs: int, n_classes: int, several: bool) -> None:
        super().__init__()
        sizes = [n_inputs] + [n_classes] * (config.stages - 1)
        dual = config.kind == "tcn++"
        self.several = several
        self.stages = nn.ModuleList([Stage(config, n, n_classes, dual and at == 0) for at, n in enumerate(sizes)])

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) -> (S, T, K)."""
        x, outputs = x.T[None], []
        for stage in self.stages:
            logits = stage(x)
            outputs.append(logits[0].T)
            x = self._probabilities(logits)
        return torch.stack(outputs)

    def begin(self) -> list[list[deque[Tensor]]]:
        """The past of every layer of every stage."""
        return [[layer.begin() for layer in stage.layers] for stage in self.stages]  # type: ignore

    def step(self, x: Tensor, state: list[list[deque[Tensor]]]) -> Tensor:
        """(D,) -> (K,)."""
        x, logits = x[None, :, None], x
        for stage, past in zip(self.stages, state, strict=True):
            logits = stage.step(x, past)  # type: ignore[operator]
            x = self._probabilities(logits)
        return logits[0, :, 0]

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.several else logits.softmax(dim=1)


class Block(nn.Module):
    """Attention over instants and a feed-forward network, with norms before both; (T, C) to (T, C).

    Scores fall linearly with the distance in time, with a slope per head, so that a recording may be longer than those
    of training. Instants further than ``window`` steps away are not seen.

    Source: linear biases of Press et al. 2021 (arXiv 2108.12409).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.window, self.causal = config.heads, config.window, not config.offline
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.forwards = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(config.dropout)

    def _slopes(self, like: Tensor) -> Tensor:
        """(heads, 1, 1): 2 ** -(8 / heads), its square, and so on."""
        powers = torch.arange(1, self.heads + 1, dtype=like.dtype, device=like.device)
        return (2.0 ** (-8.0 * powers / self.heads))[:, None, None]

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (heads, T, C / heads)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        return q, k, v

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, ahead: Tensor) -> Tensor:
        """(T, C) of queries (heads, T, d) over keys whose distance into the future is ``ahead`` (T, keys)."""
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) - self._slopes(q) * ahead.abs()
        hidden = ahead.abs() >= self.window
        if self.causal:
            hidden = hidden | (ahead > 0)
        return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(0, 1).flatten(1)

    def _added(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(self.mix(attended))
        return x + self.dropout(self.forwards(self.norm2(x)))

    def forward(self, x: Tensor) -> Tensor:
        """(T, C) -> (T, C)."""
        at = torch.arange(len(x), device=x.device)
        return self._added(x, self._attended(*self._parts(x), at[None, :] - at[:, None]))

    def step(self, x: Tensor, past: deque[tuple[Tensor, Tensor]]) -> Tensor:
        """(1, C) -> (1, C) at the next instant; ``past`` holds keys and values of the window."""
        q, k, v = self._parts(x)
        past.append((k, v))
        keys, values = (torch.cat(parts, dim=1) for parts in zip(*past, strict=True))
        ahead = torch.arange(1 - len(past), 1, device=x.device)[None]
        return self._added(x, self._attended(q, keys, values, ahead))


class Transformer(Network):
    """Blocks of attention over instants."""

    def __init__(self, config: NetworkConfig, n_inputs: int, n_classes: int, several: bool) -> None:
        super().__init__()
        self.window = config.window
        self.first = nn.Linear(n_inputs, config.width)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.norm, self.last = nn.LayerNorm(config.width), nn.Linear(config.width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) -> (1, T, K)."""
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(self.norm(x))[None]

    def begin(self) -> list[deque]:
        """Keys and values of the window, per block."""
        return [deque(maxlen=self.window) for _ in self.blocks]

    def step(self, x: Tensor, state: list[deque]) -> Tensor:
        """(D,) -> (K,)."""
        x = self.first(x)[None]
        for block, past in zip(self.blocks, state, strict=True):
            x = block.step(x, past)  # type: ignore[operator]
        return self.last(self.norm(x))[0]


class Recurrent(Network):
    """Gated recurrent units (GRU); offline in both directions."""

    def __init__(self, config: NetworkConfig, n_inputs: int, n_classes: int, several: bool) -> None:
        super().__init__()
        directions = 2 if config.offline else 1
        self.first = nn.Sequential(nn.Linear(n_inputs, config.width), nn.Dropout(config.dropout))
        self.units = nn.GRU(config.width, config.width, config.layers, bidirectional=config.offline)
        self.last = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(directions * config.width, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) -> (1, T, K)."""
        return self.last(self.units(self.first(x))[0])[None]

    def begin(self) -> dict[str, Tensor | None]:
        """The hidden state of every layer; None is zeros."""
        return {"hidden": None}

    def step(self, x: Tensor, state: dict[str, Tensor | None]) -> Tensor:
        """(D,) -> (K,)."""
        hidden, state["hidden"] = self.units(self.first(x)[None], state["hidden"])
        return self.last(hidden)[0]

"""Video models of torchvision as encoders: MViT v2 (arXiv 2112.01526), Video Swin (2106.13230), ResNets (1711.11248).

Their tokens are the last map before pooling and classifier. None of them gives attention maps: MViT attends to pooled
keys, Swin within shifted windows, and ResNets not at all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.models.video import mc3_18, mvit_v2_s, r2plus1d_18, r3d_18
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DSimple, VideoResNet
from torchvision.models.video.swin_transformer import SwinTransformer3d

from endofm_lab.errors import UserError
from endofm_lab.model.encoder import Encoder, VideoTokens
from endofm_lab.video.transforms import IMAGENET, TIMESFORMER, InputSpec

TORCHVISION = "torchvision:"  # before the name of a model
KINETICS = InputSpec(mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989))


@dataclass(frozen=True)
class Architecture:
    """A model of torchvision.

    Attributes:
        build: makes it with random weights.
        width: D of its tokens.
        n: frames of a token.
        patch_px: side of a token in pixels.
        image_px: side of the pictures of its published weights, and ``frames`` the length of their clips.
        input: normalisation of its published weights.
        fixed: it takes clips of this size only, as its positions belong to them.
        has_cls: it has a CLS token.
        classifier: name of the module that is left out.
    """

    build: Callable[[], nn.Module]
    width: int
    n: int
    patch_px: int
    image_px: int
    frames: int
    input: InputSpec
    fixed: bool = False
    has_cls: bool = False
    classifier: str = "head"


def _swin(embed_dim: int, depths: list[int], heads: list[int], window: list[int]) -> nn.Module:
    return SwinTransformer3d([2, 4, 4], embed_dim, depths, heads, window)


def _small_mvit() -> nn.Module:
    blocks = [
        MSBlockConfig(1, 16, 16, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        MSBlockConfig(2, 16, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    return MViT((32, 32), 4, blocks, True, False, True, True)


_RESNET: dict[str, Any] = {"width": 512, "image_px": 112, "frames": 16, "input": KINETICS, "classifier": "fc"}
ARCHITECTURES = {
    "mvit_v2_s": Architecture(mvit_v2_s, 768, 2, 32, 224, 16, TIMESFORMER, fixed=True, has_cls=True),
    "swin3d_t": Architecture(
        partial(_swin, 96, [2, 2, 6, 2], [3, 6, 12, 24], [8, 7, 7]), 768, 2, 32, 224, 32, IMAGENET
    ),
    "swin3d_s": Architecture(
        partial(_swin, 96, [2, 2, 18, 2], [3, 6, 12, 24], [8, 7, 7]), 768, 2, 32, 224, 32, IMAGENET
    ),
    "r3d_18": Architecture(r3d_18, n=8, patch_px=16, **_RESNET),
    "r2plus1d_18": Architecture(r2plus1d_18, n=8, patch_px=16, **_RESNET),
    "mc3_18": Architecture(mc3_18, n=1, patch_px=16, **_RESNET),
    # Small variants for tests and lessons. The widths of the ResNet cannot be changed.
    "mvit_micro": Architecture(_small_mvit, 32, 2, 8, 32, 4, TIMESFORMER, fixed=True, has_cls=True),
    "swin3d_micro": Architecture(partial(_swin, 16, [1, 2], [2, 4], [2, 2, 2]), 32, 2, 8, 32, 4, IMAGENET),
    "r3d_micro": Architecture(
        partial(VideoResNet, BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], BasicStem),
        n=8,
        patch_px=16,
        **_RESNET | {"image_px": 32, "frames": 8},
    ),
}


@dataclass(frozen=True)
class TorchvisionConfig:
    """The configuration of a `TorchvisionVideo`: a key of `ARCHITECTURES`, and the size of clips (None: as published).

    Raises:
        UserError: the architecture is unknown, or it takes no clips of that size.
    """

    architecture: str
    image_px: int = 0
    frames: int = 0

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"The architecture is {self.architecture!r}; of torchvision's video models, this version knows "
                f"{', '.join(ARCHITECTURES)}."
            )
        architecture = ARCHITECTURES[self.architecture]
        object.__setattr__(self, "image_px", self.image_px or architecture.image_px)
        object.__setattr__(self, "frames", self.frames or architecture.frames)
        self.check(self.frames, self.image_px)

    def check(self, frames: int, px: int) -> None:
        """Refuse clips of an impossible size.

        Raises:
            UserError: the message names the possible sizes.
        """
        architecture = ARCHITECTURES[self.architecture]
        if architecture.fixed and (frames, px) != (architecture.frames, architecture.image_px):
            raise UserError(
                f"Clips have {frames} frames of {px} px; {self.architecture} takes {architecture.frames} frames of "
                f"{architecture.image_px} px only, as its positions belong to them."
            )
        if not 1 <= px <= 4096 or not 1 <= frames <= 4096 or frames % architecture.n or px % architecture.patch_px:
            raise UserError(
                f"Clips have {frames} frames of {px} px; {self.architecture} takes multiples of {architecture.n} "
                f"frames and of {architecture.patch_px} px."
            )

    @property
    def width(self) -> int:
        """D of its tokens."""
        return ARCHITECTURES[self.architecture].width

    @property
    def patch_px(self) -> int:
        """Side of a token in pixels."""
        return ARCHITECTURES[self.architecture].patch_px


class TorchvisionVideo(Encoder):
    """A video model of torchvision without its classifier."""

    kind = "torchvision"
    Config = TorchvisionConfig

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__(config)
        architecture = ARCHITECTURES[config.architecture]
        self.has_cls = architecture.has_cls  # type: ignore[misc]  # of the architecture, not of the class
        self.frames_per_token = architecture.n
        self.net: Any = architecture.build()
        setattr(self.net, architecture.classifier, nn.Identity())

    def layers(self) -> list[nn.Module]:
        """Embeddings, blocks or stages, and the last norm if there is one."""
        net = self.net
        if isinstance(net, MViT):
            return [nn.ModuleList([net.conv_proj, net.pos_encoding]), *net.blocks, net.norm]
        if isinstance(net, SwinTransformer3d):
            return [net.patch_embed, *net.features, net.norm]
        return [net.stem, net.layer1, net.layer2, net.layer3, net.layer4]

    def default_input(self) -> InputSpec:
        """The normalisation of the published weights."""
        spec = ARCHITECTURES[self.config.architecture].input
        return InputSpec(self.config.image_px, spec.mean, spec.std)

    def forward(self, clip: Tensor, attention: bool = False) -> VideoTokens:
        """(B, 3, T, S, S) -> patches (B, T / n, h, w, D), and CLS (B, D) of MViT.

        Raises:
            UserError: the clip has another shape or type, or attention maps are asked for.
        """
        if clip.ndim != 5 or clip.shape[1] != 3 or 0 in clip.shape or clip.shape[3] != clip.shape[4]:
            raise UserError(
                f"The clip has shape {tuple(clip.shape)}; {self.config.architecture} takes (B, 3, T, S, S)."
            )
        if not clip.is_floating_point():
            raise UserError(f"The clip holds {clip.dtype}; the backbone takes normalised floats: use to_input.")
        self.config.check(clip.shape[2], clip.shape[3])
        if attention:
            raise UserError(f"{self.config.architecture} has no attention maps. Use attribution, as by occlusion.")
        net, cls = self.net, None
        if isinstance(net, MViT):
            x = net.pos_encoding(net.conv_proj(clip).flatten(2).transpose(1, 2))
            size = (net.pos_encoding.temporal_size, *net.pos_encoding.spatial_size)
            for block in net.blocks:
                x, size = block(x, size)
            x = net.norm(x)
            cls, patches = x[:, 0], rearrange(x[:, 1:], "b (t h w) d -> b t h w d", t=size[0], h=size[1])
        elif isinstance(net, SwinTransformer3d):
            patches = net.norm(net.features(net.pos_drop(net.patch_embed(clip))))
        else:
            maps = net.layer4(net.layer3(net.layer2(net.layer1(net.stem(clip)))))
            patches = rearrange(maps, "b d t h w -> b t h w d")
        return VideoTokens(cls, patches, frames_per_token=self.frames_per_token)


def architecture_of(tensors: Mapping[str, Tensor]) -> str | None:
    """The architecture whose tensors a file of torchvision has, by names and shapes; None if it is of no such model."""
    if not {"conv_proj.weight", "features.0.0.attn.qkv.weight", "stem.0.weight"} & tensors.keys():
        return None
    for name, architecture in ARCHITECTURES.items():
        with torch.device("meta"):
            state = architecture.build().state_dict()
        expected = {key: t.shape for key, t in state.items() if not key.startswith(f"{architecture.classifier}.")}
        if expected == {
            key: t.shape for key, t in tensors.items() if not key.startswith(f"{architecture.classifier}.")
        }:
            return name
    return None

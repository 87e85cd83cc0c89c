"""The contract of an encoder, which turns clips into tokens. Other code uses this contract and never the type.

To write one, derive from `Encoder`: a frozen dataclass of JSON values as its configuration, ``forward`` and ``layers``.
docs/extend.md and tests/model/test_foreign_encoder.py hold whole examples.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

from endofm_lab.brief import Brief, brief_fields, cut
from endofm_lab.errors import CheckpointError, UserError
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import IMAGENET, InputSpec

# Upper bounds for the sizes of an encoder; larger models are refused, whatever a card or an option says.
MOST = {"width": 16384, "depth": 256, "heads": 256, "patch_px": 1024, "image_px": 4096, "frames": 4096, "mlp_ratio": 64}


@dataclass(frozen=True, eq=False, repr=False)
class VideoTokens(Brief):
    """The tokens that an encoder returns, after its final norm. Letters: B clips, T frames, h w patches, D width.

    Attributes:
        cls: ``(B, D)``, the feature of the clip; None if the encoder has no CLS token, see `pooled`.
        patches: ``(B, T, h, w, D)``, or ``(B, T / n, h, w, D)`` with ``n = frames_per_token``.
        spatial: attention within frames, per block ``(B, T, heads, 1 + h*w, 1 + h*w)``; row = query, column = key,
            entry 0 is CLS. None unless asked for, and in the joint model.
        temporal: attention between frames at one patch, per block ``(B, h, w, heads, T, T)``. None unless asked for,
            and in models without temporal attention.
        joint: attention among all tokens of the joint model, per block ``(B, heads, 1 + T*h*w, 1 + T*h*w)``; entry 0
            is CLS, then frame after frame, or moment after moment for tubelets; without CLS there is no such entry.
            None unless asked for, and in the other models.
        skips: maps of a convolutional stem (see hybrid.py), coarsest first, each ``(B*T, C, H, W)`` at 1/8, 1/4, 1/2.
        frames_per_token: token t shows the frames t * n to t * n + n - 1 (a tubelet).
    """

    cls: Tensor | None
    patches: Tensor
    spatial: tuple[Tensor, ...] | None = None
    temporal: tuple[Tensor, ...] | None = None
    joint: tuple[Tensor, ...] | None = None
    skips: tuple[Tensor, ...] | None = None
    frames_per_token: int = 1

    def pooled(self) -> Tensor:
        """The feature of the clip, ``(B, D)``: CLS, or the mean over all patches if there is no CLS."""
        return self.average() if self.cls is None else self.cls

    def average(self) -> Tensor:
        """The mean over all patches, ``(B, D)``."""
        return self.patches.mean(dim=(1, 2, 3))

    def every(self) -> Tensor:
        """All tokens in a row, CLS first if there is one: ``(B, 1 + T h w, D)`` or ``(B, T h w, D)``."""
        patches = self.patches.flatten(1, 3)
        return patches if self.cls is None else torch.cat([self.cls[:, None], patches], dim=1)

    def per_frame(self) -> Tensor:
        """The patches of every frame, ``(B, T, h, w, D)``: a token of several frames stands for each of them."""
        n = self.frames_per_token
        return self.patches if n == 1 else self.patches.repeat_interleave(n, dim=1)


_TENSORS = ("cls", "patches", "spatial", "temporal", "joint", "skips")
register_pytree_node(
    VideoTokens,
    lambda tokens: ([getattr(tokens, name) for name in _TENSORS], tokens.frames_per_token),
    lambda children, n: VideoTokens(**dict(zip(_TENSORS, children, strict=True)), frames_per_token=n),
    serialized_type_name="endofm_lab.VideoTokens",
)


class Encoder(nn.Module, ABC):
    """Turns clips into `VideoTokens`. Heads, tasks, explanations and files use only the following attributes.

    Attributes:
        kind: the encoder's name in a model's card.
        Config: a frozen dataclass with at least ``width``, ``image_px`` and ``patch_px``; its values are JSON values.
            Its ``frames``, if it has that field, is the length of the clips it is made for.
        config: the configuration that this encoder was built with, ``type(self)(config)``.
        has_cls: whether `VideoTokens.cls` is given; otherwise the mean over the patches stands for the clip.
        frames_per_token: 1, or the length of a tubelet; clips then have a multiple of it as their length.
        takes_video: False for image models, to which the frames of a clip are separate pictures.
        has_video_blocks: ``self.blocks`` are those of `VideoTransformer`, of the kind ``config.attention``: norms of
            their steps can be measured and gradients taken at their attention.
        takes_image_weights: it can start from the weights of an image transformer, and take adapters between its
            blocks or a convolutional stem before them: true of the plain `VideoTransformer`.
        state_is_whole: its state dict holds every tensor that it computes with, so that it can be built empty and
            filled from a file.
        skip_channels: channels of `VideoTokens.skips`, coarsest first; None without a convolutional stem.
    """

    kind: ClassVar[str]
    Config: ClassVar[Any]
    has_cls: ClassVar[bool] = True
    takes_video: ClassVar[bool] = True
    has_video_blocks: ClassVar[bool] = False
    takes_image_weights: ClassVar[bool] = False
    state_is_whole: ClassVar[bool] = False
    frames_per_token: int = 1
    skip_channels: tuple[int, ...] | None = None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.parameters())
        words = [cut(brief_fields(self.config), 200), f"{parameters:,} parameters"]
        return f"{type(self).__name__}({'; '.join(filter(None, words))})"

    @abstractmethod
    def forward(self, clip: Tensor, attention: bool = False) -> VideoTokens:
        """Tokens of clips ``(B, 3, T, H, W)``, normalised; with ``attention``, the maps of every block.

        Raises:
            UserError: the clip has a shape that the encoder cannot process.
        """

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The parameters as layers, from the embeddings to the last norm, for layer-wise learning rates."""

    def reset_parameters(self) -> None:
        """Draw every parameter anew, as in a fresh encoder of this configuration."""
        self.load_state_dict(type(self)(self.config).state_dict())

    @property
    def attention_kind(self) -> str | None:
        """The kind of its attention maps: "divided", "space_only" or "joint"; None if the encoder gives no maps."""
        return self.config.attention if self.has_video_blocks else None

    def attention_blocks(self) -> Sequence[nn.Module]:
        """Transformer blocks with a ``norm1`` over tokens, for Grad-CAM; empty if there are none."""
        return list(cast(nn.ModuleList, self.blocks)) if self.has_video_blocks else ()

    def pack(self, packed: Callable[[Any], nn.Module]) -> None:
        """Replace every block by ``packed(block)`` for inference on CPUs, if the encoder supports this (inference)."""

    @property
    def width(self) -> int:
        """D of its tokens."""
        return self.config.width

    @property
    def image_px(self) -> int:
        """Side of the pictures it is made for."""
        return self.config.image_px

    @property
    def patch_px(self) -> int:
        """Pixels from one patch to the next."""
        return self.config.patch_px

    def default_input(self) -> InputSpec:
        """Size and normalisation of its pictures, unless a card says otherwise."""
        return replace(IMAGENET, size_px=self.image_px)

    def default_clip(self) -> ClipSpec:
        """Frames per clip and their spacing, unless a card says otherwise."""
        return ClipSpec(n_frames=getattr(self.config, "frames", 8), stride=2)

    def fitted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of an encoder of this kind, resized for this encoder; by default unchanged."""
        return tensors

    @classmethod
    def resized(cls, config: Any, image_px: int | None, n_frames: int | None) -> Any:
        """A configuration for other pictures and clips; None keeps a size, and ``frames`` need not exist."""
        names, sizes = [field.name for field in fields(config)], {"image_px": image_px, "frames": n_frames}
        return replace(config, **{name: size for name, size in sizes.items() if size is not None and name in names})

    @classmethod
    def describe(cls, config: Any) -> dict[str, Any]:
        """The description of an encoder of this kind in a card; `read_config` reads it back."""
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
        return {"kind": cls.kind, **settings}

    @classmethod
    def read_config(cls, described: dict[str, Any], source: str) -> Any:
        """The configuration that a card describes.

        Raises:
            CheckpointError: a setting is unknown or impossible; the message names it and ``source``.
        """
        settings = {name: value for name, value in described.items() if name != "kind"}
        names = [field.name for field in fields(cls.Config)]
        if unknown := [name for name in settings if name not in names]:
            raise CheckpointError(
                f"{source}: The backbone has the unknown setting {', '.join(unknown)}; known are {', '.join(names)}. "
                "The card may come from a newer version of endofm_lab: update it."
            )
        try:
            return cls.Config(**settings)
        except CheckpointError:
            raise
        except UserError as error:
            raise CheckpointError(f"{source}: {error}") from error
        except (TypeError, ValueError, ArithmeticError) as error:
            raise CheckpointError(f"{source}: A setting of the backbone has the wrong type ({error}).") from error


@contextmanager
def watching(encoder: Encoder) -> Iterator[Callable[[VideoTokens], Tensor]]:
    """Watch the middle block of an encoder while it computes; the result gives the features of the clips, ``(B, D)``.

    The feature is the mean token after the middle one of `Encoder.attention_blocks`, and for encoders without blocks
    the mean over their last patches. In the middle a feature still says how a picture looks; training for a task
    removes that from the last blocks. Other threads may compute with the same encoder meanwhile.
    """
    blocks = encoder.attention_blocks()
    outputs: list[Tensor] = []
    watcher = threading.get_ident()

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if threading.get_ident() == watcher:
            outputs.append(output[0] if isinstance(output, tuple) else output)

    def features(tokens: VideoTokens) -> Tensor:
        if not outputs:
            return tokens.average()
        last = outputs.pop()
        return last.flatten(1, -2).mean(dim=1).reshape(len(tokens.patches), -1, last.shape[-1]).mean(dim=1)

    hook = blocks[len(blocks) // 2].register_forward_hook(keep) if blocks else None
    try:
        yield features
    finally:
        if hook is not None:
            hook.remove()


def check_sizes(config: Any) -> None:
    """Check that the settings of an encoder's configuration that are listed in `MOST` are numbers in their range.

    Raises:
        UserError: a setting is out of range; the message names the setting and its range.
    """
    for name, most in MOST.items():
        value = getattr(config, name)
        if not value > 0:
            raise UserError(f"{name} is {value}; give a number above 0.")
        if value > most or (name != "mlp_ratio" and value != int(value)):
            raise UserError(f"{name} is {value}; give a whole number up to {most}.")
    if getattr(config, "adapter", 0) > MOST["width"]:
        raise UserError(f"adapter is {config.adapter}; give a width up to {MOST['width']}.")

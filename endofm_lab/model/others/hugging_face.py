"""Video encoders of Hugging Face's `transformers`: VideoMAE, V-JEPA 2, TimeSformer and ViViT, by their public classes.

Sources: VideoMAE (arXiv 2203.12602), V-JEPA 2 (2506.09985), TimeSformer (2102.05095), ViViT (2103.15691).
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from endofm_lab.errors import UserError
from endofm_lab.model.encoder import Encoder, VideoTokens
from endofm_lab.model.others.hugging_face_attention import refuse_large, with_maps
from endofm_lab.model.others.hugging_face_config import Family, HuggingFaceConfig, library
from endofm_lab.video.transforms import InputSpec


class HuggingFaceVideo(Encoder):
    """A video model of `transformers` as an encoder; its tokens are the ``last_hidden_state`` of the public class.

    Raises:
        UserError: `transformers` is not installed or refuses a setting.
    """

    kind = "transformers"
    Config = HuggingFaceConfig

    def __init__(self, config: HuggingFaceConfig) -> None:
        super().__init__(config)
        family = config.family
        self.has_cls = family.has_cls  # type: ignore[misc]  # of the family, not of the class
        self.frames_per_token = config.tubelet
        try:
            self.net: Any = getattr(library(), family.classes[1])(config.to_transformers(), **family.options)
        except (ValueError, TypeError, KeyError, RuntimeError, AssertionError, ZeroDivisionError) as error:
            raise UserError(
                f"transformers cannot build {family.words} with {config.settings} ({type(error).__name__}: {error})."
            ) from error
        drop_beside(self.net, family)

    @property
    def attention_kind(self) -> str:
        """Joint attention, for TimeSformer that of its configuration."""
        return "divided" if self.config.settings.get("attention_type") == "divided_space_time" else "joint"

    def layers(self) -> list[nn.Module]:
        """Embeddings, blocks, and the last norm if the model has one."""
        names = [name for name, module in self.net.named_modules() if isinstance(module, nn.ModuleList)]
        parameters = {"embeddings": nn.ParameterList(), "norm": nn.ParameterList()}
        for name, parameter in self.net.named_parameters():
            if not name.startswith(f"{names[0]}."):
                parameters["norm" if "norm" in name else "embeddings"].append(parameter)
        last = [parameters["norm"]] if len(parameters["norm"]) else []
        return [parameters["embeddings"], *self.net.get_submodule(names[0]), *last]

    def default_input(self) -> InputSpec:
        """The normalisation of the published models of the family."""
        spec = self.config.family.input
        return InputSpec(self.config.image_px, spec.mean, spec.std)

    @classmethod
    def resized(cls, config: HuggingFaceConfig, image_px: int | None, n_frames: int | None) -> HuggingFaceConfig:
        """A configuration for other pictures and clips.

        Raises:
            UserError: the family's positions belong to pictures of one size.
        """
        if image_px not in (None, config.image_px) and not config.family.other_px:
            raise UserError(
                f"Pictures have {image_px} px, but the positions of this {config.family.words} are those of pictures "
                f"of {config.image_px} px: leave the size out."
            )
        return super().resized(config, image_px, n_frames)

    def fitted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Stored times and positions for clips of this encoder's length, linearly interpolated over time."""
        config, target = self.config, self.state_dict()
        patches = (config.image_px // config.patch_px) ** 2
        per_moment = {"time_embeddings": 1} | ({"position_embeddings": patches} if config.tubelet > 1 else {})
        fitted = dict(tensors)
        for name, tensor in tensors.items():
            n = per_moment.get(name.rpartition(".")[2])
            if n and name in target and tensor.ndim == 3 and tensor.shape[1] != target[name].shape[1]:
                fitted[name] = _over_time(tensor, n, target[name].shape[1] // n)
        return fitted

    def forward(self, clip: Tensor, attention: bool = False) -> VideoTokens:
        """(B, 3, T, S, S) -> patches (B, T / n, h, w, D), and CLS (B, D) for those families that have one.

        Raises:
            UserError: the clip has another shape or type, or maps that are asked for would not fit into memory.
        """
        config = self.config
        self._check(clip)
        pixels = rearrange(clip.to(next(self.parameters()).dtype), "b c t y x -> b t c y x")
        T, side = clip.shape[2] // config.tubelet, config.image_px // config.patch_px

        def compute() -> Tensor:
            return self.net(pixels, **config.family.call).last_hidden_state

        # TimeSformer has all moments of a patch beside each other, the others all patches of a moment.
        frames_last = config.architecture == "timesformer"
        maps: dict[str, tuple[Tensor, ...]] = {}
        if attention:
            if (kind := self.attention_kind) == "joint":
                numbers = config.settings["num_attention_heads"], config.settings["num_hidden_layers"]
                refuse_large(T * side**2 + self.has_cls, *numbers)
            tokens, maps = with_maps(compute, (T, side, side), kind, self.has_cls, frames_last)
        else:
            tokens = compute()
        cls, patches = (tokens[:, 0], tokens[:, 1:]) if self.has_cls else (None, tokens)
        order = "b (h w t) d -> b t h w d" if frames_last else "b (t h w) d -> b t h w d"
        patches = rearrange(patches, order, t=T, h=side)
        return VideoTokens(cls, patches, frames_per_token=config.tubelet, **maps)  # type: ignore[arg-type]

    def _check(self, clip: Tensor) -> None:
        config, S = self.config, self.config.image_px
        if clip.ndim != 5 or clip.shape[1] != 3 or 0 in clip.shape or clip.shape[3:] != (S, S):
            raise UserError(f"The clip has shape {tuple(clip.shape)}; this encoder takes (B, 3, T, {S}, {S}).")
        if not clip.is_floating_point():
            raise UserError(f"The clip holds {clip.dtype}; the backbone takes normalised floats: use to_input.")
        T, free = clip.shape[2], config.family.other_px
        if T % config.tubelet or not (free or config.frames == T):
            possible = f"a multiple of {config.tubelet}" if free else f"{config.frames}"
            raise UserError(
                f"The clip has {T} frames; this {config.family.words} takes {possible}. To fine-tune it for clips of "
                "another length, give n_frames."
            )


def drop_beside(net: Any, family: Family) -> None:
    """Take the parts that are not the encoder out of a model."""
    for name in family.beside:
        if isinstance(getattr(net, name, None), nn.Module):
            setattr(net, name, None)


def _over_time(embedding: Tensor, n: int, moments: int) -> Tensor:
    """(1, [1 +] T n, D) to T = ``moments``; a first entry that is none of the T n belongs to CLS and stays."""
    n_cls = embedding.shape[1] % n
    grid = rearrange(embedding[:, n_cls:].float(), "1 (t n) d -> n d t", n=n)
    grid = nn.functional.interpolate(grid, size=moments, mode="linear")
    return torch.cat([embedding[:, :n_cls].float(), rearrange(grid, "n d t -> 1 (t n) d")], dim=1)

"""Attribution: how much each patch of a clip contributes to a score.

A score of the model is distributed over the patch grid, with positive values for patches that raise it and negative
values for patches that lower it. Pixels are summed over each patch, because the model sees patches as wholes and pixel
maps of transformers are mostly noise.

Most methods compare the clip with a *baseline*, a clip without information. No picture is neutral, so the choice of the
baseline influences the map:

- ``blur``: the clip, blurred until no finding is visible. It keeps colour and light, so the map shows structure. It is
  the default.
- ``mean``: the clip's mean colour. The map shows everything but flat colour; it misses findings of the mean colour.
- ``black``: the map shows mostly light; it cannot show dark findings (blood, the lumen).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from captum.attr import InputXGradient, IntegratedGradients, Occlusion, ShapleyValueSampling
from torch import Tensor

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.explain.relevance import attention_relevance
from endofm_lab.explain.targets import Target, target_of
from endofm_lab.model.video_model import VideoModel
from endofm_lab.video.transforms import InputSpec

Baseline = Literal["blur", "mean", "black"]


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Brief):
    """A signed map (T, h, w) float32 with its method and its target.

    ``completeness`` is |sum of the map - (score - score of the baseline)| over |score - score of the baseline|, for the
    methods for which it is 0 in theory (integrated gradients, Shapley values), and None for the others.
    """

    values: Tensor
    method: str
    target: str
    completeness: float | None = None

    def __post_init__(self) -> None:
        if not bool(self.values.isfinite().all()):
            raise UserError(
                f"The map of {self.target} by {self.method} holds NaN or infinity, because the model's weights are "
                "damaged or too large. Use another model or another method."
            )


def baseline_of(clip: Tensor, spec: InputSpec, kind: Baseline = "blur") -> Tensor:
    """A baseline for ``clip`` (B, 3, T, H, W), as the docstring of this module describes.

    Raises:
        UserError: the kind of baseline is unknown.
    """
    if kind == "blur":
        B, _, T, H, W = clip.shape
        frames = clip.transpose(1, 2).flatten(0, 1)
        small = F.interpolate(frames, size=(max(H // 32, 2), max(W // 32, 2)), mode="area")
        blurred = F.interpolate(small, size=(H, W), mode="bicubic", align_corners=False)
        return blurred.unflatten(0, (B, T)).transpose(1, 2).contiguous()
    if kind == "mean":
        return clip.mean(dim=(2, 3, 4), keepdim=True).expand_as(clip).contiguous()
    if kind == "black":
        black = torch.tensor([-m / s for m, s in zip(spec.mean, spec.std, strict=True)], dtype=clip.dtype)
        return black.to(clip.device).view(1, 3, 1, 1, 1).expand_as(clip).contiguous()
    raise UserError(f"There is no baseline {kind!r}; choose one of {', '.join(get_args(Baseline))}.")


def integrated_gradients(
    model: VideoModel,
    clip: Tensor,
    target: Target,
    baseline: Baseline = "blur",
    steps: int = 32,
    batch_clips: int = 4,
) -> Attribution:
    """Mean gradient on the line from the baseline, times the difference (Sundararajan et al. 2017, arXiv 1703.01365).

    The map sums to the score minus the baseline's score, except for the error of ``steps`` Gauss-Legendre points, which
    is reported. It needs the memory of ``batch_clips`` clips.
    """
    start = baseline_of(_one(clip), model.card.input, baseline)
    pixels, delta = IntegratedGradients(target.score).attribute(
        clip, start, n_steps=steps, internal_batch_size=batch_clips, return_convergence_delta=True
    )
    with torch.no_grad():
        change = float(target.score(clip) - target.score(start))
    error = abs(float(delta)) / max(abs(change), 1e-12)
    return Attribution(_on_patches(pixels, model), "integrated gradients", target.name, error)


def gradient_x_input(model: VideoModel, clip: Tensor, target: Target) -> Attribution:
    """The gradient times the normalised input: one backward pass, first order only (Shrikumar et al. 2016)."""
    pixels = InputXGradient(target.score).attribute(_one(clip).clone().requires_grad_())
    return Attribution(_on_patches(pixels, model), "gradient x input", target.name)


def grad_cam(model: VideoModel, clip: Tensor, target: Target, block: int = -1) -> Attribution:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) on the tokens at the input of a block's attention.

    Channels are the D values of the tokens, weighted by their mean gradient over all patches and frames; negative sums
    are set to 0, as in the paper. The map is taken before the last attention, because patches cannot reach CLS after.

    Raises:
        UserError: the model has no transformer blocks, or no block of this number.
    """
    blocks = model.backbone.attention_blocks()
    if not blocks:
        raise UserError("Grad-CAM needs the tokens of transformer blocks, but this model has none. Use occlusion.")
    if not -len(blocks) <= block < len(blocks):
        raise UserError(f"There is no block {block}; this model has the blocks 0 to {len(blocks) - 1}.")
    outputs: list[Tensor] = []
    norm = blocks[block].get_submodule("norm1")
    hook = norm.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        score = target.score(_one(clip).clone().requires_grad_())
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(score.sum(), outputs[0])
    n = model.backbone.frames_per_token
    T, h, w = _grid(clip, model)
    T = T // n

    def patches(tokens: Tensor) -> Tensor:
        """(1, T, 1 + N, D), (1, 1, 1 + T N, D) or (T, P + N, D) to (T, h, w, D)."""
        D, frames = tokens.shape[-1], tokens.shape[1] if tokens.ndim == 4 else len(tokens)
        return tokens.reshape(frames, -1, D)[:, -(T * h * w // frames) :].reshape(T, h, w, D)

    weights = patches(gradient).mean(dim=(0, 1, 2))
    values = (patches(outputs[0]) @ weights).clamp(min=0).repeat_interleave(n, dim=0)
    return Attribution(values.detach().float().cpu(), "Grad-CAM", target.name)


def occlusion(
    model: VideoModel,
    clip: Tensor,
    target: Target,
    baseline: Baseline = "blur",
    tube: tuple[int, int] = (4, 2),
    batch_clips: int = 8,
    progress: bool = False,
) -> Attribution:
    """The drop of the score when the baseline covers a tube of ``tube`` = (frames, patches per side).

    Tubes overlap by half; each patch gets the mean drop of the tubes that cover it (Zeiler and Fergus 2014).
    """
    T, h, w = _grid(_one(clip), model)
    frames, side = min(tube[0], T), min(tube[1], h, w)
    if min(frames, side) < 1:
        raise UserError(f"The tube is {tube}; give at least 1 frame and 1 patch.")
    patch = clip.shape[-1] // w
    with torch.no_grad():
        pixels = Occlusion(target.score).attribute(
            clip,
            sliding_window_shapes=(3, frames, side * patch, side * patch),
            strides=(3, max(1, frames // 2), max(1, side // 2) * patch, max(1, side // 2) * patch),
            baselines=baseline_of(clip, model.card.input, baseline),
            perturbations_per_eval=batch_clips,
            show_progress=progress,
        )
    values = F.avg_pool2d(pixels[0].mean(dim=0), patch).float().cpu()  # (T, h, w)
    return Attribution(values, "occlusion", target.name)


def shapley(
    model: VideoModel,
    clip: Tensor,
    target: Target,
    baseline: Baseline = "blur",
    tube: tuple[int, int] = (8, 2),
    samples: int = 8,
    batch_clips: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> Attribution:
    """Shapley values of tubes, from random orders of uncovering (Castro et al. 2009, as in SHAP).

    The values always sum to the difference of the scores. Each of the ``samples`` orders costs one forward pass per
    tube; the value of a tube is distributed evenly over its patches.
    """
    T, h, w = _grid(_one(clip), model)
    frames, side = min(tube[0], T), min(tube[1], h, w)
    t, y, x = torch.meshgrid(torch.arange(T) // frames, torch.arange(h) // side, torch.arange(w) // side, indexing="ij")
    number = (t * h + y) * w + x
    number = torch.unique(number, return_inverse=True)[1]  # 0, 1, 2, ... (T, h, w)
    patch = clip.shape[-1] // w
    pixel_number = number.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[None, None].to(clip.device)
    start = baseline_of(clip, model.card.input, baseline)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        pixels = ShapleyValueSampling(target.score).attribute(
            clip,
            start,
            feature_mask=pixel_number,
            n_samples=samples,
            perturbations_per_eval=batch_clips,
            show_progress=progress,
        )
        change = float(target.score(clip) - target.score(start))
    share = pixels[0, 0, :, ::patch, ::patch].float().cpu()  # each patch carries its tube's value
    values = share / torch.bincount(number.flatten())[number]
    error = abs(float(values.sum()) - change) / max(abs(change), 1e-12)
    return Attribution(values, "Shapley values", target.name, error)


def relevance(model: VideoModel, clip: Tensor, target: Target) -> Attribution:
    """Attention relevance as an attribution; `attention_relevance` also returns the relevance between frames."""
    values = attention_relevance(model, _one(clip), target).values
    return Attribution(values, "attention relevance", target.name)


Method = Callable[[VideoModel, Tensor, Target], Attribution]
# Sorted by how often the demo model's map points at the finding (docs/results.md), the best method first.
METHODS: dict[str, Method] = {
    "attention relevance": relevance,
    "gradient x input": gradient_x_input,
    "integrated gradients": integrated_gradients,
    "occlusion": occlusion,
    "Shapley values": shapley,
    "Grad-CAM": grad_cam,
}


def attribute(
    model: VideoModel, clip: Tensor, head: str, label: str, method: str = "integrated gradients"
) -> Attribution:
    """The contribution of each patch of a clip (1, 3, T, H, W) to a head's score of a class, by a method of `METHODS`.

    Raises:
        UserError: the head, class or method does not exist, or the method does not work with this model.
    """
    if method not in METHODS:
        raise UserError(f"There is no attribution method {method!r}; choose one of {', '.join(METHODS)}.")
    return METHODS[method](model, clip, target_of(model, head, label))


def methods_for(model: VideoModel, head: str) -> list[str]:
    """The names in `METHODS` of the methods that can explain this head of a model; the others raise a `UserError`."""
    backbone = model.backbone
    refused = set() if backbone.attention_blocks() else {"Grad-CAM"}
    if not backbone.has_video_blocks or model.card.heads[head].answer != "clip":
        refused.add("attention relevance")
    return [name for name in METHODS if name not in refused]


def _one(clip: Tensor) -> Tensor:
    if clip.ndim != 5 or len(clip) != 1:
        raise UserError(f"The clip has shape {tuple(clip.shape)}; give one clip at a time, (1, 3, T, H, W).")
    return clip


def _grid(clip: Tensor, model: VideoModel) -> tuple[int, int, int]:
    """T, h and w."""
    patch = model.backbone.patch_px
    return clip.shape[2], clip.shape[3] // patch, clip.shape[4] // patch


def _on_patches(pixels: Tensor, model: VideoModel) -> Tensor:
    """(1, 3, T, H, W) summed over colours and each patch: (T, h, w)."""
    patch = model.backbone.patch_px
    return F.avg_pool2d(pixels.detach()[0].sum(dim=0), patch).float().cpu() * patch**2

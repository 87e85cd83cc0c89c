"""The released CVC-12k segmenter and KUMC detector: their tensors under the names of this library, and their input.

Sources: Endo-FM (arXiv 2306.16741), paper and released settings.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from endofm_lab.errors import CheckpointError
from endofm_lab.model.card import HeadSpec, ModelCard, collapse
from endofm_lab.model.loading.formats import LAYOUTS, Checkpoint, config_of, sizes_of
from endofm_lab.model.paper.hybrid import STEM_STRIDE, HybridConfig, HybridTransformer
from endofm_lab.model.transformer import VideoTransformer
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import InputSpec

# Every frame stretched to its own range, then mean 0.5 and deviation 0.5; whole sequences, here in pieces of 8 frames.
CVC12K_INPUT, CVC12K_CLIP = InputSpec(own_range=True), ClipSpec(n_frames=8, stride=1)
# Pixel values 0..255 less a mean, not divided. Trained and used in blue, green, red; the kernels of the patch embedding
# are reversed instead of the pictures. Ten supports within nine frames of the target; here every second frame.
KUMC_MEAN_BGR = (102.9801, 115.9465, 122.7717)
KUMC_INPUT = InputSpec(640, tuple(value / 255 for value in reversed(KUMC_MEAN_BGR)), (1 / 255,) * 3)  # type: ignore[arg-type]
KUMC_CLIP = ClipSpec(n_frames=11, stride=2)
KUMC_CLASSES = ("adenomatous", "hyperplastic")

Renames = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
SEGMENTER_NAMES: Renames = (
    (r"^transformer\.embeddings\.hybrid_model\.", "backbone.stem."),
    (r"\.stem\.root\.conv", ".stem.conv"),
    (r"\.stem\.root\.gn", ".stem.norm"),
    (r"\.stem\.body\.block(\d)\.unit(\d)", lambda m: f".stem.stages.{int(m[1]) - 1}.{int(m[2]) - 1}"),
    (r"\.downsample\.", ".shortcut.0."),
    (r"\.gn_proj\.", ".shortcut.1."),
    (r"^transformer\.embeddings\.patch_embeddings\.", "backbone.project."),
    (r"^transformer\.embeddings\.position_embeddings$", "backbone.pos_embed"),
    (r"^transformer\.encoder\.layer\.", "backbone.blocks."),
    (r"^transformer\.encoder\.encoder_norm\.", "backbone.norm."),
    (r"^transformer\.encoder\.cls_token$", "backbone.cls_token"),
    (r"^decoder\.conv_more\.", "heads.mask.decoder.enter."),
    (r"^decoder\.blocks\.(\d)\.conv(\d)\.", lambda m: f"heads.mask.decoder.steps.{m[1]}.{int(m[2]) - 1}."),
    (r"^segmentation_head\.0\.", "heads.mask.out."),
)
DETECTOR_NAMES: Renames = (
    (r"^backbone\.body\.fpn2\.0\.", "heads.box.pyramid.upsample."),
    (r"^backbone\.body\.", "backbone."),
    (r"^backbone\.fpn\.fpn_inner(\d)\.", lambda m: f"heads.box.pyramid.lateral.{int(m[1]) - 2}."),
    (r"^backbone\.fpn\.fpn_layer(\d)\.", lambda m: f"heads.box.pyramid.smooth.{int(m[1]) - 2}."),
    (r"^backbone\.fpn\.top_blocks\.", "heads.box.pyramid."),
    (r"^rpn\.head\.dcn_(cls|bbox)_subnet\.conv_offset\.", r"heads.box.layers.\1_align.offset."),
    (r"^rpn\.head\.dcn_(cls|bbox)_subnet\.conv_adaption\.", r"heads.box.layers.\1_align.conv."),
    (r"^rpn\.head\.dcn_cls_score\.", "heads.box.layers.stft_cls."),
    (r"^rpn\.head\.dcn_bbox_pred\.", "heads.box.layers.stft_bbox."),
    (r"^rpn\.head\.scales\.(\d)\.scale$", r"heads.box.layers.scales.\1"),
    (r"^rpn\.head\.", "heads.box.layers."),
)
DETECTOR_UNUSED = "backbone.body.fpn1."  # in the file, never called: an upsampling to stride 4


RENAMES = {"segmenter": SEGMENTER_NAMES, "detector": DETECTOR_NAMES}  # layouts that are read here


def parts_of(checkpoint: Checkpoint, source: str) -> tuple[ModelCard, dict[str, Tensor]]:
    """The card of a released task model, and every tensor under the name that `VideoModel` has for it.

    ``source`` is shown to the reader: a file name or hub id, not a local path.

    Raises:
        CheckpointError: a tensor is missing from which the model's sizes follow.
    """
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(DETECTOR_UNUSED)}
    words = f"All {len(tensors)} tensors come from {source} ({LAYOUTS[checkpoint.layout]})"
    if checkpoint.layout == "segmenter":
        config, spec, clip = _hybrid_config(checkpoint), CVC12K_INPUT, CVC12K_CLIP
        n_classes = len(_tensor(checkpoint, "segmentation_head.0.bias")) - 1
        classes = ("polyp",) if n_classes == 1 else tuple(f"class {k + 1}" for k in range(n_classes))
        heads = {"mask": HeadSpec("mask", classes, form="transunet")}
        backbone = HybridTransformer.describe(config)
        spec = InputSpec(config.image_px, spec.mean, spec.std, own_range=True)
        tensors = renamed(tensors, SEGMENTER_NAMES)
    else:
        spec, clip = KUMC_INPUT, KUMC_CLIP
        n_classes = len(_tensor(checkpoint, "rpn.head.cls_logits.bias"))
        classes = KUMC_CLASSES if n_classes == 2 else tuple(f"class {k}" for k in range(n_classes))
        channels = _tensor(checkpoint, "rpn.head.centerness.weight").shape[1]
        heads = {"box": HeadSpec("box", classes, form="stft", channels=channels)}
        backbone = VideoTransformer.describe(config_of(checkpoint)) | {"frames_alone": True}
        tensors = renamed(tensors, DETECTOR_NAMES)
        kernels = "backbone.patch_embed.proj.weight"
        tensors[kernels] = tensors[kernels].flip(1)
        words += "; its patch kernels were reordered from blue, green, red to red, green, blue"
    card = ModelCard(
        name=checkpoint.path.stem,
        backbone=backbone,
        input=spec,
        clip=clip,
        heads=heads,
        initialisation={
            "words": f"{words}.",
            "source": source,
            "sha256": checkpoint.sha256,
            "layout": checkpoint.layout,
            "network": checkpoint.network,
            "taken": collapse(tensors),
        },
        data={"description": f"{LAYOUTS[checkpoint.layout]}; the file does not say on which split."},
        weights_sha256=checkpoint.sha256,
    )
    return card, tensors


def _hybrid_config(checkpoint: Checkpoint) -> HybridConfig:
    sizes = sizes_of(checkpoint)
    places = _tensor(checkpoint, "transformer.embeddings.position_embeddings").shape[1]
    prefix = "transformer.embeddings.hybrid_model."
    stem_width = _tensor(checkpoint, f"{prefix}root.conv.weight").shape[0]
    units = [
        len({name.split(".")[5] for name in checkpoint.tensors if name.startswith(f"{prefix}body.block{stage}.")})
        for stage in (1, 2, 3)
    ]
    missing = [size for size in ("width", "depth", "heads", "mlp_ratio") if size not in sizes]
    if missing or 0 in units:
        raise CheckpointError(
            f"{checkpoint.path}: {', '.join(missing) or 'a stage of the stem'} cannot be told from its tensors, so it "
            "is no whole segmenter; start a video transformer from its blocks: initialise(build_backbone(...), path)."
        )
    return HybridConfig(
        width=sizes["width"],
        depth=sizes["depth"],
        heads=sizes["heads"],
        mlp_ratio=sizes["mlp_ratio"],
        attention=sizes["attention"],
        image_px=math.isqrt(places) * STEM_STRIDE,
        stem_width=stem_width,
        stem_units=(units[0], units[1], units[2]),
    )


def _tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    if name not in checkpoint.tensors:
        raise CheckpointError(
            f"{checkpoint.path} has no tensor {name}, so it is not a whole {checkpoint.layout}; start a video "
            "transformer from its blocks: initialise(build_backbone(...), path)."
        )
    return checkpoint.tensors[name]


def renamed(state: dict[str, Any], renames: Renames) -> dict[str, Any]:
    """``state`` under this project's names: every pattern of ``SEGMENTER_NAMES`` or ``DETECTOR_NAMES`` in turn."""
    result = {}
    for name, value in state.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        result[name] = value
    return result

"""Facts about released weights that are not in their tensors: normalisation, clips, heads.

Sources: Endo-FM (arXiv 2306.16741) and TimeSformer (2102.05095), papers and released settings.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from endofm_lab.model.card import HeadSpec, InitialisationRecord, ModelCard
from endofm_lab.model.loading.formats import LAYOUTS, Checkpoint, config_of
from endofm_lab.model.transformer import BackboneConfig, VideoTransformer
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import IMAGENET, TIMESFORMER, InputSpec


@dataclass(frozen=True)
class Known:
    """Facts about a layout.

    Attributes:
        normalisation: in words.
        input: the same as numbers; None for images, which are no models of clips, and for the models of downstream.py.
        clip: the clips it was trained on.
        head: name of its linear head here, and the prefix of the head's tensors in the file.
        classes: of that head, where the data set fixes them; else they are numbered, as the file does not name them.
    """

    normalisation: str
    input: InputSpec | None = None
    clip: ClipSpec | None = None
    head: tuple[str, str] | None = None
    classes: tuple[str, ...] = ()


_ENDO_FM_CLIP = ClipSpec(n_frames=8, duration_s=5.0)  # a global view: 8 frames over almost all of a 5 s clip
_IMAGE = Known("not recorded; DINO, DINOv2 and MAE use ImageNet's mean and std, many of timm's own ViTs 0.5 and 0.5")

_EIGHT_BY_32 = ClipSpec(n_frames=8, stride=32)

NETWORKS = {
    "video-training": Known("ImageNet mean and std, as in the pre-training views", IMAGENET, _ENDO_FM_CLIP),
    "video": Known("not recorded; ImageNet mean and std are assumed, as for Endo-FM", IMAGENET, _ENDO_FM_CLIP),
    "timesformer": Known("mean 0.45, std 0.225", TIMESFORMER, _EIGHT_BY_32, ("action", "head.")),
    "polypdiag": Known(
        "mean 0.45, std 0.225", TIMESFORMER, _EIGHT_BY_32, ("polypdiag", "linear."), ("normal", "abnormal")
    ),
    "segmenter": Known("each image scaled from its minimum and maximum to 0..1, then mean 0.5, std 0.5"),
    "detector": Known("BGR in 0..255 minus 102.9801, 115.9465, 122.7717, not divided"),
    "image-training": _IMAGE,
    "image": _IMAGE,
}


def card_of(checkpoint: Checkpoint, initialisation: InitialisationRecord) -> ModelCard:
    """The card of released weights with a video transformer."""
    config, network = config_of(checkpoint), NETWORKS[checkpoint.layout]
    assert network.input is not None and network.clip is not None
    heads = {}
    if network.head is not None and f"{network.head[1]}weight" in checkpoint.rest:
        n_classes = checkpoint.rest[f"{network.head[1]}weight"].shape[0]
        names = network.classes if len(network.classes) == n_classes else tuple(f"class {k}" for k in range(n_classes))
        heads[network.head[0]] = HeadSpec("multiclass", names)
    return ModelCard(
        name=checkpoint.path.stem,
        backbone=VideoTransformer.describe(config),
        input=replace(network.input, size_px=config.image_px),
        clip=replace(network.clip, n_frames=config.frames),
        heads=heads,
        initialisation=initialisation,
        data={"description": f"{LAYOUTS[checkpoint.layout]}; the file does not say on which data."},
        weights_sha256=checkpoint.sha256,
    )


def image_card_of(checkpoint: Checkpoint, config: BackboneConfig, initialisation: InitialisationRecord) -> ModelCard:
    """The card of image weights as an encoder of single frames; ImageNet's mean and std are assumed."""
    return ModelCard(
        name=checkpoint.path.stem,
        backbone=VideoTransformer.describe(config),
        input=replace(IMAGENET, size_px=config.image_px),
        clip=ClipSpec(n_frames=1, stride=1),
        heads={},
        initialisation=initialisation,
        data={
            "description": f"{LAYOUTS[checkpoint.layout]}; the file does not say on which data, nor how its pictures "
            "were normalised, so ImageNet's mean and std are assumed."
        },
        weights_sha256=checkpoint.sha256,
    )


def head_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Tensors of the linear head by their names in `VideoModel.heads`; empty if the layout has none."""
    network = NETWORKS[checkpoint.layout]
    if network.head is None:
        return {}
    name, prefix = network.head
    return {
        f"{name}.linear.{key.removeprefix(prefix)}": tensor
        for key, tensor in checkpoint.rest.items()
        if key.startswith(prefix)
    }

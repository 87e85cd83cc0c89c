"""The configuration of video models of `transformers`: which settings fix an encoder, checked, and nothing else.

Some settings of `transformers` name code or files to fetch; those are never passed on.
"""

from dataclasses import dataclass, field
from typing import Any

from endofm_lab.errors import UserError
from endofm_lab.model.encoder import MOST
from endofm_lab.video.transforms import HALF, IMAGENET, TIMESFORMER, InputSpec

_OLD_NAMES = ("qkv_bias",)  # of a setting in older files, which its class still reads
MOST_TOKENS = 32_768  # of a clip: 64 frames of 384 px in V-JEPA 2 are 18,432
_SHARED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
)


@dataclass(frozen=True)
class Family:
    """What differs between the families.

    Attributes:
        words: name for readers.
        classes: names of the configuration and the model in `transformers`.
        settings: the settings of the configuration that fix the encoder; no others are passed on, since some of them
            name code to fetch.
        prefix: before the names of the encoder's tensors in a file that also has a head.
        beside: parts of the model class that are not the encoder.
        input: normalisation, unless a file beside the weights says otherwise.
        image, frames: the settings that hold the side of the pictures and the length of clips.
        patch: the setting that holds the side of a patch, and the entries of it that are height and width.
        other_px: whether pictures of another size than the configured one are possible, as positions are computed.
        options: arguments of the model class.
        call: arguments of the model's call.
        fixed: settings of the parts that are dropped, as small as possible.
    """

    words: str
    classes: tuple[str, str]
    settings: tuple[str, ...]
    prefix: str
    input: InputSpec
    beside: tuple[str, ...] = ()
    image: str = "image_size"
    frames: str = "num_frames"
    patch: str = "patch_size"
    has_cls: bool = True
    other_px: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "videomae": Family(
        words="VideoMAE",
        classes=("VideoMAEConfig", "VideoMAEModel"),
        settings=(*_SHARED, "patch_size", "tubelet_size", "qv_bias", "use_mean_pooling"),
        prefix="videomae.",
        input=IMAGENET,
        has_cls=False,
    ),
    "vjepa2": Family(
        words="V-JEPA 2",
        classes=("VJEPA2Config", "VJEPA2Model"),
        settings=(
            *(name for name in _SHARED if name not in ("intermediate_size", "hidden_dropout_prob")),
            *("patch_size", "tubelet_size", "qkv_bias", "mlp_ratio", "drop_path_rate"),
        ),
        prefix="vjepa2.",
        beside=("predictor",),
        input=IMAGENET,
        image="crop_size",
        frames="frames_per_clip",
        has_cls=False,
        other_px=True,
        call={"skip_predictor": True},
        fixed={"pred_hidden_size": 12, "pred_num_attention_heads": 1, "pred_num_hidden_layers": 1},
    ),
    "timesformer": Family(
        words="TimeSformer",
        classes=("TimesformerConfig", "TimesformerModel"),
        settings=(*_SHARED, "patch_size", "qkv_bias", "attention_type", "drop_path_rate"),
        prefix="timesformer.",
        input=TIMESFORMER,
    ),
    "vivit": Family(
        words="ViViT",
        classes=("VivitConfig", "VivitModel"),
        settings=(*_SHARED, "tubelet_size", "qkv_bias"),
        prefix="vivit.",
        beside=("pooler",),
        input=HALF,
        patch="tubelet_size",
        options={"add_pooling_layer": False},
    ),
}


@dataclass(frozen=True)
class HuggingFaceConfig:
    """The configuration of a `HuggingFaceVideo`.

    Attributes:
        architecture: a key of `FAMILIES`, as ``model_type`` in a ``config.json``.
        image_px: side of the pictures.
        frames: frames per clip.
        settings: the settings that fix the encoder, by their names in `transformers`; `configured` fills them in.

    Raises:
        UserError: the architecture is unknown, or a setting is unknown, missing or out of range.
    """

    architecture: str
    image_px: int
    frames: int
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        if self.architecture not in FAMILIES:
            raise UserError(
                f"The architecture is {self.architecture!r}; of the video models in transformers, this version knows "
                f"{', '.join(FAMILIES)}."
            )
        settings = {name: list(v) if isinstance(v, tuple) else v for name, v in self.settings.items()}
        object.__setattr__(self, "settings", settings)
        if unknown := [name for name in settings if name not in self.family.settings]:
            raise UserError(f"{self.family.words} has no setting {', '.join(unknown)} that the encoder depends on.")
        needed = {"hidden_size", "num_hidden_layers", self.family.patch} | ({"tubelet_size"} & {*self.family.settings})
        if missing := sorted(needed - settings.keys()):
            raise UserError(f"{self.family.words} needs the setting {', '.join(missing)}.")
        for name, value in {"image_px": self.image_px, "frames": self.frames, **settings}.items():
            _check(f"{self.family.words}: {name}", value)
        self._check_grid()

    def _check_grid(self) -> None:
        words, patch = self.family.words, self.settings[self.family.patch]
        if isinstance(patch, list) and len({*patch[-2:]}) > 1:
            raise UserError(f"{words} has patches of {patch} px; only square patches can be read.")
        if self.image_px % self.patch_px or self.frames % self.tubelet:
            raise UserError(
                f"{words} has clips of {self.frames} frames of {self.image_px} px, but tokens of {self.tubelet} frames "
                f"and {self.patch_px} px; give multiples of them."
            )
        tokens = (self.frames // self.tubelet) * (self.image_px // self.patch_px) ** 2
        if tokens > MOST_TOKENS:
            raise UserError(f"{words} would have {tokens:,} tokens in a clip; give fewer frames, or smaller pictures.")
        if self.settings["num_hidden_layers"] > MOST["depth"]:
            raise UserError(f"{words} would have more than {MOST['depth']} blocks; this is no model of that kind.")
        if self.settings.get("attention_type") == "space_only":
            raise UserError(
                f"{words} with attention in space only returns no tokens of single frames; start from its blocks as "
                "image weights, or from a model with divided or joint attention."
            )

    @property
    def family(self) -> Family:
        """The family of the architecture."""
        return FAMILIES[self.architecture]

    @property
    def width(self) -> int:
        """D of its tokens."""
        return self.settings["hidden_size"]

    @property
    def patch_px(self) -> int:
        """Side of a patch."""
        patch = self.settings[self.family.patch]
        return patch[-1] if isinstance(patch, list) else patch

    @property
    def tubelet(self) -> int:
        """Frames of a token."""
        size = self.settings.get("tubelet_size", 1)
        return size[0] if isinstance(size, list) else size

    def to_transformers(self) -> Any:
        """The configuration as an object of `transformers`.

        Raises:
            UserError: `transformers` is not installed or refuses a setting.
        """
        family = self.family
        values = {**family.fixed, **self.settings, family.image: self.image_px, family.frames: self.frames}
        try:
            return getattr(library(), family.classes[0])(**values)
        except UserError:
            raise
        except Exception as error:  # the classes check their settings in many ways
            raise UserError(f"transformers cannot build {family.words} with {self.settings} ({error}).") from error


def configured(architecture: str, values: dict[str, Any]) -> HuggingFaceConfig:
    """The configuration of an architecture, from settings by their names in `transformers`; its defaults for others.

    Settings on which the encoder does not depend are left out.

    Raises:
        UserError: as `HuggingFaceConfig`; or `transformers` is not installed or refuses a setting.
    """
    if architecture not in FAMILIES:
        raise UserError(
            f"The architecture is {architecture!r}; of the video models in transformers, this version knows "
            f"{', '.join(FAMILIES)}."
        )
    family = FAMILIES[architecture]
    chosen = {
        name: values[name] for name in (*family.settings, *_OLD_NAMES, family.image, family.frames) if name in values
    }
    for name, value in chosen.items():
        _check(f"{family.words}: {name}", value)
    try:
        full = getattr(library(), family.classes[0])(**chosen)
    except UserError:
        raise
    except Exception as error:  # the classes check their settings in many ways
        raise UserError(f"transformers refuses the settings {chosen} of {family.words} ({error}).") from error
    settings = {name: getattr(full, name) for name in family.settings if hasattr(full, name)}
    sides = getattr(full, family.image)
    sides = [sides] if isinstance(sides, int) else [*sides]
    if len({*sides}) > 1:
        raise UserError(f"{family.words} has pictures of {sides} px; only square pictures can be read.")
    return HuggingFaceConfig(architecture, sides[0], getattr(full, family.frames), settings)


def library() -> Any:
    """The package `transformers`, imported when it is first needed.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "Video encoders of Hugging Face need the package transformers: pip install 'endofm-lab[encoders]'."
        ) from error
    return transformers


def _check(name: str, value: Any) -> None:
    """Check that a setting is a truth value, a short word, or one or up to three numbers in the usual range."""
    numbers = value if isinstance(value, list) else [value]
    if isinstance(value, bool) or (isinstance(value, str) and value.isidentifier() and len(value) < 40):
        return
    if not 1 <= len(numbers) <= 3 or not all(
        isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n <= MOST["width"] for n in numbers
    ):
        raise UserError(f"{name} is {value!r}; give a number up to {MOST['width']}.")
    if not name.endswith(("prob", "rate", "eps", "range", "ratio")) and not all(
        isinstance(n, int) and n >= 1 for n in numbers
    ):
        raise UserError(f"{name} is {value!r}; give a whole number above 0.")

"""The card that accompanies weights: the model's architecture, its input, and the origin of its numbers."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NotRequired, TypedDict, get_type_hints

from endofm_lab import __version__
from endofm_lab.brief import Brief
from endofm_lab.errors import CheckpointError, UserError, shortened
from endofm_lab.files import fits, read_json
from endofm_lab.model.head import Answer, Head
from endofm_lab.model.heads import HEADS
from endofm_lab.outside import class_named, name_of
from endofm_lab.video.clips import ClipSpec
from endofm_lab.video.transforms import InputSpec

RESEARCH_USE = "For research and teaching only. Not a medical device; not for diagnosis."

WEIGHTS_FILE = "model.safetensors"  # the two files of a model folder
CARD_FILE = "card.json"
MOST_CLASSES = 100_000  # of a head
_IN_BLOCK = re.compile(r"(.*?\b(?:blocks|layers?)\.)(\d+)(\..*)")  # a tensor's name: before, number, behind


@dataclass(frozen=True, repr=False)
class HeadSpec(Brief):
    """The specification of a head.

    Attributes:
        kind: of answer: "multiclass", "multilabel", "mask", "box", or what else `model.heads.HEADS` lists.
        classes: in the order of its outputs.
        temperature: divides logits of class heads.
        pooling: of class heads: None reads CLS, "attention" all tokens by a learned query.
        form: of mask and box heads: None is the light one, "transunet" and "stft" are those of the paper.
        channels: of the "stft" head's pyramid and towers; None: 256, as in the paper.
        by: the class of a head from outside the library, which answers in place of one in `model.heads.HEADS`; as its
            importable name until the model is built. ``kind`` may then be a word of its own.
    """

    kind: str
    classes: tuple[str, ...]
    temperature: float | None = None
    pooling: str | None = None
    form: str | None = None
    channels: int | None = None
    by: str | type[Head] | None = None

    def __post_init__(self) -> None:
        kinds = list(dict.fromkeys(kind for kind, _ in HEADS))
        if self.kind not in kinds and self.by is None:
            raise CheckpointError(f"A head's kind is {self.kind!r}; it must be one of {', '.join(kinds)}.")
        if isinstance(self.classes, str) or not all(isinstance(name, str) and name for name in self.classes):
            raise CheckpointError(f"A head has the classes {self.classes!r}; give a list of names.")
        object.__setattr__(self, "classes", tuple(self.classes))
        if not 1 <= len(self.classes) <= MOST_CLASSES or len(set(self.classes)) != len(self.classes):
            raise CheckpointError(
                f"A head has {len(self.classes)} classes, {list(self.classes)}; give from one to {MOST_CLASSES:,}, all "
                "different."
            )
        variants = [] if self.by else [variant for kind, variant in HEADS if kind == self.kind and variant]
        if self.variant not in (None, *variants) or (self.pooling and self.form):
            raise CheckpointError(
                f"A {self.kind} head has pooling {self.pooling!r} and form {self.form!r}; one of them may be "
                f"{' or '.join(map(repr, variants)) or 'nothing but None'}."
            )
        if isinstance(self.by, type) and name_of(self.by) is None:
            raise CheckpointError(f"{self.by.__name__} is a head of the library: choose it by kind, pooling and form.")
        options = frozenset({"temperature"}) if isinstance(self.by, str) else self.head_class.options
        if self.channels is not None and (
            "channels" not in options or not 8 <= self.channels <= 4096 or self.channels % 8
        ):
            raise CheckpointError(f"A head has {self.channels} channels; 'stft' heads have 8 to 4096 in steps of 8.")
        if self.temperature is not None and not (1e-4 <= self.temperature <= 1e4 and "temperature" in options):
            raise CheckpointError(
                f"A {self.kind} head has temperature {self.temperature}; it must lie between 0.0001 and 10000 and "
                "belong to a class head."
            )

    @property
    def variant(self) -> str | None:
        """Which head of its kind: the second key of `model.heads.HEADS`."""
        return self.pooling or self.form

    @property
    def answer(self) -> Answer:
        """Scores of whole clips, maps of frames, or boxes; see `model.head.Head`."""
        return self.head_class.answer

    @property
    def head_class(self) -> type[Head]:
        """The class that answers.

        Raises:
            CheckpointError: it is from outside the library and not imported yet, see `resolved`.
        """
        if isinstance(self.by, str):
            return self.resolved("The card").head_class
        return self.by or HEADS[self.kind, self.variant]

    def resolved(self, source: str) -> "HeadSpec":
        """The same specification with the class in place of its name.

        Raises:
            CheckpointError: the class is not allowed (see `endofm_lab.outside`), or is no `Head`.
        """
        if not isinstance(self.by, str):
            return self
        return replace(self, by=class_named(self.by, Head, source, CheckpointError))

    def to_json(self) -> dict[str, Any]:
        """The specification as plain JSON values, without those that are None."""
        value = {**asdict(self), "classes": list(self.classes)}
        value["by"] = name_of(self.by) if isinstance(self.by, type) else self.by
        return {name: item for name, item in value.items() if item is not None}


class Resized(TypedDict):
    """One tensor that was brought to another size on its way into the model."""

    key: str
    before: list[int]
    after: list[int]
    how: str


class InitialisationRecord(TypedDict):
    """The origin of a model's weights before its training: ``words`` for readers, the rest for programs.

    Lists of tensors are shortened over blocks: ``blocks.0-11.norm1.weight`` stands for twelve.
    """

    words: str
    source: NotRequired[str]  # file name or hub id, never a local path
    sha256: NotRequired[str]
    layout: NotRequired[str]  # which layout the file had, see layouts.py
    network: NotRequired[str]  # teacher, student or model
    taken: NotRequired[list[str]]  # tensors of the backbone that come from the file
    new: NotRequired[list[str]]  # tensors of the backbone that stayed as they were built
    resized: NotRequired[list[Resized]]  # those of `taken` that changed size
    folded: NotRequired[list[str]]  # tensors of the file that were multiplied into others (LayerScale)
    not_taken: NotRequired[list[str]]  # tensors of the file that were not used


class DataRecord(TypedDict, total=False):
    """The data a model was trained on."""

    description: str
    fingerprint: str  # SHA-256 of the manifest's content
    generated: bool  # True: phantom; False: real video
    split: str  # how patients were divided
    licence: str  # of the data
    recipe: str  # model recipe and data recipe with their versions


class Metric(TypedDict):
    """One measured number, with what is needed to measure it again."""

    name: str
    value: float
    interval: NotRequired[list[float]]  # 95 %, by patient-level bootstrap
    data: NotRequired[str]
    split: NotRequired[str]
    seed: NotRequired[int]
    command: NotRequired[str]


HANDED_OVER: InitialisationRecord = {"words": "As it was handed over in memory; where from is not known."}
SCRATCH: InitialisationRecord = {"words": "Random: every tensor as it was built, nothing was read from a file."}


@dataclass(frozen=True, repr=False)
class ModelCard(Brief):
    """All facts about a model that are not in its tensors. `to_json` and `from_json` are exact inverses.

    Attributes:
        name: name of the model in figures and reports.
        backbone: ``kind`` ("video_transformer") and the fields of its configuration.
        input: size in pixels, mean and standard deviation its frames were normalised with.
        clip: frames per clip and their spacing in training.
        heads: name -> specification of the head.
        initialisation: the true start of its weights, before training.
        data: what it was trained on; empty if it was not trained here.
        audit: the verdict of the leakage audit on that data.
        metrics: measured numbers.
        licence: of the weights, with the research-use notice.
        version: of this library, when the card was made.
        weights_sha256: of the weights file; None for a model that was never saved.
        intended_use: what the model is for; None if nobody has said it.
        limits: what the model cannot do, a sentence each.
        familiarity_sha256: of the file with the statistics of its training features (`endofm_lab.familiarity`); None
            for a model without them.
    """

    name: str
    backbone: dict[str, Any]
    input: InputSpec
    clip: ClipSpec
    heads: dict[str, HeadSpec] = field(default_factory=dict)
    initialisation: InitialisationRecord = field(default_factory=lambda: SCRATCH.copy())
    data: DataRecord = field(default_factory=DataRecord)
    audit: str | None = None
    metrics: tuple[Metric, ...] = ()
    licence: str = RESEARCH_USE
    version: str = __version__
    weights_sha256: str | None = None
    intended_use: str | None = None
    limits: tuple[str, ...] = ()
    familiarity_sha256: str | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the card, and so of its weights once they were saved or read from a file."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        value = asdict(self)
        value["input"] |= {"mean": list(self.input.mean), "std": list(self.input.std)}
        clip = {key: item for key, item in asdict(self.clip).items() if item is not None}
        value["clip"] = {key: str(item) if isinstance(item, Fraction) else item for key, item in clip.items()}
        value["heads"] = {name: head.to_json() for name, head in self.heads.items()}
        value["metrics"], value["limits"] = list(self.metrics), list(self.limits)
        return {name: item for name, item in value.items() if name not in _OPTIONAL or item}

    @classmethod
    def from_json(cls, value: Any, source: str = "card.json") -> "ModelCard":
        """The card written by `to_json`.

        Raises:
            CheckpointError: a key is unknown, missing or of the wrong form; the message names it and ``source``.
        """
        value = dict(_checked(value, *_keys(cls), source))
        if not isinstance(value["backbone"], dict) or not isinstance(value["backbone"].get("kind"), str):
            raise CheckpointError(f"{source}: The backbone must be an object with a 'kind', not {value['backbone']!r}.")
        input_ = _checked(value["input"], _keys(InputSpec)[0], ["size_px", "mean", "std"], f"{source}: input")
        clip = dict(_checked(value["clip"], *_keys(ClipSpec), f"{source}: clip"))
        heads = _checked(value.get("heads", {}), None, [], f"{source}: heads")
        _checked(value.get("initialisation", SCRATCH), *_typed(InitialisationRecord), f"{source}: initialisation")
        _checked(value.get("data", {}), *_typed(DataRecord), f"{source}: data")
        _refuse_types(value, _TYPES, source)
        if (digest := value.get("familiarity_sha256")) is not None and not re.fullmatch("[0-9a-f]{64}", digest):
            raise CheckpointError(
                f"{source}: familiarity_sha256 is {shortened(repr(digest), 80)}, but must be 64 hexadecimal digits, or "
                "null for a model without statistics of its training features. Copy the model again."
            )
        for metric in value.get("metrics", []):
            _checked(metric, *_typed(Metric), f"{source}: metrics")
            _refuse_types(metric, get_type_hints(Metric), f"{source}: metrics")
        _refuse_types(input_, get_type_hints(InputSpec), f"{source}: input")
        _refuse_types(clip, get_type_hints(ClipSpec) | {"fps": float | str | None}, f"{source}: clip")
        for name, head in heads.items():
            _checked(head, *_keys(HeadSpec), f"{source}: heads.{name}")
            _refuse_types(head, get_type_hints(HeadSpec) | {"by": str | None}, f"{source}: heads.{name}")
        try:
            if isinstance(clip.get("fps"), str):
                clip["fps"] = Fraction(clip["fps"])
            value["input"] = InputSpec(**input_ | {"mean": tuple(input_["mean"]), "std": tuple(input_["std"])})
            value["clip"] = ClipSpec(**clip)
            value["heads"] = {name: HeadSpec(**head) for name, head in heads.items()}
            value["metrics"], value["limits"] = tuple(value.get("metrics", ())), tuple(value.get("limits", ()))
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from error
        except (TypeError, ValueError, ArithmeticError) as error:
            raise CheckpointError(f"{source}: A value has the wrong form ({error}).") from error
        return cls(**value)


def read_card(folder: str | Path) -> ModelCard:
    """The card of a model folder.

    Raises:
        CheckpointError: there is no card, or it cannot be read.
    """
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        places = (f"seed-*/model/{CARD_FILE}", f"model/{CARD_FILE}")
        cards = [card for place in places for card in sorted(Path(folder).glob(place))]
        if cards:
            raise CheckpointError(f"{folder} is the folder of a run. Give the folder of its model: {cards[0].parent}.")
        raise CheckpointError(
            f"{folder} is a folder without {CARD_FILE}; a model folder holds {WEIGHTS_FILE} and {CARD_FILE}, as "
            "save_model writes them."
        )
    try:
        value = read_json(path)
    except UserError as error:
        raise CheckpointError(f"{error} Or save the model again.") from error
    return ModelCard.from_json(value, str(path))


def _keys(cls: Any) -> tuple[list[str], list[str]]:
    """All fields of a dataclass, and those without a default."""
    every = fields(cls)
    return [f.name for f in every], [f.name for f in every if f.default is MISSING and f.default_factory is MISSING]


def _typed(cls: Any) -> tuple[list[str], list[str]]:
    """All keys of a typed dictionary, and the required ones."""
    return list(cls.__annotations__), sorted(cls.__required_keys__)


def _refuse_types(value: dict[str, Any], types: dict[str, Any], place: str) -> None:
    """Refuse an entry of an object that is not of its type; entries without a type are not looked at."""
    for name, entry in value.items():
        if name in types and not fits(entry, types[name]):
            needed = str(types[name]).removeprefix("<class '").removesuffix("'>")
            raise CheckpointError(
                f"{place}: {name} is {shortened(repr(entry), 80)}, but must be {needed} with finite numbers. Copy the "
                "model again, or put the entry right."
            )


_OPTIONAL = ("intended_use", "limits", "familiarity_sha256")  # entries that a card without them leaves out

# Of a card's entries that are no specifications of their own.
_TYPES = {
    "name": str,
    "initialisation": InitialisationRecord,
    "data": DataRecord,
    "audit": str | None,
    "metrics": list[dict[str, Any]],
    "licence": str,
    "version": str,
    "weights_sha256": str | None,
    "intended_use": str | None,
    "limits": list[str],
    "familiarity_sha256": str | None,
}


def _checked(value: Any, allowed: Iterable[str] | None, required: Iterable[str], place: str) -> dict[str, Any]:
    """``value`` if it is an object whose keys are all known and hold every required one (``allowed`` None: any key)."""
    if not isinstance(value, dict):
        raise CheckpointError(f"{place} must be an object, not {value!r}.")
    unknown = [] if allowed is None else [key for key in value if key not in allowed]
    if unknown:
        raise CheckpointError(
            f"{place} has the unknown key {', '.join(map(repr, unknown))}; known are {', '.join(allowed or [])}. "
            "The card may come from a newer version of endofm_lab: update it, or take the key out."
        )
    missing = [key for key in required if key not in value]
    if missing:
        raise CheckpointError(f"{place} lacks {', '.join(map(repr, missing))}.")
    return value


def collapse(names: Iterable[str]) -> list[str]:
    """Tensor names with block numbers merged into ranges: ``blocks.0-11.norm1.weight``, in order of appearance."""
    groups: dict[tuple[str, str], list[int]] = {}
    for name in names:
        if parts := _IN_BLOCK.fullmatch(name):
            groups.setdefault((parts[1], parts[3]), []).append(int(parts[2]))
        else:
            groups.setdefault((name, ""), [])
    return [f"{head}{_runs(numbers)}{tail}" for (head, tail), numbers in groups.items()]


def _runs(numbers: list[int]) -> str:
    """'0-3,7' for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)

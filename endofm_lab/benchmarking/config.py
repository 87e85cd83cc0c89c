"""What a benchmark compares: encoders, tasks, methods and label budgets, read from a small YAML file and checked.

The format is described in ``docs/benchmark.md``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml

from endofm_lab.brief import Brief
from endofm_lab.data.plain_yaml import Loader, read_yaml
from endofm_lab.errors import UserError
from endofm_lab.explain.embeddings import Tokens
from endofm_lab.familiarity.degradations import DEGRADATIONS
from endofm_lab.files import fits, reading
from endofm_lab.finetuning.config import FinetuneConfig, Method
from endofm_lab.finetuning.start import Start
from endofm_lab.model.encoder import Encoder
from endofm_lab.model.loading.locate import absolute
from endofm_lab.model.video_model import VideoModel
from endofm_lab.outside import name_of
from endofm_lab.tasks import TASKS, Task
from endofm_lab.tasks.budgets import ALL, checked_budget
from endofm_lab.tasks.phases import Phases
from endofm_lab.temporal.config import TemporalConfig
from endofm_lab.temporal.inputs import InputConfig
from endofm_lab.temporal.networks import NetworkConfig

TEMPORAL = "temporal"
METHODS = (*get_args(Method), TEMPORAL)
SharedPatients = Literal["refuse", "accept"]
_NAME = re.compile(r"\w[\w.+-]{0,39}")  # names are names of folders
_SET_HERE = {"manifest", "out", "task", "method", "start", "seeds", "split_name", "shared_patients", "budget"}
_SET_HERE |= {"features", "workers", "device", "network", "inputs"}
_SET_HERE |= {f.name for task in TASKS.values() for f in fields(task)} | {"several_labels", "label"}
_TRAINING = {f.name for f in fields(FinetuneConfig)} - _SET_HERE
_OVER_TIME = {f.name for f in fields(TemporalConfig)} - _SET_HERE
_NETWORK, _INPUTS = ({f.name for f in fields(part)} for part in (NetworkConfig, InputConfig))


class BenchmarkError(UserError):
    """A benchmark file that cannot be read; the message names the file and the entry."""


@dataclass(frozen=True, eq=False, repr=False)
class EncoderEntry(Brief):
    """One encoder: the origin of its weights, or a model in memory.

    ``seed`` draws the weights that no file gives, once for all methods; ``methods`` are the names of those that use the
    encoder, or None for all.
    """

    name: str
    start: Start = field(default_factory=Start)
    seed: int = 0
    model: VideoModel | Encoder | None = None
    methods: tuple[str, ...] | None = None


@dataclass(frozen=True, repr=False)
class TaskEntry(Brief):
    """One task on the rows of a manifest.

    ``several_labels`` belongs to phases, whose instants then have any number of labels, for models of time.
    """

    name: str
    manifest: Path
    task: Task
    several_labels: bool = False
    split_name: str = "manifest"
    shared_patients: SharedPatients = "refuse"
    methods: tuple[str, ...] | None = None

    @property
    def over_time(self) -> bool:
        """Whether the task has instants, which models of time answer."""
        return isinstance(self.task, Phases)

    def suits(self, method: "MethodEntry") -> bool:
        """Whether a method answers the task, and the file does not leave it out."""
        if self.methods is not None and method.name not in self.methods:
            return False
        if method.method == TEMPORAL:
            return self.over_time
        has_head = method.settings.get("head", "light") in ("light", *self.task.forms)
        return method.method in self.task.methods and has_head and not self.several_labels


@dataclass(frozen=True, repr=False)
class MethodEntry(Brief):
    """One method: a method of `FinetuneConfig`, or "temporal", with those settings that the file gives."""

    name: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class BenchmarkConfig(Brief):
    """Everything that a benchmark compares, in the order of the file.

    ``degradations`` are the made faults of pictures under which trained models are tested again.
    """

    encoders: tuple[EncoderEntry, ...]
    tasks: tuple[TaskEntry, ...]
    methods: tuple[MethodEntry, ...]
    budgets: tuple[str, ...] = (ALL,)
    seeds: tuple[int, ...] = (0,)
    degradations: tuple[str, ...] = ()


def read_benchmark(
    source: str | Path | Mapping[str, Any],
    encoders: Mapping[str, VideoModel | Encoder] | None = None,
    tasks: Mapping[str, Task] | None = None,
) -> BenchmarkConfig:
    """Read and check a benchmark.

    Args:
        source: a YAML file, or its content. Relative paths start from the file's folder.
        encoders: further encoders in memory, by name.
        tasks: tasks of your own, by the names of tasks in the file, whose ``task`` they replace.

    Raises:
        BenchmarkError: an entry is missing, unknown or of the wrong kind; the message names the file and the entry.
    """
    if isinstance(source, Mapping):
        return _Reader("benchmark", Path()).config(dict(source), encoders or {}, tasks or {})
    path = Path(source)
    if not path.is_file():
        raise BenchmarkError(f"There is no benchmark file {path}. Give a YAML file; docs/benchmark.md has one.")
    try:
        facts = yaml.load(read_yaml(path), Loader=Loader)  # noqa: S506  (a safe loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path.name} is not readable YAML: {error}") from error
    with reading(path, "Correct the entry that has the wrong kind.", BenchmarkError):
        return _Reader(path.name, path.parent).config(facts, encoders or {}, tasks or {})


def described(config: BenchmarkConfig) -> dict[str, Any]:
    """The settings of a benchmark as JSON, for its request; files are described by their content elsewhere."""
    lists = {name: [e.name for e in getattr(config, name)] for name in ("encoders", "tasks", "methods")}
    return {
        **lists,
        "budgets": list(config.budgets),
        "seeds": list(config.seeds),
        "degradations": list(config.degradations),
        "encoder": {
            e.name: {**asdict(e.start), "seed": e.seed, "methods": e.methods}
            if e.model is None
            else {"source": "an encoder in memory", "methods": e.methods}
            for e in config.encoders
        },
        "task": {
            t.name: {
                "task": t.task.name,
                **({"task_class": name_of(type(t.task))} if name_of(type(t.task)) else {}),
                **asdict(t.task),
                "several_labels_over_time": t.several_labels,
                "split_name": t.split_name,
                "shared_patients": t.shared_patients,
                "methods": t.methods,
            }
            for t in config.tasks
        },
        "method": {m.name: {"method": m.method, **m.settings} for m in config.methods},
    }


_TOP = {"encoders", "tasks", "methods", "budgets", "seeds", "degradations", "training"}
_ENCODER = {"start", "size", "image_px", "n_frames", "stride", "seed", "methods"}
_TASK = {"manifest", "task", "split", "shared_patients", "methods"}


class _Reader:
    """Turns the parsed YAML into a `BenchmarkConfig`; every message begins with the file's name and the entry."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder

    def fail(self, place: str, problem: str) -> BenchmarkError:
        problem = problem if problem.endswith((".", "?")) else f"{problem}."
        return BenchmarkError(f"{self.name}, {place}: {problem}")

    def config(
        self, facts: Any, objects: Mapping[str, VideoModel | Encoder], tasks: Mapping[str, Task]
    ) -> BenchmarkConfig:
        self.keys(facts, "the file", _TOP, {"tasks", "methods"} if objects else {"encoders", "tasks", "methods"})
        training = facts.get("training") or {}
        self.settings(training, "training")
        methods = self.methods(facts["methods"], training)
        names = [method.name for method in methods]
        encoders = []
        if "encoders" in facts or not objects:
            encoders = [self.encoder(k, v, names) for k, v in self.entries(facts["encoders"] or {}, "encoders")]
        for name, model in objects.items():
            if name in (entry.name for entry in encoders):
                raise self.fail(
                    f"encoders.{name}", "the name is in the file and among the objects; choose another name"
                )
            encoders.append(EncoderEntry(self.word(name, "encoders"), model=model))
        entries = dict(self.entries(facts["tasks"], "tasks"))
        for name in tasks:
            self.known(name, entries, "tasks", "task")
        budgets, seeds = facts.get("budgets", [ALL]), facts.get("seeds", [0])
        degradations = facts.get("degradations") or []
        if not fits(budgets, list[Any]) or not budgets:
            raise self.fail("budgets", f"expected a list such as [all, 10 %, 5 patients], found {budgets!r}")
        if not fits(seeds, list[int]) or not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise self.fail("seeds", f"expected a list of different whole numbers from 0 on, found {seeds!r}")
        if not fits(degradations, list[str]):
            raise self.fail("degradations", f"expected a list of {', '.join(DEGRADATIONS)}, found {degradations!r}")
        for name in degradations:
            self.known(name, DEGRADATIONS, "degradations", "degradation")
        config = BenchmarkConfig(
            encoders=tuple(encoders),
            tasks=tuple(self.task(name, value, names, tasks.get(name)) for name, value in entries.items()),
            methods=tuple(methods),
            budgets=tuple(dict.fromkeys(self.budget(value) for value in budgets)),
            seeds=tuple(seeds),
            degradations=tuple(dict.fromkeys(degradations)),
        )
        self.each_is_used(config)
        return config

    def each_is_used(self, config: BenchmarkConfig) -> None:
        """Refuse methods that answer no task, and tasks that no method answers."""
        for method in config.methods:
            if not any(task.suits(method) for task in config.tasks):
                raise self.fail(f"methods.{method.name}", f"{method.method!r} answers none of the tasks; leave it out")
        for task in config.tasks:
            if not any(task.suits(method) for method in config.methods):
                possible = (*task.task.methods, TEMPORAL) if task.over_time else task.task.methods
                possible = (TEMPORAL,) if task.several_labels else possible
                raise self.fail(f"tasks.{task.name}", f"no method answers it; its methods are {', '.join(possible)}")

    def encoder(self, name: str, value: Any, methods: Sequence[str]) -> EncoderEntry:
        place = f"encoders.{name}"
        value = {"start": value} if isinstance(value, str) else value
        self.keys(value, place, _ENCODER, {"start"})
        kinds = get_type_hints(Start) | {"start": str, "seed": int, "methods": list[str]}
        self.kinds(value, place, kinds)
        size, source = value.get("size"), value["start"]
        beside = self.folder / source
        source = absolute(str(beside) if source not in ("demo", "scratch") and beside.exists() else source)
        options = {key: value[key] for key in ("image_px", "n_frames", "stride") if key in value}
        return EncoderEntry(
            name, Start(source, size, **options), value.get("seed", 0), None, self.chosen(value, place, methods)
        )

    def task(self, name: str, value: Any, methods: Sequence[str], outside_task: Task | None) -> TaskEntry:
        place = f"tasks.{name}"
        value = {"manifest": value} if isinstance(value, str) else value
        if not isinstance(value, dict):
            raise self.fail(place, f"expected a manifest, or a list of `key: value`, found {value!r}")
        word = value.get("task", next(iter(TASKS)))
        kind: type[Task] = (
            type(outside_task) if outside_task is not None else TASKS[self.known(word, TASKS, f"{place}.task", "task")]
        )
        options = set() if outside_task is not None else {f.name for f in fields(kind)}
        over_time = {"several_labels"} if kind is Phases else set()
        self.keys(value, place, _TASK | options | over_time, {"manifest"})
        kinds = get_type_hints(kind) | {"manifest": str, "task": str, "split": str, "methods": list[str]}
        kinds |= {"shared_patients": SharedPatients, "several_labels": bool}
        self.kinds(value, place, kinds)
        try:
            task = outside_task or kind(**{key: value[key] for key in options if key in value})
        except UserError as error:
            raise self.fail(place, str(error)) from error
        return TaskEntry(
            name,
            self.folder / Path(value["manifest"]).expanduser(),
            task,
            bool(value.get("several_labels")) and kind is Phases,
            value.get("split", "manifest"),
            value.get("shared_patients", "refuse"),
            self.chosen(value, place, methods),
        )

    def methods(self, value: Any, training: Mapping[str, Any]) -> list[MethodEntry]:
        if isinstance(value, list) and all(isinstance(word, str) for word in value):
            value = {word.replace(" ", "-"): word for word in value}
        return [self.method(name, entry, training) for name, entry in self.entries(value, "methods")]

    def method(self, name: str, value: Any, training: Mapping[str, Any]) -> MethodEntry:
        place = f"methods.{name}"
        value = {"method": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or not isinstance(value.get("method"), str):
            raise self.fail(place, f"expected a method, or `method: ...` with settings, found {value!r}")
        spellings = {word.lower().replace(" ", "-"): word for word in METHODS}
        word = value["method"].lower().replace(" ", "-")
        method = spellings[self.known(word, spellings, place, "method")]
        settings = {key: item for key, item in value.items() if key != "method"}
        if method == TEMPORAL:
            self.keys(settings, place, _OVER_TIME | _NETWORK | _INPUTS | {"tokens"}, ())
            hints = get_type_hints(TemporalConfig) | get_type_hints(NetworkConfig) | get_type_hints(InputConfig)
            self.kinds(settings, place, hints | {"tokens": Tokens})
            try:
                TemporalConfig(Path(), Path(), Path(), **temporal_parts(settings)[-1])
            except UserError as error:
                raise self.fail(place, str(error)) from error
        else:
            settings = {**training, **settings} if method not in ("linear probe", "knn") else settings
            self.settings(settings, place, method)
        return MethodEntry(name, method, settings)

    def settings(self, value: Any, place: str, method: Any = "full") -> None:
        """Check settings of fine-tuning by their types and by its rules."""
        self.keys(value, place, _TRAINING, ())
        self.kinds(value, place, get_type_hints(FinetuneConfig))
        error: UserError | None = None
        for task in TASKS.values():  # the head of a method may be for one of them only
            try:
                FinetuneConfig("manifest.csv", "run", task=task.name, method=method, **plain_settings(value))
                return
            except UserError as reason:
                error = error or reason
        raise self.fail(place, str(error)) from error

    def budget(self, value: Any) -> str:
        try:
            return checked_budget(str(value))
        except UserError as error:
            raise self.fail("budgets", str(error)) from error

    def chosen(self, value: Mapping[str, Any], place: str, methods: Sequence[str]) -> tuple[str, ...] | None:
        """The methods that an entry names."""
        if "methods" not in value:
            return None
        return tuple(
            self.known(word.replace(" ", "-"), methods, f"{place}.methods", "method") for word in value["methods"]
        )

    def entries(self, value: Any, place: str) -> list[tuple[str, Any]]:
        if not isinstance(value, dict) or not value:
            raise self.fail(place, f"expected at least one `name: value`, found {value!r}")
        return [(self.word(name, place), item) for name, item in value.items()]

    def word(self, name: Any, place: str) -> str:
        """A name that can be the name of a folder."""
        if not _NAME.fullmatch(str(name)):
            raise self.fail(place, f"{name!r} is no name; give up to 40 letters, digits and . _ + - without spaces")
        return str(name)

    def known(self, word: Any, possible: Iterable[str], place: str, kind: str) -> str:
        """A word that is one of the possible ones."""
        possible = list(possible)
        if word in possible:
            return str(word)
        raise self.fail(place, f"there is no {kind} {word!r}; {self.meant(str(word), possible)}")

    def meant(self, word: str, possible: Sequence[str]) -> str:
        close = get_close_matches(word, possible, n=1, cutoff=0.5)
        return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(sorted(possible))}"

    def keys(self, value: Any, place: str, allowed: set[str], needed: Iterable[str]) -> None:
        if not isinstance(value, dict):
            raise self.fail(place, f"expected a list of `key: value`, found {value!r}")
        for key in value:
            if key not in allowed:
                raise self.fail(place, f"unknown key {key!r}; {self.meant(str(key), sorted(allowed))}")
        if missing := sorted(set(needed) - set(value)):
            raise self.fail(place, f"{', '.join(map(repr, missing))} {'is' if len(missing) == 1 else 'are'} missing")

    def kinds(self, value: Mapping[str, Any], place: str, kinds: Mapping[str, Any]) -> None:
        for key, item in value.items():
            if not fits(item, kinds[key]):
                is_number = isinstance(item, str) and item[:1].isdigit()
                hint = "; a number with an exponent needs a point, such as 3.0e-4" if is_number else ""
                raise self.fail(f"{place}.{key}", f"{item!r} has the wrong form{hint}")


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from YAML as the configurations take them: lists as tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def temporal_parts(settings: Mapping[str, Any]) -> tuple[Tokens, NetworkConfig, InputConfig, dict[str, Any]]:
    """Tokens, network, inputs and the remaining settings of a model of time."""
    network = NetworkConfig(**{key: value for key, value in settings.items() if key in _NETWORK})
    inputs = InputConfig(**{key: value for key, value in settings.items() if key in _INPUTS})
    others = {key: value for key, value in settings.items() if key in _OVER_TIME}
    return settings.get("tokens", "pooled"), network, inputs, others

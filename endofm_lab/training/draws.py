"""The order of samples in a training run, which depends only on the seed and the number of the draw."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from endofm_lab.errors import UserError, VideoError

_RETRIES = 20


class Data(Protocol):
    """Data that a model can be trained on.

    There are ``len(data)`` samples. ``data.sample(index, seed)`` returns one of them, which is equal for equal
    arguments in any process; it raises `VideoError` if the video cannot be read. ``data.name(index)`` is the file of a
    sample, and ``data.n_files`` the number of different files. ``data.collate(samples)`` makes a batch. Data from
    several sources can define their own order with a method ``draws(seed)``, see `MixedDraws`.
    """

    n_files: int

    def __len__(self) -> int: ...
    def sample(self, index: int, seed: int) -> Any:
        """One sample; all its random choices follow from the seed."""
        ...

    def name(self, index: int) -> str:
        """The name of a sample in messages."""
        ...

    def collate(self, samples: list[Any]) -> Any:
        """A batch of samples."""
        ...


@dataclass(frozen=True)
class Draws:
    """The endless sequence of draws of a run: epoch after epoch, each a permutation of the ``n`` samples."""

    n: int
    seed: int

    def __getitem__(self, number: int) -> tuple[int, int]:
        """Sample's index and seed of a draw."""
        epoch, position = divmod(number, self.n)
        order = _permutation((self.n, self.seed, epoch, 0), [self.seed, 0, epoch])
        return int(order[position]), _mix(self.seed, 1, number)

    def instead(self, number: int, attempt: int) -> int:
        """The index of the sample that replaces an unreadable one."""
        return _mix(self.seed, 2, number, attempt) % self.n


@dataclass(frozen=True)
class MixedDraws:
    """The endless sequence of draws from several sources, whose samples are numbered one source after the other.

    Source k gets the share ``weights[k] / sum(weights)`` of any consecutive draws, to within one draw per source; its
    samples are drawn epoch after epoch, each epoch in a random order.

    Attributes:
        sizes: number of samples of each source.
        weights: one number above 0 for each source.
        seed: seed of all permutations.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int

    def __getitem__(self, number: int) -> tuple[int, int]:
        """Sample's index and seed of a draw."""
        source, earlier_draws = self._source(number)
        size = self.sizes[source]
        epoch, position = divmod(earlier_draws, size)
        order = _permutation((size, self.seed, epoch, source), [self.seed, 4, source, epoch])
        return sum(self.sizes[:source]) + int(order[position]), _mix(self.seed, 1, number)

    def instead(self, number: int, attempt: int) -> int:
        """The index of the sample of the same source that replaces an unreadable one."""
        source, _ = self._source(number)
        return sum(self.sizes[:source]) + _mix(self.seed, 2, number, attempt) % self.sizes[source]

    def _source(self, number: int) -> tuple[int, int]:
        """The source of a draw, and the number of earlier draws from that source.

        The first source gets its share of the draws, evenly spaced; the next source gets its share of the remaining
        draws, and so on. Therefore every draw can be computed without the earlier draws.
        """
        remaining = sum(self.weights)
        for source, weight in enumerate(self.weights[:-1]):
            n_before, n_after = (int(n * weight / remaining) for n in (number, number + 1))
            if n_after > n_before:
                return source, n_before
            number, remaining = number - n_before, remaining - weight
        return len(self.weights) - 1, number


def _permutation(key: tuple[int, int, int, int], seeds: list[int]) -> np.ndarray:
    """The order of the samples in an epoch; ``key`` is (size, seed, epoch, source), ``seeds`` give the order.

    A run walks through the epochs of each source in turn, so that only the latest order of a source is held.
    """
    size, *_, source = key
    cached_key, order = _LATEST.get(source, (None, None))
    if cached_key != (key, seeds):
        order = np.random.default_rng(seeds).permutation(size)
        _LATEST[source] = ((key, seeds), order)
    return order


_LATEST: dict[int, tuple[Any, Any]] = {}  # source -> key with seeds, and the order of its current epoch


def _mix(*numbers: int) -> int:
    """A seed below 2^63 from numbers; different numbers give different seeds, as far as 63 bits allow."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of all random draws inside a step (drop path, masks) in one process."""
    return _mix(seed, 3, step, rank)


class _ByNumber(Dataset):
    """Draw number -> (sample, unreadable videos that were drawn before it, by name with the reason).

    A `UserError` is returned in place of the sample; raised in a worker process, it would arrive as a traceback.
    """

    def __init__(self, data: Data, draws: Draws | MixedDraws) -> None:
        self.data, self.draws = data, draws
        self.unreadable: dict[str, str] = {}  # videos that this process no longer tries

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> tuple[Any, dict[str, str]]:
        try:
            return self._readable(number)
        except UserError as error:
            return error, {}

    def _readable(self, number: int) -> tuple[Any, dict[str, str]]:
        index, seed = self.draws[number]
        unreadable: dict[str, str] = {}
        for attempt in range(_RETRIES):
            name = self.data.name(index)
            if name not in self.unreadable:
                try:
                    return self.data.sample(index, seed), unreadable
                except VideoError as error:
                    self.unreadable[name] = error.reason
            unreadable[name] = self.unreadable[name]
            index = self.draws.instead(number, attempt)
        raise UserError(
            f"{_RETRIES} draws in a row gave no readable video: {_listed(unreadable)}. Check the manifest's files."
        )


def _listed(names: dict[str, str]) -> str:
    return "; ".join(f"{name} ({reason})" for name, reason in names.items())


class LeftOut:
    """The videos that cannot be read, by name with the reason; more than 1 % of the files end the run."""

    def __init__(self, n_files: int, names: dict[str, str]) -> None:
        self.n_files, self.names = n_files, dict(names)

    def add(self, unreadable: dict[str, str]) -> dict[str, str]:
        """Record unreadable videos; returns those that are new.

        Raises:
            UserError: more than 1 % of the files are unreadable; the message lists them.
        """
        new = {name: reason for name, reason in unreadable.items() if name not in self.names}
        self.names |= new
        if new and len(self.names) > 0.01 * self.n_files:
            raise UserError(
                f"{len(self.names)} of {self.n_files} videos cannot be read, which is more than 1 %: "
                f"{_listed(self.names)}. Repair them, or remove their rows from the manifest."
            )
        return new


def batches(
    data: Data, draws: Draws | MixedDraws, numbers: Iterator[list[int]], workers: int, unreadable: dict[str, str]
) -> Iterator[tuple[Any, dict[str, str]]]:
    """Batches of the draws with the given numbers, and the unreadable videos that were drawn for each batch.

    Raises:
        UserError: a sample cannot be made, or no readable video was drawn; the same sentence with and without workers.
    """
    dataset = _ByNumber(data, draws)
    dataset.unreadable |= unreadable
    loader = DataLoader(
        dataset,
        batch_sampler=numbers,  # type: ignore[arg-type]  # lists of draw numbers, produced on demand
        num_workers=workers,
        collate_fn=_Collate(data.collate),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(draws.seed),  # otherwise the global generator would be used
    )
    for batch, names in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch, names


@dataclass(frozen=True)
class _Collate:
    """Make a batch of samples, and a single record of the unreadable videos; or hand on the error of a sample."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, pairs: list[tuple[Any, dict[str, str]]]) -> tuple[Any, dict[str, str]]:
        if error := next((sample for sample, _ in pairs if isinstance(sample, UserError)), None):
            return error, {}
        unreadable = {name: reason for _, names in pairs for name, reason in names.items()}
        return self.collate([sample for sample, _ in pairs]), unreadable

"""The parts of an unfinished study on disk: a file for every few thousand frames, joined when the study is finished."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path, reading
from endofm_lab.study.stream import LastScored


def leading_parts(folder: Path, n_frames: int, part_frames: int) -> list[Path]:
    """The parts from the first frame up to the first missing part; all parts after the gap are removed."""
    present = set(folder.glob("part_*.npz"))
    paths = [folder / f"part_{start:09d}.npz" for start in range(0, n_frames, part_frames)]
    first_missing = next((at for at, path in enumerate(paths) if path not in present), len(paths))
    for path in present - set(paths[:first_missing]):
        path.unlink()
    return paths[:first_missing]


def joined(parts: Sequence[Path]) -> dict[str, np.ndarray]:
    """The arrays of the parts, which must follow each other from the first frame on; what a part lacks is left out.

    Raises:
        UserError: a part is missing or damaged.
    """
    collected: dict[str, list[np.ndarray]] = {}
    n_frames = 0
    for path in parts:
        if path.name != f"part_{n_frames:09d}.npz":
            raise UserError(
                f"{path.parent}: The part with frame {n_frames} is missing; the next part is {path.name}. Run the same "
                "study again to score the missing frames."
            )
        remedy = "Delete it and run the same study again."
        with reading(path, remedy), np.load(path, allow_pickle=False) as part:
            for name in part.files:
                collected.setdefault(name, []).append(part[name])
            n_frames += len(part["state"])
    complete = {name: values for name, values in collected.items() if len(values) == len(parts)}
    return {name: np.concatenate(values) for name, values in complete.items() if not name.startswith("kept")}


def write_part(
    folder: Path,
    start: int,
    times_s: np.ndarray,
    state: np.ndarray,
    stands_for: np.ndarray,
    unreadable: Sequence[tuple[int, str]],
    last_scored: LastScored,
    scores: dict[str, np.ndarray],
    distance: np.ndarray | None,
) -> None:
    """Write the part whose first frame is ``start``; see `Study` for the arrays.

    ``unreadable`` are pairs (frame, reason). ``last_scored`` is the frame with which the next part compares its frames.
    """
    arrays = {f"scores/{name}": values for name, values in scores.items()}
    if distance is not None:
        arrays["distance"] = distance
    with atomic_path(folder / f"part_{start:09d}.npz") as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            times_s=times_s,
            state=state,
            stands_for=stands_for,
            unreadable=np.array([frame for frame, _ in unreadable], dtype=np.int64),
            reasons=np.array([reason for _, reason in unreadable], dtype=np.str_),
            kept_frame=np.int64(last_scored.frame),
            kept_bits=np.zeros(2, np.uint64) if last_scored.bits is None else last_scored.bits,
            kept_thumb=np.zeros((32, 32), np.uint8) if last_scored.thumb is None else last_scored.thumb,
            **arrays,  # type: ignore[arg-type]
        )

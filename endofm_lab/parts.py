"""The parts of an unfinished prediction, which are saved as they are finished so that it can be resumed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from endofm_lab.errors import UserError
from endofm_lab.files import atomic_path, reading


@dataclass(frozen=True)
class PredictionPart:
    """The results of the clips ``start_clip`` to ``stop_clip`` of a prediction, and the sums that the next part needs.

    Attributes:
        scores: head -> (n, K).
        frames: (m,) indices of the frames that no later clip shows.
        maps: mask head -> (m, K, h, w) uint8; empty if m is 0.
        boxes: box head -> (n, 7) float32: frame, label, score, x1, y1, x2, y2 in fractions of the frame.
        carry: sums over clips of the dense outputs of frames that later clips may still show: head -> (c, K, h, w).
        carry_frames: (c,) indices of these frames.
        carry_counts: (c,) number of clips so far that showed these frames.
    """

    start_clip: int
    stop_clip: int
    scores: dict[str, np.ndarray]
    frames: np.ndarray
    maps: dict[str, np.ndarray]
    boxes: dict[str, np.ndarray]
    carry: dict[str, np.ndarray]
    carry_frames: np.ndarray
    carry_counts: np.ndarray

    def save(self, folder: Path) -> Path:
        """Write the part as an uncompressed ``.npz`` whose name sorts by clip."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        for group in _GROUPS:
            arrays |= {f"{group}/{head}": value for head, value in getattr(self, group).items()}
        path = folder / f"part_{self.start_clip:08d}.npz"
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, clips=np.array([self.start_clip, self.stop_clip]), **arrays)  # type: ignore[arg-type]
        return path

    @classmethod
    def read(cls, path: Path) -> "PredictionPart":
        """The part that `save` wrote.

        Raises:
            UserError: the file is damaged.
        """
        with reading(path, "Delete the file and predict again, which computes its clips again."):
            return cls._stored(path)

    @classmethod
    def _stored(cls, path: Path) -> "PredictionPart":
        with np.load(path, allow_pickle=False) as stored:
            start, stop = stored["clips"].tolist()
            grouped: dict[str, dict[str, np.ndarray]] = {group: {} for group in _GROUPS}
            for name in stored.files:
                group, _, head = name.partition("/")
                if head:
                    grouped[group][head] = stored[name]
            plain = {name: stored[name] for name in ("frames", "carry_frames", "carry_counts")}
        return cls(start, stop, **grouped, **plain)  # type: ignore[arg-type]


_GROUPS = ("scores", "maps", "boxes", "carry")  # the fields of a part that hold arrays by head


def joined_parts(folder: Path) -> list[Path]:
    """The readable parts that follow each other without a gap from the first clip on; all other parts are removed."""
    joined: list[Path] = []
    clip = 0
    stored_paths = sorted(folder.glob("part_*.npz"))
    for path in stored_paths:
        try:
            part = PredictionPart.read(path)
        except UserError:
            break
        if part.start_clip != clip or part.stop_clip <= clip:
            break
        joined.append(path)
        clip = part.stop_clip
    for path in stored_paths[len(joined) :]:
        path.unlink()
    return joined

"""Phantom examinations: minutes of generated colonoscopy whose phases only the context tells.

The camera travels to the end of the tube (insertion), looks at the caecum, and comes back (withdrawal), stopping to
take polyps away (resection) and, in most patients, to look back at itself at the end (retroflexion). It always faces
the same way, and moves to and fro, so that a frame or a short clip of the wall shows no direction: only whether the
caecum has been seen does. Views at bends look like the caecum, polyps are passed on the way in and found again on the
way out, and biopsies are taken on the way in, which is no resection. Pictures are blurred, covered or too close for a
part of the time.

Units as in `video.phantom`: lengths are tube radii.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.video.generated.mucosa import bell, generator, mucosa_of, noise
from endofm_lab.video.phantom import DEVICES, Bubble, PhantomSpec, Scene, aperture, draw_frames

PHASES = ("insertion", "caecum", "withdrawal", "resection", "retroflexion")
TOOLS = ("snare", "forceps", "water-jet")
QUALITIES = ("blur", "veil", "contact")

_VIEW = 1.25  # distance from which a finding is looked at
_SIGHT = 3.2  # largest distance of a finding that is drawn
_CHUNK = 8  # frames drawn together


@dataclass(frozen=True)
class ExaminationSpec:
    """One examination; equal specifications give equal frames.

    Attributes:
        seed: seed of everything random that depends on neither the patient nor the device.
        patient: number that fixes the mucosa.
        device: 0, 1 or 2, as in `PhantomSpec`.
        size_px: height and width of a frame.
        fps: frames per second.
        pace: factor on all durations; 1 gives those of practice.

    Raises:
        UserError: a value is out of range.
    """

    seed: int
    patient: int = 0
    device: int = 0
    size_px: int = 64
    fps: Fraction = Fraction(1)
    pace: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.device < DEVICES or self.size_px < 32 or not 0 < self.fps <= 60 or not 0 < self.pace <= 10:
            raise UserError(
                f"An examination has device {self.device}, {self.size_px} px, {self.fps} frames per second and pace "
                f"{self.pace}; give a device below {DEVICES}, at least 32 px, up to 60 frames per second and a pace up "
                "to 10."
            )


@dataclass(frozen=True)
class Lesion:
    """A finding of the patient: its kind, its place along and around the tube, and the numbers of its outline."""

    kind: str
    s: float
    phi: float
    shape: list[float]


@dataclass(frozen=True, eq=False, repr=False)
class Examination(Brief):
    """The course of an examination, frame by frame (T frames).

    Attributes:
        spec: its specification.
        phase: (T,) number in `PHASES`.
        tools: (T, 3) bool, in the order of `TOOLS`.
        camera: (T,) place along the tube.
        landmark: (T,) share to which the caecum, or a bend that looks like it, fills the view.
        quality: (T, 3) how much of each of `QUALITIES`, 0..1.
        lesions: the findings of the patient.
        removed: frame from which on a finding is a wound, per finding; T if it stays.
    """

    spec: ExaminationSpec
    phase: NDArray[np.int64]
    tools: NDArray[np.bool_]
    camera: NDArray[np.float64]
    landmark: NDArray[np.float64]
    quality: NDArray[np.float64]
    lesions: list[Lesion]
    removed: list[int]

    def __len__(self) -> int:
        return len(self.phase)

    def intervals(self) -> list[tuple[float, float, str, str]]:
        """Stretches (start_s, end_s, phase, tools joined by ``|``) in which neither phase nor tools change."""
        code = self.phase * 2 ** len(TOOLS) + self.tools @ (2 ** np.arange(len(TOOLS)))
        starts = np.flatnonzero(np.r_[True, code[1:] != code[:-1]])
        rate = float(self.spec.fps)
        return [
            (a / rate, b / rate, PHASES[self.phase[a]], "|".join(np.array(TOOLS)[self.tools[a]].tolist()))
            for a, b in zip(starts.tolist(), [*starts[1:].tolist(), len(self)], strict=True)
        ]


@dataclass
class _Course:
    """An examination while it is being planned: lists that grow by the frames of one activity after the other."""

    random: np.random.Generator
    rate: float  # frames per second of practice
    phase: list[int] = field(default_factory=list)
    tool: list[int] = field(default_factory=list)  # -1: none
    camera: list[float] = field(default_factory=list)
    landmark: list[float] = field(default_factory=list)

    @property
    def at(self) -> float:
        return self.camera[-1] if self.camera else 0.0

    def uniform(self, low: float, high: float) -> float:
        return float(self.random.uniform(low, high))

    def _add(self, phase: str, camera: NDArray[np.float64], tool: int = -1, landmark: float = 0.0) -> None:
        n = len(camera)
        self.phase += [PHASES.index(phase)] * n
        self.tool += [tool] * n
        self.camera += camera.tolist()
        self.landmark += [landmark] * n

    def travel(self, phase: str, to: float, seconds: float) -> None:
        """Move to a place, to and fro on the way; the last frame is there."""
        n = max(1, round(seconds * self.rate))
        share = np.arange(1, n + 1) / n
        swing = np.zeros(n)
        for frame in range(1, n - 1):
            swing[frame] = 0.9 * swing[frame - 1] + self.random.normal(0, 0.45)
        self._add(phase, np.maximum(self.at + share * (to - self.at) + swing, 0.0))

    def dwell(self, phase: str, seconds: float, tool: int = -1, landmark: float = 0.0) -> None:
        """Stay at a place, with small movements."""
        n = max(1, round(seconds * self.rate))
        self._add(phase, np.maximum(self.at + self.random.normal(0, 0.06, n), 0.0), tool, landmark)


def plan(spec: ExaminationSpec) -> Examination:
    """The course of an examination, without its pictures.

    Insertion takes 2.5 to 9 minutes, the way back at least 5, a resection about one: ranges of practice times ``pace``.
    """
    course = _Course(np.random.default_rng([spec.seed, spec.patient, 5]), float(spec.fps) * spec.pace)
    reach = course.uniform(18, 30)
    lesions = _lesions(course, reach)
    _insert(course, reach, lesions)
    for _ in range(int(course.random.integers(2, 5))):  # the caecum is not in view all the time
        course.dwell("caecum", course.uniform(6, 14), landmark=course.uniform(0.7, 1.0))
        course.dwell("caecum", course.uniform(1, 6), landmark=0.25)
    removed = _withdraw(course, reach, lesions)
    if course.random.random() < 0.75:
        course.travel("withdrawal", 0.4, 5)
        course.dwell("retroflexion", course.uniform(12, 30))
    n = len(course.phase)
    tools = np.array(course.tool)[:, None] == np.arange(len(TOOLS))
    tools[:, 2] |= _events(course, n, share=0.05, seconds=5) > 0  # water is used all the way
    preparation = course.uniform(0.3, 1.7)
    quality = np.stack(
        [
            _events(course, n, share=0.12, seconds=5),
            _events(course, n, share=min(0.5, 0.12 * preparation), seconds=9),
            _events(course, n, share=0.06, seconds=3),
        ],
        axis=1,
    )
    return Examination(
        spec,
        np.array(course.phase),
        tools,
        np.array(course.camera),
        np.array(course.landmark),
        quality,
        lesions,
        removed,
    )


def _lesions(course: _Course, reach: float) -> list[Lesion]:
    """One to four findings, far enough apart that only one is in view."""
    number = int(course.random.integers(1, 5))
    places = 3 + (reach - 7) * (np.arange(number) + course.random.uniform(0.2, 0.8, number)) / number
    kinds = course.random.choice(["polyp", "polyp", "polyp", "ulcer", "bleeding"], number)
    return [
        Lesion(str(kind), float(s), course.uniform(0, 6.28), course.random.random(6).tolist())
        for kind, s in zip(kinds, places, strict=True)
    ]


def _insert(course: _Course, reach: float, lesions: list[Lesion]) -> None:
    """The way in: findings are passed, biopsies may be taken, and bends may look like the caecum."""
    pace = 60 * float(np.clip(course.random.lognormal(1.55, 0.35), 2.5, 9)) / reach  # seconds per radius
    stops: list[tuple[float, str]] = [(lesion.s - _VIEW, "finding") for lesion in lesions]
    stops += [(course.uniform(0.3, 0.95) * reach, "bend") for _ in range(int(course.random.integers(0, 3)))]
    for place, what in sorted(stops):
        course.travel("insertion", max(place, course.at), pace * max(place - course.at, 0.3))
        if what == "bend":
            course.dwell("insertion", course.uniform(4, 16), landmark=course.uniform(0.6, 1.0))
        elif course.random.random() < 0.2:
            course.dwell("insertion", course.uniform(4, 10))
            course.dwell("insertion", course.uniform(10, 25), tool=TOOLS.index("forceps"))
        else:
            course.dwell("insertion", course.uniform(0, 4))
    course.travel("insertion", reach, pace * max(reach - course.at, 0.3))


def _withdraw(course: _Course, reach: float, lesions: list[Lesion]) -> list[int]:
    """The way out, with resections; returns the frame at which each finding is gone."""
    pace = 60 * course.uniform(5, 8) / reach
    removed = [-1] * len(lesions)
    for number in reversed(range(len(lesions))):
        place = lesions[number].s - _VIEW
        course.travel("withdrawal", min(place, course.at), pace * max(course.at - place, 0.3))
        if lesions[number].kind != "polyp" or course.random.random() < 0.2:
            course.dwell("withdrawal", course.uniform(2, 10))
            continue
        tool = TOOLS.index("snare" if course.random.random() < 0.6 else "forceps")
        course.dwell("resection", course.uniform(5, 15))  # the polyp is looked at before the tool comes
        for _ in range(int(course.random.integers(1, 4))):
            course.dwell("resection", course.uniform(8, 20), tool=tool)
            course.dwell("resection", course.uniform(2, 8))
        removed[number] = len(course.phase)
        course.dwell("resection", course.uniform(4, 12))
    course.travel("withdrawal", 0.8, pace * max(course.at - 0.8, 0.3))
    return [len(course.phase) if frame < 0 else frame for frame in removed]


def _events(course: _Course, n: int, share: float, seconds: float) -> NDArray[np.float64]:
    """(n,) strength of something that comes and goes: 0, or 0.5..1 for some seconds, for a share of the time."""
    strength = np.zeros(n)
    for _ in range(int(course.random.poisson(share * n / (seconds * course.rate)))):
        start, length = int(course.random.integers(n)), max(1, round(course.random.exponential(seconds) * course.rate))
        strength[start : start + length] = course.uniform(0.5, 1.0)
    return strength


def frames_of(examination: Examination) -> Iterator[NDArray[np.uint8]]:
    """The frames (t, H, W, 3) uint8 RGB of an examination, a few at a time in constant memory.

    The same examination gives the same bits on the same machine and version of PyTorch.
    """
    spec = examination.spec
    scene, random = _scene(examination), generator("pictures", spec.seed, spec.patient)
    cover = noise((64, 64), (4, 4), random)
    cover = F.interpolate(cover[None, None], size=(spec.size_px,) * 2, mode="bilinear")[0, 0]
    mucosa = mucosa_of(spec.patient)
    in_view = _in_view(examination)
    starts = np.flatnonzero(np.r_[True, in_view[1:] != in_view[:-1]]).tolist()
    for first, after in zip(starts, [*starts[1:], len(examination)], strict=True):
        phantom, view = PhantomSpec(spec.seed, spec.patient, spec.device, size_px=spec.size_px), scene
        if (number := int(in_view[first])) >= 0:
            lesion = examination.lesions[number % len(examination.lesions)]
            kind = lesion.kind if number < len(examination.lesions) else "ulcer"
            phantom = replace(phantom, finding=kind)
            view = replace(scene, finding_s=lesion.s, finding_phi=lesion.phi, finding_shape=lesion.shape)
        for at in range(first, after, _CHUNK):
            part = slice(at, min(at + _CHUNK, after))
            frames, _ = draw_frames(phantom, mucosa, view, part)
            yield _covered(frames, examination, part, cover)


def _in_view(examination: Examination) -> NDArray[np.int64]:
    """(T,) number of the finding in view; -1 for none, and plus the number of findings once it is a wound."""
    in_view = np.full(len(examination), -1)
    for number, lesion in enumerate(examination.lesions):
        ahead = lesion.s - examination.camera
        visible = (ahead > 0.1) & (ahead < _SIGHT)
        removed = np.arange(len(examination)) >= examination.removed[number]
        in_view[visible] = np.where(removed, number + len(examination.lesions), number)[visible]
    return in_view


def _scene(examination: Examination) -> Scene:
    """The paths of the camera, with bubbles and noise, for the drawing of the phantom."""
    spec, T = examination.spec, len(examination)
    random = generator("examination", spec.seed, spec.patient)

    def path(scale: float, seconds: float) -> Tensor:
        """A smooth random path (T, 1, 1) around 0 that turns about every ``seconds``."""
        knots = torch.randn((1, 1, 4 + int(T / (seconds * float(spec.fps)))), generator=random)
        return scale * F.interpolate(knots, size=T, mode="linear", align_corners=True)[0, 0, :, None, None]

    landmark = torch.from_numpy(examination.landmark).float()[:, None, None]
    wall = (2.7 + path(0.4, 20)).clamp(1.9, 3.4) * (1 - landmark) + 1.25 * landmark
    bubbles = [Bubble(path(0.7, 6), path(0.7, 6), 0.02 + 0.01 * number) for number in range(3)]
    n = spec.size_px
    return Scene(
        camera=torch.from_numpy(examination.camera).float()[:, None, None],
        roll=path(0.9, 30),
        look=(path(0.22, 5), path(0.22, 5)),
        bend=(path(0.10, 12), path(0.10, 12)),
        wall=wall,
        bubbles=bubbles,
        finding_s=0.0,
        finding_phi=0.0,
        finding_shape=[0.5] * 6,
        ripple=torch.stack([noise((64, 64), (8, 8), random), noise((64, 64), (16, 16), random)])[None],
        blur_px=0.2,
        noise=0.012 * torch.randn((3, n + 32, n + 32), generator=random),
        noise_at=torch.randint(33, (T, 2), generator=random).tolist(),
    )


def _covered(frames: Tensor, examination: Examination, part: slice, cover: Tensor) -> NDArray[np.uint8]:
    """Frames (t, H, W, 3) with landmark, tools and the scope itself, and with the quality of the moment."""
    n, spec = frames.shape[1], examination.spec
    axis = (torch.arange(n) + 0.5) / n * 2 - 1
    x, y = axis[None, :], axis[:, None]
    pictures = frames.permute(0, 3, 1, 2).float() / 255
    numbers = range(part.start, part.stop)
    for picture, t in zip(pictures, numbers, strict=True):
        turn = 0.15 * np.sin(0.9 * t + spec.patient)
        if (landmark := float(examination.landmark[t])) > 0.5:
            _orifice(picture, x - 0.1 - turn, y + 0.15, landmark)
        if examination.phase[t] == PHASES.index("retroflexion"):
            shaft = ((0.22 - (x - turn).abs()) * 20).sigmoid() * ((0.35 - y) * 12).sigmoid()
            picture.mul_(1 - 0.93 * shaft)
        for tool in np.flatnonzero(examination.tools[t]):
            _tool(picture, x, y, TOOLS[tool], turn)
        blur, veil, contact = examination.quality[t].tolist()
        if veil:
            brown = torch.tensor([0.45, 0.33, 0.12])[:, None, None]
            picture.lerp_(brown, 0.9 * veil * (3 * cover.roll((3 * t, 5 * t), (0, 1))).sigmoid())
        if contact:
            picture.lerp_(torch.tensor([0.80, 0.30, 0.24])[:, None, None], 0.85 * contact)
        if blur:
            small = F.interpolate(picture[None], scale_factor=1 / (2 + 4 * blur), mode="bilinear", antialias=True)
            picture.copy_(F.interpolate(small, size=(n, n), mode="bilinear")[0])
    inside = aperture(spec.device, axis)
    pictures = torch.where(inside, pictures, 0.015).clamp_(0, 1).mul_(255).round_().byte()
    return pictures.permute(0, 2, 3, 1).contiguous().numpy()


def _orifice(picture: Tensor, x: Tensor, y: Tensor, strength: float) -> None:
    """The crescent of an orifice, and folds that meet beside it, in place."""
    r, angle = (x * x + y * y).sqrt(), torch.atan2(y, x)
    crescent = bell((r - 0.22) / 0.07) * (0.5 + 0.5 * torch.cos(angle - 0.6)).clamp(0, 1)
    star = bell(torch.sin(1.5 * angle) / 0.16) * ((r - 0.25) * 9).sigmoid() * ((0.95 - r) * 9).sigmoid()
    picture.mul_(1 - strength * (0.85 * crescent + 0.35 * star).clamp(max=1))


def _tool(picture: Tensor, x: Tensor, y: Tensor, tool: str, turn: float) -> None:
    """A tool that comes from the lower right, in place."""
    tip = (0.15 + turn, 0.10 - turn)
    dx, dy = 1 - tip[0], 1 - tip[1]
    width: float | Tensor
    along = ((x - tip[0]) * dx + (y - tip[1]) * dy) / (dx * dx + dy * dy)
    across = ((x - tip[0]) * dy - (y - tip[1]) * dx).abs() / (dx * dx + dy * dy) ** 0.5
    colour, width = {"snare": (0.85, 0.05), "forceps": (0.45, 0.08), "water-jet": (0.75, 0.03)}[tool]
    if tool == "water-jet":
        width = width + 0.25 * (1 - along).clamp(0, 1)  # the jet opens towards the wall
    shape = ((width - across) * 40).sigmoid() * (along * 30).sigmoid()
    if tool == "water-jet":
        tint = torch.tensor([0.75, 0.82, 0.90])[:, None, None]
        picture.lerp_(tint, 0.55 * shape)
        return
    shine = torch.full_like(picture, colour) * (1 + 0.3 * bell(across / (0.5 * width)))
    picture.lerp_(shine, shape)
    r = ((x - tip[0] + 0.16) ** 2 + (y - tip[1] + 0.16) ** 2).sqrt()
    ring = bell((r - 0.22) / 0.035) if tool == "snare" else bell(r / 0.11)
    picture.lerp_(torch.full_like(picture, 0.92 if tool == "snare" else 0.35), ring.clamp(max=1))

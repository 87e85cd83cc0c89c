"""The phantom: generated video that looks like endoscopy, drawn from a seed, with masks, boxes and labels.

A camera moves along a soft, bent tube with folds towards a bend, whose wall closes the view. Each pixel's ray meets
the wall at one depth and angle; colour comes from a texture on the wall, shading from the distance to the light at the
camera and the slope of the folds.

Units: the tube's radius is 1; ``s`` runs along the tube, ``phi`` around it, ``z`` is the depth in front of the camera.
The phantom must not be mistaken for a real recording: every picture of it has to be labelled as generated.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from endofm_lab.brief import Brief
from endofm_lab.errors import UserError
from endofm_lab.video.generated.mucosa import PERIOD, Mucosa, bell, folds, generator, grid_of, mucosa_of, noise

FINDINGS = ("normal", "polyp", "ulcer", "bleeding")
MOTIONS = ("advancing", "withdrawing")
DEVICES = 3

ADVANCE = 0.85  # units along the tube per unit of depth: the view is a little oblique
_SPEED = 0.50  # tube radii per second
CHUNK = 4  # frames drawn together: small enough for the processor's cache


@dataclass(frozen=True)
class PhantomSpec:
    """One clip of the phantom; equal specifications give equal frames.

    Attributes:
        seed: seed of everything random that depends on neither the patient nor the device.
        patient: number that fixes colour, vessels and fold rhythm of the mucosa.
        device: 0, 1 or 2: shape of the picture, colour balance, sharpness, lens.
        finding: one of FINDINGS.
        motion: one of MOTIONS.
        n_frames: frames of the clip.
        size_px: height and width of a frame.
        fps: frames per second.

    Raises:
        UserError: a value is not among the listed values.
    """

    seed: int
    patient: int = 0
    device: int = 0
    finding: str = "normal"
    motion: str = "advancing"
    n_frames: int = 48
    size_px: int = 256
    fps: Fraction = Fraction(24)

    def __post_init__(self) -> None:
        for name, value, possible in (
            ("finding", self.finding, FINDINGS),
            ("motion", self.motion, MOTIONS),
            ("device", self.device, tuple(range(DEVICES))),
        ):
            if value not in possible:
                raise UserError(f"{name} is {value!r}; choose one of {', '.join(map(str, possible))}.")
        if self.n_frames < 1 or self.size_px < 32:
            raise UserError(f"{self.n_frames} frames of {self.size_px} px: at least 1 frame of 32 px is needed.")


@dataclass(frozen=True, eq=False, repr=False)
class PhantomClip(Brief):
    """The clip that `render` draws.

    Attributes:
        frames: (T, H, W, 3) uint8 RGB.
        masks: (T, H, W) bool, true where the finding is visible.
        boxes_xyxy: (T, 4) float32 in pixels around the mask, NaN if no finding is visible.
        spec: the specification of the clip.
    """

    frames: np.ndarray
    masks: np.ndarray
    boxes_xyxy: np.ndarray
    spec: PhantomSpec


@dataclass(frozen=True, eq=False, repr=False)
class Bubble(Brief):
    """A bubble that drifts on the lens: centre (T, 1, 1) and radius in half frame widths."""

    x: Tensor
    y: Tensor
    radius: float

    def draw_on(self, picture: Tensor, axis: Tensor, at: slice) -> None:
        """Draw a thin bright ring, a spark and a little light inside, in place, in the window that the bubble needs."""
        near_x = (axis > self.x[at].min() - 2 * self.radius) & (axis < self.x[at].max() + 2 * self.radius)
        near_y = (axis > self.y[at].min() - 2 * self.radius) & (axis < self.y[at].max() + 2 * self.radius)
        if not (near_x.any() and near_y.any()):
            return
        columns, rows = (slice(int(n.nonzero()[0]), int(n.nonzero()[-1]) + 1) for n in (near_x, near_y))
        x, y = axis[None, None, columns] - self.x[at], axis[None, rows, None] - self.y[at]
        d = (x * x + y * y).sqrt() / self.radius
        ring = 0.30 * bell((d - 1) / 0.16)
        spark = 0.8 * bell(((x + 0.012) ** 2 + (y + 0.012) ** 2).sqrt() / 0.011)
        window = picture[..., rows, columns]
        window.mul_((1 + 0.10 * (d < 1))[:, None]).add_((ring + spark)[:, None])


@dataclass(frozen=True, eq=False, repr=False)
class Scene(Brief):
    """The part of the phantom that belongs to the clip; paths are (T, 1, 1)."""

    camera: Tensor  # place along the tube
    roll: Tensor  # radians
    look: tuple[Tensor, Tensor]  # where the tube's centre appears, in half frame widths
    bend: tuple[Tensor, Tensor]  # how far it moves aside per unit of depth
    wall: Tensor  # depth of the wall that closes the view at the next bend of the tube
    bubbles: list[Bubble]
    finding_s: float
    finding_phi: float
    finding_shape: list[float]  # numbers in 0..1
    ripple: Tensor  # (1, 2, 64, 64) noise for outlines and surfaces
    blur_px: float  # at 256 px
    noise: Tensor  # (3, size + 32, size + 32); each frame takes another window of it
    noise_at: list[list[int]]


def render(spec: PhantomSpec) -> PhantomClip:
    """Draw a clip. A withdrawing clip is an advancing one run backwards, so the frames of both are the same pictures.

    A single frame does not show the motion as long as its place in the clip is unknown. If the place is known, it does:
    the finding comes nearer when the camera advances, so it is small in the first frames of an advancing clip and large
    in the first frames of a withdrawing clip.

    The same specification gives the same bits on the same machine and version of PyTorch; elsewhere the last bit of a
    pixel may differ.
    """
    scene = _scene(spec)
    mucosa = mucosa_of(spec.patient)
    chunks = [draw_frames(spec, mucosa, scene, slice(at, at + CHUNK)) for at in range(0, spec.n_frames, CHUNK)]
    frames, masks = (torch.cat(parts).numpy() for parts in zip(*chunks, strict=True))
    if spec.motion == "withdrawing":
        frames, masks = frames[::-1].copy(), masks[::-1].copy()
    return PhantomClip(frames, masks, boxes_of(masks), spec)


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """(T, 4) float32: x1, y1, x2, y2 in pixels around each bool mask (T, H, W); NaN where a mask is empty."""
    boxes = np.full((len(masks), 4), np.nan, dtype=np.float32)
    for t, mask in enumerate(masks):
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            boxes[t] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _scene(spec: PhantomSpec) -> Scene:
    """Draw all random values of a clip, before its frames are drawn in chunks."""
    random = generator("clip", spec.seed, spec.patient)
    time = torch.arange(spec.n_frames) / float(spec.fps)
    middle = time - time.mean()

    def path(scale: float, rate: float) -> Tensor:
        """A smooth path (T, 1, 1) around 0, alike forwards and backwards in time."""
        phase, amount = 2 * math.pi * torch.rand(3, generator=random), torch.randn(3, generator=random)
        rates = rate * torch.tensor([0.5, 1.0, 1.9])
        waves = amount[:, None] * torch.sin(rates[:, None] * middle + phase[:, None])
        return (scale / 1.7 * waves.sum(0))[:, None, None]

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    speed = _SPEED * uniform(0.8, 1.3)
    camera = uniform(0, PERIOD) + speed * middle[:, None, None] + path(0.03, 1.5)
    bubbles = [
        Bubble(uniform(-0.8, 0.8) + path(0.10, 0.7), uniform(-0.8, 0.8) + path(0.10, 0.7), uniform(0.02, 0.055))
        for _ in range(int(uniform(0, 6)))
    ]
    return Scene(
        camera=camera,
        roll=path(0.10, 0.8) + uniform(0, 2 * math.pi),
        look=(uniform(-0.2, 0.2) + path(0.07, 0.9), uniform(-0.2, 0.2) + path(0.07, 0.9)),
        bend=(path(0.03, 0.5) + uniform(-0.13, 0.13), path(0.03, 0.5) + uniform(-0.13, 0.13)),
        wall=uniform(2.2, 3.2) - (camera - camera.mean()) / ADVANCE,
        bubbles=bubbles,
        finding_s=float(camera.mean()) + ADVANCE * uniform(1.15, 1.6),
        finding_phi=uniform(0, 2 * math.pi),
        finding_shape=[uniform(0, 1) for _ in range(6)],
        ripple=torch.stack([noise((64, 64), (8, 8), random), noise((64, 64), (16, 16), random)])[None],
        blur_px=uniform(0, 0.5),
        noise=0.012 * torch.randn((3, spec.size_px + 32, spec.size_px + 32), generator=random),
        noise_at=torch.randint(33, (spec.n_frames, 2), generator=random).tolist(),
    )


def draw_frames(spec: PhantomSpec, mucosa: Mucosa, scene: Scene, at: slice) -> tuple[Tensor, Tensor]:
    """Some frames (t, H, W, 3) uint8 and masks (t, H, W) bool of the advancing clip."""
    n = spec.size_px
    camera, roll = scene.camera[at], scene.roll[at]
    lens = (1.0, 1.10, 0.93)[spec.device]
    dx, dy, tube_z, crest = _geometry(n // 2, lens, mucosa, scene, at)
    wall = scene.wall[at]
    z = (tube_z**-4 + wall**-4) ** -0.25  # the nearer of tube and wall, without an edge between
    slope = (folds(camera + ADVANCE * z + 0.07, torch.atan2(dy, dx) + roll, mucosa) - crest) / 0.07
    # Geometry is smooth: it is computed on every second pixel and interpolated; texture, finding and light are not.
    across = 0.6 * (1 - wall / tube_z).clamp(min=0)  # along the wall, towards where the tube's axis meets it
    fields = torch.stack([dx, dy, z, slope, across], dim=1)
    dx, dy, z, slope, across = F.interpolate(fields, size=(n, n), mode="bilinear", align_corners=False).unbind(1)
    phi = torch.atan2(dy, dx) + roll
    s = camera + ADVANCE * z + across

    wall = F.grid_sample(mucosa.texture.expand(len(s), -1, -1, -1), grid_of(s, phi), align_corners=False)
    colour, relief = wall[:, :3], wall[:, 3]
    bump = gloss = torch.zeros(())
    visible = torch.zeros_like(s, dtype=torch.bool)
    if spec.finding != "normal":
        visible, colour, bump, gloss = _finding(spec.finding, mucosa, scene, colour, s, phi, z)

    # The light is at the camera: it falls off with depth, and walls that face it are brighter. The slope of the folds
    # along the tube turns them towards the light or away from it.
    turned = torch.tanh(0.55 * slope)
    fall = 1.35 / (0.60 + 0.36 * z * z)
    facing = (0.82 + 0.34 * turned + 0.09 * relief + bump).clamp(0.04, 1.7)
    picture = colour * (fall * facing)[:, None]

    # Wet highlights where the relief points back at the camera: they slide over the wall as the camera moves.
    film = F.grid_sample(
        mucosa.texture[:, 3:].expand(len(s), -1, -1, -1), grid_of(1.9 * s, phi + 0.5 * z), align_corners=False
    )[:, 0]
    spark = (26 * (film + 0.30 * turned - 0.98)).sigmoid_().mul_(fall.clamp(max=1)) + gloss
    picture += (0.75 * spark.clamp(max=1))[:, None]
    axis = (torch.arange(n) + 0.5) / n * 2 - 1
    for bubble in scene.bubbles:
        bubble.draw_on(picture, axis, at)
    picture = _device(picture, spec, scene, axis, at)
    edge = aperture(spec.device, axis)
    picture = torch.where(edge, picture, 0.015).clamp_(0, 1).mul_(255).round_().byte()
    return picture.permute(0, 2, 3, 1).contiguous(), visible & edge


def _geometry(n: int, lens: float, mucosa: Mucosa, scene: Scene, at: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Offset from the tube's centre as seen (dx, dy), depth z, and fold height there; each (t, n, n)."""
    axis = (torch.arange(n) + 0.5) / n * 2 - 1
    y, x = axis[:, None], axis[None, :]
    swell = lens * (1 + 0.12 * (x * x + y * y))
    x, y = (x * swell)[None] - scene.look[0][at], (y * swell)[None] - scene.look[1][at]
    z = torch.ones(())
    for _ in range(3):  # fixed point: the centre's place depends on the depth at which the ray meets the wall
        reach = z.clamp(max=4.0)
        dx, dy = x - scene.bend[0][at] * reach, y - scene.bend[1][at] * reach
        phi = torch.atan2(dy, dx) + scene.roll[at]
        crest = folds(scene.camera[at] + ADVANCE * z, phi, mucosa)
        z = 0.62 * (1 - mucosa.fold_depth * crest) / (dx * dx + dy * dy).sqrt().clamp(min=0.04)
    return dx, dy, z, crest


def _finding(
    finding: str, mucosa: Mucosa, scene: Scene, colour: Tensor, s: Tensor, phi: Tensor, z: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mask (t, H, W), and the colour, extra shading and extra gloss of the wall with the finding on it.

    The finding is drawn as a function of the distance from its centre along the wall, in units of its size.
    """
    u = scene.finding_shape
    size = {"polyp": 0.34, "ulcer": 0.34, "bleeding": 0.38}[finding] + 0.16 * u[0]
    stretch = 0.85 + 0.35 * u[1]
    turns = (phi - scene.finding_phi) / (2 * math.pi)
    around = (turns - turns.round()).mul_(2 * math.pi)
    a, b = around * (0.62 * stretch / size), (s - scene.finding_s) / (size * stretch)
    grid = torch.stack([a, b], dim=-1) / 4
    rim = F.grid_sample(scene.ripple.expand(len(s), -1, -1, -1), grid, padding_mode="reflection", align_corners=False)
    uneven = {"polyp": 0.07, "ulcer": 0.16, "bleeding": 0.30}[finding]
    d = (a * a + b * b).sqrt() * (1 + uneven * rim[:, 0])
    inside = d < 1
    soft = ((1 - d) * 14).sigmoid_()
    gloss = torch.zeros(())
    if finding == "polyp":
        # A dome: bright on the side towards the camera (smaller s), dark behind; a dark rim, a shadow on the wall.
        height = (1 - d * d).clamp_(min=0).sqrt_()
        shadow = ((1.4 - d) * 9).sigmoid_() * ((b - 0.45) * 6).sigmoid_() * (1 - soft)
        bump = soft * (0.34 * height - 0.62 * b * (1.25 - 0.6 * height) - 0.16)
        bump.sub_(shadow, alpha=0.5).sub_(bell((d - 1) / 0.10), alpha=0.22)
        tint = torch.tensor([0.98 - 0.10 * u[2], 0.52 + 0.24 * u[3], 0.56 + 0.28 * u[4]])
        painted = (mucosa.base * tint)[None, :, None, None] * (1 + 0.10 * rim[:, 1])[:, None]
        gloss = 0.7 * bell(((a - 0.2) ** 2 + (b + 0.42) ** 2) / 0.022) * inside
    elif finding == "ulcer":
        fibrin = torch.tensor([0.95, 0.78, 0.55])[None, :, None, None] * (1 + 0.07 * rim[:, 1])[:, None]
        edge = torch.tensor([0.70, 0.18, 0.15])[None, :, None, None]
        core = torch.sigmoid((0.74 - d) * 14)[:, None]
        painted = core * fibrin + (1 - core) * edge
        bump = soft * (-0.10 + 0.22 * bell((d - 0.85) / 0.16))
    else:
        painted = torch.tensor([0.42, 0.022, 0.018])[None, :, None, None] * (1 + 0.16 * rim[:, 1])[:, None]
        bump = torch.zeros(())
        gloss = 0.45 * torch.sigmoid(9 * (rim[:, 1] - 1.5)) * inside
    return inside & (z < 3.4), colour.lerp(painted, soft[:, None]), bump, gloss


def aperture(device: int, axis: Tensor) -> Tensor:
    """Where the device shows a picture, (H, W) bool: a circle, an octagon, a square with cut corners."""
    x, y = axis.abs()[None, :], axis.abs()[:, None]
    if device == 0:
        return x * x + y * y < 1.02
    side, cut = ((0.985, 1.55), (0.97, 1.75))[device - 1]
    return (torch.maximum(x, y) < side) & (x + y < cut)


def _device(picture: Tensor, spec: PhantomSpec, scene: Scene, axis: Tensor, at: slice) -> Tensor:
    """White balance, vignette, exposure, sharpness and noise of a device; (t, 3, H, W) in about 0..1."""
    balance = torch.tensor([[1.00, 1.00, 1.00], [1.05, 0.97, 0.88], [0.94, 1.03, 1.10]][spec.device])
    vignette = 1 - (0.22, 0.14, 0.28)[spec.device] * (axis[None, :] ** 2 + axis[:, None] ** 2)
    picture = picture.mul_(1.25 * balance[:, None, None] * vignette)
    picture.div_((0.34 * picture.clamp(min=0)).add_(1))  # highlights saturate softly
    blur_px = ((0.4, 0.75, 0.55)[spec.device] + scene.blur_px) * spec.size_px / 256
    reach = max(1, math.ceil(2 * blur_px))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * blur_px**2))
    taps = (kernel / kernel.sum()).tolist()
    picture = F.pad(picture, (reach, reach, reach, reach), mode="replicate")
    for axis_at in (3, 2):
        windows = [picture.narrow(axis_at, k, spec.size_px) for k in range(len(taps))]
        picture = windows[0] * taps[0]
        for window, tap in zip(windows[1:], taps[1:], strict=True):
            picture.add_(window, alpha=tap)
    for frame, (top, left) in zip(picture, scene.noise_at[at], strict=True):
        frame += scene.noise[:, top : top + spec.size_px, left : left + spec.size_px]
    return picture

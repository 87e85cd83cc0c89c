"""Do maps point at what is there? Every method of explanation on held-out patients whose masks are known.

    endofm-lab phantom PHANTOM --preset demo
    python -m docs.experiments.maps_against_masks PHANTOM/manifest.csv --model demo --head finding

One clip per row, from the middle of its time. The pointing game asks whether a map's highest patch lies on the mask;
pointing at the middle of the frame and anywhere are what it has to beat, and the same method on shuffled weights is
what it must not look like. Where the model also answers the motion, the table in time asks whether the temporal maps of
the two questions differ. Intervals of 95 % are over units (patients, where they are known).
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import endofm_lab as lab
from endofm_lab.data.manifest import Manifest, read_manifest
from endofm_lab.data.units import units
from endofm_lab.explain.attribution import METHODS, methods_for
from endofm_lab.explain.relevance import attention_relevance, exchange_matrix
from endofm_lab.explain.targets import target_of
from endofm_lab.explain.trust import Pointing, pointing_game, randomised
from endofm_lab.metrics.classification import weighted_mean
from endofm_lab.metrics.intervals import bootstrap_interval
from endofm_lab.model.video_model import VideoModel

SLOW = "Shapley values"  # hundreds of forward passes per clip


def clip_and_mask(manifest: Manifest, row: dict, model: VideoModel) -> tuple[torch.Tensor, np.ndarray]:
    """Input (1, 3, T, S, S) and masks (T, H, W) of the clip in the middle of a row."""
    clip = lab.read_clip(manifest.resolve(row["video"]), model.card.clip, "centre")
    with lab.open_video(manifest.resolve(row["masks"])) as video:
        masks = video.read(clip.indices)[..., 0] > 127
    return lab.to_input(clip.frames, model.card.input), masks


def maps_of(model: VideoModel, x: torch.Tensor, head: str, label: str, quick: bool) -> dict[str, torch.Tensor]:
    """Method -> map (T, h, w); ``quick`` leaves out what needs dozens of passes."""
    target = target_of(model, head, label)
    maps = {}
    for name in methods_for(model, head):
        if name != SLOW and not (quick and name in ("integrated gradients", "occlusion")):
            options = {"tube": (x.shape[2], 2)} if name == "occlusion" else {}
            maps[name] = METHODS[name](model, x, target, **options).values  # type: ignore[call-arg]
    video = model.backbone.has_video_blocks
    attention = lab.look(model, x, norms=video)
    maps["rollout"] = attention.rollout()
    if video:
        maps["rollout by norms"] = attention.rollout(by="norms")
    maps["rollout of the last two blocks"] = attention.since(-2).rollout()
    return maps


def in_time(model: VideoModel, x: torch.Tensor, row: dict, head: str) -> dict[str, float]:
    """How unlike the temporal maps of two questions are, and how far each score moves by an exchange of two frames.

    Unlike: 1 - cosine of gradient-weighted attention between frames (T, T). Motion against the finding, which one frame
    tells, beside two classes of the finding against each other: what two questions differ by anyway.
    """
    finding, motion = (head, row["label"]), ("motion", row["motion"])
    second_finding = (head, next(name for name in model.card.heads[head].classes if name != row["label"]))
    flat = []
    for question in (motion, finding, second_finding):
        time = attention_relevance(model, x, target_of(model, *question)).time
        assert time is not None
        flat.append(time.flatten())
    pairs = torch.triu_indices(x.shape[2], x.shape[2], 1)
    moved = [float(exchange_matrix(x, target_of(model, *question))[*pairs].mean()) for question in (motion, finding)]
    return {
        "maps in time, 1 - cosine: motion and finding": 1 - float(torch.cosine_similarity(flat[0], flat[1], dim=0)),
        "maps in time, 1 - cosine: two findings": 1 - float(torch.cosine_similarity(flat[1], flat[2], dim=0)),
        "two frames exchanged, nats: motion": moved[0],
        "two frames exchanged, nats: finding": moved[1],
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--head", default="finding")
    parser.add_argument("--split", default="test")
    parser.add_argument("--quick", action="store_true", help="without integrated gradients and occlusion")
    parser.add_argument("--rows", type=int, help="only so many rows, evenly spaced")
    args = parser.parse_args()
    model, manifest = lab.load_model(args.model).eval(), read_manifest(args.manifest)
    shuffled = randomised(model)
    rows = manifest.rows(args.split)
    spec = model.card.heads[args.head]
    of_class = spec.kind.startswith("multi")
    rows = rows[rows["masks"].notna() & (rows["label"].isin(spec.classes) if of_class else True)]
    if args.rows:
        rows = rows.iloc[np.linspace(0, len(rows) - 1, args.rows).astype(int)]
    games: dict[str, list[tuple[str, Pointing]]] = defaultdict(list)
    blind: dict[str, list[tuple[str, Pointing]]] = defaultdict(list)
    times = []
    of_row = units(rows)
    for row in tqdm(rows.assign(unit=of_row.ids).to_dict("records"), unit="clip"):
        x, masks = clip_and_mask(manifest, row, model)
        label = row["label"] if of_class else spec.classes[0]
        if "motion" in model.card.heads and "motion" in row:
            times.append({"unit": row["unit"], **in_time(model, x, row, args.head)})
        if masks.any():
            for network, into in ((model, games), (shuffled, blind)):
                for name, values in maps_of(network, x, args.head, label, args.quick).items():
                    into[name].append((row["unit"], pointing_game(values, masks)))
    print(f"{model.card.name}, {args.head}, split {args.split}: {len(rows)} clips of {of_row.words}")
    print("Pointing game: share of frames with a finding on which the highest patch lies")
    table = {}
    for name, played in games.items():
        whose = [unit for unit, game in played for _ in game.hits]
        hits, centre, anywhere = (
            np.concatenate([getattr(game, column) for _, game in played]) for column in ("hits", "centre", "random")
        )
        lost = np.concatenate([game.hits for _, game in blind[name]])
        values = {"map": hits, "above centre": hits - centre, "shuffled weights": lost, "centre": centre}
        values["random"] = anywhere
        table[name] = {key: str(bootstrap_interval(weighted_mean, whose, v)) for key, v in values.items()}
    print(pd.DataFrame(table).T.to_string())
    if times:
        times_table = pd.DataFrame(times)
        print(f"In time, mean over {len(times_table)} clips")
        names = [name for name in times_table if name != "unit"]
        for first, second in (names[:2], names[2:]):
            for name, numbers in {
                first: times_table[first],
                second: times_table[second],
                "difference": times_table[first] - times_table[second],
            }.items():
                print(f"{name:<46} {bootstrap_interval(weighted_mean, times_table['unit'], numbers)}")


if __name__ == "__main__":
    main()

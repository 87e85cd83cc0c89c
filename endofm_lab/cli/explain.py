"""`endofm-lab explain`."""

from pathlib import Path
from typing import Annotated

import tyro

from endofm_lab import NOTICE


def explain(
    video: Annotated[Path, tyro.conf.Positional],
    out: Path,
    model: str = "demo",
    start_s: float | None = None,
    head: str | None = None,
    label: str | None = None,
) -> None:
    """Attention and attribution of one clip: report.html (stand-alone) and maps.npz (the numbers).

    Args:
        video: a video file, a folder of frames, or one image.
        out: folder for the two files.
        model: "demo", a model's folder, or a released checkpoint.
        start_s: where the clip starts; by default it is the one in the middle.
        head: which head to explain; by default the first.
        label: which class of it; by default the one with the highest score.
    """
    import numpy as np

    import endofm_lab as lab
    from endofm_lab.explain.attention import look
    from endofm_lab.explain.attribution import grad_cam, integrated_gradients
    from endofm_lab.explain.targets import target_of
    from endofm_lab.explain.trust import deletion_insertion, randomisation_test
    from endofm_lab.figures import attention as figures
    from endofm_lab.files import atomic_path
    from endofm_lab.model.frame import FrameBackbone
    from endofm_lab.reports.html import Item, write_report

    network = lab.load_model(model)
    clip = lab.read_clip(video, network.card.clip, "centre" if start_s is None else start_s)
    x = lab.to_input(clip.frames, network.card.input)
    maps = look(network, x, norms=not isinstance(network.backbone, FrameBackbone))
    rollouts = {
        "rollout": ("rollout by attention, through all blocks", maps.rollout()),
        "rollout_late": (
            "rollout by attention, through the last two blocks",
            maps.since(max(-2, -maps.blocks)).rollout(),
        ),
    }
    if maps.norms:
        rollouts = {"rollout_by_norms": ("rollout by norms, through all blocks", maps.rollout(by="norms"))} | rollouts
    arrays = {"frames": clip.indices, "times_s": clip.times_s}
    arrays |= {name: values.numpy() for name, (_, values) in rollouts.items()}
    arrays["cls_in_space"] = np.stack([maps.in_space(block).numpy() for block in range(maps.blocks)])
    sections: list[tuple[str, list[Item]]] = [
        (
            "Rollout: what reaches CLS",
            [
                "By norms, a step counts by the length of what arrives; by attention alone, a patch that is looked at "
                "counts even if it brings nothing.",
                *(figures.film_strip(clip.frames, values, clip.times_s, said) for said, values in rollouts.values()),
                figures.overlay(clip.frames, next(iter(rollouts.values()))[1], clip.times_s),
            ],
        )
    ]
    if maps.kind != "space_only":
        arrays["time"] = np.stack([maps.in_time(block).numpy() for block in range(maps.blocks)])
        arrays["rollout_in_time"] = maps.rollout_in_time().numpy()
        last = maps.blocks - 1
        matrices = {f"block {last}": maps.in_time(last), "all blocks": maps.rollout_in_time()}
        sections.append(("Which frame reads which", [figures.temporal_matrices(matrices, clip.times_s)]))
    sections.append(("Heads", [figures.head_statistics(maps.statistics())]))
    if network.card.heads:
        head = head or next(iter(network.card.heads))
        if label is None and head in network.card.heads:
            classes = network.card.heads[head].classes
            scores = network.predict(x)[head]
            label = classes[int(scores.argmax())] if scores.ndim == 2 else classes[0]
        target = target_of(network, head, label or "")
        for method in (grad_cam, integrated_gradients):
            found = method(network, x, target)
            tested = deletion_insertion(network, x, target, found.values)
            same = randomisation_test(network, x, head, label or "", method, seeds=2)
            complete = "" if found.completeness is None else f" Completeness error {found.completeness:.1%}."
            lines = {
                "deletion": (tested.share, tested.deletion),
                "insertion": (tested.share, tested.insertion),
                "deletion, random order": (tested.share, tested.random_deletion),
            }
            sections.append(
                (
                    f"{target.name}, by {found.method}",
                    [
                        figures.film_strip(clip.frames, found.values, clip.times_s),
                        f"Insertion less deletion {tested.gap:.2f} (0: no better than chance). Rank correlation with "
                        f"maps of shuffled weights {same:.2f} (near 1: the map ignores the model).{complete}",
                        figures.curves(lines, "share of patches", "score"),
                    ],
                )
            )
            arrays[found.method.replace(" ", "_").replace("-", "_").lower()] = found.values.numpy()
    origin = f"Model: {network.card.name}. Initialisation: {network.card.initialisation['words']}"
    generated = " It was trained on generated video only." if network.card.data.get("generated") else ""
    place = f"{len(clip.indices)} frames from {clip.times_s[0]:.2f} s to {clip.times_s[-1]:.2f} s."
    title = f"What the model looked at: {video.name}"
    report = write_report(out / "report.html", title, [("Clip and model", [place, origin + generated]), *sections])
    with atomic_path(out / "maps.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    for path in (report, out / "maps.npz"):
        print(path)
    print(NOTICE)

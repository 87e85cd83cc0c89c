"""A register of leaks: the audit over the published splits of public data sets, written as `docs/leaks.md`.

    python -m docs.experiments.leaks DATA --weights VIT_S.safetensors --out docs/leaks.md

DATA holds ``label-lists/`` (the lists as they were published), ``kvasir-seg/`` (pictures and masks) and
``cvc-clinicdb-masks/frame_to_sequence.csv``. With ``--weights``, of a timm vit_small_patch14_dinov2, the page also says
what a clean split of Kvasir-SEG changes. Without them the command takes about half a minute on two cores, with them
two minutes more.
"""

import argparse
import re
from pathlib import Path

from docs.experiments.leaks.lists import capsule_vision, cvc_12k, gastrovision, hyper_kvasir, kvasir_capsule, sun_seg
from docs.experiments.leaks.pictures import kvasir_seg
from docs.experiments.leaks.sections import table_of
from endofm_lab.files import atomic_path

INTRODUCTION = """# A register of leaks

A leak is a picture, a sequence, a video or a patient on both sides of a split: the result then also measures how much
a model remembers. This page says which published splits have a leak that can be shown from the lists and pictures at
hand, and what cannot be said. It was written by

    python -m docs.experiments.leaks DATA --weights VIT_S.safetensors --out docs/leaks.md

with the audit that `endofm-lab audit` runs on your own data. Where a list names neither patient nor video, an empty
finding does not mean that the split is clean. Brackets are 95 % intervals from 1,000 resamples of the units named
beside them, seed 0."""

CLOSING = """None of these splits is by patient as far as the lists tell, and none of them can be shown to be clean.
"Cannot be said" means that the lists name nothing that two rows could share. PolypDiag, KUMC, LDPolypVideo and the
parts of SUN-SEG are missing here because their lists are not at hand."""


def page(data: Path, weights: str | None = None) -> str:
    """The whole page as Markdown."""
    sections = [
        cvc_12k(data), capsule_vision(data), kvasir_capsule(data), kvasir_seg(data, weights),
        sun_seg(data), gastrovision(data), hyper_kvasir(data),
    ]  # fmt: skip
    top = table_of(
        ["split: learned, evaluated", "rows evaluated", "not independent of what is learned", "what they share"],
        [row for section in sections for row in section.rows],
    )
    parts = [INTRODUCTION, top, CLOSING]
    for section in sections:
        parts += [f"## {section.title}", *section.text]
    return re.sub(r"[ \t]+$", "", "\n\n".join(parts), flags=re.MULTILINE) + "\n"


def main() -> None:
    """Write the page, or print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", help="of a timm vit_small_patch14_dinov2 at 224 px")
    parser.add_argument("--out", type=Path, help="the file to write; otherwise the page is printed")
    args = parser.parse_args()
    text = page(args.data, args.weights)
    if args.out:
        with atomic_path(args.out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()

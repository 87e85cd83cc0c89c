"""`endofm-lab audit MANIFEST [MANIFEST ...]`: leakage, duplicates, confounding and label conflicts."""

import json
from pathlib import Path
from typing import Annotated

import tyro


def audit(
    manifests: Annotated[tuple[Path, ...], tyro.conf.Positional],
    pretrain: tuple[Path, ...] = (),
    split: str | None = None,
    pictures: bool = False,
    html: Path | None = None,
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Look for leakage between the splits of one or several manifests. Leakage is reported, not an error (exit code 0).

    Args:
        manifests: CSV or Parquet files; their column `split` says what is trained and tested on.
        pretrain: manifests that a model was pre-trained on, compared with the validation and test rows of the others.
        split: look at the official split of this name (column `split_NAME`) instead of the column `split`.
        pictures: open the pictures and videos and look for near-duplicates; takes minutes for tens of thousands.
        html: write a page with the pictures side by side.
        json_: print the result as JSON for other programs instead of text.
    """
    from endofm_lab.data.audit.audit import audit as run_audit
    from endofm_lab.data.manifest import Manifest, read_manifest
    from endofm_lab.data.splits import named_split
    from endofm_lab.reports.audit import write_audit_html

    read = [read_manifest(path) for path in manifests]
    if split is not None:
        read = [Manifest(named_split(manifest.table, split), manifest.root, manifest.path) for manifest in read]
    result = run_audit(
        read,
        pretrain=[read_manifest(path) for path in pretrain],
        pictures=pictures,
        progress=not json_,
    )
    if html is not None:
        write_audit_html(result, html)
    print(json.dumps(result.to_json(), indent=2, ensure_ascii=False) if json_ else result.text())
    if html is not None and not json_:
        print(f"\nThe pictures are side by side in {html}")

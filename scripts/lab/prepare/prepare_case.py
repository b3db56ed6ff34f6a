"""Prepares one case: read, map label values, apply the protocol's steps, write, record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scripts.core.errors import InputError, find_input_error, innermost_message
from scripts.core.files import write_json
from scripts.lab.prepare.nifti_pairs import write_nifti
from scripts.lab.prepare.protocol_file import build_steps
from scripts.lab.prepare.rules import DomainRules, Rules
from scripts.lab.prepare.source_case import SourceCase
from scripts.lab.prepare.values import count_values

__all__ = ["finished_record", "output_files", "prepare_case", "record_file", "settings_key"]

# Version of the output format; finished cases of earlier versions are prepared again.
FORM = 2


def output_files(out: Path, case: SourceCase) -> dict[str, Path]:
    """Output files of a case's image and label map."""
    return {role: out / case.domain / f"{case.name}_{role}.nii.gz" for role in ("image", "label")}


def record_file(out: Path, case: SourceCase) -> Path:
    """Output file of a case's record, which is written last: if it exists, the volumes are complete."""
    return out / case.domain / f"{case.name}.json"


def settings_key(rules: Rules, domain: DomainRules, case: SourceCase, *, trust_image: bool) -> str:
    """A digest of everything that determines a case's outputs: its files, its domain's rules, the output version."""
    content = {
        "form": FORM,
        "sources": case.fingerprint(),
        "labels": asdict(domain.labels),
        "steps": domain.steps,
        "value_range": asdict(domain.value_range) if domain.value_range else None,
        "trust_image": trust_image,
        "dataset": rules.dataset,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def finished_record(out: Path, case: SourceCase, key: str) -> dict[str, Any] | None:
    """The record of a finished case: its key matches and its files have their recorded sizes."""
    try:
        record = json.loads(record_file(out, case).read_text(encoding="utf-8"))
        files = {(out / case.domain / name): size for name, size in record["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = all(path.is_file() and path.stat().st_size == size for path, size in files.items())
    return dict(record) if whole and record.get("key") == key else None


def prepare_case(out: Path, case: SourceCase, rules: Rules, key: str) -> dict[str, Any]:
    """Write a case's image, label map and record, all or none; return the record."""
    domain = rules.domains[case.domain]
    reading = case.read()
    if domain.value_range:
        domain.value_range.check(reading.image, case.sources[0])
    image, affine, notes = reading.image, reading.affine, list(reading.notes)
    label: np.ndarray | None = None
    counts: dict[int, int] | None = None
    if reading.label is not None:
        label, counts, label_notes = domain.labels.apply(reading.label, reading.label_file)
        notes += label_notes
    if domain.steps:
        image, label, affine = _apply(domain.steps, image, label, affine, reading.label_file or case.sources[0])
        counts = count_values(label)
    files = output_files(out, case)
    # A case without a record is unfinished, so that an interruption cannot leave a pair of old and new files.
    record_file(out, case).unlink(missing_ok=True)
    copied = None if domain.steps else reading.image_file
    sizes = {files["image"].name: write_nifti(files["image"], image, affine, same_as=copied)}
    if label is None:
        files["label"].unlink(missing_ok=True)
    else:
        sizes[files["label"].name] = write_nifti(files["label"], label, affine, is_label=True)
    record = {
        "case": case.name,
        "domain": case.domain,
        "dataset": rules.dataset,
        "protocol": rules.protocol,
        "sources": _short_names(case.sources),
        "shape": list(image.shape),
        "spacing_mm": [round(float(size), 4) for size in np.linalg.norm(affine[:3, :3], axis=0)],
        "orientation": "".join(nib.aff2axcodes(affine)),
        "label_voxels": None if counts is None else {str(value): counts[value] for value in sorted(counts) if value},
        "notes": notes,
        "files": sizes,
        "key": key,
    }
    write_json(record_file(out, case), record)
    return record


def _apply(
    steps: Sequence[Mapping[str, Any]], image: np.ndarray, label: np.ndarray | None, affine: np.ndarray, file: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Apply the protocol's MONAI transforms to an image and its label map."""
    import torch
    from monai.data import MetaTensor

    if label is None:
        expected = "a label map: grid and crop of this protocol need image and label"
        raise InputError(file=file, found="no label map", expected=expected, remedy="use --protocol clean")
    if not label.any() and any("label" in (step.get("label_key"), step.get("source_key")) for step in steps):
        raise InputError(
            file=file,
            found="no labelled voxel",
            expected="a label to crop around, which this protocol needs",
            remedy="use --protocol clean, which crops nothing",
        )
    transform = build_steps(steps)
    position = torch.as_tensor(affine, dtype=torch.float64)
    volumes = {
        key: MetaTensor(torch.from_numpy(np.ascontiguousarray(voxels, np.float32))[None], affine=position)
        for key, voxels in (("image", image), ("label", label))
    }
    try:
        done = transform(volumes)
    except Exception as error:  # MONAI wraps errors of transforms in a RuntimeError
        raise _input_error(error, file) from error
    new_image = np.asarray(done["image"][0], np.float32)
    new_label = np.rint(np.asarray(done["label"][0])).astype(label.dtype)
    return new_image, new_label, np.asarray(done["image"].affine, np.float64)


def _input_error(error: Exception, file: Path) -> InputError:
    """The error of a protocol's step, with the case's file."""
    cause = find_input_error(error)
    if cause is not None:
        return InputError(file=file, found=cause.found, expected=cause.expected, remedy=cause.remedy)
    found = f"a case that the protocol's steps cannot process ({innermost_message(error)})"
    remedy = "check its label map and size, or use --protocol clean"
    return InputError(file=file, found=found, expected="a case that fits the protocol", remedy=remedy)


def _short_names(sources: Sequence[Path]) -> list[str]:
    """Names of a case's files; the first and the last of many."""
    names = [f"{path.parent.name}/{path.name}" for path in sources]
    return names if len(names) <= 4 else [names[0], f"... {len(names) - 2} more ...", names[-1]]

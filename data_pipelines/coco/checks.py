"""Validates datasets in the DensePose-COCO format and names every bad record.

`check_dataset` decides what is usable, and the parser in `annotations` uses exactly that.
"""

import collections
import dataclasses
import gc
import json
import os
import pathlib
from collections.abc import Mapping, Sequence, Set
from typing import Any

import orjson

from ktn_jax.data_pipelines.coco import record_checks
from ktn_jax.data_pipelines.coco.densepose_checks import (
    find_sound_masks,
    has_densepose,
    has_vertices,
)
from ktn_jax.data_pipelines.coco.findings import (
    DENSEPOSE_KINDS,
    KINDS,
    Collector,
    Finding,
)
from ktn_jax.data_pipelines.coco.image_checks import check_image_file
from ktn_jax.data_pipelines.coco.json_values import is_integer

SECTIONS = ("images", "annotations", "categories")
PERSON = "person"  # the category that is checked and used, unless others are asked for


@dataclasses.dataclass(frozen=True)
class AnnotationReport:
    """The contents of an annotation file and the findings about it.

    The three sets are positions in the file's lists, of records with an error. An annotation is
    also bad if its image is. `bad_densepose` are people of whom only `dp_*` is wrong: they are kept
    as people without DensePose.
    """

    file: str
    counts: Mapping[str, int]
    findings: tuple[Finding, ...]
    bad_images: frozenset[int] = frozenset()
    bad_annotations: frozenset[int] = frozenset()
    bad_densepose: frozenset[int] = frozenset()
    categories: frozenset[int] = frozenset()
    # Index of its class by the id of each category that was asked for; those of people otherwise.
    classes: Mapping[int, int] = dataclasses.field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that keep a record from being used."""
        return tuple(finding for finding in self.findings if finding.is_error)

    @property
    def ok(self) -> bool:
        """Whether every record can be used."""
        return not self.errors

    @property
    def is_readable(self) -> bool:
        """Whether the file as a whole could be read; if not, there are no records to skip."""
        return not any(finding.record == "(file)" for finding in self.errors)

    def format(self, max_findings: int | None = None) -> str:
        """Writes the report as text.

        Args:
            max_findings: how many findings to write out; None writes all.

        Returns:
            Lines: counts, findings by kind, the findings, and the verdict.
        """
        lines = [f"{self.file}"]
        lines += [f"  {count:>9,}  {name}" for name, count in self.counts.items()]
        kinds = collections.Counter(finding.kind for finding in self.findings)
        lines += [f"  {count:>9,}  {kind}: {KINDS[kind]}" for kind, count in kinds.most_common()]
        shown = self.findings[:max_findings]
        lines += [str(finding) for finding in shown]
        if len(shown) < len(self.findings):
            lines.append(f"... and {len(self.findings) - len(shown):,} more")
        warnings = len(self.findings) - len(self.errors)
        verdict = "ok" if self.ok else "BAD"
        lines.append(f"{verdict}: {len(self.errors):,} errors, {warnings:,} warnings")
        return "\n".join(lines)


class DatasetError(ValueError):
    """A dataset that cannot be used; `report` says why."""

    def __init__(self, message: str, report: AnnotationReport):
        super().__init__(message)
        self.report = report


def check_file(
    path: str | os.PathLike[str],
    images_dir: str | os.PathLike[str] | None = None,
    categories: Sequence[str] = (PERSON,),
) -> AnnotationReport:
    """Validates an annotation file, and its images where their folder is given.

    Args:
        path: DensePose-COCO JSON.
        images_dir: folder that `file_name` is relative to; None leaves the images unread.
        categories: names of those whose annotations are checked.

    Returns:
        The report. Errors in the file are reported, not raised.
    """
    raw, finding = load_json(path)
    if finding is not None:
        return AnnotationReport(str(path), {}, (finding,))
    return check_dataset(raw, str(path), images_dir, categories)


def load_json(path: str | os.PathLike[str]) -> tuple[Any, Finding | None]:
    """Reads a JSON file.

    Args:
        path: the file.

    Returns:
        Its value and None, or None and the finding that says why it could not be read.
    """
    file = str(path)
    try:
        return _decode(pathlib.Path(path).read_bytes()), None
    except FileNotFoundError:
        kind, message = "file_missing", "no such file"
    except IsADirectoryError:
        kind, message = "file_unreadable", "is a folder: name the annotation file in it"
    except UnicodeDecodeError as error:
        kind, message = "file_unreadable", str(error)
    except (ValueError, RecursionError) as error:  # also an integer of thousands of digits
        kind, message = "not_json", str(error)
    except OSError as error:
        kind, message = "file_unreadable", str(error)
    return None, Finding(kind, file, "(file)", "(whole file)", message)


def _decode(content: bytes) -> Any:
    was_enabled = gc.isenabled()
    gc.disable()  # nothing here is garbage yet, and looking for it costs a seventh
    try:
        return orjson.loads(content)  # in less than half the time
    except orjson.JSONDecodeError:
        # It refuses NaN, for which a finding must name the record, and its messages lack the
        # position.
        return json.loads(content)
    finally:
        if was_enabled:
            gc.enable()


def check_dataset(
    raw: Any,
    file: str = "(memory)",
    images_dir: str | os.PathLike[str] | None = None,
    categories: Sequence[str] = (PERSON,),
) -> AnnotationReport:
    """Validates a dataset that is already read.

    Args:
        raw: what the JSON file holds.
        file: name for the findings.
        images_dir: folder that `file_name` is relative to; None leaves the images unread.
        categories: names of those whose annotations are checked, in the order of the classes.

    Returns:
        The report. Errors in the file are reported, not raised.
    """
    top = Collector(file, "(file)")
    known, classes = _check_top(raw, top, categories)
    if top.findings:
        return AnnotationReport(file, {}, tuple(top.findings))
    findings: list[Finding] = []
    sizes, bad_images = _check_images(raw["images"], file, images_dir, findings)
    bad_annotations, bad_densepose = _check_annotations(
        raw["annotations"], sizes, known, classes.keys(), file, findings
    )
    return AnnotationReport(
        file=file,
        counts=_count(raw, bad_images, bad_annotations, bad_densepose, classes.keys()),
        findings=tuple(findings),
        bad_images=frozenset(bad_images),
        bad_annotations=frozenset(bad_annotations),
        bad_densepose=frozenset(bad_densepose),
        categories=frozenset(known),
        classes=classes,
    )


def _check_top(
    raw: Any, found: Collector, wanted: Sequence[str]
) -> tuple[set[int], dict[int, int]]:
    """Returns the ids of all categories, and the class of those that are wanted by id."""
    if not isinstance(raw, Mapping):
        text = "must be an object with images, annotations and categories"
        if isinstance(raw, list):
            text += ", got a list: are these results, not annotations?"
        else:
            text += f", got {type(raw).__name__}"
        found.add("wrong_top_level", "(whole file)", text)
        return set(), {}
    for section in SECTIONS:
        if not isinstance(raw.get(section), list):
            found.add("missing_section", section, "is missing or not a list")
    if found.findings:
        return set(), {}
    known: dict[int, Any] = {}
    classes: dict[int, int] = {}
    categories = [c for c in raw["categories"] if isinstance(c, Mapping)]
    for category in categories:
        name, number = category.get("name"), category.get("id")
        # The only category is the wanted one, whatever its name.
        is_named = name in wanted
        is_wanted = is_named or (len(categories) == 1 and len(wanted) == 1)
        if is_integer(number):
            known[number] = name
            if is_wanted:
                classes[number] = wanted.index(name) if isinstance(name, str) and is_named else 0
        elif is_wanted:
            text = f"id of {name!r:.80} must be an integer, got {number!r:.80}"
            found.add("wrong_type", "categories", text)
    if not classes and not found.findings:
        names = ", ".join(f"{c.get('name')!r:.80}" for c in categories[:20]) or "none"
        text = f"no category is named {' or '.join(wanted)}: {names}"
        found.add("no_person_category", "categories", text)
    return set(known), classes


def _check_images(
    images: list[Any], file: str, images_dir: str | os.PathLike[str] | None, findings: list[Finding]
) -> tuple[dict[int, tuple[int, int]], set[int]]:
    """Returns (height, width) by image id, (0, 0) where the image is bad, and bad positions."""
    sizes: dict[int, tuple[int, int]] = {}
    bad = set()
    for position, raw in enumerate(images):
        found = Collector(file, record_checks.record_name("images", position, raw))
        record_checks.check_image(raw, found)
        image_id = raw.get("id") if isinstance(raw, Mapping) else None
        is_repeated = is_integer(image_id) and image_id in sizes
        if is_repeated:
            found.add("duplicate_image", "id", f"image {image_id} was there before")
        if images_dir is not None and not found.findings:
            name = record_checks.image_file_name(raw)
            path = pathlib.Path(images_dir, name)
            wrong = check_image_file(path, raw["height"], raw["width"])
            if wrong is not None:
                found.add(wrong[0], "file_name", f"{name}: {wrong[1]}")
        is_bad = any(finding.is_error for finding in found.findings)
        if is_bad:
            bad.add(position)
        if is_integer(image_id) and not is_repeated:
            sizes[image_id] = (0, 0) if is_bad else (raw["height"], raw["width"])
        findings += found.findings
    return sizes, bad


def _check_annotations(
    annotations: list[Any],
    sizes: Mapping[int, tuple[int, int]],
    categories: set[int],
    people: Set[int],
    file: str,
    findings: list[Finding],
) -> tuple[set[int], set[int]]:
    """Returns positions of bad annotations, and of good ones whose DensePose is bad."""
    bad, bad_densepose = set(), set()
    seen = set()
    others = categories - people
    sound = find_sound_masks(annotations)
    for position, raw in enumerate(annotations):
        if is_of_category(raw, others):
            continue  # of another category
        found = Collector(file, record_checks.record_name("annotations", position, raw))
        record_checks.check_annotation(raw, sizes, categories, found, position in sound)
        if has_id(raw):
            if raw["id"] in seen:
                found.add("duplicate_annotation", "id", f"annotation {raw['id']} was there before")
            seen.add(raw["id"])
        kinds = {finding.kind for finding in found.findings if finding.is_error}
        if kinds - DENSEPOSE_KINDS:
            bad.add(position)
        elif sizes[raw["image_id"]] == (0, 0):  # its image is reported already
            bad.add(position)
        elif kinds:
            bad_densepose.add(position)
        findings += found.findings
    return bad, bad_densepose


def has_id(raw: Any) -> bool:
    """Whether a record has an id that is an integer."""
    return isinstance(raw, Mapping) and is_integer(raw.get("id"))


def is_of_category(raw: Any, categories: Set[int]) -> bool:
    """Whether an entry of `annotations` names one of these categories."""
    if not isinstance(raw, Mapping):
        return False
    category = raw.get("category_id")
    return is_integer(category) and category in categories


def _count(
    raw: Mapping[str, Any],
    bad_images: set[int],
    bad_annotations: set[int],
    bad_densepose: set[int],
    people: Set[int],
) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    for position, annotation in enumerate(raw["annotations"]):
        if position in bad_annotations:
            continue
        if not is_of_category(annotation, people):
            counts["annotations of other categories"] += 1
            continue
        counts["people"] += 1
        counts["crowd regions"] += bool(annotation.get("iscrowd"))
        counts["people with keypoints"] += any((annotation.get("keypoints") or ())[2::3])
        if position not in bad_densepose and has_densepose(annotation):
            counts["people with DensePose"] += 1
            counts["DensePose points"] += len(annotation["dp_x"])
            counts["people with vertices"] += has_vertices(annotation)
    return {
        "images": len(raw["images"]),
        "annotations": len(raw["annotations"]),
        "bad images": len(bad_images),
        "bad annotations": len(bad_annotations),
        "people whose DensePose is bad": len(bad_densepose),
        **counts,
    }

"""Charts made into vertices, against the exact vertices of rendered people."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from ktn_jax.body import meshes
from ktn_jax.data_pipelines.coco import checks
from ktn_jax.data_pipelines.coco.annotations import parse_dataset
from ktn_jax.data_pipelines.synthetic.scene import EASY
from ktn_jax.data_pipelines.synthetic.source import SyntheticSource, dataset_header
from ktn_jax.evaluation import template_files, vertex_annotations


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    template_files.ensure_own_template(folder)
    return folder


@pytest.fixture(scope="module")
def rendered():
    """Annotations of a few rendered people, with charts and vertices."""
    scene = dataclasses.replace(EASY, image_size_hw=(160, 160))
    examples = list(SyntheticSource(4, 3, scene))
    raw = dataset_header(scene, 4, 3)
    raw["images"] = [example.image_record for example in examples]
    raw["annotations"] = [one for example in examples for one in example.annotations]
    return raw


def _without_vertices(raw):
    raw = copy.deepcopy(raw)
    for person in raw["annotations"]:
        person.pop("dp_vertex", None)
        person.pop("ref_model", None)
    return raw


def test_vertices_are_those_that_the_points_show(rendered, template, tmp_path):
    source, output = tmp_path / "charts.json", tmp_path / "cse.json"
    charts = _without_vertices(rendered)
    first = charts["annotations"][0]
    first["dp_I"][2] = 0.0  # on no patch
    first["dp_annotated"] = [1] * len(first["dp_x"])
    source.write_text(json.dumps(charts))
    counts = vertex_annotations.convert_file(source, output, template)
    converted = json.loads(output.read_text())
    people = [one for one in rendered["annotations"] if "dp_x" in one]
    assert counts.people == len(people) and counts.dropped == 1
    assert counts.points == sum(len(one["dp_x"]) for one in people) - 1
    assert counts.others == len(rendered["annotations"]) - counts.people
    vertices = meshes.load_mesh("body").vertices
    distances, same = [], []
    for one, other in zip(rendered["annotations"], converted["annotations"], strict=True):
        if "dp_x" not in one:
            assert one == other
            continue
        exact = np.array(one["dp_vertex"])
        if one is rendered["annotations"][0]:
            exact = np.delete(exact, 2)
        found = np.array(other["dp_vertex"])
        assert other["ref_model"] == "body" and len(found) == len(exact)
        columns = [other[key] for key in ("dp_x", "dp_U", "dp_annotated") if key in other]
        assert {len(column) for column in columns} == {len(found)}
        distances.append(np.linalg.norm(vertices[exact] - vertices[found], axis=1))
        same.append(exact == found)
    # Nearest in the chart, which stretches the surface, and nearest on the face differ here and
    # there by an edge, of 3 cm or so.
    assert np.concatenate(same).mean() > 0.8 and np.concatenate(distances).max() < 0.1
    assert parse_dataset(output).images.facts().vertices.keys() == {"body"}


def test_what_does_not_fit_is_refused_before_anything_is_written(rendered, template, tmp_path):
    source, output = tmp_path / "charts.json", tmp_path / "cse.json"
    charts = _without_vertices(rendered)
    source.write_text(json.dumps(charts))
    with pytest.raises(ValueError, match="--mesh smpl_27554 has 27554 vertices, template"):
        vertex_annotations.convert_file(source, output, template, "smpl_27554")
    charts["annotations"][0]["dp_U"][0] = 2.0
    source.write_text(json.dumps(charts))
    with pytest.raises(checks.DatasetError, match="uv_range"):
        vertex_annotations.convert_file(source, output, template)
    assert not output.exists()
    counts = vertex_annotations.convert_file(source, output, template, "mine", on_bad="skip")
    assert counts.people == sum("dp_x" in one for one in charts["annotations"]) - 1
    with pytest.raises(ValueError, match=r"cse\.json exists"):
        vertex_annotations.convert_file(source, output, template)

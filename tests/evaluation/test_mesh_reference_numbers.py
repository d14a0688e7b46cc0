"""Every number that detectron2 gives for recorded embeddings, and the alignment of the meshes."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.body.parts import PATCH_NAMES
from ktn_jax.evaluation import evaluator, precision_recall
from ktn_jax.evaluation.errors import EvaluationError
from ktn_jax.evaluation.ground_truth import PersonTruth, read_ground_truth
from ktn_jax.evaluation.mesh_alignment import measure_alignment
from ktn_jax.evaluation.mesh_distances import MeshDistances
from ktn_jax.evaluation.options import ScoringOptions
from ktn_jax.evaluation.pair_distances import PairMeasure
from ktn_jax.evaluation.result_files import Detection, Place, index_results
from ktn_jax.inference import surfaces
from ktn_jax.results import records
from ktn_jax.results.vertex_pictures import encode_vertices
from ktn_jax.structures import EmbeddingOutputs

MESHES = ("body_a", "smpl_27554")


@pytest.fixture(scope="module")
def recorded(golden_dir):
    with np.load(golden_dir / "eval" / "expected_cse.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def embeddings(recorded):
    return {mesh: recorded[f"mesh/{mesh}/vertex_embeddings"] for mesh in MESHES}


@pytest.fixture(scope="module")
def distances(recorded):
    return MeshDistances(tables={mesh: recorded[f"mesh/{mesh}/geodists"] for mesh in MESHES})


@pytest.fixture(scope="module")
def scored(recorded, embeddings, distances, tmp_path_factory):
    """Scores by image. The original compares embeddings with the mesh of each annotation."""
    folder = tmp_path_factory.mktemp("results")
    annotations = json.loads(str(recorded["gt_json"]))
    for image in annotations["images"]:
        image["file_name"] = f"{image['id']}.png"
    truth = read_ground_truth(annotations)
    by_mesh = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ktn_jax.evaluation.scorer.MeshDistances", lambda files: distances)
        for mesh in MESHES:
            path = folder / f"{mesh}.json"
            records.write_results(path, _results(recorded, mesh, embeddings[mesh]))
            results = index_results(path, truth)
            evaluator.check_no_template(results, truth)
            options = ScoringOptions(workers=1)
            by_mesh.append(list(evaluator.score_images(truth, results, None, options)))
    people = {image.image_id: image.people for image in truth.images}
    images = []
    for first, second in zip(*by_mesh, strict=True):
        has_first = [person.mesh == MESHES[0] for person in people[first.image_id]]
        first.gps[:] = np.where(has_first, first.gps, second.gps)
        images.append(first)
    return images


def _results(recorded, mesh, table):
    found = []
    for number, record in enumerate(json.loads(str(recorded["predictions_json"]))):
        coarse, embedding = (
            np.ascontiguousarray(recorded[f"predictions/{name}"][number].transpose(1, 2, 0))
            for name in ("coarse_segm", "embedding")
        )
        maps = EmbeddingOutputs(coarse_segm=coarse, embedding=embedding)
        size_hw = (int(record["bbox"][3]), int(record["bbox"][2]))
        vertices = surfaces.vertices_in_box(maps, jnp.asarray(table), size_hw)
        found.append(record | {"vertices": encode_vertices(vertices, mesh)})
    return found


@pytest.mark.parity
def test_similarities_equal_the_reference(scored, recorded):
    assert [image.image_id for image in scored] == [1, 2, 3, 4]
    for image in scored:
        prefix = f"image/{image.image_id}"
        np.testing.assert_allclose(image.gps, recorded[f"{prefix}/ogps"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(image.box_iou, recorded[f"{prefix}/bbox_iou"], atol=1e-12)
        np.testing.assert_allclose(image.mask_iou, recorded[f"{prefix}/mask_iou"], atol=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize("lowest", [0.5, 0.2])
def test_precision_recall_and_summary_equal_the_reference(scored, recorded, lowest):
    thresholds = precision_recall.similarity_thresholds(lowest)
    curves = evaluator.accumulate_scores(scored, thresholds)
    for measure, name in enumerate(("GPS", "GPSM", "IOU")):
        expected = {
            key: recorded[f"thr{lowest}/{name}/{key}"] for key in ("precision", "recall", "stats")
        }
        precision = curves.precision[measure][:, :, None, :, None]
        np.testing.assert_array_equal(precision, expected["precision"])
        recall = curves.recall[measure][:, None, :, None]
        np.testing.assert_array_equal(recall, expected["recall"])
        summary = precision_recall.summarise(curves, measure)
        np.testing.assert_allclose(list(summary.values()), expected["stats"], rtol=0, atol=1e-15)


@pytest.mark.parity
def test_alignment_equals_the_reference(recorded, embeddings, distances):
    key_vertices = json.loads(str(recorded["mesh_alignment/keyvertices_json"]))
    expected = json.loads(str(recorded["mesh_alignment/result_json"]))
    found = measure_alignment(embeddings, key_vertices, distances)
    assert found.mean_error == pytest.approx(expected["GE"], rel=1e-6)
    assert found.mean_similarity == pytest.approx(expected["GPS"], rel=1e-6)
    assert found.error == pytest.approx(expected["per_mesh"]["GE"], rel=1e-6)
    assert found.similarity == pytest.approx(expected["per_mesh"]["GPS"], rel=1e-6)
    # Other meshes and meanings do not count; what cannot be measured is named.
    more = {"cat": {"k0": 3}, **{mesh: own | {mesh: 0} for mesh, own in key_vertices.items()}}
    assert measure_alignment(embeddings, more, distances) == found
    for wrong, message in (
        ({"cat": {"k0": 3}}, "two meshes or more of body_a, smpl_27554, got those of cat"),
        ({"body_a": {"k0": 1}, "smpl_27554": {"k1": 1}}, "no key vertices of the same meaning"),
        ({"body_a": {"k0": 300}, "smpl_27554": {"k0": 1}}, r"body_a must be 0\.\.299"),
    ):
        with pytest.raises(EvaluationError, match=message):
            measure_alignment(embeddings, wrong, distances)


def _as_vertices(entry):
    """Vertices of the flat template, whose rows they are, in place of an IUV picture."""
    patch, u, v = entry["iuv"].astype(np.int32)
    vertices = np.where(patch > 0, (patch - 1) * 64 + v // 36 * 8 + u // 36, -1).astype(np.int32)
    kept = {key: value for key, value in entry.items() if key != "iuv"}
    return kept | {"vertices": encode_vertices(vertices, "flat")}


def test_vertices_are_scored_as_charts_where_charts_are_annotated(flat_world, tmp_path):
    entries = [dict(entry) for entry in flat_world.entries]
    for number, entry in enumerate(entries):  # some are wrong, and one is background
        entry["iuv"] = np.roll(entry["iuv"], 3 * number, axis=2)
    entries[-1]["iuv"] = np.zeros_like(entries[-1]["iuv"])
    charts = flat_world.write(tmp_path, entries)
    options = ScoringOptions(workers=1)
    expected = evaluator.evaluate_files(*charts, flat_world.template_dir, options)
    vertices = flat_world.write(tmp_path, [_as_vertices(entry) for entry in entries])
    output = tmp_path / "report"
    found = evaluator.evaluate_files(*vertices, flat_world.template_dir, options, output_dir=output)
    assert found.summaries == expected.summaries and 0 < found.summaries["GPS"]["AP"] < 100
    assert found.patches.rows(PATCH_NAMES) == expected.patches.rows(PATCH_NAMES)
    assert found.people == expected.people
    assert "Best and worst" not in (output / "report.html").read_text()
    with pytest.raises(EvaluationError, match="results.json: --template is needed"):
        evaluator.evaluate_files(*vertices, None, options)
    entries[0]["iuv"][:] = 255  # a vertex that the template does not have
    wrong = _as_vertices(entries[0])
    results, annotations = flat_world.write(tmp_path, [wrong])
    with pytest.raises(EvaluationError, match="is predicted, and the template flat test template"):
        evaluator.evaluate_files(results, annotations, flat_world.template_dir, options)


def test_another_mesh_is_far_away_and_vertices_that_a_mesh_lacks_are_named():
    points = np.array([[100.0, 200], [50, 60], [0, 0], [0, 0], [0, 0]])
    person = PersonTruth(
        *(1, (0, 0, 20, 20), 400.0, False, points, None, None), np.array([0, 2]), "line"
    )
    near = Detection(1, 1, 0.9, (0, 0, 20, 20), Place(0, 0), has_picture=False, mesh="line")
    other = dataclasses.replace(near, mesh="cat")
    table = np.abs(np.subtract.outer(np.arange(3), np.arange(3))) / np.float16(4)
    measure = PairMeasure(None, MeshDistances(tables={"line": table.astype(np.float16)}))
    picture = np.full((1, 20, 20), 2, np.int32)  # vertex 1 everywhere
    pairs = measure.measure([person], [near, other], [picture, picture])
    np.testing.assert_array_equal(pairs[0, 0].distances, [0.25, 0.25])
    assert pairs[0, 0].distances.dtype == np.float32  # halves would be squared coarsely
    np.testing.assert_array_equal(pairs[0, 0].mean_distance, 0.255)
    assert np.isinf(pairs[1, 0].distances).all()
    with pytest.raises(EvaluationError, match="vertex 3 of the mesh 'line', which has 3"):
        measure.measure([person], [near], [picture + 2])
    with pytest.raises(EvaluationError, match="distances on the mesh 'line': no mesh is called"):
        PairMeasure(None, MeshDistances()).measure([person], [near], [picture])

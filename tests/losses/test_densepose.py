"""Losses of the chart maps against an independent loop over points and cells."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ktn_jax.losses import densepose
from ktn_jax.losses.densepose import DensePoseTargets, DensePoseWeights
from ktn_jax.losses.masks_keypoints import KeypointTargets, keypoint_loss
from ktn_jax.losses.terms import values_of
from ktn_jax.structures import DensePoseOutputs

SIDE, PATCHES, KEYPOINTS = 6, 25, 17


def _outputs(number, seed=0, coarse=2, parts=None, keypoints=False, sigma=False, kappa=False):
    rng = np.random.default_rng(seed)

    def maps(channels):
        values = rng.normal(size=(number, SIDE, SIDE, channels)).astype(np.float32)
        return jnp.asarray(values)

    return DensePoseOutputs(
        coarse_segm=maps(coarse),
        fine_segm=maps(PATCHES),
        u=maps(PATCHES),
        v=maps(PATCHES),
        part_segm=maps(parts) if parts else None,
        keypoints=maps(KEYPOINTS) if keypoints else None,
        sigma=maps(PATCHES) if sigma else None,
        kappa_u=maps(PATCHES) if kappa else None,
        kappa_v=maps(PATCHES) if kappa else None,
    )


def _targets(number, points=9, seed=1, masks=False):
    """ROIs that overlap their people by parts, so that some points are outside."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (number, 2))
    gt_boxes = np.concatenate([corner, corner + rng.uniform(20, 60, (number, 2))], axis=1)
    boxes = gt_boxes + rng.uniform(-8, 8, (number, 4))
    keypoints = np.concatenate(
        [
            rng.uniform(gt_boxes[:, None, :2], gt_boxes[:, None, 2:], (number, KEYPOINTS, 2)),
            rng.integers(0, 3, (number, KEYPOINTS, 1)),
        ],
        axis=-1,
    )
    place = (number, points)
    blocks = rng.integers(0, 15, (number, 8, 8)).repeat(32, 1).repeat(32, 2)
    values = DensePoseTargets(
        boxes=boxes.astype(np.float32),
        weight=np.ones(number, np.float32),
        gt_boxes=gt_boxes.astype(np.float32),
        has_densepose=np.ones(number, bool),
        point_is_valid=rng.random(place) < 0.8,
        point_x=rng.uniform(0, 255, place).astype(np.float32),
        point_y=rng.uniform(0, 255, place).astype(np.float32),
        point_i=rng.integers(0, PATCHES, place).astype(np.int32),
        point_u=rng.random(place).astype(np.float32),
        point_v=rng.random(place).astype(np.float32),
        part_mask=blocks.astype(np.uint8),
        keypoints=keypoints.astype(np.float32),
        mask_labels=rng.random((number, SIDE, SIDE)) < 0.4 if masks else None,
        has_person_mask=np.ones(number, bool) if masks else None,
    )
    return jax.tree.map(jnp.asarray, values)


def _densepose_losses(*arguments, **options):
    return values_of(densepose.densepose_losses(*arguments, **options))


def _point_losses(outputs, targets, **options):
    return values_of(densepose.point_losses(outputs, targets, num_images=1, **options))


def _area_losses(*arguments, **options):
    return values_of(densepose.area_losses(*arguments, **options))


def _read(chart, x, y):
    """Bilinear read of [S, S, C] at grid coordinates, clamped to the last cell."""
    x0, y0 = int(x), int(y)
    x1, y1 = min(x0 + 1, SIDE - 1), min(y0 + 1, SIDE - 1)
    wx, wy = (x - x0) * (x1 > x0), (y - y0) * (y1 > y0)
    top = (1 - wx) * chart[y0, x0] + wx * chart[y0, x1]
    return (1 - wy) * top + wy * ((1 - wx) * chart[y1, x0] + wx * chart[y1, x1])


def _log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _points_by_loop(outputs, targets):
    """(roi, patch, u, v, read logits, read u, read v) of every point inside its ROI."""
    outputs, targets = jax.device_get((outputs, targets))
    for roi in range(len(targets.boxes)):
        gt, box = targets.gt_boxes[roi].astype(float), targets.boxes[roi].astype(float)
        for p in np.flatnonzero(targets.point_is_valid[roi]):
            x = gt[0] + targets.point_x[roi, p] * (gt[2] - gt[0]) / 256 - box[0]
            y = gt[1] + targets.point_y[roi, p] * (gt[3] - gt[1]) / 256 - box[1]
            width, height = box[2] - box[0], box[3] - box[1]
            if not (0 <= x < width and 0 <= y < height):
                continue
            place = (x * SIDE / width, y * SIDE / height)
            patch = targets.point_i[roi, p]
            maps = [getattr(outputs, name)[roi] for name in ("fine_segm", "u", "v")]
            logits, u, v = (_read(chart, *place) for chart in maps)
            truth = (targets.point_u[roi, p], targets.point_v[roi, p])
            yield roi, patch, truth, logits, (u[patch], v[patch])


def _smooth(difference, beta=1.0):
    square = 0.5 * difference**2 / beta
    return np.where(abs(difference) < beta, square, abs(difference) - 0.5 * beta)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_point_losses_equal_a_loop_over_the_points(beta):
    outputs, targets = _outputs(4), _targets(4)
    losses = _point_losses(outputs, targets, beta=beta)
    entropy, distance = [], np.zeros(2)
    for _, patch, truth, logits, read in _points_by_loop(outputs, targets):
        entropy.append(-_log_softmax(logits)[patch])
        if patch > 0:
            distance += _smooth(np.subtract(read, truth), beta)
    assert 5 < len(entropy) < np.asarray(targets.point_is_valid).sum()  # some are outside
    np.testing.assert_allclose(losses["fine_segm"], np.mean(entropy), rtol=1e-5)
    np.testing.assert_allclose([losses["u"], losses["v"]], distance, rtol=1e-5)


def test_weights_let_rois_stand_for_others():
    outputs, targets = _outputs(3), _targets(3)
    weight = jnp.array([2.5, 0.0, 1.0])
    losses = _point_losses(outputs, dataclasses.replace(targets, weight=weight))
    entropy, total, distance = 0, 0, 0
    for roi, patch, truth, logits, read in _points_by_loop(outputs, targets):
        entropy -= weight[roi] * _log_softmax(logits)[patch]
        total += weight[roi]
        distance += weight[roi] * (patch > 0) * _smooth(np.subtract(read, truth))
    np.testing.assert_allclose(losses["fine_segm"], entropy / total, rtol=1e-5)
    np.testing.assert_allclose([losses["u"], losses["v"]], distance, rtol=1e-5)


def test_points_and_parts_of_a_model_weigh_less():
    """Sums of w * loss; means divided by the sum of w: of points, and of ROIs for their areas."""
    outputs, targets = _outputs(3, parts=15), _targets(3, masks=True)
    point_weight = np.random.default_rng(5).uniform(0.2, 1, (3, 9)).astype(np.float32)
    label_weight = jnp.array([1.0, 0.25, 0.5])
    weighted = dataclasses.replace(
        targets,
        weight=jnp.array([1.0, 2.0, 1.0]),
        point_weight=jnp.asarray(point_weight),
        label_weight=label_weight,
    )
    # The loop yields the points of an ROI in order; their weights are found by their truth.
    index = {(roi, float(targets.point_u[roi, p])): p for roi in range(3) for p in range(9)}
    entropy, total, distance = 0.0, 0.0, np.zeros(2)
    for roi, patch, truth, logits, read in _points_by_loop(outputs, targets):
        own = [1, 2, 1][roi] * point_weight[roi, index[roi, float(truth[0])]]
        entropy -= own * _log_softmax(logits)[patch]
        total += own
        distance += own * (patch > 0) * _smooth(np.subtract(read, truth))
    losses = _point_losses(outputs, weighted)
    np.testing.assert_allclose(losses["fine_segm"], entropy / total, rtol=1e-5)
    np.testing.assert_allclose([losses["u"], losses["v"]], distance, rtol=1e-5)
    labels = _labels(targets.part_mask, targets)
    of_rois = [_mean_entropy(outputs.part_segm[i : i + 1], labels[i : i + 1]) for i in range(3)]
    areas = _area_losses(outputs, weighted, from_masks=True)
    np.testing.assert_allclose(areas["coarse_segm"], np.dot([1, 0.5, 0.5], of_rois) / 2, rtol=1e-5)
    masks = np.asarray(targets.mask_labels).astype(int)
    of_rois = [_mean_entropy(outputs.coarse_segm[i : i + 1], masks[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(areas["body_mask"], np.dot([1, 0.5, 0.5], of_rois) / 2, rtol=1e-5)
    ones = dataclasses.replace(targets, point_weight=jnp.ones((3, 9)), label_weight=jnp.ones(3))
    for function in (_point_losses, _area_losses):
        assert function(outputs, ones) == function(outputs, targets)
    nothing = dataclasses.replace(targets, point_weight=jnp.zeros((3, 9)))
    losses = _densepose_losses(outputs, nothing, DensePoseWeights(), num_images=1)
    assert not any(losses.values())


@pytest.mark.parametrize("kappa", [False, True])
def test_a_confidence_model_replaces_u_and_v_by_their_likelihood(kappa):
    outputs, targets = _outputs(2, sigma=True, kappa=kappa), _targets(2)
    losses = _densepose_losses(outputs, targets, DensePoseWeights(), num_images=4)
    assert set(losses) == {"uv", "fine_segm", "coarse_segm"}
    plain = dataclasses.replace(outputs, sigma=None, kappa_u=None, kappa_v=None)
    reads = {}
    for name in ("sigma", "kappa_u", "kappa_v") if kappa else ("sigma",):
        in_place_of_u = dataclasses.replace(plain, u=getattr(outputs, name))
        reads[name] = [point[4][0] for point in _points_by_loop(in_place_of_u, targets)]
    expected = 0
    for index, (_, patch, truth, _, read) in enumerate(_points_by_loop(plain, targets)):
        if patch == 0:
            continue
        delta = np.subtract(read, truth)
        covariance = (np.log1p(np.exp(reads["sigma"][index])) + 0.01) * np.eye(2)
        if kappa:
            ray = np.array([reads["kappa_u"][index], reads["kappa_v"][index]])
            covariance += np.outer(ray, ray)
        expected += 0.5 * (
            np.log(2 * np.pi)
            + np.log(np.linalg.det(covariance))
            + delta @ np.linalg.inv(covariance) @ delta
        )
    np.testing.assert_allclose(losses["uv"], 0.01 * expected, rtol=1e-4)


def _resampled(mask, gt, box):
    """Labels of an ROI's cells: cell i stands at i / S of it, the mask's first and last cells on
    the borders of the person's box; background outside."""
    labels = np.zeros((SIDE, SIDE), int)
    for row in range(SIDE):
        for column in range(SIDE):
            x = box[0] + column / SIDE * (box[2] - box[0])
            y = box[1] + row / SIDE * (box[3] - box[1])
            x = np.round((x - gt[0]) / (gt[2] - gt[0]) * 255).astype(int)
            y = np.round((y - gt[1]) / (gt[3] - gt[1]) * 255).astype(int)
            if 0 <= x <= 255 and 0 <= y <= 255:
                labels[row, column] = mask[y, x]
    return labels


def _mean_entropy(logits, labels):
    return -np.take_along_axis(_log_softmax(logits), labels[..., None], axis=-1).mean()


def _labels(masks, targets):
    return np.stack(
        [
            _resampled(np.asarray(mask), np.asarray(gt, float), np.asarray(box, float))
            for mask, gt, box in zip(masks, targets.gt_boxes, targets.boxes, strict=True)
        ]
    )


@pytest.mark.parametrize("coarse", [2, 15])
def test_coarse_loss_of_the_chart_predictor(coarse):
    outputs, targets = _outputs(3, coarse=coarse), _targets(3)
    labels = _labels(targets.part_mask, targets)
    assert len(np.unique(labels)) > 5 and (labels == 0).any()
    expected = _mean_entropy(outputs.coarse_segm, np.minimum(labels, 1) if coarse == 2 else labels)
    losses = _area_losses(outputs, targets)
    assert set(losses) == {"coarse_segm"}
    np.testing.assert_allclose(losses["coarse_segm"], expected, rtol=1e-5)


def test_where_the_part_is_not_known_any_part_will_do():
    outputs, targets = _outputs(3, coarse=15), _targets(3)
    known = _area_losses(outputs, targets)["coarse_segm"]
    on_person = np.where(np.asarray(targets.part_mask) > 0, 15, 0).astype(np.uint8)
    whole = dataclasses.replace(targets, part_mask=on_person)
    loss = _area_losses(outputs, whole)["coarse_segm"]
    # That of person against background, all parts together; parts 1..14 are none of it.
    parts = np.asarray(outputs.coarse_segm, float)
    merged = np.stack([parts[..., 0], np.log(np.exp(parts[..., 1:]).sum(-1))], -1)
    labels = np.minimum(_labels(on_person, targets), 1)
    np.testing.assert_allclose(loss, _mean_entropy(merged, labels), rtol=1e-5)
    assert loss < known
    binary = _outputs(3, coarse=2)
    losses = [_area_losses(binary, kind)["coarse_segm"] for kind in (targets, whole)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_transfer_predictors_learn_parts_and_a_mask():
    outputs, targets = _outputs(3, parts=15), _targets(3)
    labels = _labels(targets.part_mask, targets)
    losses = _area_losses(outputs, targets)
    expected = _mean_entropy(outputs.part_segm, labels)
    np.testing.assert_allclose(losses["coarse_segm"], expected, rtol=1e-5)
    expected = _mean_entropy(outputs.coarse_segm, np.minimum(labels, 1))
    np.testing.assert_allclose(losses["body_mask"], expected, rtol=1e-5)


def test_person_masks_teach_people_without_densepose():
    outputs, targets = _outputs(3, parts=15), _targets(3, masks=True)
    targets = dataclasses.replace(
        targets,
        has_densepose=jnp.array([True, False, True]),
        has_person_mask=jnp.array([False, True, True]),
    )
    losses = _area_losses(outputs, targets, from_masks=True)
    labels = np.asarray(targets.mask_labels).astype(int)
    expected = _mean_entropy(outputs.coarse_segm[1:], labels[1:])
    np.testing.assert_allclose(losses["body_mask"], expected, rtol=1e-5)
    of_parts = _area_losses(outputs, targets)["coarse_segm"]
    np.testing.assert_allclose(losses["coarse_segm"], of_parts, rtol=1e-6)


@pytest.mark.parametrize("coarse,masks", [(2, False), (15, True)])
def test_person_masks_must_be_there_and_fit(coarse, masks):
    with pytest.raises(ValueError, match=f"person_mask.*{coarse}"):
        densepose.area_losses(_outputs(2, coarse=coarse), _targets(2, masks=masks), True)


def test_people_without_points_do_not_teach_their_parts():
    """As in detectron2, where only people with points are gathered."""
    outputs, targets = _outputs(3, parts=15), _targets(3)
    pointless = targets.point_is_valid.at[1].set(False)
    losses = _area_losses(outputs, dataclasses.replace(targets, point_is_valid=pointless))
    kept = jnp.array([0, 2])
    alone = _area_losses(*jax.tree.map(lambda x: x[kept], (outputs, targets)))
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, alone[name], rtol=1e-6)


def test_one_point_on_the_body_lets_background_points_and_parts_train():
    """Without it all losses but the keypoints' are 0: the rule of detectron2's accumulator."""
    outputs, targets = _outputs(2, parts=15), _targets(2)
    background = dataclasses.replace(targets, point_i=jnp.zeros((2, 9), jnp.int32))
    on_body = jnp.where(targets.point_i > 0, densepose.point_weights(targets), 0)
    roi, point = np.argwhere(np.asarray(on_body))[0]
    one = dataclasses.replace(targets, point_i=background.point_i.at[roi, point].set(3))
    losses = _densepose_losses(outputs, one, DensePoseWeights(), num_images=2)
    np.testing.assert_allclose(
        losses["fine_segm"], _point_losses(outputs, one)["fine_segm"], rtol=1e-6
    )
    areas = _area_losses(outputs, background)
    np.testing.assert_allclose(losses["coarse_segm"], 5 * areas["coarse_segm"], rtol=1e-6)


def test_keypoint_loss_counts_visible_keypoints_inside_their_roi():
    outputs, targets = _outputs(3, keypoints=True), _targets(3)
    entropy = []
    for roi, box in enumerate(np.asarray(targets.boxes, float)):
        flat = _log_softmax(np.asarray(outputs.keypoints[roi]).reshape(-1, KEYPOINTS).T)
        for k, (x, y, visibility) in enumerate(np.asarray(targets.keypoints[roi], float)):
            column = np.floor((x - box[0]) / (box[2] - box[0]) * SIDE)
            row = np.floor((y - box[1]) / (box[3] - box[1]) * SIDE)
            if visibility > 0 and 0 <= column < SIDE and 0 <= row < SIDE:
                entropy.append(-flat[k, int(row * SIDE + column)])
    assert 10 < len(entropy) < (np.asarray(targets.keypoints)[..., 2] > 0).sum()
    shown = KeypointTargets(targets.boxes, targets.weight, targets.keypoints)
    loss = functools.partial(keypoint_loss, outputs.keypoints, shown)
    np.testing.assert_allclose(loss(None).value, np.mean(entropy), rtol=1e-5)
    np.testing.assert_allclose(loss(100.0).value, np.sum(entropy) / 100, rtol=1e-5)


def test_sums_over_points_follow_the_images_and_not_the_devices():
    outputs, targets = _outputs(2, keypoints=True, parts=15), _targets(2)
    sums = _point_losses(outputs, targets)
    areas = _area_losses(outputs, targets)
    weights = DensePoseWeights(0.5, 2.0, 3.0, 4.0, 0.25, images_per_device=4)
    losses = _densepose_losses(outputs, targets, weights, num_images=16)
    np.testing.assert_allclose(losses["u"], 0.5 * sums["u"] / (16 / 4), rtol=1e-6)
    np.testing.assert_allclose(losses["v"], 0.5 * sums["v"] / (16 / 4), rtol=1e-6)
    np.testing.assert_allclose(losses["fine_segm"], 2 * sums["fine_segm"], rtol=1e-6)
    np.testing.assert_allclose(losses["coarse_segm"], 3 * areas["coarse_segm"], rtol=1e-6)
    np.testing.assert_allclose(losses["body_mask"], 4 * areas["body_mask"], rtol=1e-6)
    shown = KeypointTargets(targets.boxes, targets.weight, targets.keypoints)
    keypoints = keypoint_loss(outputs.keypoints, shown, None).value
    np.testing.assert_allclose(losses["keypoints"], 0.25 * keypoints, rtol=1e-6)


def _pad(tree, extra, axis, value=0):
    def pad(x):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, extra)
        return jnp.pad(x, widths, constant_values=value)

    return jax.tree.map(pad, tree)


@jax.jit
def _total(outputs, targets):
    weights = DensePoseWeights()
    return sum(_densepose_losses(outputs, targets, weights, num_images=4).values())


def test_padding_of_rois_and_points_changes_nothing():
    outputs, targets = _outputs(3, parts=15, keypoints=True), _targets(3)
    expected, gradient = jax.value_and_grad(_total)(outputs, targets)
    padded = _pad(targets, 2, axis=0)
    # An empty slot repeats person 0 of its image; only its weight tells.
    repeated = {
        name: getattr(padded, name).at[3:].set(getattr(targets, name)[0])
        for name in ("gt_boxes", "has_densepose", "point_is_valid", "point_i", "part_mask")
    }
    padded = dataclasses.replace(padded, **repeated)
    points = {
        name: _pad(getattr(padded, name), 4, axis=1, value=False if name.endswith("valid") else 7)
        for name in ("point_is_valid", "point_x", "point_y", "point_i", "point_u", "point_v")
    }
    padded = dataclasses.replace(padded, **points)
    more = _pad(outputs, 2, axis=0, value=50)
    actual, padded_gradient = jax.value_and_grad(_total)(more, padded)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    for ours, theirs in zip(
        jax.tree.leaves(padded_gradient), jax.tree.leaves(gradient), strict=True
    ):
        np.testing.assert_allclose(ours[:3], theirs, rtol=1e-5, atol=1e-8)
        np.testing.assert_array_equal(ours[3:], 0)


NOTHING = {
    "no ROIs": {"weight": jnp.zeros(2)},
    "no DensePose": {"has_densepose": jnp.zeros(2, bool)},
    "no points": {"point_is_valid": jnp.zeros((2, 9), bool)},
    "only background": {"point_i": jnp.zeros((2, 9), jnp.int32)},
    "no keypoints": {"keypoints": jnp.zeros((2, KEYPOINTS, 3))},
    "empty ROIs": {"boxes": jnp.zeros((2, 4)), "weight": jnp.zeros(2)},
    "all outside": {"boxes": jnp.array([[500.0, 500, 501, 501]] * 2)},
}


@pytest.mark.parametrize("change", NOTHING)
@pytest.mark.parametrize("sigma", [False, True])
def test_nothing_to_learn_from_is_zero_with_zero_gradients(change, sigma):
    outputs = _outputs(2, parts=15, keypoints=True, sigma=sigma, kappa=sigma)
    targets = dataclasses.replace(_targets(2), **NOTHING[change])
    losses = _densepose_losses(outputs, targets, DensePoseWeights(), num_images=2)
    everything = {"no ROIs", "empty ROIs", "all outside"}
    of_people = {"u", "v", "uv", "fine_segm", "coarse_segm", "body_mask"}
    zero = {
        "no DensePose": of_people,
        "no points": of_people,
        "only background": of_people,
        "no keypoints": {"keypoints"},
    }.get(change, set(losses))
    assert change in everything or set(losses) - zero
    for name, loss in losses.items():
        assert (loss == 0) == (name in zero), name
    gradient = jax.grad(_total)(outputs, targets)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    gradients = {"u": gradient.u, "fine_segm": gradient.fine_segm, "keypoints": gradient.keypoints}
    for name, of_map in gradients.items():
        is_zero = name in zero or (name == "u" and "uv" in zero)
        assert (np.asarray(of_map) == 0).all() == is_zero, name

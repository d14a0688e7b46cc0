"""Times the search of the nearest vertex of every pixel against PyTorch's matrix of distances.

    python experiments/bench/nearest_vertex.py --repeats 3

27,554 vertices of 16 dimensions, and a person of 512 x 512 pixels: the procedural body, seen from
the front, with embeddings that are smooth on its surface and noise on the 112 x 112 map of the
network. "person" searches the pixels on the body, "filled" every pixel (beside the body that of the
nearest one), "unrelated" as many random vectors, which no search that leaves vertices out can
speed up. PyTorch computes |x|^2 - 2 x.v + |v|^2 of 2,048 pixels at a time and takes the smallest.
The sides run in turn, each in a process of its own; memory is what a search adds to its process.
"""

import argparse
import contextlib
import functools

import common
import cv2
import numpy as np

CASES = ("person", "filled", "unrelated")
SIZE, MAP_SIZE, DEPTH, NUM_VERTICES = 512, 112, 16, 27_554
CHUNK = 2048
NOISE = 0.1  # beside embeddings of length 1


def fine_body():
    """Vertices [V, 3] and faces of the procedural body, with edges split until V is enough."""
    from ktn_jax.body.evaluation_mesh import subdivide
    from ktn_jax.body.procedural import assembly

    template = assembly.make_body().template
    vertices, faces = template.vertices, template.faces
    while len(vertices) < NUM_VERTICES:
        edges, faces = subdivide(faces, len(vertices))
        vertices = np.concatenate([vertices, vertices[edges].mean(axis=1)])
    return vertices, faces


def make_person(rng):
    """The map of embeddings [SIZE, SIZE, DEPTH], where the person is, and the vertices'."""
    from ktn_jax.data_pipelines.synthetic import render_raster

    vertices, faces = fine_body()
    waves = vertices @ rng.normal(size=(3, DEPTH)) * 6 + rng.uniform(0, 2 * np.pi, DEPTH)
    embeddings = np.cos(waves)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    placed = (vertices - (low + high) / 2) * [(high - low)[1] / (high - low)[0], -1, -1] + [0, 0, 3]
    camera = render_raster.Camera(
        3 * MAP_SIZE / (high - low)[1], MAP_SIZE / 2, MAP_SIZE / 2, MAP_SIZE, MAP_SIZE
    )
    face, _ = render_raster.resolve_visibility(
        render_raster.rasterise(placed, faces, camera), camera
    )
    pixel = np.flatnonzero(face >= 0)
    corners = faces[face[pixel]]
    weights = render_raster.barycentric_at_pixels(placed, corners, pixel, camera)
    small = rng.normal(0, NOISE, (MAP_SIZE * MAP_SIZE, DEPTH))
    small[pixel] += np.einsum("nk,nkd->nd", weights, embeddings[corners])
    small = small.reshape(MAP_SIZE, MAP_SIZE, DEPTH).astype(np.float32)
    is_person = (face >= 0).reshape(MAP_SIZE, MAP_SIZE).astype(np.float32)
    chosen = rng.permutation(len(vertices))[:NUM_VERTICES]
    maps = (cv2.resize(x, (SIZE, SIZE)) for x in (small, is_person))
    pixels, is_person = maps
    return pixels, is_person > 0.5, embeddings[chosen].astype(np.float32)


def make_case(name):
    """Embeddings [H, W, D], the pixels that are searched [H, W], and vertices [V, D]."""
    rng = np.random.default_rng(0)
    pixels, is_person, vertices = make_person(rng)
    if name == "person":
        return pixels, is_person, vertices
    if name == "filled":
        beside = np.uint8(~is_person)
        _, nearest = cv2.distanceTransformWithLabels(
            beside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        own = np.zeros(nearest.max() + 1, int)
        own[nearest[is_person]] = np.flatnonzero(is_person)
        pixels = pixels.reshape(-1, DEPTH)[own[nearest]]
    else:
        pixels = rng.normal(size=pixels.shape).astype(np.float32)
        vertices = rng.normal(size=vertices.shape).astype(np.float32)
        vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    return pixels, np.ones_like(is_person), vertices


def search_ours(pixels, is_searched, vertices):
    """The vertices of the pixels that are searched, row by row."""
    from ktn_jax.inference import surfaces

    order = surfaces.neighbours_together(is_searched)
    found = np.empty(len(order), np.int32)
    found[order] = surfaces.search(pixels[is_searched][order], vertices)
    return found


def search_torch(pixels, is_searched, vertices):
    """The same with matrices of distances."""
    import torch

    table = torch.from_numpy(vertices)
    squares = (table * table).sum(dim=1)
    found = []
    for part in torch.from_numpy(pixels[is_searched]).split(CHUNK):
        distances = (part * part).sum(dim=1)[:, None] - 2 * part @ table.T + squares[None]
        found.append(distances.argmin(dim=1))
    return torch.cat(found).numpy()


def serve(arguments):
    """Answers the names of cases with seconds and memory, and how many vertices are nearest."""
    if arguments.serve != "ours":
        import torch

        torch.set_num_threads(arguments.threads)
    cases = {}

    def answer(name):
        if name not in cases:
            case = make_case(name)
            if arguments.serve == "ours":
                import jax

                case = (*case[:2], jax.device_put(case[2]))
            cases[name] = case
        pixels, is_searched, vertices = cases[name]
        search = search_ours if arguments.serve == "ours" else search_torch
        row = np.flatnonzero(is_searched.any(axis=1))[0]
        few = np.zeros_like(is_searched)
        few[row] = is_searched[row]
        search(pixels, few, vertices)  # compiles
        before = common.peak_memory()
        timed = common.time_once(lambda: search(pixels, is_searched, vertices))
        exact = np.asarray(vertices, np.float64)
        x = pixels[is_searched][:: max(is_searched.sum() // 500, 1)].astype(np.float64)
        best = (x @ exact.T - 0.5 * np.square(exact).sum(axis=1)).argmax(axis=1)
        found = timed.pop("result")[:: max(is_searched.sum() // 500, 1)]
        timed["added_bytes"] = timed["peak_bytes"] - before
        return timed | {"pixels": int(is_searched.sum()), "wrong": float((found != best).mean())}

    common.answer_questions(answer)


def show(report, case, answers):
    """Adds a case's section to the report."""
    seconds = {side: [a["seconds"] for a in found] for side, found in answers.items()}
    report.section(
        f"{case}: {answers['ours'][0]['pixels']:,} pixels, {NUM_VERTICES:,} vertices",
        [common.Row(side, values) for side, values in seconds.items()],
        **{
            f"times_as_fast_as_{side}": common.median_ratio(values, seconds["ours"])
            for side, values in seconds.items()
            if side != "ours"
        },
        **{
            f"{side}_adds_MB": max(a["added_bytes"] for a in found) / 1e6
            for side, found in answers.items()
        },
        **{f"{side}_differs_from_float64": found[0]["wrong"] for side, found in answers.items()},
    )


def main():
    """Runs the sides in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common.add_arguments(parser, repeats=3)
    common.add_peer_arguments(parser)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    arguments = parser.parse_args()
    common.prepare_side(arguments)
    if arguments.serve:
        serve(arguments)
        return
    report = common.Report("nearest_vertex", arguments.output)
    with contextlib.ExitStack() as stack:
        sides = {
            side: stack.enter_context(
                common.Server(["--serve", side, "--threads", str(arguments.threads)])
            )
            for side in ("ours", *arguments.peers)
        }
        for case in arguments.cases:
            calls = {side: functools.partial(server.ask, case) for side, server in sides.items()}
            show(report, case, common.take_turns(calls, arguments.repeats, warm_up=0))
    report.close()


if __name__ == "__main__":
    main()

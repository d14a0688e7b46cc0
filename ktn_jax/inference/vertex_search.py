"""The nearest vertex of every pixel on a CPU, without comparing every pixel with every vertex.

Neighbouring pixels have similar embeddings. Pixels are searched in runs; what cannot be nearest to
any pixel of a run is found from the run's centre alone, by the hyperplane between two vertices that
parts what is nearer to the one from what is nearer to the other, and is left out. What remains is
compared pixel by pixel, so the result is that of the whole comparison, but for ties in rounding.
"""

from typing import NamedTuple

import numpy as np

_RUNS = (256, 32)  # pixels in a run, and in those that it is split into
_RUNS_TOGETHER = 16  # whose centres are compared with all vertices at once
_FEW = 100_000  # comparisons: with no more it is faster not to split a run
_PROBES = 48  # runs that show whether pixels are alike at all
# Multiplications of a product that OpenBLAS leaves on one thread: for small ones, waking others
# takes many times as long, and on a busy machine they wait for each other.
_ON_ONE_THREAD = 250_000
_MARGIN = 1e-5  # of float32 products of vectors of length 1, far above their rounding


class _Vertices(NamedTuple):
    """Vertices that may be nearest: a row of `rows` each, the embedding and -|v|^2 / 2."""

    rows: np.ndarray  # float32 [C, D + 1]
    numbers: np.ndarray  # int32 [C], ascending


def nearest_by_runs(pixels: np.ndarray, vertices: np.ndarray) -> np.ndarray | None:
    """Finds the vertex whose embedding is nearest to each pixel's.

    Args:
        pixels: float32 [N, D], of any length; those that follow each other should be alike (see
            `neighbours_together`). One that is not finite gets any vertex.
        vertices: float32 [V, D], finite, of any length.

    Returns:
        int32 [N]; None where pixels that follow each other are not alike, so that comparing all
        with all is faster.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _Search(pixels, vertices).run()


def neighbours_together(is_drawn: np.ndarray) -> np.ndarray:
    """An order of pixels in which those that follow each other are close in the picture.

    Args:
        is_drawn: bool [h, w], N of them true; sides are at most 65,536.

    Returns:
        int64 [N] into the drawn pixels, row by row: along a Z-shaped curve (G. M. Morton, 1966).
    """
    rows, columns = (_spread(place) for place in np.nonzero(is_drawn))
    order: np.ndarray = np.argsort(rows << np.uint64(1) | columns, kind="stable")
    return order


def _spread(places: np.ndarray) -> np.ndarray:
    """Puts a zero between the bits of numbers of 16 bits."""
    spread = places.astype(np.uint64)
    for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        spread = (spread | spread << np.uint64(shift)) & np.uint64(mask)
    return spread


class _Search:
    """One search, and the memory that its steps use again: new memory costs more than they do."""

    def __init__(self, pixels: np.ndarray, vertices: np.ndarray):
        half_squares = -0.5 * np.einsum("vd,vd->v", vertices, vertices)
        rows = np.concatenate([vertices, half_squares[:, None]], axis=1, dtype=np.float32)
        self._all = _Vertices(rows, np.arange(len(vertices), dtype=np.int32))
        # |x - v|^2 = |x|^2 - 2 (x.v - |v|^2 / 2): the last is a product with a row of ones.
        self._pixels = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1, dtype=np.float32)
        longest = np.sqrt(max(-2 * float(half_squares.min()), 1e-12))
        squares = np.einsum("nd,nd->n", pixels, pixels)
        reach = np.sqrt(squares.max(initial=0, where=np.isfinite(squares))) + longest
        # Rounding of a product with a vertex, and of a squared distance of two vertices.
        self._product_margin = np.float32(_MARGIN * reach * longest)
        self._square_margin = np.float32(_MARGIN * longest**2)
        self._found = np.empty(len(pixels), np.int32)
        self._memory: dict[str, np.ndarray] = {}

    def run(self) -> np.ndarray | None:
        """Searches all pixels, see `nearest_by_runs`."""
        count, last = len(self._pixels), _RUNS[-1]
        starts = np.arange(0, count, last)
        probes = starts[:: max(len(starts) // _PROBES, 1)]
        kept = [
            self._possible(self._all, probe, min(probe + last, count), last) for probe in probes
        ]
        if count > last and np.mean(kept) > 0.5:
            return None
        step = _RUNS[0] * _RUNS_TOGETHER
        for start in range(0, count, step):
            self._search(self._all, start, min(start + step, count), depth=0)
        return self._found

    def _search(self, among: _Vertices, start: int, stop: int, depth: int) -> None:
        """Searches pixels start..stop, in runs of `_RUNS[depth]` where that is worth it."""
        if depth == len(_RUNS) or (stop - start) * len(among.numbers) <= _FEW:
            products = self._product(self._pixels[start:stop], among.rows, "products")
            self._found[start:stop] = among.numbers[products.argmax(axis=1)]
            return
        possible = self._possible(among, start, stop, _RUNS[depth])
        for number, row in enumerate(possible):
            first = start + number * _RUNS[depth]
            end = min(first + _RUNS[depth], stop)
            kept = np.flatnonzero(row)
            rows = self._array(f"rows {depth}", (len(kept), among.rows.shape[1]))
            np.take(among.rows, kept, axis=0, out=rows, mode="clip")
            self._search(_Vertices(rows, among.numbers[kept]), first, end, depth + 1)

    def _possible(self, among: _Vertices, start: int, stop: int, run_length: int) -> np.ndarray:
        """Which vertices may be nearest to a pixel of each run: bool [runs, C].

        The pixels of a run are in a ball of radius r around its centre c. Let w be the vertex that
        is nearest to c. A vertex v is nearest to none of them if the ball is on the side of w of
        the hyperplane between v and w: if c.(w - v) - (|w|^2 - |v|^2) / 2 > r |w - v|.
        """
        own, edges = self._pixels[start:stop], np.arange(0, stop - start, run_length)
        counts = np.diff(np.append(edges, stop - start))
        centres = np.add.reduceat(own, edges) / counts[:, None].astype(np.float32)
        apart = own - np.repeat(centres, counts, axis=0)
        squares = np.maximum.reduceat(np.einsum("nd,nd->n", apart, apart), edges)
        squares = squares * np.float32(1 + _MARGIN) + self._square_margin * np.float32(_MARGIN)
        nearness = self._product(centres, among.rows, "nearness")
        nearest = nearness.argmax(axis=1)
        best = nearness[np.arange(len(edges)), nearest]
        # r^2 |w - v|^2, as a product of [-2 w, -2] with [v, -|v|^2 / 2], and |w|^2.
        chosen = among.rows[nearest]
        square = -2 * chosen[:, -1] + self._square_margin
        factors = np.concatenate([chosen[:, :-1], np.ones((len(edges), 1), np.float32)], axis=1)
        limit = self._product(-2 * squares[:, None] * factors, among.rows, "limit")
        limit += (squares * square)[:, None]
        np.subtract((best - self._product_margin)[:, None], nearness, out=nearness)
        np.maximum(nearness, 0, out=nearness)
        np.multiply(nearness, nearness, out=nearness)
        return np.logical_not(nearness > limit)  # all where a pixel is not finite

    def _product(self, a: np.ndarray, b: np.ndarray, name: str) -> np.ndarray:
        """Multiplies every row of a with every row of b."""
        product = self._array(name, (len(a), len(b)))
        block = max(_ON_ONE_THREAD // a.size, 1)
        for start in range(0, len(b), block):
            part = slice(start, start + block)
            np.matmul(a, b[part].T, out=product[:, part])
        return product

    def _array(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """Memory of this name, which is used again as soon as the name is asked for again."""
        size = shape[0] * shape[1]
        if name not in self._memory or self._memory[name].size < size:
            self._memory[name] = np.empty(size, np.float32)
        return self._memory[name][:size].reshape(shape)

"""Measures `ktn serve` on this machine: requests a second, their times, and what overload costs.

    python experiments/bench/serve.py                              # small model, a minute
    python experiments/bench/serve.py --config ktn:demo --size 480x640 --seconds 20

Weights are untrained. Clients are threads that ask, wait for the answer and ask again, each on a
connection of its own. A request counts as lost that got neither people nor a refusal (503).
"""

import argparse
import http.client
import io
import re
import subprocess
import sys
import threading
import time

import common
import numpy as np
from PIL import Image

from ktn_jax.commands import size_hw

TIMEOUT_S = 120


def make_photo(height_width):
    """A JPEG of smooth shapes."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    with io.BytesIO() as file:
        coarse.resize(height_width[::-1], Image.Resampling.BICUBIC).save(file, format="jpeg")
        return file.getvalue()


class Service:
    """`ktn serve` in a process of its own."""

    def __init__(self, arguments, max_photos, batch_size):
        """Starts it and waits until it answers."""
        height, width = arguments.size
        command = [sys.executable, "-m", "ktn_jax", "serve", "--port=0", "--random-weights"]
        command += [f"--config={arguments.config}", f"--warm-up={height}x{width}"]
        command += [f"--max-photos={max_photos}", f"--batch-size={batch_size}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self._process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if not found:
            raise RuntimeError(f"the service did not start: {line!r}")
        self.port = int(found[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(60)


class Clients:
    """Threads that ask for the people of one photo again and again."""

    def __init__(self, port, photo):
        """Takes the port of the service, and a file."""
        self._port, self._photo, self._lock = port, photo, threading.Lock()

    def ask(self, number, seconds):
        """Asks with a number of clients, for some seconds.

        Returns:
            (status, seconds) of each request, status 0 for those without an answer; and the seconds
            that it took.
        """
        answers = []
        start = time.perf_counter()
        threads = [
            threading.Thread(target=self._ask_until, args=(start + seconds, answers))
            for _ in range(number)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers, time.perf_counter() - start

    def _ask_until(self, end, answers):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        while (start := time.perf_counter()) < end:
            try:
                connection.request("POST", "/people?min_score=0", self._photo)
                response = connection.getresponse()
                response.read()
                status = response.status
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
            with self._lock:
                answers.append((status, time.perf_counter() - start))
        connection.close()


def describe(report, title, answers, seconds):
    """Prints the figures of one load."""
    good = [taken for status, taken in answers if status == 200]
    rows = [common.Row("answered", good, note=f"{len(good)} requests")] if good else []
    p50, p99 = np.quantile(good, [0.5, 0.99]) if good else (np.nan, np.nan)
    report.section(
        title,
        rows,
        requests_per_s=len(good) / seconds,
        p50=common.format_seconds(p50),
        p99=common.format_seconds(p99),
        refused=sum(status == 503 for status, _ in answers),
        lost=sum(status not in (200, 503) for status, _ in answers),
    )


def main():
    """Runs the loads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ktn:tiny")
    parser.add_argument("--size", type=size_hw, default=(128, 128), help="of the photo")
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--clients", type=int, nargs="*", default=(1, 4, 8))
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=(1, 4))
    parser.add_argument("--max-photos", type=int, default=8)
    common.add_arguments(parser, repeats=1)
    arguments = parser.parse_args()
    report = common.Report("serve", arguments.output)
    photo = make_photo(arguments.size)
    for batch_size in arguments.batch_sizes:
        with Service(arguments, arguments.max_photos, batch_size) as service:
            clients = Clients(service.port, photo)
            clients.ask(1, 1)
            for number in (*arguments.clients, 4 * arguments.max_photos):
                answers, seconds = clients.ask(number, arguments.seconds)
                title = f"{number} clients, {arguments.max_photos} places, batches of {batch_size}"
                describe(report, title, answers, seconds)
    report.close()


if __name__ == "__main__":
    main()

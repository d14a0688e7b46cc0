"""The HTTP service around a predictor that knows where people are."""

import asyncio
import io
import socket
import sys
import threading

import httpx
import numpy as np
import pytest
from PIL import Image

from ktn_jax import cli
from ktn_jax.inference.http_service import Limits, make_service
from ktn_jax.results.people import People
from ktn_jax.results.records import PersonResult
from ktn_jax.runtime import jax_setup
from ktn_jax.runtime.configuration import load_config

LIMITS = Limits(photos=3, megabytes=0.05, megapixels=0.01, upload_seconds=5)


class Finder:
    """Finds two people in every photo, whose scores are .9 and .3; it can be held up."""

    def __init__(self):
        self.config = load_config("configs/ktn.py:tiny", ["test.batch_size=4"])
        self.may_go, self.sizes = threading.Event(), []
        self.may_go.set()

    def __call__(self, photos):
        assert self.may_go.wait(30)
        self.sizes.append(len(photos))
        return [People(map(self._person, (0.9, 0.3)), None, p.shape[:2]) for p in photos]

    def _person(self, score):
        iuv = np.full((3, 4, 5), 7, np.uint8)
        return PersonResult(np.float32([1, 2, 6, 6]), score, iuv=iuv)


def png(side=10):
    with io.BytesIO() as file:
        Image.new("RGB", (side, side)).save(file, format="png")
        return file.getvalue()


def ask(finder, *questions):
    """Asks the service: each question is called with a client; they are asked one by one."""

    async def run():
        service = make_service(finder, LIMITS)
        async with (
            service.router.lifespan_context(service),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(service), base_url="http://service"
            ) as client,
        ):
            return [await question(client) for question in questions]

    return asyncio.run(run())


def test_people_are_answered_as_records_and_by_score():
    finder = Finder()
    sure, all_of_them, health, wrong = ask(
        finder,
        lambda client: client.post("/people", content=png()),
        lambda client: client.post("/people?min_score=0", content=png()),
        lambda client: client.get("/health"),
        lambda client: client.post("/people?min_score=2", content=png()),
    )
    assert sure.status_code == all_of_them.status_code == 200 and wrong.status_code == 422
    (person,) = sure.json()["people"]
    assert person["bbox"] == [1, 2, 5, 4] and person["score"] == pytest.approx(0.9)
    assert [p["score"] for p in all_of_them.json()["people"]] == pytest.approx([0.9, 0.3])
    assert health.json() == {"model": "ktn_tiny", "photos_in_work": 0}


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 422, "the photo: not an image, or a damaged one: the file is empty"),
        (b"no photo", 422, "the photo: not an image"),
        (png()[:45], 422, "the photo: not an image, or a damaged one"),
        (png(101), 413, "the photo has more than 0.01 megapixels"),
        (bytes(50_001), 413, "the photo is larger than 0.05 MB"),
    ],
    ids=["empty", "text", "cut short", "many pixels", "many bytes"],
)
def test_what_is_no_photo_is_refused_and_takes_no_place(content, status, message):
    (*_, last, good) = ask(
        Finder(),
        *[lambda client: client.post("/people", content=content)] * 4,
        lambda client: client.post("/people", content=png()),
    )
    assert last.status_code == status and message in last.json()["detail"]
    assert good.status_code == 200


def test_photos_beyond_the_places_are_refused_and_the_others_answered():
    finder = Finder()
    finder.may_go.clear()

    async def overload(client):
        posts = [asyncio.create_task(client.post("/people", content=png())) for _ in range(8)]
        done = []
        while len(done) < 5:  # those refused are answered while the others wait
            done = [post for post in posts if post.done()]
            await asyncio.sleep(0.01)
        finder.may_go.set()
        return await asyncio.gather(*posts)

    (answers,) = ask(finder, overload)
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [503] * 5
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["retry-after"] == "1" and "3 photos" in refused.json()["detail"]
    assert sum(finder.sizes) == 3 and len(finder.sizes) <= 2  # one alone, what collected together


def test_a_client_that_stops_sending_gives_its_place_back():
    async def slow():
        yield png()[:20]
        await asyncio.sleep(60)

    limits = Limits(upload_seconds=0.05)

    async def run():
        service = make_service(Finder(), limits)
        async with service.router.lifespan_context(service):
            transport = httpx.ASGITransport(service)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                late = await client.post("/people", content=slow())
                return late, await client.get("/health")

    late, health = asyncio.run(run())
    assert late.status_code == 408 and health.json()["photos_in_work"] == 0


def test_the_command_says_what_is_missing_or_taken_before_it_reads_weights(monkeypatch, capsys):
    monkeypatch.setattr(jax_setup, "prepare", lambda: None)
    arguments = ["serve", "--config", "ktn:tiny", "--weights", "absent.pth"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main([*arguments, "--port", port]) == 1
    assert f"--port {port}: " in capsys.readouterr().err
    assert cli.main([*arguments, "--max-megabytes=-1"]) == 1
    assert "megabytes must be above 0, got -1.0" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.main(arguments) == 1
    assert "pip install 'ktn_jax[serve]'" in capsys.readouterr().err

"""A predictor as an HTTP service: a photo in, its people out. Needs the extra `serve`."""

import asyncio
import contextlib
import dataclasses
import io
from collections.abc import AsyncIterator
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool

from ktn_jax.inference.batching import photo_bucket
from ktn_jax.inference.photo_queue import PhotoQueue, QueueFullError
from ktn_jax.inference.predictor import Predictor
from ktn_jax.results.people import People
from ktn_jax.runtime import images

_PHOTO = "the photo"  # the name of what has none, in messages


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Attributes:
        photos: that are read, waiting or in work at once; further ones are refused with 503.
        megabytes: of the file of a photo.
        megapixels: of a photo.
        upload_seconds: for sending it.

    Raises:
        ValueError: one is not above 0, so that every request would be refused.
    """

    photos: int = 32
    megabytes: float = 32
    megapixels: float = 50
    upload_seconds: float = 30

    def __post_init__(self) -> None:
        """Checks the fields."""
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")


def make_service(predictor: Predictor, limits: Limits) -> FastAPI:
    """Makes the service.

    POST /people takes the file of a photo as its body, and `min_score` (default 0.5), and answers
    with `{"people": [...]}`, records of the DensePose-COCO results format. GET /health says which
    model it is and how many photos are in work. Photos that arrive together share batches of
    `test.batch_size`.

    Args:
        predictor: of any model.
        limits: of requests.

    Returns:
        An ASGI application, for one process: it has one queue.
    """
    test = predictor.config.test

    def kind_of(photo: np.ndarray) -> tuple[int, int]:
        return photo_bucket((photo.shape[0], photo.shape[1]), test)

    def find(photos: list[np.ndarray]) -> list[People]:
        return predictor(photos)

    queue = PhotoQueue(find, kind_of, test.batch_size, limits.photos)

    @contextlib.asynccontextmanager
    async def until_stopped(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(queue.close)

    service = FastAPI(title="ktn_jax", lifespan=until_stopped)

    @service.get("/health")
    async def health() -> dict[str, Any]:
        return {"model": predictor.config.name, "photos_in_work": queue.num_taken}

    @service.post("/people")
    async def people(
        request: Request, min_score: Annotated[float, Query(ge=0, le=1)] = 0.5
    ) -> dict[str, Any]:
        try:
            with queue.place():
                body = await _read_body(request, limits)
                photo = await run_in_threadpool(_decode, body, limits)
                found = await asyncio.wrap_future(queue.submit(photo))
                records = await run_in_threadpool(_to_records, found, min_score)
                return {"people": records}
        except QueueFullError as error:
            await _skip_body(request, limits)
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from error

    return service


async def _read_body(request: Request, limits: Limits) -> bytes:
    """Reads the file of a photo.

    Raises:
        HTTPException: it is too large, or takes too long.
    """
    content = bytearray()
    try:
        async with asyncio.timeout(limits.upload_seconds):
            async for chunk in request.stream():
                content += chunk
                if len(content) > limits.megabytes * 1e6:
                    raise HTTPException(413, f"{_PHOTO} is larger than {limits.megabytes:g} MB")
    except TimeoutError as error:
        raise HTTPException(408, f"{_PHOTO} took over {limits.upload_seconds:g} s") from error
    return bytes(content)


async def _skip_body(request: Request, limits: Limits) -> None:
    """Lets the client finish: one that still sends would not read the answer."""
    length = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limits.upload_seconds):
            async for chunk in request.stream():
                length += len(chunk)
                if length > limits.megabytes * 1e6:
                    return


def _decode(content: bytes, limits: Limits) -> np.ndarray:
    """Decodes a photo.

    Raises:
        HTTPException: it is no image that can be read, or too large.
    """
    try:
        with images.open_image(io.BytesIO(content)) as image:
            pixels = image.width * image.height
    except Exception:  # whatever it is, decoding raises it again with an explanation
        pixels = 0
    if pixels > limits.megapixels * 1e6:
        raise HTTPException(413, f"{_PHOTO} has more than {limits.megapixels:g} megapixels")
    try:
        return images.decode_image(content, _PHOTO)
    except images.ImageError as error:
        raise HTTPException(422, str(error)) from error


def _to_records(people: People, min_score: float) -> list[dict[str, Any]]:
    return people.replaced([p for p in people if p.score >= min_score]).to_records()

"""answer HTTP requests with the people of photos"""

import argparse
import socket

_PEOPLE_WARMED_UP = 10  # in a photo: more compile when they come
EXAMPLES = """
  ktn serve --model densepose_rcnn_R_50_FPN_s1x --warm-up 480x640
  ktn serve --config ktn:r50 --weights R.pth --batch-size 8 --port 9000
  curl --data-binary @photo.jpg 'http://127.0.0.1:8000/people?min_score=0.7'

The answer is JSON: people in the DensePose-COCO results format. What arrives while the network
works is predicted together; beyond --max-photos the answer is 503. There is no authentication: put
a proxy before it that has. Needs pip install 'ktn_jax[serve]'.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    from ktn_jax import commands

    commands.add_model_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any (default 8000)")
    parser.add_argument(
        "--batch-size",
        type=commands.positive,
        metavar="N",
        help="photos in a batch (default test.batch_size); photos alone are padded to it",
    )
    parser.add_argument(
        "--max-photos",
        type=commands.positive,
        default=32,
        metavar="N",
        help="read, waiting or in work at once (default 32)",
    )
    parser.add_argument(
        "--max-megabytes", type=commands.finite, default=32, metavar="MB", help="of a file"
    )
    parser.add_argument(
        "--max-megapixels", type=commands.finite, default=50, metavar="MP", help="of a photo"
    )
    parser.add_argument(
        "--warm-up",
        type=commands.size_hw,
        action="append",
        default=[],
        metavar="HxW",
        help="compile for photos of this height and width before the first request; may be "
        "repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is stopped (SIGTERM or Ctrl-C); requests in work are answered first."""
    try:
        import uvicorn

        from ktn_jax.inference.http_service import Limits, make_service
    except ImportError as error:
        raise ImportError(f"serving needs {error.name}: pip install 'ktn_jax[serve]'") from error
    from ktn_jax import commands
    from ktn_jax.checkpoints import zoo

    if arguments.batch_size is not None:
        arguments.changes.append(f"test.batch_size={arguments.batch_size}")
    config = commands.load_model_config(arguments, zoo.DEFAULT)
    limits = Limits(
        photos=arguments.max_photos,
        megabytes=arguments.max_megabytes,
        megapixels=arguments.max_megapixels,
    )
    # Before the weights are read, which takes long.
    with _listen(arguments.host, arguments.port) as listener:
        predictor = commands.load_predictor(arguments, config, zoo.DEFAULT)
        if arguments.warm_up:
            predictor.warm_up(arguments.warm_up, people=_PEOPLE_WARMED_UP)
        host, port = listener.getsockname()[:2]
        print(f"{config.name} at http://{host}:{port}/people", flush=True)  # noqa: T201
        service = make_service(predictor, limits)
        uvicorn.Server(uvicorn.Config(service, log_level="warning")).run(sockets=[listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise OSError(f"--host {host} --port {port}: {error}") from error

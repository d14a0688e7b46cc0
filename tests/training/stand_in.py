"""A small model that trains like the large one, for tests of the trainer; also a script to kill.

python stand_in.py WORKDIR '{"total_steps": 9, "delay": 0.01}'
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from ktn_jax.configs import base

FEATURES = 8


def make_config(**changes):
    """The whole configuration, with short intervals; keys of `changes` may be dotted."""
    config = base.get_config()
    config.total_steps, config.batch_size, config.checkpoint_every = 8, 8, 3
    config.model.backbone.freeze_at = 0
    config.optimizer.warmup_steps = 4
    config.optimizer.learning_rate = 0.05
    config.training.log_every = 2
    config.training.num_devices = 1
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config.lock()


def initialise():
    """Variables with a norm that trains, a frozen one, and a transfer that can be split."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(0, 0.3, shape).astype(np.float32)

    ones, zeros = np.ones(FEATURES, np.float32), np.zeros(FEATURES, np.float32)
    return {
        "params": {
            "backbone": {
                "conv": {"kernel": draw(12, FEATURES), "bias": zeros},
                "norm": {"scale": ones, "bias": zeros},
                "frozen": {"scale": ones, "bias": zeros},
            },
            "predictor": {
                "transfer": {
                    "fc1": {"kernel": draw(FEATURES, 16), "bias": np.zeros(16, np.float32)},
                    "fc2": {"kernel": draw(16, FEATURES), "bias": zeros},
                }
            },
        },
        "batch_stats": {
            "backbone": {
                "norm": {"mean": zeros, "var": ones, "count": np.zeros((), np.int32)},
                "frozen": {"mean": zeros, "var": ones},
            }
        },
    }


def loss_fn(params, batch_stats, batch, key):
    """Two losses over the global batch, one of which is random."""
    images = batch["image"].astype(jnp.float32).reshape(len(batch["image"]), -1) / 255
    conv, norm = params["backbone"]["conv"], params["backbone"]["norm"]
    x = images @ conv["kernel"] + conv["bias"][None]
    mean, var = x.mean(0), x.var(0)
    x = (x - mean[None]) * jax.lax.rsqrt(var[None] + 1e-5) * norm["scale"][None]
    x = jnp.tanh(x + norm["bias"][None])
    transfer = params["predictor"]["transfer"]
    for name in ("fc1", "fc2"):
        x = x @ transfer[name]["kernel"] + transfer[name]["bias"][None]
    noise = jax.random.normal(key, x.shape)
    losses = {
        "fit": jnp.square(x - batch["target"]).mean(),
        "noise": 0.1 * (x * noise).mean(),
    }
    stats = jax.tree.map(lambda value: value, batch_stats)
    old = stats["backbone"]["norm"]
    stats["backbone"]["norm"] = {
        "mean": 0.9 * old["mean"] + 0.1 * mean,
        "var": 0.9 * old["var"] + 0.1 * var,
        "count": old["count"] + 1,
    }
    return sum(losses.values()), (losses, stats)


def make_batch(step, size=8):
    """The global batch of a step, the same for everybody."""
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (size, 2, 2, 3), np.uint8),
        "target": rng.normal(size=(size, FEATURES)).astype(np.float32),
        "image_id": np.arange(step * size, (step + 1) * size, dtype=np.int32),
    }


def batches_from(step, change=None, delay=0.0):
    """Batches of this process from a step on; `change(step, batch)` may spoil them."""
    share, index = 8 // jax.process_count(), jax.process_index()
    while True:
        batch = make_batch(step)
        if change is not None:
            change(step, batch)
        time.sleep(delay)
        yield {name: rows[index * share : (index + 1) * share] for name, rows in batch.items()}
        step += 1


def make_trainer(config, workdir, loss_fn=loss_fn, initialise=initialise, **options):
    """The trainer of the stand-in; `options` are those of `Trainer`."""
    from ktn_jax.training.trainer import Trainer

    abstract = jax.eval_shape(initialise)
    return Trainer(config, workdir, loss_fn, abstract, initialise, **options)


def train(config, workdir, change=None, delay=0.0, evaluate=None, **options):
    """Trains the stand-in."""
    with make_trainer(config, workdir, **options) as trainer:
        return trainer.fit(lambda step: batches_from(step, change, delay), evaluate)


def main():
    """Trains as the arguments say; the exit code is 75 where it was asked to stop."""
    from ktn_jax.training import distributed

    workdir, changes = sys.argv[1], json.loads(sys.argv[2])
    delay, process = changes.pop("delay", 0.0), changes.pop("process", None)
    if process is not None:
        distributed.join_processes(changes.pop("coordinator"), 2, process)
    outcome = train(make_config(**changes), workdir, delay=delay)
    return 0 if outcome.is_complete else 75


if __name__ == "__main__":
    sys.exit(main())

"""What the tests of commands share."""

import pytest

from ktn_jax.checkpoints import weights
from ktn_jax.inference import predictor, stages
from ktn_jax.runtime import jax_setup


@pytest.fixture
def use_predictor(monkeypatch):
    """Makes commands use a predictor that is given the configuration, and no network."""

    def use(stand_in):
        monkeypatch.setattr(jax_setup, "prepare", lambda: None)
        monkeypatch.setattr(weights, "initialise", lambda config, seed: {})
        monkeypatch.setattr(stages, "Stages", lambda config, variables, programs: config)
        monkeypatch.setattr(predictor, "Predictor", stand_in)

    return use

"""Experiment files are valid, and their models have the published sizes."""

import math
import pathlib

import jax
import pytest

from armd_jax import training
from armd_jax.bench import scaling
from armd_jax.data import tokenizers

NAMES = [path.stem for path in pathlib.Path('experiments').glob('*.py')]


@pytest.mark.parametrize('name', NAMES)
def test_files_are_valid(name):
  scaling.experiment(name)


@pytest.mark.parametrize(
  'name, millions', [('owt_small', 125), ('owt_medium', 345), ('owt_7b', 6600)]
)
def test_number_of_parameters(name, millions):
  """GPT-2's counts; a few percent lie in biases and position tables, which GPT-2 has."""
  config = scaling.experiment(name)
  vocab_size = tokenizers.vocab_size(config.data.tokenizer)
  params = jax.eval_shape(lambda: training.init_state(config, vocab_size).params)
  found = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  assert found == pytest.approx(millions * 1e6, rel=0.03)

"""The closed form that training logs MFU by, against the products counted in the program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from armd_jax import config, training
from armd_jax.compiled import flops
from armd_jax.hardware import device
from armd_jax.models.flops import training_flops

VOCAB = 1000


def counted(whole, texts=1):
  """Needed products of a training step of so many sequences, from its jaxpr."""
  train = dataclasses.replace(whole.train, batch_size=texts)
  whole = dataclasses.replace(whole, train=train)
  params = jax.eval_shape(functools.partial(training.init_state, whole, VOCAB)).params
  text = jax.ShapeDtypeStruct((texts, whole.model.length), jnp.int32)
  step = functools.partial(training.loss_and_gradients, whole, VOCAB)
  return flops.count(step, params, jnp.int32(0), text).visible


def whole_config(order=(), **model):
  sizes = dict(
    length=256, num_layers=4, embed_dim=256, num_heads=4, query_seed_chunk=32, position_dim=16
  )
  return config.parse(
    {'model': sizes | model, 'train': {'batch_size': 1}, 'order': {'max_shuffled': 8} | dict(order)}
  )


@pytest.mark.parametrize(
  'model',
  [
    {'family': 'ar'},
    {'family': 'ar', 'num_kv_heads': 2, 'mlp_dim': 384},
    {'family': 'ar', 'mlp': 'swiglu', 'head_dim': 32, 'tied_head': False, 'query_key_norm': True},
    {'family': 'ar', 'architecture': 'gpt2', 'remat': 'none', 'vocab_multiple': 512},
    {'query_seed': 'shift'},
    {'query_seed': 'mask_embedding', 'num_two_stream_layers': 1},
    {'query_seed': 'mask_embedding', 'num_two_stream_layers': 0},
    {'query_seed': 'shift', 'num_two_stream_layers': 4, 'scan_layers': False},
    {'family': 'esolm', 'diffusion': {'esolm_diffused': 0.0}},
    {'family': 'esolm', 'diffusion': {'esolm_loss': 'orders'}, 'mlp': 'swiglu', 'num_kv_heads': 2},
  ],
  ids=str,
)
def test_equals_the_counted_products(model):
  whole = whole_config(**model)
  assert training_flops(whole.model, VOCAB) == pytest.approx(counted(whole), rel=1e-9)


@pytest.mark.parametrize(
  'model',
  # The seed's own form, the noise embedding and a given first row are not followed to the letter.
  [
    {},
    {'query_seed': 'warm'},
    {'query_seed_chunk': 0},
    {'query_seed': 'shift', 'first_token': 'given'},
    {'family': 'mdlm'},
    {'family': 'sedd'},
    {'family': 'radd', 'first_token': 'given'},
    {'family': 'bd3lm'},
    {'family': 'setdlm'},
    {'family': 'bd3lm', 'diffusion': {'block_length': 64}, 'scan_layers': False},
  ],
  ids=str,
)
def test_is_within_a_percent_of_the_counted_products(model):
  whole = whole_config(**model)
  assert training_flops(whole.model, VOCAB) == pytest.approx(counted(whole), rel=0.01)


@pytest.mark.parametrize(
  'diffusion',
  [{}, {'esolm_diffused': 0.6, 'esolm_split': 0.25}, {'esolm_diffused': 1.0},
   {'esolm_diffused': 1.0, 'schedule': 'cosine'}],
  ids=str,
)  # fmt: skip
def test_is_the_mean_over_draws_of_phases(diffusion):
  """64 texts of one step, whose times lie evenly."""
  whole = whole_config(family='esolm', num_layers=2, diffusion=diffusion)
  assert training_flops(whole.model, VOCAB) == pytest.approx(counted(whole, 64) / 64, rel=1e-3)


def test_strided_orders_change_it_by_less_than_their_share():
  whole = whole_config({'strided_start': 0, 'strided_streams': (8,)}, query_seed='shift')
  assert training_flops(whole.model, VOCAB) == pytest.approx(counted(whole), rel=8 / 256)


def test_remat_counts_once():
  recomputing = whole_config(remat='full', query_seed='shift')
  none = whole_config(query_seed='shift')
  assert counted(recomputing) > counted(none)
  assert training_flops(recomputing.model, VOCAB) == training_flops(none.model, VOCAB)


@pytest.mark.parametrize('chip', ['H100', 'v5e'])
def test_kernels_count_as_the_products_that_they_need(chip):
  """On a chip, attention is a kernel; its needed products are those of the XLA reference."""
  whole = whole_config()
  with device.compiling_for(chip):
    on_chip = counted(whole)
  jax.clear_caches()  # which kernel a call takes is decided when it is traced
  assert on_chip == pytest.approx(counted(whole), rel=1e-9)

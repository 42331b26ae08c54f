"""A small float32 ARMD, its training, and the generation orders that the tests try on it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from armd_jax import config, models, order

NUM_SLOTS = 16
VOCAB = 7


def model_config(**changes):
  sizes = dict(
    length=NUM_SLOTS,
    num_layers=4,
    embed_dim=32,
    num_heads=4,
    mlp_dim=64,
    dtype='float32',
    query_seed_chunk=5,
    position_dim=8,
    vocab_multiple=1,
  )
  raw = {'model': sizes | changes, 'order': {'max_shuffled': 1}}
  return config.parse(raw).model


def train_config(**changes):
  """Of a training run; dropout and shuffled orders from the first step on.

  Args:
    changes: `section__field`, and its value.
  """
  raw = {
    'model': dict(
      length=NUM_SLOTS,
      num_layers=2,
      embed_dim=32,
      num_heads=4,
      dtype='float32',
      dropout=0.1,
      position_dim=8,
    ),
    'order': dict(ar_steps=0, perm_steps=0, max_shuffled=8),
    'optimizer': dict(warmup_steps=4, learning_rate=1e-2),
    'train': dict(batch_size=8, loss_chunk=16),
  }
  for name, value in changes.items():
    section, field = name.split('__')
    raw.setdefault(section, {})[field] = value
  return config.parse(raw)


@functools.cache  # each call would compile it anew
def init(model_config, vocab_size=VOCAB, seed=0, scale=3.0):
  """Model and random parameters; larger than at initialisation, so that every path matters."""
  model = models.build(model_config, vocab_size)

  def enlarge(path, x):
    if path[-1].key == 'gain':  # starts at 0
      return x + 0.3
    if scale > 1 and 'modulation' in jax.tree_util.keystr(path):  # starts at 0: all gates shut
      return jax.random.normal(jax.random.key(x.ndim), x.shape)
    return x if path[-1].key == 'scale' else scale * x

  with jax.ensure_compile_time_eval():  # or a caller's tracers would be kept
    params = jax.jit(functools.partial(models.init, model))(jax.random.key(seed))
    return model, jax.tree_util.tree_map_with_path(enlarge, params)


def orders(num_slots=NUM_SLOTS, batch=3, seed=1):
  """One order of every kind, by name."""
  keys_B = jax.random.split(jax.random.key(seed), batch)
  return {
    'left_to_right': order.left_to_right(num_slots),
    'shuffled': order.shuffled(keys_B, num_slots, num_slots // 2, 'scatter'),
    'uniform': order.uniform(keys_B, num_slots),
    'segments': order.segments(keys_B, num_slots, 3),
    'blocks': order.masking_blocks(keys_B, num_slots, 3, 'linear'),
    'one_block': order.left_to_right(num_slots).replace(
      block_BxN=jnp.ones((1, num_slots), jnp.int32)
    ),
    **{f'strided{s}': order.strided(num_slots, s) for s in (2, 4, 8) if num_slots % s == 0},
  }

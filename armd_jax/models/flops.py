"""Matrix-product FLOPs of a training step in closed form, for the MFU that training logs.

They are those of the model, not of the program: attention counts the keys that a row sees, and what
a remat policy computes again counts once. `armd_jax.compiled.flops` counts a program's own.
"""

from __future__ import annotations

import math

from armd_jax.config import ModelConfig


def training_flops(config: ModelConfig, vocab_size: int) -> float:
  """FLOPs, two per multiply-add, of the forward and the backward pass of one sequence.

  Orders are taken to be singletons, as in base training. Larger blocks hide some keys from query
  rows and show some to content rows; with S streams of text that changes attention's part by less
  than `S / N`. Of a family with orders of its own they are its draws, in the mean. The noise
  embedding of the diffusion baselines, one row a sequence, is left out.

  Args:
    config: the network.
    vocab_size: entries of the vocabulary, without padding.
  """
  c = config
  if c.orders != 'none':
    num_rows = c.num_slots
    pairs = num_rows * (num_rows + 1) / 2
  else:  # every row sees every row, a given first token included
    num_rows = c.length
    pairs = num_rows**2
  if c.set_length:  # clean and noised rows, which all see as many keys
    pairs = num_rows * (num_rows + c.set_length)
    num_rows *= 2
  # The last two-stream layer leaves its content rows as they are: they are read as keys alone.
  content_passes = max(c.num_two_stream_layers - 1, 0) if c.orders == 'any' else 0
  passes = c.num_layers + content_passes
  width = c.num_heads * c.head_dim
  # Query and out; up and down, and a gate.
  weights_of_a_row = c.embed_dim * (2 * width + (3 if c.mlp == 'swiglu' else 2) * c.mlp_dim)
  weights_of_a_key = c.embed_dim * 2 * c.num_kv_heads * c.head_dim
  query_pairs = _pairs_in_phases(c, pairs) if c.has_own_orders else pairs
  forward: float = passes * 2 * num_rows * weights_of_a_row
  forward += 4 * width * (c.num_layers * query_pairs + content_passes * pairs)
  forward += c.num_layers * 2 * num_rows * weights_of_a_key
  forward += 2 * c.num_slots * c.embed_dim * c.padded(vocab_size)
  # The backward pass multiplies twice for each product: for its weights, and for its input.
  return 3 * forward + (_seed_flops(c) if c.orders == 'any' else 0)


def _pairs_in_phases(config, pairs):
  """Pairs of a query row and what it sees, in the mean over Eso-LM's draws (`objectives.esolm`).

  With a share `a` of clean tokens, masks of the diffusion phase see these and BOS alone: all rows
  have `N^2 (a - a^2 / 2) + N` pairs.
  """
  d = config.diffusion
  share = d.esolm_diffused
  if d.esolm_loss == 'orders' or not share:
    return pairs
  split = d.esolm_split if share < 1 else 1
  # Means of alpha and of its square over time.
  mean, square = {'log_linear': (1 / 2, 1 / 3), 'cosine': (2 / math.pi, 1 / 2)}[d.schedule]
  in_diffusion = config.num_slots**2 * (mean * share - square * share**2 / 2) + config.num_slots
  return split * in_diffusion + (1 - split) * pairs


def _seed_flops(config):
  """Paper eq. 6 in its linear form; without a gradient for the position rows, two passes."""
  c = config
  if c.query_seed != 'prefix':
    return 0
  inside = (
    min(c.query_seed_chunk or c.num_slots, c.num_slots) / 2
  )  # earlier slots of a slot's own chunk
  across = (
    2 * c.position_dim * c.embed_dim if c.query_seed_chunk else 0
  )  # the running sum: added to, and read
  return 2 * 2 * c.num_slots * (across + inside * c.embed_dim)

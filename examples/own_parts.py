"""A tokenizer, a source, and an objective along an order of one's own; see docs/python.md."""

import dataclasses

import numpy as np

import armd_jax
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.families import FAMILIES
from armd_jax.objectives import armd


class Capitals(ByteTokenizer):
  name = 'capitals'

  def encode(self, text):
    return super().encode(text.upper())


def numbers(count):  # of the source numbers:COUNT
  return (f'{n} and {n + 1} are neighbours, {n * n} is a square.' for n in range(int(count)))


def from_both_ends(model, params, text_MxN, draws, **options):
  n = model.config.num_slots  # the first token, the last, the second, the last but one, ...
  order = armd_jax.orders.permutation([n - i // 2 if i % 2 else i // 2 + 1 for i in range(n)])
  weights_MxN = np.full((len(text_MxN), n), 1 / (draws.count * n), np.float32)
  total, _ = armd.nll(model, params, text_MxN, order, weights_MxN, **options)
  return total, np.zeros((2, len(armd.ORDER_KINDS)))


armd_jax.register.tokenizer('capitals', Capitals)
armd_jax.register.source('numbers', numbers)
armd_jax.register.family('both_ends', dataclasses.replace(FAMILIES['armd'], loss=from_both_ends))

"""ARMD from the weights of an AR model, which it computes exactly until training changes them.

`G^0` starts from the token on a slot's left, so that on left-to-right orders query row n is the AR
model's row n - 1, and each stream of a strided order is at the start as good as that model is from
the middle of a text. A learned gain, 0 at the start, brings in the tokens beside a slot and the
rows' own positions. Both are our choice: the paper's section 3 rejects a shifted seed.
"""

from __future__ import annotations

import dataclasses

import jax

from armd_jax import models
from armd_jax.config import ModelConfig
from armd_jax.errors import UserError
from armd_jax.models.layers import stack_of, unstack_layers
from armd_jax.models.params import Params


def warm_start(
  config: ModelConfig, vocab_size: int, params: Params, num_two_stream_layers: int
) -> tuple[ModelConfig, Params]:
  """An ARMD whose left-to-right likelihood is the AR model's.

  Args:
    config: of the AR model.
    vocab_size: its vocabulary.
    params: its parameters.
    num_two_stream_layers: how many of its layers get a content stream.
  Returns:
    ARMD's config, with `query_seed='warm'`, and parameters; those that an AR model does not have
    are initialised as for any training.
  Raises:
    UserError: the model is no AR model.
  """
  if config.family != 'ar':
    raise UserError(f"the run is of family {config.family!r}; a warm start needs one of 'ar'")
  split = num_two_stream_layers
  new_config = dataclasses.replace(
    config, family='armd', query_seed='warm', num_two_stream_layers=split
  )
  params = unstack_layers(params)
  layers = [params['stack'][f'layer_{number}'] for number in range(config.num_layers)]
  new_model = models.build(new_config, vocab_size)

  @jax.jit
  def fresh(key):  # jit computes only those that are used
    made = models.init(new_model, key)
    return {name: made[name] for name in ('gain', 'neighbours', 'unknown')}

  new_params = fresh(jax.random.key(0))
  # The AR model's stack cut in three, its layers in the same order.
  for name, part in (('two_stream', layers[: max(split - 1, 0)]), ('causal', layers[split:])):
    if part:
      new_params[name] = stack_of(config, part)
  if split:
    new_params['last_two_stream'] = layers[split - 1]
  return new_config, new_params | {name: params[name] for name in ('vocabulary', 'final_norm')}

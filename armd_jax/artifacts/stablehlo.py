"""Decoding as StableHLO that runs without this package, on CPUs, NVIDIA GPUs and TPUs.

A folder holds two programs of jax.export, which depend on a batch size, a length and S:

  prefill   weights, the given tokens -> weights in the compute type, caches
  step      weights, caches, seed -> caches, the text so far: one forward pass, up to S tokens

weights.npz, about.json, which has the digests of all of them and its own, and run.py
(`stablehlo_run`), which needs numpy, jax and flatbuffers.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from armd_jax import models
from armd_jax.artifacts import stablehlo_run
from armd_jax.config import ModelConfig
from armd_jax.decode import sampling, step
from armd_jax.decode.generate import device_form
from armd_jax.decode.network import Network
from armd_jax.decode.plan import Plan
from armd_jax.decode.state import Task, whole_room
from armd_jax.files import whole
from armd_jax.models.params import Params
from armd_jax.order import given_first, to_generation

Array = jax.Array

PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(
  folder: pathlib.Path,
  config: ModelConfig,
  vocab_size: int,
  params: Params,
  first_token: int,
  *,
  streams: int,
  batch_size: int,
  tokenizer: str = '',
) -> None:
  """Writes the folder.

  Args:
    folder: to be made.
    config, vocab_size, params: the network, as trained.
    first_token: in BOS's place, or `models.vocabulary.BOS`.
    streams: S.
    batch_size: texts that are generated together.
    tokenizer: name of what makes the ids.
  """
  folder.mkdir()
  programs = _programs(config, vocab_size, params, first_token, streams, batch_size)
  for name, program in programs.items():
    (folder / f'{name}.stablehlo').write_bytes(program.serialize())
  np.savez(folder / 'weights.npz', *map(np.asarray, jax.tree.leaves(params)))
  files = sorted(path for path in folder.iterdir())
  about = {
    'batch_size': batch_size,
    'length': config.num_slots,
    'streams': streams,
    'vocab_size': vocab_size,
    'tokenizer': tokenizer,
    'sha256': {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
  }
  seal = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
  whole.write_json(folder / 'about.json', about | {'seal': seal})
  script = pathlib.Path(stablehlo_run.__file__).read_text('utf-8')
  (folder / 'run.py').write_text(script, encoding='utf-8')


def _programs(config, vocab_size, params, first_token, streams, batch_size):
  # The one attention that every platform compiles.
  config = dataclasses.replace(config, attention='reference')
  num_slots, width = config.num_slots, min(streams, config.num_slots)
  model, form = models.build(config, vocab_size), device_form()
  # Room for any number of given tokens.
  plan = Plan(form, batch_size, num_slots, width, 1, whole_room(num_slots, width))
  weights, structure = jax.tree.flatten(params)

  def begin(weights, tokens_BxN, given_BxN, length_B):
    network = Network.of(model, jax.tree.unflatten(structure, weights), form)
    order = given_first(given_BxN, length_B, streams)
    is_given_BxN = given_BxN & (jnp.arange(num_slots) < length_B[:, None])
    num_given_B = jnp.sum(is_given_BxN, axis=1, dtype=jnp.int32)
    first_B = jnp.full(batch_size, first_token, jnp.int32)
    task = Task.of(order, num_given_B, length_B, first_B)
    return network, task, step.start(network, plan, task, to_generation(tokens_BxN, order))

  def prefill(*given):
    prepared, task, state = begin(*given)
    return jax.tree.leaves(prepared), jax.tree.leaves((task, state))

  def one_step(prepared, carry, draws):
    network, (task, state) = (
      jax.tree.unflatten(*pair) for pair in ((prepared_in, prepared), (carry_in, carry))
    )
    draws = sampling.Draws(**draws)
    steps = [functools.partial(step.step, network, task, draws, width=rows) for rows in (1, width)]
    state = jax.lax.cond(jnp.max(step.step_rows(task, state)) <= 1, *steps, state)
    more = jnp.any(step.wanted(plan, task, state))
    return jax.tree.leaves((task, state)), step.finish(plan, task, state).tokens_BxN, more

  shape = lambda dims, dtype: jax.ShapeDtypeStruct(dims, dtype)
  text = batch_size, num_slots
  given = shape(text, jnp.int32), shape(text, bool), shape((batch_size,), jnp.int32)
  weights = [shape(x.shape, x.dtype) for x in weights]
  prepared, *carry = jax.eval_shape(begin, weights, *given)
  (prepared, prepared_in), (carry, carry_in) = map(jax.tree.flatten, (prepared, tuple(carry)))
  draws = {
    'seed': shape((), jnp.uint32),
    'sequence_B': shape((batch_size,), jnp.int32),
    'temperature': shape((), jnp.float32),
  }
  export = lambda function: jax.export.export(jax.jit(function), platforms=PLATFORMS)
  return {
    'prefill': export(prefill)(weights, *given),
    'step': export(one_step)(prepared, carry, draws),
  }

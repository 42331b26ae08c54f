"""Measures a run on its held-out text: `python -m armd_jax.evaluate --workdir=DIR`.

Every number is labelled: 'exact' is the log-likelihood of a proper distribution over texts, 'bound'
an average over random orders. The two kinds do not compare.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from armd_jax import cli, distributed, sharding
from armd_jax.config import Config
from armd_jax.data import corpus as corpus_lib
from armd_jax.data.packing import text_bytes
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.evaluation import likelihood
from armd_jax.sample import load_ema


@dataclasses.dataclass(frozen=True)
class Score:
  """One protocol's result on a text."""

  name: str
  kind: str
  nats_per_byte: float
  nats_per_token: float
  tokens: int


def evaluate(
  config: Config,
  tokenizer: Tokenizer,
  params: Any,
  windows_WxN: np.ndarray,
  streams: Sequence[int],
  *,
  batch_size: int = 16,
  seed: int = 0,
) -> list[Score]:
  """Scores windows under the standard suite of orders.

  Args:
    config, tokenizer, params: a trained model, whose parameters lie on the config's mesh.
    windows_WxN: held-out token ids.
    streams: stride counts S; each must divide the model's length.
    batch_size: windows per call, rounded up to what the devices can share.
    seed: of random orders.
  Returns:
    A score per protocol. Nats per byte count the bytes of the scored tokens.
  """
  mesh = sharding.make_mesh(config.mesh)
  parts = sharding.batch_parts(mesh)
  batch_size = -(-batch_size // parts) * parts
  skipped = config.model.length - config.model.num_slots
  num_bytes = text_bytes(windows_WxN[:, skipped:], tokenizer)
  scores = []
  suite = likelihood.standard_suite(config.model, streams)
  batches = -(-len(windows_WxN) // batch_size)
  total, quiet = len(suite) * batches, not distributed.is_first()
  with tqdm(total=total, desc='evaluate', unit='batch', leave=False, disable=quiet) as bar:
    for protocol in suite:
      bar.set_postfix_str(protocol.name, refresh=False)
      nll = likelihood.nll(
        config.model,
        tokenizer.vocab_size,
        params,
        windows_WxN,
        protocol,
        mesh,
        batch_size=batch_size,
        seed=seed,
      )
      mean, tokens = likelihood.mean_nats(_counted(nll, bar))
      per_byte = mean * tokens / num_bytes
      scores.append(Score(protocol.name, protocol.kind, per_byte, mean, tokens))
  return scores


def _counted(batches, bar):
  for batch in batches:
    bar.update()
    yield batch


def table(scores: Sequence[Score]) -> str:
  """The scores as text."""
  width = max(len(score.name) for score in scores)
  lines = [f'{"order":{width}}  kind   nats/byte  nats/token']
  for s in scores:
    lines.append(f'{s.name:{width}}  {s.kind:5}  {s.nats_per_byte:9.4f}  {s.nats_per_token:10.4f}')
  return '\n'.join(lines)


def main() -> None:
  mesh_config = cli.mesh_of(_MESH.value)
  distributed.start(_CLUSTER())
  config, tokenizer, params, step = distributed.together(
    lambda: load_ema(_WORKDIR.value, mesh_config)
  )
  corpus = distributed.together(lambda: corpus_lib.load(config.data, config.model.length))
  windows_WxN = corpus.held_out_WxN[: _WINDOWS.value or None]
  streams = cli.streams_of(_STREAMS)
  distributed.together(lambda: likelihood.standard_suite(config.model, streams))  # or refuse it
  scores = evaluate(config, tokenizer, params, windows_WxN, streams, seed=_SEED.value)
  if not distributed.is_first():
    return
  print(f'{_WORKDIR.value}, step {step}: held out of {corpus.description}')
  print(f'{len(windows_WxN)} windows of {config.model.length} tokens, BOS before each')
  print(table(scores))
  if _JSON.value:
    numbers = {'step': step, 'sha256': corpus.sha256, 'scores': [vars(s) for s in scores]}
    cli.write_json(_JSON.value, numbers)


if __name__ == '__main__':
  _WORKDIR = cli.workdir_flag('A training run.')
  _STREAMS = cli.streams_flag('2,4,8')
  _WINDOWS = flags.DEFINE_integer('windows', 0, 'Held-out windows to score; 0: all.', lower_bound=0)
  _SEED = flags.DEFINE_integer('seed', 0, 'Seed of random orders.')
  _JSON = cli.json_flag()
  _MESH = cli.mesh_flag()
  _CLUSTER = distributed.define_flags()
  cli.run(main)

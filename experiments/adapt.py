"""An open language model becomes an ARMD that writes several tokens a step.

  python -m armd_jax.convert --hf=FOLDER --workdir=work/open --length=256 --source='TEXTS/*.txt'
  python -m armd_jax.convert --warm_start=work/open --workdir=work/warm --two_stream_layers=1
  python -m armd_jax.train --config=experiments/adapt.py:run=work/warm --workdir=work/adapted
  python -m armd_jax.evaluate --workdir=work/adapted --streams=2,4,8
  python -m armd_jax.export --workdir=work/adapted --hf=work/adapted.hf

The model, its tokenizer and its text are those of the run. It predicts left to right what the open
model predicts; Adam's moments and the warm-up begin anew. In the first half of the steps, half of
the texts are cut into segments in random order, so that the network learns to write the beginning
of a part whose left context is not there yet. In the rest every text is written in S streams at
once, S drawn for each. A step whose gradient is ten times the usual is left out. Stopped and
started again, the command resumes. With `:run=DIR,scratch` the same network learns the same from
nothing, which shows what the open model is worth; this page has the curves of both, left-to-right
and at 2, 4 and 16 tokens a step:

  armd report --workdir=work/adapted --workdir=work/scratch --out=work/gain.html

--config.optimizer.lora_rank=16 trains adapters of low rank beside the open model's matrices, and
--config.optimizer.trained=NAMES a part of the network.

Three hours of two CPU cores are about a thousand steps of SmolLM2-135M, the default; `:steps=N`
plans for others. On one GPU they are minutes, with --config.model.dtype=bfloat16
--config.train.batch_size=64.
"""

import json
import pathlib

import ml_collections

from armd_jax.config import default_config
from armd_jax.errors import UserError

STEPS = 1000
SMOLLM2 = dict(
  length=256, num_layers=30, num_two_stream_layers=1, embed_dim=576, num_heads=9, num_kv_heads=3,
  mlp_dim=1536, mlp='swiglu', dropout=0.0, rope_theta=1e5, norm_epsilon=1e-5, query_seed='warm',
  dtype='float32',
)  # fmt: skip


def _whole(digits: str) -> int:
  if not digits.isdecimal() or int(digits) < 4:
    raise UserError(f'adapt.py has steps={digits}; write a whole number from 4 on')
  return int(digits)


def get_config(options: str = '') -> ml_collections.ConfigDict:
  run, begins, steps = '', True, STEPS
  for option in filter(None, options.split(',')):
    if option == 'scratch':
      begins = False
    elif option.startswith('run='):
      run = option.removeprefix('run=')
    elif option.startswith('steps='):
      steps = _whole(option.removeprefix('steps='))
    else:
      raise UserError(
        f'adapt.py takes run=DIR, steps=N and scratch, but no {option!r}; leave that out'
      )
  config = default_config()
  config.model.update(SMOLLM2)
  if run:
    path = pathlib.Path(run) / 'config.json'
    if not path.exists():
      raise UserError(f'{run} holds no run (no config.json); make one by armd_jax.convert')
    found = json.loads(path.read_text('utf-8'))
    config.model.update(found['model'])
    config.data.update(found['data'])
    # Of a run that was moved, or came from another machine.
    if (own := path.with_name('tokenizer.json')).exists():
      config.data.tokenizer = str(own.absolute())
    config.init_from = run if begins else ''
  config.model.remat = 'dots'
  config.order.update(
    ar_steps=0, perm_steps=steps // 4, max_shuffled=8, segments_prob=0.5, segments_cuts=8,
    strided_start=steps // 2, strided_streams=(1, 2, 4, 8, 16), strided_draw='sequence',
  )  # fmt: skip
  config.optimizer.update(
    learning_rate=1e-4, warmup_steps=50, beta2=0.99, ema_decay=0.99, skip_above=10.0
  )
  config.train.update(
    steps=steps, batch_size=4, log_every=10, eval_every=100, eval_windows=16,
    eval_streams=(2, 4, 16), checkpoint_every=50,
    keep_last=1, keep_best=0, keep_every=0,
  )  # fmt: skip
  return config

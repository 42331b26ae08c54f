"""Every suite on whole real files, through the programs, with GPT-2's own tokenizer at N = 1024."""

import json
import math
import os
import subprocess

import corpora
import pytest
import tiny_run

pytestmark = [pytest.mark.drill, corpora.needs_shared]
DRILL_ALSO = ('armd_jax/evaluate.py',)
# One toy network's numbers are compared with each other, whatever the network is.
DRILL_WITHOUT = (
  'armd_jax/attention/*.py',
  'armd_jax/decode/*.py',
  'armd_jax/models/*.py',
  'armd_jax/objectives/*.py',
  'armd_jax/training/checkpoint.py',
  'armd_jax/config.py',
  'armd_jax/parallel/distributed.py',
  'armd_jax/sample.py',
  'armd_jax/artifacts/standalone.py',
  'armd_jax/training/__init__.py',
)
EVAL = corpora.SHARED / 'eval'
FILES = {
  'wikitext2': EVAL / 'wikitext2_raw_test.txt',
  'lambada': EVAL / 'lambada_openai_test.jsonl',
  'lm1b': EVAL / 'lm1b_subset.txt',
}
TEXTS = ','.join(f'{name}={path}' for name, path in FILES.items())
SMALL = dict(
  length=1024,
  num_layers=2,
  embed_dim=32,
  num_heads=2,
  query_seed="'neighbours'",
  query_seed_norm="'rms'",
)


def program(name, *flags, **variables):
  variables |= {'ARMD_JAX_VOCABULARIES': str(corpora.SHARED / 'tokenizers'), 'JAX_PLATFORMS': 'cpu'}
  command = [*tiny_run.PYTHON, '-m', f'armd_jax.{name}', *flags]
  done = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A model that has begun to tell frequent words from rare ones."""
  folder = tmp_path_factory.mktemp('real') / 'run'
  sizes = [f'--config.model.{name}={value}'.replace("'", '') for name, value in SMALL.items()]
  program(
    'train', '--config=experiments/quickstart.py', f'--workdir={folder}', *sizes,
    f'--config.data.source={corpora.SHARED}/train/moby_dick.txt', '--config.data.tokenizer=gpt2',
    '--config.train.steps=60', '--config.train.batch_size=2', '--config.train.loss_chunk=256',
    '--config.order.ar_steps=30', '--config.order.perm_steps=50', '--config.order.max_shuffled=8',
    '--config.order.strided_start=100', '--config.optimizer.warmup_steps=10',
    '--config.optimizer.learning_rate=0.01', '--config.train.eval_windows=2',
  )  # fmt: skip
  return folder


def evaluated(workdir, suite, *flags, **variables):
  """What is printed, and what is written."""
  path = workdir / 'scores.json'
  flags = [f'--workdir={workdir}', f'--suite={suite}', f'--json={path}', '--batch_size=8', *flags]
  return program('evaluate', *flags, **variables), json.loads(path.read_text())


@pytest.mark.parametrize('suites', [('sedd', 'radd'), ('mdlm', 'mdlm')])
def test_a_published_protocol(workdir, suites):
  """To the end, twice with the same number; sedd and radd differ in the splits they ask for."""
  (printed, first), (_, second) = (
    evaluated(workdir, suite, f'--texts={TEXTS}') for suite in suites
  )
  assert first['scores'] == second['scores'] and first['texts'] == second['texts']
  assert [row['text'] for row in first['scores']] == ['WikiText2', 'LAMBADA', 'LM1B']
  for row in first['scores']:
    # Below a guess among all tokens, and as many windows as such files hold.
    assert row['kind'] == 'exact' and 5 < row['nats_per_token'] < math.log(50257)
    assert 200_000 < row['tokens'] < 500_000 and row['tokens'] % 1024 == 0
    assert f'{row["perplexity"]:.2f}' in printed


def test_last_words_of_lambada(workdir, tmp_path):
  """And the same number when tensorflow-datasets holds the passages, in an order of its own."""
  _, first = evaluated(workdir, 'lambada', f'--texts=lambada={FILES["lambada"]}')
  rows = [json.loads(line) for line in FILES['lambada'].read_text('utf-8').splitlines()]
  passages = [f'{row["context"]} {row["continuation"]}' for row in rows]
  corpora.write_tfds(tmp_path, 'lambada', {'test': passages}, ('passage',))
  _, second = evaluated(workdir, 'lambada', '--texts=lambada', TFDS_DATA_DIR=str(tmp_path))
  (one,), (other,) = first['scores'], second['scores']
  assert one['passages'] == other['passages'] == 5153 and one['accuracy'] == other['accuracy']
  assert one['perplexity'] == pytest.approx(other['perplexity'], rel=1e-6)


def test_its_own_held_out_text(workdir):
  """Exact ones and bounds; the bound over orders tightens with their number."""
  _, first = evaluated(workdir, 'likelihood', '--windows=16', '--orders=4')
  assert evaluated(workdir, 'likelihood', '--windows=16', '--orders=4')[1] == first
  nats = {row['name']: row['nats_per_token'] for row in first['scores']}
  assert nats['uniform orders, K=1'] > nats['uniform orders, K=2'] > nats['uniform orders, K=4']
  assert nats['uniform orders, K=4'] > nats['left-to-right']

"""What each suite scores; and a drill, in which the program is killed and goes on."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
import tiny_run

from armd_jax import config as config_lib
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.errors import UserError
from armd_jax.evaluation import scores, suites

TOKENIZER = ByteTokenizer()
CONFIG = config_lib.parse({'model': {'length': 8}, 'order': {'max_shuffled': 4}})


@pytest.fixture
def given(tmp_path):
  """Two texts by name: three windows of 8 bytes, and two."""
  (tmp_path / 'ptb.txt').write_text('one two three\nfour five\n')
  (tmp_path / 'lm1b.txt').write_text("But now , it 's\n")
  return {'ptb': str(tmp_path / 'ptb.txt'), 'lm1b': str(tmp_path / 'lm1b.txt')}


def test_zero_shot_suites_score_every_text_left_to_right(given):
  task = suites.zero_shot_task('sedd', given, CONFIG, TOKENIZER, (), 8, 0)
  found = [(part.text, part.protocol.name, part.orders) for part in task.parts]
  assert found == [('PTB', 'left-to-right', 1), ('LM1B', 'left-to-right', 1)]
  assert TOKENIZER.decode(task.parts[0].windows_WxN[0]) == 'one two '
  assert [len(part.windows_WxN) for part in task.parts] == [3, 1]
  rule, ptb, lm1b = task.described
  assert rule.startswith("protocol sedd (SEDD's loader)") and rule.endswith('tokenizer bytes')
  assert f'{given["ptb"]}, whose split should be' in ptb and "'test'" in lm1b
  assert '3 of 3 windows, 2 rows' in ptb


def test_streams_are_scored_beside(given):
  task = suites.zero_shot_task('mdlm', given, CONFIG, TOKENIZER, (1, 2), 8, 2)
  names = [part.protocol.name for part in task.parts]
  assert names == ['left-to-right', 'strided S=2, parallel', 'strided S=2, one by one'] * 2
  assert [len(part.windows_WxN) for part in task.parts] == [2] * 6
  with pytest.raises(UserError, match='S = 9, but of 8 tokens there are 1 to 8'):
    suites.zero_shot_task('mdlm', given, CONFIG, TOKENIZER, (9,), 8, 0)


def test_a_text_of_any_name_is_scored_as_it_is(given, tmp_path):
  path = tmp_path / 'mine.txt'
  path.write_text('"quoted" , as it is .\n' * 9)
  task = suites.zero_shot_task('sedd', {'my_own': str(path)}, CONFIG, TOKENIZER, (), 8, 0)
  assert 'detokenizer none' in task.described[1] and task.described[1].startswith('my_own: ')
  ids = np.concatenate(task.parts[0].windows_WxN)
  assert TOKENIZER.decode(ids).startswith('"quoted" , as it is .')
  for wrong in ({'my_own': ''}, {'': str(path)}):
    with pytest.raises(UserError, match='or NAME=FILE of your own'):
      suites.zero_shot_task('sedd', wrong, CONFIG, TOKENIZER, (), 8, 0)


def test_a_sentence_names_the_number_for_a_paper():
  row = lambda name, kind, nats: scores.Score(name, kind, 1.0, nats, 9)
  exact, bound = row('left-to-right', 'exact', 2.0), row('uniform orders', 'bound', 3.0)
  assert 'perplexity 7.39 per token, exact, left-to-right' in scores.to_quote([exact, bound])
  assert 'at most 20.09 per token, the bound of uniform orders' in scores.to_quote([bound])


def test_another_text_is_another_fingerprint(given, tmp_path):
  digits = lambda: suites.zero_shot_task('sedd', given, CONFIG, TOKENIZER, (), 8, 0).texts
  before = digits()
  assert digits() == before
  (tmp_path / 'ptb.txt').write_text('one two threE\nfour five\n')
  assert digits() != before


def test_likelihood_suite_covers_every_kind_of_order(tmp_path):
  raw = tiny_run.config(tmp_path)
  task = suites.likelihood_task(config_lib.parse(raw), (1, 4), 6, 5)
  found = [(part.protocol.name, part.protocol.kind, part.orders) for part in task.parts]
  assert found == [
    ('left-to-right', 'exact', 1),
    ('strided S=4, parallel', 'exact', 1),
    ('strided S=4, one by one', 'exact', 1),
    ('rho=4 shuffled', 'bound', 6),
    ('uniform orders', 'bound', 6),
  ]
  assert {part.windows_WxN.shape for part in task.parts} == {(5, 16)}
  raw.order.max_shuffled = 0
  task = suites.likelihood_task(config_lib.parse(raw), (), 6, 5)
  assert [part.protocol.name for part in task.parts] == ['left-to-right', 'uniform orders']


def test_last_words_are_lambada_s(tmp_path, given):
  path = tmp_path / 'lambada.jsonl'
  path.write_text('{"context": "a b", "continuation": "c"}\n' * 3)
  task = suites.last_word_task({'lambada': str(path)}, CONFIG, TOKENIZER, 2)
  assert TOKENIZER.decode(task.passages.text_WxN[0])[:5] == 'a b c'
  assert len(task.passages.text_WxN) == 2 and '2 passages, of which 0 lost' in task.described[1]
  with pytest.raises(UserError, match='--suite=lambada reads LAMBADA alone'):
    suites.last_word_task(given, CONFIG, TOKENIZER, 0)


def number_of_lines(path):
  return path.read_bytes().count(b'\n') if path.exists() else 0


@pytest.mark.drill
def test_killed_at_any_time_it_goes_on(tmp_path, monkeypatch):
  """And says at the end, to the bit, what it says when nothing stops it."""
  for name, value in tiny_run.VARIABLES.items():
    monkeypatch.setenv(name, value)
  run = tmp_path / 'run'
  train = tiny_run.train(tiny_run.write_experiment(tmp_path), run, '--config.train.steps=2')
  assert tiny_run.run(train).returncode == 0
  partial = run / 'evaluate_likelihood.partial'

  def command(name, *more):
    flags = [f'--workdir={run}', f'--json={tmp_path / name}', '--streams=4', '--batch_size=1']
    return [*tiny_run.PYTHON, '-m', 'armd_jax.evaluate', *flags, *more]

  whole = tiny_run.run(command('whole'))
  assert whole.returncode == 0 and not partial.exists(), whole.stderr
  seen = 0
  for _ in range(3):
    process = subprocess.Popen(command('killed'), stderr=subprocess.DEVNULL)
    deadline = time.time() + 300
    while number_of_lines(partial) < seen + 20:
      assert time.time() < deadline and process.poll() is None
      time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    seen = number_of_lines(partial)
  assert not (tmp_path / 'killed').exists()
  kept = partial.read_bytes()

  other = tiny_run.run(command('other', '--seed=1'))
  assert other.returncode == 1 and partial.read_bytes() == kept
  assert other.stderr.splitlines()[-1] == (
    f'error: {partial} holds an unfinished evaluation of another seed; repeat its command, or drop '
    'it by --restart'
  )
  last = tiny_run.run(command('killed'))
  assert last.returncode == 0, last.stderr
  assert f'{seen - 1} windows were scored before' in last.stdout
  assert (tmp_path / 'killed').read_bytes() == (tmp_path / 'whole').read_bytes()

  partial.write_bytes(kept)
  anew = tiny_run.run(command('anew', '--seed=1', '--restart'))
  assert anew.returncode == 0 and not partial.exists(), anew.stderr
  exact, *_, bound = zip(
    *(json.loads((tmp_path / name).read_text())['scores'] for name in ('whole', 'anew')),
    strict=True,
  )
  assert exact[0] == exact[1] and bound[0] != bound[1]
  np.testing.assert_allclose(bound[0]['nats_per_token'], bound[1]['nats_per_token'], rtol=0.02)

"""Verdicts on made-up rows: what is met, what is missed, and what was not measured."""

import made_rows
import pytest

from armd_jax.bench.device import cases, goals
from armd_jax.bench.device.goals import MET, MISSED, NOT_MEASURED

SMALL_16x1024 = cases.Case('train_1024_12x64', 16, 1)


def verdicts(rows):
  return {goal.name: goal.verdict for goal in goals.judge(rows)}


def changed(stage, key, **numbers):
  """The names of the goals whose verdict such numbers change, with the new verdict."""
  rows = made_rows.rows()
  rows[stage, key] = rows.get((stage, key), made_rows.row(stage, key)) | numbers
  before = verdicts(made_rows.rows())
  return {name: verdict for name, verdict in verdicts(rows).items() if verdict != before[name]}


def only(found):
  (one,) = found.items()
  return one


def test_everything_met():
  found = verdicts(made_rows.rows())
  assert set(found.values()) == {MET}
  # Two of results, four shapes and three of two streams in both kinds, training of two, three.
  assert len(found) == 2 + 2 * 4 + 2 * 3 + 2 + 3


def test_nothing_measured():
  assert set(verdicts({}).values()) == {NOT_MEASURED}


@pytest.mark.parametrize('mark', [{'dry': True}, {'skipped': 'no time left'}])
def test_dry_runs_and_what_was_skipped_count_for_nothing(mark):
  rows = {key: row | mark for key, row in made_rows.rows().items()}
  assert set(verdicts(rows).values()) == {NOT_MEASURED}


@pytest.mark.parametrize(
  'numbers', [{'ok': False}, {'error': 'XlaRuntimeError: an illegal address'}]
)
@pytest.mark.parametrize(('stage', 'key'), [('smoke', 'odd'), ('numerics', cases.NUMERICS[3].key)])
def test_one_wrong_call_is_enough(stage, key, numbers):
  name, verdict = only(changed(stage, key, **numbers))
  assert verdict == MISSED and name.startswith('correct everywhere')


def test_kernel_that_hangs():
  rows = made_rows.rows()
  del rows['smoke', 'holes']
  rows['process', 'smoke: holes'] = made_rows.row(
    'process', 'smoke: holes', error='killed after 50 s'
  )
  correct = goals.judge(rows)[0]
  assert correct.verdict == MISSED
  assert 'smoke: holes (killed after 50 s)' in correct.detail


def test_a_call_less_is_not_all_of_them():
  rows = made_rows.rows()
  del rows['numerics', cases.NUMERICS[-1].key]
  first, second = goals.judge(rows)[:2]
  assert (first.verdict, second.verdict) == (NOT_MEASURED, NOT_MEASURED)
  assert '34 of 35' in first.detail and '26 of 27' in second.detail


def test_right_with_another_compiler():
  rows = made_rows.rows()
  key = cases.NUMERICS[0].key
  rows['numerics', key] |= {'ok': False}
  rows['again', f'{key}, ptxas 13.5.37'] = made_rows.row('again', f'{key}, ptxas 13.5.37', ok=True)
  correct = goals.judge(rows)[0]
  assert correct.verdict == MISSED
  assert f'right with another ptxas: {key}, ptxas 13.5.37' in correct.detail


def test_runs_that_differ():
  assert only(changed('numerics', cases.NUMERICS[0].key, moved=2))[1] == MISSED


@pytest.mark.parametrize('kind', ['forward', 'both'])
@pytest.mark.parametrize(('stage', 'rival'), [('times', 'cudnn'), ('torch', 'torch flash')])
def test_slower_than_one_rival(kind, stage, rival):
  key = cases.time_key(SMALL_16x1024, rival, kind)
  name, verdict = only(changed(stage, key, ms=0.01))
  assert verdict == MISSED and name.startswith(f'{SMALL_16x1024.key}, {goals.AS_TEXT[kind]}:')
  # What rivals cannot do is not held against them, or counted for us.
  assert only(changed(stage, key, error='not supported'))[1] == NOT_MEASURED


def test_slower_than_the_only_rival_that_was_measured():
  rows = made_rows.rows()
  del rows['times', cases.time_key(SMALL_16x1024, 'cudnn', 'forward')]
  rows['torch', cases.time_key(SMALL_16x1024, 'torch flash', 'forward')]['ms'] = 0.01
  assert list(verdicts(rows).values()).count(MISSED) == 1


@pytest.mark.parametrize(('ms', 'verdict'), [(0.1 * 2 * 2 / 1.24, MISSED), (0.1 * 4 / 1.26, MET)])
def test_two_streams(ms, verdict):
  rows = made_rows.rows()
  rows['times', cases.time_key(cases.Case('train_4096_16x128', 4, 2), 'ours', 'forward')]['ms'] = ms
  found = verdicts(rows)
  assert found['train_4096_16x128 B4, forward: two streams 1.25x as fast as two calls'] == verdict


def test_mfu_is_the_best_over_batches():
  of = lambda family: [
    s.key for s in cases.STEPS
    if (s.shape, s.family, s.two_stream) == ('gpt2_small', family, 0)
  ]  # fmt: skip
  rows = made_rows.rows()
  for key in of('armd'):
    rows['train', key]['mfu'] = 0.39
  name = 'training MFU of ARMD at GPT-2 small: at least 0.40'
  assert verdicts(rows)[name] == MISSED
  rows['train', of('armd')[-1]]['mfu'] = 0.40
  assert verdicts(rows)[name] == MET


def test_decoding():
  rate = lambda family, streams: made_rows.rows()['decode', cases.decode_key(family, streams, 1)][
    'tokens_per_s'
  ]
  four = cases.decode_key('armd', 4, 1)
  assert only(changed('decode', four, tokens_per_s=3.79 * rate('armd', 1)))[1] == MISSED
  ar = cases.decode_key('ar', 1, 1)
  assert only(changed('decode', ar, tokens_per_s=1.11 * rate('armd', 1)))[1] == MISSED
  peer = cases.peer_key(1)
  assert only(changed('peers', peer, tokens_per_s=rate('armd', 16) / 9.9))[1] == MISSED


def test_ar_is_taken_under_its_best_flags():
  one = made_rows.rows()['decode', cases.decode_key('armd', 1, 1)]['tokens_per_s']
  key = cases.decode_key('ar', 1, 1, ', plain products')
  name, verdict = only(changed('flags', key, tokens_per_s=1.2 * one))
  assert verdict == MISSED and 'one of AR' in name
  # Batch 1 and batch 16 begin alike.
  assert not changed('flags', cases.decode_key('ar', 1, 16), tokens_per_s=100 * one)

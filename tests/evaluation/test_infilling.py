"""Missing sentences: what is read, what is given, exact nats of the true ones, and ROUGE."""

import csv
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import config as config_lib
from armd_jax import evaluate, flags, order
from armd_jax.data import documents
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.decode.requests import Decoder, fill_gaps
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError
from armd_jax.evaluation import infilling, scores, suites
from armd_jax.objectives import armd
from armd_jax.parallel import sharding
from armd_jax.show import report_page
from armd_jax.training.loop import train

pytest.importorskip('rouge_score')
TOKENIZER = ByteTokenizer()
STORIES = [
  ('A b.', 'C de.', 'F g.', 'Hi.', 'J.'),
  ('K l m.', 'N.', 'O pq.', 'R s.', 'Tu.'),
  ('V.', 'W x.', 'Y z.', 'A.', 'B c.'),
]
CONFIG = tiny.model_config(length=32, num_layers=2, query_seed='neighbours')
MESH = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])


def write(path, stories=STORIES):
  rows = [dict(zip(infilling.COLUMNS, story, strict=True)) | {'title': 'x'} for story in stories]
  if path.name == 'tabs.txt':
    path.write_text('\n'.join('\t'.join(story) for story in stories) + '\n')
  elif path.suffix == '.txt':
    path.write_text('\n\n'.join('\n'.join(story) for story in stories))
  elif path.suffix == '.csv':
    with path.open('w', newline='') as file:
      writer = csv.DictWriter(file, ['title', *infilling.COLUMNS])
      writer.writeheader()
      writer.writerows(rows)
  else:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


@pytest.mark.parametrize('name', ['a.jsonl', 'a.csv', 'tabs.txt', 'lines.txt'])
def test_stories_are_read_out_of_every_kind_of_file(tmp_path, name):
  assert infilling.read(write(tmp_path / name)) == STORIES


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    (
      'a.txt',
      'One.\tTwo.\tThree.\n',
      r'story 1 of .* has 3 sentences, not 5; write them with tabs',
    ),
    ('a.jsonl', '{"sentence1": "One."}\n', 'has the columns sentence1, but stories are read from'),
    ('a.txt', '\n \n', 'holds no stories'),
  ],
)
def test_what_is_no_story_is_told(tmp_path, name, text, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(UserError, match=message):
    infilling.read(str(tmp_path / name))


def test_what_is_missing_is_scored_and_all_else_given():
  for gap, missing in ((slice(2, 3), ' F g.'), (slice(1, 4), ' C de. F g. Hi.')):
    both, left = (
      documents.read(infilling.windows(STORIES[:1], gap, TOKENIZER, CONFIG, right=right)[0])
      for right in (True, False)
    )
    text = lambda read, mask: TOKENIZER.decode(read.ids_BxN[mask])
    assert text(both, both.is_real_BxN) == ' '.join(STORIES[0])
    assert text(both, both.is_scored_BxN) == text(left, left.is_scored_BxN) == missing
    assert text(left, left.is_real_BxN) == ' '.join(STORIES[0]).partition(missing)[0] + missing
  with pytest.raises(UserError, match='story 2 has 40 tokens but the model takes 32'):
    infilling.windows([STORIES[0], [*STORIES[0][:4], 'J' * 20]], gap, TOKENIZER, CONFIG)
  given = tiny.model_config(length=33, first_token='given')
  row = infilling.windows(STORIES[:1], gap, TOKENIZER, given)[0]
  assert row[0] == ~TOKENIZER.eos_id and len(row) == 33


@pytest.fixture(scope='module')
def measured():
  """The parts of one gap, and their rows; three stories in batches of two."""
  model, params = tiny.init(CONFIG, TOKENIZER.vocab_size)
  parts = infilling.parts(STORIES, (1, 3), TOKENIZER, CONFIG)
  names = [(part.text, part.protocol.name) for part in parts]
  sides = ['left side alone', 'both sides, S=1', 'both sides, S=3']
  assert names == [(title, side) for title in infilling.GAPS for side in sides]
  parts = parts[:3]
  found = scores.score(model, TOKENIZER, params, parts, MESH, batch_size=2)
  decoder = Decoder(model, params, TOKENIZER, MESH)
  return decoder, parts, infilling.rows(found, parts, decoder, batch_size=2)


def test_nats_are_those_of_the_true_sentences_after_all_that_is_given(measured):
  """By the chain rule along one order: of all tokens, less of those that are given."""
  decoder, parts, rows = measured
  assert [row['name'] for row in rows] == [part.protocol.name for part in parts]
  assert {row['kind'] for row in rows} == {'exact'}

  @jax.jit
  def nats(ids_BxN, o, weights):
    return armd.nll(decoder.model, decoder.params, ids_BxN, o, weights, loss_chunk=8)[1]

  for part, row in zip(parts, rows, strict=True):
    read = documents.read(part.windows_WxN)
    o = order.given_first(
      jnp.array(read.is_given_BxN), jnp.array(read.is_real_BxN.sum(1)), part.protocol.streams
    )
    nll = np.asarray(nats(jnp.array(read.ids_BxN), o, jnp.zeros(read.ids_BxN.shape)))
    position = np.asarray(o.position_BxN) - 1
    is_scored = np.take_along_axis(read.is_scored_BxN, position, axis=1)
    assert row['nats_per_gap'] == pytest.approx(nll[is_scored].sum() / 3, rel=1e-5)
    assert row['tokens'] == is_scored.sum()


def test_gaps_are_filled_as_sample_fills_them(measured):
  decoder, parts, rows = measured
  part = parts[2]
  written, true = infilling.fill(part, decoder, batch_size=2)
  assert true == [' F g.', ' O pq.', ' Y z.']
  for story, text, truth in zip(STORIES, written, true, strict=True):
    template = ' '.join(story[:2]) + '_' * len(truth) + ' ' + ' '.join(story[3:])
    request = fill_gaps(template, 0, 1, 32, TOKENIZER)
    _, generated = decoder.complete(request, 3, Sampling(temperature=0.0))
    begin = len(' '.join(story[:2]))
    ids = np.asarray(generated.tokens_BxN)[0, begin : begin + len(truth)]
    assert TOKENIZER.decode(ids) == text
  assert {name: rows[2][name] for name in infilling.MEASURES} == infilling.rouge(written, true)


def test_rouge_is_that_of_the_package():
  same = infilling.rouge(['the cat sat'], ['the cat sat'])
  assert same == dict.fromkeys(infilling.MEASURES, 1.0)
  some = infilling.rouge(['a cat', 'x'], ['a dog', 'y'])
  assert some == {'rouge1': 0.25, 'rouge2': 0.0, 'rougeL': 0.25}


def test_families_fill_what_they_can(tmp_path, monkeypatch):
  source = write(tmp_path / 'a.jsonl')
  task = lambda family, given: suites.task_of(
    'infilling',
    given,
    config_lib.parse({'model': dict(family=family, length=32), 'order': dict(max_shuffled=0)}),
    TOKENIZER,
    None,
    1,
    2,
  )
  ar = task('ar', {'mine': source})
  assert [(part.text, part.protocol.name) for part in ar.parts] == [
    (title, 'left side alone') for title in infilling.GAPS
  ]
  assert {len(part.windows_WxN) for part in ar.parts} == {2} and '2 of 3 stories' in ar.described[1]
  mdlm = task('mdlm', {'mine': source})
  assert [(part.text, part.protocol.name, part.protocol.kind) for part in mdlm.parts] == [
    (title, side, 'bound') for title in infilling.GAPS for side in ('left side alone', 'both sides')
  ]
  with pytest.raises(UserError, match='reads one file of stories; write --texts=NAME=FILE'):
    task('armd', {'mine': ''})
  monkeypatch.setitem(sys.modules, 'rouge_score', None)
  with pytest.raises(UserError, match=r'by rouge-score; pip install rouge-score'):
    task('armd', {'mine': source})


def test_a_diffusion_baseline_is_bounded_and_fills():
  config = tiny.model_config(length=32, num_layers=2, family='mdlm')
  model, params = tiny.init(config, TOKENIZER.vocab_size)
  parts = infilling.parts(STORIES, (), TOKENIZER, config)[:2]
  found = scores.score(model, TOKENIZER, params, parts, MESH, batch_size=2)
  rows = infilling.rows(found, parts, Decoder(model, params, TOKENIZER, MESH), batch_size=2)
  for row, part in zip(rows, parts, strict=True):
    assert row['kind'] == 'bound' and row['tokens'] == documents.num_scored(part.windows_WxN).sum()
    assert row['nats_per_gap'] > 0
  left, both = (row['nats_per_gap'] for row in rows)
  assert left != pytest.approx(both, rel=1e-3)


def test_evaluate_prints_and_writes_it_and_a_report_shows_it(tmp_path, capsys):
  (tmp_path / 'text.txt').write_text('\n\n'.join(' '.join(story) for story in STORIES * 3))
  raw = {
    'model': dict(length=32, num_layers=2, embed_dim=16, num_heads=2, dtype='float32'),
    'order': dict(ar_steps=0, perm_steps=0, max_shuffled=4),
    'data': dict(source=str(tmp_path / 'text.txt'), held_out=0.3),
    'train': dict(steps=1, batch_size=2, loss_chunk=32),
  }
  train(config_lib.parse(raw), tmp_path / 'run')
  source, out = write(tmp_path / 'a.csv'), tmp_path / 'scores.json'
  words = [f'--workdir={tmp_path / "run"}', f'--texts=mine={source}', f'--json={out}']
  evaluate.main(
    flags.parse(evaluate.Options, ['evaluate', *words, '--suite=infilling', '--streams=2'])
  )
  printed = capsys.readouterr().out
  assert 'ROUGE-L' in printed and 'sentences 2 to 4 of 5 | both sides, S=2' in printed
  rows = json.loads(out.read_text())['scores']
  assert len(rows) == 6 and all(0 <= row['rougeL'] <= 1 for row in rows)
  page = report_page.scores_section({str(out): rows})
  assert 'rougeL' in page and 'both sides, S=2' in page


def test_suites_of_texts_need_texts():
  config = config_lib.parse({})
  for suite in ('sedd', 'lambada', 'infilling'):
    message = f'--suite={suite} needs texts; write --texts=NAME=FILE,... with names of '
    with pytest.raises(UserError, match=message):
      suites.task_of(suite, {}, config, TOKENIZER, None, 1, 0, '')
  denoiser = config_lib.parse({'model': {'family': 'sedd'}})
  with pytest.raises(
    UserError, match="which a model of family 'sedd' cannot; choose another suite"
  ):
    suites.task_of('lambada', {'lambada': 'a.jsonl'}, denoiser, TOKENIZER, None, 1, 0, '')
  with pytest.raises(UserError, match='scores the held-out text of the run; leave out --texts, or'):
    suites.task_of('likelihood', {'ptb': 'a.txt'}, config, TOKENIZER, None, 1, 0, '')

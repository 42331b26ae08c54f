"""The page of a run: its replay in a real browser, what its texts are cut into, what it refuses."""

import dataclasses
import html.parser
import json
import math
import re
import resource
import subprocess
import sys
import time

import browser
import matplotlib.figure
import numpy as np
import pytest
import tiny

from armd_jax import config as config_lib
from armd_jax import report
from armd_jax.artifacts import cards
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.decode import requests
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError
from armd_jax.families import FAMILIES
from armd_jax.files import whole
from armd_jax.show import (
  compare_page,
  history,
  plots,
  replays,
  report_files,
  report_page,
  run_page,
)
from armd_jax.show.report_page import Replay

# One text in two streams after a given piece, one in one stream; two tokens make one letter.
TWO = Replay(
  'S = 2',
  4,
  (('<p> ', 4, 0), ('a', 1, 1), ('b', 1, 3), ('\n', 1, 4), ('é', 2, 2), ('c', 1, 3)),
  junctions=(4,),
)
ONE = Replay('S = 1', 6, tuple((letter, 1, step + 1) for step, letter in enumerate('abcdef')))
VISIBLE = "document.querySelector('.generated:not([hidden])').innerText"
OUTPUT = "document.querySelector('output').textContent"


def new_page():
  commands = {f'S = {n}': f'armd sample --streams={n}' for n in (1, 2)}
  section = report_page.replay_section([TWO, ONE], 'S streams grow.', commands)
  return report_page.page('a <run>', 'of a model', {'step': '3 of 4'}, [section])


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  if browser.find() is None:
    pytest.skip(f'needs a browser: none of {", ".join(browser.NAMES)} is installed')
  folder = tmp_path_factory.mktemp('page')
  report_files.write(folder / 'report.html', new_page())
  page = browser.Page(folder / 'profile')
  page.open(f'file://{folder}/report.html')
  yield page
  page.close()


def test_it_opens_at_the_beginning_with_its_junctions_marked(page):
  assert page.run(VISIBLE) == '<p> ' and page.run(OUTPUT) == 'step 0 of 4, 4 of 10 tokens'
  marked = "[...document.querySelectorAll('.generated .junction')].map((x) => x.textContent).join()"
  assert page.run(marked) == 'é'


def test_the_command_is_that_of_the_chosen_text(page):
  command = "document.getElementById('command').textContent"
  assert page.run(command) == 'armd sample --streams=2'
  page.run('document.querySelector(\'.lane[data-name="S = 1"]\').click()')
  assert page.run(command) == 'armd sample --streams=1'
  assert page.run("document.getElementById('which').textContent") == 'S = 1'
  page.run('document.querySelector(\'.lane[data-name="S = 2"]\').click()')


def test_the_slider_shows_exactly_what_every_step_made(page):
  page.run("document.getElementById('step').focus()")
  page.press('Home', 36)
  for step in range(7):
    shown = [piece for piece, _, appeared in TWO.pieces if appeared <= step]
    assert page.run(VISIBLE) == ''.join(shown)
    tokens = sum(tokens for _, tokens, appeared in TWO.pieces if appeared <= step)
    assert page.run(OUTPUT) == f'step {min(step, 4)} of 4, {tokens} of 10 tokens'
    page.press('ArrowRight', 39)
  page.press('Home', 36)
  page.run('document.querySelector(\'.lane[data-name="S = 1"]\').click()')
  assert page.run(VISIBLE) == ''
  page.press('ArrowRight', 39)
  page.press('ArrowRight', 39)
  assert page.run(VISIBLE) == 'ab'


def test_an_address_names_a_text_and_a_step(page):
  where = page.run('location.href').partition('#')[0]
  for name, step, shown in (('S=1', 3, 'abc'), ('S=2', 1, '<p> a'), ('S=3', 1, '<p> a')):
    page.open('about:blank')
    page.open(f'{where}#{name},step={step}')
    assert page.run(VISIBLE) == shown
  page.open('about:blank')
  page.open(f'{where}#S=1')


def test_playing_goes_on_to_the_end(page):
  page.press('End', 35)
  page.press('ArrowLeft', 37)
  page.run("document.getElementById('play').click()")
  play = "document.getElementById('play').textContent"
  assert page.run(play) == 'Pause'
  end = time.monotonic() + browser.SECONDS
  while page.run(play) == 'Pause' and time.monotonic() < end:
    time.sleep(0.1)
  assert (page.run(play), page.run(VISIBLE)) == ('Play', 'abcdef')


def test_a_page_fetches_nothing_and_has_no_errors(page):
  urls = {request['request']['url'] for request in page.happened('Network.requestWillBeSent')}
  assert {url.partition(':')[0] for url in urls} <= {'file', 'data'}
  assert len([url for url in urls if url.startswith('file:')]) == 1
  told = page.happened('Log.entryAdded', 'Runtime.exceptionThrown', 'Runtime.consoleAPICalled')
  assert told == []


def test_nothing_refers_to_what_is_outside():
  text = new_page()
  assert not re.search(r'(src|href)="(?!#|data:)|url\((?!#)|@import|://', text)
  assert 'a &lt;run&gt;' in text and '&lt;p&gt;' in text


def test_pieces_are_the_text_and_the_tokens():
  tokenizer = ByteTokenizer()
  ids_N = np.append(tokenizer.encode('né“!'), [256, 195, 65, 226])
  step_N = np.arange(1, len(ids_N) + 1)
  pieces = replays.pieces_of(tokenizer, ids_N, step_N)
  assert ''.join(text for text, _, _ in pieces) == tokenizer.decode(ids_N)
  assert sum(tokens for _, tokens, _ in pieces) == len(ids_N)
  assert [text for text, _, _ in pieces][:4] == ['n', 'é', '“', '!']
  assert [step for _, _, step in pieces][:4] == [1, 3, 6, 7]


@pytest.mark.parametrize('family', ['mdlm', 'sedd', 'esolm'])
def test_a_diffusion_is_replayed_by_runs_of_its_network(family):
  tokenizer = ByteTokenizer()
  config = dataclasses.replace(config_lib.Config(), model=tiny.model_config(family=family))
  decoder = requests.Decoder(*tiny.init(config.model, tokenizer.vocab_size), tokenizer, None)
  found, how = replays.replays(decoder, 'ab', (1, 4), Sampling())
  assert [replay.name for replay in found] == ['K = 14', 'K = 4']
  assert '16 tokens' in how and 'K steps' in how
  for replay in found:
    assert replay.pieces[:2] == (('a', 1, 0), ('b', 1, 0))
    steps = [step for _, _, step in replay.pieces[2:]]
    # One that is in part from left to right may take a step of each token.
    most = 14 if config.model.orders == 'any' else int(replay.name[4:])
    assert min(steps) >= 1 and max(steps) == replay.steps <= most
    assert sum(tokens for _, tokens, _ in replay.pieces) == 16
    request = requests.continue_prompts(['ab'], 16, tokenizer)
    (text,), _ = FAMILIES[family].generate(decoder, request, Sampling(), steps=int(replay.name[4:]))
    assert text == ''.join(piece for piece, _, _ in replay.pieces)


def test_orders_are_those_that_training_has_reached():
  order = dict(
    ar_steps=10, perm_steps=20, max_shuffled=32, strided_start=30, strided_streams=(1, 2, 4, 32)
  )
  config = config_lib.parse({'order': order | {'uniform_order_prob': 0.1}})
  names = lambda step: list(replays.drawn_orders(config, step))
  assert names(10) == ['left-to-right']
  assert names(13) == ['left-to-right', '7 shuffled', 'uniform']
  shuffled = ['left-to-right', '32 shuffled, here 8', 'uniform']
  assert names(30) == shuffled
  assert names(31) == [*shuffled, 'strided, S = 2', 'strided, S = 4']
  for name, drawn in replays.drawn_orders(config, 31).items():
    assert sorted(drawn.position_BxN[0].tolist()) == list(range(1, 17)), name


@pytest.mark.parametrize(
  ('log', 'sentence'),
  [
    (None, '^cannot read .*metrics.jsonl .*; give the --workdir of a run that has trained$'),
    (
      '{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n',
      '^line 2 of .* is damaged .*; remove that line$',
    ),
    ('{"step": 1, "held_out": 2.0}\n', 'holds no step; train first'),
    ('{"step": -1, "loss": 2.0}\n', '^line 1 of .* is damaged .*holds step -1'),
    ('{"step": 1, "loss": 2.0, "shuffled": NaN}\n', '^line 1 of .* is damaged .*nan shuffled'),
    ('{"step": 1, "loss": 2.0, "shuffled": 1e999}\n', '^line 1 of .* is damaged .*inf shuffled'),
  ],
)
def test_a_log_that_cannot_be_shown_is_one_sentence(tmp_path, log, sentence):
  if log is not None:
    (tmp_path / 'metrics.jsonl').write_text(log)
  with pytest.raises(UserError, match=sentence):
    report_files.read_records(tmp_path)


@pytest.mark.parametrize('log', ['{"step": 0, "loss": 2.0}\n', '{"step": 1, "loss": 2}\n' * 2])
def test_a_log_of_losses_alone_is_shown(tmp_path, log):
  (tmp_path / 'metrics.jsonl').write_text(log)
  rows = history.overview(report_files.read_records(tmp_path))
  assert [(row['loss'], row['shuffled']) for row in rows] == [(2.0, None)]


def test_numbers_of_another_program_are_refused(tmp_path):
  (tmp_path / 'd.json').write_text('{"systems": []}')
  for path, sentence in (
    ('d.json', r'd.json is damaged \(it lacks .*\); make it by'),
    ('e.json', '^cannot'),
  ):
    with pytest.raises(UserError, match=sentence):
      report_files.read_measured(tmp_path, str(tmp_path / path))
  with pytest.raises(UserError, match='holds other rows than'):
    report_page.decoding_section('d.json', {'systems': [{'seconds': 1}], 'quality': None})


def test_a_page_that_cannot_be_written_leaves_the_one_that_was_there(tmp_path):
  page = tmp_path / 'report.html'
  report_files.write(page, 'first')
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
  try:
    with pytest.raises(UserError, match=r'\(File too large\); give another --out'):
      report_files.write(page, 'second' * 1000)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert page.read_text() == 'first'
  with pytest.raises(UserError, match='give another --out'):
    report_files.write(page / 'below.html', 'third')
  assert [path.name for path in tmp_path.iterdir()] == ['report.html']


def test_no_run_is_one_sentence(tmp_path):
  workdir = str(tmp_path / 'absent')
  with pytest.raises(UserError, match=r'give the --workdir of a training run$'):
    report.main(report.Options(workdir=(workdir,)))
  command = [sys.executable, '-m', 'armd_jax.report', f'--workdir={workdir}']
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].endswith('give the --workdir of a training run')


def test_runs_are_compared_at_every_number_of_streams_that_they_measured(tmp_path):
  """A panel for each S of `eval_streams`, with a curve of every run that logged it."""
  model, params = tiny.init(tiny.model_config(), 257)
  decoder = requests.Decoder(model, params, ByteTokenizer(), None)
  runs = []
  for name, streams in (('warm', (4,)), ('scratch', (4, 8))):
    config = config_lib.parse({'train': {'eval_streams': streams}})
    numbers = {'loss': 5.0, 'held_out': 4.0} | {f'held_out_s{s}': 4.5 for s in streams}
    records = {step: numbers for step in (1, 2)}
    runs.append(compare_page.Run(tmp_path / name, config, 2, records, decoder, ''))
  page = compare_page.page(runs, Sampling(), 4, '')
  assert 'Held-out loss, 4 tokens at once' in page and 'Held-out loss, 8 tokens at once' in page
  curves = page.partition('4 tokens at once')[2].partition('8 tokens at once')[0]
  assert 'warm' in curves and 'scratch' in curves


def test_results_without_all_scores_are_refused(tmp_path):
  speed = {'streams': 4, 'steps': 1, 'seconds': 1.0, 'tokens_per_second': 1.0}
  score = {
    'name': 'left-to-right', 'kind': 'exact', 'nats_per_byte': 1.0, 'nats_per_token': 1.0,
    'tokens': 9, 'text': '', 'orders': 1, 'standard_error': None,
  }  # fmt: skip
  numbers = {
    'machine': {'device': 'cpu', 'jax': '0', 'devices': 1}, 'config': {'model': {'length': 8}},
    'held_out': {'after_sbp': [score]}, 'generation': [speed],
  }  # fmt: skip
  (tmp_path / 'results.json').write_text(json.dumps(numbers))
  message = r"is not what the quickstart writes \(no 'strided S=4, parallel'\); run the quickstart"
  with pytest.raises(UserError, match=message):
    report_files.quickstart_results(tmp_path)
  numbers['generation'] = [speed | {'streams': 1}]
  for ngrams in (-1, 'x', True, None, {'two': None}, {'two': 'x'}):
    numbers['held_out']['ngrams'] = ngrams
    (tmp_path / 'results.json').write_text(json.dumps(numbers))
    with pytest.raises(UserError, match=r'is damaged \(it holds .* at held_out.ngrams'):
      report_files.quickstart_results(tmp_path)
  numbers['held_out']['ngrams'] = {'two': 1.5}
  for nats in ('nats_per_byte', 'nats_per_token'):
    numbers['held_out']['after_sbp'] = [score | {nats: 0}]
    (tmp_path / 'results.json').write_text(json.dumps(numbers))
    with pytest.raises(UserError, match=r'is damaged \(it holds scores of 0 nats\); run the'):
      report_files.quickstart_results(tmp_path)
  with pytest.raises(UserError, match=r'other rows than bench.decode writes \(no systems\)'):
    report_page.decoding_section('a.json', {'systems': [], 'quality': None})
  page = report_page.scores_section({'a.json': [score, score | {'text': 'PTB'}]})
  assert page.count('PTB') == 1


def test_a_picture_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'cannot write .*file/a.png \(.*\); free space, or make it'):
    plots.save(matplotlib.figure.Figure(), tmp_path / 'file/a.png')


def test_a_last_held_out_loss_that_was_not_finite_is_told():
  """And not an earlier one in its place."""
  of = lambda *values: run_page._held_out(
    config_lib.Config(), len(values) - 1, {i: {'held_out': x} for i, x in enumerate(values)},
    report_files.Measured(),
  )  # fmt: skip
  assert list(of(2.0, None).values()) == ['not finite']
  assert list(of(None, 2.0).values()) == ['2.0000'] and of() == {}


def test_a_held_out_loss_is_of_the_weights_that_are_shown_or_says_its_step(tmp_path):
  """A run that was started again logs more steps than its last checkpoint has; its card and both
  pages say the same number."""
  values = {2: 5.0, 4: 4.0, 6: 3.0}
  records = {step: {'loss': 1.0, 'held_out': nats} for step, nats in values.items()}
  lines = [json.dumps({'step': step} | record) + '\n' for step, record in records.items()]
  (tmp_path / 'metrics.jsonl').write_text(''.join(lines))
  model, params = tiny.init(tiny.model_config(), 257)
  decoder = requests.Decoder(model, params, ByteTokenizer(), None)
  for step, at in ((4, 4), (5, 4), (6, 6)):
    (tile,) = run_page._held_out(
      config_lib.Config(), step, records, report_files.Measured()
    ).items()
    assert tile[1] == f'{values[at]:.4f}' and tile[0].endswith(', at step 4') == (step == 5)
    (row,) = cards.measured(tmp_path, (), step)['while training']
    assert row == {'step': at, 'held_out nats/token': values[at]}
    runs = [
      compare_page.Run(tmp_path / name, config_lib.Config(), step, records, decoder, '')
      for name in 'ab'
    ]
    page = compare_page.page(runs, Sampling(), 4, '')
    assert f'<td>{values[at]:.3f}</td><td>{at}</td>' in page
  assert run_page._held_out(config_lib.Config(), 1, records, report_files.Measured()) == {}


@pytest.mark.parametrize(
  ('overrides', 'tile'),
  [
    ({}, ('tokens read', '40.0k')),
    ({'data': {'packing': 'documents'}}, ('positions read, with padding', '40.0k')),
    ({'init_from': 'other'}, ('tokens a step', '400')),
  ],
)
def test_no_more_is_said_of_what_a_run_has_read_than_is_known(overrides, tile):
  sizes = {'model': {'length': 100}, 'train': {'batch_size': 4}, 'order': {'max_shuffled': 2}}
  assert run_page._read(config_lib.parse(sizes | overrides), 100) == dict([tile])


def test_a_name_is_text_on_the_page():
  """In a comparison it is that of a folder."""
  name = 'a<b lr="3" & \'c\', S = 2'
  section = report_page.replay_section([dataclasses.replace(TWO, name=name)], 'x < y', {name: 'z'})
  parser = Elements()
  parser.feed(section)
  named = [values for values in parser.attributes if 'data-name' in values]
  assert [values['data-name'] for values in named] == [name, name]
  assert any(values.get('aria-label') == f'Text generated with {name}' for values in named)
  assert parser.text.count(name) == 2 and parser.tags <= KNOWN


KNOWN = {
  'section', 'h2', 'p', 'em', 'div', 'button', 'canvas', 'span', 'input', 'output', 'b', 'i',
  'code',
}  # fmt: skip


class Elements(html.parser.HTMLParser):
  """What a browser makes of a page."""

  def __init__(self):
    super().__init__()
    self.tags, self.attributes, self.text = set(), [], ''

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self.attributes.append(dict(attrs))

  def handle_data(self, data):
    self.text += data


def test_texts_are_found_by_any_name(tmp_path):
  if browser.find() is None:
    pytest.skip(f'needs a browser: none of {", ".join(browser.NAMES)} is installed')
  names = ['a"] b, S = 2', 'a\\b, S = 2']
  texts = [dataclasses.replace(TWO, name=name) for name in names]
  section = report_page.replay_section(texts, '', dict.fromkeys(names, 'armd sample'))
  report_files.write(tmp_path / 'report.html', report_page.page('runs', '', {}, [section]))
  page = browser.Page(tmp_path / 'profile')
  try:
    page.open(f'file://{tmp_path}/report.html')
    assert page.run(OUTPUT) == 'step 0 of 4, 4 of 10 tokens'
    page.run("document.querySelectorAll('.lane')[1].click()")
    assert page.run("document.getElementById('which').textContent") == names[1]
  finally:
    page.close()


def test_more_streams_than_tokens_are_refused_by_both_pages(tmp_path):
  model, params = tiny.init(tiny.model_config(), 257)
  decoder = requests.Decoder(model, params, ByteTokenizer(), None)
  run = compare_page.Run(tmp_path, config_lib.Config(), 1, {1: {'loss': 1.0}}, decoder, '')
  with pytest.raises(UserError, match=r'^--streams holds S = 100000, but of 16 tokens there are'):
    compare_page.page([run, run], Sampling(), 100_000, '')
  with pytest.raises(UserError, match=r'^--streams holds S = 17, but of 16 tokens there are'):
    run_page.page(
      tmp_path, config_lib.Config(), 1, {}, report_files.Measured(), decoder, Sampling(),
      streams=(1, 17),
    )  # fmt: skip


def test_a_sampler_of_blocks_is_named_by_the_steps_that_it_takes():
  """One of each block at least, however many tokens a step may reveal."""
  tokenizer = ByteTokenizer()
  model = tiny.model_config(family='bd3lm')
  decoder = requests.Decoder(*tiny.init(model, tokenizer.vocab_size), tokenizer, None)
  found, _ = replays.replays(decoder, '', (1, 8), Sampling())
  assert [(replay.name, replay.steps) for replay in found][1] == ('K = 4', 4)
  for replay in found:
    steps = int(replay.name[4:])
    assert replay.steps <= steps == max(step for *_, step in replay.pieces)
    request = requests.continue_prompts([''], 16, tokenizer)
    (text,), _ = FAMILIES['bd3lm'].generate(decoder, request, Sampling(), steps=steps)
    assert text == ''.join(piece for piece, _, _ in replay.pieces)


def test_numbers_that_are_not_finite_are_dashes_on_the_page(tmp_path):
  """Which JSON has as null."""
  score = {
    'name': 'left-to-right', 'kind': 'exact', 'nats_per_byte': None, 'nats_per_token': math.nan,
    'tokens': 9, 'text': '', 'orders': 1, 'standard_error': None,
  }  # fmt: skip
  cost = {
    'streams': 4, 'nats': math.nan, 'order_cost': math.nan, 'order_cost_error': None,
    'independence_cost': math.inf, 'independence_cost_error': None,
    'order_nats_per_junction': math.nan, 'starts': [math.nan], 'ends': [], 'won_back': None,
  }  # fmt: skip
  speed = {
    'system': 'ARMD S=4', 'streams': 4, 'batch_size': 1, 'steps': 7, 'seconds': 1.0,
    'tokens_per_second': 16.0,
  }  # fmt: skip
  verdict = {
    'judge': 'a judge', 'verdict': {'corpus_perplexity': math.inf, 'mean_perplexity': math.inf},
    'statistics': {'entropy_bits': 1.0, 'distinct_2': 0.5, 'repetition_4': 0.0}, 'mauve': None,
  }  # fmt: skip
  results = {
    'machine': {}, 'config': {'model': {'length': 8}}, 'held_out': {'after_sbp': [score]},
    'generation': [speed],
  }  # fmt: skip
  decoding = {'machine': {}, 'systems': [speed], 'quality': [cost]}
  for name, numbers in (('d', decoding), ('v', verdict), ('results', results)):
    whole.write_json(tmp_path / f'{name}.json', numbers)
  files = str(tmp_path / 'd.json'), [str(tmp_path / 'v.json')]
  measured = report_files.read_measured(tmp_path, *files)
  parts = [report_page.scores_section(measured.scores)]
  parts += [report_page.decoding_section(*one) for one in measured.decoding.items()]
  parts.append(report_page.judge_section(measured.verdicts))
  for part in parts:
    assert '<td>–</td>' in part and 'nan' not in part
  assert not report_files.read_measured(tmp_path).decoding  # nothing to compare
  tile = run_page._held_out(config_lib.Config(), 1, {}, measured)
  assert tile == {'nats/token, 9 held-out tokens': 'not finite'}
  assert cards._markdown([{'nats': 1.0, 'error': None}]).endswith('| 1.0000 | - |')

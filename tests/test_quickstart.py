"""The whole story on a tiny text: train, fine-tune, measure, generate, sample from the result."""

import dataclasses
import html
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
import zipfile

import numpy as np
import pytest

import armd_jax
from armd_jax import config as config_lib
from armd_jax import evaluate, families, flags, report, sample
from armd_jax.artifacts import pack, weights
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.decode import requests
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError
from armd_jax.parallel import sharding
from armd_jax.show import replays
from armd_jax.training.quickstart import closing_words, quickstart


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('quickstart')
  rng = np.random.RandomState(0)
  words = ['alpha', 'beta', 'gamma', 'delta', 'epsilon', 'zeta']
  text = folder / 'text.txt'
  text.write_text('\n\n'.join(' '.join(rng.choice(words, 60)) for _ in range(60)))
  raw = {
    'model': dict(
      length=32, num_layers=2, embed_dim=32, num_heads=2, dtype='float32', dropout=0.0,
      position_dim=8, scan_layers=False,
    ),
    'order': dict(ar_steps=20, perm_steps=40, max_shuffled=4, strided_start=60),
    'optimizer': dict(warmup_steps=5, learning_rate=1e-2),
    'data': dict(source=str(text), held_out=0.2),
    'train': dict(
      steps=80, batch_size=8, loss_chunk=32, log_every=10, eval_every=40, eval_windows=8,
      checkpoint_every=40,
    ),
  }  # fmt: skip
  config = config_lib.parse(raw)
  return config, folder / 'work', quickstart(config, folder / 'work')


def test_results_are_complete_and_saved(finished):
  _, workdir, results = finished
  assert json.loads((workdir / 'results.json').read_text()) == json.loads(json.dumps(results))
  new = 32 - len(results['prompt'].encode())
  for name in ('training.png', 'quality_speed.png'):
    assert (workdir / name).read_bytes().startswith(b'\x89PNG')
  kinds = {s['name']: s['kind'] for s in results['held_out']['after_sbp']}
  assert kinds == {
    'left-to-right': 'exact',
    **{f'strided S={s}, {how}': 'exact' for s in (2, 4, 8) for how in ('parallel', 'one by one')},
    'uniform orders': 'bound',
  }
  assert [s['streams'] for s in results['generation']] == [1, 2, 4, 8]
  assert [s['steps'] for s in results['generation']] == [S - 1 + -(-new // S) for S in (1, 2, 4, 8)]
  assert results['generation'][0]['speedup'] == 1
  assert all(s['text'].startswith(results['prompt']) for s in results['generation'])


def test_it_ends_with_a_page_a_picture_and_what_was_shown(finished):
  _, workdir, results = finished
  page = (workdir / 'report.html').read_text()
  texts = [html.unescape(re.sub('<[^>]*>', '', text)) for text in shown_in(page)]
  assert texts == [s['text'] for s in results['generation']]
  assert '--temperature=0.7 --top_p=0.95 --streams=1<' in page
  picture = (workdir / 'moving.svg').read_text()
  tree = xml.etree.ElementTree.fromstring(picture)
  letters = [e for e in tree.iter() if e.tag.endswith('}text') and 'class' not in e.attrib]
  both = results['generation'][2]['text'] + results['generation'][0]['text']
  drawn = ''.join(e.text for e in letters)
  assert sorted(drawn) == sorted(c for c in both if c.isprintable() and c != ' ')
  assert 'script' not in picture
  said = closing_words(results, workdir)
  faster = results['generation'][2]['speedup']
  assert f'S = 4 writes {faster:.1f} times as fast for ' in said and 'file:///' in said


def test_the_model_is_packed_for_others(finished, tmp_path, monkeypatch):
  _, workdir, results = finished
  packed = pack.pack(workdir, 'quickstart', {'held out': results['held_out']['after_sbp']})
  first = packed.read_bytes()
  assert pack.pack(workdir, 'quickstart', {}).name == 'quickstart.zip'
  monkeypatch.setenv(pack.FOLDER_VARIABLE, str(tmp_path / 'models'))
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=r'unpack quickstart\.zip there'):
    armd_jax.load('quickstart')
  packed.write_bytes(first)
  with zipfile.ZipFile(packed) as archive:
    archive.extractall(tmp_path / 'models')
    assert b'uniform orders' in archive.read('quickstart/README.md')
  model = armd_jax.load('quickstart')
  assert model.step == 80 and model.generate('alpha').startswith('alpha')


def test_it_learns(finished):
  """Six words in random order: below what a text of random letters could give, far below ln 257."""
  _, _, results = finished
  after = {s['name']: s['nats_per_byte'] for s in results['held_out']['after_sbp']}
  assert after['left-to-right'] < 2.0
  assert results['held_out']['changes']['strided S=4, parallel']['percent'] < 0


def test_a_second_call_goes_on_from_what_is_there(finished, capsys):
  config, workdir, results = finished
  again = quickstart(config, workdir)
  assert again['held_out'] == results['held_out']
  assert [s['text'] for s in again['generation']] == [s['text'] for s in results['generation']]


def test_before_and_after_are_of_one_text(finished):
  config, workdir, _ = finished
  text = pathlib.Path(config.data.source)
  words = text.read_text()
  text.write_text(words.replace('alpha', 'aleph'))
  try:
    with pytest.raises(UserError, match='is of another text'):
      quickstart(config, workdir)
  finally:
    text.write_text(words)


def test_sample_goes_on_from_a_prompt(finished, tmp_path):
  """As a process of users."""
  _, workdir, _ = finished
  flags = [f'--workdir={workdir}', '--prompt=alpha', '--streams=2', '--num_samples=2']
  command = [sys.executable, '-m', 'armd_jax.sample', *flags, f'--json={tmp_path}/s.json']
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  written = json.loads((tmp_path / 's.json').read_text())
  texts = written['texts']
  assert len(texts) == 2 and 'compiling ...' in done.stderr and 'decision' not in done.stdout
  request = dict(
    workdir=str(workdir), prompt='alpha', streams=2, seed=0, temperature=1.0, top_p=1.0
  )
  assert request.items() <= written['request'].items() and written['request']['step'] == 80
  assert [ByteTokenizer().decode(ids) for ids in written['ids']] == texts
  assert [len(junctions) for junctions in written['junctions']] == [1, 1]
  assert all(text.startswith('alpha') and text in done.stdout for text in texts)


def test_sample_fills_gaps(finished, tmp_path, capsys):
  _, workdir, _ = finished
  sample.main(
    sample.Options(
      workdir=str(workdir), infill='alpha ____ gamma', temperature=0.5, top_p=0.9, stop='eos',
      json=f'{tmp_path}/s.json',
    )
  )  # fmt: skip
  (text,) = json.loads((tmp_path / 's.json').read_text())['texts']
  assert text in capsys.readouterr().out
  assert text.startswith('alpha ') and text.endswith(' gamma')
  assert len(text) == len('alpha ____ gamma')


def shown_in(page):
  return re.findall(r'<div class="generated"[^>]*>(.*?)</div>', page, re.DOTALL)


def test_report_shows_the_run(finished, tmp_path):
  """Its numbers, its orders, and the texts that sampling gives."""
  _, workdir, results = finished
  how = results['sampling'] | {'prompt': results['prompt']}
  report.main(report.Options(workdir=(str(workdir),), out=str(tmp_path / 'r.html'), **how))
  page = (tmp_path / 'r.html').read_text()
  assert not re.search(r'(src|href)="(?!#|data:)|://', page)
  for title in (
    'Parallel generation',
    'Quality against speed',
    'Training',
    '>4 shuffled<',
    'strided, S = 4',
  ):
    assert title in page
  for score in results['held_out']['after_sbp']:
    assert f'<td class="text">{score["name"]}</td>' in page
    assert f'<td>{math.exp(score["nats_per_token"]):.3f}</td>' in page
  shown = re.findall(r'data-steps="(\d+)"[^>]*>(.*?)</div>', page, re.DOTALL)
  texts = [html.unescape(re.sub('<[^>]*>', '', text)) for _, text in shown]
  assert [int(steps) for steps, _ in shown] == [s['steps'] for s in results['generation']]
  assert texts == [s['text'] for s in results['generation']]
  assert len(re.findall('<svg', page)) == len(re.findall('role="img"', page)) >= 10


def test_runs_are_compared_on_one_page(finished, tmp_path):
  _, workdir, _ = finished
  other = tmp_path / 'other'
  shutil.copytree(workdir, other)
  config = json.loads((other / 'config.json').read_text())
  config['train']['log_every'] = 11
  (other / 'config.json').write_text(json.dumps(config))
  out = tmp_path / 'both.html'
  given = flags.parse(
    report.Options, ['report', f'--workdir={workdir}', f'--workdir={other}', f'--out={out}']
  )
  report.main(given)
  page = out.read_text()
  assert 'work beside other' in page and 'Runs compared' in page
  assert '<td class="text">train.log_every</td>' in page
  assert re.findall('class="generated" data-name="(.*?)"', page) == ['work, S = 4', 'other, S = 4']
  assert not re.search(r'(src|href)="(?!#|data:)|://', page)
  with pytest.raises(UserError, match='are of one run; give one --workdir'):
    report.main(dataclasses.replace(given, scores=('s.json',)))


def test_a_replay_shows_a_piece_when_the_decoder_has_made_all_of_it(finished):
  """At every step that streaming tells of."""
  _, workdir, _ = finished
  config, tokenizer, params, _ = weights.load_ema(workdir)
  model, mesh = families.build(config.model, tokenizer.vocab_size), sharding.make_mesh(config.mesh)
  decoder = requests.Decoder(model, params, tokenizer, mesh)
  (replay,), _ = replays.replays(decoder, '', [2], Sampling())
  seen = []
  request = requests.continue_prompts([''], 32, tokenizer)
  watch = lambda generated, known_BxN: seen.append((int(generated.steps), known_BxN[0]))
  (text,), _ = decoder.complete(request, 2, Sampling(), watch)
  assert ''.join(piece for piece, _, _ in replay.pieces) == text
  ends = np.cumsum([tokens for _, tokens, _ in replay.pieces])
  # Before the first step and after the last; how often between, time decides.
  assert ends[-1] == 32 and len(seen) > 1
  for steps, known_N in seen:
    is_there = [known.all() for known in np.split(known_N, ends[:-1])]
    assert is_there == [step <= steps for _, _, step in replay.pieces]


def test_evaluate_program_repeats_the_numbers(finished, tmp_path, capsys):
  """In this process and in one of its own, to the bit."""
  _, workdir, _ = finished
  sizes = dict(workdir=str(workdir), windows=4)
  evaluate.main(evaluate.Options(**sizes, streams=(2,), json=f'{tmp_path}/here.json'))
  flags = [f'--{name}={value}' for name, value in sizes.items()]
  command = [sys.executable, '-m', 'armd_jax.evaluate', *flags, '--streams=2']
  done = subprocess.run([*command, f'--json={tmp_path}/s.json'], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 's.json').read_text() == (tmp_path / 'here.json').read_text()
  scores = json.loads((tmp_path / 's.json').read_text())['scores']
  printed = capsys.readouterr().out
  for out in (printed, done.stdout):
    assert all(f'{s["nats_per_byte"]:9.4f}' in out for s in scores)


def test_evaluate_program_scores_other_texts(finished, tmp_path, capsys):
  """Texts that were not trained on are harder; the protocol stands beside the numbers."""
  _, workdir, results = finished
  (tmp_path / 'ptb.txt').write_text('some of the words that nobody has seen before\n' * 9)
  texts, path = (f'ptb={tmp_path}/ptb.txt',), tmp_path / 's.json'
  evaluate.main(
    evaluate.Options(
      workdir=str(workdir), suite='mdlm', texts=texts, streams=(2,), json=str(path)
    )
  )  # fmt: skip
  out, numbers = capsys.readouterr().out, json.loads(path.read_text())
  assert all(line in out for line in numbers['protocol'])
  assert 'windows of BOS, 30 tokens, EOS' in numbers['protocol'][0]
  left_to_right, *strided = numbers['scores']
  assert (left_to_right['text'], left_to_right['name']) == ('PTB', 'left-to-right')
  assert 'PTB | left-to-right' in out and len(strided) == 2
  assert left_to_right['nats_per_byte'] > results['held_out']['after_sbp'][0]['nats_per_byte']
  assert not (workdir / 'evaluate_mdlm.partial').exists()

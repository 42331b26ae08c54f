"""A file of every kind, what reads it, and programs that run on them."""

import dataclasses
import functools
import gzip
import importlib.util
import json
import shutil
import types

import corpora
import jax
import matplotlib.figure
import numpy as np
import pyarrow
import pytest
import tiny
import tiny_gguf
import tiny_gpt2
import tiny_llama
import tiny_run
import tokenizers
from fuzzed import QUICKSTART, File, Program

from armd_jax import config as config_lib
from armd_jax import export, records, training
from armd_jax.artifacts import cards, stablehlo_run, standalone, weights
from armd_jax.bench.device import rows
from armd_jax.config import MeshConfig
from armd_jax.data import corpus, prepare, prepared, sources
from armd_jax.data.tokenizer_file import FileTokenizer
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.decode import requests
from armd_jax.evaluation import gpt2_judge, infilling, journal, judging, likelihood, scores
from armd_jax.files import lock, whole
from armd_jax.models import gpt2, llama, weight_files
from armd_jax.parallel import sharding
from armd_jax.show import history, plots, report_files, report_page
from armd_jax.training import checkpoint, quickstart
from armd_jax.training import text as run_text
from armd_jax.training import workdir as workdir_lib


def write_run(folder):
  config = config_lib.parse(tiny_run.config(folder))
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  state, run = training.new_state(config, 257, mesh), folder / 'run'
  text = corpus.load(config.data, 16)
  workdir_lib.write_config(run, config)
  counted = {'lengths': {'5': 2, '9': 1}, 'duplicates': 0, 'every': 1, 'held_out': 0.1}
  about = {'sha256': text.sha256, 'description': 'a text', 'statistics': {'': counted}}
  whole.write_json(run / 'text.json', about | {'tokenizer': text.tokenizer.fingerprint})
  saves = checkpoint.Checkpoints(run)
  saves.save(12, state, 96, 2.5)
  saves.close()
  number = {'loss': 2.5, 'loss_left_to_right': 2.5, 'learning_rate': 0.1, 'shuffled': 2.0}
  number |= {'tokens_per_second': 9.0, 'step_seconds': 0.1, 'input_seconds': 0.1, 'skipped': 0.0}
  lines = [{'step': step, **number, 'examples': [0, 8]} for step in (1, 2)]
  lines += [{'step': 2, 'held_out': 2.5}, {'step': 3, **number}]
  (run / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return run, config, training.abstract_state(config, 257, mesh)


def write_export(folder, run):
  exports = folder / 'export', folder / 'export.safetensors'
  for path in exports:
    with standalone.new_path(path, False) as part:
      about, params = export.load(run, 'ema')
      if path.suffix:
        standalone.write_file(part, about, params)
      else:
        standalone.write_folder(part, params, '')
        standalone.seal(part, about)
  return exports


SCORE = {
  'name': 'left-to-right', 'kind': 'exact', 'nats_per_byte': 1.5, 'nats_per_token': 1.5,
  'tokens': 160, 'text': '', 'orders': 1, 'standard_error': 0.1,
}  # fmt: skip
SPEED = {
  'streams': 1, 'steps': 16, 'seconds': 0.1, 'tokens_per_second': 160.0, 'system': 'ARMD S=1',
  'batch_size': 1,
}  # fmt: skip
QUALITY = {
  'streams': 1, 'nats': 1.5, 'order_cost': 0.0, 'order_cost_error': 0.1, 'independence_cost': 0.0,
  'independence_cost_error': None, 'order_nats_per_junction': 0.0, 'starts': [1.5, 0.5],
  'ends': [-0.5, -1.0], 'won_back': 0.75,
}  # fmt: skip
MACHINE = {'device': 'cpu', 'jax': '0', 'devices': 1}


def write_measured(folder):
  suite = likelihood.standard_suite(tiny.model_config(), (1, 2, 4, 8))
  after = [SCORE | {'name': protocol.name} for protocol in suite]
  speeds = [SPEED | {'streams': streams} for streams in (1, 2, 4, 8)]
  statistics = {'entropy_bits': 3.5, 'distinct_2': 0.5, 'repetition_4': 0.1}
  verdict = {'corpus_perplexity': 9.5, 'mean_perplexity': 9.5}
  files = {
    'results': {
      'machine': MACHINE, 'config': {'model': {'length': 16}}, 'held_out': {'after_sbp': after},
      'generation': speeds,
    },
    'base_scores': after,
    'scores': {'suite': 'likelihood', 'step': 12, 'scores': after[:2]},
    'decoding': {
      'machine': MACHINE, 'systems': speeds,
      'quality': [QUALITY | {'streams': streams} for streams in (1, 2, 4, 8)],
    },
    'verdict': {'judge': 'gpt2', 'verdict': verdict, 'statistics': statistics, 'mauve': None},
    'samples': {'texts': ['one text', 'another'], 'junctions': [[4], []], 'steps': 16},
  }  # fmt: skip
  for name, value in files.items():
    whole.write_json(folder / f'{name}.json', value)
  return suite


def write_prepared(folder):
  source = corpora.write_text(folder / 'source.txt', corpora.documents(60))
  prepare.prepare(source, 'bytes', str(folder / 'prepared'), held_out=0.2)
  shutil.copytree(folder / 'prepared', folder / 'unfinished')
  manifest = json.loads((folder / 'unfinished/manifest.json').read_text())
  (folder / 'unfinished/manifest.json').unlink()
  (folder / 'unfinished/unfinished').mkdir()
  note = {'left_out': {'bad rows': 0, 'held out as well': 0}}
  note |= {side: shards[0] for side, shards in manifest['shards'].items()}
  note['sha256'] = whole.sha256(note)
  whole.write_json(folder / 'unfinished/unfinished/part-00000.json', note)
  whole.write_json(folder / 'unfinished/unfinished/plan.json', manifest['plan'])
  return source


def write_judge(folder):
  names = sorted(tiny_gpt2.arrays())
  tiny_gpt2.write(folder, tiny_gpt2.arrays())
  index = {'weight_map': dict.fromkeys(names, 'model.safetensors')}
  whole.write_json(folder / 'model.safetensors.index.json', index)
  ids = {f'w{number}': number for number in range(tiny_gpt2.V)}
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token='w0'))
  words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  words.save(str(folder / 'tokenizer.json'))
  whole.write_json(folder / 'added_tokens.json', {'w1': 1})
  whole.write_json(folder / 'vocab.json', ids)
  return folder


def write_open_model(folder):
  folder.mkdir()
  tiny_llama.write_tokenizer(tiny_llama.write(folder, 'llama3'))
  if importlib.util.find_spec('gguf'):
    tiny_gguf.write(folder / 'model.gguf', 'llama2')
  return folder


def write_texts(folder):
  """A file of every kind that texts are read from."""
  for write in (corpora.write_jsonl, corpora.write_parquet):
    write(folder / f'texts.{write.__name__[6:]}', ['one text', 'another', 'x'])
  (folder / 'texts.csv').write_text('text,n\none text,1\n"an, other",2\n')
  text = b'one text\n\nanother\n\nmore'
  (folder / 'texts.txt').write_bytes(text)
  (folder / 'texts.txt.gz').write_bytes(gzip.compress(text))
  (folder / 'texts.txt.zst').write_bytes(pyarrow.compress(text, 'zstd', asbytes=True))
  whole.write_json(folder / 'rows.json', [{'text': 'one text', 'asks': 'what'}, {'text': 'more'}])
  asked = [{'asks': 'what?', 'says': 'this'}, {'asks': 'and?', 'says': 'that'}]
  (folder / 'asked.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in asked))
  (folder / 'stories.txt').write_text('1 a\tb\tc\td\te\n' * 3)
  names = ','.join(f'sentence{number}' for number in range(1, 6))
  (folder / 'stories.csv').write_text(f'{names}\n1,a,b,c,d\n2,"e, f",g,h,i\n')


def largest(folder):
  return max((path for path in folder.rglob('*') if path.is_file()), key=lambda x: x.stat().st_size)


def shown(measured):
  """What a report has of measured numbers, without the drawings."""
  parts = [report_page.decoding_section(*item) for item in measured.decoding.items()]
  parts += [report_page.scores_section(measured.scores)] if measured.scores else []
  return parts + ([report_page.judge_section(measured.verdicts)] if measured.verdicts else [])


def sketch(draw, described, size=None, **subplots):
  """In place of `plots.svg`, all of it but the drawing's text."""
  figure = matplotlib.figure.Figure(layout='constrained')
  draw(figure.subplots(**subplots))
  figure.draw_without_rendering()
  return described


@pytest.fixture(scope='session')
def files(tmp_path_factory) -> dict[str, File]:
  folder = tmp_path_factory.mktemp('files')
  patched = pytest.MonkeyPatch()
  patched.setattr(plots, 'svg', sketch)
  run, config, abstract = write_run(folder)
  exported, exported_file = write_export(folder, run)
  suite, source = write_measured(folder), write_prepared(folder)
  judge, open_model = write_judge(folder), write_open_model(folder / 'open')
  write_texts(folder)
  weights_file = folder / 'programs/weights.npz'
  weights_file.parent.mkdir()
  np.savez(weights_file, np.arange(20.0))
  about = {'batch_size': 1, 'length': 16, 'vocab_size': 257}
  about['sha256'] = {
    weights_file.name: prepared.hashlib.sha256(weights_file.read_bytes()).hexdigest()
  }
  whole.write_json(weights_file.with_name('about.json'), about | {'seal': whole.sha256(about)})
  whole.write_json(folder / 'records.json', {'a': {'stamp': 'ab', 'seconds': 1.5}})
  (folder / rows.FILE).write_text('{"stage": "train", "key": "small", "at": 1.0, "ms": 2.5}\n')
  (folder / 'journal').write_text('')
  kept = journal.Journal(folder / 'journal', {'model': [12, 'ab'], 'seed': 0}, restart=True)
  kept.add(0, np.ones((2, 3)))
  kept.add(1, np.ones((1, 3)))
  read_texts = lambda name: lambda: judging.read_texts(str(folder / name))
  load_texts = lambda name, **how: lambda: sources.load_documents(str(folder / name), **how)

  def read_samples():
    texts = read_texts('samples.json')()
    return texts, judging.read_junctions(str(folder / 'samples.json'), texts)

  loaded = lambda path: lambda: jax.tree.leaves(weights.load_ema(path)[::2])

  def windows():
    read = corpus.load(dataclasses.replace(config.data, source=str(folder / 'prepared')), 16)
    return read.sha256, read.train_WxN[:], read.held_out_WxN[:]

  seal = run / 'checkpoints/12/checkpoint.json'

  def go_on():
    copy = shutil.copytree(folder / 'unfinished', folder / 'goes_on')
    try:
      return prepare.prepare(source, 'bytes', str(copy), held_out=0.2)['text_sha256']
    finally:
      shutil.rmtree(folder / 'goes_on')
      shutil.rmtree(folder / '.goes_on.checked', ignore_errors=True)

  note = folder / 'unfinished/unfinished/part-00000.json'
  measured = functools.partial(report_files.read_measured, folder)
  results = folder / 'results.json'

  def measured_alone(**how):
    aside = results.rename(folder / 'aside')
    try:
      return shown(report_files.read_measured(folder, **how))
    finally:
      aside.rename(results)

  def read_scores():
    rows = cards.measured_in(folder / 'scores.json', 12)
    return cards._markdown(rows), report_page.scores_section({'scores.json': rows})

  def log():
    records = report_files.read_records(run)
    return history.overview(records), report_page.training_section(config, records)

  plain = {
    'config.json': File(run / 'config.json', lambda: workdir_lib.read_config(run)),
    'text.json': File(
      run / 'text.json',
      lambda: (
        run_text.sha256_of(run),
        run_text.statistics_of(run),
        run_text.check_tokenizer(run, ByteTokenizer()),
      ),
    ),
    'metrics.jsonl': File(run / 'metrics.jsonl', log),
    'results.json': File(results, lambda: shown(measured())),
    'base_scores.json': File(
      folder / 'base_scores.json',
      lambda: quickstart._read_scores(folder / 'base_scores.json', suite),
    ),
    'scores.json': File(folder / 'scores.json', read_scores),
    'decoding.json': File(
      folder / 'decoding.json',
      lambda: measured_alone(decoding=str(folder / 'decoding.json')),
    ),
    'verdict.json': File(
      folder / 'verdict.json', lambda: measured_alone(judged=[str(folder / 'verdict.json')])
    ),
    'samples.json': File(folder / 'samples.json', read_samples),
    'texts.jsonl': File(folder / 'texts.jsonl', read_texts('texts.jsonl')),
    'texts.csv': File(folder / 'texts.csv', read_texts('texts.csv'), is_json=False),
    'texts.parquet': File(folder / 'texts.parquet', read_texts('texts.parquet'), is_json=False),
    'texts.txt': File(folder / 'texts.txt', load_texts('texts.txt'), is_json=False),
    'texts.txt.gz': File(folder / 'texts.txt.gz', load_texts('texts.txt.gz'), is_json=False),
    'texts.txt.zst': File(folder / 'texts.txt.zst', load_texts('texts.txt.zst'), is_json=False),
    'rows.json': File(folder / 'rows.json', load_texts('rows.json')),
    'asked.jsonl': File(folder / 'asked.jsonl', load_texts('asked.jsonl', prompt='asks')),
    'stories.csv': File(
      folder / 'stories.csv', lambda: infilling.read(str(folder / 'stories.csv')), is_json=False
    ),
    'stories.txt': File(
      folder / 'stories.txt', lambda: infilling.read(str(folder / 'stories.txt')), is_json=False
    ),
    'journal': File(
      folder / 'journal',
      lambda: journal.Journal(
        folder / 'journal', {'model': [12, 'ab'], 'seed': 0}, writes=False
      ).count,
    ),
    'config.json of GPT-2': File(
      judge / 'config.json', lambda: gpt2.is_gpt2(judge) and gpt2.load(judge)
    ),
    'tokenizer.json': File(
      judge / 'tokenizer.json', lambda: gpt2_judge._encoder(judge, tiny_gpt2.V)('w1 w2 x')
    ),
    'added_tokens.json': File(
      judge / 'added_tokens.json', lambda: gpt2_judge._encoder(judge, tiny_gpt2.V)('w1')
    ),
    'vocab.json': File(judge / 'vocab.json', lambda: gpt2_judge._read_json(judge / 'vocab.json')),
    'config.json of Llama': File(
      open_model / 'config.json', lambda: llama.load(open_model, 16)[:2]
    ),
    'tokenizer.json of Llama': File(
      open_model / 'tokenizer.json', lambda: FileTokenizer(str(open_model)).encode('abc')
    ),
    'model.safetensors': File(
      judge / 'model.safetensors', lambda: gpt2.load(judge)[:2], is_json=False
    ),
    'index.json': File(
      judge / 'model.safetensors.index.json',
      lambda: weight_files._file_of_array(judge / 'model.safetensors.index.json'),
    ),
    'records.json': File(
      folder / 'records.json', lambda: records.Records(folder / 'records.json').read()
    ),
    'rows.jsonl': File(folder / rows.FILE, lambda: rows.read(folder)),
    'lock': File(folder / 'a.lock', lambda: lock._holder(folder / 'a.lock')),
    'plan.json': File(note.with_name('plan.json'), go_on),
  }  # fmt: skip
  (folder / 'a.lock').write_text('{"program": "train", "process": 3, "host": "here"}')
  if (open_model / 'model.gguf').exists():
    plain['model.gguf'] = File(
      open_model / 'model.gguf', lambda: llama.load(open_model / 'model.gguf', 16), is_json=False
    )
  sealed = {
    'checkpoint.json': File(seal, lambda: checkpoint.Checkpoints(run).restore(abstract)[1]),
    'export.json': File(exported / 'export.json', lambda: standalone.read(exported).config),
    'export.safetensors': File(exported_file, loaded(exported_file), is_json=False),
    'about.json': File(
      weights_file.with_name('about.json'), lambda: stablehlo_run.read_about(weights_file.parent)
    ),
    'weights.npz': File(
      weights_file,
      lambda: (stablehlo_run.read_about(weights_file.parent), weights_file.read_bytes()),
      is_json=False,
    ),
    'checkpoint': File(
      largest(run / 'checkpoints/12'),
      lambda: jax.tree.leaves(checkpoint.Checkpoints(run).restore(abstract)),
      is_json=False,
    ),
    'export': File(largest(exported), loaded(exported), is_json=False),
    'checked': File(folder / '.prepared.checked/train-00000.array_record.json', windows),
    'manifest.json': File(folder / 'prepared/manifest.json', windows),
    'array_record': File(folder / 'prepared/train-00000.array_record', windows, is_json=False),
    'part.json': File(note, go_on),
  }
  sealed = {name: dataclasses.replace(file, is_sealed=True) for name, file in sealed.items()}
  yield plain | sealed
  patched.undo()


@pytest.fixture
def programs(files, monkeypatch, tmp_path):
  """What runs on the run and the files above, without networks that are compiled."""
  folder, run = files['scores.json'].path.parent, files['config.json'].path.parent
  text = types.SimpleNamespace(
    tokens_BxN=np.zeros((1, 16), int), steps=1, margin_B=np.zeros(1), length_B=np.array([16])
  )
  monkeypatch.setattr(
    requests.Decoder, 'complete', lambda self, request, *_: (['x'] * len(request.length_B), text)
  )
  replay = report_page.Replay('S = 1', 1, (('x', 1, 1),))
  monkeypatch.setattr('armd_jax.show.run_page.replays', lambda *_: ([replay], 'how'))
  score = scores.Score(**SCORE)
  monkeypatch.setattr(scores, 'score', lambda *_, **__: [score])
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'sweep.py').write_text('def runs():\n  return [{"seed": 1}, {"seed": 2}]\n')
  (tmp_path / 'metrics').mkdir()
  judge, texts = files['tokenizer.json'].path.parent, str(folder / 'texts.jsonl')
  at = {'workdir': str(run)}
  return [
    Program('armd_jax.sample', at),
    Program('armd_jax.evaluate', at | {'streams': '2', 'windows': '4'}),
    Program('armd_jax.report', at | {'out': 'report.html'}),
    Program('armd_jax.export', at | {'out': 'an.safetensors', 'overwrite': 'true'}),
    Program('armd_jax.convert', {'warm_start': str(run), 'workdir': 'converted'}),
    Program('armd_jax.judge', {'samples': texts, 'judge': str(judge), 'tokenizer': 'bytes'}),
    Program(
      'armd_jax.sweep',
      {'sweep': 'sweep.py:runs', 'config': QUICKSTART, 'workdir': 'sweep', 'dry_run': 'true'},
    ),
    Program(
      'armd_jax.data.prepare',
      {'source': str(folder / 'texts.txt'), 'tokenizer': 'bytes', 'out': 'out', 'workers': '1'}
      | {'held_out': '0.5'},
    ),
  ]

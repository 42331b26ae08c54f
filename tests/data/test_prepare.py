"""Preparing a corpus: what is written, going on after a crash, and each refusal in a sentence."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import corpora
import numpy as np
import pytest

from armd_jax import errors
from armd_jax.data import prepare, prepared, sources, tokenizers
from armd_jax.data.packing import Packing
from armd_jax.errors import UserError

TEXTS = corpora.documents(400)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """Text, lines of JSON and parquet under one glob."""
  folder = tmp_path_factory.mktemp('source')
  corpora.write_text(folder / 'a.txt', TEXTS[:200])
  corpora.write_jsonl(folder / 'b.jsonl', TEXTS[200:300])
  corpora.write_parquet(folder / 'c.parquet', TEXTS[300:])
  return f'{folder}/*'


def run(source, out, **changes):
  options = {'held_out': 0.1, 'part_bytes': 4000} | changes
  return prepare.prepare(source, options.pop('tokenizer', 'bytes'), str(out), **options)


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope='module')
def expected(source, tmp_path_factory):
  out = tmp_path_factory.mktemp('expected') / 'out'
  run(source, out)
  return contents(out)


def test_the_manifest_counts_what_is_there(source, tmp_path):
  manifest = run(source, tmp_path / 'out')
  assert manifest == json.loads((tmp_path / 'out/manifest.json').read_text())
  held = [t for t in TEXTS if sources.is_held_out(sources.hash_of(t), 0.1)]
  train = [t for t in TEXTS if t not in set(held)]
  for side, texts in (('train', train), ('held_out', held)):
    size = len(''.join(texts).encode())
    total = {'documents': len(texts), 'text_bytes': size, 'tokens': size + len(texts)}
    assert manifest['totals'][side] == total
    shards = manifest['shards'][side]
    for name, count in total.items():
      assert sum(shard[name] for shard in shards) == count
  files = {path.name for path in (tmp_path / 'out').iterdir()}
  shards = [shard for side in manifest['shards'].values() for shard in side]
  assert files == {'manifest.json', *(shard['file'] for shard in shards)} and len(files) > 10
  for shard in shards:
    data = (tmp_path / 'out' / shard['file']).read_bytes()
    assert (shard['num_bytes'], shard['sha256']) == (len(data), hashlib.sha256(data).hexdigest())


def test_equal_documents_are_held_out_together(source, tmp_path):
  assert len(TEXTS) - len(set(TEXTS)) > 30
  manifest = run(source, tmp_path / 'out', held_out=0.5)
  held = [t for t in TEXTS if sources.is_held_out(sources.hash_of(t), 0.5)]
  assert manifest['totals']['held_out']['documents'] == len(held)
  assert not set(held) & (set(TEXTS) - set(held))
  assert 0.4 < len(set(held)) / len(set(TEXTS)) < 0.6


def test_bytes_do_not_depend_on_the_number_of_workers(source, expected, tmp_path):
  run(source, tmp_path / 'out', num_workers=2)
  assert contents(tmp_path / 'out') == expected


def test_a_source_of_its_own_is_held_out(source, tmp_path):
  other = corpora.write_jsonl(tmp_path / 'test.jsonl', TEXTS[:20])
  manifest = run(source, tmp_path / 'out', held_out_source=other)
  assert manifest['totals']['held_out']['documents'] == 20
  both = sum(text in TEXTS[:20] for text in TEXTS)
  assert manifest['totals']['train']['documents'] == 400 - both
  assert manifest['left_out'] == {'bad rows': 0, 'held out as well': both}


@pytest.mark.parametrize('num_workers', [1, 2])
def test_no_text_is_trained_on_and_held_out(source, tmp_path, num_workers):
  """Whatever kinds of files the two are, and whatever blanks are around a document."""
  held = [f'  {text} \n' for text in TEXTS[100:150]]
  other = corpora.write_jsonl(tmp_path / 'test.jsonl', held)
  run(source, tmp_path / 'out', held_out_source=other, num_workers=num_workers)
  corpus = prepared.Prepared(str(tmp_path / 'out'))
  stream = {}
  for side in ('train', 'held_out'):
    windows = corpus.windows(side, tokenizers.ByteTokenizer(), Packing(1))[:]
    text = bytes(np.where(windows == 256, 0, windows).astype(np.uint8).ravel()).decode()
    stream[side] = {document.strip() for document in text.split('\0')[:-1]}
  assert stream['held_out'] == {text.strip() for text in held}
  assert stream['train'] == {text.strip() for text in TEXTS} - stream['held_out']


def test_a_source_that_is_all_held_out(source, tmp_path):
  with pytest.raises(UserError, match=r'every document of .* as well; give another'):
    run(source, tmp_path / 'out', held_out_source=source)


@pytest.mark.parametrize('num_workers', [1, 2])
def test_bad_rows_are_left_out_by_choice(tmp_path, num_workers):
  lines = [json.dumps({'text': f'text {i}'}) for i in range(50)]
  lines[7] = lines[30] = '{"text": null}'
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  options = {'part_bytes': 300, 'num_workers': num_workers}
  with pytest.raises(UserError, match=r"line 8 of .*a.jsonl has no text .* with bad_rows='skip'"):
    run(str(tmp_path / 'a.jsonl'), tmp_path / 'out', **options)
  manifest = run(str(tmp_path / 'a.jsonl'), tmp_path / 'skip', bad_rows='skip', **options)
  assert sum(total['documents'] for total in manifest['totals'].values()) == 48
  assert manifest['left_out']['bad rows'] == 2


def test_the_first_bad_row_is_told_whichever_worker_is_quicker(tmp_path):
  """That of the first part is its last row, that of the second part its first one."""
  lines = [json.dumps({'text': f'text {i:060}'}) for i in range(120_000)]
  half = len('\n'.join(lines)) // 2
  row = half // (len(lines[0]) + 1)
  lines[row - 2] = lines[row + 2] = '{"text": null}'
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  with pytest.raises(UserError, match=rf'line {row - 1} of .*a.jsonl has no text'):
    run(str(tmp_path / 'a.jsonl'), tmp_path / 'out', part_bytes=half, num_workers=2)


def test_every_text_leaves_a_trace_in_the_hash(tmp_path):
  hashes = set()
  for texts in (['ab', 'c'], ['a', 'bc'], ['ab', 'd'], ['c', 'ab'], ['ab', 'c', 'c']):
    name = f'{len(hashes)}'
    source = corpora.write_jsonl(tmp_path / f'{name}.jsonl', texts)
    hashes.add(run(source, tmp_path / name)['text_sha256'])
  assert len(hashes) == 5


def test_a_finished_corpus_is_left_alone(source, tmp_path):
  out = tmp_path / 'out'
  manifest = run(source, out)
  before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
  assert run(source, out) == manifest
  assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_bucket_takes_the_same_files(source, expected, tmp_path, monkeypatch):
  bucket = corpora.fake_bucket(monkeypatch)
  interrupt(source, 'gs://bucket/out', 5)
  run(source, 'gs://bucket/out')
  found = {path.rpartition('/')[2]: bucket.cat(path) for path in bucket.find('gs://bucket/out')}
  assert found == expected


def interrupt(source, out, after, **changes):
  """Prepares in this process, and fails in the midst of the part after `after` parts."""
  write = prepare._write_part
  done = []

  def fail(*job):
    if len(done) == after:
      raise KeyboardInterrupt
    done.append(write(*job))

  with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(prepare, '_write_part', fail)
    run(source, out, **changes)


@pytest.mark.parametrize('after', [0, 1, 7])
def test_going_on_after_an_interruption(source, expected, tmp_path, after):
  out = tmp_path / 'out'
  interrupt(source, out, after)
  kept = {p: p.stat().st_mtime_ns for p in out.glob('*.array_record')}
  assert bool(kept) == bool(after)
  run(source, out)
  assert contents(out) == expected
  assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing is done twice


def test_a_lost_file_is_made_again(source, expected, tmp_path):
  out = tmp_path / 'out'
  interrupt(source, out, 7)
  lost = sorted(out.glob('*.array_record'))
  lost[0].unlink()
  lost[1].write_bytes(lost[1].read_bytes()[:-1])
  run(source, out)
  assert contents(out) == expected


def test_killed_and_started_again(tmp_path):
  """kill -9 of the program with its workers, at moments of chance; the bytes of a straight run."""
  texts = [text for seed in range(10) for text in corpora.documents(2000, seed)]
  source = corpora.write_text(tmp_path / 'a.txt', texts)
  options = {'num_workers': 2, 'part_bytes': 30_000}
  straight, killed = tmp_path / 'straight', tmp_path / 'killed'
  program = tmp_path / 'program.py'
  program.write_text(
    'from armd_jax.data import prepare\n'
    "if __name__ == '__main__':\n"
    f'  prepare.prepare({source!r}, "bytes", {str(killed)!r}, **{options})\n'
  )
  prepare.prepare(source, 'bytes', str(straight), **options)
  rng, deaths = random.Random(0), 0
  while not (killed / 'manifest.json').exists():
    process = subprocess.Popen(
      [sys.executable, program], stderr=subprocess.DEVNULL, start_new_session=True
    )
    seen, deadline = len(list(killed.glob('*.array_record'))), time.time() + 60
    while len(list(killed.glob('*.array_record'))) == seen and process.poll() is None:
      assert time.time() < deadline
      time.sleep(0.005)
    time.sleep(rng.random() * 0.1)
    if deaths < 3 and process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
      deaths += 1
    process.wait()
  assert deaths == 3
  assert contents(killed) == contents(straight)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'held_out': 0.2}, 'was prepared with held_out 0.1, not 0.2; use another --out'),
    ({'tokenizer': 'other'}, "was prepared with tokenizer 'bytes', not 'other'; use another"),
    ({'part_bytes': 9000}, 'are not those that .* was prepared from; use another --out'),
    ({'held_out_source': 'stdlib'}, 'was prepared with held_out 0.1, not 0.0; use another'),
  ],
)
@pytest.mark.parametrize('finished', [True, False])
def test_corpora_are_never_mixed(source, tmp_path, monkeypatch, changes, message, finished):
  from armd_jax.data import tokenizers

  class Other(tokenizers.ByteTokenizer):
    name = 'other'

  monkeypatch.setitem(tokenizers._TOKENIZERS, 'other', Other)
  out = tmp_path / 'out'
  if finished:
    run(source, out)
  else:
    interrupt(source, out, 3)
  before = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
  with pytest.raises(UserError, match=message):
    run(source, out, **changes)
  assert {p: p.read_bytes() for p in out.rglob('*') if p.is_file()} == before


def test_a_newer_version_of_a_tokenizer_is_another_one(source, tmp_path, monkeypatch):
  from armd_jax.data import tokenizers

  interrupt(source, tmp_path / 'out', 3)
  monkeypatch.setattr(tokenizers.ByteTokenizer, 'encode', lambda self, text: 0)
  monkeypatch.setattr(tokenizers.ByteTokenizer, '__init__', lambda self: None)
  monkeypatch.setattr(tokenizers.ByteTokenizer, 'fingerprint', 'abc', raising=False)
  with pytest.raises(UserError, match=r"was prepared with fingerprint .*, not 'abc'"):
    run(source, tmp_path / 'out')


@pytest.mark.parametrize(
  ('finished', 'side'), [(True, 'source'), (False, 'source'), (True, 'held_out_source')]
)
@pytest.mark.parametrize('write', [corpora.write_text, corpora.write_jsonl])
def test_another_text_of_the_same_size_is_refused(tmp_path, finished, side, write):
  paths = {'source': tmp_path / f'a.{write.__name__[6:]}', 'held_out_source': tmp_path / 'b.txt'}
  for name, texts in (('source', TEXTS), ('held_out_source', ['one', 'two'])):
    (write if name == 'source' else corpora.write_text)(paths[name], texts)
  both = {name: str(path) for name, path in paths.items()}
  if finished:
    run(**both, out=tmp_path / 'out')
  else:
    interrupt(both['source'], tmp_path / 'out', 5, held_out_source=both['held_out_source'])
  about, data = paths[side].stat(), paths[side].read_bytes()
  changed = [text.replace('last', 'lost') for text in TEXTS] if side == 'source' else ['one', 'tow']
  (write if side == 'source' else corpora.write_text)(paths[side], changed)
  assert paths[side].stat().st_size == about.st_size
  os.utime(paths[side], ns=(about.st_atime_ns, about.st_mtime_ns))
  files = lambda: {p: p.read_bytes() for p in (tmp_path / 'out').rglob('*') if p.is_file()}
  before = files()
  with pytest.raises(
    UserError, match=r'are not those that .* was prepared from; use another --out'
  ):
    run(**both, out=tmp_path / 'out')
  assert files() == before
  paths[side].write_bytes(data)  # and with the first text again, it goes on
  run(**both, out=tmp_path / 'out')


@pytest.mark.parametrize('finished', [True, False])
def test_the_same_text_in_another_place_goes_on(source, expected, tmp_path, finished):
  folder = pathlib.Path(source).parent
  if finished:
    run(source, tmp_path / 'out')
  else:
    interrupt(source, tmp_path / 'out', 7)
  moved = shutil.copytree(folder, tmp_path / 'moved')
  manifest = run(f'{moved}/*', tmp_path / 'out')
  found, wanted = contents(tmp_path / 'out'), dict(expected)
  assert json.loads(found.pop('manifest.json')) == manifest
  assert manifest['text_sha256'] == json.loads(wanted.pop('manifest.json'))['text_sha256']
  assert manifest['plan']['source'] == f'{moved}/*' and found == wanted


def test_a_text_that_changes_while_it_is_read(tmp_path, monkeypatch):
  source = corpora.write_text(tmp_path / 'a.txt', TEXTS)
  write = prepare._write_part

  def and_change(part, number, *rest):
    write(part, number, *rest)
    if number == 3:
      corpora.write_text(tmp_path / 'a.txt', [text.replace('last', 'lost') for text in TEXTS])

  monkeypatch.setattr(prepare, '_write_part', and_change)
  with pytest.raises(UserError, match='have changed while they were read; leave them'):
    run(source, tmp_path / 'out')
  with pytest.raises(UserError, match='are not those that'):
    run(source, tmp_path / 'out')


def test_a_source_that_has_changed(tmp_path):
  source = corpora.write_text(tmp_path / 'a.txt', TEXTS)
  interrupt(source, tmp_path / 'out', 3)
  corpora.write_text(tmp_path / 'a.txt', [*TEXTS, 'more'])
  with pytest.raises(UserError, match=r"files of '.*a.txt' are not those that"):
    run(source, tmp_path / 'out')


def test_a_folder_of_others_is_left_alone(source, tmp_path):
  (tmp_path / 'thesis.tex').write_text('')
  with pytest.raises(UserError, match='holds other files; give a new or an empty folder'):
    run(source, tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']
  # Of the name of a folder that is removed in the end.
  (tmp_path / 'drafts/unfinished').mkdir(parents=True)
  (tmp_path / 'drafts/unfinished/thesis.tex').write_text('')
  (tmp_path / 'file').mkdir()
  (tmp_path / 'file/unfinished').write_text('mine')
  for name in ('drafts', 'file'):
    with pytest.raises(UserError, match='holds other files; give a new or an empty folder'):
      run(source, tmp_path / name)
  assert (tmp_path / 'drafts/unfinished/thesis.tex').exists()


def test_what_was_killed_before_its_plan_goes_on(source, tmp_path):
  (tmp_path / 'out/unfinished/tmpab_12345').mkdir(parents=True)
  run(source, tmp_path / 'out')
  assert not (tmp_path / 'out/unfinished').exists()


def test_no_room_or_no_right_to_write(source, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'cannot write to .*/file/out \(Not a directory\); make it'):
    run(source, tmp_path / 'file/out')

  class Full(prepare._Writer):
    def close(self):
      raise OSError(28, 'No space left on device')

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(prepare, '_Writer', Full)
    with pytest.raises(
      UserError, match=r'\(No space left on device\); .* what is finished is kept'
    ):
      run(source, tmp_path / 'out')
  run(source, tmp_path / 'out')  # and it goes on


def test_two_at_once_do_not_mix(source, expected, tmp_path, monkeypatch):
  out, write, refused = tmp_path / 'out', prepare._write_part, []

  def meanwhile(*job):
    if not refused:
      with pytest.raises(
        UserError, match=r'--out .*/out is in use by .* \(process [0-9]+ on'
      ) as one:
        run(source, out)
      refused.append(one)
    return write(*job)

  monkeypatch.setattr(prepare, '_write_part', meanwhile)
  run(source, out)
  assert refused and contents(out) == expected


def test_a_damaged_note_is_work_to_be_done_again(source, expected, tmp_path):
  interrupt(source, tmp_path / 'out', 7)
  damages = (lambda _: '{', lambda _: '[]', lambda text: text.replace('tokens": ', 'tokens": 1'))
  for number, damage in enumerate(damages):
    note = tmp_path / 'out' / 'unfinished' / f'part-{number:05}.json'
    note.write_text(damage(note.read_text()))
  run(source, tmp_path / 'out')
  assert contents(tmp_path / 'out') == expected
  interrupt(source, tmp_path / 'two', 3)
  (tmp_path / 'two' / 'unfinished' / 'plan.json').write_text('[')
  with pytest.raises(UserError, match=r'plan.json is damaged .*; use another --out$'):
    run(source, tmp_path / 'two')


def test_ctrl_c_ends_it_and_the_same_command_goes_on(tmp_path):
  texts = [text for seed in range(10) for text in corpora.documents(2000, seed)]
  source = corpora.write_text(tmp_path / 'a.txt', texts)
  command = [sys.executable, '-m', 'armd_jax.data.prepare', f'--source={source}', '--workers=2']
  command += ['--tokenizer=bytes', f'--out={tmp_path}/out']
  process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
  deadline = time.time() + 60
  while not (tmp_path / 'out').exists():
    assert time.time() < deadline and process.poll() is None
    time.sleep(0.005)
  os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
  _, told = process.communicate(timeout=60)
  assert process.returncode == errors.INTERRUPTED and 'Traceback' not in told, told
  assert 'stopped by Ctrl-C; the same command' in told
  assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
  assert not [path for path in (tmp_path / 'out').iterdir() if path.name.startswith('.')]


@pytest.mark.parametrize('out', ['', ' ', 's3://bucket/out'])
def test_an_out_that_is_no_place(source, out):
  with pytest.raises(UserError, match=r'^--out is .*; write '):
    run(source, out)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'source': 'none.txt'}, "no file matches the text '.*/none.txt'"),
    ({'source': 'bad.jsonl'}, 'line 3 of .*/bad.jsonl is no JSON'),
    ({'source': 'bad.jsonl', 'num_workers': 2}, 'line 3 of .*/bad.jsonl is no JSON'),
    ({'column': 'body'}, "no text in column 'body' but id, text"),
    ({'out': 'good.jsonl/x'}, r'cannot write to .* \(Not a directory\)'),
    ({'held_out': 2}, '--held_out is 2; write a share'),
    ({'num_workers': 0}, '--workers is 0; write 1 or more'),
    ({'tokenizer': 'byte'}, "tokenizer 'byte' is unknown"),
    ({'source': 'empty.txt'}, 'is empty; give one with documents in it'),
  ],
)
def test_bad_input(tmp_path, changes, message):
  corpora.write_jsonl(tmp_path / 'good.jsonl', TEXTS[:9])
  (tmp_path / 'bad.jsonl').write_text('{"text": "a"}\n{"text": "b"}\n{"text": \n')
  (tmp_path / 'empty.txt').write_text('\n\n')
  options = {'source': 'good.jsonl', 'out': 'out'} | changes
  paths = [str(tmp_path / options.pop(name)) for name in ('source', 'out')]
  with pytest.raises(UserError, match=message) as error:
    run(*paths, **options)
  assert '\n' not in str(error.value)


def test_the_program_tells_bad_input_in_one_sentence(tmp_path):
  command = [sys.executable, '-m', 'armd_jax.data.prepare', '--tokenizer=bytes', '--workers=1']
  command += [f'--out={tmp_path}/out', '--source=tfds:nosuch']
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: tensorflow-datasets has no 'nosuch'")
  assert not (tmp_path / 'out').exists()


def test_the_program_reports(source, tmp_path, capsys):
  out = f'{tmp_path}/out'
  prepare.main(prepare.Options(source=str(source), tokenizer='bytes', out=out, workers=1))
  printed = capsys.readouterr()
  assert re.search(r'^prepare: (\S+) of \1 MB, \S+ MB/s\n$', printed.err)  # no bar without terminal
  manifest = json.loads((tmp_path / 'out/manifest.json').read_text())
  for total in manifest['totals'].values():
    assert f'{total["documents"]:,} documents' in printed.out
    assert f'{total["tokens"]:,} tokens' in printed.out
  assert f'--config.data.source={out} --config.data.tokenizer=bytes' in printed.out


def test_a_worker_that_is_killed_is_a_sentence(source, tmp_path, monkeypatch):
  class Pool(concurrent.futures.ThreadPoolExecutor):
    def __init__(self, *_):
      super().__init__(1)

    def submit(self, *_):
      return super().submit(self.die)

    def die(self):
      raise concurrent.futures.process.BrokenProcessPool('killed')

  monkeypatch.setattr(concurrent.futures, 'ProcessPoolExecutor', Pool)
  with pytest.raises(UserError, match='a worker was killed, perhaps for want of memory; run the'):
    run(source, tmp_path / 'out', num_workers=2)

"""Tokenises a corpus once, in parallel, into files that training reads at random.

  armd prepare --source='books/*.jsonl' --tokenizer=gpt2 --out=DIR
  armd prepare --source=tfds:lm1b --held_out_source=tfds:lm1b#test \\
                                  --tokenizer=bert-base-uncased --out=DIR

The same command resumes a preparation that was stopped, and ends with the same bytes, even if the
text is in another place by then; a text that has changed is refused. Training takes the folder as
its text: --config.data.source=DIR. `armd_jax.data.prepared` describes what is in it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath
from tqdm import tqdm

from armd_jax.data import documents as documents_lib
from armd_jax.data import parts as parts_lib
from armd_jax.data import prepared, progress, rows, sources, statistics, workers
from armd_jax.data.packing import token_dtype
from armd_jax.data.prepared import FORMAT, MANIFEST, RECORD_TOKENS, SIDES, UNFINISHED, Shard
from armd_jax.data.tokenizers import Tokenizer, get_tokenizer
from armd_jax.errors import UserError, sentence
from armd_jax.files import lock, paths, whole
from armd_jax.flags import flag

_MIB = 2**20
_MOST_PARTS = 256  # training keeps every file open
_PLAN = 'plan.json'
# Settings that may differ when a preparation is resumed, if the documents are the same.
_PLACES = ('source', 'description', 'held_out_source', 'files')
# Documents that are in no file, by reason.
_LEFT_OUT, _BAD, _ON_BOTH_SIDES = 'left_out', 'bad rows', 'held out as well'
_STATISTICS = 'statistics'


def prepare(
  source: str,
  tokenizer_name: str,
  out: str,
  *,
  column: str = '',
  held_out: float = 0.01,
  held_out_source: str = '',
  bad_rows: str = 'stop',
  documents: bool = False,
  prompt: str = '',
  num_workers: int = 1,
  part_bytes: int = 8 * _MIB,
) -> dict[str, Any]:
  """Writes the corpus, or what is missing of it.

  Args:
    source: as in `armd_jax.data.sources`; tensorflow-datasets are downloaded if need be.
    tokenizer_name: as in `armd_jax.data.tokenizers`.
    out: the folder, local or `gs://`: new, empty, or holding this corpus, finished or not.
    column: where files with columns and tensorflow-datasets hold the document.
    held_out: share of the documents held out, chosen by their hashes.
    held_out_source: a corpus to hold out instead; its documents are left out of `source`.
    bad_rows: 'stop' or 'skip', what becomes of rows without text: see `armd_jax.data.rows`.
    documents: a record for each document, for `config.data.packing = 'documents'`.
    prompt: column of files that holds a prompt before each document, which `documents` then are.
    num_workers: processes that tokenise; 1 is this one.
    part_bytes: least text in a file, in bytes; files are larger where there would be too many.
  Returns:
    The manifest.
  Raises:
    UserError: bad source, text or folder; or the folder holds another corpus.
  """
  tokenizer, folder = get_tokenizer(tokenizer_name), paths.readable(out, '--out')
  if held_out_source:
    held_out = 0.0
  elif not 0 < held_out < 1:
    raise UserError(f'--held_out is {held_out}; write a share between 0 and 1, like 0.01')
  if num_workers < 1:
    raise UserError(f'--workers is {num_workers}; write 1 or more')
  on_bad = rows.on_bad(bad_rows)
  train = sources.open_source(source, column, prepare=True, prompt=prompt)
  opened = {'train': train}
  if held_out_source:
    opened['held_out'] = sources.open_source(held_out_source, column, True, prompt)
  total = sum(corpus.num_bytes for corpus in opened.values())
  parts = []
  for side, corpus in opened.items():
    size = max(part_bytes, -(-total // _MOST_PARTS))
    parts += [parts_lib.WorkItem(spans, side) for spans in parts_lib.group(corpus.spans, size)]
  plan = {
    'source': source,
    'description': train.description,
    'column': column,
    'held_out': held_out,
    'held_out_source': held_out_source,
    'bad_rows': bad_rows,
    'tokenizer': tokenizer_name,
    'fingerprint': tokenizer.fingerprint,
    'spans': hashlib.sha256(repr([part.without_place() for part in parts]).encode()).hexdigest(),
    'files': parts_lib.stamps(parts),
  }
  documents = documents or bool(prompt)
  if documents:  # otherwise the plan is that of version 0.2
    plan |= {'documents': True, 'prompt': prompt}
  with _plain_errors(folder):
    held_out_set = parts_lib.held_out_set(parts, bad_rows)
    split = parts_lib.Split(held_out, held_out_set, on_bad)
    with _held(folder):
      finished = _claim(folder, plan, parts, split)
      if finished:
        return finished
      _run(parts, folder, tokenizer_name, split, bad_rows, documents, num_workers)
      return _finish(folder, plan, parts)


def _held(folder: epath.Path) -> contextlib.AbstractContextManager[None]:
  """Keeps other preparations out of the folder; a bucket has no locks."""
  if '://' in os.fspath(folder):
    return contextlib.nullcontext()
  return lock.held(pathlib.Path(folder) / lock.FOLDER_LOCK, f'--out {folder}')


def _claim(
  folder: epath.Path,
  plan: dict[str, Any],
  parts: Sequence[parts_lib.WorkItem],
  split: parts_lib.Split,
) -> dict[str, Any] | None:
  """Makes the folder this plan's; the manifest if it is finished already."""
  there = None
  if (folder / MANIFEST).exists():
    there = prepared.Prepared(os.fspath(folder)).manifest  # which raises if a file is missing
  elif (folder / UNFINISHED / _PLAN).exists():
    there = {'plan': whole.read_json(folder / UNFINISHED / _PLAN, {}, 'use another --out')}
  elif folder.exists() and not _is_free(folder):
    raise UserError(f'{folder} holds other files; give a new or an empty folder as --out')
  if there is None:
    (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
    _write_json(folder / UNFINISHED / _PLAN, plan)
    return None
  for name in dict.fromkeys([*plan, *there['plan']]):
    old, value = there['plan'].get(name), plan.get(name)
    if old != value and name not in _PLACES:
      if name == 'spans':
        raise _other_text(plan, folder)
      raise UserError(
        f'{folder} was prepared with {name} {old!r}, not {value!r}; use another --out'
      )
  if there['plan'].get('files') != plan['files']:
    if not parts_lib.is_same_text(folder, there, parts, split):
      raise _other_text(plan, folder)
    is_finished = 'shards' in there
    there = parts_lib.sealed(there | {'plan': plan})
    path = folder / MANIFEST if is_finished else folder / UNFINISHED / _PLAN
    _write_json(path, there if is_finished else plan)
  return there if 'shards' in there else None


def _is_free(folder: epath.Path) -> bool:
  """Whether nothing is there but what a preparation that was killed leaves before its plan."""
  begun = folder / UNFINISHED
  if {path.name for path in folder.iterdir()} - {UNFINISHED, lock.FOLDER_LOCK}:
    return False
  inside = begun.iterdir() if begun.is_dir() else [begun] if begun.exists() else []
  return all(re.fullmatch(r'tmp\w{8}', path.name) for path in inside)


def _other_text(plan: dict[str, Any], folder: epath.Path) -> UserError:
  return UserError(
    f'the files of {plan["source"]!r} are not those that {folder} was prepared from; use another '
    '--out'
  )


def _run(
  parts: Sequence[parts_lib.WorkItem],
  folder: epath.Path,
  tokenizer_name: str,
  split: parts_lib.Split,
  bad_rows: str,
  documents: bool,
  num_workers: int,
) -> None:
  """Writes the files of all parts that have none yet."""
  missing = [i for i in range(len(parts)) if parts_lib.read_note(folder, i) is None]
  sizes = [part.num_bytes for part in parts]
  bar = tqdm(
    total=sum(sizes),
    initial=sum(sizes) - sum(sizes[i] for i in missing),
    unit='B',
    unit_scale=True,
    desc='prepare',
    disable=None,  # where there is no terminal
  )
  lines = progress.Lines(sum(sizes), bar.disable)

  def finished(i: int) -> None:
    bar.update(sizes[i])
    lines.update(sizes[i])

  compared = statistics.compared_every(sum(sizes)), statistics.most_compared(len(parts))
  job = lambda i: (parts[i], i, os.fspath(folder), *compared)
  worker = tokenizer_name, split.held_out, split.held_out_set, bad_rows, documents
  with bar:
    if num_workers == 1:
      _start_worker(*worker)
      for i in missing:
        _write_part(*job(i))
        finished(i)
      return
    pool = concurrent.futures.ProcessPoolExecutor(
      min(num_workers, max(1, len(missing))),
      multiprocessing.get_context('spawn'),
      _start_worker,
      (*worker, True),
    )
    try:
      with workers.shielded():  # Ctrl-C ends this process, which ends them
        running = {pool.submit(_write_part, *job(i)): i for i in missing}
      for future in concurrent.futures.as_completed(running):
        if future.exception():
          # Of two bad rows the first one is reported, whichever worker was quicker.
          for earlier in [one for one, i in running.items() if i < running[future]]:
            earlier.result()
        future.result()
        finished(running[future])
    except concurrent.futures.process.BrokenProcessPool as error:
      raise UserError(
        'a worker was killed, perhaps for want of memory; run the same command again with fewer '
        '--workers, and it goes on'
      ) from error
    finally:
      pool.shutdown(cancel_futures=True)


_tokenizer: Tokenizer  # of a worker process, which builds both once
_split: parts_lib.Split
_as_documents: bool


def _start_worker(
  tokenizer_name: str,
  held_out: float,
  held_out_set: frozenset[bytes],
  bad_rows: str,
  documents: bool,
  is_process: bool = False,
) -> None:
  global _tokenizer, _split, _as_documents
  _as_documents = documents
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # a worker is one core
  if is_process:
    workers.exit_with_parent()
  _tokenizer = get_tokenizer(tokenizer_name)
  _split = parts_lib.Split(held_out, held_out_set, rows.on_bad(bad_rows))


def _write_part(part: parts_lib.WorkItem, number: int, out: str, every: int, most: int) -> None:
  """Writes the files of a part, then the note that they are whole."""
  folder = epath.Path(out)
  with _plain_errors(folder), _scratch(folder) as scratch:
    writers = {side: _Writer(scratch / parts_lib.file_name(side, number)) for side in SIDES}
    on_both_sides, bad_before = 0, getattr(_split.on_bad, 'count', 0)
    counted = statistics.Counted(every, most)
    for side, text, digest in _split.documents(part):
      if side:
        counted.add(digest, writers[side].add(text, digest))
      else:
        on_both_sides += 1
    bad = getattr(_split.on_bad, 'count', 0) - bad_before
    shards: dict[str, Any] = {
      _LEFT_OUT: {_BAD: bad, _ON_BOTH_SIDES: on_both_sides},
      _STATISTICS: counted.json(),
    }
    for side, writer in writers.items():
      shard = writer.close()
      if shard.tokens:
        _move(scratch / shard.file, folder / shard.file)
        prepared.note_checked(folder, shard)
        shards[side] = dataclasses.asdict(shard)
    _write_json(parts_lib.note_path(folder, number), parts_lib.sealed(shards))


class _Writer:
  """One file of a stream of tokens, or of documents."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    # One record a chunk, since reads are at random; ids hardly compress.
    self._file = array_record_module.ArrayRecordWriter(os.fspath(path), 'group_size:1,uncompressed')
    self._dtype = token_dtype(_tokenizer)
    self._eos = np.array([_tokenizer.eos_id], self._dtype).tobytes()
    self._rest = bytearray()
    self._documents = self._text_bytes = self._tokens = 0
    self._hash = hashlib.sha256()

  def add(self, text: str, digest: bytes) -> int:
    """Returns the tokens of the document, with EOS."""
    self._documents += 1
    self._text_bytes += len(text.encode('utf-8'))
    self._hash.update(digest)
    if _as_documents:
      document_n = documents_lib.encode(text, _tokenizer)
      self._tokens += len(document_n)
      self._file.write(document_n.tobytes())
      return len(document_n)
    ids = _tokenizer.encode(text)
    self._rest += ids.astype(self._dtype).tobytes() + self._eos
    self._tokens += len(ids) + 1
    size = RECORD_TOKENS * self._dtype.itemsize
    whole = len(self._rest) // size * size
    for begin in range(0, whole, size):
      self._file.write(bytes(self._rest[begin : begin + size]))
    del self._rest[:whole]
    return len(ids) + 1

  def close(self) -> Shard:
    if self._rest:
      self._file.write(bytes(self._rest))
    self._file.close()
    with self._path.open('rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return Shard(
      file=self._path.name,
      documents=self._documents,
      text_bytes=self._text_bytes,
      tokens=self._tokens,
      text_sha256=self._hash.hexdigest(),
      num_bytes=self._path.stat().st_size,
      sha256=digest,
    )


def _finish(
  folder: epath.Path, plan: dict[str, Any], parts: Sequence[parts_lib.WorkItem]
) -> dict[str, Any]:
  """Writes the manifest out of the notes of all parts, which it replaces."""
  if parts_lib.stamps(parts) != plan['files']:
    raise UserError(
      f'the files of {plan["source"]!r} have changed while they were read; leave them as they are, '
      'and use another --out'
    )
  notes, counted = [], statistics.Total()
  for i in range(len(parts)):
    note = parts_lib.read_note(folder, i)
    if note is None:
      raise UserError(f'files of {folder} were changed meanwhile; run the same command again')
    counted.add(note.pop(_STATISTICS))  # which is large, unlike all else
    notes.append(note)
  shards = {side: [note[side] for note in notes if side in note] for side in SIDES}
  everything = [shard for side in SIDES for shard in shards[side]]
  if not everything:
    raise UserError(f'the text {plan["source"]!r} is empty; give one with documents in it')
  if plan['held_out_source'] and not shards['train']:
    raise UserError(
      f'every document of {plan["source"]!r} is in {plan["held_out_source"]!r} as well; give '
      'another --source or --held_out_source'
    )
  hashes = {side: [shard['text_sha256'] for shard in shards[side]] for side in SIDES}
  digest = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode())
  totals = {
    side: {
      name: sum(shard[name] for shard in shards[side])
      for name in ('documents', 'text_bytes', 'tokens')
    }
    for side in SIDES
  }
  manifest = parts_lib.sealed(
    {
      'format': FORMAT,
      'plan': plan,
      'text_sha256': digest.hexdigest(),
      'totals': totals,
      _STATISTICS: counted.json(totals),
      _LEFT_OUT: {
        reason: sum(note[_LEFT_OUT][reason] for note in notes) for reason in (_BAD, _ON_BOTH_SIDES)
      },
      'shards': shards,
    }
  )
  _write_json(folder / MANIFEST, manifest)
  (folder / UNFINISHED).rmtree()
  return manifest


@contextlib.contextmanager
def _scratch(folder: epath.Path) -> Iterator[pathlib.Path]:
  """A local folder for files in the making, beside those that are whole where these are local."""
  beside = None if '://' in os.fspath(folder) else folder / UNFINISHED
  with tempfile.TemporaryDirectory(dir=beside) as name:
    yield pathlib.Path(name)


def _move(source: pathlib.Path, target: epath.Path) -> None:
  """Puts a whole file in its place at once."""
  if '://' in os.fspath(target):
    with source.open('rb') as whole, target.open('wb') as copy:
      shutil.copyfileobj(whole, copy, 16 * _MIB)
  else:
    os.replace(source, target)


def _write_json(target: epath.Path, value: Any) -> None:
  with tempfile.TemporaryDirectory(
    dir=None if '://' in os.fspath(target) else target.parent
  ) as name:
    part = pathlib.Path(name) / target.name
    part.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
    _move(part, target)


@contextlib.contextmanager
def _plain_errors(folder: epath.Path) -> Iterator[None]:
  """Errors of the disk and of the ArrayRecord library as one sentence."""
  try:
    yield
  except UserError:
    raise
  except (OSError, RuntimeError, ImportError) as error:
    reason = getattr(error, 'strerror', None) or sentence(error)
    raise UserError(
      f'cannot write to {folder} ({reason}); free space or give a folder that can be written to, '
      'and run the same command again: what is finished is kept'
    ) from error


def _report(manifest: dict[str, Any], out: str) -> None:
  plan = manifest['plan']
  for side, total in manifest['totals'].items():
    print(
      f'{side:9} {total["documents"]:,} documents, {total["text_bytes"]:,} bytes of text, '
      f'{total["tokens"]:,} tokens, {len(manifest["shards"][side])} files'
    )
  for reason, count in manifest[_LEFT_OUT].items():
    if count:
      print(f'left out  {count:,} documents: {reason}')
  if _STATISTICS in manifest:  # a corpus of version 0.2 has none
    print('\n'.join(statistics.read(manifest[_STATISTICS]).lines()))
  print(f'tokenizer {plan["tokenizer"]}, {plan["fingerprint"][:16]}')
  print(f'text      sha256 {manifest["text_sha256"][:16]}')
  packing = f' --config.data.packing={documents_lib.PACKING}' if 'documents' in plan else ''
  print(
    f'Train with --config.data.source={out} --config.data.tokenizer={plan["tokenizer"]}{packing}'
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  source: str = flag('The corpus: stdlib, tfds:NAME, hf:NAME/CONFIG#SPLIT or a path or glob.')
  tokenizer: str = flag('bytes, gpt2, bert-base-uncased, or the path of a tokenizer.json.')
  out: str = flag('Folder of the prepared corpus.')
  column: str = flag('Where tables and tfds hold the document.', '')
  held_out: float = flag('Share of the documents held out.', 0.01)
  held_out_source: str = flag('A corpus held out instead.', '')
  bad_rows: str = flag(
    'At rows without text: end, or leave them out.', 'stop', choices=rows.BAD_ROWS
  )
  documents: bool = flag('Keeps documents apart, for config.data.packing=documents.', False)
  prompt: str = flag('Column of files with a prompt to each document; implies --documents.', '')
  workers: int = flag('Processes that tokenise; 0: as many as cores.', 0, at_least=0)


def main(options: Options) -> None:
  manifest = prepare(
    options.source,
    options.tokenizer,
    options.out,
    column=options.column,
    held_out=options.held_out,
    held_out_source=options.held_out_source,
    bad_rows=options.bad_rows,
    documents=options.documents,
    prompt=options.prompt,
    num_workers=options.workers or os.cpu_count() or 1,
  )
  _report(manifest, options.out)


if __name__ == '__main__':
  # Here, because worker processes import this file and need none of what programs import.
  from armd_jax import cli

  cli.run(main, Options)

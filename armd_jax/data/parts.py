"""The parts of a corpus that is prepared: what is in each, and whether it is what it was.

A part is what one worker does at a time. Its files hold hashes of its documents, so that another
text of the same size and name is noticed, and the same text in another place is recognised.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from armd_jax.data import rows, sources, statistics
from armd_jax.data.prepared import SIDES, UNFINISHED, Shard, read_shard, stamp
from armd_jax.data.readers import Span
from armd_jax.data.rows import OnBad
from armd_jax.files import whole

SPAN_BYTES = 2**24  # read at a time, which bounds a worker's memory


@dataclasses.dataclass(frozen=True)
class WorkItem:
  """What one worker does at a time: some spans, into at most one file a side."""

  spans: tuple[Span, ...]
  side: str  # 'held_out', or 'train' with `held_out` of it taken out

  @property
  def num_bytes(self) -> int:
    return sum(span.num_bytes for span in self.spans)

  def without_place(self) -> WorkItem:
    """The same bytes of a file of no name."""
    nowhere = lambda span: dataclasses.replace(span, path='') if hasattr(span, 'path') else span
    return dataclasses.replace(self, spans=tuple(map(nowhere, self.spans)))


@dataclasses.dataclass(frozen=True)
class Split:
  """On which side documents are.

  Attributes:
    held_out: share of the documents of 'train' that is held out.
    held_out_set: `sources.key_of` of what is held out of a source of its own, which is not
      trained on.
    on_bad: called for each bad row.
  """

  held_out: float
  held_out_set: frozenset[bytes]
  on_bad: OnBad

  def documents(self, part: WorkItem) -> Iterator[tuple[str, str, bytes]]:
    """Side ('' for neither), text and hash of the documents of a part."""
    for span in part.spans:
      for text in span.documents(self.on_bad):
        digest = sources.hash_of(text)
        side = part.side
        if side == 'train' and sources.is_held_out(digest, self.held_out):
          side = 'held_out'
        elif side == 'train' and self.held_out_set and sources.key_of(text) in self.held_out_set:
          side = ''
        yield side, text, digest


def held_out_set(parts: Sequence[WorkItem], bad_rows: str) -> frozenset[bytes]:
  """Names of the documents of a source that is held out, which is read for it.

  Raises:
    UserError: a bad row, unless they are skipped.
  """
  on_bad = rows.on_bad(bad_rows) if bad_rows == 'stop' else lambda tell: None  # reported later
  spans = [span for part in parts if part.side == 'held_out' for span in part.spans]
  return frozenset(sources.key_of(text) for span in spans for text in span.documents(on_bad))


def group(spans: Sequence[Span], part_bytes: int) -> Iterator[tuple[Span, ...]]:
  """Neighbouring spans, together of about `part_bytes`."""
  enough = 0.9 * part_bytes  # a span is a little shorter if the one before extends to a border
  group, size = [], 0
  for one in spans:
    for span in one.split(min(part_bytes, SPAN_BYTES)):
      group.append(span)
      size += span.num_bytes
      if size >= enough:
        yield tuple(group)
        group, size = [], 0
  if group:
    yield tuple(group)


def stamps(parts: Sequence[WorkItem]) -> dict[str, list[int]]:
  """The system's record of the size and the last change of files, by path."""
  files = dict.fromkeys(s.path for part in parts for s in part.spans if hasattr(s, 'path'))
  return {path: stamp(path) for path in files}


def is_same_text(
  folder: epath.Path, there: dict[str, Any], parts: Sequence[WorkItem], split: Split
) -> bool:
  """Whether the documents, read again, are those of the files that are there."""
  if 'shards' in there:
    of_file = {shard['file']: shard for side in SIDES for shard in there['shards'][side]}
    notes = {
      number: {
        side: of_file[name] for side in SIDES if (name := file_name(side, number)) in of_file
      }
      for number in range(len(parts))
    }
  else:
    notes = {}
    for number in range(len(parts)):
      if note := read_note(folder, number):
        notes[number] = {side: note[side] for side in SIDES if side in note}
  for number, shards in notes.items():
    hashes = {side: hashlib.sha256() for side in SIDES}
    counts = dict.fromkeys(SIDES, 0)
    for side, _, digest in split.documents(parts[number]):
      if side:
        hashes[side].update(digest)
        counts[side] += 1
    for side in SIDES:
      shard = shards.get(side, {'documents': 0, 'text_sha256': hashlib.sha256().hexdigest()})
      if (shard['documents'], shard['text_sha256']) != (counts[side], hashes[side].hexdigest()):
        return False
  return True


def file_name(side: str, number: int) -> str:
  """The file of a side of a part."""
  return f'{side}-{number:05}.array_record'


def note_path(folder: epath.Path, number: int) -> epath.Path:
  """Where a part keeps what its files are until all parts are done."""
  return folder / UNFINISHED / f'part-{number:05}.json'


def sealed(value: dict[str, Any]) -> dict[str, Any]:
  """With a digest of all else."""
  others = {name: item for name, item in value.items() if name != 'sha256'}
  return others | {'sha256': whole.sha256(others)}


def read_note(folder: epath.Path, number: int) -> dict[str, Any] | None:
  """What the files of a part are; None if it has to be done, or its note or a file is damaged."""
  try:
    form = {'left_out': {str: int}, 'statistics': statistics.FORM}
    note = whole.read_json(note_path(folder, number), form, '')
    if note.pop('sha256', None) != whole.sha256(note):
      return None
    shards: list[Shard] = [read_shard(note[side]) for side in SIDES if side in note]
    for shard in shards:
      path = folder / shard.file
      if not path.exists() or path.stat().length != shard.num_bytes:
        return None
  except (OSError, ValueError):
    return None
  return note

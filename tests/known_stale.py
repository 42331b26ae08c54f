"""Records that are known to be of older code, which docs/records/stale.json lists with reasons."""

import json
import pathlib

from armd_jax import records

ROOT = pathlib.Path(__file__).parents[1]
PATH = ROOT / 'docs' / 'records' / 'stale.json'


def is_listed(record: str, key: str) -> bool:
  return key in json.loads(PATH.read_text('utf-8')).get(record, {})


def check(kept: records.Records, stale: set[str], command: str) -> None:
  """Fails unless exactly the records that are listed are stale.

  Args:
    kept: the file, whose name is an entry of the list.
    stale: keys without a record of today's code.
    command: that measures them again.
  """
  listed = set(json.loads(PATH.read_text('utf-8')).get(kept.path.name, {}))
  new = sorted(stale - listed)
  message = f'{len(new)} records of {kept.path.name} are of other code: {new[:3]}; run {command}'
  assert not new, message
  current = sorted(listed - stale)
  assert not current, f'{current[:3]} are current again; take them out of {PATH.name}'

"""The table of drills in docs/training.md, from docs/records/drills.json."""

from __future__ import annotations

import json
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / 'docs' / 'training.md'
MARK = '<!-- table: python tests/launch/drill_table.py -->'
_DISK, _STALLS, _BUCKET = (
  f'tests/launch/test_{name}.py::test_' for name in ('drills', 'stalls', 'bucket_drills')
)
# What happens, and the drills of it on a disk and in a bucket.
ROWS = {
  'killed with -9, again and again, one process of four or a single one': (
    f'{_DISK}process_2_of_4_killed_again_and_again',
    f'{_BUCKET}killed_again_and_again',
  ),
  'SIGTERM in a step, an evaluation or a save, three times each': (
    f'{_DISK}sigterm_in_the_midst_of',
    '',
  ),
  'SIGTERM in a restore, the first compile, an evaluation, a sample, the last save': (
    f'{_STALLS}one_of_2_is_told_to_stop_in',
    f'{_BUCKET}one_of_2_is_told_to_stop_in_the_last_save',
  ),
  'one process stopped (`kill -STOP`) in a restore, the first compile, a save, a step': (
    f'{_STALLS}one_of_4_stands_still_in',
    f'{_BUCKET}one_of_2_stands_still_in_a_save',
  ),
  'a step that hangs, under a launcher': (
    f'{_DISK}a_step_that_hangs_is_ended_and_the_job_started_again',
    '',
  ),
  'every file of the newest checkpoint damaged, in three ways': (
    f'{_DISK}every_file_of_the_newest_checkpoint_damaged',
    f'{_BUCKET}every_object_of_the_newest_checkpoint_damaged',
  ),
  'a disk that is full; a store that answers 503, or nothing, from some moment on': (
    f'{_DISK}a_full_disk_is_a_sentence_and_loses_nothing',
    f'{_BUCKET}a_store_that_stays',
  ),
  'queued again by Slurm, on two nodes': (f'{_DISK}slurm_job_is_requeued_and_resumes', ''),
}


def table(passed: dict[str, dict]) -> str:
  """Markdown, of the drills that have passed.

  Args:
    passed: their records by name, as in drills.json.
  """
  lines = ['| what happens | on a disk | in a bucket |', '|---|---|---|']
  for what, drills in ROWS.items():
    cells = (_cell(passed, drill) if drill else '–' for drill in drills)
    lines.append(f'| {what} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def _cell(passed, drill):
  found = [record for name, record in passed.items() if name.partition('[')[0] == drill]
  if not found:
    return 'not yet'
  versions = ', '.join(sorted({record['jax'] for record in found}))
  return f'{len(found)} passed, {sum(r["seconds"] for r in found):.0f} s, jax {versions}'


def recorded() -> str:
  """The table of what is on record."""
  return table(json.loads((ROOT / 'docs' / 'records' / 'drills.json').read_bytes()))


def main() -> None:
  """Writes it to the page."""
  before, mark, after = PAGE.read_text('utf-8').partition(f'{MARK}\n\n')
  _, gap, rest = after.partition('\n\n')
  PAGE.write_text(f'{before}{mark}{recorded()}{gap}{rest}', 'utf-8')


if __name__ == '__main__':
  main()

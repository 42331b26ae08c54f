"""Pages name files that are there."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def test_the_walk_through_the_code_names_files_that_are_there():
  text = (ROOT / 'docs' / 'reading.md').read_text('utf-8')
  named = set(re.findall(r'`([\w/]+\.py)`', text))
  assert len(named) > 20
  attention = ROOT / 'armd_jax' / 'attention'  # a row may name two files of a room
  missing = [x for x in named if not any((f / x).is_file() for f in (ROOT / 'armd_jax', attention))]
  assert not missing

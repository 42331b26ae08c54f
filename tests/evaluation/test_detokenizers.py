"""Detokenizers on rows as the data sets have them, each result written by hand."""

import json

import corpora
import pytest

from armd_jax.evaluation.detokenizers import NAMES, detokenize

ROWS = [
  ('wikitext', ' = = Career = = \n', ' == Career ==\n'),
  (
    'wikitext',
    ' He had a guest @-@ starring role ( in 2000 ) ; it earned $ 1 @,@ 000 @.@ 50 . Then , '
    '" Teddy \'s Story " followed . \n',
    ' He had a guest-starring role (in 2000); it earned $ 1,000.50. Then, '
    '"Teddy\'s Story" followed.\n',
  ),
  (
    'wikitext',
    " at 30 ° C the students ' [ sic ] N homes : \n",
    " at 30°C the students' [sic] 1 homes:\n",
  ),
  (
    'ptb',
    "mr. <unk> 's bears ' den does n't cost $ N N N or 3 \\/ 4",
    "mr. ?'s bears' den doesn't cost $1 1 1 or 3 / 4",
  ),
  (
    'lm1b',
    "But now , it 's looking like the page ( again ) costs $ 2,900 at http : / / a.b / c !",
    "But now, it's looking like the page (again) costs $2,900 at http://a.b/c!",
  ),
  (
    'lm1b',
    '" We bought it " , he said : is it 7 ? Yes .',
    '"We bought it", he said: is it 7? Yes.',
  ),
  ('lambada', ' “A guardian angel,” she said \n', '\n"A guardian angel," she said'),
  ('none', ' as , it is . ', ' as , it is . '),
]


@pytest.mark.parametrize(('name', 'row', 'expected'), ROWS)
def test_rows(name, row, expected):
  assert detokenize(name, row) == expected


def test_every_detokenizer_is_tried():
  assert {name for name, _, _ in ROWS} == set(NAMES)


@corpora.needs_shared
def test_real_texts_are_put_together():
  """Marks that only the cutting into words can have made are gone; brackets that hold brackets
  keep theirs, as in the published rules, and so does a sentence's end after anything but a word."""
  folder = corpora.SHARED / 'eval'
  raw = (folder / 'wikitext2_raw_test.txt').read_text('utf-8')
  wikitext = '\n'.join(detokenize('wikitext', row + '\n') for row in raw.split('\n'))
  for mark in (' @-@ ', ' @,@ ', ' @.@ ', ' , ', ' . ', ' ; '):
    assert mark in raw and mark not in wikitext, mark
  assert wikitext.count('( ') < 0.01 * raw.count('( ')
  lm1b_raw = (folder / 'lm1b_subset.txt').read_text('utf-8').split('\n')
  lm1b = [detokenize('lm1b', row) for row in lm1b_raw]
  ends = lambda rows: sum(row.endswith(' .') for row in rows)
  assert not [row for row in lm1b if ' , ' in row] and ends(lm1b) < 0.05 * ends(lm1b_raw)
  lambada = [json.loads(row) for row in (folder / 'lambada_openai_test.jsonl').open()]
  rows = [detokenize('lambada', f'{row["context"]} {row["continuation"]}') for row in lambada]
  assert all(row.startswith('\n') and row == '\n' + row.strip() for row in rows)
  assert not [row for row in rows if '“' in row or '”' in row]

"""How evaluation texts that come cut into words are put together again before they are scored.

Each detokenizer is a table of replacements, made one after the other over a whole row. They are
those of the published evaluations of SEDD and MDLM, oddities included (`N`, Penn Treebank's number,
becomes 1 in WikiText, too): one rule more or less moves a perplexity, and numbers compare only over
the same text.
"""

from __future__ import annotations

import functools
import re

# (what is replaced, what replaces it), both literal unless marked as a pattern.
_LITERAL, _PATTERN = 'literal', 'pattern'

_WIKITEXT = (
  (_LITERAL, "s '", "s'"),
  *((_LITERAL, f' @{mark}@ ', mark) for mark in '-,.'),
  *((_LITERAL, f' {mark} ', f'{mark} ') for mark in ':;.!?,'),
  # Inside brackets and quotation marks, from each opening one to the first closing one.
  *((_PATTERN, rf'\{a}\s*([^\{b}]*?)\s*\{b}', rf'{a}\1{b}') for a, b in ('()', '[]', '{}')),
  *((_PATTERN, rf'{mark}\s*([^{mark}]*?)\s*{mark}', rf'{mark}\1{mark}') for mark in '"\''),
  *((_LITERAL, ' '.join('=' * depth), '=' * depth) for depth in (4, 3, 2)),
  (_LITERAL, ' ° ', '°'),
  (_LITERAL, ' \n', '\n'),
  (_LITERAL, '\n ', '\n'),
  (_LITERAL, ' N ', ' 1 '),
  (_LITERAL, " 's", "'s"),
)

_PTB = (
  (_LITERAL, " 's", "'s"),
  (_LITERAL, "s ' ", "s' "),
  (_LITERAL, " n't", "n't"),
  (_LITERAL, ' \n ', '\n'),
  (_LITERAL, '\\/', '/'),
  *((_LITERAL, ' N ', ' 1 '),) * 10,  # matches share their spaces, so once is not enough
  (_LITERAL, '$ 1', '$1'),
  (_LITERAL, '# 1', '#1'),
  (_LITERAL, '<unk>', '?'),
)

_LM1B = (
  (_LITERAL, 'http : / / ', 'http://'),
  (_LITERAL, 'https : / / ', 'https://'),
  (_PATTERN, r" '(\w+)", r"'\1"),
  (_PATTERN, r' (\w+) \. ', r' \1. '),
  (_PATTERN, r' (\w+) \.$', r' \1.'),
  (_LITERAL, ' ? ', '? '),
  (_PATTERN, r' \?$', '?'),
  (_LITERAL, ' ! ', '! '),
  (_PATTERN, r' !$', '!'),
  *((_LITERAL, f' {mark} ', f'{mark} ') for mark in ',:;'),
  (_LITERAL, ' / ', '/'),
  *((_PATTERN, rf'{mark} ([^{mark}]+) {mark}', rf'{mark}\1{mark}') for mark in '"\''),
  *((_PATTERN, rf'\{a} ([^\{a}\{b}]+) \{b}', rf'{a}\1{b}') for a, b in ('()', '[]')),
  *((_LITERAL, f'{sign} ', sign) for sign in '$£'),
)

_LAMBADA = (
  (_PATTERN, '[“”]', '"'),
  (_PATTERN, r'\A\s*', '\n'),
  (_PATTERN, r'\s+\Z', ''),
)

_TABLES = {'none': (), 'wikitext': _WIKITEXT, 'ptb': _PTB, 'lm1b': _LM1B, 'lambada': _LAMBADA}

NAMES = tuple(_TABLES)


def detokenize(name: str, row: str) -> str:
  """Puts one row of a data set together.

  Args:
    name: one of `NAMES`; 'none' leaves the row as it is.
    row: a row as its data set has it, with a newline at its end where the data set keeps it.

  Examples:
    >>> detokenize('lm1b', "But now , it 's looking ( again ) like $ 5 .")
    "But now, it's looking (again) like $5."
  """
  for pattern, new in _compiled(name):
    row = pattern.sub(new, row)
  return row


@functools.cache
def _compiled(name: str) -> list[tuple[re.Pattern, str]]:
  return [
    (re.compile(re.escape(old)), new.replace('\\', r'\\'))
    if kind == _LITERAL
    else (re.compile(old), new)
    for kind, old, new in _TABLES[name]
  ]

"""Scores that a quickstart kept are those of its suite, or a sentence."""

import json

import pytest

from armd_jax.errors import UserError
from armd_jax.evaluation import likelihood
from armd_jax.training import quickstart

SUITE = [likelihood.LEFT_TO_RIGHT, *likelihood.strided_protocols(2)]


def row(protocol, nats=1.5):
  return {
    'name': protocol.name, 'kind': protocol.kind, 'nats_per_byte': nats, 'nats_per_token': nats,
    'tokens': 9, 'text': '', 'orders': 1, 'standard_error': None,
  }  # fmt: skip


@pytest.mark.parametrize('rows', [
  [], [row(protocol) for protocol in SUITE[:2]], [row(protocol) for protocol in SUITE[::-1]],
  [row(protocol, 0.0) for protocol in SUITE],
])  # fmt: skip
def test_scores_of_another_suite_are_refused(tmp_path, rows):
  path = tmp_path / 'base_scores.json'
  path.write_text(json.dumps(rows))
  message = r'base_scores.json holds no scores of left-to-right, strided S=2.*; bring it back, or'
  with pytest.raises(UserError, match=message):
    quickstart._read_scores(path, SUITE)
  path.write_text(json.dumps([row(protocol) for protocol in SUITE]))
  assert [score.name for score in quickstart._read_scores(path, SUITE)] == [p.name for p in SUITE]

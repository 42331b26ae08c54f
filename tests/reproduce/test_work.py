"""A run is measured with its own vocabulary, whatever the config of the other pieces has."""

import types

import numpy as np
import pytest
import synthetic

from armd_jax import config as config_lib
from armd_jax.reproduce import pieces, work

VOCABULARIES = {'bytes': 257, pieces.TOKENIZER: 50257}
PIECES = pieces.all_pieces(synthetic.config())
TRAINED = {piece.name: piece for piece in PIECES if piece.kind == 'train'}
OF_TOKENS = [
  piece
  for piece in PIECES
  if piece.kind == 'evaluate'
  and TRAINED[piece.needs[0]].overrides.get('data.tokenizer') == pieces.TOKENIZER
]


def test_runs_on_tokens_are_evaluated():
  names = {name for name, piece in TRAINED.items() if 'data.tokenizer' in piece.overrides}
  assert names and {piece.needs[0] for piece in OF_TOKENS} == names


@pytest.mark.parametrize('piece', [*OF_TOKENS, pieces.Piece('bytes', 'evaluate', steps=(1, 2))])
def test_a_run_is_evaluated_with_its_vocabulary(piece, tmp_path, monkeypatch):
  """On the text where it is by now."""
  kind = pieces.TOKENIZER if piece.needs else 'bytes'
  raw = synthetic.config()
  assert raw.data.tokenizer == 'bytes'
  if piece.needs:
    raw.update_from_flattened_dict(TRAINED[piece.needs[0]].overrides)
  run, read, built = config_lib.parse(raw), [], []
  moved = config_lib.parse({'data': {'source': 'moved.txt'}}).data

  def corpus_of(data, length):
    read.append((data.source, data.tokenizer, length))
    return types.SimpleNamespace(held_out_WxN=np.zeros((6, length), np.int32))

  tokenizer = lambda name: types.SimpleNamespace(vocab_size=VOCABULARIES[name])
  monkeypatch.setattr(work, 'get_tokenizer', tokenizer)
  monkeypatch.setattr(work, 'corpus_of', corpus_of)
  monkeypatch.setattr(work, 'restored', lambda *_: (run, None, {}))
  monkeypatch.setattr(work.families, 'build', lambda model, vocab_size: built.append(vocab_size))
  monkeypatch.setattr(work, '_suite', lambda config, *_: config.data.tokenizer)
  monkeypatch.setattr(work, 'order_costs', lambda *_: kind)
  assert work.evaluate(piece, tmp_path, moved) == {str(step): kind for step in piece.steps}
  assert set(read) == {('moved.txt', kind, run.model.length)}
  assert set(built) == {VOCABULARIES[kind]}

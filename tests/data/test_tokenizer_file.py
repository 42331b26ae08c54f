"""Any tokenizer.json is a vocabulary: all of a text in ids, and back, and bytes that add up."""

import json
import os

import numpy as np
import pytest
import tokenizers as library

from armd_jax.data import tokenizer_json, tokenizers
from armd_jax.data.tokenizer_file import FileTokenizer
from armd_jax.errors import UserError

TEXT = 'It was the best of times, it was the worst of times; naïve — 東京.\n\nIt was ...' * 9


def by_bytes(path, special=('<|endoftext|>',)):
  made = library.Tokenizer(library.models.BPE())
  made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = library.decoders.ByteLevel()
  alphabet = library.pre_tokenizers.ByteLevel.alphabet()
  trainer = library.trainers.BpeTrainer(
    vocab_size=300, special_tokens=[*special], initial_alphabet=alphabet, show_progress=False
  )
  made.train_from_iterator([TEXT], trainer)
  made.enable_truncation(5)
  made.enable_padding(length=99)
  made.save(str(path))
  return str(path)


def test_a_text_comes_back_whole(tmp_path):
  found = tokenizers.get_tokenizer(by_bytes(tmp_path / 'mine.json'))
  ids = found.encode(TEXT)
  assert isinstance(found, FileTokenizer) and found.decode(ids) == TEXT
  assert found.token_bytes_V[ids].sum() == len(TEXT.encode())
  assert found.eos_id not in ids and found.token_bytes_V[found.eos_id] == 0
  assert found.decode(np.append(ids[:3], found.eos_id)) == found.decode(ids[:3])
  assert ids.max() < found.vocab_size == tokenizers.vocab_size(found.name)
  with pytest.raises(ValueError, match='ids from 0'):
    found.decode(np.array([found.vocab_size]))


def test_special_tokens_in_a_text_are_text(tmp_path):
  found = FileTokenizer(by_bytes(tmp_path / 'mine.json'))
  text = 'a <|endoftext|> b'
  assert found.eos_id not in found.encode(text) and found.decode(found.encode(text)) == text


def test_eos_is_one_more_id_where_there_is_none(tmp_path):
  folder = tmp_path / 'model'
  folder.mkdir()
  by_bytes(folder / 'tokenizer.json', special=())
  found = tokenizers.get_tokenizer(str(folder))
  assert found.eos_id == found.bos_id == found.vocab_size - 1
  assert found.eos_id not in found.encode(TEXT)


def test_another_file_has_another_fingerprint(tmp_path):
  path = tmp_path / 'mine.json'
  first = FileTokenizer(by_bytes(path)).fingerprint
  assert FileTokenizer(str(path)).fingerprint == first
  described = json.loads(path.read_text())
  described['model']['merges'] = described['model']['merges'][:-1]
  path.write_text(json.dumps(described))
  assert FileTokenizer(str(path)).fingerprint != first


def test_a_pipe_is_none(tmp_path):
  os.mkfifo(tmp_path / 'mine.json')
  with pytest.raises(UserError, match=r'mine\.json, which is no ordinary file; write the name'):
    FileTokenizer(str(tmp_path / 'mine.json'))


@pytest.mark.parametrize('text', ['', '{}', '[1]', '{"model": 3}'])
def test_what_is_none_is_a_sentence(tmp_path, text):
  path = tmp_path / 'mine.json'
  path.write_text(text)
  with pytest.raises(UserError, match=r'is no tokenizer\.json'):
    FileTokenizer(str(path))
  with pytest.raises(UserError, match='cannot be read'):
    FileTokenizer(str(tmp_path / 'no.json'))


LETTERS = {'type': 'BPE', 'vocab': {'a': 0, 'b': 1, 'ab': 2}, 'merges': ['a b']}


@pytest.mark.parametrize(
  'changes',
  [
    {'normalizer': {'type': 'Precompiled', 'precompiled_charsmap': ''}},
    {'normalizer': {'type': 'Precompiled', 'precompiled_charsmap': 'AAAAAA=='}},
    {'model': LETTERS | {'continuing_subword_prefix': 'aé'}},
  ],
  ids=str,
)
def test_one_that_the_library_panics_at_is_a_sentence(tmp_path, changes):
  """Some when they are read, others at the first word."""
  path = tmp_path / 'mine.json'
  made = library.Tokenizer(library.models.WordLevel({'a': 0, 'b': 1}, unk_token='a'))
  path.write_text(json.dumps(json.loads(made.to_str()) | changes))
  with pytest.raises(UserError, match=r'fetch it anew'):
    FileTokenizer(str(path)).encode('ab')


def test_a_file_without_tokens_is_refused(tmp_path):
  library.Tokenizer(library.models.BPE()).save(str(tmp_path / 'mine.json'))
  with pytest.raises(UserError, match='has no tokens; give another file'):
    FileTokenizer(str(tmp_path / 'mine.json'))


@pytest.mark.parametrize('number', [2**24, 2**31, 2**32 - 1])
def test_ids_that_no_vocabulary_has_are_refused(tmp_path, number):
  path = tmp_path / 'mine.json'
  made = library.Tokenizer(library.models.WordLevel({'a': 0, 'b': 1}, unk_token='a'))
  path.write_text(made.to_str().replace('"b":1', f'"b":{number}'))
  with pytest.raises(UserError, match=f'has the id {number}; give a file whose ids are below'):
    FileTokenizer(str(path))


@pytest.mark.parametrize(
  ('model', 'text', 'unknown'),
  [
    (library.models.WordLevel({'a': 0, 'b': 1}), 'a b zz a', 'zz'),
    (library.models.BPE({'a': 0, 'b': 1}, []), 'a b azz a', 'azz'),
    (library.models.BPE({'a': 0, 'b': 1}, []), 'a' * 99 + '東', '東'),
    (library.models.WordPiece({'a': 0, 'b': 1}), 'a b zz a', 'zz'),
    (library.models.Unigram([('a', -1.0), ('b', -1.0)]), 'a b zz a', 'zz'),
  ],
)
def test_what_has_no_token_is_refused_not_left_out(tmp_path, model, text, unknown):
  made = library.Tokenizer(model)
  made.pre_tokenizer = library.pre_tokenizers.Whitespace()
  made.save(str(tmp_path / 'mine.json'))
  found = FileTokenizer(str(tmp_path / 'mine.json'))
  assert found.encode('a b a').tolist() == [0, 1, 0]
  with pytest.raises(UserError, match=f'{found.name}. has no token for {unknown!r}, and none for'):
    found.encode(text)


@pytest.mark.parametrize('by', ['Unigram', 'WordPiece'])
def test_marks_of_a_heading_are_bytes_where_they_are_text(tmp_path, by):
  """Two of them begin WordPiece's tokens within a word, and no one else's."""
  ids = {'a': 0, '##': 1, '##b': 2}
  made = (
    library.models.Unigram([(token, -1.0) for token in ids], 0)
    if by == 'Unigram'
    else library.models.WordPiece(ids, unk_token='a')
  )
  library.Tokenizer(made).save(str(tmp_path / 'mine.json'))
  expected = [1, 2, 3] if by == 'Unigram' else [1, 0, 1]
  assert FileTokenizer(str(tmp_path / 'mine.json')).token_bytes_V[:3].tolist() == expected


def test_a_tokenizer_from_outside_has_no_file_for_transformers():
  made = json.loads(tokenizer_json.text_of(tokenizers.ByteTokenizer(), 257, '<bos>'))
  assert made['model']['vocab']['a'] == 97
  other = type('Other', (), {'name': 'capitals', 'vocab_size': 257})()
  message = "'capitals' has no tokenizer.json, which transformers needs; write --out"
  with pytest.raises(UserError, match=message):
    tokenizer_json.text_of(other, 257, '<bos>')

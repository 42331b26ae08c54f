"""Mixtures: every corpus has its share, whoever reads, and the next index is all the state."""

import itertools

import corpora
import numpy as np
import pytest

from armd_jax import config as config_lib
from armd_jax.config import DataConfig
from armd_jax.data import corpus, mixture, pipeline, prepare
from armd_jax.data.mixture import Mixture
from armd_jax.errors import UserError


def numbered(*lengths):
  """Windows that hold the number of their corpus and their own."""
  parts = [np.array([[c, w] for w in range(length)], np.uint16) for c, length in enumerate(lengths)]
  return {f'corpus{c}': part for c, part in enumerate(parts)}


@pytest.mark.parametrize(
  'weights', [(3.0, 1.0), (0.7, 0.2, 0.1), (1.0, 1.0, 1.0), (1e-3, 5.0), (2.0,), (0.3, 0.1)]
)
def test_every_corpus_has_its_share_of_any_number_of_examples(weights):
  mixed = Mixture(numbered(*[2] * len(weights)), weights)
  counts = [0] * len(weights)
  for index in range(4000):
    number, place = mixed.turn(index)
    assert place == counts[number]  # none twice, none left out
    counts[number] += 1
    for c, weight in enumerate(weights):
      assert abs(counts[c] - weight / sum(weights) * (index + 1)) < 1 + c
  assert all(counts)


def test_far_indices_are_as_exact():
  mixed = Mixture(numbered(5, 5, 5), (0.7, 0.2, 0.1))
  for start in (2**31, 2**53 + 1, 2**60):
    turns = [mixed.turn(index) for index in range(start, start + 1000)]
    for c in range(3):
      places = [place for number, place in turns if number == c]
      assert places == list(range(places[0], places[0] + len(places)))
      assert abs(len(places) - 1000 * (0.7, 0.2, 0.1)[c]) < 4


def test_as_a_sequence_it_is_one_corpus_after_the_other():
  mixed = Mixture(numbered(3, 2), (1.0, 1.0))
  assert len(mixed) == 5 and mixed.shares == {'corpus0': 0.5, 'corpus1': 0.5}
  assert [tuple(window) for window in mixed] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
  assert mixed[-1].tolist() == [1, 1] and mixed[1:4].tolist() == [[0, 1], [0, 2], [1, 0]]
  assert mixed[5:].shape == (0, 2)
  assert mixture.mean(mixed, {'corpus0': 1.0, 'corpus1': 2.0}) == 1.5
  assert mixture.parts_of(mixed[:]).keys() == {''}


def test_each_corpus_has_epochs_of_its_own():
  mixed = Mixture(numbered(4, 6), (1.0, 3.0))
  batches = pipeline.training_batches(mixed, 8, seed=0)
  taken = np.concatenate([next(batches).tokens_BxN for _ in range(12)])
  batches.close()
  first, second = (taken[taken[:, 0] == c, 1] for c in (0, 1))
  assert len(first) == 24 and len(second) == 72
  for epochs, length in ((first.reshape(6, 4), 4), (second.reshape(12, 6), 6)):
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(length), (len(epochs), 1)))
    assert len({tuple(epoch) for epoch in epochs}) > 4


def test_other_processes_and_workers_go_on_where_the_first_were():
  """4, then 3, then 6 processes, with 0, 2 and 5 workers: every index once, as for one alone."""
  mixed = Mixture(numbered(50, 30, 7), (5.0, 3.0, 0.5))
  alone = pipeline.training_batches(mixed, 12, seed=3)
  expected = [next(alone) for _ in range(9)]
  alone.close()
  found, next_index = [], 0
  for process_count, num_workers in ((4, 0), (3, 2), (6, 5)):
    # One process with workers: what these do is the same in all, and they take seconds to start.
    parts = [
      pipeline.training_batches(
        mixed, 12, 3, next_index, p, process_count, num_workers=num_workers if p == 1 else 0
      )
      for p in range(process_count)
    ]
    for _ in range(3):
      pieces = [next(part) for part in parts]
      found.append([np.concatenate(field) for field in zip(*pieces, strict=True)])
    (next_index,) = {part.next_index for part in parts}
    for part in parts:
      part.close()
  for (tokens, index), batch in zip(found, expected, strict=True):
    np.testing.assert_array_equal(tokens, batch.tokens_BxN)
    np.testing.assert_array_equal(index, batch.index_B)
  np.testing.assert_array_equal(np.concatenate([index for _, index in found]), np.arange(108))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two prepared corpora and a text."""
  folder = tmp_path_factory.mktemp('corpora')
  for seed, name in enumerate(('a', 'b')):
    source = corpora.write_text(folder / f'{name}.txt', corpora.documents(200, seed))
    prepare.prepare(source, 'bytes', str(folder / name), held_out=0.2)
  return folder


def test_a_config_lists_corpora_prepared_or_not(folder):
  load = lambda *names, **fields: corpus.load(
    DataConfig(mixture=tuple(str(folder / name) for name in names), **fields), 64
  )
  alone = corpus.load(DataConfig(source=str(folder / 'a')), 64)
  mixed = load('a', 'b.txt', weights=(3.0, 1.0))
  assert list(mixed.train_WxN.parts) == list(mixed.held_out_WxN.parts) == ['a', 'b_txt']
  np.testing.assert_array_equal(mixed.train_WxN.parts['a'][:], alone.train_WxN[:])
  assert mixed.description.startswith(f'75.0% {alone.description}; 25.0% ')
  assert len({c.sha256 for c in (alone, load('a'), load('a', 'b'), load('b', 'a'))}) == 4
  assert load('a', 'b').sha256 == load('a', 'b', weights=(9.0, 1.0)).sha256  # weights are a field


def parse(**data):
  return config_lib.parse({'data': data}).data


def test_lists_are_written_as_a_command_line_or_a_file_writes_them():
  assert parse(mixture=['x', 'y'], weights=[3, 0.5]).weights == (3.0, 0.5)
  assert parse(mixture='x').mixture == ('x',) == mixture.sources(parse(mixture='x'))
  assert mixture.sources(parse(source='x')) == ('x',)


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    ({'mixture': (1, 2)}, "must be a tuple of texts, like \\('work/web', 'work/books'\\)"),
    ({'mixture': ('x', 'y'), 'weights': ('a', 'b')}, 'must be a tuple of numbers, like'),
    ({'mixture': ('x', 'y'), 'weights': (1.0,)}, 'weights has 1 numbers and .* 2 corpora; write a'),
    ({'weights': (1.0,)}, r'write a weight for each, or \(\)'),
    ({'mixture': ('x', 'y'), 'weights': (1.0, 0.0)}, 'weights is .*; write numbers above 0'),
    ({'mixture': ('x', 'x')}, 'names a corpus twice; write it once, with a larger weight'),
  ],
)
def test_a_mixture_that_cannot_be_is_a_sentence(data, message):
  with pytest.raises(UserError, match=message):
    parse(**data)


def test_names_tell_corpora_apart():
  found = list(mixture.names(['x/web/', 'y/web', 'books/*.txt', 'tfds:c4/en', '/']))
  assert found == ['web_1', 'web_2', 'txt', 'en', 'corpus']
  assert all(a != b for a, b in itertools.combinations(found, 2))
  # Nor does a number make one of another's name, under which its windows would be lost.
  assert [*mixture.names(['x/web', 'y/web', 'web_1'])] == ['web_2', 'web_3', 'web_1']
  assert [*mixture.names(['/', 'x/corpus'])] == ['corpus_1', 'corpus_2']


def test_what_one_corpus_holds_out_is_in_no_training_side(tmp_path):
  shared = [f'document number {i} of these words, and no more' for i in range(400)]
  # The long one takes the place of many, so that the second holds out others than the first.
  names = [
    corpora.write_text(tmp_path / 'all.txt', shared),
    corpora.write_text(tmp_path / 'some.txt', [*shared[:200], 'long ' * 3000 + 'x']),
    corpora.write_jsonl(tmp_path / 'rows.jsonl', [f'{text} \n' for text in shared[100:300]]),
  ]
  load = lambda **fields: corpus.load(DataConfig(packing='documents', held_out=0.2, **fields), 64)
  texts = lambda windows: {bytes(row[(row >= 0) & (row < 256)].tolist()).strip() for row in windows}
  mixed = load(mixture=tuple(names))
  held_out = set.union(*map(texts, mixed.held_out_WxN.parts.values()))
  assert texts(load(source=names[0]).train_WxN) & held_out  # or there is nothing to leave out
  for path, train, own in zip(
    names, mixed.train_WxN.parts.values(), mixed.held_out_WxN.parts.values(), strict=True
  ):
    alone = load(source=path)
    assert texts(train) == texts(alone.train_WxN) - held_out
    np.testing.assert_array_equal(own, alone.held_out_WxN)


def test_prepared_corpora_that_hold_out_differently_are_warned_of(folder, capsys):
  prepare.prepare(str(folder / 'a.txt'), 'bytes', str(folder / 'tenth'), held_out=0.1)
  agree, differ = [('a', 'b'), ('b.txt', 'a.txt')], [('a', 'tenth'), ('b.txt', 'a')]
  for names in agree + differ:
    capsys.readouterr()
    corpus.load(DataConfig(mixture=tuple(str(folder / name) for name in names)), 64)
    said = capsys.readouterr().err
    assert ('prepare all of them with the same --held_out' in said) == (names in differ), names

"""Whatever is in a file, a flag or an argument: one sentence that names cause and fix, or a result.

Every file that a program reads is damaged by chance, and read by what reads it; every flag of every
program, every field of the config and every argument of the Python entries gets odd values. A file
that has a digest is read as it was, or not at all. `make test` tries more than 500 inputs, the
drills more than 5,000: their numbers are in the names of the tests.
"""

import importlib.util

import jax
import numpy as np
import pytest
from fuzzed import outcome, tries
from hypothesis import given
from mutations import damaged

DRILL_ALSO = ('armd_jax/*.py', 'tests/fuzz/*.py')

NAMES = (
  'config.json', 'text.json', 'metrics.jsonl', 'results.json', 'base_scores.json', 'scores.json',
  'decoding.json', 'verdict.json', 'samples.json', 'texts.jsonl', 'texts.csv', 'texts.parquet',
  'texts.txt', 'texts.txt.gz', 'texts.txt.zst', 'rows.json', 'asked.jsonl', 'stories.txt',
  'stories.csv', 'journal', 'config.json of GPT-2', 'tokenizer.json', 'added_tokens.json',
  'vocab.json', 'config.json of Llama', 'tokenizer.json of Llama', 'model.safetensors',
  'model.gguf', 'index.json', 'records.json', 'rows.jsonl', 'lock', 'plan.json', 'checkpoint.json',
  'checkpoint', 'export.json', 'export', 'export.safetensors', 'about.json', 'weights.npz',
  'manifest.json', 'array_record', 'part.json', 'checked',
)  # fmt: skip


def try_files(file, count):
  good = file.path.read_bytes()
  expected = file.read()  # the whole file is read

  @tries(count)
  @given(data=damaged(good, file.is_json))
  def check(data):
    file.path.write_bytes(data)
    found = outcome(file.read)
    if file.is_sealed and found is not None:
      jax.tree.map(np.testing.assert_array_equal, found, expected)

  try:
    check()
  finally:
    file.path.write_bytes(good)


HAS_GGUF = importlib.util.find_spec('gguf')
PARAMS = [
  pytest.param(name, marks=[pytest.mark.skipif(not HAS_GGUF, reason='needs the package gguf')])
  if name == 'model.gguf'
  else name
  for name in NAMES
]


def test_every_file_is_tried(files):
  assert set(files) == set(NAMES) - ({'model.gguf'} if not HAS_GGUF else set())


@pytest.mark.parametrize('name', PARAMS)
def test_10_files(files, name):
  try_files(files[name], 10)


@pytest.mark.drill
@pytest.mark.parametrize('name', PARAMS)
def test_100_files(files, name):
  try_files(files[name], 100)

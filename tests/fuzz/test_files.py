"""Whatever is in a file, a flag or an argument: one sentence that names cause and fix, or a result.

Every file that a program reads is damaged by chance, and read by what reads it; every flag of every
program, every field of the config and every argument of the Python entries gets odd values. What a
file says of itself by a digest comes back as it was, or not at all. `make test` tries 500 inputs,
the drills 5,000: their numbers are in the names of the tests.
"""

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
  'texts.txt', 'journal', 'config.json of GPT-2', 'tokenizer.json', 'added_tokens.json',
  'model.safetensors', 'index.json', 'lock', 'plan.json', 'checkpoint.json', 'export.json',
  'export.safetensors', 'about.json', 'manifest.json', 'array_record', 'part.json',
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


def test_every_file_is_tried(files):
  assert sorted(files) == sorted(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_10_files(files, name):
  try_files(files[name], 10)


@pytest.mark.drill
@pytest.mark.parametrize('name', NAMES)
def test_100_files(files, name):
  try_files(files[name], 100)

"""Every flag, field and argument with odd values: see `test_files.py`."""

import dataclasses
import importlib
import json
import pathlib
import resource
import shutil

import pytest
import test_flags
from fuzzed import of_name, outcome, tries
from hypothesis import given
from hypothesis import strategies as st
from mutations import ODD, WORDS

import armd_jax
from armd_jax import config as config_lib
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.decode import requests
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError
from armd_jax.evaluation import suites

DRILL_ALSO = ('armd_jax/*.py', 'armd_jax/bench/*.py', 'armd_jax/data/prepare.py', 'tests/fuzz/*.py')

FIELDS = [name for name, _ in config_lib.fields()]


def try_flags(count):
  programs = [
    of_name(name)
    for name in test_flags.PROGRAMS
    if hasattr(importlib.import_module(name), 'Options')
  ]
  every = [(p, f.name) for p in programs for f in dataclasses.fields(p.options)]
  every += [(p, f'config.{name}') for p in programs if 'config' in p.good for name in FIELDS[::7]]

  @tries(count)
  @given(which=st.sampled_from(every), word=st.sampled_from(WORDS))
  def check(which, word):
    program, name = which
    found = outcome(lambda: program.parse(**{name: word}))
    assert found is None or isinstance(found, program.options)

  check()


def test_100_flags():
  try_flags(100)


@pytest.mark.drill
def test_1000_flags():
  try_flags(1000)


def try_fields(count):
  @tries(count)
  @given(name=st.sampled_from(FIELDS), value=st.sampled_from(ODD))
  def check(name, value):
    *sections, last = name.split('.')
    raw = {last: value}
    for section in reversed(sections):
      raw = {section: raw}
    found = outcome(lambda: config_lib.parse(raw))
    if found is not None:  # and what is written is read again
      written = json.loads(json.dumps(config_lib.to_dict(found)))
      assert config_lib.parse_file(written, 'config.json') == found

  check()


def test_40_fields():
  try_fields(40)


@pytest.mark.drill
def test_400_fields():
  try_fields(400)


# Of another process, which would be started or waited for.
ELSEWHERE = ('cluster', 'coordinator', 'num_processes', 'process_id', 'devices_per_process')


def try_calls(programs, count):
  every = [(p, f.name) for p in programs for f in dataclasses.fields(p.options)]
  every = [(p, name) for p, name in every if name not in ELSEWHERE]

  @tries(count)
  @given(which=st.sampled_from(every), word=st.sampled_from(WORDS))
  def check(which, word):
    program, name = which
    main = importlib.import_module(program.name).main
    outcome(lambda: main(program.parse(**{name: word})))
    shutil.rmtree('converted', ignore_errors=True)

  check()


def test_40_calls(programs):
  try_calls(programs, 40)


@pytest.mark.drill
def test_400_calls(programs):
  try_calls(programs, 400)


def try_arguments(files, count):
  tokenizer, exported = ByteTokenizer(), str(files['export.json'].path.parent)
  model = armd_jax.load(exported)
  arguments = ('prompt', 'streams', 'count', 'seed', 'temperature', 'top_p', 'stop', 'order')
  entries = [('load', None)]
  entries += [('generate', name) for name in (*arguments, 'max_new_tokens')]
  entries += [('logprobs', name) for name in ('text', 'streams', 'order')]
  entries += [('perplexity', 'text'), ('infill', 'template'), ('permutation', None)]
  entries += [('sampling', name) for name in ('seed', 'temperature', 'top_p', 'stop')]
  entries += [('request', None), ('gaps', 'template'), ('gaps', 'gap_tokens')]
  entries += [('suite', name) for name in ('suite', 'orders', 'num_windows')]
  config = dataclasses.replace(
    model.config,
    data=dataclasses.replace(model.config.data, source=str(files['texts.txt'].path)),
  )

  def call(entry, name, value):
    if entry == 'load':
      return armd_jax.load(value)
    if entry == 'generate':
      return model.generate(**{name: value})
    if entry in ('logprobs', 'perplexity', 'infill'):
      text = {'template': 'a ___'} if entry == 'infill' else {'text': 'al'}
      return getattr(model, entry)(**text | {name: value})
    if entry == 'permutation':
      return armd_jax.orders.permutation(value)
    if entry == 'sampling':
      return Sampling(**{name: value}).draws(1)
    if entry == 'request':
      return requests.continue_prompts([value], 16, tokenizer)
    if entry == 'gaps':
      how = {'template': 'a ___', 'gap_tokens': 0} | {name: value}
      return requests.fill_gaps(**how, count=1, num_slots=16, tokenizer=tokenizer)
    how = {'suite': 'likelihood', 'orders': 1, 'num_windows': 1} | {name: value}
    return suites.task_of(given={}, config=config, tokenizer=tokenizer, streams=(2,), **how)

  @tries(count)
  @given(which=st.sampled_from(entries), value=st.sampled_from(ODD))
  def check(which, value):
    outcome(lambda: call(*which, value))

  check()


def test_40_arguments(files):
  try_arguments(files, 40)


@pytest.mark.drill
def test_400_arguments(files):
  try_arguments(files, 400)


def test_a_full_disk_is_a_sentence_and_leaves_nothing(programs, files, capsys):
  """Of every program: what it writes is there as a whole, or as it was."""
  folder = files['scores.json'].path.parent
  there = lambda: {
    path: path.read_bytes() for place in (folder, pathlib.Path()) for path in place.rglob('*')
    if path.is_file()
  }  # fmt: skip
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  for program in programs:
    # One writes nothing itself, the other refuses this run, and saves as training does.
    if program.name in ('armd_jax.sweep', 'armd_jax.convert'):
      continue
    names = {field.name for field in dataclasses.fields(program.options)}
    more = {'json': 'numbers.json'} if 'json' in names else {}
    main, options = importlib.import_module(program.name).main, program.parse(**more)
    before = there()
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
      with pytest.raises(UserError, match=r'^cannot (write|save)[^\n]*\(File too large\)[^\n]*; '):
        main(options)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = there()
    assert {path: left[path] for path in before} == before, program.name
    # A journal is added to as it goes, and its cut-off end is dropped when it is read.
    new = [path for path in left.keys() - before.keys() if path.suffix != '.partial']
    assert not new, program.name

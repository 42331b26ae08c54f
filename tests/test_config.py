"""Configs are checked once, and every refusal says what to write instead."""

import dataclasses
import functools
import math

import numpy as np
import other_values
import pytest

from armd_jax import config
from armd_jax.config import UserError


def test_defaults_are_the_published_small_recipe():
  c = config.parse(config.default_config())
  assert (c.model.num_layers, c.model.embed_dim, c.model.num_heads, c.model.length) == (
    12,
    768,
    12,
    1024,
  )
  assert (c.model.num_two_stream_layers, c.model.mlp_dim, c.model.num_kv_heads) == (6, 3072, 12)
  assert (c.order.ar_steps, c.order.perm_steps, c.order.max_shuffled) == (9_000, 48_000, 32)
  assert (c.train.steps, c.train.batch_size) == (400_000, 512)
  assert config.parse(config.to_dict(c)) == c
  assert hash(c) == hash(dataclasses.replace(c))


@pytest.mark.parametrize(
  ('raw', 'message'),
  [
    ({'modle': {}}, "config has no field 'modle'; write 'model'"),
    ({'model': {'nun_layers': 2}}, "config.model has no field 'nun_layers'; write 'num_layers'"),
    (
      {'model': {'query_seed': 'prefx'}},
      "config.model.query_seed is 'prefx'; write one of 'prefix'",
    ),
    ({'model': {'num_layers': 2.5}}, 'must be of type int'),
    ({'model': {'num_layers': 0}}, 'write a whole number from 1 to 4096'),
    ({'model': {'num_kv_heads': -2}}, 'from 1 to 2147483647, or -1'),
    ({'model': {'num_two_stream_layers': 13}}, 'write 0 to num_layers = 12'),
    ({'model': {'embed_dim': 100}}, 'write a multiple of 24'),
    ({'model': {'num_kv_heads': 5}}, 'write a divisor of num_heads = 12'),
    ({'model': {'head_dim': 7}}, 'head_dim is 7; write an even number'),
    ({'model': {'biases': 'some'}}, "biases is 'some'; write one of 'auto', 'none'"),
    (
      {'model': {'rope_scaling': {'kind': 'llama3', 'high_frequency': 1.0}}},
      'high_frequency is 1.0; write more than low_frequency = 1.0',
    ),
    ({'model': {'position_dim': 7}}, 'write an even number'),
    ({'model': {'dropout': 1.5}}, 'write a number from 0 and below 1'),
    ({'model': {'length': 1, 'first_token': 'given'}}, 'leaves no token to predict'),
    ({'data': {'held_out': 1.0}}, 'held_out is 1.0; write a number above 0 and below 1'),
    ({'order': {'max_shuffled': 2000}}, 'write 0 to model.length = 1024'),
    ({'order': {'perm_steps': 10}}, 'write a later step'),
    (
      {'order': {'strided_start': 0, 'strided_streams': (1025,)}},
      'S = 1025, but of 1024 tokens there are 1 to 1024 streams',
    ),
    ({'order': {'strided_start': 0, 'strided_streams': ()}}, 'strided_streams is empty'),
    ({'order': {'strided_streams': 'x'}}, 'must be a tuple of whole numbers'),
    ({'order': {'strided_streams': (2, 0)}}, 'is (2, 0); write whole numbers from 1 to'),
    ({'train': {'max_not_finite': 0}}, 'write a whole number from 1 to 2147483647'),
    ({'train': {'keep_every': -1}}, 'write a whole number from 0 to'),
    ({'train': {'profile_steps': (3,)}}, 'write the first and the last step of a trace'),
    ({'train': {'profile_steps': (0, 2)}}, 'write whole numbers from 1 to'),
    ({'train': {'profile_steps': (3, 2)}}, 'write the first and the last step of a trace'),
    ({'train': {'profile_steps': (20, 22), 'steps': 9}}, 'write the first and the last step'),
    ({'train': {'accumulation': 3}}, 'write a divisor of batch_size = 512'),
    ({'train': {'eval_streams': (1025,)}}, 'eval_streams holds S = 1025, but of 1024 tokens there'),
    (
      {'model': {'family': 'ar'}, 'train': {'eval_streams': (2,)}},
      "eval_streams is (2,) but config.model.family is 'ar', which has no strided orders",
    ),
    ({'model': {'family': 'ar'}, 'order': {'strided_start': 0}}, 'has no strided orders'),
    (
      {'model': {'family': 'ar'}, 'order': {'uniform_order_prob': 0.5}},
      'left-to-right orders only',
    ),
    (
      {'model': {'family': 'mdlm'}, 'order': {'strided_start': 0}},
      "family is 'mdlm', which has no",
    ),
    ({'model': {'diffusion': {'d3pm_steps': 0}}}, 'd3pm_steps is 0; write a whole number from 1'),
    ({'model': {'diffusion': {'d3pm_aux': -1.0}}}, 'd3pm_aux is -1.0; write a number from 0 to'),
    ({'model': {'diffusion': {'schedule': 'sine'}}}, "write one of 'log_linear', 'cosine'"),
    ({'model': {'family': 'esolm'}, 'order': {'strided_start': 0}}, 'has no strided orders'),
    ({'model': {'diffusion': {'esolm_diffused': 1.5}}}, 'esolm_diffused is 1.5; write a number'),
    ({'model': {'diffusion': {'esolm_split': 1.0}}}, 'esolm_split is 1.0; write a number above 0'),
    ({'model': {'family': 'sedd', 'architecture': 'gpt2'}}, "which has RoPE only; write 'rope'"),
    (
      {'model': {'family': 'bd3lm', 'diffusion': {'block_length': 48}}},
      'block_length is 48, which does not divide config.model.length = 1024; write a divisor',
    ),
    (
      {'model': {'family': 'bd3lm', 'diffusion': {'clip_low': 0.9, 'clip_high': 0.9}}},
      'clip_low is 0.9; write less than clip_high = 0.9',
    ),
    (
      {'model': {'family': 'setdlm', 'diffusion': {'set_size': 4, 'set_reach': 3}}},
      'set_reach is 3; write set_size = 4 to the 1024 tokens',
    ),
    (
      {'model': {'family': 'setdlm', 'length': 6}},
      'set_reach is 8; write set_size = 4 to the 6 tokens',
    ),
    (
      {'model': {'family': 'setdlm', 'length': 6, 'diffusion': {'set_policy': 'blocks'}}},
      'block_length is 4, which does not divide config.model.length = 6',
    ),
    ({'order': {'masking_steps': -1}}, 'masking_steps is -1; write a whole number from 0 to'),
    ({'model': 3}, 'must hold the fields of ModelConfig'),
  ],
)
def test_refusals(raw, message):
  with pytest.raises(UserError, match=r'^config') as error:
    config.parse(raw)
  assert message in str(error.value)
  assert '\n' not in str(error.value)


def test_sets_are_of_their_families_alone():
  wrong = {'block_length': 48, 'clip_low': 0.9, 'clip_high': 0.9, 'set_size': 9}
  found = {
    family: config.parse(
      {'model': {'family': family, 'length': 96, 'diffusion': d}}
    ).model.set_length
    for family, d in (
      ('mdlm', wrong | {'block_length': 7}),
      ('bd3lm', {'block_length': 48, 'set_size': 9}),
      ('setdlm', {'block_length': 7, 'clip_low': 0.9, 'clip_high': 0.9}),
    )
  }
  assert found == {'mdlm': 0, 'bd3lm': 48, 'setdlm': 1}


def test_length_counts_the_given_first_token():
  raw = {'model': {'first_token': 'given', 'length': 1025}, 'order': {'strided_start': 0}}
  assert config.parse(raw).model.num_slots == 1024


def test_an_ar_model_knows_one_order():
  raw = {'model': {'family': 'ar'}, 'order': {'max_shuffled': 8, 'segments_prob': 0.5}}
  found = config.parse(raw).order
  assert (found.max_shuffled, found.segments_prob) == (0, 0)


def test_cuts_follow_the_length_unless_they_are_given():
  cuts = lambda length, **order: (
    config.parse(
      {'model': {'length': length}, 'order': {'max_shuffled': 0, 'segments_prob': 0.5, **order}}
    ).order.segments_cuts
  )
  assert [cuts(length) for length in (1024, 64, 4)] == [128, 8, 1]
  assert cuts(64, segments_cuts=63) == 63
  with pytest.raises(UserError, match='segments_cuts is 64; write less than the 64 tokens'):
    cuts(64, segments_cuts=64)


def nested(name, value):
  """{'a': {'b': value}} of 'a.b'."""
  return functools.reduce(lambda tree, part: {part: tree}, reversed(name.split('.')), value)


NUMBERS = {name: field for name, field in config.fields() if 'range' in field.metadata}


@pytest.mark.parametrize('name', NUMBERS)
def test_every_number_has_a_finite_range(name):
  allowed, default = NUMBERS[name].metadata['range'], NUMBERS[name].default
  assert math.isfinite(allowed.low) and math.isfinite(allowed.high) and allowed.low < allowed.high
  too_small = allowed.low - (1 if isinstance(default, int | tuple) else 1e-3)
  values = [too_small, 2 * allowed.high]
  if isinstance(default, float) or name == 'data.weights':
    values += [math.nan, math.inf, -math.inf, 10**400]
    values += [end for end in (allowed.low, allowed.high) if end not in allowed]
  for value in values:
    if value != default:
      with pytest.raises(UserError, match=rf'^config\.{name} is .*; write '):
        config.parse(nested(name, (value,) if isinstance(default, tuple) else value))


LEFT_OUT = {
  name: field
  for name, field in NUMBERS.items()
  if not isinstance(field.default, int)
  and (field.metadata['range'].without_low or field.metadata['range'].without_high)
}


@pytest.mark.parametrize('name', LEFT_OUT)
def test_an_end_that_is_left_out_is_so_in_float32(name):
  """The step computes with beta1 = 1.0 where 0.99999999 is written."""
  allowed, default = LEFT_OUT[name].metadata['range'], LEFT_OUT[name].default
  refused, fine = [], []
  if allowed.without_low:
    refused += [(1e-60, '0.0'), (1e-40, '0.0')]  # a smaller one than float32 holds; a subnormal one
    fine += [2e-38]
  if allowed.without_high:
    refused += [(0.99999999, '1.0'), (1 - 1e-16, '1.0')]
    fine += [float(np.nextafter(np.float32(1), np.float32(0)))]
  assert fine, name
  for value, seen in refused:
    given = (value,) if isinstance(default, tuple) else value
    match = rf'^config\.{name} is .*{value}.*, which is {seen} in float32; write '
    with pytest.raises(UserError, match=match):
      config.parse(nested(name, given))
  assert all(value in allowed for value in fine)


@pytest.mark.parametrize(
  ('section', 'low', 'high', 'more'),
  [
    ('diffusion', 'clip_low', 'clip_high', {'family': 'bd3lm'}),
    ('rope_scaling', 'low_frequency', 'high_frequency', {'length': 1024}),
  ],
)
def test_two_ends_differ_in_float32(section, low, high, more):
  ends = {low: 0.5, high: 0.50000001} | ({'kind': 'llama3'} if 'rope' in section else {})
  with pytest.raises(UserError, match=r'write (less|more) than'):
    config.parse({'model': more | {section: ends}})
  config.parse({'model': more | {section: ends | {high: 0.5001}}})


def test_a_number_without_a_range_is_no_field():
  with pytest.raises(TypeError, match='needs a lower end'):
    config.field(3)


def test_what_is_compiled_depends_on_every_field_that_is_not_marked():
  """A new field is part of the key until somebody has looked whether the step reads it."""
  base = config.parse({})
  key = config.reset(base, 'host_only')
  for name, field, other in other_values.one_by_one(base):
    assert other != base
    assert (config.reset(other, 'host_only') == key) == field.metadata['host_only'], name

"""GPT-2's weights compute what GPT-2 computes; what is no GPT-2 is refused in one sentence."""

import functools
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from tiny_gpt2 import N, V, arrays, reference, write

from armd_jax import models
from armd_jax.decode.generate import generate, task_of
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError
from armd_jax.models import gpt2
from armd_jax.models.vocabulary import BOS
from armd_jax.order import left_to_right

TOKENS = np.random.RandomState(1).randint(V, size=(3, N))


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  """A model and its parameters, from a file whose names have the prefix and the constants."""
  extra = {
    'h.0.attn.bias': np.tri(N, dtype=np.float32)[None, None],
    'h.1.attn.bias': np.tri(N, dtype=bool)[None, None],
    'h.1.attn.masked_bias': np.full((), -1e4, np.float32),
  }
  named = {f'transformer.{name}': x for name, x in (arrays() | extra).items()}
  folder = write(tmp_path_factory.mktemp('gpt2'), named)
  config, vocab_size, params = gpt2.load(folder)
  assert (vocab_size, config.family, config.architecture, config.length) == (V, 'ar', 'gpt2', N)
  return config, params


@functools.cache
def compiled(config):
  model = models.build(config, V)

  @jax.jit
  def run(params, first_B, tokens_BxN):
    hidden = model.apply({'params': params}, tokens_BxN, left_to_right(N), first_B)
    return model.apply({'params': params}, hidden, method='logits')[..., :V]

  return run


def logits(config, params, first, tokens_BxN):
  return np.asarray(compiled(config)(params, np.full(len(tokens_BxN), first), tokens_BxN))


def test_logits_are_gpt2s(loaded):
  """Row n reads the first token and n others; BOS is the last id of the vocabulary."""
  found = logits(*loaded, BOS, TOKENS)
  for ids_N, found_NxV in zip(TOKENS, found, strict=True):
    expected = reference(arrays(), np.append(V - 1, ids_N[:-1]))
    np.testing.assert_allclose(found_NxV, expected, atol=1e-4)
  expected = reference(arrays(), np.append(3, TOKENS[0, :-1]))
  np.testing.assert_allclose(logits(*loaded, 3, TOKENS)[0], expected, atol=1e-4)


@pytest.mark.parametrize(
  ('described', 'first'),
  [({'bos_token_id': 3}, 3), ({'bos_token_id': 50256}, V - 1), ({}, V - 1)],
)
def test_texts_begin_as_its_config_says(tmp_path, described, first):
  """And not with the last id, which may be one for padding that somebody added."""
  *_, params = gpt2.load(write(tmp_path, arrays(), **described))
  np.testing.assert_array_equal(params['vocabulary']['bos'], arrays()['wte.weight'][first])


def test_an_id_that_begins_texts_is_one_of_the_vocabulary(tmp_path):
  with pytest.raises(UserError, match=rf'says bos_token_id = {V}, no id below {V}; fetch it anew'):
    gpt2.load(write(tmp_path, arrays(), bos_token_id=V))


def test_logits_are_those_of_transformers(loaded, tmp_path):
  reason = 'compares with transformers, which is not installed (the extra "judge" brings it)'
  torch = pytest.importorskip('torch', reason=reason)
  transformers = pytest.importorskip('transformers', reason=reason)
  theirs = transformers.GPT2LMHeadModel.from_pretrained(write(tmp_path, arrays())).eval()
  ids = np.append(np.full((3, 1), 3), TOKENS[:, :-1], axis=1)
  with torch.no_grad():
    expected = theirs(torch.tensor(ids)).logits.numpy()
  np.testing.assert_allclose(logits(*loaded, 3, TOKENS), expected, atol=1e-4)


def test_cached_decoding_is_the_same_model(loaded):
  """The most likely text, token by token, is what the full pass calls most likely."""
  config, params = loaded
  given = np.zeros((2, N), bool)
  given[:, :2] = True
  found = generate(
    models.build(config, V), params, task_of(given, np.full(2, N), 1), TOKENS[:2],
    Sampling(temperature=0.0),
  ).tokens_BxN  # fmt: skip
  for ids_N in np.asarray(found):
    best = reference(arrays(), np.append(V - 1, ids_N[:-1])).argmax(-1)
    np.testing.assert_array_equal(ids_N[2:], best[2:])


def test_what_is_no_gpt2_is_refused(tmp_path):
  def refuses(message, arrays=arrays(), **described):  # noqa: B008
    with pytest.raises(UserError, match=message) as caught:
      gpt2.load(write(tmp_path, arrays, **described))
    assert '\n' not in str(caught.value)

  lacking = {name: x for name, x in arrays().items() if name != 'h.1.mlp.c_fc.bias'}
  refuses(r'lacks h.1.mlp.c_fc.bias of shape \(64,\), which config.json says; take both', lacking)
  refuses(r'has \(13, 16\) for wte.weight of shape \(14, 16\)', vocab_size=14)
  refuses(r'holds h.1.attn.c_attn.bias, which GPT-2 has not', n_layer=1)
  refuses("model_type 'gpt2'; name the folder of a GPT-2", model_type='llama')
  refuses("says activation_function = 'relu', but only 'gelu_new'", activation_function='relu')
  refuses('says n_inner = 65, but only None or 64 is known', n_inner=65)
  refuses('says n_ctx = 4, but only 8', n_ctx=4)
  refuses('says add_cross_attention = True', add_cross_attention=True)
  refuses('says quantization_config = .*, which is not known', quantization_config={'bits': 4})
  head = {'lm_head.weight': arrays()['wte.weight'] + 1}
  refuses('a lm_head.weight of its own', arrays() | head)
  for name, x in {
    'bias': np.ones((1, 1, N, N), np.float32), 'masked_bias': np.zeros((), np.float32),
  }.items():  # fmt: skip
    refuses(
      f"holds a h.1.attn.{name} that is not GPT-2's causal mask", arrays() | {f'h.1.attn.{name}': x}
    )
  refuses(r'holds h.2.attn.bias, which', arrays() | {'h.2.attn.bias': np.ones((1, 1, N, N))})
  refuses('holds wte.weight twice', arrays() | {'transformer.wte.weight': arrays()['wte.weight']})
  refuses('wte.weight as int8', arrays() | {'wte.weight': arrays()['wte.weight'].astype(np.int8)})
  refuses('has no whole number n_head', n_head=None)
  write(tmp_path, arrays())
  whole = (tmp_path / 'model.safetensors').read_bytes()
  (tmp_path / 'model.safetensors').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match='fetch it anew'):
    gpt2.load(tmp_path)
  with pytest.raises(UserError, match='cannot read'):
    gpt2.load(tmp_path / 'nowhere')


def close(folder, arrays=arrays(), atol=1e-4):  # noqa: B008
  config, _, params = gpt2.load(folder)
  expected = reference(arrays, np.append(V - 1, TOKENS[0, :-1]))
  np.testing.assert_allclose(logits(config, params, BOS, TOKENS[:1])[0], expected, atol=atol)


@pytest.mark.parametrize(
  'described',
  [
    {'n_inner': 64, 'activation_function': 'gelu_pytorch_tanh'},
    {'n_ctx': N, 'activation_function': 'gelu_fast', 'n_inner': None, 'attn_pdrop': 0.1},
    {'pruned_heads': {}, 'torch_dtype': 'float16', 'id2label': {'0': 'a'}, 'use_cfg': False},
  ],
)
def test_the_same_model_in_other_words(tmp_path, described):
  close(write(tmp_path, arrays() | {'lm_head.weight': arrays()['wte.weight']}, **described))


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_other_types(tmp_path, dtype):
  """The logits of the weights as they are rounded."""
  rounded = {name: x.astype(dtype) for name, x in arrays().items()}
  close(write(tmp_path, rounded), {name: x.astype(np.float32) for name, x in rounded.items()})


def shards(folder, **changes):
  """The checkpoint in two files and an index."""
  names = sorted(arrays())
  file_of = {name: f'model-0000{1 + i % 2}-of-00002.safetensors' for i, name in enumerate(names)}
  write(folder, arrays())
  (folder / 'model.safetensors').unlink()
  for file in set(file_of.values()):
    part = {name: arrays()[name] for name in names if file_of[name] == file}
    safetensors.numpy.save_file(part, folder / file)
  index = {'metadata': {}, 'weight_map': file_of | changes}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  return folder


def test_shards_are_one_model(tmp_path):
  assert gpt2.is_gpt2(shards(tmp_path))
  close(tmp_path)


def test_shards_that_do_not_fit(tmp_path):
  def refuses(message, **changes):
    with pytest.raises(UserError, match=message):
      gpt2.load(shards(tmp_path, **changes))

  refuses('do not agree about wpe.weight', **{'wpe.weight': 'model-00002-of-00002.safetensors'})
  refuses('do not agree about other', other='model-00001-of-00002.safetensors')
  refuses('names .* which is no file beside it', **{'wpe.weight': '../model.safetensors'})
  refuses('cannot read .*absent', **{'wpe.weight': 'absent'})
  shards(tmp_path)
  for text in ('{', '[]', '{"weight_map": 1}', '[' * 99_999):
    (tmp_path / 'model.safetensors.index.json').write_text(text)
    with pytest.raises(UserError, match=r'index.json is damaged .*; fetch it anew$'):
      gpt2.load(tmp_path)


def test_an_adapter_beside_the_weights_is_not_ignored(tmp_path):
  write(tmp_path, arrays())
  (tmp_path / 'adapter_config.json').write_text('{}')
  with pytest.raises(UserError, match='would change the model; merge it'):
    gpt2.load(tmp_path)


def test_every_part_matters(loaded):
  """A position table, a norm's bias or a layer's bias that is left out would change the logits."""
  config, params = loaded
  base = logits(config, params, BOS, TOKENS)
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    if 'bias' in name or 'positions' in name:
      changed = jax.tree_util.tree_map_with_path(
        lambda p, x, path=path: np.zeros_like(x) if p == path else x, params
      )
      assert np.abs(logits(config, changed, BOS, TOKENS) - base).max() > 1e-3, name

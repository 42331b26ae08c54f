"""Weights of Llama's family compute what they compute elsewhere; others are refused."""

import functools
import json
import sys
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_gguf
import tiny_llama
from tiny_llama import KINDS, N, V, arrays, reference, write

from armd_jax import models
from armd_jax.data import gguf_vocabulary
from armd_jax.decode.generate import generate, task_of
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError
from armd_jax.models import conversion, gguf_file, llama
from armd_jax.models.vocabulary import BOS
from armd_jax.order import left_to_right

TOKENS = np.random.RandomState(1).randint(V, size=(3, N))
FIRST = 1  # the id that begins a text
REASON = 'compares with transformers, which is not installed (the extra "judge" brings it)'


@functools.cache
def compiled(config):
  model = models.build(config, V)

  @jax.jit
  def run(params, first_B, tokens_BxN):
    hidden = model.apply({'params': params}, tokens_BxN, left_to_right(N), first_B)
    return model.apply({'params': params}, hidden, method='logits')[..., :V]

  return run


def logits(config, params, first=BOS, tokens_BxN=TOKENS):
  return np.asarray(compiled(config)(params, np.full(len(tokens_BxN), first), tokens_BxN))


def expected(kind, arrays, first=FIRST):
  return np.stack([reference(kind, arrays, np.append(first, ids[:-1])) for ids in TOKENS])


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  """Config and parameters of a kind."""

  @functools.cache
  def of(kind):
    config, vocab_size, params = llama.load(write(tmp_path_factory.mktemp(kind), kind), N)
    assert vocab_size == V and config.family == 'ar'
    return config, params

  return of


@pytest.mark.parametrize('kind', KINDS)
def test_logits(loaded, kind):
  """Row n reads the first token and n others; BOS is the id that config.json begins texts with."""
  np.testing.assert_allclose(logits(*loaded(kind)), expected(kind, arrays(kind)), atol=1e-4)
  other = expected(kind, arrays(kind), first=3)
  np.testing.assert_allclose(logits(*loaded(kind), first=3), other, atol=1e-4)


@pytest.mark.parametrize('kind', KINDS)
def test_a_warm_start_predicts_the_same(loaded, kind):
  config, params = loaded(kind)
  new_config, new_params = conversion.warm_start(config, V, params, 1)
  fresh = jax.eval_shape(lambda: models.init(models.build(new_config, V), jax.random.key(0)))
  assert jax.tree.map(jnp.shape, new_params) == jax.tree.map(jnp.shape, fresh)
  np.testing.assert_allclose(
    logits(new_config, new_params), expected(kind, arrays(kind)), atol=1e-4
  )


@pytest.mark.parametrize('kind', KINDS)
def test_cached_decoding_is_the_same_model(loaded, kind):
  """The most likely text, token by token, is what the full pass calls most likely."""
  config, params = loaded(kind)
  given = np.zeros((2, N), bool)
  given[:, :2] = True
  task = task_of(given, np.full(2, N), 1)
  found = generate(models.build(config, V), params, task, TOKENS[:2], Sampling(temperature=0.0))
  for ids_N in np.asarray(found.tokens_BxN):
    best = reference(kind, arrays(kind), np.append(FIRST, ids_N[:-1])).argmax(-1)
    np.testing.assert_array_equal(ids_N[2:], best[2:])


@pytest.mark.parametrize('kind', KINDS)
def test_transformers_computes_the_same(kind, tmp_path):
  """Logits and greedy tokens of a model that transformers makes and writes, in shards."""
  torch = pytest.importorskip('torch', reason=REASON)
  transformers = pytest.importorskip('transformers', reason=REASON)
  (tmp_path / 'made').mkdir()
  model = transformers.AutoModelForCausalLM.from_pretrained(
    write(tmp_path / 'made', kind), dtype=torch.float32
  ).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(0))
  model.save_pretrained(tmp_path / 'saved', max_shard_size='20KB')
  assert len(list((tmp_path / 'saved').glob('model-*.safetensors'))) > 1
  config, _, params = llama.load(tmp_path / 'saved', N)
  ids = torch.tensor(np.append(np.full((3, 1), FIRST), TOKENS, axis=1))
  with torch.no_grad():
    theirs = model(ids[:, :-1]).logits.numpy()
    texts = model.generate(
      ids[:, :4], max_new_tokens=N - 3, min_new_tokens=N - 3, do_sample=False, eos_token_id=None,
      pad_token_id=0,
    )  # fmt: skip
  np.testing.assert_allclose(logits(config, params), theirs, atol=1e-4)
  given = np.broadcast_to(np.arange(N) < 3, (3, N))
  task = task_of(given, np.full(3, N), 1)
  found = generate(models.build(config, V), params, task, TOKENS, Sampling(temperature=0.0))
  np.testing.assert_array_equal(found.tokens_BxN, texts[:, 1:].numpy())


@pytest.mark.parametrize('kind', ['biases', 'qwen2', 'qwen3', 'llama2'])
def test_every_array_matters(loaded, kind):
  """A bias, a norm or a head that is left out would change the logits."""
  config, params = loaded(kind)
  base = logits(config, params)
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    changed = jax.tree_util.tree_map_with_path(
      lambda p, x, path=path: x + 0.3 * np.arange(x.size).reshape(x.shape) / x.size
      if p == path else x, params
    )  # fmt: skip
    name = jax.tree_util.keystr(path)
    assert np.abs(logits(config, changed) - base).max() > 1e-3, name


@pytest.mark.parametrize(
  ('kind', 'changes'),
  [
    ('llama2', {'rope_theta': 500.0}),
    ('llama2', {'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}}),
    ('llama3', {'rope_parameters': tiny_llama._LLAMA3 | {'factor': 4.0, 'rope_theta': 500.0}}),
    ('llama2', {'rms_norm_eps': 0.5}),
    ('llama2', {'bos_token_id': None}),
  ],
)
def test_every_number_of_config_json_matters(loaded, kind, changes, tmp_path):
  config, _, params = llama.load(write(tmp_path, kind, **changes), N)
  assert np.abs(logits(config, params) - logits(*loaded(kind))).max() > 1e-3


def test_weights_of_other_types_and_names(tmp_path):
  """float16 and bfloat16; files without the prefix; frequencies that older files keep; N."""
  for dtype in (np.float16, ml_dtypes.bfloat16):
    rounded = {name: x.astype(dtype) for name, x in arrays('llama2').items()}
    others = {'layers.0.self_attn.rotary_emb.inv_freq': np.ones(4, np.float32)}
    plain = {name.removeprefix('model.'): x for name, x in rounded.items()} | others
    config, _, params = llama.load(write(tmp_path, 'llama2', plain), N)
    as_read = {name: x.astype(np.float32) for name, x in rounded.items()}
    np.testing.assert_allclose(logits(config, params), expected('llama2', as_read), atol=1e-4)
  assert llama.load(tmp_path, 0)[0].length == 64


def test_what_is_not_known_is_refused(tmp_path):
  def refuses(message, kind='llama2', arrays=None, length=N, **changes):
    with pytest.raises(UserError, match=message) as caught:
      llama.load(write(tmp_path, kind, arrays, **changes), length)
    assert '\n' not in str(caught.value)

  refuses(
    "model_type = 'gemma3_text', which is not known here; name a model of", model_type='gemma3_text'
  )
  refuses("rope_scaling = 'yarn', which is not known", rope_scaling={'type': 'yarn', 'factor': 2.0})
  refuses("lacks factor of rope_scaling 'linear'", rope_scaling={'type': 'linear'})
  refuses("says rope_scaling = '3', no dict", rope_scaling=3)
  refuses(r"rope_scaling = \['x'\], which is not known", rope_scaling={'rope_type': ['x']})
  refuses(r"partial_rotary_factor = 0\.5, but only 1\.0 is known here; name another",
          rope_parameters={'rope_type': 'default', 'partial_rotary_factor': 0.5})  # fmt: skip
  refuses('says beta of rope_scaling', rope_scaling={'type': 'linear', 'factor': 2.0, 'beta': 1})
  refuses("hidden_act = 'gelu', but only 'silu'", hidden_act='gelu')
  refuses('says quantization_config = .*, which is not known', quantization_config={'bits': 4})
  refuses('mlp_bias without attention_bias', mlp_bias=True)
  refuses(r'--length is 65, but .* is made for 64 tokens', length=65)
  refuses('sliding_window = 8, .* write --length=8 or less', kind='mistral', sliding_window=8)
  refuses('sliding_window = 0, .*; name another model', kind='mistral', sliding_window=0)
  refuses("layer_types with 'linear_attention'", layer_types=['linear_attention'])
  refuses('has no whole number hidden_size', hidden_size=None)
  refuses('hidden_size = 30, which 4 heads', hidden_size=30)
  refuses('config.model.num_heads is 0; write a whole', num_attention_heads=0)
  refuses('num_kv_heads is 3; write a divisor', num_key_value_heads=3)
  refuses('bos_token_id = 15, no id below 15', bos_token_id=15)
  all_of = arrays('llama2')
  name = 'model.layers.1.mlp.up_proj.weight'
  refuses(r'lacks layers.1.mlp.up_proj.weight of shape \(48, 32\), which config.json says',
          arrays={n: x for n, x in all_of.items() if n != name})  # fmt: skip
  refuses(r'has \(32, 48\) for layers.1.mlp.up_proj', arrays=all_of | {name: all_of[name].T.copy()})
  refuses('holds layers.2.mlp.gate.weight, which is not known',
          arrays=all_of | {'model.layers.2.mlp.gate.weight': np.ones(3)})  # fmt: skip
  refuses('a lm_head.weight of its own', tie_word_embeddings=True)
  refuses('q_proj.bias', attention_bias=True)
  with pytest.raises(UserError, match=r'cannot read .*; name a folder with the config.json'):
    llama.load(tmp_path / 'nowhere', N)


def test_a_mistral_that_names_no_window_has_that_of_transformers(tmp_path):
  write(tmp_path, 'mistral', max_position_embeddings=2**15)
  assert llama.load(tmp_path, 4097)[0].length == 4097  # it is null there
  described = json.loads((tmp_path / 'config.json').read_text())
  del described['sliding_window']
  (tmp_path / 'config.json').write_text(json.dumps(described))
  assert llama.load(tmp_path, 4096)[0].length == 4096
  with pytest.raises(UserError, match=r'sliding_window = 4096, .* write --length=4096 or less'):
    llama.load(tmp_path, 4097)


def test_half_a_shard_is_refused(tmp_path):
  write(tmp_path, 'llama2')
  all_of = arrays('llama2')
  parts = {f'model-{part}.safetensors': sorted(all_of)[part::2] for part in range(2)}
  for file, names in parts.items():
    safetensors.numpy.save_file({name: all_of[name] for name in names}, tmp_path / file)
  index = {'weight_map': {name: file for file, names in parts.items() for name in names}}
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
  (tmp_path / 'model.safetensors').unlink()
  config, _, params = llama.load(tmp_path, N)
  np.testing.assert_allclose(logits(config, params), expected('llama2', all_of), atol=1e-4)
  whole = (tmp_path / 'model-1.safetensors').read_bytes()
  (tmp_path / 'model-1.safetensors').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=r'cannot read .*model-1.safetensors .*; fetch it anew'):
    llama.load(tmp_path, N)
  (tmp_path / 'model-1.safetensors').unlink()
  with pytest.raises(UserError, match=r'cannot read .*model-1.safetensors .*; fetch it anew'):
    llama.load(tmp_path, N)


# ----- GGUF


@pytest.mark.parametrize('kind', ['llama2', 'smollm2', 'qwen2', 'qwen3'])
def test_gguf_is_the_same_model(kind, tmp_path):
  tiny_gguf.write(tmp_path / 'model.gguf', kind)
  for path in (tmp_path, tmp_path / 'model.gguf'):
    config, vocab_size, params = llama.load(path, N)
    assert vocab_size == V
  np.testing.assert_allclose(logits(config, params), expected(kind, arrays(kind)), atol=1e-4)
  whole = (tmp_path / 'model.gguf').read_bytes()
  (tmp_path / 'model.gguf').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=r'cannot read .*model.gguf .*; '):
    llama.load(tmp_path, N)
  (tmp_path / 'other.gguf').write_bytes(whole)
  with pytest.raises(UserError, match='holds 2 files of GGUF; write the name of one'):
    llama.load(tmp_path, N)


def test_names_and_vocabularies_of_gguf_that_are_not_known(tmp_path):
  path = tmp_path / 'a.gguf'
  for name in ('blk.0.strange.weight', 'rope_freqs.weight'):
    with pytest.raises(UserError, match=rf'a.gguf holds {name}, which is not known here; '):
      gguf_file._name(path, name)
  assert gguf_file._name(path, 'blk.1.attn_q.weight') == 'layers.1.self_attn.q_proj.weight'
  of = lambda kind, **more: {'tokenizer.ggml.model': kind, 'tokenizer.ggml.pre': 'smollm'} | more
  message = r"a vocabulary of the kind 'llama', .*; put the model's tokenizer.json beside it"
  with pytest.raises(UserError, match=message):
    gguf_vocabulary.tokenizer_json(path, of('llama'))
  some = of('gpt2', **{'tokenizer.ggml.tokens': ['a', 'b'], 'tokenizer.ggml.merges': ['a c']})
  with pytest.raises(UserError, match=r'holds no whole vocabulary \(.*\); fetch it anew'):
    gguf_vocabulary.tokenizer_json(path, some)
  with pytest.raises(UserError, match=r'holds no whole vocabulary \(.*\); fetch it anew'):
    gguf_vocabulary.tokenizer_json(path, of('gpt2'))


@pytest.mark.parametrize(('heads', 'rows'), [(5, 32), (3, 6), (None, 32), ('x', 32), (0, 32)])
def test_heads_of_gguf_that_do_not_divide(heads, rows, monkeypatch, tmp_path):
  tensor = types.SimpleNamespace(name='blk.0.attn_q.weight')
  reader = types.SimpleNamespace(tensors=[tensor])
  found = {'general.architecture': 'llama', 'llama.attention.head_count': heads}
  monkeypatch.setattr(gguf_file, 'fields', lambda path: (path, found, reader))
  monkeypatch.setattr(gguf_file, '_dequantized', lambda *_: np.ones((rows, 32), np.float32))
  if heads == 3:  # six rows are three heads of two
    assert gguf_file.read(tmp_path)[1]['vocab_size'] == 0
    return
  with pytest.raises(UserError, match=r'of shape \(32, 32\), which .* heads do not divide; name a'):
    gguf_file.read(tmp_path)


def test_an_array_of_gguf_that_the_library_cannot_read(monkeypatch, tmp_path):
  def refuse(*_):
    raise NotImplementedError('IQ9 is not known')

  monkeypatch.setitem(sys.modules, 'gguf', types.SimpleNamespace(dequantize=refuse))
  tensor = types.SimpleNamespace(name='blk.0.attn_q.weight', data=None, tensor_type=99, shape=(1,))
  message = r'cannot read blk.0.attn_q.weight of .* \(IQ9 is not known\); name a folder'
  with pytest.raises(UserError, match=message):
    gguf_file._dequantized(tmp_path / 'a.gguf', tensor)

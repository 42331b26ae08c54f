"""What `export --hf` writes is, for transformers and for us, the model that it was."""

import functools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
import tiny_gpt2
import tiny_llama
import tiny_run
from models import test_llama

from armd_jax import config as config_lib
from armd_jax import export, models
from armd_jax.artifacts import hugging_face, plain_models, starts
from armd_jax.artifacts.standalone import Export
from armd_jax.config import Config, DataConfig, OrderConfig
from armd_jax.data import tokenizer_json
from armd_jax.data.tokenizers import get_tokenizer
from armd_jax.decode.generate import generate, task_of
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError
from armd_jax.models import gpt2, llama
from armd_jax.order import to_text

N, V = tiny.NUM_SLOTS, 257


def written(folder, model, params, tokenizer='bytes'):
  """The folder of a model."""
  config = Config(model=model, order=OrderConfig(max_shuffled=0), data=DataConfig())
  out = folder / 'out'
  hugging_face.write(out, Export(config, get_tokenizer(tokenizer), 'ema', 3, ''), params, '# card')
  return out


def opened(folder):
  """The model that transformers makes of a folder, by its automatic class."""
  pytest.importorskip('torch', reason=test_llama.REASON)
  transformers = pytest.importorskip('transformers', reason=test_llama.REASON)
  import torch

  model, loading = transformers.AutoModelForCausalLM.from_pretrained(
    folder, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
  )
  assert not any(loading[name] for name in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
  return torch, model.eval()


def random_params(model, vocab_size=V):
  """Far from initialisation, biases included."""
  _, params = tiny.init(model, vocab_size)
  rng = np.random.RandomState(0)
  return jax.tree.map(lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32), params)


@functools.cache
def compiled(config, vocab_size):
  model = models.build(config, vocab_size)

  @jax.jit
  def run(params, tokens_BxN, order):
    """In text order."""
    hidden = model.apply({'params': params}, tokens_BxN, order)
    logits = model.apply({'params': params}, hidden, method='logits')[..., :vocab_size]
    return jax.vmap(to_text, (2, None), 2)(logits, order)

  return run


# ----- AR


@pytest.mark.parametrize('kind', tiny_llama.KINDS)
def test_there_and_back(kind, tmp_path):
  """Every array of a checkpoint comes out as it went in."""
  config, vocab_size, params = llama.load(tiny_llama.write(tmp_path, kind), tiny_llama.N)
  plain = plain_models.of(config, params, vocab_size)
  arrays = tiny_llama.arrays(kind)
  assert plain.bos_id == 1 and plain.arrays.keys() == arrays.keys()
  for name, x in arrays.items():
    np.testing.assert_array_equal(plain.arrays[name], x, err_msg=name)
  again = tmp_path / 'again'
  again.mkdir()
  tiny_llama.write(again, kind, plain.arrays, **plain.described | {'bos_token_id': 1})
  assert llama.load(again, tiny_llama.N)[0] == config


def test_gpt2_there_and_back(tmp_path):
  arrays = tiny_gpt2.arrays()
  config, vocab_size, params = gpt2.load(tiny_gpt2.write(tmp_path, arrays))
  plain = plain_models.of(config, params, vocab_size)
  assert plain.bos_id == tiny_gpt2.V - 1
  assert {f'transformer.{name}' for name in arrays} == plain.arrays.keys()
  for name, x in arrays.items():
    np.testing.assert_array_equal(plain.arrays[f'transformer.{name}'], x, err_msg=name)


LLAMA = dict(
  family='ar', mlp='swiglu', num_kv_heads=2, num_layers=2, length=N,
  rope_scaling={'kind': 'llama3', 'factor': 4.0, 'original_length': 16},
)  # fmt: skip


@pytest.mark.parametrize(
  ('changes', 'kind'),
  [
    (LLAMA | {'tied_head': False, 'biases': 'all', 'head_dim': 12}, 'LlamaForCausalLM'),
    (LLAMA | {'biases': 'query_key_value'}, 'Qwen2ForCausalLM'),
    (LLAMA | {'query_key_norm': True, 'tied_head': False}, 'Qwen3ForCausalLM'),
    (dict(family='ar', architecture='gpt2', num_layers=2, mlp_dim=48), 'GPT2LMHeadModel'),
    (dict(family='ar', num_layers=2), 'ArmdForCausalLM'),
  ],
)
def test_an_ar_model_is_the_class_that_it_is(changes, kind, tmp_path):
  """A trained one, whose BOS is no id's vector: one more id is, which is never generated."""
  config = tiny.model_config(**changes)
  params = random_params(config)
  folder = written(tmp_path, config, params)
  assert json.loads((folder / 'config.json').read_text())['architectures'] == [kind]
  assert (folder / 'modeling_armd.py').exists() == (kind == 'ArmdForCausalLM')
  torch, theirs = opened(folder)
  tokens = np.random.RandomState(1).randint(V, size=(2, N))
  expected = compiled(config, V)(params, tokens, tiny.orders()['left_to_right'])
  bos = theirs.config.bos_token_id
  ids = torch.tensor(np.append(np.full((2, 1), bos), tokens[:, :-1], axis=1))
  with torch.no_grad():
    found = theirs(ids).logits[..., :V].numpy()
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
  given = np.broadcast_to(np.arange(N) < 3, (2, N))
  task = task_of(given, np.full(2, N), 1)
  ours = generate(models.build(config, V), params, task, tokens, Sampling(temperature=0.0))
  texts = theirs.generate(
    ids[:, :4], max_length=N if kind.startswith('Armd') else N + 1, do_sample=False,
    eos_token_id=None, pad_token_id=0,
  )  # fmt: skip
  np.testing.assert_array_equal(texts[:, 1:].numpy(), ours.tokens_BxN)


# ----- ARMD

WARM_LLAMA = LLAMA | {
  'family': 'armd', 'query_seed': 'warm', 'num_two_stream_layers': 1, 'biases': 'query_key_value',
  'query_key_norm': True, 'tied_head': False, 'head_dim': 12,
}  # fmt: skip


@pytest.mark.parametrize(
  'changes',
  [
    {},
    WARM_LLAMA,
    {'architecture': 'gpt2', 'query_seed': 'warm', 'num_layers': 3},
    {'position_rows': 'learned', 'num_layers': 2},
    {'query_seed': 'mask_embedding', 'num_two_stream_layers': 4},
    {'query_seed_norm': 'rms', 'num_layers': 2, 'first_token': 'given', 'length': N + 1},
    {'query_seed': 'neighbours', 'query_seed_radius': 3, 'num_layers': 2},
    {'query_seed': 'shift', 'num_two_stream_layers': 0, 'num_layers': 2},
  ],
  ids=str,
)  # fmt: skip
def test_armd_computes_the_same_along_every_order(changes, tmp_path):
  config = tiny.model_config(**changes)
  params = random_params(config)
  torch, theirs = opened(written(tmp_path, config, params))
  tokens = np.random.RandomState(1).randint(V, size=(3, N))
  first = None
  if config.first_token == 'given':
    first = torch.full((3,), 7)
  model = models.build(config, V)

  @jax.jit
  def run(params, tokens_BxN, order):
    first_B = None if first is None else np.full(3, 7)
    hidden = model.apply({'params': params}, tokens_BxN, order, first_B)
    return model.apply({'params': params}, hidden, method='logits')[..., :V]

  for name, order in tiny.orders().items():
    slots = np.broadcast_to(order.position_BxN - 1, tokens.shape)
    expected = run(params, np.take_along_axis(tokens, slots, axis=1), order)
    with torch.no_grad():
      position, block = (torch.tensor(np.array(x)) for x in (order.position_BxN, order.block_BxN))
      found = theirs.token_logits(torch.tensor(tokens), position, block, first).numpy()
    found = np.take_along_axis(found, slots[..., None], axis=1)
    limit = 1e-4 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=limit, err_msg=name)
  for streams, count in ((1, 0), (2, 3), (4, 0), (5, 3)):
    given = np.broadcast_to(np.arange(N) < count, (3, N))
    eos = get_tokenizer('bytes').eos_id
    task = task_of(given, np.full(3, N), streams, *([eos] if first is not None else []))
    ours = generate(model, params, task, tokens, Sampling(temperature=0.0))
    ids = torch.tensor(tokens[:, :count])
    found = theirs.generate(ids, streams=streams).numpy()
    np.testing.assert_array_equal(found, ours.tokens_BxN, err_msg=f'S={streams}, {count} given')


@pytest.mark.parametrize('changes', [WARM_LLAMA, {'position_rows': 'learned', 'num_layers': 2}])
def test_transformers_saves_trains_and_rounds_it(changes, tmp_path):
  """`save_pretrained`, which `push_to_hub` calls, texts of every length, and half the bytes."""
  config = tiny.model_config(**changes)
  torch, theirs = opened(written(tmp_path, config, random_params(config)))
  bos = theirs.config.bos_token_id
  tokens = torch.tensor(np.random.RandomState(1).randint(V - 1, size=(2, N)))
  ids = torch.cat([torch.full((2, 1), bos), tokens], 1)
  with torch.no_grad():
    logits, expected = theirs(ids).logits, theirs.token_logits(tokens)
    # Of the longest text as of shorter ones, with the token behind it.
    torch.testing.assert_close(logits[:, :-1], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(theirs(ids[:, :5]).logits, logits[:, :5], rtol=0, atol=1e-4)
    theirs.save_pretrained(tmp_path / 'again')
    _, again = opened(tmp_path / 'again')
    torch.testing.assert_close(again(ids).logits, logits)
    rounded = again.to(torch.bfloat16)
    assert (rounded(ids).logits - logits).abs().max() < 0.1 * logits.abs().max()
    assert rounded.generate(ids[:, :3], streams=2).shape == (2, N + 1)
  theirs(ids, labels=ids).loss.backward()
  assert all(x.grad is not None for x in theirs.parameters())


def test_what_transformers_asks_for_in_vain_is_refused(tmp_path):
  config = tiny.model_config()
  torch, theirs = opened(written(tmp_path, config, random_params(config)))
  ids, mask = torch.tensor([[1, 2, 3]] * 2), torch.tensor([[0, 1, 1], [1, 1, 1]])
  with pytest.raises(ValueError, match='padding before a text moves it; pad on the right'):
    theirs(ids, attention_mask=mask)
  found = theirs(ids, attention_mask=mask.flip(1)).logits
  assert found.shape == (2, 3, V)
  with pytest.raises(ValueError, match=f'the text has more than {N} tokens'):
    theirs(torch.zeros(1, N + 1, dtype=torch.long))
  for message, options in (
    ('prompts of a batch have one length', {'attention_mask': mask}),
    ('takes no top_k; leave it out', {'top_k': 3}),
    ('streams is 0; write 1 or more', {'streams': 0}),
  ):
    with pytest.raises(ValueError, match=message):
      theirs.generate(ids, **options)
  likeliest, draw = theirs.generate(ids), lambda **options: theirs.generate(ids, **options)
  torch.manual_seed(0)
  assert not torch.equal(draw(do_sample=True), likeliest)
  assert torch.equal(draw(do_sample=False, temperature=9.0), likeliest)


def test_what_cannot_be_written_is_refused(tmp_path):
  config = tiny.model_config(family='mdlm', num_layers=1)
  with pytest.raises(UserError, match="predict along an order; 'mdlm' has none, write --out"):
    written(tmp_path, config, {})
  config = tiny.model_config(family='esolm', num_layers=1)
  with pytest.raises(UserError, match="no content_mask 'row', of family 'esolm'; write --out"):
    written(tmp_path, config, {})
  assert not (tmp_path / 'out').exists()


# ----- the folder


@pytest.mark.parametrize('name', ['bytes', 'gpt2', 'file'])
def test_tokenizers_give_the_same_ids(name, tmp_path):
  tokenizers = pytest.importorskip('tokenizers')
  if name == 'file':
    name = str(tiny_llama.write_tokenizer(tmp_path, 20) / 'tokenizer.json')
  try:
    tokenizer = get_tokenizer(name)
  except UserError as error:  # GPT-2's vocabulary is a download
    pytest.skip(str(error))
  text = tokenizer_json.text_of(tokenizer, tokenizer.vocab_size, '<|bos|>')
  made = tokenizers.Tokenizer.from_str(text)
  for sample in ('abba', "It's 1234  café, 東京\n\n\tx", ' <|endoftext|> '):
    sample = ''.join(c for c in sample if c in 'abcdef') if 'json' in name else sample
    made.encode_special_tokens = True
    assert made.encode(sample, add_special_tokens=False).ids == tokenizer.encode(sample).tolist()
  assert tokenizer_json.tokens(text)[tokenizer.vocab_size] == '<|bos|>'
  assert made.encode('abba').ids == [tokenizer.vocab_size, *tokenizer.encode('abba')]
  assert tokenizer.eos_id in tokenizer_json.tokens(text)


def test_a_tokenizer_that_leaves_out_ids_is_refused(tmp_path):
  path = tiny_llama.write_tokenizer(tmp_path, 20) / 'tokenizer.json'
  whole = json.loads(path.read_text())
  # EOS is one more than the last id, and the library would give it that of the last letter.
  whole['added_tokens'], vocabulary = [], whole['model']['vocab']
  del vocabulary['<|endoftext|>']
  path.write_text(json.dumps(whole))
  tokenizer = get_tokenizer(str(path))
  assert tokenizer.eos_id == 20 and 'r' in vocabulary
  with pytest.raises(UserError, match=r'leaves out ids, .* added to it as 20; write --out'):
    tokenizer_json.text_of(tokenizer, 21, '<|bos|>')


def test_the_program_writes_what_needs_no_armd_jax(tmp_path):
  """A process that has torch and transformers alone generates four tokens a step."""
  raw = tiny_run.config(tmp_path)
  raw.model.query_seed = 'warm'
  config = config_lib.parse(raw)
  params = random_params(config.model)
  starts.write(starts.Start(config, params), tmp_path / 'run')
  options = dict(workdir=str(tmp_path / 'run'), hf=str(tmp_path / 'hf'))
  export.main(export.Options(**options))
  files = {path.name for path in (tmp_path / 'hf').iterdir()}
  assert files == {
    'config.json', 'model.safetensors', 'modeling_armd.py', 'tokenizer.json',
    'tokenizer_config.json', 'generation_config.json', 'README.md',
  }  # fmt: skip
  card = (tmp_path / 'hf' / 'README.md').read_text()
  assert 'trust_remote_code=True' in card and 'push_to_hub' in card
  with pytest.raises(UserError, match='exists and is no export; write another --hf'):
    export.main(export.Options(**options))
  with pytest.raises(UserError, match='write either --out=DIR or --hf=DIR'):
    export.main(export.Options(**options, out='x'))
  pytest.importorskip('torch', reason=test_llama.REASON)
  pytest.importorskip('transformers', reason=test_llama.REASON)
  script = (
    'import sys; sys.modules["armd_jax"] = sys.modules["jax"] = None\n'
    'from transformers import AutoModelForCausalLM, AutoTokenizer\n'
    f'model = AutoModelForCausalLM.from_pretrained({options["hf"]!r}, trust_remote_code=True)\n'
    f'tokenizer = AutoTokenizer.from_pretrained({options["hf"]!r}, trust_remote_code=True)\n'
    'ids = tokenizer("al", return_tensors="pt").input_ids\n'
    'print(model.generate(ids, streams=4)[0].tolist()[1:])\n'
  )
  done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  given = np.arange(16)[None] < 2
  task = task_of(given, np.full(1, 16), 4)
  tokens = np.where(given, [list(b'al') + [0] * 14], 0)
  network = models.build(config.model, V)
  ours = generate(network, params, task, tokens, Sampling(temperature=0.0))
  assert json.loads(done.stdout) == ours.tokens_BxN[0].tolist()

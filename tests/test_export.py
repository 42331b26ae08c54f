"""Exports open without their run, say the same, and are refused when anything in them is wrong."""

import contextlib
import dataclasses
import json
import pathlib
import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny
import tiny_run

import armd_jax
from armd_jax import config as config_lib
from armd_jax import evaluate, models, training
from armd_jax import export as export_lib
from armd_jax.artifacts import cards, parameters, standalone, weights
from armd_jax.config import MeshConfig, UserError
from armd_jax.data import corpus as corpus_lib
from armd_jax.decode import requests
from armd_jax.decode.generate import generate, task_of
from armd_jax.decode.sampling import Sampling
from armd_jax.evaluation import scores as scores_lib
from armd_jax.evaluation import suites
from armd_jax.order import left_to_right
from armd_jax.parallel import sharding
from armd_jax.show import report_page
from armd_jax.training import checkpoint
from armd_jax.training import text as run_text
from armd_jax.training import workdir as workdir_lib

# Runs run.py where this package cannot be imported.
ALONE = """
import runpy, sys
sys.modules['armd_jax'] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run that was never trained, and its state, whose average is not its parameters."""
  folder = tmp_path_factory.mktemp('run')
  config = config_lib.parse(tiny_run.config(folder))
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  state = training.new_state(config, 257, mesh)
  state = state.replace(step=state.step + 12, ema=jax.tree.map(lambda x: 3 * x, state.params))
  workdir = folder / 'run'
  workdir_lib.write_config(workdir, config)
  saves = checkpoint.Checkpoints(workdir)
  saves.save(12, state, 0, None)
  saves.close()
  line = json.dumps({'step': 12, 'held_out': 1.25})
  (workdir / 'metrics.jsonl').write_text(f'{line}\n')
  return workdir, state


def write(path, source, weights='ema', overwrite=False):
  with standalone.new_path(path, overwrite) as part:
    export, params = export_lib.load(source, weights)
    if path.suffix == '.safetensors':
      standalone.write_file(part, export, params)
    else:
      card = cards.model_card(export, params, {'held out': [{'nats': 1.25}]})
      standalone.write_folder(part, params, card)
      standalone.seal(part, export)
  return path


def test_parameters_of_numpy_generate_the_same(file):
  model = armd_jax.load(file)
  numpy = dataclasses.replace(model, params=jax.tree.map(np.asarray, model.params))
  assert numpy.generate('al', streams=4) == model.generate('al', streams=4)


def test_a_denoiser_generates_in_a_line(tmp_path):
  raw = tiny_run.config(tmp_path)
  raw.model.update(family='mdlm', num_layers=1)
  config = config_lib.parse(raw)
  state = training.new_state(config, 257, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
  workdir_lib.write_config(tmp_path / 'run', config)
  saves = checkpoint.Checkpoints(tmp_path / 'run')
  saves.save(3, state, 0, None)
  saves.close()
  model = armd_jax.load(tmp_path / 'run')
  assert isinstance(model.generate(), str)
  texts = model.generate('al', streams=4, count=2, seed=np.int32(7))
  assert len(texts) == 2 and all(text.startswith('al') for text in texts)
  assert texts == model.generate('al', streams=4, count=2, seed=7)


@pytest.fixture(scope='module')
def folder(run, tmp_path_factory):
  return write(tmp_path_factory.mktemp('folder') / 'export', run[0])


@pytest.fixture(scope='module')
def file(folder):
  return write(folder.parent / 'model.safetensors', folder)


@jax.jit
def logits(params):
  model = models.build(MODEL, 257)
  tokens_1xN = jnp.arange(16)[None] % 7
  hidden = model.apply({'params': params}, tokens_1xN, left_to_right(16))
  return model.apply({'params': params}, hidden, method='logits')


MODEL = config_lib.parse(
  {
    'model': dict(
      length=16, num_layers=2, embed_dim=16, num_heads=2, dtype='float32', position_dim=4
    ),
    'order': dict(max_shuffled=4),
  }
).model


def test_folder_and_file_hold_what_the_run_holds(run, folder, file, tmp_path):
  workdir, state = run
  for path in (folder, file, write(tmp_path / 'back', file)):
    config, tokenizer, params, step = weights.load_ema(path)
    assert step == 12 and tokenizer.name == 'bytes'
    assert config.model == workdir_lib.read_config(workdir).model
    jax.tree.map(np.testing.assert_array_equal, params, state.ema)
    np.testing.assert_array_equal(logits(params), logits(state.ema))
  raw = weights.load_ema(write(tmp_path / 'raw.safetensors', workdir, 'raw'))[2]
  jax.tree.map(np.testing.assert_array_equal, raw, state.params)
  with pytest.raises(UserError, match='holds ema weights; write --weights=ema'):
    export_lib.load(folder, 'raw')


def test_an_export_knows_the_text_of_its_run(run, folder, file, tmp_path):
  """An evaluation on another text under the same name is refused, as the run itself refuses it."""
  assert weights.text_sha256_of(folder) == weights.text_sha256_of(file) == ''  # of an older run
  copy = tmp_path / 'run'
  shutil.copytree(run[0], copy)
  config = workdir_lib.read_config(copy)
  words = (tmp_path / 'text.txt').write_text
  words('\n\n'.join(f'alpha beta number {i}' for i in range(99)))
  config = dataclasses.replace(
    config, data=dataclasses.replace(config.data, source=str(tmp_path / 'text.txt'))
  )
  workdir_lib.write_config(copy, config)
  corpus = corpus_lib.load(config.data, config.model.length)
  run_text.keep(copy, config, corpus)
  exported = write(tmp_path / 'export', copy)
  again = write(tmp_path / 'again.safetensors', exported)
  for path in (copy, exported, again):
    assert weights.text_sha256_of(path) == corpus.sha256
    assert suites.likelihood_task(config, (), 1, 2, weights.text_sha256_of(path)).parts
  words('\n\n'.join(f'alpha beta number {i + 1}' for i in range(99)))
  for path in (exported, again):
    options = evaluate.Options(workdir=str(path), windows=2, streams=(2,))
    with pytest.raises(UserError, match=r'is of another text .* bring that text back'):
      evaluate.main(options)


def test_relative_paths_open_what_absolute_ones_do(run, folder, file, monkeypatch):
  for path in (run[0], folder, file):
    monkeypatch.chdir(path.parent)
    for relative in (path.name, f'./{path.name}', f'../{path.parent.name}/{path.name}'):
      jax.tree.map(np.testing.assert_array_equal, armd_jax.load(relative).params, run[1].ema)


def test_a_path_may_be_written_in_any_way(folder, file, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(folder.parent))
  link = tmp_path / 'link'
  link.symlink_to(folder)
  home = '~/export', pathlib.Path('~/export'), f'~/{file.name}'
  for path in (*home, f'{folder}/', f'{folder}//', link):
    assert armd_jax.load(path).step == 12


@pytest.mark.parametrize(
  'path',
  ['', ' ', '~', '.', 'no/such', 'no/such/', pathlib.Path('absent'), '~nobody/x', 's3://b/x',
   'a\0b', 'absent.safetensors', 'folder.safetensors', 'file', 'file/', '/dev/null', None, 3,
   b'file'],
)  # fmt: skip
def test_a_path_of_nothing_is_a_sentence(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'folder.safetensors').mkdir()
  (tmp_path / 'file').touch()
  for load in (armd_jax.load, lambda path: export_lib.load(path, 'ema'), weights.load_ema):
    with pytest.raises(UserError, match=r'(; give|; write) ') as caught:
      load(path)
    assert '\n' not in str(caught.value) and 'None)' not in str(caught.value)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'folder.safetensors']


def test_three_lines_of_python(run, file):
  model = armd_jax.load(file)
  text = model.generate('al', streams=4, seed=5)
  assert text.startswith('al')
  config, tokenizer, params, _ = weights.load_ema(run[0])
  request = requests.continue_prompts(['al'], 16, tokenizer)
  network = models.build(config.model, tokenizer.vocab_size)
  decoder = requests.Decoder(network, params, tokenizer, sharding.make_mesh(config.mesh))
  assert [text] == decoder.complete(request, 4, Sampling(seed=5))[0]
  for refused in (
    {'streams': 0}, {'streams': 2.0}, {'temperature': -1.0}, {'top_p': 0}, {'stop': 'EOS'},
    {'seed': -1}, {'seed': 2**32}, {'seed': True}, {'seed': 1.0}, {'prompt': 3}, {'prompt': b'al'},
  ):  # fmt: skip
    ((name, value),) = refused.items()
    with pytest.raises(UserError, match=f'{name} is {value!r}; write '):
      model.generate(**refused)


def test_every_damaged_or_changed_file_is_refused(folder, tmp_path):
  names = [path.relative_to(folder) for path in folder.rglob('*') if path.is_file()]
  sealed = [name for name in names if name.name != 'README.md']
  assert len(sealed) > 3
  copy = tmp_path / 'copy'
  shutil.copytree(folder, copy)
  for name in sealed:
    path = copy / name
    whole = path.read_bytes()
    damages = [b'', whole[:-2], bytes([whole[0] ^ 1]) + whole[1:], None]
    # Without it nothing would be an export.
    for damage in damages[: 3 if path.name == 'export.json' else 4] if whole else [None]:
      path.unlink() if damage is None else path.write_bytes(damage)
      with pytest.raises(UserError, match=r'^[^\n]*(damaged|changed)[^\n]*; export it again$'):
        weights.load_ema(copy)
      path.write_bytes(whole)
  (copy / 'README.md').write_text('Edited by hand.')
  standalone.read(copy)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda about: about | {'step': 13}, 'was changed after it was written'),
    (lambda about: about | {'format': 2}, 'has format 2, not 1'),
    (
      lambda about: reseal(about | {'tokenizer': {'name': 'bytes', 'fingerprint': 'ab' * 32}}),
      r"another 'bytes' vocabulary than the one here \(fingerprint abababab, not",
    ),
    (lambda about: reseal(grown(about)), r"'.*' is \(.*\) in .* but \(.*\) in the model"),
    (lambda about: reseal(deeper(about)), "lacks 'two_stream/"),
  ],
)
def test_what_does_not_fit_together_is_refused(folder, tmp_path, change, message):
  copy = tmp_path / 'copy'
  shutil.copytree(folder, copy)
  path = copy / 'export.json'
  path.write_text(json.dumps(change(json.loads(path.read_text()))))
  with pytest.raises(UserError, match=message):
    weights.load_ema(copy)


def reseal(about):
  about = {key: value for key, value in about.items() if key != 'sha256'}
  return about | {'sha256': standalone._sha256_of(about)}


def grown(about):
  about['config']['model']['mlp_dim'] *= 2
  return about


def deeper(about):
  about['config']['model'].update(num_layers=4, num_two_stream_layers=3)
  return about


def test_damaged_safetensors_are_refused(file, tmp_path):
  whole, path = file.read_bytes(), tmp_path / 'copy.safetensors'
  step = whole.index(b'step')
  for damaged in (
    b'',
    whole[:100],
    whole[:-2],
    whole[:-1] + bytes([whole[-1] ^ 1]),
    whole[:step] + whole[step:].replace(b'12', b'13', 1),
  ):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r'^[^\n]*(damaged|changed)[^\n]*; export it again$'):
      weights.load_ema(path)
  safetensors.numpy.save_file({'x': np.zeros(3)}, path)
  with pytest.raises(UserError, match='was not written by armd_jax'):
    weights.load_ema(path)
  with pytest.raises(UserError, match='is not there'):
    weights.load_ema(tmp_path / 'none.safetensors')


def test_nothing_is_overwritten_in_silence(folder, tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(folder, copy)
  with pytest.raises(UserError, match='exists; write another --out, or --overwrite'):
    write(copy, folder)
  with pytest.raises(ZeroDivisionError), standalone.new_path(copy, True) as part:
    part.write_text(str(1 / 0))
  standalone.read(copy)  # what was there is there until the new one is whole
  write(copy, folder, overwrite=True)
  other = tmp_path / 'other'
  other.mkdir()
  theirs = tmp_path / 'theirs.safetensors'
  safetensors.numpy.save_file({'x': np.zeros(3)}, theirs)
  link = tmp_path / 'link'
  link.symlink_to(other)
  (other / 'export.json').write_text('{"format": 1}')
  for path in (other, theirs, link, pathlib.Path('/dev/null')):
    for overwrite in (False, True):
      with pytest.raises(UserError, match=r'exists and is no export; write another --out$'):
        write(path, folder, overwrite=overwrite)
  assert list(other.iterdir()) == [other / 'export.json'] and theirs.exists() and link.is_symlink()
  (copy / 'weights' / 'notes.txt').write_text('of a user')
  with pytest.raises(UserError, match=r'holds weights/notes.txt, which is no part of the export'):
    write(copy, folder, overwrite=True)
  assert sorted(tmp_path.iterdir()) == sorted((copy, other, theirs, link))


# orbax abandons its other writes when one of them fails, and Python tells of each of them.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_full_disk_is_a_sentence_and_leaves_nothing(folder, tmp_path):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  for name in ('out', 'out.safetensors'):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
      with pytest.raises(UserError, match=rf'^cannot write .*/{name} \(File too large\); give an'):
        write(tmp_path / name, folder)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_do_not_mix(folder, tmp_path):
  out = tmp_path / 'out'
  with standalone.new_path(out, False) as part:
    part.write_text('of the first')
    with pytest.raises(UserError, match='is in use by'):
      write(out, folder)
  assert out.read_text() == 'of the first' and list(tmp_path.iterdir()) == [out]


def test_no_name_of_a_path_loses_an_export(folder, tmp_path, monkeypatch):
  (tmp_path / 'a[1] \\*?').mkdir()
  monkeypatch.chdir(tmp_path / 'a[1] \\*?')
  monkeypatch.setenv('HOME', str(tmp_path))
  for name in ('b[2]', 'ü 漢.safetensors', '~/home', './c/', "it's\n"):
    write(pathlib.Path(name), folder)
    assert weights.load_ema(name)[3] == 12


def test_the_card_quotes_what_it_is_given_as_it_is():
  rows = [{'a|b': '<script>x</script>', '`c`': '[l](u)', 'd': 'two\nlines'}]
  text = cards._markdown(rows)
  assert len(text.splitlines()) == 3 and '<script' not in text.replace('\\<', '')
  assert text.splitlines()[0].count('|') - text.splitlines()[0].count('\\|') == 4
  assert cards._code('a`b``c\nd') == '``` a`b``c d ```'


def rows_of(section):
  """Names, shapes and meanings of the table of parameters."""
  lines = [line.split(' | ') for line in section.splitlines() if line.startswith('| `')]
  return {name.strip('|` '): (shape, meaning.strip('| ')) for name, shape, meaning in lines}


def test_the_card_describes_every_parameter(folder, file):
  card = (folder / 'README.md').read_text('utf-8')
  section = card.partition('## Parameters')[2]
  rows = rows_of(section)
  arrays = safetensors.numpy.load_file(file)
  assert rows.keys() == arrays.keys()
  for name, (shape, _) in rows.items():
    assert shape == ' x '.join(map(str, arrays[name].shape)) and arrays[name].dtype == np.float32
  assert 'Rows 257 to 383 of the embedding are padding' in section
  assert 'in this order, `last_two_stream` (1), `causal` (2)' in section
  assert '[E, 2, G, D]: keys (0 of the axis of 2)' in rows['last_two_stream/key_value/kernel'][1]


@pytest.mark.parametrize(
  'changes',
  [
    {'num_layers': 6, 'num_two_stream_layers': 3},
    {'num_layers': 6, 'num_two_stream_layers': 0, 'position_rows': 'learned'},
    {'scan_layers': False, 'query_seed': 'warm', 'num_kv_heads': 2},
    {'query_seed': 'mask_embedding', 'architecture': 'gpt2'},
    {'family': 'ar', 'scan_layers': False},
    {'mlp': 'swiglu', 'biases': 'all', 'query_key_norm': True, 'tied_head': False},
    {'family': 'sedd', 'vocab_multiple': 8},
  ],
)
def test_parameters_of_every_kind_are_described(changes):
  model = tiny.model_config(**changes)
  network = models.build(model, tiny.VOCAB)
  shapes = jax.eval_shape(lambda key: models.init(network, key), jax.random.key(0))
  shapes = standalone.shapes(shapes)
  section = parameters.section(model, tiny.VOCAB, shapes)
  rows = rows_of(section)
  sizes = {'V': model.padded(tiny.VOCAB), 'E': 32, 'H': 4, 'G': model.num_kv_heads, 'D': 8, 'F': 64}
  sizes |= {'C': 128, 'length + 1': 17, 'position_dim': 8, '2 radius': 16}
  for name, shape in shapes.items():
    told, meaning = rows[re.sub(r'layer_\d+', 'layer_*', name)]
    axes = meaning.partition(']')[0].strip('[').split(', ') if shape else []
    axes = [sizes[axis] if axis in sizes else int(axis) for axis in axes]
    layers = shape[: len(shape) - len(axes)]
    assert (*layers, *axes) == shape, name
    assert len(layers) == ('/layers/' in name)
    assert told == (' x '.join(map(str, shape)) or 'a number')
    # Ranges of layers are as long as what is stacked.
    if layers:
      first, _, last = re.search(rf'`{name.split("/")[0]}` \((.*?)\)', section)[1].partition(' to ')
      assert layers[0] == int(last or first) - int(first) + 1
  assert ('padding' in section) == (model.padded(tiny.VOCAB) > tiny.VOCAB)


def test_scores_of_other_weights_do_not_enter_the_card(tmp_path):
  path = tmp_path / 'scores.json'
  path.write_text(json.dumps({'step': 11, 'scores': [{'name': 'left-to-right', 'nats': 1.5}]}))
  assert cards.measured_in(path, 11)[0]['nats'] == 1.5
  with pytest.raises(UserError, match='were measured at step 11, not 12'):
    cards.measured_in(path, 12)
  path.write_text('[1]')
  for other in (path, pathlib.Path('/dev/zero')):
    with pytest.raises(UserError, match='is nothing that evaluate wrote'):
      cards.measured_in(other, 12)


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'nats_per_token': 'few'}, r"holds 'few' at scores\[1\].nats_per_token, not float"),
    ({'tokens': -1}, 'holds -1 tokens in 1 orders, not at least 1'),
    ({'kind': 'guess'}, "holds the kind 'guess', not one of exact, bound"),
  ],
)
def test_scores_that_evaluate_does_not_write_enter_no_page(tmp_path, wrong, message):
  score = vars(scores_lib.Score('left-to-right', 'exact', 1.0, 1.5, 20))
  path = tmp_path / 'scores.json'
  for rows, is_one in ([score, score], True), ([score, score | wrong], False):
    path.write_text(json.dumps({'step': 12, 'scores': rows}))
    for read in (
      lambda: cards.measured_in(path, 12),
      lambda rows=rows: report_page.scores_section({'scores.json': rows}),
    ):
      with contextlib.nullcontext() if is_one else pytest.raises(UserError, match=message):
        read()


def test_programs_alone_generate_the_samplers_tokens(run, tmp_path, monkeypatch):
  workdir, state = run
  out, scores = tmp_path / 'export', tmp_path / 'scores.json'
  scores.write_text(json.dumps({'step': 12, 'scores': [{'name': 'some order', 'nats': 1.5}]}))
  flags = [f'--workdir={workdir}', f'--out={out}', f'--scores={scores}', '--stablehlo']
  done = tiny_run.run([*tiny_run.PYTHON, '-m', 'armd_jax.export', *flags, '--batch_size=2'])
  assert done.returncode == 0, done.stderr
  card = (out / 'README.md').read_text()
  assert '| some order | 1.5000 |' in card and '| 12 | 1.2500 |' in card
  standalone.read(out)
  programs = shutil.copytree(out / 'stablehlo', tmp_path / 'programs')
  source = (programs / 'run.py').read_text()
  assert 'armd_jax' not in source and len(source.splitlines()) < 80

  given = np.broadcast_to(np.arange(16) < 3, (2, 16))
  tokens = np.where(given, [97, 98, 99] + [0] * 13, 0)
  task = task_of(given, np.full(2, 16), 4)
  network = models.build(MODEL, 257)
  expected = generate(network, state.ema, task, tokens, Sampling(seed=7))
  script = str(programs / 'run.py')
  done = alone(script, '--prompt=97,98,99', '--seed=7')
  assert done.returncode == 0, done.stderr
  printed = [list(map(int, line.split())) for line in done.stdout.splitlines()]
  np.testing.assert_array_equal(printed, expected.tokens_BxN)

  done = alone(script, '--text=abc', '--seed=7')
  text = bytes(x for x in printed[0] if x < 256).decode(errors='replace')
  assert done.stdout.startswith(text + '\n'), done.stderr
  with monkeypatch.context() as poor:
    poor.setenv('PYTHONIOENCODING', 'ascii')
    done = alone(script, '--text=é')
    assert done.stdout.startswith('\\xe9'), done.stderr

  for flag in ('--prompt=257', '--prompt=x', '--prompt=' + '1,' * 17, '--temperature=nan'):
    done = alone(script, flag)
    assert done.returncode == 1 and re.fullmatch(r'error: --.*[a-z0-9]\n', done.stderr), done.stderr
  for name in ('step.stablehlo', 'about.json'):
    whole = (programs / name).read_bytes()
    (programs / name).write_bytes(
      whole.replace(b'16', b'17', 1) if name == 'about.json' else whole[:-1]
    )
    done = alone(script)
    assert done.returncode == 1 and done.stderr == f'error: {name} is damaged; export again\n'
    (programs / name).write_bytes(whole)


def alone(*command):
  return tiny_run.run([*tiny_run.PYTHON, '-c', ALONE, *command])

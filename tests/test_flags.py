"""Flags and their values, and what --help prints of every program."""

import dataclasses
import importlib
import os
import pathlib

import matplotlib.figure
import pytest
from absl import flags as absl_flags
from ml_collections import ConfigDict

from armd_jax import cli, command, flags
from armd_jax import config as config_lib
from armd_jax.config import MeshConfig
from armd_jax.errors import UserError
from armd_jax.flags import experiment, flag
from armd_jax.show import plots

ROOT = pathlib.Path(__file__).parents[1]
STARTS = "if __name__ == '__main__':"
# Files that start otherwise: see `armd_jax.bench.device.command`, a file of an export, and the
# command of lm_eval, which has its own flags.
ALONE = ('bench/device/', 'artifacts/stablehlo_run.py', 'artifacts/harness.py')


def programs():
  """Names of all modules that users start with flags."""
  found = []
  for path in sorted((ROOT / 'armd_jax').rglob('*.py')):
    name = path.relative_to(ROOT / 'armd_jax').as_posix()
    if STARTS in path.read_text('utf-8') and not name.startswith(ALONE):
      found.append(f'armd_jax.{name.removesuffix(".py").replace("/", ".")}')
  return found


PROGRAMS = programs()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
  """Flags for all."""

  seed: int = flag('Seed of all draws.', 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Shared):
  workdir: str = flag('Where the run is kept.', is_path=True)
  pages: tuple[str, ...] = flag('Files.', (), is_path=True)
  prompt: str = flag('Text.', '')
  steps: int = flag('How many.', 3, at_least=1)
  count: int = flag('How many at once.', 1, at_least=1, at_most=8)
  rate: float | None = flag('How fast.', None)
  fast: bool = flag('Whether.', False)
  kind: str = flag('Which.', 'a', choices=('a', 'b'))
  names: tuple[str, ...] = flag('Who.', ('x', 'y'))
  streams: tuple[int, ...] | None = flag('Stride counts S.', None, at_least=1)
  mesh: MeshConfig | None = cli.mesh()
  texts: tuple[str, ...] = flag('Which.', (), is_path='NAME=FILE')
  json: str | None = cli.json_file()
  out: str | None = flag('The page.', None, is_path='or a bucket', writes='page')
  png: str | None = flag('The picture.', None, is_path=True, writes='picture')


def parse(*argv):
  return flags.parse(Options, ['program', *argv])


def test_a_command_line_is_the_values_that_a_call_takes():
  assert parse('--workdir=w') == Options(workdir='w')
  given = parse(
    '--workdir=w', '--steps=5', '--rate', '0.5', '--fast', '--kind=b', '--names=z', '--seed=7',
    '--streams=4,8', '--mesh=data=2,tensor=4',
  )  # fmt: skip
  assert given == Options(
    workdir='w', steps=5, rate=0.5, fast=True, kind='b', names=('z',), seed=7, streams=(4, 8),
    mesh=MeshConfig(data=2, tensor=4),
  )  # fmt: skip
  assert not parse('--workdir=w', '--nofast').fast
  assert parse('--workdir=w', '--streams=').streams == ()


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ([], r'--workdir is missing \(Where the run is kept\); write --workdir=\.\.\.'),
    (['--workdir=s3://b/w'], "^--workdir is 's3://b/w', but s3:// is not supported here; write a"),
    (['--workdir='], '--workdir is empty'),
    (['--workdir=w', '--pages=a,gs://b'], "^--pages is 'gs://b'"),
    (['--workdir=w', '--step=2'], "Unknown command line flag 'step'; did you mean: steps"),
    (['--workdir=w', '--steps=0'], 'integer >= 1|positive integer'),
    (['--workdir=w', '--count=9'], r'integer in the range \[1, 8\]'),
    (['--workdir=w', '--steps=x'], "invalid literal for int.*'x'"),
    (['--workdir=w', '--kind=c'], 'value should be one of <a|b>'),
    (['--workdir=w', '--names='], 'names.*must not be empty'),
    (['--workdir=w', '--streams=2,x'], 'must be whole numbers of at least 1, like 2,4,8'),
    (['--workdir=w', '--streams=0'], 'must be whole numbers of at least 1'),
    (['--workdir=w', '--mesh=tensor'], '--mesh=tensor is no mesh; write sizes'),
    (['--workdir=w', f'--mesh=tensor={"9" * 5000}'], '--mesh=tensor=9+.* is no mesh; write sizes'),
    (['--workdir=w', '--texts=a=b,c=s3://d'], "^--texts is 's3://d', but s3:// is not supported"),
    (['--workdir=w', 'more'], "'more' is no flag; flags look like --name=value"),
  ],
)
def test_a_wrong_command_line_is_one_sentence(argv, message):
  with pytest.raises(UserError, match=message) as caught:
    parse(*argv)
  assert '\n' not in str(caught.value)


def test_a_result_takes_the_place_of_an_older_one_alone(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name, content in (
    ('empty', ''), ('numbers.json', ' {"a": 1}\n'), ('rows.json', '[]'), ('notes.txt', 'mine'),
    ('config.json', '{}'), ('a.html', '<!doctype html>\n<html>'), ('b.html', '<html>'),
  ):  # fmt: skip
    pathlib.Path(name).write_text(content)
  pathlib.Path('link.json').symlink_to('numbers.json')
  os.mkfifo('pipe')
  for name in ('new', 'new/er', 'empty', 'numbers.json', 'rows.json', 'pipe', '/dev/null'):
    assert parse('--workdir=w', f'--json={name}').json == name
  for name in ('new', 'a.html', 'gs://bucket/a.html'):
    assert parse('--workdir=w', f'--out={name}').out == name
  for given, message in (
    (['--json=notes.txt'], '--json is notes.txt, which is there and is no JSON of results; write'),
    (['--json=config.json'], '--json is config.json, which is there and is no JSON of results'),
    (['--json=a.html'], '--json is a.html, which is there and is no JSON of results'),
    (['--out=b.html'], '--out is b.html, which is there and is no page of results'),
    (['--json=notes.txt/new.json'], r'--json is notes.txt/new.json, but .*notes.txt is no folder'),
    (['--json=.'], '--json is ., which is a folder; write the name of a file'),
    (
      ['--json=link.json', '--texts=a=x,b=./numbers.json'],
      '--json is link.json, and so is --texts',
    ),
    (['--json=x/../new', f'--pages=a,{tmp_path}/new'], '--json is x/../new, and so is --pages'),
    (['--json=new', '--out=new'], '--json is new, and so is --out; write another file'),
  ):
    with pytest.raises(UserError, match=message):
      parse('--workdir=w', *given)
  assert pathlib.Path('notes.txt').read_text() == 'mine'


def test_a_picture_takes_the_place_of_an_older_one_alone(tmp_path, monkeypatch):
  """And its name is one that can be drawn to, before anything is measured."""
  monkeypatch.chdir(tmp_path)
  for name in ('a.png', 'a.svg', 'a.pdf', 'a'):
    plots.save(matplotlib.figure.Figure(), name)
    for given in (name, f'new/{name}', name.upper()):
      assert parse('--workdir=w', f'--png={given}').png == given
  thesis = '<?xml version="1.0" encoding="utf-8" standalone="no"?>\n<thesis/>'
  for name, content in (('b.png', 'mine'), ('b.svg', thesis), ('b.pdf', ''), ('c.pdf', '{}')):
    pathlib.Path(name).write_text(content)
  assert parse('--workdir=w', '--png=b.pdf').png == 'b.pdf'
  for name in ('b.png', 'b.svg', 'c.pdf'):
    with pytest.raises(UserError, match=rf'^--png is {name}, which is there and is no picture of'):
      parse('--workdir=w', f'--png={name}')
  for name in ('d.txt', 'a.png.bak', 'd.jpgg'):
    with pytest.raises(UserError, match=r'ends as no picture; end it in \.png or \.svg or \.pdf$'):
      parse('--workdir=w', f'--png={name}')
  with pytest.raises(UserError, match=r'^--json is x.png, and so is --png; write another file$'):
    parse('--workdir=w', '--json=x.png', '--png=x.png')


# Of files that these hold to what they write themselves, or refuse in another way.
_KEPT_OTHERWISE = {
  # `records.Records` refuses a file of any other form.
  'armd_jax.bench.attention.choices.json', 'armd_jax.bench.attention.compile_hopper.json',
  'armd_jax.bench.attention.compile_tpu.json', 'armd_jax.bench.attention.peers.json',
  'armd_jax.bench.scaling.json',
}  # fmt: skip


@pytest.mark.parametrize('name', PROGRAMS)
def test_no_flag_replaces_any_file_of_a_user(name):
  """What a program writes in one file is of a kind that is looked for before it begins."""
  for field in dataclasses.fields(importlib.import_module(name).Options):
    is_result = field.name in ('json', 'png') or 'picture' in field.metadata['help']
    if is_result and f'{name}.{field.name}' not in _KEPT_OTHERWISE:
      assert field.metadata['writes'] and field.metadata['is_path'], field.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Configured:
  config: ConfigDict = experiment('experiments/quickstart.py')
  text: str = flag('Which.', '')


def test_a_file_of_flags_that_is_no_text(tmp_path):
  (tmp_path / 'flags').write_bytes(b'\xff\xfe')
  with pytest.raises(UserError, match="'utf-8' codec can't decode byte 0xff in position 0"):
    flags.parse(Options, ['program', f'--flagfile={tmp_path / "flags"}'], absl_flags.FlagValues())


def test_a_file_of_flags_that_never_ends(tmp_path):
  os.mkfifo(tmp_path / 'fifo')
  for path in (tmp_path / 'fifo', '/dev/zero', tmp_path):
    for argv in ([f'--flagfile={path}'], ['-flagfile', str(path)]):
      with pytest.raises(UserError, match=r'^--flagfile is .*, which is no ordinary file; write'):
        parse('--workdir=a', *argv)
  # Named in a file that is one, which may name itself, too.
  outer = tmp_path / 'outer'
  outer.write_text(f'--flagfile={outer}\n  --flagfile={tmp_path / "fifo"}\n')
  with pytest.raises(UserError, match=r'^--flagfile is .*fifo, which is no ordinary file; write'):
    parse('--workdir=a', f'--flagfile={outer}')


def test_an_experiment_file_and_its_overrides():
  read = lambda *argv: flags.parse(Configured, ['program', *argv]).config
  given = read('--config=experiments/owt_small.py:runlocal', '--config.train.steps=9')
  assert given.train.steps == 9
  assert read('--config.order.strided_streams=(1,2)').order.strided_streams == (1, 2)
  assert read('--text=x').train.steps != 9  # a new file each time, not the one changed before
  with pytest.raises(UserError, match="the config has no field 'trian'"):
    read('--config.trian.steps=9')
  with pytest.raises(UserError, match='names no experiment file'):
    read('--config=absent.py')


def test_a_field_of_the_config_is_no_flag():
  read = lambda *argv: flags.parse(Configured, ['program', *argv])
  with pytest.raises(UserError, match=r"flag 'steps'.*; write --config\.train\.steps; see --help"):
    read('--steps=3')


def test_what_an_experiment_raises_is_a_sentence(tmp_path):
  read = lambda *argv: flags.parse(Configured, ['program', *argv])
  (tmp_path / 'a.py').write_text('def get_config(:\n')
  (tmp_path / 'b.py').write_text('import nothing_of_this_name\n')
  (tmp_path / 'c.py').write_text('def get_config():\n  return {}["absent"]\n')
  (tmp_path / 'd.py').write_text('def get_config():\n  return int("x")\n')
  (tmp_path / 'e.py').write_text('import sys\nget_config = sys.exit\n')
  for name, message in (
    ('a.py', 'a.py is no Python .*line 1'),
    ('b.py', 'cannot be run .*nothing_of_this_name'),
    ('c.py', r"cannot be run \(KeyError: 'absent'\)"),
    ('d.py', r"cannot be run \(ValueError: invalid literal .*: 'x'\)"),
    ('e.py', r'cannot be run \(SystemExit'),
    ('d.py:x', r'd.py takes no options; leave out :x'),
  ):
    with pytest.raises(UserError, match=message) as caught:
      read(f'--config={tmp_path / name}')
    assert 'Traceback' not in str(caught.value)
  for overrides in ([], ['--config.seed=1']):
    with pytest.raises(UserError, match='--config names no experiment file; write the path of'):
      read('--config=nowhere.py', *overrides)
  for options in ('nonsense', 'family=', 'family=nobody', 'strided_steps=x'):
    with pytest.raises(UserError) as caught:
      config_lib.parse(read(f'--config=experiments/text8.py:{options}').config)
    assert '; ' in str(caught.value) and 'Traceback' not in str(caught.value)
  with pytest.raises(UserError, match=r'^adapt.py has steps=3; write a whole number'):
    read('--config=experiments/adapt.py:steps=3')


def test_a_sentence_of_an_experiment_is_told_as_it_is(tmp_path):
  """And not within one about a flag that would take other values."""
  (tmp_path / 'a.py').write_text(
    'from armd_jax.errors import UserError\n'
    'def get_config():\n  raise UserError("one thing is wrong; mend it")\n'
  )
  for overrides in ([], ['--config.seed=1']):
    for path, message in (('a.py', 'one thing is wrong; mend it'), ('.', '.* the name of one')):
      with pytest.raises(UserError, match=f'^{message}$'):
        flags.parse(Configured, ['program', f'--config={tmp_path / path}', *overrides])


def test_all_programs_are_known():
  assert {'armd_jax.train', 'armd_jax.data.prepare', 'armd_jax.reproduce.__main__'} < {*PROGRAMS}
  assert len(PROGRAMS) == 29
  for name in PROGRAMS:
    text = (ROOT / f'{name.replace(".", "/")}.py').read_text('utf-8')
    assert text.endswith('  cli.run(main, Options)\n'), name


@pytest.mark.parametrize('name', PROGRAMS)
def test_help_prints_every_flag_and_no_others(name, capsys):
  """In one process, so that programs with flags of one name do not clash."""
  options = importlib.import_module(name).Options
  with pytest.raises(SystemExit) as ended:
    flags.parse(options, [name, '--help'])
  assert not ended.value.code
  text = capsys.readouterr().out
  assert command.help_of(name) == text, 'make help writes anew what --help prints'
  about, _, listed = text.partition('\nFlags:\n')
  assert about.strip().startswith((importlib.import_module(name).__doc__ or '').split('\n')[0])
  names = [line.split('=')[0].strip() for line in listed.splitlines() if line.startswith('  --')]
  names = [one.removeprefix('--').removeprefix('[no]') for one in names]
  expected = {flags.CACHE, *(field.name for field in dataclasses.fields(options))}
  assert {one for one in names if one != 'config.FIELD'} == expected
  assert len(names) == len(set(names)) == len(expected) + ('config.FIELD' in names)
  assert max(map(len, listed.splitlines())) <= 100


@pytest.mark.parametrize('name', PROGRAMS)
def test_flags_may_be_left_out_or_are_named(name):
  """Defaults are values that the flags themselves would take."""
  options = importlib.import_module(name).Options
  required = [
    field.name
    for field in dataclasses.fields(options)
    if field.default is dataclasses.MISSING and not field.metadata.get('file')
  ]
  argv = [
    f'--{one}=experiments/quickstart.py' if one == 'config' else f'--{one}=x' for one in required
  ]
  given = flags.parse(options, [name, *argv])
  for field in dataclasses.fields(options):
    if field.default is not dataclasses.MISSING:
      assert getattr(given, field.name) == field.default, field.name
  for one in range(len(argv)):
    with pytest.raises(UserError, match=required[one]):
      flags.parse(options, [name, *argv[:one], *argv[one + 1 :]])


def test_a_switch_takes_true_or_false():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Switch:
    live: bool | None = flags.flag('Slowly.', None)

  for words, value in ((['--live'], True), (['--nolive'], False), (['--live=false'], False)):
    assert flags.parse(Switch, ['x', *words]).live is value
  with pytest.raises(UserError, match=r'^flag --live=off: write true or false; see --help$'):
    flags.parse(Switch, ['x', '--live=off'])

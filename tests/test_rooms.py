"""The layout: programs at the top, rooms below them, and imports that run one way."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'armd_jax'
# A module imports from its own line and from those above it.
LAYERS = (
  ('errors', 'config_fields', 'config_rules'),
  ('hardware', 'files', 'records'),
  ('config', 'order', 'orders', 'flags'),
  ('parallel', 'cli'),
  ('attention',),
  ('data', 'models'),
  ('objectives',),
  ('decode',),
  ('families',),
  ('evaluation',),
  ('show',),
  ('training',),
  ('artifacts',),
  ('compiled', 'recipes', 'register'),
  (
    'train', 'evaluate', 'judge', 'sample', 'convert', 'export', 'aot', 'sweep', 'report',
    'quickstart',
  ),
  ('bench',),
  ('reproduce',),
  ('command',),
)  # fmt: skip
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def files():
  return [path for path in PACKAGE.rglob('*.py') if path != PACKAGE / '__init__.py']


def place(path):
  """The room of a file, or its own name at the top level."""
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported(tree):
  """Names below the package that a file imports from, anywhere in it."""
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module == 'armd_jax':
      found |= {f'armd_jax.{alias.name}' for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found.add(node.module or '')
  return {name.split('.')[1] for name in found if name.startswith('armd_jax.')}


def test_every_room_and_program_has_its_layer():
  assert {place(path) for path in files()} == LAYER.keys()


@pytest.mark.parametrize('path', files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
  here = place(path)
  names = imported(ast.parse(path.read_text('utf-8')))
  against = {name for name in names if LAYER[name] > LAYER[here]}
  assert not against, f'{path.relative_to(PACKAGE)} imports {against} from above its layer'
  programs = next(names for names in LAYERS if here in names) if here in LAYERS[-4] else ()
  assert not {name for name in names if name in programs} - {here}, 'a program imports another'


@pytest.mark.parametrize('name', LAYERS[-4])
def test_a_program_is_flags_and_a_call(name):
  """What it does more is for a room."""
  text = (PACKAGE / f'{name}.py').read_text('utf-8')
  assert len(text.splitlines()) <= 120
  assert 'class Options' in text and 'def main(options: Options) -> None:' in text


def test_an_import_against_the_layers_is_seen():
  tree = ast.parse('def f():\n  from armd_jax.bench import timing\n  from armd_jax import train\n')
  assert imported(tree) == {'bench', 'train'}

"""The notebook runs as it is written, in small."""

import ast
import contextlib
import io
import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'examples').glob('*.ipynb'))
SMALL = {'STEPS': 20, 'LENGTH': 64, 'LAYERS': 2, 'WIDTH': 32}


def run(notebook, parameters):
  """Executes the code cells as Jupyter does; `parameters` replace those of the cell so tagged.

  Returns what every code cell printed, and the value of its last line if that is an expression.
  """
  namespace, outputs = {'__name__': '__main__'}, []
  for cell in notebook['cells']:
    if cell['cell_type'] != 'code':
      continue
    statements = ast.parse(''.join(cell['source'])).body
    last = statements.pop() if isinstance(statements[-1], ast.Expr) else None
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
      exec(compile(ast.Module(statements, []), 'a cell', 'exec'), namespace)
      if last:
        value = eval(compile(ast.Expression(last.value), 'a cell', 'eval'), namespace)
    if 'parameters' in cell['metadata'].get('tags', ()):
      namespace |= parameters
    outputs.append((printed.getvalue(), value))
  return outputs


@pytest.fixture(scope='module')
def outputs(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('notebook') / 'run'
  (path,) = NOTEBOOKS
  return run(json.loads(path.read_text('utf-8')), SMALL | {'WORKDIR': str(workdir)})


def test_it_shows_a_strided_order(outputs):
  assert any('block    [1 2 3 3 4 4 5 5]' in printed for printed, _ in outputs)


def test_it_draws_masks_and_replays_both_texts(outputs):
  picture, page = (value._repr_html_() for _, value in outputs if hasattr(value, '_repr_html_'))
  assert 'data:image/png;base64,iVBOR' in picture
  names = re.findall('class=&quot;generated&quot; data-name=&quot;(.*?)&quot; data-steps', page)
  assert names == ['S = 1', 'S = 4']


def test_it_generates_texts_of_full_length(outputs):
  (printed,) = (printed for printed, _ in outputs if '--- S = 1' in printed)
  assert re.findall(r'--- S = (\d)', printed) == ['1', '4']
  _, *texts = re.split(r'--- S = \d: .* s\n', printed)
  for text in texts:
    assert text.startswith('The ') and len(text.encode()) >= SMALL['LENGTH']


def test_it_scores_and_generates_in_other_orders(outputs):
  (printed,) = (printed for printed, _ in outputs if 'predicted from positions' in printed)
  assert "'T' -" in printed and 'predicted from positions (2, 3, 4, 5, 6, 7)' in printed
  assert re.search(r'perplexity \d+\.\d per byte\n$', printed)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_nothing_that_a_run_leaves_is_committed(path):
  cells = [c for c in json.loads(path.read_text('utf-8'))['cells'] if c['cell_type'] == 'code']
  assert cells
  for cell in cells:
    assert cell['outputs'] == [] and cell['execution_count'] is None, 'clear all outputs'

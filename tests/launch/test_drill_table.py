"""The table of drills in the docs is what is on record, and names drills that exist."""

import ast

import drill_table


def test_the_page_has_the_table_of_what_is_on_record():
  page = drill_table.PAGE.read_text('utf-8')
  assert f'{drill_table.MARK}\n\n{drill_table.recorded()}\n' in page, (
    'run tests/launch/drill_table.py'
  )


def test_every_row_is_of_drills_that_exist():
  drills = [drill for row in drill_table.ROWS.values() for drill in row if drill]
  assert len(set(drills)) == len(drills)
  for drill in drills:
    module, _, name = drill.partition('::')
    tree = ast.parse((drill_table.ROOT / module).read_text('utf-8'))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_cells_add_up_the_cases_of_a_drill():
  disk, _ = next(iter(drill_table.ROWS.values()))
  passed = {
    f'{disk}[a]': {'seconds': 1.6, 'jax': '0.10.2'},
    f'{disk}[b]': {'seconds': 2.0, 'jax': '0.11.0'},
    f'{disk}_more': {'seconds': 9.0, 'jax': '0.12.0'},
  }
  row = drill_table.table(passed).splitlines()[2]
  assert row.endswith('| 2 passed, 4 s, jax 0.10.2, 0.11.0 | not yet |')

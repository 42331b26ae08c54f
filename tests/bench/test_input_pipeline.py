"""The benchmark of the input pipeline counts the tokens of the batches it takes."""

import corpora

from armd_jax.bench import input_pipeline
from armd_jax.config import DataConfig


def test_rates(tmp_path):
  source = corpora.write_text(tmp_path / 'a.txt', corpora.documents(100))
  rows = input_pipeline.measure(DataConfig(source=source), 16, 4, [0], seconds=0.1)
  assert rows[0]['workers'] == 0 and rows[0]['first_seconds'] > 0
  assert 1e3 < rows[0]['tokens_per_second'] < 1e9
  assert len(input_pipeline.report(rows).splitlines()) == 2

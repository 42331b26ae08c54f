"""The evaluation benchmark times the loop beside its forward pass, and takes a profile."""

from armd_jax import config as config_lib
from armd_jax.bench import evaluate
from armd_jax.evaluation import scores

SHAPE = dict(num_layers=1, embed_dim=16, num_heads=2, length=16, position_dim=8, dtype='float32')


def test_rates_and_profile(tmp_path, monkeypatch):
  score, scored = scores.score, []

  def counting(*inputs, **options):
    scored.append(score(*inputs, **options))
    return scored[-1]

  monkeypatch.setattr(scores, 'score', counting)
  config = config_lib.parse({'model': SHAPE, 'order': {'max_shuffled': 0}})
  numbers = evaluate.measure(config, 2, batches=3, repeats=2, profile=str(tmp_path))
  assert 0 < numbers['share'] == numbers['evaluate'] / numbers['forward']
  # A round to warm up, two that are timed, and the profile's.
  assert [[one.name for one in found] for found in scored] == [['left-to-right']] * 4
  assert [*tmp_path.rglob('perfetto_trace.json.gz')]
  assert 'missed' in evaluate.report(numbers | {'share': 0.89})
  assert 'met' in evaluate.report(numbers | {'share': 0.9})

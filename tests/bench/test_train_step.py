"""The training benchmark compares ARMD with AR of the same size, by time and by counted FLOPs."""

from armd_jax import config as config_lib
from armd_jax.bench import train_step

SHAPE = dict(num_layers=4, embed_dim=32, num_heads=2, length=32, dtype='float32', dropout=0.0)


def test_numbers_and_ratios():
  configs = train_step.configs(SHAPE, {'batch_size': 2, 'loss_chunk': 32})
  numbers = train_step.measure(configs, vocab_size=11, repeats=2)
  assert set(numbers) == {'armd', 'ar'}
  ratios = train_step.ratios(numbers)
  # A second stream through one of four layers' queries and MLPs: more work, but not twice as much.
  assert 1.1 < ratios['visible_flops'] < 1.5
  assert ratios['time'] == numbers['armd']['seconds'] / numbers['ar']['seconds']
  for row in numbers.values():
    assert 0 < row['visible_gflops'] < row['dense_gflops']
    assert len(row['all_seconds']) == 2 and row['tokens_per_second'] > 0
  assert 'ARMD / AR: time' in train_step.report(numbers)


def test_what_a_family_sees_by_its_draws_is_counted():
  """Masks of Eso-LM's diffusion phase see fewer keys than those of its sequential one."""
  seen = {}
  for diffused in (0.0, 0.5):
    model = SHAPE | {'family': 'esolm', 'diffusion': {'esolm_diffused': diffused}}
    config = config_lib.parse({
      'model': model, 'train': {'batch_size': 4, 'loss_chunk': 32}, 'order': {'max_shuffled': 0},
    })  # fmt: skip
    seen[diffused] = train_step.measure({'esolm': config}, 11, 1)['esolm']['visible_gflops']
  assert seen[0.5] < seen[0.0]

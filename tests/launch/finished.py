"""What runs of drills have left, and whether it is the same."""

import jax
import numpy as np
import tiny_run

from armd_jax import training
from armd_jax.files import paths
from armd_jax.parallel import sharding
from armd_jax.show import history
from armd_jax.training import checkpoint
from armd_jax.training import workdir as workdir_lib

# Of a drill's record: how processes live and end does not depend on what they compute.
WITHOUT = (
  'armd_jax/attention/*.py', 'armd_jax/decode/*.py', 'armd_jax/evaluation/*.py',
  'armd_jax/models/*.py', 'armd_jax/objectives/*.py', 'armd_jax/config.py', 'armd_jax/order.py',
  'armd_jax/show/*.py', 'armd_jax/sample.py', 'armd_jax/artifacts/standalone.py',
)  # fmt: skip


def final(workdir, step=None):
  config = workdir_lib.read_config(workdir)
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  abstract = training.abstract_state(config, 257, mesh)
  return checkpoint.Checkpoints(workdir).restore(abstract, step)


def lines(workdir):
  """Of the log, but for one that is half written; none where there is no log."""
  log = paths.kept(workdir, 'the run') / 'metrics.jsonl'
  return list(history.lines(log)) if log.exists() else []


def assert_same_run(workdir, expected):
  """The same final state, at every step that was done, or done again, the same loss, and of all
  examples none twice and none left out."""
  (state, index), (want, want_index) = final(workdir), final(expected)
  assert index == want_index
  jax.tree.map(np.testing.assert_array_equal, state, want)
  want_losses = tiny_run.losses(expected)
  steps = {line['step'] for line in lines(workdir) if 'loss' in line}
  assert steps == want_losses.keys()
  for line in lines(workdir):
    assert line.get('loss', want_losses[line['step']]) == want_losses[line['step']], line
  last_done = {line['step']: line['examples'] for line in lines(workdir) if 'examples' in line}
  assert list(last_done.values()) == [[8 * step - 8, 8 * step - 1] for step in sorted(steps)]


def last_step(workdir):
  """Newest step in the log."""
  return max((line['step'] for line in lines(workdir)), default=0)

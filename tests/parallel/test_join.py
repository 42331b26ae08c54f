"""A process that finds no cluster to join names the flag in its sentence."""

import types

import pytest

from armd_jax.errors import UserError
from armd_jax.parallel import distributed


@pytest.mark.parametrize(
  ('found', 'reason'),
  [
    ((None, None, None, None), 'jax finds no tpu cluster here'),
    (OSError('no route to the host'), 'no route to the host'),
    (RuntimeError('the metadata server is away.\nmore'), 'the metadata server is away'),
  ],
)
def test_a_cluster_that_is_not_there(found, reason, monkeypatch):
  def detect(*_):
    if isinstance(found, Exception):
      raise found
    return found

  monkeypatch.setattr(
    distributed.clusters.ClusterEnv, 'auto_detect_unset_distributed_params', detect
  )
  monkeypatch.setattr(distributed.jax.config, 'update', lambda *_: None)
  join = lambda: distributed._join(distributed.Cluster('tpu'), 1, types.SimpleNamespace())
  message = rf'the process on .* cannot join the others: {reason}; check --cluster and the flags'
  with pytest.raises(UserError, match=message):
    join()

"""Hardware that is not here is named in a sentence when its compiler refuses it."""

import sys
import types

import jax
import pytest

from armd_jax.compiled import targets
from armd_jax.errors import UserError


def test_a_slice_that_the_compiler_does_not_have(monkeypatch):
  def refuse(*_):
    raise ValueError('no such\n topology')

  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
  monkeypatch.setitem(sys.modules, 'libtpu', types.ModuleType('libtpu'))
  monkeypatch.setattr(targets.topologies, 'get_topology_desc', refuse)
  platforms = jax.config.jax_platforms
  try:
    message = r'^--topology=v5p:3x5x7 is refused by libtpu \(no such\); write a slice shape that'
    with pytest.raises(UserError, match=message):
      targets.tpu('v5p:3x5x7')
    monkeypatch.setitem(sys.modules, 'libtpu', None)
    with pytest.raises(UserError, match=r"libtpu is not installed; pip install -e '\.\[aot\]'"):
      targets.tpu('v5p:4x4x4')
  finally:
    jax.config.update('jax_platforms', platforms)

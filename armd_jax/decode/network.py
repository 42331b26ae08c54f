"""A trained network as a device decodes with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax

from armd_jax.decode.plan import Form
from armd_jax.models.ar import AR
from armd_jax.models.armd import ARMD
from armd_jax.models.layers import unstack_layers
from armd_jax.models.params import Params
from armd_jax.models.rows import Rows
from armd_jax.parallel import axes

Array = jax.Array


@flax.struct.dataclass
class Network:
  """A model and its weights, unrolled, without remat, and as a form arranges them.

  Attributes:
    params: its matrices are in the compute type, and gathered over the fsdp axis.
    model: static; its layers are unrolled.
    form: static, how `params` are arranged.
  """

  params: Params
  model: ARMD | AR = flax.struct.field(pytree_node=False)
  form: Form = flax.struct.field(pytree_node=False)

  @classmethod
  def of(cls, model: ARMD | AR, params: Params | Network, form: Form) -> Network:
    """The network in a form, so that nothing is cast, gathered or arranged at every step.

    Args:
      model: as trained.
      params: as trained, or a network that was made of them.
      form: how steps will read them.
    """
    network: Any = params
    if not isinstance(params, cls):
      config = dataclasses.replace(model.config, scan_layers=False, remat='none')
      cast = jax.tree_util.tree_map_with_path(
        lambda path, x: _cast(config.dtype, path, x),
        unstack_layers(params),  # type: ignore[arg-type]  # as trained
      )
      network = cls(cast, model.clone(config=config), dataclasses.replace(form, arranges=False))
    if form.arranges and not network.form.arranges:
      return network.replace(params=form.arrange(network.params), form=form)
    return network if form.arranges else network.whole()

  def whole(self) -> Network:
    """The same for many rows."""
    if not self.form.arranges:
      return self
    form = dataclasses.replace(self.form, arranges=False)
    return self.replace(params=self.form.whole(self.params), form=form)

  def extend(self, content_BxW: Array, rows: Rows, caches: Any) -> tuple[Array, Any]:
    """See `ARMD.extend`."""
    with self.form.reading():
      return self.model.apply({'params': self.params}, content_BxW, rows, caches, method='extend')

  def logits(self, hidden: Array) -> Array:
    """See `ARMD.logits`."""
    with self.form.reading():
      return self.model.apply(  # type: ignore[return-value]
        {'params': self.params}, hidden, method='logits'
      )

  def empty_caches(self, batch: int, rows: int) -> Any:
    """Caches with room for so many rows of each sequence."""
    return self.form.caches(self.model.empty_state(batch, rows))


def _cast(dtype: str, path: Any, x: Array) -> Array:
  is_matrix = path[-1].key in ('kernel', 'embedding', 'head')
  names = (None if name == 'embed' else name for name in axes.of_parameter(path, x))
  return axes.constrain(x.astype(dtype) if is_matrix else x, *names)

"""The TPU backend around its numerics: choice, transformations, what it keeps and what it walks."""

import jax
import jax.numpy as jnp
import pytest
from jax._src import ad_checkpoint

from armd_jax import attention
from armd_jax.hardware import device


def _arrays(rows=40, heads=2, groups=1, head_dim=64, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  q = jax.random.normal(keys[0], (1, 2, rows, heads, head_dim), dtype)
  k, v = (jax.random.normal(key, (1, rows, groups, head_dim), dtype) for key in keys[1:])
  end = jnp.arange(1, rows + 1)
  return q, k, v, jnp.stack([end, end - 1])[None]


def _loss(backend):
  def loss(q, k, v, lengths):
    return (attention.prefix_attention(q, k, v, lengths, backend=backend) ** 2).sum()

  return loss


# ---- choice of the backend ---------------------------------------------------------------------


def test_auto_takes_the_reference_on_cpu_and_the_kernel_on_tpu():
  arrays = _arrays()
  jaxpr = str(jax.make_jaxpr(attention.prefix_attention)(*arrays))
  assert 'pallas_call' not in jaxpr
  with device.compiling_for('v5p'):
    jaxpr = str(jax.make_jaxpr(lambda *a: attention.prefix_attention(*a))(*arrays))
  assert 'prefix_attention_forward' in jaxpr
  assert 'name=_prefix_attention_pallas_tpu' in jaxpr  # where flops.py looks for it


def test_auto_takes_the_reference_for_a_reason():
  q, k, v, _ = _arrays()
  why = "there are no kernels for the platform 'cpu'"
  assert attention.choose_and_why('auto', q, k, v) == ('reference', why)
  assert attention.choose_and_why('reference', q, k, v) == ('reference', '')
  with device.compiling_for('v5p'):
    assert attention.choose_and_why('auto', q, k, v) == ('pallas_tpu', '')


@pytest.mark.parametrize(
  ('options', 'reason'),
  [
    ({'head_dim': 96}, 'head dimension 96 is not one of'),
    ({'dtype': jnp.float16}, 'dtype float16 is not one of'),
    ({'rows': 0}, 'are empty'),
  ],
)
def test_explicit_choice_that_cannot_run_says_why(options, reason):
  with device.compiling_for('v5e'), pytest.raises(ValueError, match=reason):
    attention.prefix_attention(*_arrays(**options), backend='pallas_tpu')


def test_arrays_of_several_types_are_refused():
  q, k, v, lengths = _arrays()
  other = jnp.float32 if v.dtype == jnp.bfloat16 else jnp.bfloat16
  with device.compiling_for('v5e'), pytest.raises(ValueError, match='values differ in dtype'):
    attention.prefix_attention(q, k, v.astype(other), lengths, backend='pallas_tpu')


def test_explicit_choice_on_another_platform_raises():
  with pytest.raises(ValueError, match="the platform is 'cpu', not a TPU"):
    attention.prefix_attention(*_arrays(), backend='pallas_tpu')
  with pytest.raises(ValueError, match='write one of'):
    attention.prefix_attention(*_arrays(), backend='pallas')
  with pytest.raises(ValueError, match='write one of'), device.compiling_for('v9'):
    pass


def test_unknown_tpu_is_not_taken_by_auto(monkeypatch):
  monkeypatch.setattr(device, 'current', lambda: device.Device('tpu', 'TPU v9'))
  with pytest.raises(ValueError, match="chip 'TPU v9' is not one of"):
    attention.prefix_attention(*_arrays(), backend='pallas_tpu')
  assert 'pallas_call' not in str(jax.make_jaxpr(attention.prefix_attention)(*_arrays()))


# ---- transformations ---------------------------------------------------------------------------


@pytest.mark.parametrize(('dtype', 'parts'), [(jnp.float32, 1), (jnp.bfloat16, 2)])
def test_remat_policy_saves_output_and_statistics_by_name(dtype, parts):
  names = ('prefix_attention_out', 'prefix_attention_stats')
  policy = jax.checkpoint_policies.save_only_these_names(*names)
  layer = jax.checkpoint(_loss('pallas_tpu'), policy=policy)
  q, k, v, lengths = _arrays(dtype=dtype)
  with device.compiling_for('v5e'):
    saved = ad_checkpoint.saved_residuals(lambda *a: layer(*a, lengths), q, k, v)
  shapes = sorted(x.shape for x, origin in saved if 'argument' not in origin)
  # [B, G, C, M, D] with C = 2 streams x 2 heads, and their two statistics; folded, C = 1.
  # In bfloat16 also what rounding took from the output.
  assert shapes.count((1, 1, 1, 160, 64)) == parts
  assert (1, 1, 2, 1, 160) in shapes
  assert not any(shape[-2:] == (160, 40) for shape in shapes)  # no scores


def test_kernels_state_their_cost():
  with device.compiling_for('v5e'):
    jaxpr = jax.make_jaxpr(jax.grad(_loss('pallas_tpu')))(*_arrays(rows=512))
  assert str(jaxpr).count('CostEstimate(flops=') == 2


def test_the_precision_of_the_process_is_not_the_kernels():
  """Full precision of bfloat16 is what Mosaic refuses to compile."""
  arrays = _arrays(dtype=jnp.bfloat16)
  with device.compiling_for('v5e'), jax.default_matmul_precision('float32'):
    jaxpr = str(jax.make_jaxpr(jax.grad(_loss('pallas_tpu'), (0, 1, 2)))(*arrays))
  assert 'dot_general' in jaxpr and 'HIGHEST' not in jaxpr

"""What is read from compiled programs: collectives by kind and axis, loops, memory, products."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from armd_jax.compiled import hlo

SIZES = {'data': 2, 'fsdp': 2, 'tensor': 2}


SPLIT, WHOLE = PartitionSpec('fsdp'), PartitionSpec()

# Of x, 8 x 4 floats or 128 bytes on a device: a function, how its result is split, and the kind,
# axis and bytes of what it sends.
COLLECTIVES = {
  'gather': (lambda x: lax.all_gather(x, 'fsdp', tiled=True), WHOLE, 'all-gather', 'fsdp', 128),
  'sum': (lambda x: lax.psum(x, 'tensor'), SPLIT, 'all-reduce', 'tensor', 128),
  'sum over two': (
    lambda x: lax.psum(x, ('data', 'tensor')), SPLIT, 'all-reduce', 'data+tensor', 192
  ),
  'scatter': (
    lambda x: lax.psum_scatter(x, 'data', tiled=True), PartitionSpec(('fsdp', 'data')),
    'reduce-scatter', 'data', 64,
  ),
  'exchange': (
    lambda x: lax.all_to_all(x, 'tensor', 0, 1, tiled=True), PartitionSpec('fsdp', 'tensor'),
    'all-to-all', 'tensor', 64,
  ),
  'pass on': (
    lambda x: lax.ppermute(x, 'data', [(0, 1), (1, 0)]), SPLIT, 'collective-permute', 'data', 128
  ),
}  # fmt: skip


def nested(x):
  inner = lambda i, y: lax.psum(y, 'tensor') / 3 + i
  return lax.fori_loop(0, 5, lambda _, y: lax.fori_loop(0, 7, inner, y), x)


def search(x):
  more = lambda y: lax.psum(jnp.sum(y), 'data') < 9
  return lax.while_loop(more, lambda y: lax.psum(y, 'fsdp') + 1, x)


def texts():
  """Compiled programs on 8 devices; runs where they are."""
  functions = {name: row[:2] for name, row in COLLECTIVES.items()}
  functions |= {'nested': (nested, SPLIT), 'search': (search, SPLIT)}
  mesh = Mesh(np.asarray(jax.devices()).reshape(tuple(SIZES.values())), tuple(SIZES))
  x = jax.ShapeDtypeStruct((16, 4), jnp.float32)

  def compiled(function, out_specs):
    split = jax.shard_map(function, mesh=mesh, in_specs=SPLIT, out_specs=out_specs, check_vma=False)
    return jax.jit(split).lower(x).compile().as_text()

  return {name: compiled(*row) for name, row in functions.items()}


@pytest.fixture(scope='module')
def programs(eight_devices):
  return {name: hlo.Program(text, SIZES) for name, text in eight_devices(texts).items()}


@pytest.mark.parametrize('name', COLLECTIVES)
def test_bytes_sent(programs, name):
  *_, kind, axis, sent = COLLECTIVES[name]
  cost = programs[name].cost
  assert dict(cost.sent) == {(kind, axis): sent}
  assert cost.launches[kind, axis] == 1


def test_loops_multiply_what_stands_in_them(programs):
  cost = programs['nested'].cost
  assert cost.launches['all-reduce', 'tensor'] == 35
  assert cost.sent['all-reduce', 'tensor'] == 35 * 128


def test_a_loop_that_depends_on_data_counts_one_round(programs):
  assert not programs['search'].cost.sent['all-reduce', 'fsdp']
  (once,) = programs['search'].rounds.values()
  assert once.sent['all-reduce', 'fsdp'] == 128


def test_products_and_memory_of_a_loop_over_slices():
  """A scan reads its slice of the stacked matrices in every round, not all of them."""
  layers, width = 6, 256

  def apply(x, stacked):
    return jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, stacked)[0]

  shapes = (
    jax.ShapeDtypeStruct((width, width), jnp.float32),
    jax.ShapeDtypeStruct((layers, width, width), jnp.float32),
  )
  one = NamedSharding(Mesh(np.asarray(jax.devices()[:1]), ('one',)), WHOLE)
  compiled = jax.jit(apply, in_shardings=one, out_shardings=one).lower(*shapes).compile()
  cost = hlo.Program(compiled.as_text(), {'one': 1}).cost
  assert cost.product_flops == layers * 2 * width**3
  matrix = 4 * width**2
  # Per layer at least: the slice and x in, the product out and in, tanh out.
  assert 4 * layers * matrix < cost.hbm_bytes < 10 * layers * matrix


TPU = """HloModule jit_step, is_scheduled=true

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

%less (p: (s32[], bf16[4,8], bf16[2,2])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[2,2]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%round (p: (s32[], bf16[4,8], bf16[2,2])) -> (s32[], bf16[4,8], bf16[2,2]) {
  %p = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[2,2]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %w = bf16[2,2]{1,0} get-tuple-element(%p), index=2
  %start = (bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[4,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%x), channel_id=9, source_target_pairs={{0,4},{4,0},{1,5},{5,1}}
  %done = bf16[4,8]{1,0:T(8,128)(2,1)} collective-permute-done(%start)
  %whole = bf16[4,8]{1,0} all-gather(%w), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}
  %same = bf16[4,8]{1,0} all-reduce(%done), replica_groups=[8,1]<=[8], to_apply=%add
  %y = bf16[4,8]{1,0} all-reduce(%same), replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %out = (s32[], bf16[4,8], bf16[2,2]) tuple(%i, %y, %w)
}

ENTRY %main (x: bf16[4,8], w: bf16[2,2]) -> bf16[4,8] {
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[2,2]{1,0} parameter(1)
  %two = s32[]{:T(128)} constant(2)
  %begin = s32[]{:T(128)} copy(%two)
  %all = (s32[], bf16[4,8], bf16[2,2]) tuple(%begin, %x, %w)
  %loop = (s32[], bf16[4,8], bf16[2,2]) while(%all), condition=%less, body=%round
  ROOT %result = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_what_the_tpu_compiler_writes():
  """No trip counts, asynchronous pairs, layouts with tiles, arrays in VMEM, groups as a mesh; a
  device that is a group of its own sends nothing."""
  cost = hlo.Program(TPU, SIZES).cost
  rounds = 12 - 2
  assert cost.sent == {
    ('collective-permute', 'data'): rounds * 64,
    ('all-gather', 'fsdp+tensor'): rounds * 3 * 8,
    ('all-reduce', 'tensor'): rounds * 64,
  }
  # %x lies in VMEM, and so do flags; the copy of the first index comes once.
  assert cost.hbm_bytes == rounds * (2 * 64 + (8 + 64) + 2 * 2 * 64) + 8
  # Four collectives and the comparison of every round, and that copy.
  assert cost.kernels == rounds * (4 + 1) + 1


STACK = """HloModule jit_step, is_scheduled=true

%put (stack: f32[6,4,8], i: s32[], x: f32[4,8]) -> f32[6,4,8] {
  %stack = f32[6,4,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[4,8]{1,0} parameter(2)
  %part = f32[1,4,8]{2,1,0} bitcast(%x)
  %zero = s32[] constant(0)
  ROOT %all = f32[6,4,8]{2,1,0} dynamic-update-slice(%stack, %part, %i, %zero, %zero)
}

ENTRY %main (stack: f32[6,4,8], i: s32[], x: f32[4,8]) -> f32[6,4,8] {
  %stack = f32[6,4,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[4,8]{1,0} parameter(2)
  %start = ((f32[6,4,8]{2,1,0}, s32[], f32[4,8]{1,0}), f32[6,4,8]{2,1,0}, u32[]) \
fusion-start(%stack, %i, %x), kind=kLoop, calls=%put
  ROOT %done = f32[6,4,8]{2,1,0} fusion-done(%start)
}
"""


def test_a_fusion_that_runs_beside_others_moves_what_it_would_alone():
  """GPU programs of jax >= 0.11 start some early, and list the operands beside the results."""
  alone = STACK.replace('((f32[6,4,8]{2,1,0}, s32[], f32[4,8]{1,0}), f32[6,4,8]{2,1,0}, u32[])', '')
  alone = alone.replace('= ' + ' fusion-start', '= f32[6,4,8]{2,1,0} fusion')
  alone = re.sub(r'ROOT %done.*', 'ROOT %done = f32[6,4,8]{2,1,0} bitcast(%start)', alone)
  assert ' fusion(' in alone and 'fusion-start' not in alone
  # The slice is read and written, and the index read.
  for text in (STACK, alone):
    assert hlo.Program(text, SIZES).cost.hbm_bytes == 2 * 4 * 4 * 8 + 4


def test_memory_that_is_only_taken_is_not_moved():
  text = """ENTRY %main () -> f32[8] {
  ROOT %stack = f32[8]{0} custom-call(), custom_call_target="AllocateBuffer"
}
"""
  assert hlo.Program(text, SIZES).cost.hbm_bytes == 0


def test_batched_products_as_dilated_convolutions():
  """The TPU compiler's form of a batched product: no hole of the window counts."""
  text = """ENTRY %main (a: f32[4,128,64], b: f32[4,64,768]) -> f32[4,128,768] {
  %a = f32[4,128,64]{2,1,0} parameter(0)
  %b = f32[4,64,768]{2,1,0} parameter(1)
  ROOT %c = f32[4,128,768]{2,1,0} convolution(%a, %b), window={size=4 stride=3 lhs_dilate=4}, \
dim_labels=0bf_0io->0bf
}
"""
  assert hlo.Program(text, SIZES).cost.product_flops == 4 * 2 * 128 * 64 * 768


def test_groups_on_a_reordered_mesh():
  text = ", replica_groups=mesh['a'=2,'b'=2,'c'=2], device_ids=([4,2]T(1,0)) {'b','c'}, x=1"
  assert hlo.groups_of(text, 8) == [[0, 2, 4, 6], [1, 3, 5, 7]]
  assert hlo.groups_of(text.replace("{'b','c'}", "{'a','c'}"), 8) == [[0, 2, 1, 3], [4, 6, 5, 7]]


def test_unreadable_groups_are_refused():
  with pytest.raises(ValueError, match='cannot read the devices'):
    hlo.groups_of(", replica_groups=mesh['a'=4] {'a':(1)2}", 4)

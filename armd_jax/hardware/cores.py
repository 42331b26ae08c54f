"""What a core of a chip has, which decides how large the tiles of a kernel are."""

from __future__ import annotations

STREAMING_MULTIPROCESSORS = 132  # of an H100 SXM or an H200

# By the names of TPUs in `hardware.chips`, of one TensorCore.
MAX_VMEM_MIB = {'v4': 16, 'v5e': 128, 'v5p': 64, 'v6e': 128, '7x': 64}
WIDE = ('v6e', '7x')  # matrix units of 256 x 256: more rows per load of keys keep them busy

# Peak bf16 multiply-adds per cycle of a TensorCore (public peaks over clock and cores). 7x: two
# 256 x 256 units, two rows a cycle, as in v6e.
PEAK = {'v4': 65536, 'v5e': 65536, 'v5p': 65536, 'v6e': 262144, '7x': 262144}

# The smallest slice of each chip that libtpu compiles for.
TOPOLOGIES = {
  'v4': 'v4:2x2x1',
  'v5e': 'v5e:2x4',
  'v5p': 'v5p:2x2x1',
  'v6e': 'v6e:2x2',
  '7x': 'tpu7x:2x2x1',
}

"""A small checkpoint of Llama's family as one file of GGUF."""

import re

import numpy as np
import pytest
import tiny_llama

from armd_jax.models import gguf_file

_HEADS_OF = {'attn_q': 'attention', 'attn_k': 'key_value'}


def write(path, kind):
  """As llama.cpp's converter writes it: halves of a head interleaved, unless it is a Qwen."""
  gguf = pytest.importorskip('gguf', reason='writes GGUF, which needs the package gguf')
  d = tiny_llama.described(kind)
  writer = gguf.GGUFWriter(path, d['model_type'])
  writer.add_context_length(64)
  writer.add_embedding_length(tiny_llama.E)
  writer.add_block_count(tiny_llama.LAYERS)
  writer.add_feed_forward_length(tiny_llama.F)
  writer.add_head_count(tiny_llama.HEADS)
  writer.add_head_count_kv(d['num_key_value_heads'])
  writer.add_layer_norm_rms_eps(d['rms_norm_eps'])
  writer.add_rope_freq_base(d.get('rope_theta', 1e4))
  if 'head_dim' in d:
    writer.add_key_length(d['head_dim'])
  writer.add_token_list([f'w{n}' for n in range(tiny_llama.V)])
  writer.add_bos_token_id(1)
  for name, x in tiny_llama.arrays(kind).items():
    name = name.removeprefix('model.')
    for theirs, ours in gguf_file._ARRAYS.items():
      if re.search(rf'(^|\.){re.escape(ours)}\.(weight|bias)$', name):
        name = re.sub(r'^layers\.', 'blk.', name).replace(ours, theirs)
        break
    heads = _HEADS_OF.get(theirs) if d['model_type'] == 'llama' else None
    if heads:
      heads = d[f'num_{heads}_heads']
      x = x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
    writer.add_tensor(name, np.ascontiguousarray(x))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()

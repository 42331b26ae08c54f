"""ARMD, auto-regressive masked diffusion (arXiv 2601.16971), in PyTorch, for transformers.

  model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
  model.generate(input_ids, streams=4)           # four tokens a step, with a cache
  model.token_logits(input_ids, position, block) # of every token, along any generation order
  model(input_ids).logits                        # left to right: row t predicts token t + 1

A generation order gives every slot, the n-th place in it, a position in the text (from 1) and a
block; slots of a block are predicted together, from earlier blocks alone. Content rows hold BOS and
the tokens; query rows hold slots without their tokens. In the first layers queries read content
rows, in the others each other. Shapes: B texts, C content rows, Q query rows, E the width, H heads
of width D, K keys, P the width of position rows.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class ArmdConfig(PreTrainedConfig):
  """The fields of armd_jax's `ModelConfig` that decide what is computed."""

  model_type = 'armd'
  attribute_map = {  # noqa: RUF012
    'hidden_size': 'embed_dim',
    'num_hidden_layers': 'num_layers',
    'max_position_embeddings': 'length',
  }

  def __init__(
    self, vocab_size=257, length=1024, num_layers=2, num_two_stream_layers=1, embed_dim=64,
    num_heads=2, num_kv_heads=2, head_width=32, mlp_dim=256, mlp='gelu', architecture='rope',
    rotary=None, norm_epsilon=1e-6, query_key_norm=False, biases='none', tied_head=True,
    first_token='predicted', query_seed='prefix', query_seed_norm='none', query_seed_radius=8,
    position_rows='sinusoidal', position_dim=64, **kwargs,
  ):  # fmt: skip
    own = dict(locals())
    for name in own.keys() - {'self', 'kwargs', '__class__'}:
      setattr(self, name, own[name])
    self.rotary = rotary or {'theta': 1e4, 'kind': 'none'}
    # This file ties them by itself; what `save_pretrained` wrote has the field, too.
    super().__init__(**kwargs | {'tie_word_embeddings': False})


def frequencies(c):
  """Radians per position of every pair of features."""
  r = c.rotary
  frequency = r['theta'] ** -(torch.arange(0, c.head_width, 2, dtype=torch.float32) / c.head_width)
  if r['kind'] == 'linear':
    return frequency / r['factor']
  if r['kind'] == 'llama3':
    turns = r['original_length'] * frequency / (2 * math.pi)
    kept = (turns - r['low_frequency']) / (r['high_frequency'] - r['low_frequency'])
    kept = kept.clamp(0, 1)
    return kept * frequency + (1 - kept) * frequency / r['factor']
  return frequency


def rotate(x_BxQxHxD, rotation):
  """RoPE, which pairs feature i with i + D/2."""
  if rotation is None:
    return x_BxQxHxD
  cos, sin = (x[..., None, :] for x in rotation)
  a, b = x_BxQxHxD.float().chunk(2, dim=-1)
  return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).type_as(x_BxQxHxD)


class RMSNorm(nn.Module):
  def __init__(self, width, epsilon):
    super().__init__()
    self.weight = nn.Parameter(torch.ones(width))
    self.epsilon = epsilon

  def forward(self, x):
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.epsilon)
    return (y * self.weight).type_as(x)


def make_norm(c, width):
  kind = nn.LayerNorm if c.architecture == 'gpt2' else RMSNorm
  return kind(width, c.norm_epsilon)


class Block(nn.Module):
  """Attention of some rows to a prefix of the keys of others, and an MLP."""

  def __init__(self, c):
    super().__init__()
    self.c = c
    wide, few = c.num_heads * c.head_width, c.num_kv_heads * c.head_width
    first = c.biases in ('query_key_value', 'attention', 'all')
    self.attention_norm = make_norm(c, c.embed_dim)
    self.query = nn.Linear(c.embed_dim, wide, bias=first)
    self.key_value = nn.Linear(c.embed_dim, 2 * few, bias=first)
    self.out = nn.Linear(wide, c.embed_dim, bias=c.biases in ('attention', 'all'))
    self.mlp_norm = make_norm(c, c.embed_dim)
    parts = 2 if c.mlp == 'swiglu' else 1
    self.up = nn.Linear(c.embed_dim, parts * c.mlp_dim, bias=c.biases == 'all')
    self.down = nn.Linear(c.mlp_dim, c.embed_dim, bias=c.biases == 'all')
    if c.query_key_norm:
      self.query_norm = RMSNorm(c.head_width, c.norm_epsilon)
      self.key_norm = RMSNorm(c.head_width, c.norm_epsilon)

  def keys(self, source_BxCxE, rotation, cache):
    """Keys and values of all rows so far, those of `source` the last; kept in the cache."""
    both = self.key_value(self.attention_norm(source_BxCxE))
    k, v = both.unflatten(-1, (2, self.c.num_kv_heads, self.c.head_width)).unbind(-3)
    k = rotate(self.key_norm(k) if self.c.query_key_norm else k, rotation)
    if cache is not None:
      if cache:
        k, v = torch.cat([cache[0], k], dim=1), torch.cat([cache[1], v], dim=1)
      cache[:] = k, v
    return k, v

  def forward(self, rows_BxQxE, rotation, keys, lengths_BxQ):
    """Row q sees the first `lengths[q]` keys."""
    c = self.c
    q = self.query(self.attention_norm(rows_BxQxE)).unflatten(-1, (c.num_heads, c.head_width))
    q = rotate(self.query_norm(q) if c.query_key_norm else q, rotation)
    k, v = (x.repeat_interleave(c.num_heads // c.num_kv_heads, dim=2) for x in keys)
    sees = torch.arange(k.shape[1], device=k.device) < lengths_BxQ[..., None]
    seen = F.scaled_dot_product_attention(
      q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=sees[:, None]
    )
    rows_BxQxE = rows_BxQxE + self.out(seen.transpose(1, 2).flatten(2))
    hidden = self.up(self.mlp_norm(rows_BxQxE))
    if c.mlp == 'swiglu':
      gate, up = hidden.chunk(2, dim=-1)
      return rows_BxQxE + self.down(F.silu(gate) * up)
    return rows_BxQxE + self.down(F.gelu(hidden, approximate='tanh'))


class State:
  """What is remembered between steps: keys and values by layer, and what the query seed reads."""

  def __init__(self, num_layers):
    self.caches = [[] for _ in range(num_layers)]
    self.aggregate_BxPxE, self.x_BxCxE, self.content_position = 0, None, None
    self.committed = 0


class ArmdForCausalLM(PreTrainedModel):
  """The network; see the head of this file."""

  config_class = ArmdConfig
  main_input_name = 'input_ids'

  def __init__(self, config):
    super().__init__(config)
    c = config
    self.embedding = nn.Embedding(c.vocab_size, c.embed_dim)
    self.bos = nn.Parameter(torch.zeros(c.embed_dim))
    if c.architecture == 'gpt2':
      self.positions = nn.Parameter(torch.zeros(c.length + 1, c.embed_dim))
    if not c.tied_head:
      self.head = nn.Linear(c.embed_dim, c.vocab_size, bias=False)
    if c.query_seed == 'mask_embedding':
      self.mask = nn.Parameter(torch.zeros(c.embed_dim))
    if c.query_seed == 'warm':
      self.gain = nn.Parameter(torch.zeros(1))
    if c.query_seed in ('neighbours', 'warm'):
      self.neighbours = nn.Parameter(torch.zeros(2 * c.query_seed_radius, c.embed_dim))
      self.unknown = nn.Parameter(torch.zeros(2 * c.query_seed_radius, c.embed_dim))
    if c.query_seed == 'prefix' and c.position_rows == 'learned':
      self.pe = nn.Parameter(torch.zeros(c.length + 1, c.position_dim))
    self.layers = nn.ModuleList(Block(c) for _ in range(c.num_layers))
    self.final_norm = make_norm(c, c.embed_dim)
    self.post_init()

  def get_input_embeddings(self):
    return self.embedding

  # ----- the network

  def _at(self, position):
    return self.positions[position.clamp(max=self.config.length)]

  def _rotation(self, position):
    if self.config.architecture == 'gpt2':
      return None
    angle = position[..., None].float() * frequencies(self.config).to(position.device)
    return angle.cos(), angle.sin()

  def _position_rows(self, position):
    c = self.config
    if c.position_rows == 'learned':
      return F.normalize(self.pe[position.clamp(max=c.length)].float(), dim=-1, eps=0)
    half = c.position_dim // 2
    step = torch.arange(half, dtype=torch.float32, device=position.device)
    angle = position[..., None].float() * 1e4 ** (-step / half)
    return torch.cat([angle.sin(), angle.cos()], dim=-1) * half**-0.5

  def _seed(self, x_BxCxE, content_position, position, lengths, state):
    """Query rows before the first layer, and where RoPE places them."""
    c, before = self.config, state.committed if state else 0
    if c.query_seed == 'mask_embedding':
      return self.mask.expand(len(x_BxCxE), position.shape[1], -1), position
    if c.query_seed == 'shift':
      latest = (lengths - before - 1).clamp(0, x_BxCxE.shape[1] - 1)
      rows = latest.expand(len(x_BxCxE), -1)[..., None].expand(-1, -1, c.embed_dim)
      return x_BxCxE.gather(1, rows), content_position.expand(len(latest), -1).gather(1, latest)
    if c.query_seed == 'prefix':
      g_BxQxE = self._aggregate(x_BxCxE, content_position, position, lengths - before, state)
    else:
      look = self._looker(x_BxCxE, content_position, lengths, state)
      g_BxQxE = self._beside(look, position)
    if c.query_seed_norm == 'rms':
      g_BxQxE = g_BxQxE * torch.rsqrt(g_BxQxE.square().mean(-1, keepdim=True) + 1e-6)
    if c.query_seed != 'warm':
      return g_BxQxE.type_as(x_BxCxE), position
    # The token on the left, and BOS, moved to its place, where that is not known.
    (left_BxQxE, is_known), (bos_BxQxE, _) = look(position - 1), look(torch.zeros_like(position))
    if c.architecture == 'gpt2':
      bos_BxQxE = bos_BxQxE + self._at(position - 1) - self._at(torch.zeros_like(position))
      g_BxQxE = g_BxQxE + self._at(position) - self._at(position - 1)
    left_BxQxE = torch.where(is_known[..., None], left_BxQxE, bos_BxQxE)
    return (left_BxQxE + self.gain * g_BxQxE).type_as(x_BxCxE), position - 1 + self.gain

  def _aggregate(self, x_BxCxE, content_position, position, new_lengths, state):
    """Eq. 6: a linear attention, by position, over the content rows of earlier blocks."""
    pe_q, pe_k = self._position_rows(position), self._position_rows(content_position)
    sees = torch.arange(x_BxCxE.shape[1], device=x_BxCxE.device) < new_lengths[..., None]
    g_BxQxE = (pe_q @ pe_k.transpose(1, 2) * sees) @ x_BxCxE.float()
    if state is not None:
      if state.committed:
        g_BxQxE = g_BxQxE + pe_q @ state.aggregate_BxPxE
      state.aggregate_BxPxE = state.aggregate_BxPxE + pe_k.transpose(1, 2) @ x_BxCxE.float()
    return g_BxQxE

  def _looker(self, x_BxCxE, content_position, lengths, state):
    """A function of a place for each slot: what is there, and whether earlier blocks hold it."""
    radius = self.config.query_seed_radius
    if state is not None:
      if state.committed:
        x_BxCxE = torch.cat([state.x_BxCxE, x_BxCxE], 1)
        content_position = torch.cat([state.content_position, content_position], 1)
      state.x_BxCxE, state.content_position = x_BxCxE, content_position
    batch, count, width = x_BxCxE.shape
    # By place, from the margin of the radius before BOS on: which content row is there, if any. One
    # place is behind the longest text, of which `forward` predicts the next token.
    nowhere = torch.full((len(content_position), self.config.length + 2 + 2 * radius), count)
    index = torch.arange(count).expand(len(content_position), -1)
    row_at = nowhere.to(x_BxCxE.device).scatter(
      1, content_position + radius, index.to(x_BxCxE.device)
    )

    def look(place):
      rows = max(len(place), len(row_at))
      row = row_at.expand(rows, -1).gather(1, place.expand(rows, -1) + radius)
      at = row.clamp(max=count - 1).expand(batch, -1)[..., None].expand(-1, -1, width)
      return x_BxCxE.gather(1, at), (row < lengths) & (row < count)

    return look

  def _beside(self, look, position):
    """The tokens beside a slot, weighed by their offset, as far as earlier blocks hold them."""
    radius, total = self.config.query_seed_radius, 0
    for number, offset in enumerate([d for d in range(-radius, radius + 1) if d]):
      x_BxQxE, is_known = look(position + offset)
      weighed = x_BxQxE.float() * self.neighbours[number]
      total = total + torch.where(is_known[..., None], weighed, self.unknown[number])
    return total

  def _run(self, ids_BxC, content_position, position, content_lengths, lengths, causal_lengths,
           state=None):  # fmt: skip
    """Logits of the query rows. An id of -1 is BOS; lengths count rows seen, cached ones too; of
    content rows in the first layers, in the others of query rows."""
    c = self.config
    x = self.embedding(ids_BxC.clamp(min=0))
    x = torch.where((ids_BxC < 0)[..., None], self.bos, x)
    if c.architecture == 'gpt2':
      x = x + self._at(content_position)
    g, moved = self._seed(x, content_position, position, lengths, state)
    content_rotation, rotation = self._rotation(content_position), self._rotation(moved)
    for number, layer in enumerate(self.layers):
      cache = state.caches[number] if state else None
      if number < c.num_two_stream_layers:
        keys = layer.keys(x, content_rotation, cache)
        g = layer(g, rotation, keys, lengths)
        if number < c.num_two_stream_layers - 1:
          x = layer(x, content_rotation, keys, content_lengths)
      else:
        g = layer(g, rotation, layer.keys(g, rotation, cache), causal_lengths)
    if state:
      state.committed += ids_BxC.shape[1]
    matrix = self.embedding.weight if c.tied_head else self.head.weight
    return F.linear(self.final_norm(g), matrix).float()

  # ----- along an order

  def token_logits(self, input_ids, position=None, block=None, first_ids=None):
    """[B, N, V], for every token of a text from those in earlier blocks, in text order.

    Args:
      input_ids: [B, N], without BOS.
      position, block: [B or 1, N], of the slots; None: left to right.
      first_ids: [B], in BOS's place, of a model whose first token is given.
    """
    count, most = input_ids.shape[1], self.config.length - (self.config.first_token == 'given')
    if count > most + 1:  # the token behind a text has a slot, too
      raise ValueError(f'the text has more than {most} tokens, which the model takes; cut it')
    slot = torch.arange(1, count + 1, device=input_ids.device)[None]
    position = slot if position is None else position
    block = position if block is None else block
    begin = (block[:, :, None] > block[:, None, :]).sum(-1)
    end = (block[:, :, None] >= block[:, None, :]).sum(-1)
    order = (position - 1).expand(len(input_ids), -1)
    shifted = lambda x: F.pad(x[:, :-1], (1, 0))
    ids = shifted(input_ids.gather(1, order))
    ids[:, 0] = -1 if first_ids is None else first_ids
    lengths = (1 + shifted(end)).clamp(max=count)
    logits = self._run(ids, shifted(position), position, lengths, 1 + begin, end)
    return logits.gather(1, order.argsort(1)[..., None].expand_as(logits))

  def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
    """Row t of the logits predicts token t + 1, left to right. A text may begin with BOS's id;
    padding may be behind it, not before it."""
    if attention_mask is not None and bool((attention_mask.diff(dim=1) > 0).any()):
      raise ValueError('padding before a text moves it; pad on the right (padding_side)')
    c, start = self.config, getattr(self.config, 'bos_token_id', None)
    given = c.first_token == 'given'
    if given or (start is not None and bool((input_ids[:, 0] == start).all())):
      first, ids = input_ids[:, 0] if given else None, F.pad(input_ids[:, 1:], (0, 1))
      logits = self.token_logits(ids, first_ids=first)
    else:
      logits = self.token_logits(F.pad(input_ids, (0, 1)))[:, 1:]
    loss = None
    if labels is not None:
      loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return CausalLMOutput(loss=loss, logits=logits)

  @torch.no_grad()
  def generate(self, input_ids=None, streams=1, max_length=None, max_new_tokens=None,
               temperature=0.0, generator=None, batch_size=1, do_sample=None, attention_mask=None,
               **unused):  # fmt: skip
    """[B, length] ids: the prompt and what follows, up to `streams` tokens a step.

    The rest of the text is cut into `streams` runs. Their first tokens come one by one, then one
    token of every run at a time. EOS ends no text, so that all have one length.
    """
    if unknown := unused.keys() - {'eos_token_id', 'pad_token_id', 'use_cache', 'token_type_ids'}:
      raise ValueError(f'generate takes no {min(unknown)}; leave it out')
    if streams < 1:
      raise ValueError(f'streams is {streams}; write 1 or more')
    if attention_mask is not None and not bool(attention_mask.all()):
      raise ValueError('prompts of a batch have one length here; give those of another apart')
    if do_sample is not None:
      temperature = (temperature or 1.0) if do_sample else 0.0
    c, device = self.config, self.bos.device
    start = getattr(c, 'bos_token_id', None)
    if input_ids is None:
      input_ids = torch.zeros(batch_size, 0, dtype=torch.long, device=device)
    prompt = input_ids
    if prompt.shape[1] and start is not None and bool((prompt[:, 0] == start).all()):
      prompt = prompt[:, 1:]  # BOS is a row of its own here
    given, most = prompt.shape[1], c.length - (c.first_token == 'given')
    length = given + max_new_tokens if max_new_tokens else max_length or most
    if not given < length <= most:
      raise ValueError(f'the text would have {length} tokens, {given} of them given, of {most}')
    short, extra = divmod(length - given, streams)
    sizes = [short + (s < extra) for s in range(streams)]
    cuts = [given + 1 + sum(sizes[:s]) for s in range(streams)]
    blocks = [[cut] for cut, size in zip(cuts, sizes, strict=True) if size]
    for step in range(1, short + 1):
      found = [cut + step for cut, size in zip(cuts, sizes, strict=True) if step < size]
      blocks += [found] if found else []
    text = F.pad(prompt, (0, length - given))
    first = c.eos_token_id if c.first_token == 'given' else -1
    state, row = State(c.num_layers), lambda x: torch.tensor([x], device=device)
    # A pass commits the rows that came before and predicts the next block.
    new_ids = torch.cat([torch.full_like(text[:, :1], first), prompt], 1)
    new_position = list(range(given + 1))
    if given:  # the prompt through both kinds of rows: later layers keep those of queries
      ones = row(list(range(1, given + 1)))
      self._run(new_ids[:, :-1], row(new_position[:-1]), ones, ones, ones, ones, state)
      new_ids, new_position = new_ids[:, -1:], new_position[-1:]
    queries = given
    for positions in blocks:
      seen = row([state.committed + len(new_position)])
      queries += len(positions)
      logits = self._run(
        new_ids, row(new_position), row(positions), seen.expand(1, len(new_position)),
        seen.expand(1, len(positions)), row([queries]).expand(1, len(positions)), state,
      )  # fmt: skip
      if temperature:
        p = (logits / temperature).softmax(-1).flatten(0, 1)
        new_ids = torch.multinomial(p, 1, generator=generator).view(len(text), -1)
      else:
        new_ids = logits.argmax(-1)
      text[:, [position - 1 for position in positions]] = new_ids
      new_position = positions
    return torch.cat([input_ids[:, : input_ids.shape[1] - given], text], 1)

"""What chance does to files and values, as strategies of hypothesis."""

from __future__ import annotations

import copy
import json

from hypothesis import strategies as st

# What is in JSON where something else should be.
ODD = (
  None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 10**30, 10**399, 0.5, -1e-9, 1e39, 1e308,
  float('nan'), float('inf'), '', 'x', 'ü\ud800', 'a\nb', '../x', '/', '\0', [], [1], [[]], ['x'],
  {}, {'': 0}, {'x': {}},
)  # fmt: skip
# What is written on a command line where something else should be.
WORDS = (
  '', ' ', 'x', 'X=1', '0', '-1', '1', '3', '1.5', '1e999', 'nan', '-inf', '9' * 30, '9' * 5000,
  ',', '1,2', '1,x', 'None', 'True', '[1]', '{}', '(1, 2)', '~', '~nobody/x', '/', '.', '..',
  'a[1]', 's3://b/x', 'gs://', 'a\0b', 'a\nb', 'ü 漢', '\udcff', '%s', '$(x)',
  '*', '/dev/null', 'x' * 300,
)  # fmt: skip
_NOTHING = object()


def _places(value, here=()):
  yield here
  lists = enumerate(value) if isinstance(value, list) else ()
  for name, item in value.items() if isinstance(value, dict) else lists:
    yield from _places(item, (*here, name))


def _put(value, place, new):
  if not place:
    return new
  value = copy.deepcopy(value)
  above = value
  for name in place[:-1]:
    above = above[name]
  if new is _NOTHING:
    del above[place[-1]]
  else:
    above[place[-1]] = new
  return value


@st.composite
def json_texts(draw, text: str) -> str:
  """A text of JSON in which one thing is another."""
  value = json.loads(text)
  places = list(_places(value))
  place = places[draw(st.integers(0, len(places) - 1))]
  kind = draw(st.sampled_from(('put', 'put', 'put', 'drop', 'deep', 'rename', 'twice', 'digits')))
  if kind == 'drop' and place:
    return json.dumps(_put(value, place, _NOTHING))
  if kind == 'rename' and place and isinstance(place[-1], str):
    return json.dumps(value).replace(json.dumps(place[-1]), json.dumps(place[-1] + 'x'), 1)
  if kind == 'twice' and isinstance(value, dict) and value:
    name = list(value)[draw(st.integers(0, len(value) - 1))]
    odd = draw(st.sampled_from(ODD))
    return json.dumps(value)[:-1] + f', {json.dumps(name)}: {json.dumps(odd)}}}'
  if kind in ('deep', 'digits'):
    what = '[' * 20_000 + ']' * 20_000 if kind == 'deep' else '9' * 5000
    return json.dumps(_put(value, place, 'MARK')).replace('"MARK"', what)
  return json.dumps(_put(value, place, draw(st.sampled_from(ODD))))


@st.composite
def damaged(draw, data: bytes, is_json: bool = False) -> bytes:
  """Bytes of a file after an accident; of a file of JSON, two times of three one of form alone."""
  if is_json and draw(st.integers(0, 2)):
    *before, last = data.splitlines() if data.count(b'\n{') or data.count(b'\n[') else [data]
    text = draw(json_texts(last.decode()))
    return b'\n'.join([*before, text.encode('utf-8', 'surrogatepass')]) + b'\n'
  place = draw(st.integers(0, max(len(data) - 1, 0)))
  kind = draw(st.sampled_from(('bit', 'bit', 'cut', 'fill', 'insert', 'swap', 'none')))
  if kind == 'bit' and data:
    return data[:place] + bytes([data[place] ^ 1 << draw(st.integers(0, 7))]) + data[place + 1 :]
  if kind == 'cut':
    return data[:place]
  some = draw(st.binary(min_size=1, max_size=9))
  if kind == 'fill':
    return (data[:place] + some + data[place + len(some) :])[: len(data)]
  if kind == 'insert':
    return data[:place] + some + data[place:]
  if kind == 'swap':
    return data[place:] + data[:place]
  return b''

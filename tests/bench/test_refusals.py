"""What the tools of the benchmarks cannot do on this machine or with these flags is a sentence."""

import dataclasses
import lzma
import types
import zipfile

import pytest

from armd_jax import config as config_lib
from armd_jax.bench import decode
from armd_jax.bench.attention import __main__ as attention
from armd_jax.bench.attention import choices, tune, tune_hopper
from armd_jax.bench.device import __main__ as report
from armd_jax.bench.device import calls, environment, folder, rows
from armd_jax.errors import UserError


@pytest.mark.parametrize(
  ('program', 'options', 'message'),
  [
    (attention, {'shapes': 'none'}, "no shape has 'none' in its name; see armd_jax/attention/"),
    (choices, {'shapes': ('decode_1',)}, "'decode_1' is not the name of a training shape; see"),
    (tune, {}, 'there is no TPU here that the kernels know, only .*; tune on one of v4, v5e'),
    (tune_hopper, {}, 'there is no Hopper GPU here, only .*; tune on an H100 or H200'),
  ],
)
def test_tools_of_the_kernels(program, options, message, tmp_path, monkeypatch):
  monkeypatch.setattr(choices.compile_tpu, 'prepare', lambda folder: None)
  with pytest.raises(UserError, match=message):
    program.main(program.Options(json=str(tmp_path / 'a.json'), **options))


def test_decoding_is_that_of_an_armd(monkeypatch):
  config = config_lib.parse({'model': {'family': 'ar'}})
  monkeypatch.setattr(decode.weights, 'load_ema', lambda workdir: (config, None, {}, 0))
  with pytest.raises(UserError, match="work/ar is of family 'ar'; give an ARMD run"):
    decode.main(decode.Options(**sizes() | {'workdir': 'work/ar'}))


def sizes():
  """Every flag that has no default."""
  return {
    field.name: 1 for field in dataclasses.fields(decode.Options)
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
  }  # fmt: skip


def test_stages_run_on_a_gpu_or_dry_on_a_cpu(monkeypatch):
  monkeypatch.setattr(rows, 'parse', lambda: (None, []))
  monkeypatch.setattr(calls.jax, 'default_backend', lambda: 'tpu')
  with pytest.raises(UserError, match='measure a GPU and this is a tpu; use `make test-device`'):
    calls.begin()


def test_what_was_carried_is_whole(tmp_path):
  packed = tmp_path / environment.PTXAS
  packed.write_bytes(lzma.compress(b'a compiler')[:-8])
  with pytest.raises(UserError, match=r'is damaged \(.*\); make the folder anew'):
    environment.carried_cuda(packed, None, tmp_path / 'scratch')
  with zipfile.ZipFile(tmp_path / 'a.whl', 'w') as archive:
    archive.writestr('nvidia/other', '')
  with pytest.raises(UserError, match=r'a\.whl holds no ptxas; give another COMPILER in '):
    folder.pack_ptxas(tmp_path, tmp_path / 'out')


def test_a_compiler_that_was_not_carried(monkeypatch):
  monkeypatch.setattr(environment, 'system_cuda', lambda: None)
  message = f'--ptxas=carried needs --wheels with {environment.PTXAS} beside it'
  with pytest.raises(UserError, match=message):
    report.prepare(types.SimpleNamespace(wheels=None, ptxas='carried'))

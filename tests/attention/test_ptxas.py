"""The assembler is found where Mosaic finds it, and its version decides what is said of it."""

import pytest

from armd_jax.attention import ptxas


def _fake(folder, version, code=0):
  """An assembler that knows its version alone."""
  folder.mkdir(parents=True)
  text = f'Cuda compilation tools, release {version.rpartition(".")[0]}, V{version}'
  path = folder / 'ptxas'
  path.write_text(f'#!/bin/sh\necho ptxas: NVIDIA\necho "{text}"\nexit {code}\n')
  path.chmod(0o755)
  return path


def test_the_first_on_the_path_is_taken_whatever_cuda_root_is(monkeypatch, tmp_path):
  first, second = (_fake(tmp_path / name, f'13.{name}.7') for name in ('1', '5'))
  _fake(tmp_path / 'root' / 'bin', '13.9.9')
  monkeypatch.setenv('CUDA_ROOT', str(tmp_path / 'root'))
  monkeypatch.setenv('PATH', f'{first.parent}:{second.parent}:/usr/bin:/bin')
  assert ptxas.find() == ptxas.Ptxas(first, (13, 1, 7))


def test_what_xla_passes_over_is_passed_over(monkeypatch, tmp_path):
  fakes = [_fake(tmp_path / v, v) for v in ('11.7.99', '12.3.103')]
  fakes.append(_fake(tmp_path / 'fails', '13.5.0', code=1))
  silent = _fake(tmp_path / 'silent', '13.5.0')
  silent.write_text('#!/bin/sh\n')
  data = _fake(tmp_path / 'data', '13.5.0')
  data.chmod(0o644)
  right = _fake(tmp_path / 'right', '13.4.2')
  folders = [str(path.parent) for path in (*fakes, silent, data, right)]
  monkeypatch.setenv('PATH', ':'.join([str(tmp_path / 'nothing'), *folders, '/usr/bin', '/bin']))
  assert ptxas.find() == ptxas.Ptxas(right, (13, 4, 2))


def test_without_any_on_the_path_the_wheel_of_nvcc_is_found(monkeypatch, tmp_path):
  wheel = _fake(tmp_path / 'nvidia' / 'cu13' / 'bin', '13.5.37')
  monkeypatch.setattr(ptxas, 'ROOTS', ('/nothing',))
  monkeypatch.setattr(ptxas.sysconfig, 'get_path', lambda name: str(tmp_path))
  monkeypatch.setenv('PATH', '/nothing')
  assert ptxas.find() == ptxas.Ptxas(wheel, (13, 5, 37))
  wheel.unlink()
  assert ptxas.find() is None


@pytest.mark.parametrize(
  ('version', 'refused', 'warned'),
  [
    ('12.6.85', False, False),
    ('12.8.93', True, True),
    ('12.9.41', True, True),
    ('12.9.86', False, True),
    ('13.0.88', False, True),
    ('13.2.99', False, True),
    ('13.3.0', False, False),
    ('13.5.37', False, False),
  ],
)
def test_versions(monkeypatch, tmp_path, version, refused, warned):
  path = _fake(tmp_path / 'bin', version)
  monkeypatch.setenv('PATH', f'{path.parent}:/bin')
  found = ptxas.find()
  assert (found.refusal is not None, found.warning is not None) == (refused, warned)
  for sentence in filter(None, (found.refusal, found.warning)):
    assert f'ptxas {version} ({path})' in sentence and 'nvidia-cuda-nvcc>=13.3' in sentence

"""What launchers share: a program of the cluster that is not there is a sentence of any of them."""

import jobset
import local
import pytest
import skypilot
import slurm
import tpu_vm

from armd_jax.errors import UserError

SIZES = ['--processes=4', '--devices-per-process=2']
MISSING = {
  jobset: (['--platform=cpu', '--image=i', '--volume=runs:/runs'], 'kubectl here; install it, or'),
  local: (['--platform=gpu', '--elastic=2'], 'nvidia-smi here; leave out --elastic'),
  skypilot: (['--platform=cpu'], 'sky here; pip install skypilot, or use --dry-run'),
  slurm: (['--platform=cpu'], 'sbatch here; run this on a login node'),
  tpu_vm: (['--zone=us-east5-a'], 'gcloud here; install it, or use --dry-run'),
}


@pytest.mark.parametrize('launcher', MISSING, ids=lambda launcher: launcher.__name__)
def test_a_program_that_is_not_there_is_a_sentence(launcher, monkeypatch):
  flags, message = MISSING[launcher]
  monkeypatch.setenv('PATH', '/nowhere')
  with pytest.raises(UserError, match=f'^there is no {message}'):
    launcher.main([*SIZES, *flags, '--', 'x'])

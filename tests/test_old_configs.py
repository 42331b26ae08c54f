"""Files of older versions are read under the names that fields have now; commands are refused."""

import json
import subprocess
import sys

import pytest

from armd_jax import config
from armd_jax.artifacts import standalone
from armd_jax.data.tokenizers import get_tokenizer
from armd_jax.errors import UserError
from armd_jax.training import workdir as workdir_lib

# The config.json that the quickstart wrote at version 0.2.0.
OLD = """{
  "seed": 0, "init_from": "",
  "model": {
    "family": "armd", "length": 256, "num_layers": 3, "num_two_stream_layers": 1, "embed_dim": 256,
    "num_heads": 4, "num_kv_heads": 4, "mlp_dim": 1024, "dropout": 0.0, "rope_theta": 10000.0,
    "style": "rope", "bos": "prepend", "g0": "prefix", "g0_norm": "rms", "g0_chunk": 128,
    "pe": "learned", "pe_dim": 128, "attention": "auto", "dtype": "float32", "remat": "none",
    "scan_layers": false,
    "diffusion": {
      "schedule": "log_linear", "d3pm_steps": 1000, "d3pm_aux": 0.01, "radd_loss": "lambda_dce"
    },
    "vocab_multiple": 1
  },
  "order": {
    "ar_steps": 200, "perm_steps": 700, "rho": 8, "perm_mode": "scatter",
    "uniform_order_prob": 0.0, "block_steps": 0, "block_schedule": "linear", "sbp_start": 900,
    "sbp_streams": [1, 2, 4], "sbp_one_by_one": 0.0
  },
  "data": {
    "source": "stdlib", "tokenizer": "bytes", "packing": "joined", "held_out": 0.05, "workers": 0,
    "prefetch_mib": 256
  },
  "optimizer": {
    "learning_rate": 0.0013, "beta1": 0.9, "beta2": 0.99, "eps": 1e-08, "weight_decay": 0.0,
    "clip_norm": 1.0, "warmup_steps": 100, "ema_decay": 0.9999
  },
  "train": {
    "steps": 1050, "batch_size": 4, "accumulation": 1, "loss_chunk": 256, "log_every": 25,
    "eval_every": 150, "eval_windows": 32, "sample_every": 0, "checkpoint_every": 150,
    "keep_last": 2, "keep_every": 50000, "keep_best": 1, "max_not_finite": 20,
    "hang_seconds": 1800, "profile_steps": [], "wandb": ""
  },
  "mesh": {"data": -1, "fsdp": 1, "tensor": 1}
}
"""


def test_a_run_of_an_older_version_goes_on(tmp_path):
  (tmp_path / 'config.json').write_text(OLD)
  found = workdir_lib.read_config(tmp_path)
  m, o = found.model, found.order
  assert (m.architecture, m.first_token, m.num_slots) == ('rope', 'predicted', 256)
  assert (m.query_seed, m.query_seed_norm, m.query_seed_chunk) == ('prefix', 'rms', 128)
  assert (m.position_rows, m.position_dim) == ('learned', 128)
  assert (o.max_shuffled, o.masking_steps, o.masking_schedule) == (8, 0, 'linear')
  assert (o.strided_start, o.strided_streams, o.strided_one_by_one) == (900, (1, 2, 4), 0.0)
  assert (m.num_layers, found.optimizer.beta2, found.train.steps) == (3, 0.99, 1050)
  assert not config.to_dict(found)['model'].keys() & config.RENAMED.keys()
  workdir_lib.check_same_run(tmp_path, found)  # or raises


def test_every_old_name_is_of_a_field_that_is_there():
  names = {name.split('.')[-1] for name, _ in config.fields()}
  assert set(config.RENAMED.values()) <= names and not config.RENAMED.keys() & names
  old = json.loads(OLD)
  sections = (old['model'].keys() | old['order'].keys()) - {'diffusion'}
  assert config.RENAMED.keys() == sections - names


def test_old_values_are_read():
  raw = json.loads(OLD)
  raw['model'] |= {'family': 'ar', 'bos': 'first_token_given', 'style': 'gpt2'}
  raw['order']['sbp_start'] = -1
  found = config.parse_file(raw, 'config.json')
  assert (found.model.first_token, found.model.num_slots) == ('given', 255)
  assert (found.model.architecture, found.order.max_shuffled) == ('gpt2', 0)
  assert config.parse_file(config.to_dict(found), 'config.json') == found


def test_both_names_or_unknown_ones_are_refused():
  both = {'model': {'pe': 'learned', 'position_rows': 'learned'}}
  with pytest.raises(UserError, match=r"run/config.json .* both as 'pe' and as 'position_rows'"):
    config.parse_file(both, 'run/config.json')
  with pytest.raises(
    UserError, match=r"run/config.json .* config.order has no field 'rhoo'; write"
  ):
    config.parse_file({'order': {'rhoo': 3}}, 'run/config.json')


def test_code_and_commands_have_the_new_names(tmp_path):
  with pytest.raises(
    UserError, match=r'config.model has no field .g0.; its name is .query_seed. now'
  ):
    config.parse({'model': {'g0': 'warm'}})
  command = [sys.executable, '-m', 'armd_jax.train', '--config=experiments/quickstart.py']
  command += ['--config.model.pe_dim=4', f'--workdir={tmp_path / "run"}']
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1
  assert done.stderr == "error: the config has no field 'pe_dim'; its name is 'position_dim' now\n"


def test_exports_of_an_older_version_are_read(tmp_path, monkeypatch):
  found = config.parse_file(json.loads(OLD), 'config.json')
  with monkeypatch.context() as patch:
    patch.setattr(config, 'to_dict', lambda _: json.loads(OLD))
    standalone.seal(tmp_path, standalone.Export(found, get_tokenizer('bytes'), 'average', 7, ''))
  assert '"g0": "prefix"' in next(tmp_path.iterdir()).read_text()
  assert standalone.read(tmp_path).config == found


def test_a_field_under_both_names_is_refused():
  raw = {'order': {'rho': 4, 'max_shuffled': 8}}
  message = "there both as 'rho' and as 'max_shuffled'; remove the former"
  with pytest.raises(UserError, match=message):
    config.parse_file(raw, 'config.json')

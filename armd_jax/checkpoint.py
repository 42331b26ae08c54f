"""Checkpoints of a run, through orbax: written beside the training, read back strictly.

A work directory holds

  config.json            the config the run was started with
  checkpoints/STEP/      state (the training state) and position (the next global example index)
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from armd_jax import config as config_lib
from armd_jax.axes import path_name
from armd_jax.errors import UserError
from armd_jax.training import TrainState

# Fields that may change when a run goes on: how long, how often, and on which devices.
MAY_CHANGE = (
  'data.workers',
  'data.prefetch_mib',
  'train.steps',
  'train.log_every',
  'train.eval_every',
  'train.eval_windows',
  'train.checkpoint_every',
  'train.keep_last',
  'train.keep_best',
  'train.loss_chunk',
  'mesh.data',
  'mesh.fsdp',
  'mesh.tensor',
  'model.attention',
  'model.remat',
)


class Checkpoints:
  """The checkpoints of one work directory."""

  def __init__(self, workdir: str | pathlib.Path, keep_last: int = 1, keep_best: int = 0):
    """Opens, and if need be creates, `workdir/checkpoints`.

    Args:
      workdir: the run's directory.
      keep_last: newest checkpoints that are kept.
      keep_best: checkpoints with the lowest metric that are kept as well.
    """
    self.directory = pathlib.Path(workdir).absolute() / 'checkpoints'
    policies = [LatestN(keep_last)]
    if keep_best:
      best = BestN(
        get_metric_fn=lambda metrics: metrics['held_out'],
        reverse=True,
        n=keep_best,
        keep_checkpoints_without_metrics=False,
      )
      policies.append(best)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=AnyPreservationPolicy(policies), cleanup_tmp_directories=True
    )
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=options,
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'position': ocp.JsonCheckpointHandler(),
      },
    )

  def latest(self) -> int | None:
    """Step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """Steps of all complete checkpoints, in order."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: TrainState, next_index: int, held_out: float | None) -> None:
    """Starts writing; training may go on and donate the state at once.

    Args:
      step: optimizer steps done.
      state: the training state.
      next_index: next global example index, the data's whole state.
      held_out: held-out nats per token at this step, if measured; decides what is best.
    """
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state), position=ocp.args.JsonSave({'next_index': next_index})
    )
    metrics = None if held_out is None else {'held_out': held_out}
    self._manager.save(step, args=args, metrics=metrics)

  def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, int]:
    """Reads a checkpoint onto the shardings of `abstract`.

    Args:
      abstract: shapes, dtypes and shardings of the state, as `training.abstract_state` gives.
      step: which one; the newest if None.
    Returns:
      The state, and the next global example index.
    Raises:
      UserError: there is none, it is damaged, or a parameter is missing, extra or misshapen.
    """
    step = self.latest() if step is None else step
    if step is None or step not in self._manager.all_steps():
      raise UserError(
        f'{self.directory} holds no {"" if step is None else f"step {step} "}checkpoint; train '
        'there first: python -m armd_jax.train --config=CONFIG.py --workdir=DIR'
      )
    folder = self.directory / str(step)
    try:
      found = self._manager.item_metadata(step)['state']
      if found is None:
        raise FileNotFoundError(f'no tree metadata in {folder / "state"}')
      _check_tree(found, abstract, folder)
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore()
        ),
      )
      return restored['state'], int(restored['position']['next_index'])
    except UserError:
      raise
    except Exception as error:  # whatever orbax and tensorstore raise for damaged files
      first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
      raise UserError(
        f'checkpoint {folder} cannot be read, so it is damaged ({first_line[:200]}); move that '
        f'folder away to go on from {self._previous(step)}'
      ) from error

  def _previous(self, step):
    earlier = [s for s in self.steps() if s < step]
    return f'step {earlier[-1]}' if earlier else 'the start'

  def wait(self) -> None:
    """Returns once everything that was saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and lets go of the folder."""
    self._manager.close()


def _check_tree(found: Any, abstract: Any, folder: pathlib.Path) -> None:
  shapes = lambda tree: {
    path_name(path): tuple(x.shape)
    for path, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, 'shape'))
  }
  have, want = shapes(getattr(found, 'tree', found)), shapes(abstract)
  fix = 'use the config it was trained with'
  for name in sorted(want.keys() - have.keys()):
    raise UserError(f'checkpoint {folder} lacks {name!r} {want[name]}; {fix}')
  for name in sorted(have.keys() - want.keys()):
    raise UserError(f'checkpoint {folder} holds {name!r}, which the model lacks; {fix}')
  for name in sorted(want):
    if have[name] != want[name]:
      raise UserError(
        f'{name!r} is {have[name]} in checkpoint {folder} but {want[name]} in the model; {fix}'
      )


def write_config(workdir: str | pathlib.Path, config: config_lib.Config) -> None:
  """Writes config.json of a new run."""
  path = pathlib.Path(workdir) / 'config.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix('.part')  # a killed process must not leave half a file
  part.write_text(json.dumps(config_lib.to_dict(config), indent=2) + '\n')
  part.replace(path)


def read_config(workdir: str | pathlib.Path) -> config_lib.Config:
  """The config of the run in a work directory.

  Raises:
    UserError: there is no run there, or its config.json is damaged.
  """
  path = pathlib.Path(workdir) / 'config.json'
  try:
    raw = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(
      f'{workdir} holds no run (no config.json); give the --workdir of a training run'
    ) from None
  except json.JSONDecodeError as error:
    raise UserError(
      f'{path} is damaged ({error}); restore it, or train in another folder'
    ) from None
  return config_lib.parse(raw)


def check_same_run(workdir: str | pathlib.Path, config: config_lib.Config) -> None:
  """Refuses to go on with a run under a config that would make it another one.

  Raises:
    UserError: naming the first field that differs.
  """
  old, new = (_flat(config_lib.to_dict(c)) for c in (read_config(workdir), config))
  for name, value in new.items():
    if name not in MAY_CHANGE and old[name] != value:
      raise UserError(
        f'{workdir} was started with config.{name} = {old[name]!r}, not {value!r}; use another '
        '--workdir, or --overwrite to delete that run and start anew'
      )


def _flat(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _flat(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = list(value) if isinstance(value, tuple) else value
  return flat

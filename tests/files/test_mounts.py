"""A bucket that is mounted as a folder is known as one."""

import pathlib

import pytest

from armd_jax.files import mounts

TABLE = r"""
22 1 0:20 / / rw,relatime - overlay overlay rw
30 22 0:30 / /runs rw,nosuid - fuse.gcsfuse my-bucket rw,user_id=0
31 22 0:31 / /with\040space rw - fuse s3fs rw
32 30 0:32 / /runs/local rw - ext4 /dev/sda1 rw
33 22 0:33 / /home rw - fuse.sshfs me@there:/home rw
"""


@pytest.mark.parametrize(
  ('folder', 'kind'),
  [
    ('/runs/a/checkpoints', 'gcsfuse'), ('/runs', 'gcsfuse'), ('/runs/local/a', ''), ('/other', ''),
    ('/with space/a', 's3fs'), ('/home/me', ''), ('/runs2', ''),
  ],
)  # fmt: skip
def test_the_innermost_mount_says_what_a_folder_is_on(tmp_path, monkeypatch, folder, kind):
  (tmp_path / 'mountinfo').write_text(TABLE.strip() + '\n')
  monkeypatch.setattr(mounts, '_TABLE', tmp_path / 'mountinfo')
  assert mounts.bucket(pathlib.Path(folder)) == kind


def test_a_disk_here_is_none_and_neither_is_a_system_that_does_not_say(tmp_path, monkeypatch):
  assert mounts.bucket(tmp_path) == ''
  monkeypatch.setattr(mounts, '_TABLE', tmp_path / 'none')
  assert mounts.bucket(tmp_path) == ''

"""What kind of file system a folder is on."""

from __future__ import annotations

import pathlib
import re

# Buckets that are mounted as folders: they rename one object at a time, and so no folder at once.
_BUCKETS = ('gcsfuse', 's3fs', 'goofys', 'geesefs', 'mountpoint-s3', 'rclone', 'blobfuse')
_TABLE = pathlib.Path('/proc/self/mountinfo')


def bucket(folder: pathlib.Path) -> str:
  """The program that mounts a bucket where a folder is, such as 'gcsfuse'; '' of anything else, and
  where the system does not know.

  Args:
    folder: absolute; it need not be there yet.
  """
  try:
    lines = _TABLE.read_text('utf-8', 'surrogateescape').splitlines()
  except OSError:
    return ''
  found = {}
  for line in lines:
    mount, _, about = line.partition(' - ')
    # Blanks in names are written as octal numbers.
    place = re.sub(r'\\(\d{3})', lambda code: chr(int(code[1], 8)), mount.split(' ')[4])
    found[pathlib.Path(place)] = ' '.join(about.split(' ')[:2])
  where = folder.resolve()
  kinds = next((found[place] for place in (where, *where.parents) if place in found), '')
  return next((name for name in _BUCKETS if name in kinds and 'fuse' in kinds), '')

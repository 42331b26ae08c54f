"""A bucket of Google's protocol on this machine, for tests: an emulator in threads."""

from __future__ import annotations

import http.server
import importlib.util
import json
import logging
import os
import re
import threading
import urllib.parse

import pytest

NAME = 'bucket'
# Read when gcsfs is imported: it would ask the emulator in another protocol for a minute.
os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'


def _server():
  """gcp-storage-emulator with what it lacks and TensorStore needs: several connections, the
  generation of what is read, and writes on condition that it is still the same."""
  from gcp_storage_emulator import server as emulator
  from gcp_storage_emulator.handlers import buckets
  from gcp_storage_emulator.storage import Storage

  storage, one_at_a_time = Storage(use_memory_fs=True), threading.Lock()
  buckets.create_bucket(NAME, storage)

  class Handler(emulator.RequestHandler):
    def __init__(self, *arguments):
      super().__init__(storage, *arguments)

    def _answer(self, method):
      url = urllib.parse.urlparse(self.path)
      query = {name: values[0] for name, values in urllib.parse.parse_qs(url.query).items()}
      if self.server.silent:
        self.server.silent -= 1
        self.connection.settimeout(600)
        while self.connection.recv(2**16):  # until the client gives up
          pass
        self.close_connection = True
        return
      with one_at_a_time:
        if self.server.unavailable:
          self.server.unavailable -= 1
          self._generation = '0'
          self._refuse(503)
          return
        if method != 'GET' and self.server.changes is not None:
          self.server.changes -= 1
          if self.server.changes < 0:
            self._generation = '0'
            self._refuse(403)
            return
        self._generation = self._current(url.path, query)
        if query.get('ifGenerationMatch', self._generation) != self._generation:
          self._refuse(412)
        elif query.get('ifGenerationNotMatch') == self._generation != '0':
          self._refuse(304)
        else:
          emulator.Router(self).handle(method)

    def _current(self, path, query):
      """Of the object that is asked for, '0' of one that is not there."""
      match = re.search('/b/([^/]+)/o(?:/(.+))?$', path)
      name = match and (match[2] or query.get('name'))
      try:
        return str(storage.get_file_obj(match[1], urllib.parse.unquote(name))['generation'])
      except Exception:  # there is none, or it is no object that is asked for
        return '0'

    def _refuse(self, code):
      self.rfile.read(int(self.headers.get('Content-Length') or 0))
      body = json.dumps({'error': {'code': code, 'message': 'generation'}}).encode()
      self.send_response(code)
      self.send_header('Content-Length', '0' if code == 304 else str(len(body)))
      self.end_headers()
      if code != 304:
        self.wfile.write(body)

    def end_headers(self):
      if self.command == 'GET' and self._generation != '0':
        self.send_header('x-goog-generation', self._generation)
      super().end_headers()

    def do_GET(self):
      self._answer('GET')

    def do_POST(self):
      self._answer('POST')

    def do_PUT(self):
      self._answer('PUT')

    def do_DELETE(self):
      self._answer('DELETE')

  class Server(http.server.ThreadingHTTPServer):
    unavailable = 0  # requests that are refused from now on
    silent = 0  # and that are never answered
    changes = None  # that are still allowed, if not all

    def handle_error(self, request, client_address):
      """A client that has gone, as one that is killed."""

  return Server(('127.0.0.1', 0), Handler)


@pytest.fixture(scope='session')
def bucket():
  """gs://bucket, empty at first; what this process and those that it starts see of Google."""
  for package in ('gcsfs', 'gcp_storage_emulator'):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f'{package} comes with the test requirements; run make test')
  import fsspec

  logging.getLogger('gcp_storage_emulator').setLevel(logging.CRITICAL)
  server = _server()
  address = f'http://127.0.0.1:{server.server_address[1]}'
  variables = {
    'STORAGE_EMULATOR_HOST': address,  # of gcsfs
    'TENSORSTORE_GCS_HTTP_URL': address,
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',
    'FSSPEC_GCS': '{"token": "anon"}',
  }
  threading.Thread(target=server.serve_forever, daemon=True).start()
  with pytest.MonkeyPatch.context() as patch:
    for name, value in variables.items():
      patch.setenv(name, value)
    patch.setitem(fsspec.config.conf, 'gcs', {'token': 'anon'})
    yield Bucket(server)
  server.shutdown()


class Bucket:
  """What is in it."""

  def __init__(self, server):
    self._server = server

  def be_unavailable(self, requests: int) -> None:
    """Answers the next ones with 503, as a store that is busy."""
    self._server.unavailable = requests

  def be_silent(self, requests: int) -> None:
    """Takes the next ones and never answers, as over a network that has stalled."""
    self._server.silent = requests

  def allow(self, changes: int | None) -> None:
    """Takes so many more changes, and refuses all others; None takes all again."""
    self._server.changes = changes

  def folder(self, name: str) -> str:
    return f'gs://{NAME}/{name}'

  def _store(self):
    import fsspec

    return fsspec.filesystem('gcs', use_listings_cache=False, skip_instance_cache=True)

  def names(self, folder: str) -> list[str]:
    """Of all objects below a folder."""
    below = folder.removeprefix('gs://') + '/'
    return sorted(name.removeprefix(below) for name in self._store().find(below))

  def read(self, path: str) -> bytes:
    return self._store().cat_file(path)

  def write(self, path: str, data: bytes) -> None:
    self._store().pipe_file(path, data)

  def remove(self, path: str) -> None:
    self._store().rm_file(path)

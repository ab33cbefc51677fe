"""A store that speaks Google's JSON API: gcp-storage-emulator, and what it lacks: preconditions, generations, moves.

A test may put a function into `Store.asked`: it hears of each request, and can kill who asks, or say what goes wrong.
"""

import io
import json
import re
import threading
import time
from functools import partial
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.storage import Storage

BUCKET = "bucket"


class Store:
  """Listens on this machine until it is closed; its bucket is gs://bucket.

  Attributes:
    run: a workdir in it.
    env: what the clients need to find it: gcsfs and google-cloud-storage, tensorstore.
    asked: called with method and address of each request, and the object's name where it is in the body. Returns None,
      a status that is answered in place of the store's, or raises ConnectionError: nothing is answered.
  """

  run = f"gs://{BUCKET}/run"

  def __init__(self):
    self.asked = lambda method, path: None
    self._objects = _Objects(use_memory_fs=True)
    create_bucket(BUCKET, self._objects)
    self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self, self._objects))
    self._server.daemon_threads = True
    self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
    self._thread.start()
    url = f"http://127.0.0.1:{self._server.server_port}"
    self.env = {
      "STORAGE_EMULATOR_HOST": url,
      "TENSORSTORE_GCS_HTTP_URL": url,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
      "EPATH_USE_TF": "false",
      "GOOGLE_CLOUD_PROJECT": "test",
      "NO_GCE_CHECK": "true",
      "FSSPEC_GCS_TOKEN": "anon",
    }  # no machine of Google's is looked for

  def names(self, prefix: str = "") -> list[str]:
    with self._objects.lock:
      return sorted(o["name"] for o in self._objects.get_file_list(BUCKET, prefix, None)[0])

  def read(self, name: str) -> bytes:
    with self._objects.lock:
      return self._objects.get_file(BUCKET, name)

  def close(self) -> None:
    self._server.shutdown()
    self._server.server_close()
    self._thread.join()


class _Failed(Exception):
  """A precondition does not hold."""


class _Objects(Storage):
  def __init__(self, **more):
    super().__init__(**more)
    self.lock = threading.RLock()
    self.wanted = None  # generation that the request under way makes its condition
    self.served = None  # that of the object it reads

  def _check(self, bucket, name):
    try:
      now = self.get_file_obj(bucket, name)["generation"]
    except NotFound:
      now = "0"
    if self.wanted not in (None, now):
      raise _Failed

  def create_file(self, bucket, name, content, *more):
    self._check(bucket, name)
    super().create_file(bucket, name, content, *more)

  def delete_file(self, bucket, name):
    self._check(bucket, name)
    super().delete_file(bucket, name)

  def get_file(self, bucket, name, *more, **how):
    self._check(bucket, name)
    self.served = self.get_file_obj(bucket, name)["generation"]
    return super().get_file(bucket, name, *more, **how)

  def move(self, bucket, name, new):
    found = self.get_file_obj(bucket, name) | {"name": new, "generation": str(time.time_ns())}
    self.create_file(bucket, new, self.get_file(bucket, name), found)
    self.delete_file(bucket, name)
    return found


class _Handler(emulator.RequestHandler):
  def __init__(self, store, objects, *more):
    self._store = store
    super().__init__(objects, *more)

  def _answer(self):
    size = int(self.headers.get("Content-Length") or 0)
    body = self.rfile.read(size)
    if len(body) < size:  # who sent it was killed meanwhile
      return
    self.rfile = io.BytesIO(body)
    url, named = urlsplit(self.path), re.search(rb'"name": "([^"]*)', body[:500])
    objects, query = self.storage, parse_qs(url.query)
    with objects.lock:
      try:
        asked = unquote(url.path + "?" + url.query) + (f" {named[1].decode()}" if named else "")
        if status := self._store.asked(self.command, asked):
          self._fail(status)
          return
        objects.wanted = query.get("ifGenerationMatch", [None])[0]
        if moved := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)", url.path):
          self._say(HTTPStatus.OK, objects.move(*(unquote(part) for part in moved.groups())))
        else:
          emulator.Router(self).handle(self.command)
      except _Failed:
        self._fail(HTTPStatus.PRECONDITION_FAILED)
      except NotFound:
        self._fail(HTTPStatus.NOT_FOUND)
      except ConnectionError:
        self.close_connection = True
      finally:
        objects.wanted = objects.served = None

  do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

  def _fail(self, status):
    self._say(status, {"error": {"code": int(status), "message": HTTPStatus(status).phrase}})

  def _say(self, status, what):
    body = json.dumps(what).encode()
    self.send_response(status)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def end_headers(self):
    if self.storage.served:
      self.send_header("x-goog-generation", self.storage.served)
    super().end_headers()

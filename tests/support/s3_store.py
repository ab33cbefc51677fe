"""A store that speaks Amazon's S3: moto, as `support.store.Store` is one that speaks Google's."""

import io
import logging
import re
import threading
from http import HTTPStatus
from urllib.parse import unquote

from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"
REGION = "us-east-1"


class S3Store:
  """Listens on this machine until it is closed; its bucket is s3://bucket, and empty.

  Attributes:
    env: what the clients need to find it.
    run: a workdir in it.
    asked: as that of `support.store.Store`.
  """

  run = f"s3://{BUCKET}/run"

  def __init__(self):
    self.asked = lambda method, path: None
    self._lock = threading.RLock()
    self._app = DomainDispatcherApplication(create_backend_app)
    self._objects = get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"]
    self._objects.reset()
    self._objects.create_bucket(BUCKET, REGION)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
    self._server.daemon_threads = True
    self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
    self._thread.start()
    self.env = {
      "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
      "AWS_ACCESS_KEY_ID": "key",
      "AWS_SECRET_ACCESS_KEY": "secret",
      "AWS_REGION": REGION,
      "AWS_CONFIG_FILE": "/dev/null",
      "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
      "AWS_EC2_METADATA_DISABLED": "true",
    }

  def names(self, prefix: str = "") -> list[str]:
    with self._lock:
      return sorted(name for name in self._objects.buckets[BUCKET].keys if name.startswith(prefix))

  def read(self, name: str) -> bytes:
    with self._lock:
      return self._objects.get_object(BUCKET, name).value

  def close(self) -> None:
    self._server.shutdown()
    self._server.server_close()
    self._thread.join()

  def _answer(self, environ, start_response):
    size = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(size)
    if len(body) < size:  # who sent it was killed meanwhile
      raise ConnectionAbortedError
    environ["wsgi.input"] = io.BytesIO(body)
    method, query = environ["REQUEST_METHOD"], environ["QUERY_STRING"]
    asked = f"{environ['PATH_INFO']}?{unquote(query)}"
    if method == "POST" and query.startswith("delete"):
      method, asked = "DELETE", " ".join(re.findall("<Key>([^<]*)", body.decode()))
    with self._lock:
      if status := self.asked(method, asked):
        start_response(f"{int(status)} {HTTPStatus(status).phrase}", [("Content-Type", "application/xml")])
        code = "AccessDenied" if status == HTTPStatus.FORBIDDEN else HTTPStatus(status).phrase.replace(" ", "")
        return [f"<Error><Code>{code}</Code><Message>{HTTPStatus(status).phrase}</Message></Error>".encode()]
      return self._app(environ, start_response)

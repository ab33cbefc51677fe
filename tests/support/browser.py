"""Drives a headless Chromium over its debugging pipe: what it shows, what it asks for, what goes wrong in it."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--hide-scrollbars",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--remote-debugging-pipe",
)
SECONDS = 120  # for one answer; a browser that hangs fails the test


class Browser:
  """One tab. A context manager.

  Attributes:
    problems: errors in the console and in scripts, and what the page's policy blocked.
    requests: URLs that were asked for.
  """

  def __init__(self, profile):
    to_browser, self._write = os.pipe()
    self._read, from_browser = os.pipe()
    # It reads from descriptor 3 and writes to 4.
    script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
    self._process = subprocess.Popen(
      ["bash", "-c", script, "-", CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
      pass_fds=(to_browser, from_browser),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    self._id, self._session, self._rest = 0, None, b""
    self.problems, self.requests = [], []
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **params):
    self._id += 1
    message = {"id": self._id, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._write, json.dumps(message).encode() + b"\0")
    while True:
      answer = self._next()
      if answer.get("id") == self._id:
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

  def _next(self) -> dict:
    end = time.monotonic() + SECONDS
    while b"\0" not in self._rest:
      ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
      data = os.read(self._read, 1 << 20) if ready else b""
      assert data, "the browser has ended" if ready else f"no answer from the browser in {SECONDS} s"
      self._rest += data
    line, self._rest = self._rest.split(b"\0", 1)
    message = json.loads(line)
    method, params = message.get("method"), message.get("params", {})
    if method == "Network.requestWillBeSent":
      self.requests.append(params["request"]["url"])
    elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
      self.problems.append(params["entry"]["text"])
    elif method == "Runtime.exceptionThrown":
      self.problems.append(json.dumps(params["exceptionDetails"]))
    elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
      self.problems.append(json.dumps(params["args"]))
    return message

  def open(self, path, view: str = "") -> None:
    """Loads a local file or a URL, from anew, with what comes after # in its address."""
    address = path if "://" in str(path) else Path(path).as_uri()
    self.call("Page.navigate", url="about:blank")
    self.call("Page.navigate", url=f"{address}{view and '#' + view}")
    end = time.monotonic() + SECONDS  # the new document is there, its pictures and script perhaps not
    while self.evaluate("document.readyState") != "complete":
      assert time.monotonic() < end, f"{path} is not loaded after {SECONDS} s"

  def evaluate(self, expression: str):
    """The value of a JavaScript expression; promises are waited for."""
    found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
    assert "exceptionDetails" not in found, found["exceptionDetails"]
    return found["result"].get("value")

  def key(self, name: str, text: str = "") -> None:
    self.call("Input.dispatchKeyEvent", type="keyDown", key=name, code=name, **({"text": text} if text else {}))
    self.call("Input.dispatchKeyEvent", type="keyUp", key=name, code=name)

  def resize(self, width: int, height: int) -> None:
    self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    end = time.monotonic() + SECONDS  # the page is laid out anew some time later
    while (found := self.evaluate("innerWidth")) != width:
      assert time.monotonic() < end, f"the page is {found} pixels wide after {SECONDS} s, not {width}"

  def screenshot(self, path) -> None:
    with open(path, "wb") as file:
      file.write(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    with contextlib.suppress(OSError):
      os.close(self._write)
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    os.close(self._read)

"""`python -m coca.demo`: its flags, its examples, and the page in a browser."""

import importlib.util
import socket
import sys
import time

import pytest
from absl import logging
from PIL import Image

import coca
from coca import demo
from coca.inference import tabs
from support.browser import CHROMIUM, SECONDS, Browser
from support.workdirs import make_workdir, small_config

TEXTS = "[...document.querySelectorAll('textarea, input')].filter(x => x.offsetParent)"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  make_workdir(folder / "tiny", small_config(folder))
  return folder / "tiny"


def test_only_this_machine_can_open_the_page_unless_a_flag_says_so(monkeypatch):
  asked = []
  monkeypatch.setattr(demo, "build", lambda name, index, folder: (name, index))
  monkeypatch.setattr(demo, "launch", lambda *args: asked.append(args))
  demo.main(["--model=runs/tiny"])
  demo.main(["--model=runs/tiny", "--index=photos", "--host=0.0.0.0", "--port=80", "--share"])
  assert asked == [
    (("runs/tiny", None), "127.0.0.1", 7860, False),
    (("runs/tiny", "photos"), "0.0.0.0", 80, True),
  ]


def test_without_gradio_the_line_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(SystemExit, match=r"takes gradio: pip install -e '\.\[demo\]'"):
    demo.main(["--model=runs/tiny"])


@pytest.mark.slow
def test_what_is_searched(tiny, tmp_path):
  model = coca.load(tiny)
  images = demo.examples(tmp_path / "examples")
  assert len(images) == len({Image.open(path).tobytes() for path in images}) == 36
  index, _, far = demo.open_index(model, str(tiny), None, tmp_path)
  assert len(index) == 36 and far  # the examples, or what the user names
  (tmp_path / "other").mkdir()
  index, _, far = demo.open_index(model, str(tiny), images[0], tmp_path / "other")
  assert len(index) == 1 and far
  index, _, far = demo.open_index(model, str(tiny), str(tmp_path / "index"), tmp_path)
  assert len(index) == 36 and not far  # of an index, which somebody else may have made, nothing far away is opened
  with pytest.raises(ValueError, match="no image could be read"):
    demo.open_index(model, str(tiny), str(tmp_path / "nothing.png"), tmp_path / "nothing")
  about = tmp_path / "index/index.json"
  about.write_text(about.read_text().replace("sha256:", "sha256:0"))
  with pytest.raises(ValueError, match="another model"):
    demo.open_index(model, str(tiny), str(tmp_path / "index"), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
def test_an_example_is_captioned_and_classified_by_clicking(tiny, tmp_path, monkeypatch, capsys):
  gradio = pytest.importorskip("gradio", reason="pip install -e '.[demo]'")
  asked, look_up = set(), socket.getaddrinfo
  monkeypatch.setattr(
    socket, "getaddrinfo", lambda host, *args, **more: asked.add(host) or look_up(host, *args, **more)
  )
  for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY", "GRADIO_TEMP_DIR"):
    monkeypatch.setenv(name, "")  # as it was before, afterwards
  # uvicorn closes all handlers of logging, and absl's the stream that it has, which here is pytest's.
  monkeypatch.setattr(logging.get_absl_handler().python_handler, "stream", sys.__stderr__)
  broken = tmp_path / "broken.png"
  broken.write_bytes(b"\x89PNG\r\n\x1a\n no image")
  model, example = coca.load(tiny), str(tmp_path / "examples/scenes_val_01.png")
  blocks = demo.build(str(tiny), None, tmp_path)
  address = demo.launch(blocks, "127.0.0.1", None, False, prevent_thread_lock=True)
  try:
    with gradio.Blocks() as other, pytest.raises(OSError, match="give another --port"):
      demo.launch(other, "127.0.0.1", int(address.strip("/").rpartition(":")[2]), False)
    with Browser(tmp_path / "profile") as browser:
      browser.resize(1280, 1000)
      browser.open(address)
      until(browser, "document.querySelectorAll('.gallery-item').length == 12")
      names = "[...document.querySelectorAll('[role=tab]')].map(x => x.textContent.trim())"
      until(browser, f"{names}.length > 0")
      assert browser.evaluate(names) == ["caption", "classify", "search"]
      browser.evaluate("document.querySelectorAll('.gallery-item')[1].click()")
      until(browser, "[...document.images].some(x => x.src.includes('scenes_val_01') && x.closest('.image-frame'))")
      click(browser, "caption")
      until(browser, f"{TEXTS}.some(x => x.value == {tabs.caption(model, example, 'greedy', 6, 1, '')!r})")
      until(browser, "[...document.images].some(x => x.naturalWidth == 384)")  # where a pooler looks
      click(browser, "classify", "[role=tab]")
      until(browser, f"{TEXTS}.length > 1 && {TEXTS}.some(x => x.value.includes('octopus'))")
      click(browser, "classify")
      classes = browser.evaluate(f"{TEXTS}.find(x => x.value.includes('octopus')).value")
      (best, p), *_ = tabs.classify(model, example, classes).items()
      until(browser, f"document.body.innerText.includes('{best}') && document.body.innerText.includes('{p:.0%}')")

      upload(browser, broken)
      click(browser, "classify")
      until(browser, 'document.body.innerText.includes("can\'t read the image broken.png")')
      asked_by_page = [url for url in browser.requests if not url.startswith((address, "data:", "blob:", "about:"))]
      assert not asked_by_page
  finally:
    blocks.close()
  assert asked <= {"127.0.0.1", "localhost", None}
  said = capsys.readouterr()
  assert "Traceback" not in said.out + said.err


def until(browser, condition: str) -> None:
  end = time.monotonic() + SECONDS
  while not browser.evaluate(condition):
    assert time.monotonic() < end, f"{condition} is not true after {SECONDS} s"
    time.sleep(0.1)


def click(browser, name: str, kind: str = "button.primary") -> None:
  find = f"[...document.querySelectorAll('{kind}')].find(x => x.offsetParent && x.textContent.trim() == '{name}')"
  until(browser, f"!!{find}")
  browser.evaluate(f"{find}.click()")


def upload(browser, path) -> None:
  """A file in place of the image that is chosen."""
  browser.evaluate('document.querySelector(\'[aria-label="Clear"], [title="Clear"]\')?.click()')
  until(browser, "!!document.querySelector('input[type=file]')")
  found = browser.call("Runtime.evaluate", expression="document.querySelector('input[type=file]')")["result"]
  browser.call("DOM.setFileInputFiles", files=[str(path)], objectId=found["objectId"])
  until(browser, f"[...document.images].some(x => x.src.includes('{path.name}'))")

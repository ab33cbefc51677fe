"""Opens a page in a browser to try a model: captions and where they look, classes, search, questions.

    python -m coca.demo --model=runs/tiny
    python -m coca.demo --model=runs/tiny --index=runs/photos

It has tabs for what the model can do, and images of the corpus in the package to begin with. Search is among these, or
among those of --index: an index that `python -m coca.search` made, or images, which are embedded when the demo starts.

Requests are served one at a time. The page asks for nothing but what this program serves, and only this machine can
open it, unless --host or --share says otherwise; what is uploaded is deleted when the demo ends. It takes gradio
(pip install -e '.[demo]').
"""

import argparse
import functools
import html
import importlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from coca import inference
from coca.config import Scenes, Source
from coca.config.command_line import one_line
from coca.config.decoding import Decoding, Strategy
from coca.data.scenes.objects import OBJECTS
from coca.data.sources import open_source
from coca.evals.folders import open_images
from coca.inference import tabs
from coca.inference.images import is_url
from coca.inference.search_index import SearchIndex, make_index
from coca.storage.checkpoint import CheckpointError

EXAMPLES = {"scenes_val": 12, "twemoji": 24}  # images of the splits of the corpus, spread over each
THINGS = 26  # objects of these scenes: those of configs/coca_tiny.py
PIXELS = 224  # a side of a scene; the corpus has drawings of 64
BUTTONS = ("fullscreen", "download")  # of images; one that gradio has beside these shares them on the web
FONTS = ("system-ui", "sans-serif")  # that a system has: the theme's own would come from elsewhere
MOST = 16  # beams and captions
PORT = 7860


def main(argv=None) -> None:
  parser = argparse.ArgumentParser(prog="python -m coca.demo", description="Try a model in a browser.")
  parser.add_argument("--model", required=True, help="working directory, converted model, or hf://org/name")
  parser.add_argument("--index", help="of python -m coca.search, or images to search; left out: the examples")
  parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all (%(default)s)")
  parser.add_argument("--port", type=int, default=PORT, help="%(default)s")
  parser.add_argument("--share", action="store_true", help="a public link too, through gradio's servers")
  args = parser.parse_args(argv)
  with (
    one_line(ValueError, ImportError, OSError, CheckpointError),
    tempfile.TemporaryDirectory(prefix="coca_demo_") as folder,
  ):
    launch(build(args.model, args.index, Path(folder)), args.host, args.port, args.share)


def build(name: str, given: str | None, folder: Path):
  """The page of a model, a `gradio.Blocks`.

  Args:
    name: of the model, as `coca.load` takes it.
    given: an index, or images to search; None: the examples.
    folder: for the examples, for an index of images, and for what is uploaded.

  Raises:
    ImportError: without gradio.
    ValueError: a model without anything to show, or the index of another one.
    FileNotFoundError: no model, or nothing to search there.
  """
  if importlib.util.find_spec("gradio") is None:
    raise ImportError("the demo takes gradio: pip install -e '.[demo]'")
  # It reads these when it is imported.
  off = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
  os.environ.update(off, GRADIO_TEMP_DIR=str(folder / "uploads"))
  name, model = _whole(name), inference.load(name)
  shown, images = tabs.tabs(model.config), examples(folder / "examples")
  if "search" not in shown and given:
    raise ValueError(f"--index={given}: this model makes no embeddings, and can't search")
  searched = open_index(model, name, given, folder) if "search" in shown else ()
  gr = importlib.import_module("gradio")
  # Its own opens the file, and ends in a traceback where it can't. It makes its components anew for each visitor, and
  # writes a file of stubs beside the source of a class that is made of one.
  gr.Image.preprocess = _uploaded
  title = f"coca: {os.path.basename(name.rstrip('/'))}"
  with gr.Blocks(title=title, analytics_enabled=False) as blocks:
    gr.Markdown(f"## {html.escape(title)}")
    with gr.Row():
      with gr.Column(scale=2):
        image = gr.Image(type="filepath", sources=["upload", "clipboard"], label="an image", height=320)
        gr.Examples(images, image, label="examples", examples_per_page=12)
      with gr.Column(scale=3):
        for tab in shown:
          with gr.Tab(tab):
            TABS[tab](gr, model, image, *(searched if tab == "search" else ()))
  return blocks


def examples(folder: Path) -> list[str]:
  """Writes images of the corpus in the package, scenes first; returns their paths."""
  folder.mkdir()
  out = []
  for split, count in EXAMPLES.items():
    scenes = Scenes(pixels=PIXELS, vocabulary=THINGS) if split.startswith("scenes") else Scenes()
    source = open_source(Source(kind="builtin", split=split, scenes=scenes))
    for i in range(count):
      path = folder / f"{split}_{i:02d}.png"
      path.write_bytes(source[i * len(source) // count].image)
      out.append(str(path))
  return out


def launch(blocks, host: str, port: int | None, share: bool, **more) -> str:
  """Serves a page until the program is stopped; `more`: as gradio's `launch` has it. Returns the address.

  Raises:
    OSError: the port is taken, or the address is none of this machine's.
  """
  theme = importlib.import_module("gradio").themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace"))
  quiet = {"ssr_mode": False, "footer_links": []}
  try:
    return blocks.launch(server_name=host, server_port=port, share=share, theme=theme, **quiet, **more)[1]
  except OSError as e:
    raise OSError(f"can't listen at {host}, port {port}: give another --port, or an address of this machine") from e


def open_index(model, name: str, given: str | None, folder: Path) -> tuple[SearchIndex, Callable, bool]:
  """An index, what opens its images, and whether these may be far away: only those that the user names."""
  if made := bool(given) and os.path.isfile(f"{given}/index.json"):
    index = SearchIndex(given)
    index.check(model, name)
  else:
    index = make_index(folder / "index", model, name)
    index.add(model, open_images(_whole(given or str(folder / "examples"))))
  if not len(index):
    raise ValueError(f"--index={given}: no image could be read")
  return index, functools.cache(open_images), not made


def _caption(gr, model, image) -> None:
  strategy = gr.Radio(get_args(Strategy), value="greedy", label="strategy")
  with gr.Row():
    beams = gr.Slider(1, MOST, Decoding().beams, step=1, label="beams")
    n = gr.Slider(1, MOST, 1, step=1, label="n")
  prompt = gr.Textbox(label="prompt", placeholder="what each caption begins with")
  button = gr.Button("caption", variant="primary")
  texts = gr.Textbox(label="captions, the best first", lines=2)
  inputs = [image, strategy, beams, n, prompt]
  event = _on(gr, button.click, functools.partial(tabs.caption, model), inputs, texts)
  if poolers := tabs.poolers(model.config):
    pooler = gr.Radio(poolers, value=poolers[0], label="pooler whose attention is shown", visible=len(poolers) > 1)
    seen = gr.Image(label="where a pooler looks", interactive=False, height=tabs.SIDE, buttons=BUTTONS)
    for on in (event.success, pooler.input):
      _on(gr, on, functools.partial(tabs.look, model), [image, pooler], seen)


def _classify(gr, model, image) -> None:
  has_head = model.config.classification.weight > 0
  info = "none: those that the model was trained on" if has_head else None
  begun = "" if has_head else "\n".join(thing.name for thing in OBJECTS[:THINGS])
  names = gr.Textbox(begun, label="classes, one a line", info=info, lines=8, max_lines=8)
  templates = gr.Textbox(label="prompts, one a line, with {} for the name", placeholder="{}", lines=2, max_lines=8)
  button = gr.Button("classify", variant="primary")
  bars = gr.Label(label="probabilities")
  _on(gr, button.click, functools.partial(tabs.classify, model), [image, names, templates], bars)


def _search(gr, model, image, *searched) -> None:
  text = gr.Textbox(label="text", placeholder="empty: the like of the image on the left")
  k = gr.Slider(1, 48, 12, step=1, label="images")
  button = gr.Button("search", variant="primary")
  found = gr.Gallery(show_label=False, columns=4, object_fit="contain", height="auto", buttons=BUTTONS)
  for on in (button.click, text.submit):
    _on(gr, on, functools.partial(tabs.search, model, *searched), [text, image, k], found)


def _ask(gr, model, image) -> None:
  question = gr.Textbox(label="question")
  answers = gr.Textbox(label="possible answers, one a line", placeholder="empty: any", lines=3, max_lines=8)
  button = gr.Button("ask", variant="primary")
  answer = gr.Textbox(label="answer")
  for on in (button.click, question.submit):
    _on(gr, on, functools.partial(tabs.ask, model), [image, question, answers], answer)


def _on(gr, event: Callable, function: Callable, inputs: list, output):
  """At an event what `function` makes of inputs is shown; one at a time of all that use the devices."""
  own = {"concurrency_id": "devices", "concurrency_limit": 1, "api_visibility": "private"}
  return event(functools.partial(_answer, gr.Error, function), inputs, output, **own)


def _answer(error, function: Callable, *inputs):
  """The result of `function`; what can't be done is a line in the page."""
  try:
    return function(*inputs)
  except (ValueError, OSError) as e:
    uploads = re.escape(os.environ["GRADIO_TEMP_DIR"])
    raise error(html.escape(re.sub(rf"{uploads}/\w+/", "", str(e))), duration=None, print_exception=False) from None


def _uploaded(_, payload) -> str | None:
  """The path of an uploaded file; nothing else that a request may call a path is opened."""
  return payload.path if payload and os.path.isfile(payload.path or "") else None


def _whole(path: str) -> str:
  """A path that is right from any folder."""
  return path if is_url(path) or path.startswith("builtin:") else os.path.abspath(path)


TABS = {"caption": _caption, "classify": _classify, "search": _search, "ask": _ask}

if __name__ == "__main__":
  main()

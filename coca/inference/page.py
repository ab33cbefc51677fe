"""A web page of images and their captions, in one file: nothing is loaded from elsewhere."""

import base64
import contextlib
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from coca.files.writing import writing

SIDE = 224  # pixels of a thumbnail at most
MOST = 5000  # images: above that a browser takes long to show the page

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 1400px; padding: 0 1rem }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(224px, 1fr)); gap: 1.5rem }
figure { margin: 0 }
img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px; background: #8881 }
figcaption ol { margin: .4rem 0; padding-left: 1.3rem }
figcaption p { margin: .4rem 0 0 }
small { opacity: .6; overflow-wrap: anywhere }
.error { color: #c33 }
"""
HEAD = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{title}}</title>
<style>{STYLE}</style>
<h1>{{title}}</h1>
<main>
"""


class Page:
  """Writes a page image by image; it has its name when it is complete. A context manager.

  Args:
    path: of the HTML file.
    title: above the images.
  """

  def __init__(self, path, title: str):
    self._count, self._whole = 0, contextlib.ExitStack()
    self._file = self._whole.enter_context(writing(path))
    self._write(HEAD.replace("{title}", html.escape(title)))

  def add(self, name: str, pixels: np.ndarray | None, captions: Sequence[str] = (), error: str = "") -> None:
    """An image, uint8 [H, W, 3] (None where it could not be read), with its captions, best first, or an error."""
    self._count += 1
    if self._count > MOST:
      return
    image = f'<img loading="lazy" alt="" src="{data_url(pixels)}">' if pixels is not None else ""
    texts = [html.escape(text) or "&nbsp;" for text in captions]
    if error:
      text = f'<p class="error">{html.escape(error)}</p>'
    elif len(texts) == 1:
      text = f"<p>{texts[0]}</p>"
    else:
      text = f"<ol>{''.join(f'<li>{t}</li>' for t in texts)}</ol>"
    self._write(f"<figure>{image}<figcaption>{text}<small>{html.escape(name)}</small></figcaption></figure>\n")

  def __enter__(self):
    return self

  def __exit__(self, *error):
    more = f"<p>and {self._count - MOST} more, which are not shown</p>" if self._count > MOST else ""
    self._write(f"</main>{more}</html>\n")
    return self._whole.__exit__(*error)

  def _write(self, text: str) -> None:
    self._file.write(text.encode(errors="replace"))


def data_url(pixels: np.ndarray) -> str:
  """A thumbnail of uint8 [H, W, 3], a JPEG of `SIDE` pixels a side at most, as a URL that holds it."""
  image = Image.fromarray(pixels)
  image.thumbnail((SIDE, SIDE))
  out = io.BytesIO()
  image.save(out, "JPEG", quality=85)
  return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"

r"""Makes sprites.parquet again from the packages that hold the drawings.

  npm install --prefix=DIR @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 @iconify-json/fxemoji@1.2.2 \
      @iconify-json/emojione@1.2.3 @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/twemoji@1.2.5 \
      @lobehub/fluent-emoji-3d@1.1.0
  pip install resvg-py==0.5.0
  python -m coca.data.scenes.rebuild --packages=DIR/node_modules --out=sprites.parquet

The same versions, of resvg-py and Pillow too, give the same pixels. To ship what was made, put it in the place of
sprites.parquet and see that coca/data/builtin/NOTICE still tells the truth.
"""

import argparse
import io
import json
import pathlib
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from coca.data.scenes.objects import OBJECTS
from coca.data.scenes.sprites import SIDE, premultiply, resize

SETS = {
  "noto": "Apache-2.0",
  "noto-v1": "Apache-2.0",
  "fxemoji": "Apache-2.0",
  "emojione": "CC-BY-4.0",
  "fluent-emoji-flat": "MIT",
  "twemoji": "CC-BY-4.0",
}
FLUENT = "@lobehub/fluent-emoji-3d/assets"
DRAWN = 512  # pixels a side at which vectors are drawn, before the empty margin is cut off
FAINT = 16  # alpha up to which a margin counts as empty
FXEMOJI = {  # names that are not Unicode's; the animal's whole body where there is one
  "1F415": "dogside",
  "1F408": "catside",
  "1F416": "pigside",
  "1F401": "mouseside",
  "1F407": "bunnyside",
  "1F405": "tigerside",
  "1F43B": "bear",
  "1F438": "frog",
  "1F332": "evergreen",
  "1F3CD": "motorcycle",
  "1F48E": "gem",
  "1F514": "ringingbell",
  "260E": "blacktouchtonetelephone",
  "1F4A1": "lightbulb",
  "1F381": "present",
}


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--packages", type=pathlib.Path, required=True, help="the folder that holds the packages")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="the file to write")
  args = parser.parse_args(argv)
  try:
    rebuild(args.packages, args.out)
  except (ImportError, OSError, ValueError) as e:
    parser.exit(1, f"rebuild: {e}\n")


def rebuild(packages: pathlib.Path, out: pathlib.Path) -> None:
  """Writes a row (name, style, licence, image) for each object and style; `image` is lossless WebP with straight alpha.

  Raises:
    ImportError: resvg-py is not installed.
    FileNotFoundError, ValueError: a package or a drawing is missing; the message names it.
  """
  rows = []
  sets = {style: Icons(packages, style) for style in SETS}
  for thing in tqdm(OBJECTS, unit=" objects"):
    drawings = {style: sets[style].draw(icon_name(sets[style], sets["noto"], thing.emoji)) for style in SETS}
    drawings["fluent-3d"] = fluent(packages, thing.emoji)
    for style, drawing in drawings.items():
      licence = SETS.get(style, "MIT")
      rows.append({"name": thing.name, "style": style, "licence": licence, "image": encode(cut_out(drawing))})
  pq.write_table(pa.Table.from_pylist(rows), out, compression="none")  # the images are compressed
  print(f"{out}: {len(rows)} drawings, {out.stat().st_size / 1e6:.2f} MB")


class Icons:
  """One of the @iconify-json packages: SVG bodies by names."""

  def __init__(self, packages: pathlib.Path, style: str):
    self.path = packages / f"@iconify-json/{style}/icons.json"
    self.set = json.loads(_existing(self.path).read_text())
    chars = self.path.with_name("chars.json")
    self.names = json.loads(chars.read_text()) if chars.is_file() else {}
    """Names by code points; empty for those of a set that gives none."""

  def draw(self, name: str) -> np.ndarray:
    """uint8 [DRAWN, DRAWN, 4], straight alpha."""
    try:
      import resvg_py
    except ImportError as e:
      raise ImportError("Drawings are rendered with resvg; install it: pip install resvg-py") from e
    name = self.set.get("aliases", {}).get(name, {}).get("parent", name)
    if name not in self.set["icons"]:
      raise ValueError(f"{self.path} has no icon {name!r}; the names are those of the versions that `--help` names")
    icon = self.set["icons"][name]
    box = [icon.get(key, self.set.get(key, 0)) for key in ("left", "top", "width", "height")]
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {space} viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=DRAWN, height=DRAWN, skip_system_fonts=True)
    return _pixels(io.BytesIO(bytes(png)))


def icon_name(icons: Icons, noto: Icons, emoji: str) -> str:
  """The name that a set gives an emoji. noto-v1 has noto's names, fxemoji mostly Unicode's without spaces."""
  if icons.set["prefix"] == "fxemoji":
    unicode = "".join(c for c in unicodedata.name(chr(int(emoji, 16))).lower() if c.isalnum())
    return FXEMOJI.get(emoji, unicode)
  names = icons.names or noto.names
  return names.get(emoji.lower()) or names[f"{emoji.lower()}-fe0f"]


def fluent(packages: pathlib.Path, emoji: str) -> np.ndarray:
  """uint8 [256, 256, 4], straight alpha."""
  path = packages / FLUENT / f"{emoji.lower()}.webp"
  return _pixels(_existing(path if path.is_file() else path.with_stem(f"{path.stem}-fe0f")))


def cut_out(drawing: np.ndarray) -> np.ndarray:
  """Cuts the margin off, centres the rest in a square and shrinks that: uint8 [SIDE, SIDE, 4], straight alpha."""
  seen = drawing[..., 3] > FAINT
  rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
  cut = drawing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  side = max(cut.shape[:2])
  (top, left), square = [(side - length) // 2 for length in cut.shape[:2]], np.zeros((side, side, 4), np.uint8)
  square[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
  small = resize(premultiply(square), SIDE).astype(np.float64)
  alpha = small[..., 3:]
  colour = np.where(alpha > 0, small[..., :3] * 255 / np.maximum(alpha, 1), 0)
  return np.concatenate([np.minimum(np.rint(colour), 255), alpha], axis=-1).astype(np.uint8)


def encode(rgba: np.ndarray) -> bytes:
  out = io.BytesIO()
  Image.fromarray(rgba).save(out, "WEBP", lossless=True, quality=100, method=6)
  return out.getvalue()


def _existing(path: pathlib.Path) -> pathlib.Path:
  if not path.is_file():
    raise FileNotFoundError(f"{path} is missing; `python -m coca.data.scenes.rebuild --help` says how to get it")
  return path


def _pixels(file) -> np.ndarray:
  return np.asarray(Image.open(file).convert("RGBA"))


if __name__ == "__main__":
  main()

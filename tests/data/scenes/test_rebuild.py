import io
import json
import re
import sys
import types

import numpy as np
import pytest
from PIL import Image, ImageDraw

from coca.data.scenes import rebuild, sprites
from coca.data.scenes.objects import Object


def drawn(svg_string, width, height, **settings):
  """Instead of resvg: a filled box in the middle of the view, whose size is the icon's body."""
  wide, high = (int(n) for n in re.findall(r">(\d+) (\d+)<", svg_string)[0])
  image = np.zeros((height, width, 4), np.uint8)
  image[(height - high) // 2 :, (width - wide) // 2 :][:high, :wide] = (200, 100, 50, 255)
  out = io.BytesIO()
  Image.fromarray(image).save(out, "PNG")
  return list(out.getvalue())


@pytest.fixture
def packages(tmp_path):
  """Of two emoji: names by code points in two sets, an alias, and an emoji that Unicode's name does not find."""
  names = {"1f415": "dog", "260e-fe0f": "telephone"}
  icons = {"dog": {"body": "200 300"}, "telephone": {"body": "300 200"}}
  for style in rebuild.SETS:
    folder = tmp_path / "@iconify-json" / style
    folder.mkdir(parents=True)
    made = {"prefix": style, "icons": dict(icons), "width": 32, "height": 32}
    if style == "fxemoji":
      made["icons"] = {"dogside": icons["dog"], "blacktouchtonetelephone": icons["telephone"]}
    if style == "noto-v1":
      made["icons"] = {"dog": icons["dog"], "phone": icons["telephone"]}
      made["aliases"] = {"telephone": {"parent": "phone"}}
    (folder / "icons.json").write_text(json.dumps(made))
    if style in ("noto", "twemoji"):
      (folder / "chars.json").write_text(json.dumps(names))
  (tmp_path / rebuild.FLUENT).mkdir(parents=True)
  for name in names:
    disk = Image.new("RGBA", (256, 256))
    ImageDraw.Draw(disk).ellipse((40, 60, 199, 219), (1, 2, 3, 255))
    disk.save(tmp_path / rebuild.FLUENT / f"{name}.webp", lossless=True)
  return tmp_path


def test_what_is_made_is_read(packages, tmp_path, monkeypatch):
  monkeypatch.setattr(rebuild, "OBJECTS", (Object("dog", "dogs", "1F415"), Object("telephone", "telephones", "260E")))
  monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=drawn))
  rebuild.main([f"--packages={packages}", f"--out={tmp_path / 'made.parquet'}"])
  monkeypatch.setattr(sprites, "FILE", tmp_path / "made.parquet")
  found = sprites._encoded.__wrapped__()
  assert set(found) == {(name, style) for name in ("dog", "telephone") for style in (*rebuild.SETS, "fluent-3d")}
  dog = np.asarray(Image.open(io.BytesIO(found["dog", "fxemoji"])))
  # 200 x 300 of 512: the height fills the square, the width is two thirds of it, 10.67 pixels on either side empty.
  assert (dog[:, 12:52] == (200, 100, 50, 255)).all() and not dog[:, :10].any() and not dog[:, 54:].any()
  np.testing.assert_array_equal(dog[0, [10, 53], 3], [85, 85])
  phone = np.asarray(Image.open(io.BytesIO(found["telephone", "noto-v1"])))
  assert (phone[12:52] == (200, 100, 50, 255)).all() and not phone[:10].any()
  disk = np.asarray(Image.open(io.BytesIO(found["dog", "fluent-3d"])))
  assert (disk[disk[..., 3] == 255] == (1, 2, 3, 255)).all()
  assert abs((disk[..., 3] / 255).sum() - np.pi * 32**2) < 40


def test_errors_say_what_is_missing(packages, tmp_path, monkeypatch, capsys):
  arguments = [f"--packages={packages}", f"--out={tmp_path / 'made.parquet'}"]
  for spoil, message in (
    (lambda: monkeypatch.setitem(sys.modules, "resvg_py", None), "pip install resvg-py"),
    (
      lambda: (packages / "@iconify-json/fxemoji/icons.json").write_text('{"prefix": "fxemoji", "icons": {}}'),
      "fxemoji",
    ),
    (lambda: (packages / "@iconify-json/noto/icons.json").unlink(), "noto/icons.json is missing; .*rebuild --help"),
  ):
    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=drawn))
    spoil()
    with pytest.raises(SystemExit, match="1"):
      rebuild.main(arguments)
    assert re.search(message, capsys.readouterr().err)
  assert not (tmp_path / "made.parquet").exists()

"""Folders with a table of captions, or with a text beside each image."""

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from PIL import Image

from coca.config import Source
from coca.data.records import BadRecord, Record, Text
from coca.data.sources import open_source
from coca.data.sources.folder import open_folder


def picture(n, kind="JPEG"):
  data = io.BytesIO()
  Image.new("RGB", (8 + n, 8), (n, 2, 3)).save(data, kind)
  return data.getvalue()


def opened(path, **settings):
  return open_folder(Source(kind="folder", path=str(path), **settings))


def texts(source):
  return {source[i].key: [t.text for t in source[i].texts] for i in range(len(source))}


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "sub").mkdir()
  (tmp_path / "a.jpg").write_bytes(picture(0))
  (tmp_path / "sub" / "b.png").write_bytes(picture(1, "PNG"))
  return tmp_path


ROWS = [("a.jpg", 'a "red" thing, old'), ("sub/b.png", "two\nlines"), ("a.jpg", "second")]
WANTED = {"a.jpg": ['a "red" thing, old', "second"], "sub/b.png": ["two\nlines"]}


def test_csv(folder):
  (folder / "captions.csv").write_text('file_name,caption\na.jpg,"a ""red"" thing, old"\nsub/b.png,"two\nlines"\n'
                                       "./a.jpg,second\n")  # fmt: skip
  source = open_source(Source(kind="folder", path=str(folder)))
  assert texts(source) == WANTED and source.problems == [] and source.label_names == ()
  assert source[0] == Record("a.jpg", picture(0), (Text(WANTED["a.jpg"][0], "human"), Text("second", "human")))


@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.jsonl", "captions.json", "pairs.jsonl"])
def test_json(folder, name):
  rows = [{"image": k, "title": v} for k, v in ROWS]
  (folder / name).write_text(json.dumps(rows) if name.endswith("json") else "\n".join(map(json.dumps, rows)))
  assert texts(opened(folder)) == WANTED


def test_more_shapes(folder):
  table = folder / "captions.json"
  table.write_text(json.dumps({"a": WANTED["a.jpg"], "sub\\b.png": "x"}))  # no extension; as written on Windows
  assert texts(opened(folder)) == {"a": WANTED["a.jpg"], "sub/b.png": ["x"]}
  table.unlink()
  (folder / "x.tsv").write_text("path\ttext\na.jpg\tone, two\n")
  assert texts(opened(folder)) == {"a.jpg": ["one, two"]}
  (folder / "x.tsv").write_text("nr\tfoto\n1\ta.jpg\n")
  with pytest.raises(ValueError, match=r"image_key: x\.tsv has no column file_name or.*it has: nr, foto"):
    opened(folder)
  assert texts(opened(folder, image_key="foto", text_key="nr")) == {"a.jpg": ["1"]}
  (folder / "y.csv").write_text("")
  with pytest.raises(ValueError, match=r"which of x\.tsv, y\.csv is the table"):
    opened(folder)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(folder, encoding):
  (folder / "captions.csv").write_bytes("file_name,caption\r\na.jpg,schöne 名前\r\n".encode(encoding))
  assert texts(opened(folder)) == {"a.jpg": ["schöne 名前"]}


def test_wrong_rows_are_counted(folder):
  (folder / "captions.csv").write_bytes(
    b"file_name,caption\na.jpg,good\na.jpg,K\xe4se\n\na.jpg,red, round\n,nothing\nsub/b.png,\ngone.jpg,x\nsub,x\n")
  source = opened(folder)
  assert len(source) == 7 and source[0].texts == (Text("good", "human"),)
  assert len(source.problems) == 1 and "3 rows can't be used" in source.problems[0]
  assert source[1] == Record("sub/b.png", picture(1, "PNG"), ())
  reasons = {2: r"no such file: .*gone\.jpg", 3: "sub", 4: r"line 3: .*utf-8",
             5: "line 5: more fields .* round", 6: "line 6: no image"}  # fmt: skip
  for i, reason in reasons.items():
    with pytest.raises(BadRecord, match=reason):
      source[i]


def test_rows_go_on_behind_a_field_that_is_too_large(folder):
  (folder / "captions.csv").write_text(f"file_name,caption\na.jpg,{'x' * 200_000}\nsub/b.png,good\n")
  source = opened(folder)
  assert len(source) == 2 and source[0].key == "sub/b.png"
  with pytest.raises(BadRecord, match="after line 1: field larger"):
    source[1]


def test_wrong_json_lines(folder):
  lines = ['{"file_name": "a.jpg", "caption": "line\u2028break"}', "{", "3", '{"file_name": 3, "caption": "x"}',
           '{"file_name": "a.jpg", "caption": {"en": "x"}}', "[" * 100_000]  # fmt: skip
  (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
  source = opened(folder)
  assert len(source) == 6 and source[0].texts[0].text == "line\u2028break"
  for i, reason in enumerate(["not JSON", "no JSON object", "no image", "a text is a dict", "not JSON"], 1):
    with pytest.raises(BadRecord, match=f"line {i + 1}: {reason}"):
      source[i]


def test_tables_that_hold_nothing(folder):
  for name, data, message in (("captions.csv", "", "no rows"), ("captions.csv", "file_name,caption\n", "no rows"),
                              ("captions.jsonl", "\n{\n", "line 2: not JSON"), ("captions.json", "{", "captions.json"),
                              ("captions.json", "3", "list of objects")):  # fmt: skip
    (folder / name).write_text(data)
    with pytest.raises(ValueError, match=message):
      opened(folder)
    (folder / name).unlink()


@pytest.mark.parametrize("path", ["../secret.jpg", "sub/../../secret.jpg", "..\\secret.jpg", "{root}/secret.jpg",
                                  "C:\\secret.jpg", "memory://secret.jpg", "a\0.jpg", "."])  # fmt: skip
def test_paths_out_of_the_folder_are_refused(folder, tmp_path_factory, path):
  (folder.parent / "secret.jpg").write_bytes(picture(9))
  path = path.replace("{root}", str(folder.parent))
  rows = [{"file_name": path, "caption": "x"}]
  (folder / "captions.json").write_text(json.dumps(rows))
  with pytest.raises(ValueError, match=r"no row of captions\.json can be used.*entry 1: .* is refused"):
    opened(folder)
  (folder / "captions.json").write_text(json.dumps([*rows, {"file_name": "a.jpg", "caption": "good"}]))
  source = opened(folder)
  assert len(source) == 2 and "refused" in source.problems[0]
  with pytest.raises(BadRecord, match="refused"):
    source[1]


def test_text_beside_the_image(folder):
  (folder / "a.txt").write_text("\ufeffone text\n", encoding="utf-8")
  (folder / "sub" / "b.txt").write_text("two")
  (folder / "c.jpg").write_bytes(picture(2))
  (folder / "e.webp").write_bytes(b"")
  (folder / "e.txt").write_text("x")
  (folder / "README.txt").write_text("x")
  (folder / ".hidden.jpg").write_bytes(b"x")
  source = opened(folder)
  assert len(source) == 4 and source[0] == Record("a.jpg", picture(0), (Text("one text", "human"),))
  assert source[3] == Record("sub/b.png", picture(1, "PNG"), (Text("two", "human"),))
  assert source[1] == Record("c.jpg", picture(2), ())
  with pytest.raises(BadRecord, match=r"e\.webp.*image is empty"):
    source[2]
  assert len(source.problems) == 1 and "1 texts without an image, such as README.txt" in source.problems[0]
  os.remove(folder / "a.txt")
  with pytest.raises(BadRecord, match=r"no such file: .*a\.txt"):
    source[0]


def test_nothing_there(folder):
  with pytest.raises(FileNotFoundError, match=r"2 images and no captions; write captions\.csv.*set .*text_key to ''"):
    opened(folder)
  for path in (folder / "none", "", "memory://none"):
    with pytest.raises(FileNotFoundError, match=r"config\.data\.sources\.<name>\.path is .*: no such directory"):
      opened(path)


def test_remote_and_threads():
  fs = fsspec.filesystem("memory")
  fs.pipe({f"/folder/images/{n}.jpg": picture(n) for n in range(20)})
  fs.pipe("/folder/captions.csv", b"image,text\n" + b"".join(b"images/%d.jpg,t %d\n" % (n, n) for n in range(20)))
  source = opened("memory://folder/")
  with ThreadPoolExecutor(8) as pool:
    got = list(pool.map(source.__getitem__, list(range(20)) * 5))
  assert got == [Record(f"images/{n}.jpg", picture(n), (Text(f"t {n}", "human"),)) for n in range(20)] * 5
  fs.pipe({f"/beside/{n}.jpg": picture(n) for n in range(2)} | {f"/beside/{n}.txt": b"t" for n in range(2)})
  assert texts(opened("memory://beside")) == {"0.jpg": ["t"], "1.jpg": ["t"]}


def test_images_alone(folder):
  """As a student has them who wants them captioned: `text_key` '' reads no texts, wherever there are some."""
  (folder / "captions.csv").write_text("file_name,caption\na.jpg,one\n")
  (folder / "a.txt").write_text("beside")
  source = opened(folder, text_key="")
  assert [source[i] for i in range(len(source))] == [Record("a.jpg", picture(0), ()),
                                                     Record("sub/b.png", picture(1, "PNG"), ())]
  assert source.problems == []


@pytest.fixture
def linked(folder, tmp_path_factory):
  """A folder with links out of it, in it and to nowhere, a link to a folder, and a pipe that nobody writes to."""
  outside = tmp_path_factory.mktemp("outside")
  (outside / "secret.jpg").write_bytes(picture(9))
  (outside / "secret.txt").write_text("a secret")
  for name, target in (("out.jpg", outside / "secret.jpg"), ("in.jpg", folder / "a.jpg"), ("dead.jpg", "/nowhere"),
                       ("album", outside), ("circle", folder), ("sub/b.txt", outside / "secret.txt")):
    (folder / name).symlink_to(target)
  os.mkfifo(folder / "pipe.jpg")
  for name in ("a", "in", "out", "dead", "pipe"):
    (folder / f"{name}.txt").write_text(f"text of {name}")
  return folder


def test_links_are_followed_inside_the_folder_only(linked):
  source = opened(linked)
  assert texts(source) == {"a.jpg": ["text of a"], "in.jpg": ["text of in"], "sub/b.png": []}
  out, other, alone = sorted(source.problems, key=lambda text: ("links that" not in text, "pipes" not in text))
  assert "4 links that lead out of it or nowhere" in out and "follow_links=True" in out
  assert "2 entries that are no regular files" in other and "such as circle" in other
  assert "3 texts without an image" in alone
  everything = texts(opened(linked, follow_links=True))
  assert everything == {"a.jpg": ["text of a"], "in.jpg": ["text of in"], "out.jpg": ["text of out"],
                        "sub/b.png": ["a secret"], "album/secret.jpg": ["a secret"]}  # fmt: skip


def test_a_table_does_not_lead_out_by_links_either(linked):
  names = ["a.jpg", "in.jpg", "out.jpg", "album/secret.jpg", "pipe.jpg", "dead.jpg"]
  table = linked / "captions.jsonl"
  table.write_text("\n".join(json.dumps({"file_name": name, "caption": "x"}) for name in names))
  source = opened(linked)
  assert source[0].image == source[1].image == picture(0)
  for i, why in ((2, "out.jpg is a link that leads out"), (3, "album/secret.jpg is a link"), (4, "no regular file"),
                 (5, "leads out")):  # fmt: skip
    with pytest.raises(BadRecord, match=why):
      source[i]
  assert opened(linked, follow_links=True)[3].image == picture(9)
  table.rename(linked.parent / "elsewhere.jsonl")
  table.symlink_to(linked.parent / "elsewhere.jsonl")
  with pytest.raises(OSError, match=r"captions\.jsonl is a link that leads out of the folder; .*follow_links=True"):
    opened(linked)


def test_a_folder_of_links_says_what_it_has_left_out(tmp_path):
  (tmp_path / "pictures").mkdir()
  (tmp_path / "a.jpg").write_bytes(picture(0))
  (tmp_path / "pictures" / "a.jpg").symlink_to(tmp_path / "a.jpg")
  with pytest.raises(FileNotFoundError, match=r"0 images(.|\n)*1 links .*follow_links=True"):
    opened(tmp_path / "pictures", text_key="")
  (tmp_path / "again").symlink_to(tmp_path)  # the folder itself may be one
  assert len(opened(tmp_path / "again", text_key="")) == 2

"""Folders with a table of captions, or with a text beside each image."""

import io
import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
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
  with pytest.raises(ValueError, match=r"x\.tsv \(separated by tabs\) has no column file_name or.*it has: nr, foto"):
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
    b"file_name,caption\na.jpg,good\na.jpg,K\xe4se\n\na.jpg,red, round\n,nothing\nsub/b.png,\ngone.jpg,x\nsub,x\n"
  )
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
  assert len(source.problems) == 2 and "1 texts without an image, such as README.txt" in source.problems[0]
  assert "1 of 4 images have no text beside them, such as c.jpg" in source.problems[1]
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


@pytest.mark.parametrize(("name", "separator"), [("captions.csv", "\t"), ("captions.csv", ";"), ("captions.csv", "|"),
                                                 ("captions.tsv", ",")])  # fmt: skip
def test_the_separator_is_found(folder, name, separator):
  (folder / name).write_text(f"nr{separator}filepath{separator}title\n1{separator}a.jpg{separator}one\n")
  assert texts(opened(folder)) == {"a.jpg": ["one"]}
  (folder / name).write_text(f"foto{separator}titel, kurz\na.jpg{separator}one\n")
  assert texts(opened(folder, image_key="foto", text_key="titel, kurz" if separator != "," else "titel"))


@pytest.mark.parametrize("above", ["\n", "sep=;\r\n", '\r\n \n"sep=;"\r\n\n'])
def test_lines_above_the_names(folder, above):
  (folder / "captions.csv").write_text(f"{above}file_name;caption\na.jpg;one\na.jpg;two;three\n", newline="")
  source = opened(folder)
  assert [text.text for text in source[0].texts] == ["one"]
  with pytest.raises(BadRecord, match=f"line {above.count(chr(10)) + 3}: more fields"):
    source[1]


def test_quotation_marks_swallow_no_rows(folder):
  rows = [("a.jpg", '"the red one" says a man'), ("a.jpg", '"unclosed'), ("sub/b.png", '6" wide'), ("a.jpg", "x")]
  (folder / "captions.tsv").write_text("file_name\tcaption\n" + "".join(f"{a}\t{b}\n" for a, b in rows))
  source = opened(folder)
  assert texts(source) == {"a.jpg": [t for p, t in rows if p == "a.jpg"], "sub/b.png": ['6" wide']}
  assert source.problems == []
  # As pandas and R write tables with tabs: quoting that is certain is taken off.
  (folder / "captions.tsv").write_text('file_name\tcaption\na.jpg\t"a ""red"" one"\nsub/b.png\t"Title"\n')
  assert texts(opened(folder)) == {"a.jpg": ['a "red" one'], "sub/b.png": ['"Title"']}
  (folder / "captions.tsv").write_text('"file_name"\t"caption"\n"a.jpg"\t"one"\n')
  assert texts(opened(folder)) == {"a.jpg": ["one"]}


def test_quotation_marks_in_a_csv(folder):
  (folder / "captions.csv").write_text('file_name,caption\nsub/b.png,good\na.jpg,"unclosed\na.jpg,x\nsub/b.png,y\n')
  source = opened(folder)
  assert texts_and_reasons(source) == [["good"], "line 5: a quotation mark makes one field of 4 lines"]
  (folder / "captions.csv").write_text('file_name,caption\na.jpg,"' + "a line\n" * 12 + '"\n')
  source = opened(folder)
  assert len(source) == 1 and "1 texts have more than 10 lines" in source.problems[0]


def texts_and_reasons(source):
  out = []
  for i in range(len(source)):
    try:
      out.append([t.text for t in source[i].texts])
    except BadRecord as e:
      out.append(re.search("line.*lines", str(e))[0])
  return out


def test_the_first_rows_may_lack_fields(folder):
  rows = [{"file_name": "a.jpg"}] * 3 + [{"file_name": "a.jpg", "caption": "one"}]
  (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
  assert texts(opened(folder)) == {"a.jpg": ["one"]}


def test_numbers_and_truth_values(folder):
  rows = [(0, "0"), (2.0, "2"), (1.5, "1.5"), (math.nan, None), (None, None), ([3, "4"], "34")]
  for asked in ({}, {"question_key": "q", "text_key": "a"}):
    (folder / "x.jsonl").write_text("\n".join(json.dumps({"image": "a.jpg", "q": "?", "a": v}) for v, _ in rows))
    source = opened(folder, **({"text_key": "a"} | asked))
    found = [t.text for i in range(len(source)) for t in source[i].texts]
    assert found == ["0", "2", "1.5", "3", "4"] and source.problems == []
  (folder / "x.jsonl").write_text(
    '{"image": "a.jpg", "q": "Is it?", "a": true}\n{"image": "a.jpg", "q": 1, "a": false}'
  )
  source = opened(folder, question_key="q", text_key="a")
  assert [(source[i].question, source[i].texts[0].text) for i in range(2)] == [("Is it?", "yes"), ("1", "no")]
  with pytest.raises(ValueError, match="a text is a bool"):
    opened(folder, text_key="a")


COCO = {"info": {}, "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "sub/b.png"}],
        "annotations": [{"image_id": 7, "caption": "one"}, {"image_id": 8, "caption": "two"},
                        {"image_id": 7, "caption": "three"}, {"image_id": 9, "caption": "lost"}]}  # fmt: skip
KARPATHY = {"images": [
  {"filename": "a.jpg", "split": "restval", "sentences": [{"raw": "one", "tokens": ["one"]}, {"raw": "two"}]},
  {"filepath": "sub", "filename": "b.png", "split": "train", "sentences": [{"raw": "three"}]},
  {"filename": "c.jpg", "split": "test", "sentences": [{"raw": "four"}]}]}  # fmt: skip


@pytest.mark.parametrize("name", ["captions.json", "captions_train2017.json", "dataset.json"])
def test_cocos_annotations(folder, name):
  (folder / name).write_text(json.dumps(COCO))
  source = opened(folder)
  assert [[t.text for t in source[i].texts] for i in range(2)] == [["one", "three"], ["two"]]
  assert "1 rows can't be used" in source.problems[0] and "annotation 4" in source.problems[0]
  nameless = {
    "images": [*COCO["images"], {"file_name": "c.jpg"}],
    "annotations": [*COCO["annotations"], {"caption": "of none"}],
  }
  (folder / name).write_text(json.dumps(nameless))
  assert "2 rows can't be used" in opened(folder).problems[0]
  count = len(opened(folder))
  (folder / "dataset_info.json").write_text("{}")  # of tfds or Hugging Face
  assert len(opened(folder)) == count
  boxes = {"images": COCO["images"], "annotations": [{"image_id": 7, "bbox": [0, 0, 1, 1]}]}
  (folder / name).write_text(json.dumps(boxes))
  with pytest.raises(ValueError, match='none of its "annotations" has a "caption"'):
    opened(folder)


def test_karpathys_annotations(folder):
  (folder / "dataset_coco.json").write_text(json.dumps(KARPATHY))
  assert texts(opened(folder)) == {"a.jpg": ["one", "two"], "sub/b.png": ["three"]}
  for split, count in (("", 3), ("test", 1), ("restval", 1)):
    assert len(opened(folder, split=split)) == count
  with pytest.raises(ValueError, match=r"dataset_coco\.json has no split 'val'; it has: restval, test, train"):
    opened(folder, split="val")


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl", "captions.json"])
def test_splits_of_a_table_with_such_a_column(folder, name):
  rows = [("a.jpg", "one", "train"), ("sub/b.png", "two", "restval"), ("a.jpg", "three", "test"), ("a.jpg", "four", "")]
  rows = [dict(zip(("file_name", "caption", "split"), row, strict=True)) for row in rows]

  def write(rows):
    lines = (
      [",".join(row) for row in [rows[0], *map(dict.values, rows)]] if name.endswith("csv") else map(json.dumps, rows)
    )
    (folder / name).write_text(json.dumps(rows) if name.endswith("json") else "\n".join(lines))
    return folder

  assert texts(opened(write(rows))) == {"a.jpg": ["one", "four"], "sub/b.png": ["two"]}  # of training
  assert texts(opened(folder, split="test")) == {"a.jpg": ["three", "four"]}
  assert texts(opened(folder, split="")) == {"a.jpg": ["one", "three", "four"], "sub/b.png": ["two"]}
  with pytest.raises(ValueError, match=r"split is 'tset': captions\..* has rows of restval, test, train; name one of"):
    opened(write(rows[:3]), split="tset")


def test_tables_and_archives_that_are_not_read_are_named(folder):
  for name in ("train", "test"):
    (folder / name).mkdir()
    (folder / name / "metadata.jsonl").write_text("{}")
  with pytest.raises(FileNotFoundError, match=r"train/metadata\.jsonl and test/metadata\.jsonl lie .*/train'; or"):
    opened(folder)
  (folder / "captions.jsonl").write_text('{"file_name": "gone.jpg", "caption": "x"}')
  (folder / "images.zip").write_bytes(b"")
  with pytest.raises(BadRecord, match=r"gone\.jpg .*; images\.zip is not looked into: unpack it there \(unzip images"):
    opened(folder)[0]


@pytest.mark.parametrize(("name", "message"), [("0.tar", "kind 'webdataset' reads"), ("0.parquet", "kind 'parquet'"),
                                               ("0.tar.gz", "tar -xf 0.tar.gz; shards of WebDataset")])  # fmt: skip
def test_other_formats_are_named(tmp_path, name, message):
  (tmp_path / name).write_bytes(b"")
  with pytest.raises(FileNotFoundError, match=message):
    opened(tmp_path)


def test_images_alone(folder):
  """As a student has them who wants them captioned: `text_key` '' reads no texts, wherever there are some."""
  (folder / "captions.csv").write_text("file_name,caption\na.jpg,one\n")
  (folder / "a.txt").write_text("beside")
  source = opened(folder, text_key="")
  assert [source[i] for i in range(len(source))] == [
    Record("a.jpg", picture(0), ()),
    Record("sub/b.png", picture(1, "PNG"), ()),
  ]
  assert source.problems == []


VQA = "v2_OpenEnded_mscoco_val2014_questions.json"
LAYOUTS = {
  "nocaps_val_4500_captions.json": COCO | {"annotations": COCO["annotations"][:3]},
  "captions_val2017.json": {
    "annotations": COCO["annotations"][:3],
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.png"}],
  },
  "results_20130124.token": "a.jpg#0\tone\na.jpg#1\tthree\nb.png#0\ttwo\n",
  "Flickr8k.token.txt": "a.jpg#0\tone\na.jpg#1\tthree\nb.png#0\ttwo\n",
  "results.csv": "image_name| comment_number| comment\na.jpg| 0| one\na.jpg| 1| three\nsub/b.png| 0| two\n",
  "captions.txt": "image,caption\na.jpg,one\na.jpg,three\nsub/b.png,two\n",
  "flickr_annotations_30k.csv": 'raw,sentids,split,filename\n"[""one"", ""three""]",[0],val,a.jpg\n'
                                '"[""two""]",[1],val,b.png\n"[""no""]",[2],test,b.png\n',
  "captions.jsonl": '{"images": ["a.jpg"], "text": "<__dj__image>\\none <|__dj__eoc|>"}\n'
                    '{"images": ["{root}/a.jpg"], "text": "three"}\n{"images": ["sub/b.png"], "text": "two"}\n',
  "metadata.jsonl": '{"file_name": "a.jpg", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", '
                    '"value": "one"}, {"from": "human", "value": "?"}, {"from": "gpt", "value": "three"}]}\n'
                    '{"image": "x", "file_name": "sub/b.png", "messages": [{"role": "user", "content": "?"}], '
                    '"conversations": [{"role": "assistant", "content": [{"type": "text", "text": "two"}]}]}',
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_data_sets_publish(folder, name):
  data = LAYOUTS[name] if isinstance(LAYOUTS[name], str) else json.dumps(LAYOUTS[name])
  (folder / name).write_text(data.replace("{root}", str(folder)))
  got = texts(opened(folder, split="val"))
  assert got == {"a.jpg": ["one", "three"], "sub/b.png": ["two"]}
  (folder / name).rename(folder.parent / name)  # elsewhere, as COCO's lie in annotations/
  assert texts(opened(folder, split="val", texts=str(folder.parent / name))) == got


def test_visual_genome(folder):
  os.rename(folder / "a.jpg", folder / "sub" / "7.jpg")
  (folder / "region_descriptions.json").write_text(
    json.dumps([{"id": 7, "regions": [{"phrase": "x"}, {"phrase": "y"}]}])
  )
  asked = [{"qa_id": n, "question": f"q {n}?", "answer": answer} for n, answer in ((5, "A dog."), (6, 3))]
  (folder / "question_answers.json").write_text(json.dumps([{"id": 7, "qas": asked}]))
  assert texts(opened(folder)) == {"sub/7.jpg": ["x", "y"]}
  source = opened(folder, question_key="question")
  assert [(source[n].key, source[n].question, source[n].texts[0].text) for n in range(len(source))] == [
    ("sub/7.jpg#5", "q 5?", "a dog"), ("sub/7.jpg#6", "q 6?", "3")]  # fmt: skip


def test_vqa(folder):
  os.rename(folder / "a.jpg", folder / "sub" / "COCO_val2014_000000000042.jpg")
  asked = {"data_subtype": "val2014", "questions": [
    {"image_id": 42, "question": "How many?", "question_id": 420},
    {"image_id": 42, "question": "?", "question_id": 421}, {"question": "?"}]}  # fmt: skip
  (folder / VQA).write_text(json.dumps(asked))
  source = opened(folder, question_key="question")
  assert source[0].texts == () and source[0].question == "How many?"  # of the test split
  answers = {"annotations": [{"question_id": 420, "answers": [{"answer": "2"}, {"answer": "2"}, {"answer": "two"}]}]}
  (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(answers))
  source = opened(folder, question_key="question")
  assert [t.text for t in source[0].texts] == ["2", "2", "two"] and source[0].image == picture(0)
  assert [source[n].key for n in range(2)] == [f"sub/COCO_val2014_000000000042.jpg#{n}" for n in (420, 421)]
  assert 'question 3: it has no "image_id"' in source.problems[0]
  with pytest.raises(ValueError, match=r"it has: file_name, question, answers, #\. For questions, name their column"):
    opened(folder)


def test_snli_ve(folder):
  """Each row is a record with its label; those without a majority are counted, and are none."""
  (folder / "flickr30k-images").mkdir()
  for n in (9, 10):
    (folder / "flickr30k-images" / f"{n}.jpg").write_bytes(picture(n))
  said = [("9", "neutral", "9.jpg#0r1n"), ("10", "-", "10.jpg#1r1e"), ("9", "contradiction", "9.jpg#0r1c"),
          ("9", "maybe", "9.jpg#3r1n"), ("10", "entailment", "10.jpg#0r1e"), (None, "neutral", "#"), ("10", "-", ""),
          ("11", "neutral", "11.jpg#2r1n"), ("9", "neutral", "9.jpg#0r1n")]  # fmt: skip
  rows = [
    {"Flickr30K_ID": image, "gold_label": label, "pairID": pair, "sentence1": "no", "sentence2": f"it is {n}"}
    for n, (image, label, pair) in enumerate(said)
  ]
  for split, some in (("train", rows), ("dev", rows[:1])):
    (folder / f"snli_ve_{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in some))
  source = opened(folder)
  assert source.label_names == ("contradiction", "entailment", "neutral") and len(source) == 7
  found = [source[n] for n in (0, 1, 2, 4)]
  assert [(r.key, r.texts[0].text, source.label_names[r.label], len(r.texts)) for r in found] == [
    (f"flickr30k-images/{key}", f"it is {n}", label, 1)
    for key, n, label in (
      ("9.jpg#0r1n", 0, "neutral"),
      ("9.jpg#0r1c", 2, "contradiction"),
      ("10.jpg#0r1e", 4, "entailment"),
      ("9.jpg#1", 8, "neutral"),  # whose number is there already
    )
  ]
  assert found[1].image == picture(9) and found[2].image == picture(10)
  with pytest.raises(BadRecord, match=r"no such file: 11\.jpg \(named in the table\)"):
    source[3]
  with pytest.raises(BadRecord, match="line 4: its \"gold_label\" is 'maybe', and none of entailment, neutral,"):
    source[5]
  with pytest.raises(BadRecord, match='line 6: it has no "Flickr30K_ID"'):
    source[6]
  assert any("2 rows of snli_ve_train.jsonl have the gold_label '-'" in problem for problem in source.problems)
  assert len(opened(folder, split="dev")) == 1
  elsewhere = folder / "flickr30k-images"
  assert len(opened(elsewhere, texts=str(folder / "snli_ve_train.jsonl"))) == 7
  with pytest.raises(ValueError, match=r"<name>\.split is 'test': .* has SNLI-VE's files of dev, train; name one"):
    opened(folder, split="test")


def test_nlvr2(folder):
  (folder / "dev").mkdir()
  for n in range(4):
    (folder / "dev" / f"dev-{n // 2}-0-img{n % 2}.png").write_bytes(picture(n, "PNG"))
  said = [("dev-0-0-0", "True"), ("dev-0-0-1", "False"), ("dev-1-0-0", "True"), ("dev-2-0-0", "True"), ("dev", "?")]
  rows = [{"identifier": name, "sentence": f"it is {n}", "label": x} for n, (name, x) in enumerate(said)]
  (folder / "dev.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  source = opened(folder, texts=str(folder / "dev.json"))
  assert source.label_names == ("False", "True") and len(source) == 5
  for n, (key, left) in enumerate((("dev-0-0-img0.png#0", 0), ("dev-0-0-img0.png#1", 0), ("dev-1-0-img0.png#0", 2))):
    assert source[n] == Record(
      f"dev/{key}",
      picture(left, "PNG"),
      (Text(f"it is {n}", "human"),),
      int(said[n][1] == "True"),
      second=picture(left + 1, "PNG"),
    )
  with pytest.raises(BadRecord, match="\"identifier\" is 'dev' and \"label\" '\\?', not True or False"):
    source[4]
  os.remove(folder / "dev" / "dev-1-0-img1.png")
  with pytest.raises(BadRecord, match=r"no such file: dev/dev-1-0-img1\.png"):
    source[2]


def test_several_columns_each_with_its_origin(folder):
  (folder / "captions.csv").write_text("image,caption,recaption,label\na.jpg,one,two,dog\nsub/b.png,,three,cat\n")
  source = opened(folder, text_key="caption:web, recaption:synthetic, label")
  assert source[0].texts == (Text("one", "web"), Text("two", "synthetic"), Text("dog", "label"))
  assert source[1].texts == (Text("three", "synthetic"), Text("cat", "label"))
  assert source.label_names == ("cat", "dog") and [source[n].label for n in range(2)] == [1, 0]
  assert opened(folder, text_key="recaption:label")[1].label == 0
  with pytest.raises(ValueError, match=r"<name>\.text_key: captions\.csv .* has no column alt; it has: image, caption"):
    opened(folder, text_key="caption,alt")
  alone = opened(folder, label_key="label")
  assert alone.label_names == ("cat", "dog") and alone[0] == Record("a.jpg", picture(0), (Text("one", "human"),), 1)
  (folder / "captions.csv").write_text("image,caption,label\na.jpg,one,dog\na.jpg,two,dog\nsub/b.png,,cat\n")
  twice = opened(folder, text_key="caption,label")[0]
  assert twice.label == 1 and [text.text for text in twice.texts] == ["one", "dog", "two"]
  (folder / "captions.csv").write_text("image,label\na.jpg,dog\nsub/b.png,cat\n")
  assert opened(folder).label_names == ("cat", "dog") and opened(folder)[0] == Record(
    "a.jpg", picture(0), (Text("dog", "label"),), 1
  )


def test_a_folder_a_class(folder):
  with pytest.raises(FileNotFoundError, match=r"2 images and no captions.*'file_name' or 'label'"):
    opened(folder)
  (folder / "cat").mkdir()
  os.rename(folder / "a.jpg", folder / "cat" / "a.jpg")
  source = opened(folder)
  assert source.label_names == ("cat", "sub") and "folders are taken for classes: cat, sub" in source.problems[0]
  assert source[1] == Record("sub/b.png", picture(1, "PNG"), (Text("sub", "label"),), 1)
  (folder / "cat" / "a.txt").write_text("tabby")
  assert texts(opened(folder)) == {"cat/a.jpg": ["tabby"], "sub/b.png": []}
  assert [opened(folder, label_key="label")[n].label for n in range(2)] == [0, 1]
  with pytest.raises(FileNotFoundError, match=r"label_key is 'breed': .* has no table with such a column"):
    opened(folder, label_key="breed")
  assert opened(folder, text_key="txt,label")[0].texts == (Text("tabby", "human"), Text("cat", "label"))
  os.remove(folder / "cat" / "a.txt")
  for name in ("train", "00001"):
    os.rename(folder / "sub", folder / name)
    with pytest.raises(FileNotFoundError, match="no captions"):
      opened(folder)
    assert opened(folder, text_key="label").label_names == tuple(sorted(("cat", name)))
    os.rename(folder / name, folder / "sub")


def test_captions_in_files_and_names(folder):
  (folder / "a.caption").write_text("one")
  (folder / "sub" / "b.TXT").write_text("two")
  assert texts(opened(folder)) == {"a.jpg": ["one"], "sub/b.png": ["two"]}
  (folder / "a.txt").write_text("tags")
  assert texts(opened(folder)) == {"a.jpg": ["tags"], "sub/b.png": ["two"]}
  both = opened(folder, text_key="txt,caption:synthetic")
  assert both[0].texts == (Text("tags", "human"), Text("one", "synthetic"))
  (folder / "a.txt").write_text("one\n\ntwo\n")
  assert texts(opened(folder, text_lines=True)) == {"a.jpg": ["one", "two"], "sub/b.png": ["two"]}
  assert texts(opened(folder, text_key="file_name")) == {"a.jpg": ["a"], "sub/b.png": ["b"]}


def test_other_tables_are_named(folder):
  (folder / "blip_558k.json").write_text('[{"image": "a.jpg", "caption": "one"}]')
  with pytest.raises(FileNotFoundError, match=r"if blip_558k\.json is the table, name it in .*\.texts"):
    opened(folder)
  assert texts(opened(folder, texts="blip_558k.json")) == {"a.jpg": ["one"]}
  table = pa.Table.from_pylist([{"image": {"bytes": None, "path": "a.jpg"}, "caption": "one"}])
  pq.write_table(table, folder.parent / "x.parquet")
  assert texts(opened(folder, texts=str(folder.parent / "x.parquet"))) == {"a.jpg": ["one"]}
  for name in ("captions_a.json", "captions_b.json"):
    (folder / name).write_text(json.dumps(COCO))
  with pytest.raises(
    ValueError, match=r"which of captions_a\.json, captions_b\.json is the table\? Name it in .*texts"
  ):
    opened(folder)


@pytest.fixture
def linked(folder, tmp_path_factory):
  """A folder with links out of it, in it and to nowhere, a link to a folder, and a pipe that nobody writes to."""
  outside = tmp_path_factory.mktemp("outside")
  (outside / "secret.jpg").write_bytes(picture(9))
  (outside / "secret.txt").write_text("a secret")
  for name, target in (
    ("out.jpg", outside / "secret.jpg"),
    ("in.jpg", folder / "a.jpg"),
    ("dead.jpg", "/nowhere"),
    ("album", outside),
    ("circle", folder),
    ("sub/b.txt", outside / "secret.txt"),
  ):
    (folder / name).symlink_to(target)
  os.mkfifo(folder / "pipe.jpg")
  for name in ("a", "in", "out", "dead", "pipe"):
    (folder / f"{name}.txt").write_text(f"text of {name}")
  return folder


def test_links_are_followed_inside_the_folder_only(linked):
  source = opened(linked)
  assert texts(source) == {"a.jpg": ["text of a"], "in.jpg": ["text of in"], "sub/b.png": []}
  out, other, alone, _ = sorted(source.problems, key=lambda text: ("links that" not in text, "pipes" not in text))
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
  with pytest.raises(BadRecord, match=r"; config\.evals\.x\.source\.follow_links=True follows it"):
    open_source(Source(kind="folder", path=str(linked)), "config.evals.x.source")[2]
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

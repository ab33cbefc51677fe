"""What fuzz.py damages: for every format that coca reads, sound files, the damage that suits it, and the reading."""

import contextlib
import dataclasses
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "interop" / "golden"
TOKENIZERS = TESTS / "data" / "tokenizers" / "golden"
sys.path[:0] = [str(TESTS), str(TESTS / "benchmarks")]

import mutate  # noqa: E402

from coca.capfilt import export, job, report  # noqa: E402
from coca.capfilt.settings import CapFilt  # noqa: E402
from coca.config import Source  # noqa: E402
from coca.data import images, videos  # noqa: E402
from coca.data.records import BadRecord  # noqa: E402
from coca.data.sources import open_source  # noqa: E402
from coca.data.tokenizers import clip, sentencepiece, wordpiece  # noqa: E402
from coca.data.tokenizers.load import load as load_tokenizer  # noqa: E402
from coca.inference.json_lines import JsonLines  # noqa: E402
from coca.interop import convert  # noqa: E402
from coca.models.abstract import abstract_model  # noqa: E402
from coca.storage import weights, workdir  # noqa: E402
from coca.storage.checkpoint import CheckpointError, Checkpoints, load_params  # noqa: E402
from coca.training import metrics, metrics_file  # noqa: E402
from coca.training.begin import check_same_run  # noqa: E402
from support.bootstrap import bootstrap  # noqa: E402
from support.common import tiny  # noqa: E402
from support.films import film  # noqa: E402
from support.tars import shard, tar  # noqa: E402

TEXTS = ["a red cat on a mat", "two dogs", "the blue house", "snow — and ice", "a cat and a dog"] * 8


class Format(NamedTuple):
  """`make` writes sound files into a folder; one that fits `files` is damaged; `read` reads the folder.

  `read` gets the folder and the damaged file, and returns how many records were bad, and what was read where it has to
  be what was written (formats with checksums) or nothing at all. `refusals` are the errors that the format's reader
  documents; with `named`, they name the file or the folder.
  """

  make: Callable[[Path], None]
  files: str
  damage: tuple[Callable, ...]
  read: Callable[[Path, Path], tuple[int, object]]
  refusals: tuple[type[Exception], ...] = (ValueError, FileNotFoundError)
  named: bool = True


# --- Pictures ---


def _picture(kind: str, mode: str, **options):
  def make(folder):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert("RGB").resize((64, 48)).convert(mode)
    image.save(folder / f"picture.{kind}", **options)

  return make


def _decode(_, path):
  data = path.read_bytes()
  images.decode_train(data, 32, np.random.default_rng(0), (0.5, 1.0), flip=True)
  images.decode_eval(data, 32)
  return 0, None


def _pillow(_, path):
  """A picture as people hand it over: opened, not loaded."""
  try:
    image = Image.open(path)
  except Exception:  # theirs, before it comes to coca
    return 1, None
  images.resize_eval(images.to_rgb(image), 32)
  return 0, None


def _film(*kind):
  def make(folder):
    (folder / "film").write_bytes(film(20, *kind))

  return make


def _frames(_, path):
  videos.decode_eval(path.read_bytes(), 4, 32)
  return 0, None


# --- Sources ---


def _records(**settings):
  def read(folder, _):
    source, bad = (
      open_source(Source(**{k: v.format(folder) if isinstance(v, str) else v for k, v in settings.items()})),
      0,
    )
    for i in range(min(len(source), 64)):
      try:
        record = source[i]
        assert isinstance(record.image, bytes) and all(isinstance(text.text, str) for text in record.texts)
      except BadRecord as e:
        bad += 1
        if not any(name in str(e) for name in (str(folder), *(p.name for p in folder.iterdir()))):
          raise AssertionError(f"BadRecord without the file's name or the record's key: {e}") from e
    assert all(isinstance(problem, str) for problem in source.problems)
    assert isinstance(source.shards, list)
    return bad, None

  return read


def _tars(folder):
  (folder / "a.tar").write_bytes(shard(0, 4))
  members = {f"{'long' * 40}/{n}.{kind}": b"x" for n in range(2) for kind in ("jpg", "txt")}
  (folder / "b.tar").write_bytes(tar(members, tarfile.GNU_FORMAT))


def _keyed(folder):
  """Tars with a list of keys, as DataComp has it, and a table of texts."""
  (folder / "a.tar").write_bytes(
    tar({f"{n}.{kind}": body for n in range(4) for kind, body in (("jpg", b"x"), ("json", b'{"uid": "%032x"}' % n))})
  )
  np.save(folder / "keys.npy", np.array([(0, 1), (0, 3)], np.dtype("u8,u8")))
  (folder / "texts.jsonl").write_text(
    "".join(json.dumps({"uid": f"{n:032x}", "caption": "x"}) + "\n" for n in range(4))
  )


def _indexed(folder):
  _tars(folder)
  open_source(Source(kind="webdataset", path=f"{folder}/*.tar"))


def _table_of_pictures(folder):
  import pyarrow as pa
  import pyarrow.parquet as pq

  rows = range(6)
  pq.write_table(
    pa.table(
      {
        "key": [f"k{n}" for n in rows],
        "image": [b"picture"] * 6,
        "caption": TEXTS[:6],
        "status": ["success"] * 6,
        "answers": [[{"answer": "yes"}]] * 6,
      }
    ),
    folder / "a.parquet",
    row_group_size=2,
  )


def _folder(name, text):
  def make(folder):
    for n in range(4):
      (folder / f"{n}.jpg").write_bytes(b"picture")
    for file in [name] if name else [f"{n}.txt" for n in range(4)]:
      (folder / file).write_text(text)

  return make


def _rows(mark):
  return "\n".join(["file_name" + mark + "caption", *(f"{n}.jpg{mark}{TEXTS[n]}" for n in range(4))]) + "\n"


_MSRVTT = {
  "videos": [{"video_id": str(n), "split": "test", "id": n} for n in range(4)],
  "sentences": [{"video_id": str(n), "caption": TEXTS[n], "sen_id": n} for n in range(4)],
}
_LINES = [{"file_name": f"{n}.jpg", "caption": TEXTS[n], "answers": [{"answer": "yes"}]} for n in range(4)]


_COCO = {
  "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(4)],
  "annotations": [{"image_id": n, "caption": TEXTS[n]} for n in range(4)],
}
_KARPATHY = {"images": [{"filename": f"{n}.jpg", "split": "train", "sentences": [{"raw": TEXTS[n]}]} for n in range(4)]}


def _vqa(folder):
  _folder("v2_OpenEnded_mscoco_val2014_questions.json", json.dumps(_QUESTIONS))(folder)
  (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(_ANSWERS))


_QUESTIONS = {"questions": [{"image_id": n, "question": "a?", "question_id": 10 * n} for n in range(4)]}
_ANSWERS = {"annotations": [{"question_id": 10 * n, "answers": [{"answer": "a"}]} for n in range(4)]}


def _prepared(folder):
  import tensorflow_datasets as tfds

  class Pairs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
      features = tfds.features
      return tfds.core.DatasetInfo(
        builder=self,
        features=features.FeaturesDict(
          {
            "image": features.Image(),
            "caption": features.Text(),
            "captions": features.Sequence({"text": features.Text()}),
            "label": features.ClassLabel(names=["cat", "dog"]),
          }
        ),
      )

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      picture = io.BytesIO()
      Image.new("RGB", (8, 8)).save(picture, "PNG")
      for i in range(6):
        yield i, {"image": picture.getvalue(), "caption": TEXTS[i], "captions": [{"text": "x"}] * i, "label": i % 2}

  with contextlib.redirect_stderr(io.StringIO()):
    Pairs(data_dir=folder / "made", file_format="array_record").download_and_prepare()
  for path in (folder / "made" / "pairs" / "1.0.0").iterdir():
    path.rename(folder / path.name)
  shutil.rmtree(folder / "made")


# --- CapFilt ---


def _sidecars(folder):
  _tars(folder)
  bootstrap(folder / "out", Source(kind="webdataset", path=f"{folder}/a.tar"))


def _all(readers, path):
  """What the first of several readers has read; a refusal only after the others have had the file too."""
  found, refused = [], None
  for read in readers:
    try:
      found.append(read())
    except (ValueError, FileNotFoundError) as e:
      refused = e
      if path.name not in str(e):
        raise
  if refused:
    raise refused
  return found[0]


def _capfilt(folder, path):
  plain, out = Source(kind="webdataset", path=f"{folder}/a.tar"), folder / "out"

  def texts():
    source = open_source(dataclasses.replace(plain, sidecars=str(out)))
    return [source[i].texts for i in range(len(source))]

  _all(
    (
      texts,
      lambda: report.write_report(out, open_source(plain)),
      lambda: export.export(out, folder / "export", source=plain),
    ),
    path,
  )
  return 0, None


def _job(folder, _):
  """A job that begins or goes on."""
  source = Source(kind="webdataset", path=f"{folder}/a.tar")
  job.begin(
    str(folder / "out"),
    CapFilt(captioner="c", filter="f", source=source, shard=4),
    open_source(source),
    {"captioner": "sha256:c", "filter": "sha256:f"},
  )
  return 0, None


def _begun(folder):
  _tars(folder)
  _job(folder, None)


# --- Tokenizers ---


def _pieces(folder):
  sentencepiece.train(TEXTS, 60).save(folder / "tokenizer.model")


def _clip_json(folder):
  _tokens().save(folder / "tokenizer.json")


def _tokens():
  folder = TOKENIZERS / "tokenizer"
  return clip.find(folder, json.loads((folder / "cases.json").read_text())["vocab"])


def _encode(*readers):
  def read(_, path):
    found = _all([lambda reader=reader: reader(path) for reader in readers], path)
    found.decode(found.encode("A cat's mat, ünder <unk> [MASK] 😀", 16))
    return 0, None

  return read


_find_clip, _find_bert = (lambda path: clip.find(path, 545)), (lambda path: wordpiece.find(path, 10**6))


# --- Models ---


def _open_clip(folder):
  shutil.copytree(GOLDEN / "coca", folder, dirs_exist_ok=True)
  (folder / "outputs.npz").unlink()
  _clip_json(folder)


def _from_open_clip(folder, _):
  convert.from_open_clip(folder, folder / "converted")
  return 0, None


def _blip(folder):
  shutil.copytree(GOLDEN / "blip" / "captioner", folder, dirs_exist_ok=True)
  shutil.copy(TOKENIZERS / "wordpiece" / "vocab.txt", folder)


def _from_blip(folder, _):
  convert.from_blip(folder, folder / "converted", text_heads=2)
  return 0, None


def _run(folder):
  _pieces(folder)
  workdir.write_run(tiny(), load_tokenizer(folder / "tokenizer.model"), folder)


def _read_run(folder, _):
  config, _ = workdir.read_workdir(folder)
  abstract_model(config)
  check_same_run(config, folder)
  return 0, None


def _params():
  values = {"a": {"kernel": np.arange(48, dtype=np.float32).reshape(6, 8), "bias": np.ones(8, np.float32)}}
  return jax.tree.map(jax.numpy.asarray, values)


def _abstract():
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _params())


def _fingerprint(params):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(params)]


def _weights(folder):
  weights.write(folder / weights.FILE, _params())


def _read_weights(_, path):
  weights.read(path, _abstract())
  return 0, None


def _checkpoint(folder):
  checkpoints = Checkpoints(folder / "checkpoints")
  for step in (1, 2):
    checkpoints.save(step, {"params": _params()}, {"step": 1})
    checkpoints.wait()
  checkpoints.close()


def _restore(folder, _):
  read = _fingerprint(load_params(folder / "checkpoints", _abstract()))
  checkpoints = Checkpoints(folder / "checkpoints")
  try:
    state, meta, _ = checkpoints.restore({"params": _abstract()})
  finally:
    checkpoints.close()
  return 0, (read, _fingerprint(state), meta)


# --- Lines ---


def _numbers(folder):
  lines = [{"step": n, "train/loss": 1 / (n + 1)} for n in range(6)]
  (folder / metrics.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read_numbers(_, path):
  metrics.read(path)
  metrics_file.cut(path, 3)
  return 0, None


_NAMES = [f"{n}.jpg" for n in range(4)]


def _captions(folder):
  lines = JsonLines(folder / "captions.jsonl", {"model": "a", "prompt": "b"}, "image", _NAMES, 2)
  lines.add([{"image": name, "caption": TEXTS[0]} for name in _NAMES[:2]])
  lines.close()


def _go_on(folder, _):
  lines = JsonLines(folder / "captions.jsonl", {"model": "a", "prompt": "b"}, "image", _NAMES, 2)
  lines.add([{"image": name, "caption": TEXTS[0]} for name in _NAMES[len(lines.done) :]])
  lines.finish()
  return 0, None


_OF_PICTURES = {"refusals": (BadRecord,), "named": False}  # whoever has the bytes names them
FORMATS = {
  "jpeg": Format(_picture("jpg", "RGB"), "*", (mutate.bytes_,), _decode, **_OF_PICTURES),
  "png": Format(_picture("png", "RGBA"), "*", (mutate.bytes_, mutate.png, mutate.png), _decode, **_OF_PICTURES),
  "webp": Format(_picture("webp", "RGBA"), "*", (mutate.bytes_, mutate.frames), _decode, **_OF_PICTURES),
  "gif": Format(_picture("gif", "P"), "*", (mutate.bytes_, mutate.frames), _decode, **_OF_PICTURES),
  "bmp": Format(_picture("bmp", "RGB"), "*", (mutate.bytes_,), _decode, **_OF_PICTURES),
  "tiff": Format(
    _picture("tiff", "RGB", compression="tiff_lzw"), "*", (mutate.bytes_, mutate.frames), _decode, **_OF_PICTURES
  ),
  "avif": Format(_picture("avif", "RGB"), "*", (mutate.bytes_,), _decode, **_OF_PICTURES),
  "pil": Format(_picture("png", "RGBA"), "*", (mutate.bytes_, mutate.png), _pillow, **_OF_PICTURES),
  "mp4": Format(_film("mp4", "libx264"), "*", (mutate.bytes_,), _frames, **_OF_PICTURES),
  "webm": Format(_film("webm", "libvpx-vp9"), "*", (mutate.bytes_,), _frames, **_OF_PICTURES),
  "avi": Format(_film("avi", "mpeg4"), "*", (mutate.bytes_,), _frames, **_OF_PICTURES),
  "tar": Format(_tars, "*.tar", (mutate.bytes_, mutate.tar), _records(kind="webdataset", path="{}/*.tar")),
  "tar_index": Format(_indexed, "*.npz", (mutate.bytes_,), _records(kind="webdataset", path="{}/*.tar")),
  "parquet": Format(
    _table_of_pictures,
    "*.parquet",
    (mutate.bytes_, mutate.parquet, mutate.parquet),
    _records(kind="parquet", path="{}/*.parquet"),
  ),
  "csv": Format(
    _folder("captions.csv", _rows(",")),
    "*.csv",
    (mutate.bytes_, mutate.table, mutate.table),
    _records(kind="folder", path="{}"),
  ),
  "tsv": Format(
    _folder("captions.tsv", _rows("\t")),
    "*.tsv",
    (mutate.bytes_, mutate.table, mutate.table),
    _records(kind="folder", path="{}"),
  ),
  "jsonl": Format(
    _folder("captions.jsonl", "".join(json.dumps(line) + "\n" for line in _LINES)),
    "*.jsonl",
    (mutate.bytes_, mutate.lines, mutate.lines),
    _records(kind="folder", path="{}"),
  ),
  "questions": Format(
    _folder("captions.jsonl", "".join(json.dumps(line) + "\n" for line in _LINES)),
    "*.jsonl",
    (mutate.bytes_, mutate.lines, mutate.lines),
    _records(kind="folder", path="{}", question_key="caption", text_key="answers.answer"),
  ),
  "json": Format(
    _folder("captions.json", json.dumps(_LINES)),
    "*.json",
    (mutate.bytes_, mutate.json_, mutate.json_),
    _records(kind="folder", path="{}"),
  ),
  "coco": Format(
    _folder("captions_train.json", json.dumps(_COCO)),
    "*.json",
    (mutate.bytes_, mutate.json_, mutate.json_),
    _records(kind="folder", path="{}"),
  ),
  "karpathy": Format(
    _folder("dataset_small.json", json.dumps(_KARPATHY)),
    "*.json",
    (mutate.bytes_, mutate.json_, mutate.json_),
    _records(kind="folder", path="{}"),
  ),
  "msrvtt": Format(
    _folder("test_videodatainfo.json", json.dumps(_MSRVTT)),
    "*.json",
    (mutate.bytes_, mutate.json_, mutate.json_),
    _records(kind="folder", path="{}", split="test", image_key="video_id"),
  ),
  "visual_genome": Format(
    _folder("region_descriptions.json", json.dumps([{"id": n, "regions": [{"phrase": "x"}]} for n in range(4)])),
    "*.json",
    (mutate.bytes_, mutate.json_, mutate.json_),
    _records(kind="folder", path="{}"),
  ),
  "vqa": Format(_vqa, "*.json", (mutate.json_,), _records(kind="folder", path="{}", question_key="question")),
  "keys": Format(
    _keyed,
    "keys.npy",
    (mutate.bytes_,),
    _records(kind="webdataset", path="{}/*.tar", text_key="", subset="{}/keys.npy"),
  ),
  "joined": Format(
    _keyed,
    "*.jsonl",
    (mutate.bytes_, mutate.lines, mutate.lines),
    _records(kind="webdataset", path="{}/*.tar", texts="{}/texts.jsonl"),
  ),
  "txt": Format(_folder("", "a cat"), "*.txt", (mutate.bytes_,), _records(kind="folder", path="{}")),
  "tfds": Format(_prepared, "*", (mutate.bytes_, mutate.bytes_, mutate.json_), _records(kind="tfds", path="{}")),
  "sidecar": Format(_sidecars, "out/texts/*", (mutate.bytes_, mutate.parquet), _capfilt),
  "manifest": Format(_sidecars, "out/*.json", (mutate.bytes_, mutate.json_, mutate.json_), _capfilt),
  "capfilt_job": Format(_begun, "out/*.json", (mutate.bytes_, mutate.json_, mutate.json_), _job),
  "config": Format(_run, "config.json", (mutate.bytes_, mutate.json_, mutate.json_), _read_run),
  "checkpoint": Format(
    _checkpoint,
    "checkpoints/2/**/*",
    (mutate.bytes_, mutate.bytes_, mutate.json_),
    _restore,
    (CheckpointError, ValueError, FileNotFoundError),
  ),
  "weights": Format(_weights, "*", (mutate.bytes_, mutate.safetensors, mutate.safetensors), _read_weights),
  "open_clip_weights": Format(
    _open_clip, "*.safetensors", (mutate.bytes_, mutate.safetensors, mutate.safetensors), _from_open_clip
  ),
  "blip_weights": Format(_blip, "*.safetensors", (mutate.bytes_, mutate.safetensors, mutate.safetensors), _from_blip),
  "open_clip_config": Format(
    _open_clip, "open_clip_config.json", (mutate.bytes_, mutate.json_, mutate.json_), _from_open_clip
  ),
  "blip_config": Format(_blip, "*.json", (mutate.bytes_, mutate.json_, mutate.json_), _from_blip),
  "clip_json": Format(
    _clip_json, "*", (mutate.bytes_, mutate.json_, mutate.json_), _encode(load_tokenizer, _find_clip)
  ),
  "bert_json": Format(
    lambda folder: shutil.copy(TOKENIZERS / "wordpiece" / "tokenizer.json", folder),
    "*",
    (mutate.bytes_, mutate.json_, mutate.json_),
    _encode(load_tokenizer, _find_bert),
  ),
  "vocab_txt": Format(
    lambda folder: shutil.copy(TOKENIZERS / "wordpiece" / "vocab.txt", folder),
    "*",
    (mutate.bytes_,),
    _encode(load_tokenizer, _find_bert),
  ),
  "bpe_gz": Format(
    lambda folder: shutil.copy(TOKENIZERS / "tokenizer" / "bpe_simple_vocab_16e6.txt.gz", folder),
    "*",
    (mutate.bytes_, mutate.gz),
    _encode(_find_clip),
  ),
  "sentencepiece": Format(_pieces, "*", (mutate.bytes_,), _encode(load_tokenizer)),
  "captions": Format(_captions, "*", (mutate.bytes_, mutate.lines, mutate.lines), _go_on),
  "metrics": Format(_numbers, "*", (mutate.bytes_, mutate.lines, mutate.lines), _read_numbers),
}

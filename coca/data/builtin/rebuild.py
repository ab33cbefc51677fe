r"""Makes the built-in corpus again from Parquet files.

  python -m coca.data.builtin.rebuild --parquet=DIR --out=DIR

The same rows give the same examples in the same order, whatever the order of the rows, and the same versions of
Pillow (with its libwebp), array_record and tfds write the same bytes. To ship what was made, put it in the place of
`corpus/` and see that NOTICE still tells the truth.
"""

import argparse
import pathlib
import shutil
import tempfile


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--parquet", type=pathlib.Path, required=True, help="the folder that holds the Parquet files")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder that is empty or not there yet")
  args = parser.parse_args(argv)
  try:
    rebuild(args.parquet, args.out)
  except (OSError, ValueError) as e:
    parser.exit(1, f"rebuild: {e}\n")


def rebuild(parquet: pathlib.Path, out: pathlib.Path) -> None:
  """Writes the corpus, a prepared tfds data set, into `out`. tfds shows the progress.

  Raises:
    FileExistsError: `out` holds something.
    FileNotFoundError, ValueError: a Parquet file is missing, damaged or lacks a column; the message names it.
  """
  from coca.data.builtin import builder as corpus  # the import of tfds takes seconds; --help need not wait
  from coca.data.builtin.builder import tfds

  if out.exists() and any(out.iterdir()):
    raise FileExistsError(f"{out} is not empty; choose another --out or empty it")
  for name in corpus.FILES.values():  # all of them before the first one is read
    corpus.check(parquet / name)
  out.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=out) as scratch:
    builder = corpus.CocaBuiltin(data_dir=scratch, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=parquet, num_shards=1))
    for path in sorted(pathlib.Path(builder.data_dir).iterdir()):
      shutil.move(path, out / path.name)
  for path in out.glob("*.array_record-*"):
    sort_fields(path)
  for name, split in builder.info.splits.items():
    size = sum((out / f).stat().st_size for f in split.filenames)
    print(f"{name}: {split.num_examples} images, {size / 1e6:.2f} MB")
  print(f"{out}: {sum(f.stat().st_size for f in out.iterdir()) / 1e6:.2f} MB")


def sort_fields(path: pathlib.Path) -> None:
  """Writes a shard again with each example's fields in sorted order (protobuf's maps come in any)."""
  from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
  from tensorflow_datasets.proto import tf_example_pb2

  reader = ArrayRecordReader(str(path))
  examples = [tf_example_pb2.Example.FromString(record) for record in reader.read_all()]
  reader.close()
  writer = ArrayRecordWriter(str(path), "group_size:1")
  for example in examples:
    writer.write(example.SerializeToString(deterministic=True))
  writer.close()


if __name__ == "__main__":
  main()

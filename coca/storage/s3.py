"""A workdir in s3://, at Amazon or in a store that speaks as Amazon's: the little that it takes beyond one in gs://.

tensorstore, by which Orbax writes arrays, has a driver for both. But Orbax (0.12.0 to 0.12.8, `build_kvstore_tspec` in
_src/serialization/tensorstore_utils.py) looks for gs:// alone and takes all else for the disk, and has no option there.
"""

import functools
import os

import fsspec


def kvstore(url: str) -> dict:
  """tensorstore's spec of s3://BUCKET/PATH. As in Amazon's own clients AWS_ENDPOINT_URL names another store."""
  bucket, _, path = url.removeprefix("s3://").partition("/")
  spec: dict = {"driver": "s3", "bucket": bucket, "path": path}
  env = os.environ.get
  if env("AWS_ACCESS_KEY_ID"):  # else it looks at four more places, and complains of each
    spec["aws_credentials"] = {"type": "environment"}
  if endpoint := env("AWS_ENDPOINT_URL_S3") or env("AWS_ENDPOINT_URL"):
    spec |= {"endpoint": endpoint, "aws_region": env("AWS_REGION") or env("AWS_DEFAULT_REGION") or "us-east-1"}
  return spec


def move(folder, target: str) -> None:
  """Renames a folder, object by object: s3fs' own rename takes a folder in it for one too."""
  store, old = fsspec.filesystem("s3"), str(folder).removeprefix("s3://")
  for name in store.find(old):
    store.copy(name, target.removeprefix("s3://") + name.removeprefix(old))
  store.rm(old, recursive=True)


def teach_orbax() -> None:
  """From now on Orbax writes and reads arrays under s3:// too: it makes its spec for gs://, and that becomes S3's."""
  from orbax.checkpoint._src.serialization import tensorstore_utils

  made = tensorstore_utils.build_kvstore_tspec
  if hasattr(made, "__wrapped__"):
    return

  @functools.wraps(made)
  def build(directory, *args, **kwargs):
    if not directory.startswith("s3://"):
      return made(directory, *args, **kwargs)
    return _moved(made(f"gs://{directory.removeprefix('s3://')}", *args, **kwargs))

  tensorstore_utils.build_kvstore_tspec = build


def _moved(spec):
  if isinstance(spec, str):
    return kvstore(f"s3://{spec.removeprefix('gs://')}") if spec.startswith("gs://") else spec
  if isinstance(spec, list):
    return [_moved(item) for item in spec]
  if not isinstance(spec, dict):
    return spec
  if str(spec.get("driver")).startswith("gcs"):
    return kvstore(f"s3://{spec['bucket']}/{spec['path']}")
  return {name: _moved(value) for name, value in spec.items()}


def check(bucket: str, workdir: str) -> None:
  """Lists the bucket; raises as `coca.storage.bucket.workdir_path` does."""
  try:
    import s3fs
    from botocore.exceptions import NoCredentialsError
  except ImportError as e:
    raise ImportError(f"--workdir={workdir} needs s3fs: pip install -e '.[s3]' ({e})") from None
  try:
    s3fs.S3FileSystem(skip_instance_cache=True).call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
  except NoCredentialsError as e:
    raise ValueError(
      f"--workdir={workdir}: no credentials for s3:// here: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
      "~/.aws/credentials, or a role of this machine"
    ) from e
  except (FileNotFoundError, PermissionError) as e:
    raise ValueError(
      f"--workdir={workdir}: the bucket can't be used: {' '.join(str(e).split())}. Is its name right? The rights "
      "needed are s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject"
    ) from e
  except Exception as e:  # of botocore, aiohttp or s3fs
    raise OSError(f"--workdir={workdir} can't be reached: {type(e).__name__}: {e}") from e

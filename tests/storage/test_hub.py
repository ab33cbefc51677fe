"""hf:// paths, against a cache as huggingface_hub lays it out; the network is never asked."""

import pytest

from coca.storage.hub import FILES, local_folder

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  return tmp_path


def test_other_paths_are_left_alone(tmp_path):
  assert local_folder(tmp_path) == tmp_path
  assert local_folder("gs://bucket/run") == "gs://bucket/run"


def test_the_cache_is_used_without_a_network(cache):
  commit = "0123456789abcdef0123456789abcdef01234567"
  repository = cache / "models--org--name"
  (repository / "refs").mkdir(parents=True)
  (repository / "refs" / "main").write_text(commit)
  folder = repository / "snapshots" / commit
  folder.mkdir(parents=True)
  (folder / "config.json").write_text("{}")
  assert local_folder("hf://org/name").samefile(folder)
  assert local_folder(f"hf://org/name@{commit}").samefile(folder)


@pytest.mark.parametrize("has", [["model.safetensors"], []])
def test_files_of_torch_are_fetched_where_there_is_nothing_else(tmp_path, monkeypatch, has):
  asked = []

  def download(name, revision, allow_patterns):
    asked.append(allow_patterns)
    for file in has:
      (tmp_path / file).touch()
    return str(tmp_path)

  monkeypatch.setattr("huggingface_hub.snapshot_download", download)
  assert local_folder("hf://org/name", torch=True) == tmp_path
  assert asked == [list(FILES)] if has else asked == [list(FILES), "*.bin"]


def test_what_is_neither_there_nor_reachable_is_named(cache):
  with pytest.raises(FileNotFoundError, match=r"hf://org/other: the hub can't be reached and .* holds no copy"):
    local_folder("hf://org/other")


@pytest.mark.parametrize("path", ["hf://name", "hf:///name", "hf://org/name/folder"])
def test_other_forms_are_refused(path):
  with pytest.raises(ValueError, match="write hf://org/name"):
    local_folder(path)

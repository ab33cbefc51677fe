"""`python -m coca.push`: what a hub gets is a model that `coca.load` takes, and a card that the hub reads."""

import json
import shutil
import types

import jax
import pytest

from coca import push as command
from coca.config import to_dict
from coca.inference import identity, load
from coca.interop import hub_push
from coca.storage.hub import transport_errors
from support.common import classifier
from support.workdirs import make_workdir, small_config

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A hub that keeps what it is asked, and the files."""
  asked = {}

  class Api:
    def create_repo(self, repo_id, private, exist_ok):
      asked["repository"] = (repo_id, private, exist_ok)

    def upload_folder(self, repo_id, folder_path, commit_message):
      shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
      return types.SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

  monkeypatch.setattr(huggingface_hub, "HfApi", Api)
  return asked


def test_a_run_with_its_card(tmp_path, hub, capsys):
  run = tmp_path / "run"
  make_workdir(run, small_config(tmp_path / "secret"))
  lines = [{"step": 1, "eval/shot/top1": 0.25}, {"step": 3, "eval/shot/top1": 0.5, "train/loss": 1.0}]
  (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (run / "eval.json").write_text('{"step": 2, "eval/write/cider": 1.25, "eval/shot/top1": 0.375}')
  command.main([str(run), "hf://org/tiny", "--licence=apache-2.0", "--tag=emoji", "--dataset=org/pairs"])
  assert capsys.readouterr().out == "wrote https://hub/org/tiny/commit/1\n"
  assert hub["repository"] == ("org/tiny", True, True)
  there = tmp_path / "hub/org/tiny"
  assert {path.name for path in there.iterdir()} == {"README.md", "config.json", "model.safetensors", "tokenizer.model"}
  assert identity(load(there, devices=jax.devices()[:1])) == identity(load(run, devices=jax.devices()[:1]))
  card = huggingface_hub.ModelCard.load(there / "README.md")
  assert (card.data.license, card.data.tags, card.data.datasets) == (
    "apache-2.0",
    ["coca", "jax", "emoji"],
    ["org/pairs"],
  )
  found = {(r.task_type, r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
  shot = ("zero-shot-image-classification", "shot", "top1")
  assert found == {shot: 0.5, ("image-to-text", "write", "cider"): 1.25}
  assert "| `config.model.text.length` | `12` |" in card.text and "| shot/top1 | 0.5 |" in card.text
  assert "secret" in (run / "config.json").read_text()
  assert not any("secret" in (there / name).read_text() for name in ("README.md", "config.json"))
  assert 'coca.load("hf://org/tiny")' in card.text


def test_no_paths_of_somebody_are_told():
  config = classifier(answers="/home/anna/answers.txt")
  assert "anna" not in json.dumps(to_dict(hub_push._for_others(config)).to_dict())


@pytest.mark.parametrize("error", transport_errors(), ids=lambda error: f"{error.__module__}.{error.__name__}")
def test_without_a_network(tmp_path, hub, monkeypatch, error):
  def refuse(*_, **__):
    raise error("[Errno 111] Connection refused")

  make_workdir(tmp_path / "run", small_config(tmp_path))
  monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
  with pytest.raises(SystemExit, match=r"hf://org/tiny: the hub can't be reached: .*refused"):
    command.main([str(tmp_path / "run"), "hf://org/tiny", "--licence=mit"])


def test_mistakes_are_one_line(tmp_path, hub, monkeypatch):
  for name in ("tiny", "hf://tiny", "hf://org/tiny@main"):
    with pytest.raises(SystemExit, match=f"error: {name}: write hf://org/name"):
      command.main([str(tmp_path), name, "--licence=mit"])
  with pytest.raises(SystemExit, match="is no working directory of a run"):
    command.main([str(tmp_path), "hf://org/tiny", "--licence=mit"])
  make_workdir(tmp_path / "run", small_config(tmp_path))

  def refuse(*args, **kwargs):
    response = types.SimpleNamespace(headers={}, status_code=403, request=None)
    raise huggingface_hub.errors.HfHubHTTPError("403 Forbidden", response=response)

  monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
  with pytest.raises(SystemExit, match=r"hf://org/tiny: the hub refuses: 403 Forbidden \(hf auth login\?\)"):
    command.main([str(tmp_path / "run"), "hf://org/tiny", "--licence=mit"])
  assert not (tmp_path / "hub").exists()

"""One of the drills of tests/benchmarks/drills.py: a killed process of a job costs time and nothing else."""

import json

from workers import ROOT, Job

RUN = (f"--config={ROOT}/tests/benchmarks/drills.py", "--config.steps=6", "--config.checkpoint.every=3")


def checksums(workdir):
  """Of every array of the last state, the optimizer's too."""
  return json.loads((workdir / "checkpoints" / "6" / "meta" / "metadata").read_text())["leaves"]


def test_a_job_of_two_processes_ends_with_the_same_state_after_one_is_killed(tmp_path):
  cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
  with Job(tmp_path / "undisturbed", 2, *RUN, environment=cache) as job:
    assert job.wait() == [0, 0], job.logs()
  with Job(tmp_path / "killed", 2, *RUN, environment=cache) as job:
    job.until((tmp_path / "killed" / "checkpoints" / "3").exists)
    job.kill(1)
    assert job.wait() == [0, 0], job.logs()
    assert "going on from step" in job.logs() and "with status 137" in job.logs()
  wanted = checksums(tmp_path / "undisturbed")
  assert len(wanted) > 50 and checksums(tmp_path / "killed") == wanted

"""One of the drills of tests/benchmarks/drills.py: a killed process of a job costs time and nothing else."""

import numpy as np
from workers import ROOT, Job, parameters

RUN = (f"--config={ROOT}/tests/benchmarks/drills.py", "--config.steps=8", "--config.checkpoint.every=3")


def test_a_job_of_two_processes_ends_with_the_same_parameters_after_one_is_killed(tmp_path):
  cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
  with Job(tmp_path / "undisturbed", 2, *RUN, environment=cache) as job:
    assert job.wait() == [0, 0], job.logs()
  with Job(tmp_path / "killed", 2, *RUN, environment=cache) as job:
    job.until((tmp_path / "killed" / "checkpoints" / "3").exists)
    job.kill(1)
    assert job.wait() == [0, 0], job.logs()
    assert "going on from step" in job.logs() and "with status 137" in job.logs()
  wanted, found = parameters(tmp_path / "undisturbed"), parameters(tmp_path / "killed")
  for name, x in wanted.items():
    np.testing.assert_array_equal(x, found[name], err_msg=name)

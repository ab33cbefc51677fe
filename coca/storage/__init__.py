"""Files of a run or a model: checkpoints, weights, workdirs."""

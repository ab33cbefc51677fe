"""What a run or a model keeps on disk: checkpoints, weights, workdirs."""

"""The training loop and its parts: learner, schedule, checkpoints, records, logs."""

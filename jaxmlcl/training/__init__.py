"""Training: the objective's protocol, stages, the step, the trainer, checkpoints and writers."""

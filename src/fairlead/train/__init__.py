"""Training: imitation of a teacher, then PPO, checkpoints and logs. Needs the `train` extra."""

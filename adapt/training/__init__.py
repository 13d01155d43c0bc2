"""The loop, schedules, checkpoints and run directories."""

"""Task-independent training: devices, state, steps, loop, checkpoints and logs."""

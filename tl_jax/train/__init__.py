"""Devices, state, step, loop, checkpoints, logs: training that knows nothing about what is learned."""

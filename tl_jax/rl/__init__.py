"""Reinforcement learning: worlds, rollouts, advantages and PPO, each a function of a key."""

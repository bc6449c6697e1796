"""Reinforcement learning: environments, rollouts, advantages and PPO, as pure functions of a key."""

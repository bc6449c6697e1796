"""Train PPO on CartPole, and transfer the policy to other environments.

    python run.py --config=configs/cartpole_ppo.py --workdir=runs/source
    python run.py --mode=export --workdir=runs/source
    python run.py --config=configs/cartpole_ppo.py:heavy --config.init.source=tl_jax \
        --config.init.path=runs/source/export
    python run.py --config=configs/cartpole_ppo.py:smoke    smoke test, seconds

The variants ``heavy``, ``long`` and ``weak`` change the environment: a pole of ten times the mass, of three times the
length, a push of half the force. ``acrobot`` and ``pendulum`` are other environments.
"""

from tl_jax.config import recipe


def get_config(variant: str = "") -> recipe.Config:
    """Return the recipe, or one of its variants."""
    config = recipe.get_config("policy")
    config.name = "cartpole_ppo"
    recipe.policy(config)
    config.optim.lr = 1e-3
    # With normalized observations, some seeds forget what they have learned.
    config.rl.normalize = False
    worlds = {"heavy": _physics(masspole=1.0), "long": _physics(length=1.5), "weak": _physics(force_mag=5.0)}
    return recipe.variants(config, variant, smoke=recipe.smoke_policy, acrobot=acrobot, pendulum=pendulum, **worlds)


def _physics(**values: float):
    def change(config: recipe.Config) -> None:
        config.rl.env_params = tuple(values.items())

    return change


def acrobot(config: recipe.Config) -> None:
    """Swing up two joined poles."""
    config.rl.env = "Acrobot-v1"
    config.rl.normalize = True


def pendulum(config: recipe.Config) -> None:
    """Swing up and hold a pole with a motor; actions are continuous."""
    config.rl.env = "Pendulum-v1"
    config.rl.normalize = True
    config.rl.total_timesteps = 500_000
    config.rl.gamma = 0.95
    config.rl.reward_scale = 0.1
    config.rl.minibatches = 8
    config.rl.entropy_coef = 0.0

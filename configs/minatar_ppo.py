"""Train PPO on a MinAtar game with 10x10 pixels, and transfer the policy to another game.

    python run.py --config=configs/minatar_ppo.py --workdir=runs/breakout
    python run.py --config=configs/minatar_ppo.py:space_invaders    and asterix, freeway, seaquest
    python run.py --config=configs/minatar_ppo.py:smoke             smoke test, seconds

Games differ in channels and actions. To transfer, set --config.init.allow_shape_mismatch=True, which initializes the
first layer and the policy head randomly and loads the rest.
"""

from tl_jax.config import recipe

GAMES = {"space_invaders": "SpaceInvaders", "asterix": "Asterix", "freeway": "Freeway", "seaquest": "Seaquest"}


def get_config(variant: str = "") -> recipe.Config:
    """Return the recipe, or one of its variants."""
    config = recipe.get_config("policy")
    config.name = "minatar_ppo"
    recipe.policy(config)
    config.model.options = {"widths": (128,), "activation": "relu"}
    config.optim.lr = 2.5e-3
    config.batch_size = 8192
    config.rl.env = "Breakout-MinAtar"
    config.rl.num_envs = 64
    config.rl.total_timesteps = 2_000_000
    config.rl.ppo_epochs = 4
    config.rl.minibatches = 8
    config.rl.normalize = False
    return recipe.variants(config, variant, smoke=smoke, **{name: _game(game) for name, game in GAMES.items()})


def smoke(config: recipe.Config) -> None:
    """Shrink the recipe to seconds."""
    recipe.smoke_policy(config)
    config.model.options = {"widths": (8,), "activation": "relu", "channels": 4}
    config.rl.total_timesteps = 1024
    config.batch_size = 256


def _game(name: str):
    def change(config: recipe.Config) -> None:
        config.rl.env = f"{name}-MinAtar"

    return change

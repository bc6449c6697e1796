"""``python run.py`` is the command ``tl-jax`` without an installation; tl_jax/cli.py says what it takes."""

from tl_jax import cli

if __name__ == "__main__":
    cli.main()

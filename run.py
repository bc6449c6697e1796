"""``python run.py`` is the command ``tl-jax`` without an installation; `--help` shows its flags."""

from tl_jax import cli

if __name__ == "__main__":
    cli.main()

"""``python run.py`` is the command ``tl-jax`` without an installation; tl_jax/main.py says what it takes."""

from tl_jax import main

if __name__ == "__main__":
    main.main()

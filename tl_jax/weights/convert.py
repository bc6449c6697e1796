"""Deprecated name of ``python -m tl_jax.pretrained.convert_cli``."""

import runpy
import warnings

warnings.warn("tl_jax.weights.convert is tl_jax.pretrained.convert_cli now", DeprecationWarning, stacklevel=2)

if __name__ == "__main__":
    runpy.run_module("tl_jax.pretrained.convert_cli", run_name="__main__", alter_sys=True)

"""Alias of ``python -m experiments.transferability.study``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("experiments.transferability.study", run_name="__main__", alter_sys=True)

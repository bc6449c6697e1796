"""Several processes that train one network: on the hosts of a TPU slice, the nodes of a cluster, or one machine."""

import os

import jax
from jax.experimental import multihost_utils

from tl_jax.errors import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_first = True


def join() -> None:
    """Meet the other processes of this run; to be called before JAX looks for devices.

    Where the environment has all of ``VARIABLES`` (HOST:PORT of process 0, how many processes, which one this is), they
    say how. Otherwise JAX finds out from SLURM, Open MPI, or the metadata of a TPU slice.

    Raises:
        UserError: nothing says which processes there are, or they do not answer.
    """
    global _first
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    missing = [name for name in VARIABLES if name not in given]
    if given and missing:
        raise UserError(f"{', '.join(given)} without {', '.join(missing)}; set all three, or none for SLURM and TPUs")
    try:
        if given:
            address, count, index = (given[name] for name in VARIABLES)
            jax.distributed.initialize(address, int(count), int(index), cluster_detection_method="deactivate")
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as e:
        reason = str(e).strip().splitlines()[0]
        raise UserError(
            f"--distributed: {reason}; start by srun, mpirun or on a TPU slice, or set {', '.join(VARIABLES)}"
        ) from None
    _first = jax.process_index() == 0


def first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return _first  # rather than to ask JAX, which would look for devices


def meet(where: str) -> None:
    """Wait until all processes have come to ``where``."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)

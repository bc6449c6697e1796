#!/bin/bash
#SBATCH --job-name=tl_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# A run on several nodes, a process on each: sbatch slurm.sh [flags of run.py], in the folder of tl_jax with its .venv.
# SIGTERM comes two minutes before the time is over; the run saves, ends with 75, and the job is put back in the queue.
#SBATCH --signal=TERM@120
set -u
# JAX gives a process of SLURM one GPU unless told otherwise; here it has all of its node.
export JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS:-$(seq -s, 0 $((${SLURM_GPUS_ON_NODE:-1} - 1)))}

srun --kill-on-bad-exit=1 .venv/bin/python run.py --distributed "$@"
status=$?
[ "$status" -ne 75 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"

#!/usr/bin/env bash
# Trains one run on the nodes of a Slurm cluster: sbatch launch/slurm.sh --config=rkd [FLAGS of kd_jax.main]
# Slurm tells every process its place, so no flag does. Two minutes before the time is up, and where the job is preempted,
# the run saves itself and the job is queued again. Other sizes: sbatch --nodes=8 launch/slurm.sh ...
#SBATCH --job-name=kd_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4    # one process for each GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120      # seconds before the end
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"    # every node has to see it: the runs lie here
status=0
# Each process takes the GPU of its number: none is hidden from it. Where one dies, all are ended.
srun --gpu-bind=none --kill-on-bad-exit=1 "${PYTHON:-python}" -m kd_jax.main "$@" || status=$?
if [ "$status" -eq 143 ]; then  # it was asked to stop, and has saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

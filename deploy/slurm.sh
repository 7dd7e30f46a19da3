#!/usr/bin/env bash
# A Slurm array: eight tasks, each makes one part of the run and continues it when Slurm starts it again.   sbatch deploy/slurm.sh
#SBATCH --job-name=tpusd
#SBATCH --array=1-8
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@60
set -euo pipefail

# SIGTERM (a minute before the time limit, or from a preemption) ends the step in good order, with exit status 143. A task that ran
# out of time goes back into the queue; one that Slurm preempts is put back by --requeue.
status=0
srun python -m tpusd.run model=sdxl prompts=file prompts.path=/shared/prompts.csv seed=0 output=/shared/set shard=auto || status=$?
if [ "$status" -eq 143 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$status"

#!/bin/bash
# One comparison on a Slurm cluster, over all GPUs of several nodes: sbatch slurm.sh. README.md, "Slurm".
# Check changes with: rayprompt clusters check
#SBATCH --job-name=rayprompt
#SBATCH --nodes=2
#SBATCH --tasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=rayprompt-%j.log

set -euo pipefail

STUDIES=/shared/studies # a directory that all nodes share
source /shared/venv/bin/activate # Ray 2.60.0 and rayprompt, where all nodes find them

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds until all nodes must be there

# Requeued after a preemption, it goes on where it was.
compare=(rayprompt compare reviews --searchers random,nevergrad,cma-es --seeds 3 --address auto
    --out "$STUDIES/compare" --start-or-resume)

# Ray starts on every node, the comparison on the first, and Ray stops when it is done.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray symmetric-run --address "$address:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus 4 -- "${compare[@]}"

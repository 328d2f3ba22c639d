#!/bin/bash
#SBATCH --job-name=pyclassify
#SBATCH --partition=boost_usr_prod
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus=8
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=120G
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.out
#SBATCH --error=%x-%j.err
#SBATCH --no-requeue
#SBATCH --chdir=/scratch/me/pyclassify-slurm/RUN_ID
#SBATCH --export=ALL

# Run RUN_ID of MLflow, submitted by pyclassify 0.1.0.
# It runs project/, a snapshot made at submission; reporter/ tells MLflow how it goes.
# shellcheck disable=SC2016 # what is in single quotes is meant as it is

run_folder=/scratch/me/pyclassify-slurm/RUN_ID
export MLFLOW_RUN_ID=RUN_ID
export MLFLOW_EXPERIMENT_ID=1
export MLFLOW_TRACKING_URI=sqlite:////home/me/pyclassify/mlflow.db
export PYCLASSIFY_STATUS_BY_SLURM=RUN_ID
export PYTHONUNBUFFERED=1

fail() {
  echo "$1" >&2
  exit 1
}

report() {
  (cd "$run_folder/reporter" && python -m pyclassify.slurm.report "$@")
}

# SLURM's own word on this job; accounting may have it a moment later than the queue.
slurm_says() {
  local queued booked step
  for _ in {1..10}; do
    queued=$(squeue -h -j "$SLURM_JOB_ID" -o '%T %r' 2>/dev/null)
    step=ended
    if [ -n "${!-}" ]; then  # srun was started, and has ended
      step=$(sacct -n -P -j "$SLURM_JOB_ID.0" -o State 2>/dev/null)
    fi
    booked=$(sacct -n -P -j "$SLURM_JOB_ID" -o State 2>/dev/null)
    case "$queued/$booked/$step" in
      COMPLETING*//* | COMPLETING*/RUNNING*/* | COMPLETING*/PENDING*/*) sleep 0.5 ;;
      RUNNING*/?*/ | RUNNING*/?*/RUNNING) sleep 0.5 ;;
      *) break ;;
    esac
  done
  printf '%s\n' "$queued" "$booked"
}

# Whatever happens, the run has a final status: the training's own, or else one by the exit code
# and by what SLURM says.
finish() {
  code=$?
  trap '' TERM
  said=
  [ "$code" -eq 0 ] || said=$(slurm_says)
  report end "$code" "$said" "$(readlink "/proc/$$/fd/1")" "$(readlink "/proc/$$/fd/2")"
}
trap finish EXIT
trap 'exit 143' TERM

echo "job $SLURM_JOB_ID ($SLURM_JOB_NAME) in partition $SLURM_JOB_PARTITION"
echo "nodes: $SLURM_JOB_NODELIST ($SLURM_JOB_NUM_NODES); submitted from $SLURM_SUBMIT_HOST"
echo "run: $MLFLOW_RUN_ID; started at $(date)"

# A shell that is no login shell may not know `module`.
if ! type module >/dev/null 2>&1; then
  for each in /etc/profile.d/*mod*.sh; do
    # shellcheck source=/dev/null
    source "$each"
  done
fi
module load anaconda3 || fail 'no module anaconda3'
eval "$("${CONDA_EXE:-conda}" shell.bash hook)"
conda activate pyclassify || fail 'the conda environment pyclassify can'"'"'t be activated; does the job find conda?'
cd "$run_folder/project" || exit
report start || fail "MLflow can't be told that the run starts"

if [ "$SLURM_JOB_NUM_NODES" != 2 ]; then
  fail "SLURM gave $SLURM_JOB_NUM_NODES nodes; 2 were asked for"
fi

# Where the processes meet: the first node, by its address where its name does not resolve, and a
# port of this job's own.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if ! getent hosts "$MASTER_ADDR" >/dev/null; then
  MASTER_ADDR=$(scontrol -o show node "$MASTER_ADDR" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
fi
MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))
export MASTER_ADDR MASTER_PORT

# For a SLURM that does not set it, as Ulysses's.
export SLURM_NTASKS_PER_NODE=4

srun --ntasks=8 --ntasks-per-node=4 --cpus-per-task=8 --export=ALL --kill-on-bad-exit=1 \
  bash -c '
trap : TERM
if [ "$SLURM_NTASKS" != 8 ]; then
  echo "SLURM started $SLURM_NTASKS processes; 8 were asked for" >&2
  exit 1
fi
IFS=, read -r -a gpus <<<"${CUDA_VISIBLE_DEVICES-}"
if [ "${#gpus[@]}" -ne 4 ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  echo "process $SLURM_PROCID has ${#gpus[@]} GPUs; 4 were asked for on each node" >&2
  exit 1
fi
python -m pyclassify train --devices=4
' &
wait $!

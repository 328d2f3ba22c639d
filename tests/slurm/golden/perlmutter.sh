#!/bin/bash
#SBATCH --job-name=pyclassify
#SBATCH --qos=regular
#SBATCH --constraint=gpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
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
export PYCLASSIFY_SPOOL="$run_folder/spool"
export PYCLASSIFY_PROGRESS="$run_folder/progress"
export PYTHONUNBUFFERED=1
export SLURM_CPU_BIND=cores

fail() {
  echo "$1" >&2
  exit 1
}

report() {
  (cd "$run_folder/reporter" && python -m pyclassify.slurm.reporter "$@")
}

# SLURM's own word on this job; accounting may have it a moment later than the queue.
slurm_says() {
  local queued booked step restarts
  restarts=$(scontrol show job "$SLURM_JOB_ID" 2>&1 | sed -n 's/.* Restarts=\([0-9]*\).*/\1/p')
  if [ "${restarts:-0}" -gt "${SLURM_RESTART_COUNT:-0}" ]; then
    echo REQUEUED
    return
  fi
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

# What was told to stop may still be saving: of the half minute until SLURM kills (KillWait) it has
# one half, before the report of its end, and all the rest, as SLURM ends it with this script.
wait_for_training() {
  local seconds
  for ((seconds = 0; seconds < $1; seconds++)); do
    if [ -z "${!-}" ] || ! kill -0 "$!" 2>/dev/null; then break; fi
    sleep 1
  done
}

# Whatever happens, the run has a final status: the training's own, or else one by the exit code
# and by what SLURM says. The report's exit code is 75 where the job is to start again.
finish() {
  code=$?
  trap '' TERM USR1
  wait_for_training 15
  said=
  [ "$code" -eq 0 ] || said=$(slurm_says)
  logs=("$(readlink "/proc/$$/fd/1")" "$(readlink "/proc/$$/fd/2")")
  if report end "$code" "$said" "${logs[@]}" && [ "$code" -eq 75 ] && [ -e "$run_folder/left" ]; then
    code=0 # a clean stop is not a failure of the job; the run is KILLED and can be resumed
  fi
  wait_for_training 30
  exit "$code"
}
trap finish EXIT
trap 'exit 143' TERM

# A job of this run's that is older and has not ended; one that is about to is waited for.
find_older() {
  local id state folder found
  for _ in {1..60}; do
    found=$(squeue -h -u "$(id -un)" -o '%i|%T|%Z' 2>/dev/null |
      while IFS='|' read -r id state folder; do
        [ "$folder" = "$run_folder" ] || continue
        # an element of an array (7_1) is not the run's
        [[ $id == *[!0-9]* ]] || [ "$id" -ge "$SLURM_JOB_ID" ] || echo "$id $state"
      done | head -n 1)
    [[ $found == *COMPLETING ]] || break
    sleep 1
  done
  echo "$found"
}

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
module load conda || fail 'no module conda'
eval "$("${CONDA_EXE:-conda}" shell.bash hook)"
conda activate pyclassify || fail 'the conda environment pyclassify can'"'"'t be activated; does the job find conda?'
cd "$run_folder/project" || exit
report start "$(find_older)" || case $? in
  3) trap - EXIT && exit 1 ;; # the run is another job's, or has ended: it stays as it is
  *) fail "MLflow can't be told that the run starts" ;;
esac
# By this SLURM signals all that a task runs, or the first process of it alone.
PROCTRACK=$(scontrol show config | sed -n 's/^ProctrackType *= *//p')
export PROCTRACK

if [ "$SLURM_JOB_NUM_NODES" != 1 ]; then
  fail "SLURM gave $SLURM_JOB_NUM_NODES nodes; 1 were asked for"
fi

# Where the processes meet: the first node, by its address where its name does not resolve, and a
# port of this job's own.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if ! getent hosts "$MASTER_ADDR" >/dev/null; then
  MASTER_ADDR=$(scontrol -o show node "$MASTER_ADDR" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
fi
MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))
export MASTER_ADDR MASTER_PORT

rm -f "$run_folder/left"
# For a SLURM that does not set it, as Ulysses's.
export SLURM_NTASKS_PER_NODE=4

srun --ntasks=4 --ntasks-per-node=4 --cpus-per-task=32 --export=ALL --kill-on-bad-exit=1 \
  bash -c '
trap : TERM USR1
if [ "$SLURM_NTASKS" != 4 ]; then
  echo "SLURM started $SLURM_NTASKS processes; 4 were asked for" >&2
  exit 1
fi
IFS=, read -r -a gpus <<<"${CUDA_VISIBLE_DEVICES-}"
if [ "${#gpus[@]}" -ne 4 ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  echo "process $SLURM_PROCID has ${#gpus[@]} GPUs; 4 were asked for on each node" >&2
  exit 1
fi

(
  trap : TERM USR1
  python -m pyclassify train --devices=4
) <&0 &
command=$!
pass() { # shellcheck disable=SC2046,SC2317 # called by a trap, for several children
  [[ $PROCTRACK == proctrack/[lp]* ]] ||
    kill -s "$1" $(cat "/proc/$command/task/$command/children" || pgrep -P "$command")
}
for signal in TERM USR1; do
  # shellcheck disable=SC2064 # filled in now
  trap "pass $signal" "$signal"
done
until wait "$command"; ! kill -0 "$command" 2>/dev/null; do :; done
wait "$command"
code=$?
[ "$code" -ne 75 ] || { : >/scratch/me/pyclassify-slurm/RUN_ID/left && exit 0; }
exit "$code"
' &
until wait "$!"; ! kill -0 "$!" 2>/dev/null; do :; done
wait "$!"
code=$?
[ "$code" -ne 0 ] || [ ! -e "$run_folder/left" ] || code=75
# A job that has to make room is given a time of grace, of which SLURM tells the training alone; it
# goes into the queue again at its end, unless it ends before.
if [ "$code" -ne 0 ] && [ "$code" -ne 75 ]; then
  while scontrol show job "$SLURM_JOB_ID" 2>&1 | grep -q 'PreemptTime=[0-9]'; do sleep 1; done
fi
(exit "$code")

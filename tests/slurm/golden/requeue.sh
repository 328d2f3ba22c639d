#!/bin/bash
#SBATCH --job-name=pyclassify
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --gpus=2
#SBATCH --gpus-per-node=2
#SBATCH --time=1-12
#SBATCH --output=%x-%j.out
#SBATCH --error=%x-%j.err
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
#SBATCH --chdir=/scratch/me/pyclassify-slurm/RUN_ID
#SBATCH --export=ALL

# Run RUN_ID of MLflow, submitted by pyclassify 0.1.0.
# It runs in project/, a snapshot of the submission; reporter/ reports its start and end to MLflow.
# shellcheck disable=SC2016 # single quotes prevent expansion on purpose

run_folder=/scratch/me/pyclassify-slurm/RUN_ID
export MLFLOW_RUN_ID=RUN_ID
export MLFLOW_EXPERIMENT_ID=1
export MLFLOW_TRACKING_URI=spool:///scratch/me/pyclassify-slurm/RUN_ID/spool
export PYCLASSIFY_STATUS_BY_SLURM=RUN_ID
export PYCLASSIFY_SPOOL="$run_folder/spool"
export PYCLASSIFY_PROGRESS="$run_folder/progress"
export PYTHONUNBUFFERED=1

fail() {
  echo "$1" >&2
  exit 1
}

report() {
  (cd "$run_folder/reporter" && python -m pyclassify.slurm.reporter "$@")
}

# Print the state of this job by squeue and sacct, which may lag behind.
query_slurm() {
  local queued accounted step restarts
  restarts=$(scontrol show job "$SLURM_JOB_ID" 2>&1 | sed -n 's/.* Restarts=\([0-9]*\).*/\1/p')
  if [ "${restarts:-0}" -gt "${SLURM_RESTART_COUNT:-0}" ]; then
    echo REQUEUED
    return
  fi
  for _ in {1..10}; do
    queued=$(squeue -h -j "$SLURM_JOB_ID" -o '%T %r' 2>/dev/null)
    step=ended
    if [ -n "${!-}" ]; then  # srun has ended
      step=$(sacct -n -P -j "$SLURM_JOB_ID.0" -o State 2>/dev/null)
    fi
    accounted=$(sacct -n -P -j "$SLURM_JOB_ID" -o State 2>/dev/null)
    case "$queued/$accounted/$step" in
      COMPLETING*//* | COMPLETING*/RUNNING*/* | COMPLETING*/PENDING*/*) sleep 0.5 ;;
      RUNNING*/?*/ | RUNNING*/?*/RUNNING) sleep 0.5 ;;
      *) break ;;
    esac
  done
  printf '%s\n' "$queued" "$accounted"
}

# Wait up to $1 seconds for a training that may be saving after a signal. SLURM kills the job after
# KillWait, 30 seconds by default, and when this script ends. So the training gets 15 seconds before
# the end is reported, and then the rest.
wait_for_training() {
  local seconds
  for ((seconds = 0; seconds < $1; seconds++)); do
    if [ -z "${!-}" ] || ! kill -0 "$!" 2>/dev/null; then break; fi
    sleep 1
  done
}

# Report the end of the job, so that the run has a final status in any case. The exit code of the
# report is 75 if the job has to be requeued.
finish() {
  code=$?
  trap '' TERM USR1
  wait_for_training 15
  slurm_report=
  [ "$code" -eq 0 ] || slurm_report=$(query_slurm)
  logs=("$(readlink "/proc/$$/fd/1")" "$(readlink "/proc/$$/fd/2")")
  report end "$code" "$slurm_report" "${logs[@]}" 100 || [ $? -ne 75 ] || requeue
  wait_for_training 30
  exit "$code"
}
trap finish EXIT
trap 'exit 143' TERM

# Print an older job of this run that has not ended, after waiting while it is COMPLETING.
find_older_job() {
  local id state folder older
  for _ in {1..60}; do
    older=$(squeue -h -u "$(id -un)" -o '%i|%T|%Z' 2>/dev/null |
      while IFS='|' read -r id state folder; do
        [ "$folder" = "$run_folder" ] || continue
        # elements of an array (7_1) are other jobs
        [[ $id == *[!0-9]* ]] || [ "$id" -ge "$SLURM_JOB_ID" ] || echo "$id $state"
      done | head -n 1)
    [[ $older == *COMPLETING ]] || break
    sleep 1
  done
  echo "$older"
}

# Requeue the job, which ends this script; retry, as the controller may be busy.
requeue() {
  local message
  for _ in {1..8}; do
    message=$(scontrol requeue "$SLURM_JOB_ID" 2>&1) && return
    sleep 2
  done
  report refused "$message" "${logs[@]}"
}

# Forward the warning before the time limit to the training, as SLURM signals only this script.
warn() {
  [ -n "${!-}" ] || exit 75 # the training has not started
  scancel --signal=USR1 "$SLURM_JOB_ID" || kill -USR1 "$!"
}
trap warn USR1

echo "job $SLURM_JOB_ID ($SLURM_JOB_NAME) in partition $SLURM_JOB_PARTITION"
echo "nodes: $SLURM_JOB_NODELIST ($SLURM_JOB_NUM_NODES); submitted from $SLURM_SUBMIT_HOST"
echo "run: $MLFLOW_RUN_ID; started at $(date)"

cd "$run_folder/project" || exit
report start "$(find_older_job)" || case $? in
  3) trap - EXIT && exit 1 ;; # the run has another job or has ended; leave it alone
  *) fail "the start of the run could not be reported to MLflow; the lines above have the reason" ;;
esac
# Depending on it, SLURM signals all processes of a task or only the first.
PROCTRACK=$(scontrol show config | sed -n 's/^ProctrackType *= *//p')
export PROCTRACK

if [ "$SLURM_JOB_NUM_NODES" != 1 ]; then
  fail "SLURM allocated $SLURM_JOB_NUM_NODES nodes, but the job requested 1"
fi

# The rendezvous of the tasks: the first node, by its address if its name does not resolve, and a
# port that depends on the job id.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if ! getent hosts "$MASTER_ADDR" >/dev/null; then
  MASTER_ADDR=$(scontrol -o show node "$MASTER_ADDR" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
fi
MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))
export MASTER_ADDR MASTER_PORT

rm -f "$run_folder/interrupted"
# Old versions of SLURM do not set it, such as that of Ulysses.
export SLURM_NTASKS_PER_NODE=2

srun --ntasks=2 --ntasks-per-node=2 --export=ALL --kill-on-bad-exit=1 \
  bash -c '
trap : TERM USR1
if [ "$SLURM_NTASKS" != 2 ]; then
  echo "SLURM started $SLURM_NTASKS tasks, but the job requested 2" >&2
  exit 1
fi
IFS=, read -r -a gpus <<<"${CUDA_VISIBLE_DEVICES-}"
if [ "${#gpus[@]}" -ne 2 ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  echo "task $SLURM_PROCID has ${#gpus[@]} GPUs, but the job requested 2 on each node" >&2
  exit 1
fi

(
  trap : TERM USR1
  python -m pyclassify train --devices=2
) <&0 &
command=$!
forward() { # shellcheck disable=SC2046,SC2317 # a trap calls it, for several children
  [[ $PROCTRACK == proctrack/[lp]* ]] ||
    kill -s "$1" $(cat "/proc/$command/task/$command/children" || pgrep -P "$command")
}
for signal in TERM USR1; do
  # shellcheck disable=SC2064 # expand $signal now
  trap "forward $signal" "$signal"
done
until wait "$command"; ! kill -0 "$command" 2>/dev/null; do :; done
wait "$command"
code=$?
[ "$code" -ne 75 ] || { : >/scratch/me/pyclassify-slurm/RUN_ID/interrupted && exit 0; }
exit "$code"
' &
until wait "$!"; ! kill -0 "$!" 2>/dev/null; do :; done
wait "$!"
code=$?
[ "$code" -ne 0 ] || [ ! -e "$run_folder/interrupted" ] || code=75
# At a preemption SLURM signals only the training, and requeues the job after a grace period. If the
# script ended earlier, the job would not be requeued.
if [ "$code" -ne 0 ] && [ "$code" -ne 75 ]; then
  while scontrol show job "$SLURM_JOB_ID" 2>&1 | grep -q 'PreemptTime=[0-9]'; do sleep 1; done
fi
(exit "$code")

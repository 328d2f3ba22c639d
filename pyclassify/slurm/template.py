"""The texts that a batch script is made of; @NAMES@ are filled in."""

INTRODUCTION = """\
# Run {run_id} of MLflow, submitted by pyclassify {version}.
# It runs project/, a snapshot made at submission; reporter/ tells MLflow how it goes.
# shellcheck disable=SC2016 # what is in single quotes is meant as it is
"""

FUNCTIONS = """\
fail() {
  echo "$1" >&2
  exit 1
}

report() {
  (cd "$run_folder/reporter" && @PYTHON@ -m pyclassify.slurm.report "$@")
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
  printf '%s\\n' "$queued" "$booked"
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
"""

DETAILS = """\
echo "job $SLURM_JOB_ID ($SLURM_JOB_NAME) in partition $SLURM_JOB_PARTITION"
echo "nodes: $SLURM_JOB_NODELIST ($SLURM_JOB_NUM_NODES); submitted from $SLURM_SUBMIT_HOST"
echo "run: $MLFLOW_RUN_ID; started at $(date)"
"""

MODULES = """\
# A shell that is no login shell may not know `module`.
if ! type module >/dev/null 2>&1; then
  for each in /etc/profile.d/*mod*.sh; do
    # shellcheck source=/dev/null
    source "$each"
  done
fi
"""

ALLOCATION = """\
if [ "$SLURM_JOB_NUM_NODES" != @NODES@ ]; then
  fail "SLURM gave $SLURM_JOB_NUM_NODES nodes; @NODES@ were asked for"
fi
"""

RENDEZVOUS = """\
# Where the processes meet: the first node, by its address where its name does not resolve, and a
# port of this job's own.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if ! getent hosts "$MASTER_ADDR" >/dev/null; then
  MASTER_ADDR=$(scontrol -o show node "$MASTER_ADDR" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')
fi
MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))
export MASTER_ADDR MASTER_PORT
"""

# A signal is for what the shell runs, whose exit code is then the shell's.
TASK = """
trap : @SIGNALS@
if [ "$SLURM_NTASKS" != @TASKS@ ]; then
  echo "SLURM started $SLURM_NTASKS processes; @TASKS@ were asked for" >&2
  exit 1
fi
"""
FORWARD = """\
# The warning before the time limit is for the training.
training=$!
trap 'kill -@SIGNAL@ "$training"' @SIGNAL@
until wait "$training"; code=$?; ! kill -0 "$training" 2>/dev/null; do :; done
(exit "$code")
"""
TASK_GPUS = """\
IFS=, read -r -a gpus <<<"${CUDA_VISIBLE_DEVICES-}"
if [ "${#gpus[@]}" -ne @GPUS@ ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  echo "process $SLURM_PROCID has ${#gpus[@]} GPUs; @GPUS@ were asked for on each node" >&2
  exit 1
fi
"""

#!/usr/bin/env bash
# Fine-tunes a world on a GPU machine without a network: wheels from .whl/ (dev/gpu_wheels.sh), then train.finetune.
#   OUT=FOLDER SECONDS_IN_ALL=590 dev/gpu.sh [options of train.finetune]
# OUT gets at most 8 files: the bundle (config.json, codec, denoiser, depth), report.json, gpu.log and two sheets. The
# bundle is there from the start and is replaced every minute, so that what a cut leaves is a world too.
set -uo pipefail
cd "$(dirname "$0")/.."
started=$(date +%s)
: "${OUT:?folder of the results}" "${SECONDS_IN_ALL:=590}" "${WORLD:=labmaze}"
python=${PYTHON:-python3} site=${SITE:-/tmp/site} work=${WORK:-/tmp/finetune}
mkdir -p "$OUT"
exec > >(tee -a "$OUT/gpu.log") 2>&1
if compgen -G ".whl/*.whl" > /dev/null; then
    install=(install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site")
    "$python" -m pip "${install[@]}" .whl/*.whl || exit
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1 MUJOCO_GL=egl TORCH_CUDNN_SDPA_DEPRIORITIZED=1 HF_HUB_OFFLINE=1 USE_TF=0 USE_FLAX=0
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} TQDM_MININTERVAL=10
echo "wheels: $(($(date +%s) - started)) s"
# Ends 10 s before the call does: the copies, and what Python needs to leave.
"$python" -m train.finetune --from "$WORLD" --out "$OUT" --work "$work" --no-openings \
    --deadline $((SECONDS_IN_ALL - 10 - $(date +%s) + started)) "$@" 2> "$work.stderr"
status=$?
tr '\r' '\n' < "$work.stderr" | grep -v -e '^ *$' -e '%|' -e 'step \[' -e ' frames \[' | tail -n 30
# For a second call while the machine is warm: train.evaluate --checkpoint $WORK/world --data $WORK/recording
mkdir -p "$work/world" && cp "$OUT"/config.json "$OUT"/{codec,denoiser,depth}.safetensors "$work/world" 2> /dev/null
for log in "$work"/record.log "$work"/prepare_*.log; do
    [ -f "$log" ] && echo "== $(basename "$log")" && tr '\r' '\n' < "$log" | tail -n 2
done
ls -l "$OUT"
echo "finetune ended with $status after $(($(date +%s) - started)) s"
exit $status

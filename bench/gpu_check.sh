#!/usr/bin/env bash
# All that needs a GPU, unattended: build, tests, CPU == GPU bit by bit, benchmarks, sanitizers.  For
# a machine without network that has nvcc, cmake, ninja, pybind11, scikit-build-core, numpy, pytest,
# hypothesis, ml_dtypes, torch and cupy.
#
#   bench/gpu_check.sh                 everything
#   bench/gpu_check.sh build tests     some of: build tests bench sanitize emulated
#
# Results go to $OUT (default bench/results): gpu_check.log, gpu.json and gpu.txt.  What would begin
# after $LIMIT seconds (default 570) is left out and counts as failed.
# shellcheck disable=SC2329  # parts are called by their names
set -uo pipefail
cd "$(dirname "$0")/.." || exit
OUT=${OUT:-bench/results}
LIMIT=${LIMIT:-570}
PYTHON=${PYTHON:-python3}
PARTS=${*:-build tests bench sanitize}
SITE=${SITE:-build/gpu_site}
mkdir -p "$OUT" "$SITE"
: > "$OUT/gpu_check.log"
failed=0
export PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD/$SITE${PYTHONPATH:+:$PYTHONPATH}"

# part <name> <limit in seconds> <command>...: runs it, logs it and shows how it ended.
part() {
  local name=$1 limit=$2 start=$SECONDS left=$((LIMIT - SECONDS))
  shift 2
  echo "== $name" | tee -a "$OUT/gpu_check.log"
  if [ "$left" -le 5 ]; then
    echo "   no time left"
    failed=1
    return
  fi
  timeout "$((limit < left ? limit : left))" "$@" 2>&1 | tee -a "$OUT/gpu_check.log" |
    tail -n "${LINES_SHOWN:-4}" | cut -c 1-200
  local status=${PIPESTATUS[0]}
  echo "   exit $status after $((SECONDS - start)) s" | tee -a "$OUT/gpu_check.log"
  [ "$status" -eq 0 ] || failed=1
}

build() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  if [ -n "$capability" ]; then export ADAMAS_CUDA_ARCHITECTURES="$capability-real"; fi
  part build 300 "$PYTHON" -m pip install --no-build-isolation --no-deps --no-index --upgrade \
    --target "$SITE" --config-settings=cmake.define.ADAMAS_CUDA=ON .
  LINES_SHOWN=12 part report 60 "$PYTHON" -m adamas
  # Tests without a device are skipped, which is no failure: here it is one.
  part device 60 "$PYTHON" -c 'import adamas, sys; sys.exit(adamas.cuda.why_unavailable())'
}

tests() {
  LINES_SHOWN=20 part tests 400 "$PYTHON" -m pytest -q -rs -p no:cacheprovider tests/test_gpu.py
}

bench() {
  LINES_SHOWN=60 part bench 240 "$PYTHON" bench/gpu_bench.py --out "$OUT" --seconds 120
}

sanitize() {
  for tool in memcheck racecheck synccheck initcheck; do
    part "sanitize_$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$PYTHON" bench/gpu_short.py
  done
}

emulated() {
  part tests_emulated 200 "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_cuda.py \
    tests/test_cuda_sums.py tests/test_cuda_streams.py tests/test_cuda_offload.py \
    tests/test_cuda_checkpoint.py
}

for name in $PARTS; do
  case $name in
    build | tests | bench | sanitize | emulated) "$name" ;;
    *)
      echo "there is no part $name"
      failed=1
      ;;
  esac
done
exit $failed

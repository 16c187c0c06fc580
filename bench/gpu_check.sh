#!/usr/bin/env bash
# All that needs a GPU, unattended, within 10 minutes: build, tests, CPU == GPU bit by bit, sanitizers,
# benchmarks.  For a machine without network that has nvcc, cmake, ninja, pybind11,
# scikit-build-core, numpy, pytest, hypothesis, ml_dtypes, torch and cupy.
#
#   bench/gpu_check.sh                 everything
#   bench/gpu_check.sh build tests     some of: build tests sanitize bench
#
# Results go to $OUT (default build/gpu_check): a log of each part, gpu.json and gpu.txt.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-build/gpu_check}
PYTHON=${PYTHON:-python3}
PARTS=${*:-build tests sanitize bench}
SITE=${SITE:-build/gpu_site}
mkdir -p "$OUT" "$SITE"
failed=0

# part <name> <limit in seconds> <command>...: runs it, keeps its log and shows how it ended.
part() {
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  timeout "$limit" "$@" > "$OUT/$name.log" 2>&1
  local status=$?
  echo "== $name: exit $status after $((SECONDS - start)) s"
  tail -n "${LINES_SHOWN:-4}" "$OUT/$name.log" | cut -c 1-200
  [ "$status" -eq 0 ] || failed=1
}

for name in $PARTS; do
  case $name in
    build)
      capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
      export ADAMAS_CUDA_ARCHITECTURES="$capability-real"
      part build 300 "$PYTHON" -m pip install --no-build-isolation --no-deps --no-index --upgrade \
        --target "$SITE" --config-settings=cmake.define.ADAMAS_CUDA=ON .
      ;;
  esac
done

export PYTHONPATH="$PWD/$SITE${PYTHONPATH:+:$PYTHONPATH}"
for name in $PARTS; do
  case $name in
    tests)
      part report 60 "$PYTHON" -m adamas
      part tests_emulated 200 "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_cuda.py \
        tests/test_cuda_sums.py tests/test_cuda_streams.py tests/test_cuda_offload.py \
        tests/test_cuda_checkpoint.py
      LINES_SHOWN=12 part tests_gpu 500 "$PYTHON" -m pytest -q -rs -s -p no:cacheprovider \
        tests/test_gpu.py
      ;;
    sanitize)
      for tool in memcheck racecheck initcheck synccheck; do
        part "sanitize_$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 9 \
          "$PYTHON" bench/gpu_short.py
      done
      ;;
    bench)
      LINES_SHOWN=60 part bench 400 "$PYTHON" bench/gpu_bench.py --out "$OUT"
      ;;
  esac
done
exit $failed

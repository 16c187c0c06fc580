#!/usr/bin/env bash
# Put an nvcc where there is none: `install_nvcc.sh FOLDER [PYTHON]`, then FOLDER/bin on the PATH.
# It comes from NVIDIA's wheels, checked by their hashes, 105 MB to fetch.  cibuildwheel runs this in
# the manylinux image, and so turns that into a build image with nvcc.
set -euo pipefail
folder=${1:?install_nvcc.sh FOLDER [PYTHON]}
python=${2:-python3}
here=$(cd "$(dirname "$0")" && pwd)
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
  --only-binary :all: --upgrade --target "$folder/wheels" --requirement "$here/requirements.txt"
mkdir -p "$folder/bin"
toolkit=$folder/wheels/nvidia/cu13
# nvcc looks for the runtime in lib64, the wheels have it in lib.
ln -sfn lib "$toolkit/lib64"
# A link would do for the shell, but nvcc finds its other parts beside the name it was called by.
printf '#!/bin/sh\nexec "%s/bin/nvcc" "$@"\n' "$(cd "$toolkit" && pwd)" > "$folder/bin/nvcc"
chmod +x "$folder/bin/nvcc"
"$folder/bin/nvcc" --version

#!/usr/bin/env bash
# What moeracle does, in two minutes: judge this repository's kernels, then catch a bug that shipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n\033[1m%s\033[0m\n' "$1"; }

say "1. This repository's Triton kernels, judged bit by bit (with no GPU: in Triton's interpreter, its bf16 defects corrected)"
echo "\$ moeracle check moeracle.kernels --profile smoke --examples 3"
moeracle check moeracle.kernels --profile smoke --examples 3

say "2. A bug that shipped: half of the output never written, hidden by an atol raised from 2e-2 to 3e-2"
echo "\$ moeracle check examples/half_written.py"
if moeracle check examples/half_written.py; then
    echo "error: the planted bug was not caught" >&2
    exit 1
fi

say "Caught. The last line above replays it. Your own kernel takes eight lines: see examples/my_kernel.py"

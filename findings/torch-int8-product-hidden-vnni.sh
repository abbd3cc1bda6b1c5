#!/usr/bin/env bash
# torch 2.13.0, numpy 2.3.5 (CPU, x86-64 with AVX-512 and VNNI; on a CPU without VNNI it says so and ends with 0)
#
# Behaviour: torch._int_mm, the int8 x int8 -> int32 product of CPUs, returns wrong sums where ONEDNN_MAX_CPU_ISA hides
# VNNI from oneDNN, even with AVX512_CORE. Values of the whole int8 range lose sums that do not fit 16 bits; no error,
# no warning. Values within 7 bits are right, and without the variable all are. torch still sees VNNI and so chooses
# oneDNN, whose kernel for CPUs without it adds pairs of products in 16 bits.
#
# Guess before running: the variable, made to try other CPUs, makes int8 products slower and nothing else.
#
# Output seen:
#   default       8 bits: right   7 bits: right
#   AVX512_CORE   8 bits: wrong   7 bits: right
#   AVX2          8 bits: wrong   7 bits: right
set -euo pipefail
if ! grep -qm1 avx512_vnni /proc/cpuinfo; then
  echo "this CPU has no VNNI to hide"
  exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.3.5
cat > "$folder/product.py" <<'PYTHON'
import torch

generator = torch.Generator().manual_seed(0)


def verdict(limit):
    a = torch.randint(-limit, limit, (33, 64), generator=generator, dtype=torch.int8)
    b = torch.randint(-limit, limit, (48, 64), generator=generator, dtype=torch.int8)
    return "right" if torch.equal(torch._int_mm(a, b.t()).long(), a.long() @ b.t().long()) else "wrong"


print(f"8 bits: {verdict(128)}   7 bits: {verdict(64)}")
PYTHON
seen=""
for isa in default AVX512_CORE AVX2; do
  line=$(env $([ "$isa" = default ] || echo "ONEDNN_MAX_CPU_ISA=$isa") "$folder/venv/bin/python" "$folder/product.py" 2> /dev/null)
  printf '%-13s %s\n' "$isa" "$line"
  seen="$seen$isa $line;"
done
wrong="8 bits: wrong   7 bits: right"
[ "$seen" = "default 8 bits: right   7 bits: right;AVX512_CORE $wrong;AVX2 $wrong;" ]

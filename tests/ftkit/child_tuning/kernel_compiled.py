"""Compile the kernel for two CUDA architectures, which needs no GPU, and describe what comes out.

    python tests/ftkit/child_tuning/kernel_compiled.py FOLDER

FOLDER gets what Triton caches. Prints JSON: by architecture, how often PTX that matters occurs.
"""

import json
import os
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ftkit.child_tuning import triton_kernel

SCALARS = {"numel": "i64", "key": "u64", "first_counter": "u64", "threshold": "i32"}
TENSORS = {
    "param": "*bf16",
    "grad": "*bf16",
    "exp_avg": "*fp32",
    "exp_avg_sq": "*fp32",
    "max_exp_avg_sq": "*fp32",
}
CONSTANTS = {"SKIP": 0, "AMSGRAD": False, "COUNTERS": triton_kernel.COUNTERS}
PTX = {
    "loads of 16 bytes": "ld.global.v4.b32",
    "stores of 16 bytes": "st.global.v4.b32",
    "roundings to nearest": "cvt.rn.bf16",
    "correct square roots": "sqrt.rn.f32",
    "correct divisions": "div.rn.f32",
    "spills": ".local",
    "fused products": "fma.rn.f32",
    "64-bit high products": "mul.hi.u64",
}


def compiled(capability: int, constants: dict):
    kernel = triton_kernel.child_tuning_step
    names = kernel.arg_names
    kinds = {**TENSORS, **SCALARS, **dict.fromkeys(constants, "constexpr")}
    signature = {name: kinds.get(name, "fp32") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in TENSORS or n == "numel"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": False})


def main() -> dict:
    found = {}
    for capability in (80, 90):
        binary = compiled(capability, CONSTANTS)
        ptx = binary.asm["ptx"]
        found[capability] = {what: ptx.count(text) for what, text in PTX.items()}
        compiled(capability, {**CONSTANTS, "SKIP": 5, "AMSGRAD": True})
        compiled(capability, {**CONSTANTS, "numel": 1})  # Triton makes a constant of it
    return found


if __name__ == "__main__":
    os.environ["TRITON_CACHE_DIR"] = sys.argv[1]  # read when it compiles, and not when Triton is imported
    print(json.dumps(main()))

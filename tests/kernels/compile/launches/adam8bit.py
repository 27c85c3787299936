from shapes import meta

from kernels.adam8bit import Adam8bitState
from kernels.adam8bit.in_triton import launch_adam8bit

DOTS = set()

# target, gradient, direction only, key
FORMS = [
    ("float32", "float32", False, None),
    ("bfloat16", "bfloat16", False, None),
    ("bfloat16", "float32", False, 7),
    ("bfloat16", "bfloat16", True, None),
    ("float32", "float32", True, None),
]


def launch_all():
    for n in (11008 * 4096, 1003):  # divisible by 16 and not: the only thing that the shape changes
        for target, grad, direction, key in FORMS:
            state = Adam8bitState.zeros_for(meta(n))
            launch_adam8bit(meta(n, dtype=target), meta(n, dtype=grad), state, meta(9, dtype="float32"), direction, key)

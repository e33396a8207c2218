// The knobs of a build, all macros: -DROWS=2 -DDTYPE_FP16 and so on. kernels/hip/source/knobs.json chooses them for a launch.
#ifndef MOERACLE_KNOBS_H
#define MOERACLE_KNOBS_H
#include "moeracle_hip.h"

#ifndef ROWS  // activation rows a launch (or a routed block) multiplies, 1..5
#define ROWS 1
#endif
#ifndef YTILE  // weight rows that a wave takes at once
#define YTILE 2
#endif
#ifndef WAVES  // waves a group
#define WAVES 4
#endif
#ifndef A_CHUNK  // consecutive k that a lane takes at once
#define A_CHUNK 16
#endif
#ifndef UNRL  // steps of 32 * A_CHUNK inputs whose loads are issued together
#define UNRL 4
#endif

#define ZERO_NONE 0      // the zero point is 8
#define ZERO_UNPACKED 1  // uint8 [N, K/G]
#define ZERO_RDNA 2      // int32 [N/8, K/G], row n at bits 4*(n%8)
#ifndef ZERO
#define ZERO ZERO_NONE
#endif

// How bf16 codes are read; fp16 subtracts exactly in one packed operation, whatever the knob.
#define SUB_FINITE 0  // subtract in fp32, round half to even without the NaN path
#define TRUNCATE 1    // subtract in fp32, drop the low 16 bits: the same integers, four operations fewer a pair
#define MAGIC 2       // leave 128 + u and subtract (128 + z) * sum(a) from the chunk's dot
#ifndef DECODE
#define DECODE TRUNCATE
#endif

#ifndef STORE_FP32  // 1: GEMMs store fp32, unrounded
#define STORE_FP32 0
#endif

#if defined(DTYPE_FP16)  // D, the activations' dtype: bf16 unless said
using D = moeracle::fp16;
static_assert(DECODE != MAGIC, "DECODE: MAGIC is for bf16");
#else
using D = moeracle::bf16;
#endif

static_assert(ROWS >= 1 && ROWS <= 5, "ROWS: must be 1..5");
static_assert(A_CHUNK % 16 == 0, "A_CHUNK: must be a multiple of 16");

#endif

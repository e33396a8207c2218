// One include for the .hip files, four backends: gfx11/gfx12 machine code (clang -x hip), NVIDIA (nvcc -x cu), and the host
// CPU (g++ or clang++, each GPU thread a fiber). The macros below pick the backend; a kernel never asks which it is in.
//
// How a kernel is written
//   * one file, `extern "C" __global__ __launch_bounds__(THREADS) void name(args) {…}` and, at the end of the file,
//     MOERACLE_EXPORT(name). Knobs are macros with defaults (#ifndef YTILE …): a build is a file and its -D options.
//   * arguments are pointers to global memory (const ones are never written), int, unsigned, float, or long long.
//   * waves have 32 lanes; a block's threads are a multiple of 32; threadIdx, blockIdx, blockDim, gridDim as usual, but
//     prefer compile-time sizes: blockDim and gridDim are loads from the dispatch packet on gfx.
//   * shared memory: SHARED(float, tile, 256); one dynamic array per kernel: SHARED_DYNAMIC(unsigned, words);
//   * every lane of a wave reaches every cross-lane operation, every thread of a block every __syncthreads().
//   * no <cmath>, no standard headers, no recursion, no function pointers; float only (no double).
//   * what has a fixed order of roundings below has that order in every backend, so its bits are equal everywhere; where
//     gfx hardware may differ from it, the comment says "gfx:". Contraction is off: a*b+c is two roundings, fmaf(a,b,c)
//     one.
#ifndef MOERACLE_HIP_H
#define MOERACLE_HIP_H

#define MOERACLE_WAVE 32
typedef decltype(sizeof(0)) size_t;

#if defined(__AMDGCN__)
#define MOERACLE_GFX 1
#include "backend_gfx.h"
#elif defined(__CUDACC__)
#define MOERACLE_CUDA 1
#include "backend_cuda.h"
#else
#define MOERACLE_HOST 1
#include "host_emulation.h"
#endif

#include "numbers.h"
#include "lanes.h"
#include "wmma.h"

using namespace moeracle;

#endif

// a[r, i] = D(D(silu(h[r, i])) * h[r, I+i]); one thread a pair of columns.
#include "silu.h"

extern "C" __global__ __launch_bounds__(WAVES * 32) void silu_and_mul(
    const unsigned short* h, unsigned short* a, int R, int I, long long h_stride) {
  const long long i = (long long)blockIdx.x * (WAVES * 32) + threadIdx.x;
  if (i >= (long long)R * I) return;
  const long long row = i / I, column = i % I;
  const unsigned short* from = h + row * h_stride + column;
  a[i] = (unsigned short)silu_mul_rounded(to_float(D{from[0]}), to_float(D{from[I]}));
}
MOERACLE_EXPORT(silu_and_mul)

// out[t, n] = D(sum_j weights[t, j] * y[t*k + j, n]), slots in order, products and sums rounded to fp32 one by one.
#include "codes.h"

extern "C" __global__ __launch_bounds__(WAVES * 32) void moe_sum(
    const unsigned short* y, const float* weights, const int* ids, unsigned short* out, int T, int top_k, int N) {
  const long long i = (long long)blockIdx.x * (WAVES * 32) + threadIdx.x;
  if (i >= (long long)T * N) return;
  const long long t = i / N, n = i % N;
  float total = 0.0f;
  for (int j = 0; j < top_k; j++) {
    const long long slot = t * top_k + j;
    if (ids[slot] >= 0) total += weights[slot] * to_float(D{y[slot * N + n]});
  }
  out[i] = (unsigned short)Codes<D>::store_bits(total);
}
MOERACLE_EXPORT(moe_sum)

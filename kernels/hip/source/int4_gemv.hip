// Dense W4A16 for 1 to 5 rows: y[r, n] = D(sum_k x[r, k] (u[n, k] - z) s[n, k/G] + bias[n]).
//
// A block stages its activation rows in LDS; each of its WAVES waves then takes YTILE outputs at a time, striding over N.
#include "int4_rows.h"

extern "C" __global__ __launch_bounds__(WAVES * 32) void int4_gemv(
    const unsigned short* x, const unsigned* words, const unsigned short* scale, const void* zero,
    const unsigned short* bias, unsigned short* y, int has_bias, int N, int K, int group_shift, int blocks,
    long long x_stride, long long word_stride, long long scale_stride, long long scale_step, long long zero_stride,
    long long zero_step) {
  SHARED_DYNAMIC(u32x4, lds);  // ROWS * K / 8
  long long source[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) source[r] = r * x_stride;
  stage_rows(lds, x, source, K);
  __syncthreads();

  const Int4Matrix w = {words, scale, zero, word_stride, scale_stride, scale_step, zero_stride, zero_step, N, K, group_shift};
  for (int n0 = (int(blockIdx.x) * WAVES + wave_id()) * YTILE; n0 < N; n0 += blocks * WAVES * YTILE) {
    float sum[ROWS][YTILE];
    int4_rows(sum, lds, w, n0);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int i = 0; i < YTILE; i++) {
        float total = wave_sum_shr(sum[r][i]);
        if (lane_id() == 31 && n0 + i < N) {
          if (has_bias) total += to_float(D{bias[n0 + i]});
          store_result(y, (long long)r * N + n0 + i, total);
        }
      }
  }
}
MOERACLE_EXPORT(int4_gemv)

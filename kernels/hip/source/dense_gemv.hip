// bf16 / fp16 GEMV for 1 to 5 rows, with what a shared expert needs after it in the same launch (knob EPILOGUE).
//
//   PLAIN      y[r, n] = D(x[r] . w[n] + bias[n])
//   SIGMOID    y[r, n] = D(sigmoid(x[r] . w[n])), the sum unrounded: the shared expert's gate, N = 1
//   SILU_MUL   w is [2N, K], gate rows first:  y = D(D(silu(D(gate))) * D(up))
//   GATE_MUL   y = D(D(x[r] . w[n] + bias[n]) * D(sigmoid(gate_x[r] . gate_w))), the gate's dot never stored
#include "dense_rows.h"
#include "silu.h"

#define PLAIN 0
#define SIGMOID 1
#define SILU_MUL 2
#define GATE_MUL 3
#ifndef EPILOGUE
#define EPILOGUE PLAIN
#endif

extern "C" __global__ __launch_bounds__(WAVES * 32) void dense_gemv(
    const unsigned short* x, const unsigned short* w, const unsigned short* bias, const unsigned short* gate_x,
    const unsigned short* gate_w, unsigned short* y, int has_bias, int N, int K, int H, int blocks, long long x_stride,
    long long w_stride, long long gate_stride) {
  constexpr int COLUMNS = EPILOGUE == SILU_MUL ? 2 * YTILE : YTILE;
  SHARED_DYNAMIC(u32x4, lds);  // ROWS * K / 8
  long long source[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) source[r] = r * x_stride;
  stage_rows(lds, x, source, K);
#if EPILOGUE == GATE_MUL
  SHARED(float, gate, ROWS);
  for (int r = wave_id(); r < ROWS; r += WAVES) {  // every block makes its own: H products a row, from the cache
    const float dot = wave_sum_shr(dense_dot(gate_x + r * gate_stride, gate_w, H));
    if (lane_id() == 31) gate[r] = rounded_store(sigmoid_f32(dot));
  }
#endif
  __syncthreads();

  for (int n0 = (int(blockIdx.x) * WAVES + wave_id()) * YTILE; n0 < N; n0 += blocks * WAVES * YTILE) {
    long long row[COLUMNS];
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
      const long long n = n0 + i % YTILE < N ? n0 + i % YTILE : N - 1;
      row[i] = (n + (i < YTILE ? 0 : N)) * w_stride;
    }
    float sum[ROWS][COLUMNS];
    dense_rows(sum, lds, w, row, K);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int i = 0; i < YTILE; i++) {
        float total = wave_sum_shr(sum[r][i]);
#if EPILOGUE == SILU_MUL
        const float up = wave_sum_shr(sum[r][YTILE + i]);
#endif
        if (lane_id() == 31 && n0 + i < N) {
          if (has_bias) total += to_float(D{bias[n0 + i]});
#if EPILOGUE == SILU_MUL
          y[(long long)r * N + n0 + i] = (unsigned short)silu_mul_rounded(rounded_store(total), rounded_store(up));
#elif EPILOGUE == GATE_MUL
          store_result(y, (long long)r * N + n0 + i, rounded_store(total) * gate[r]);
#elif EPILOGUE == SIGMOID
          store_result(y, (long long)r * N + n0 + i, sigmoid_f32(total));
#else
          store_result(y, (long long)r * N + n0 + i, total);
#endif
        }
      }
  }
}
MOERACLE_EXPORT(dense_gemv)

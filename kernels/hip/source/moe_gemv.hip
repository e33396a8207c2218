// Fused-MoE decode GEMM: blockIdx.y is a block of ROWS sorted slot ids, all of one expert; nothing is gathered in memory.
//
// y[id, n] = D(sum_k x[id / top_k, k] (u[e, n, k] - z) s[e, n, k/G] (* weights[id])) for the block's ids below R.
// Blocks from *end on are skipped; a block of expert -1 (on another rank) writes zeros where its rows would be.
#include "int4_rows.h"

extern "C" __global__ __launch_bounds__(WAVES * 32) void moe_gemv(
    const unsigned short* x, const unsigned* words, const unsigned short* scale, const void* zero, const int* sorted_ids,
    const int* expert_ids, const int* end, const float* weights, unsigned short* y, int has_weights, int N, int K,
    int group_shift, int blocks, int R, int num_ids, int top_k, long long x_stride, long long word_expert,
    long long word_stride, long long scale_expert, long long scale_stride, long long scale_step, long long zero_expert,
    long long zero_stride, long long zero_step) {
  SHARED_DYNAMIC(u32x4, lds);  // ROWS * K / 8
  const int first = int(blockIdx.y) * ROWS;
  if (first >= *end) return;
  const long long expert = expert_ids[blockIdx.y];
  int id[ROWS];
  long long source[ROWS];
  int used = 0;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    id[r] = first + r < num_ids ? sorted_ids[first + r] : R;
    const int mine = id[r] >= 0 && id[r] < R;
    used += mine;
    source[r] = mine ? (id[r] / top_k) * x_stride : -1;
  }
  if (used == 0) return;
  const int n_first = (int(blockIdx.x) * WAVES + wave_id()) * YTILE, n_step = blocks * WAVES * YTILE;
  if (expert < 0) {
    for (int n0 = n_first; n0 < N; n0 += n_step) {
      const int n = n0 + lane_id();
      if (lane_id() >= YTILE || n >= N) continue;
#pragma unroll
      for (int r = 0; r < ROWS; r++)
        if (source[r] >= 0) store_result(y, (long long)id[r] * N + n, 0.0f);
    }
    return;
  }
  stage_rows(lds, x, source, K);
  __syncthreads();

  const void* of_expert = ZERO == ZERO_RDNA ? static_cast<const void*>(static_cast<const int*>(zero) + expert * zero_expert)
                                            : static_cast<const unsigned char*>(zero) + expert * zero_expert;
  const Int4Matrix w = {words + expert * word_expert, scale + expert * scale_expert, of_expert, word_stride, scale_stride,
                        scale_step, zero_stride, zero_step, N, K, group_shift};
  for (int n0 = n_first; n0 < N; n0 += n_step) {
    float sum[ROWS][YTILE];
    int4_rows(sum, lds, w, n0);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int i = 0; i < YTILE; i++) {
        float total = wave_sum_shr(sum[r][i]);
        if (lane_id() == 31 && n0 + i < N && source[r] >= 0) {
          if (has_weights) total *= weights[id[r]];
          store_result(y, (long long)id[r] * N + n0 + i, total);
        }
      }
  }
}
MOERACLE_EXPORT(moe_gemv)

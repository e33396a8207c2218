// GEMM2, router weight and top-k sum in one launch, for one token a blockIdx.y: no y in memory, no barrier between blocks.
//
// out[t, n] = D(sum_j weights[t, j] * (sum_k a[j, k] (u[e_j, n, k] - z) s)), slots in order, fp32 throughout.
// A block owns its stripes of n for every slot, so the slots' partial sums meet in its LDS. With FUSE_SILU the input is h
// [T*k, 2K], and a = D(silu(gate) * up) is made, rounded once, while it is staged: by all threads, two columns each.
#include "int4_rows.h"
#include "silu.h"

#ifndef FUSE_SILU
#define FUSE_SILU 0
#endif
#ifndef PARTIALS  // floats of LDS for top_k * (outputs of one block)
#define PARTIALS 2048
#endif

extern "C" __global__ __launch_bounds__(WAVES * 32) void moe_gemm2_reduce(
    const unsigned short* input, const unsigned* words, const unsigned short* scale, const void* zero, const int* ids,
    const float* weights, unsigned short* out, int N, int K, int group_shift, int blocks, int top_k, long long word_expert,
    long long word_stride, long long scale_expert, long long scale_stride, long long scale_step,
    long long zero_expert, long long zero_stride, long long zero_step) {
  static_assert(ROWS == 1, "ROWS: one token a block");
  SHARED_DYNAMIC(u32x4, lds);  // K / 8
  SHARED(float, partial, PARTIALS);
  const long long token = blockIdx.y;
  const int stripe = WAVES * YTILE, step = blocks * stripe;
  const int per_block = (N + step - 1) / step * stripe;

  for (int slot = 0; slot < top_k; slot++) {
    const long long row = token * top_k + slot;
    const long long expert = ids[row];
    if (slot > 0) __syncthreads();  // everyone has read the slot before
#if FUSE_SILU
    if (expert >= 0) {
      const unsigned short* h = input + row * 2 * K;
      unsigned* pairs = reinterpret_cast<unsigned*>(lds);
      for (int i = int(threadIdx.x); i < K / 2; i += WAVES * MOERACLE_WAVE) {
        unsigned half[2];
#pragma unroll
        for (int j = 0; j < 2; j++)
          half[j] = silu_mul_once(to_float(D{h[2 * i + j]}), to_float(D{h[K + 2 * i + j]}));
        pairs[i] = pack_pair(half[0], half[1]);
      }
      stage_zeros(lds, K);
    }
#else
    const long long source[ROWS] = {expert < 0 ? -1 : row * K};
    stage_rows(lds, input, source, K);
#endif
    __syncthreads();

    const long long e = expert < 0 ? 0 : expert;
    const void* of_expert = ZERO == ZERO_RDNA ? static_cast<const void*>(static_cast<const int*>(zero) + e * zero_expert)
                                              : static_cast<const unsigned char*>(zero) + e * zero_expert;
    const Int4Matrix w = {words + e * word_expert, scale + e * scale_expert, of_expert, word_stride, scale_stride,
                          scale_step, zero_stride, zero_step, N, K, group_shift};
    const float weight = weights[row];
    int local = wave_id() * YTILE;
    for (int n0 = int(blockIdx.x) * stripe + local; n0 < N; n0 += step, local += stripe) {
      float sum[ROWS][YTILE];
      if (expert >= 0) int4_rows(sum, lds, w, n0);
#pragma unroll
      for (int i = 0; i < YTILE; i++) {
        const float total = expert < 0 ? 0.0f : wave_sum_shr(sum[0][i]);
        if (lane_id() == 31) partial[slot * per_block + local + i] = expert < 0 ? 0.0f : weight * total;
      }
    }
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < per_block; i += WAVES * MOERACLE_WAVE) {
    const int n = int(blockIdx.x) * stripe + i / stripe * step + i % stripe;
    if (n >= N) continue;
    float total = partial[i];
    for (int slot = 1; slot < top_k; slot++) total += partial[slot * per_block + i];
    store_result(out, token * N + n, total);
  }
}
MOERACLE_EXPORT(moe_gemm2_reduce)

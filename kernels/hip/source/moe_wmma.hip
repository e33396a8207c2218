// Prefill MoE GEMM on matrix instructions: blockIdx.y is a tile of 16 sorted slot ids, all of one expert.
//
// y[id, n] = D(sum_g s[e, n, g] * dot_g (* weights[id])), dot_g over the k of group g, total = fmaf(dot_g, s, total).
// bf16: weights are multiplied as 128 + u, and dot_g = fmaf(-(128 + z), sum(a), dot); sum(a) is one more column of ones.
// fp16: weights are multiplied as u - z. A wave makes 16 x 16*NTILES outputs, a block's waves share 16 rows of A in LDS.
// With the fragments of wmma.h a lane's B values are consecutive k of its own weight row: no LDS for weights at all.
#if !defined(DTYPE_FP16) && !defined(DECODE)
#define DECODE 2  // MAGIC
#endif
#include "codes.h"

#ifndef NTILES  // tiles of 16 outputs a wave makes
#define NTILES 2
#endif
#ifndef KTILE  // k that are in LDS at once, a multiple of 32
#define KTILE 64
#endif

// 16 codes of a weight row, from 32 of them in four words, as a lane's part of B; s says which half of the 32.
MOERACLE_FN wmma_input b_fragment(const u32x4& words, int s, const Offset& offset) {
  wmma_input b;
#pragma unroll
  for (int i = 0; i < WMMA_KEEP / 8; i++) {
    const unsigned upper = words.v[2 * s + 1], lower = words.v[2 * s];
    const unsigned word = WMMA_KEEP == 8 ? (wmma_k0() ? upper : lower) : i ? upper : lower;
    Codes<D>::of_word(word, offset, b.v + 4 * i);
  }
  return b;
}

extern "C" __global__ __launch_bounds__(WAVES * 32) void moe_wmma(
    const unsigned short* x, const unsigned* words, const unsigned short* scale, const void* zero, const int* sorted_ids,
    const int* expert_ids, const int* end, const float* weights, unsigned short* y, int has_weights, int N, int K,
    int group_shift, int block_size, int R, int num_ids, int top_k, long long x_stride, long long word_expert,
    long long word_stride, long long scale_expert, long long scale_stride, long long scale_step, long long zero_expert,
    long long zero_stride, long long zero_step) {
  constexpr int ROW = KTILE / 8 + 1;  // 16-byte pieces a row of A, one more than it has: rows fall on different banks
  SHARED(u32x4, tile, 16 * ROW);
  const int first = int(blockIdx.y) * 16;
  if (first >= *end) return;
  const long long expert = expert_ids[first / block_size];
  const int n_first = (int(blockIdx.x) * WAVES + wave_id()) * 16 * NTILES + wmma_c_col();

  float total[NTILES][8];
#pragma unroll
  for (int t = 0; t < NTILES; t++)
#pragma unroll
    for (int r = 0; r < 8; r++) total[t][r] = 0.0f;

  if (expert >= 0) {
    long long row[NTILES];
    wmma_acc dot[NTILES], sum_a;
    wmma_input ones;
#pragma unroll
    for (int i = 0; i < WMMA_KEEP / 2; i++) ones.v[i] = Codes<D>::ONES;
#pragma unroll
    for (int t = 0; t < NTILES; t++) row[t] = n_first + 16 * t < N ? n_first + 16 * t : N - 1;

    for (int k0 = 0; k0 < K; k0 += KTILE) {
      if (k0 > 0) __syncthreads();  // everyone has read the tile before
      for (int i = int(threadIdx.x); i < 16 * (KTILE / 8); i += WAVES * MOERACLE_WAVE) {
        const int r = i / (KTILE / 8), piece = i % (KTILE / 8);
        const int id = first + r < num_ids ? sorted_ids[first + r] : R;
        u32x4* to = &tile[r * ROW + piece];
        if (id >= 0 && id < R && k0 + 8 * piece < K)
          *to = reinterpret_cast<const u32x4*>(x + (id / top_k) * x_stride + k0)[piece];
        else
          *to = u32x4{{0u, 0u, 0u, 0u}};
      }
      __syncthreads();
#pragma unroll
      for (int k1 = 0; k1 < KTILE; k1 += 32) {
        const int k = k0 + k1;
        if (k >= K) break;
        const long long g = k >> group_shift;
        const int begins = k == (int)(g << group_shift), ends = k + 32 >= K || (k + 32) >> group_shift != g;
        u32x4 code[NTILES];
        Offset offset[NTILES];
#pragma unroll
        for (int t = 0; t < NTILES; t++) {
          code[t] = load_nt(reinterpret_cast<const u32x4*>(words + expert * word_expert + row[t] * word_stride + k / 8));
          const long long zero_row = (ZERO == ZERO_RDNA ? row[t] / 8 : row[t]) * zero_stride + expert * zero_expert;
          offset[t] = Codes<D>::offset(zero_of(zero_word(zero, zero_row, g * zero_step), int(row[t] % 8)));
        }
        if (begins) {
#pragma unroll
          for (int r = 0; r < 8; r++) {
            sum_a.v[r] = 0.0f;
#pragma unroll
            for (int t = 0; t < NTILES; t++) dot[t].v[r] = 0.0f;
          }
        }
#pragma unroll
        for (int s = 0; s < 2; s++) {
          wmma_input a;
#pragma unroll
          for (int i = 0; i < WMMA_KEEP / 8; i++) {
            const u32x4 piece = tile[wmma_row() * ROW + (k1 + 16 * s + wmma_k0()) / 8 + i];
#pragma unroll
            for (int j = 0; j < 4; j++) a.v[4 * i + j] = piece.v[j];
          }
          if (DECODE == MAGIC) sum_a = wmma_16x16x16<D>(a, ones, sum_a);
#pragma unroll
          for (int t = 0; t < NTILES; t++) dot[t] = wmma_16x16x16<D>(a, b_fragment(code[t], s, offset[t]), dot[t]);
        }
        if (ends) {
#pragma unroll
          for (int t = 0; t < NTILES; t++) {
            const float s = to_float(D{scale[expert * scale_expert + row[t] * scale_stride + g * scale_step]});
#pragma unroll
            for (int r = 0; r < 8; r++) {
              const float d = DECODE == MAGIC ? fmaf(-offset[t].minus, sum_a.v[r], dot[t].v[r]) : dot[t].v[r];
              total[t][r] = fmaf(d, s, total[t][r]);
            }
          }
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 8; r++) {
    const int position = first + wmma_c_row(r), id = position < num_ids ? sorted_ids[position] : R;
    if (id < 0 || id >= R) continue;
    const float weight = has_weights ? weights[id] : 1.0f;
#pragma unroll
    for (int t = 0; t < NTILES; t++)
      if (n_first + 16 * t < N)
        store_result(y, (long long)id * N + n_first + 16 * t, total[t][r] * weight);
  }
}
MOERACLE_EXPORT(moe_wmma)

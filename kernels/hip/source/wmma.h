// 16x16x16 matrix fragments of a wave: D[m][n] = C[m][n] + sum_k A[m][k] B[n][k], 16-bit inputs, fp32 accumulator.
//
// A lane's fragments (lane l, row r16 = l % 16, half = l / 16):
//   A: values A[r16][k0 + i], i = 0..KEEP-1      B: values B[r16][k0 + i] (a row of W, [N, K] as weights are stored)
//   C: acc.v[r] = D[c_row(r)][r16], r = 0..7
// KEEP = 16, k0 = 0, c_row(r) = 2r + half      gfx11, host, NVIDIA (lanes 16..31 hold the same A and B as 0..15)
// KEEP = 8,  k0 = 8*half, c_row(r) = 8*half + r                               gfx12
// Kernels use WMMA_KEEP, wmma_k0(), wmma_row(), wmma_c_row(r), wmma_c_col() and so know neither.
//
// Order of roundings. Host, NVIDIA: for each output t = c; for k = 0..15: t = fma(a_k, b_k, t). gfx: one
// v_wmma_f32_16x16x16_{bf16,f16}, whose internal order AMD does not publish: there the result is judged by its interval.
#ifndef MOERACLE_WMMA_H
#define MOERACLE_WMMA_H

namespace moeracle {

#if defined(MOERACLE_GFX) && defined(__GFX12__)
constexpr int WMMA_KEEP = 8;
#else
constexpr int WMMA_KEEP = 16;
#endif

struct alignas(16) wmma_input { unsigned v[WMMA_KEEP / 2]; };  // pairs: element 2i low, 2i+1 high
struct wmma_acc { float v[8]; };

MOERACLE_FN int wmma_row() { return lane_id() & 15; }
MOERACLE_FN int wmma_k0() { return WMMA_KEEP == 8 ? (lane_id() >> 4) * 8 : 0; }
MOERACLE_FN int wmma_c_col() { return lane_id() & 15; }
MOERACLE_FN int wmma_c_row(int r) { return WMMA_KEEP == 8 ? (lane_id() >> 4) * 8 + r : 2 * r + (lane_id() >> 4); }

#if defined(MOERACLE_GFX)
template <class D> MOERACLE_FN wmma_acc wmma_16x16x16(const wmma_input& a, const wmma_input& b, const wmma_acc& c) {
  return gfx_wmma<D>(a, b, c);
}
#else
// A's row 2r+half lives in lane 2r+half (and 16 lanes up); B's column is the lane's own. The host's lanes meet once and
// read each other's row, NVIDIA's shuffle: the same values in the same order.
template <class D>
MOERACLE_FN wmma_acc wmma_16x16x16(const wmma_input& a, const wmma_input& b, const wmma_acc& c MOERACLE_SITE) {
  wmma_acc d = c;
#if defined(MOERACLE_HOST)
  const unsigned* rows = moeracle_gather(a.v, file, line);
#define MOERACLE_A(r, i) rows[wmma_c_row(r) * 8 + (i)]
#else
#define MOERACLE_A(r, i) shfl(a.v[i], wmma_c_row(r))
#endif
#pragma unroll
  for (int r = 0; r < 8; r++) {
    float t = c.v[r];
#pragma unroll
    for (int i = 0; i < 8; i++) t = dot2<D>(MOERACLE_A(r, i), b.v[i], t);
    d.v[r] = t;
  }
  return d;
}
#undef MOERACLE_A
#endif

}  // namespace moeracle
#endif

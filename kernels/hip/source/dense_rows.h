// The inner loop of the bf16 / fp16 decode kernels: ROWS activation rows in LDS times COLUMNS weight rows, one wave.
//
// Lane l owns k = step*32*A_CHUNK + l*A_CHUNK + j and adds its products in that order into one total (v_dot2), which
// wave_sum_shr joins: schedule fma/lanes32x<A_CHUNK>.
#ifndef MOERACLE_DENSE_ROWS_H
#define MOERACLE_DENSE_ROWS_H
#include "stage.h"

namespace moeracle {

// sum[r][i]: this lane's total of LDS row r and the weight row at w + row[i], K values each, rows at multiples of 16 bytes.
template <int COLUMNS>
MOERACLE_FN void dense_rows(float (&sum)[ROWS][COLUMNS], const u32x4* lds, const unsigned short* w,
                            const long long (&row)[COLUMNS], int K) {
  constexpr int STEP = MOERACLE_WAVE * A_CHUNK, PIECES = A_CHUNK / 8;
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) sum[r][i] = 0.0f;

  for (int k0 = 0; k0 < K; k0 += STEP * UNRL) {
    u32x4 chunk[UNRL][COLUMNS][PIECES];
#pragma unroll
    for (int u = 0; u < UNRL; u++) {
      const int k = chunk_at(k0 + u * STEP, K).k;
#pragma unroll
      for (int i = 0; i < COLUMNS; i++)
#pragma unroll
        for (int c = 0; c < PIECES; c++) chunk[u][i][c] = load_nt(reinterpret_cast<const u32x4*>(w + row[i] + k) + c);
    }
    LOADS_ISSUED();
#pragma unroll
    for (int u = 0; u < UNRL; u++) {
      const ChunkAt at = chunk_at(k0 + u * STEP, K);
#pragma unroll
      for (int c = 0; c < PIECES; c++) {
        u32x4 a[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) a[r] = lds[r * at.row_pieces + at.piece + c];
#pragma unroll
        for (int i = 0; i < COLUMNS; i++)
#pragma unroll
          for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int j = 0; j < 4; j++) sum[r][i] = dot2<D>(a[r].v[j], chunk[u][i][c].v[j], sum[r][i]);
      }
    }
  }
}

// The same products of one row that is read from memory: this lane's total of x and g, both at multiples of 16 bytes.
MOERACLE_FN float dense_dot(const unsigned short* x, const unsigned short* g, int K) {
  constexpr int STEP = MOERACLE_WAVE * A_CHUNK;
  float sum = 0.0f;
  for (int k = lane_id() * A_CHUNK; k < K; k += STEP) {
#pragma unroll
    for (int c = 0; c < A_CHUNK / 8; c++) {
      const u32x4 a = reinterpret_cast<const u32x4*>(x + k)[c], b = reinterpret_cast<const u32x4*>(g + k)[c];
#pragma unroll
      for (int j = 0; j < 4; j++) sum = dot2<D>(a.v[j], b.v[j], sum);
    }
  }
  return sum;
}

}  // namespace moeracle
#endif

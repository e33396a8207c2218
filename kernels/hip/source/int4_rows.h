// The inner loop of the int4 decode kernels: ROWS activation rows in LDS times YTILE weight rows, one wave.
//
// Lane l owns k = step*32*A_CHUNK + l*A_CHUNK + j. A chunk's products are added in the order of k from +0 (v_dot2), then
// the chunk's sum times its scale is added to the lane's total by one fmaf; the wave's totals are joined by wave_sum_shr.
// As a schedule: fma/lanes32x<A_CHUNK>/fused.  UNRL steps' loads are issued before their products are taken.
#ifndef MOERACLE_INT4_ROWS_H
#define MOERACLE_INT4_ROWS_H
#include "stage.h"

namespace moeracle {

// One expert's weight matrix. Rows are whole 16-byte units apart where A_CHUNK is 32 (8-byte units where it is 16).
struct Int4Matrix {
  const unsigned* words;        // exllama, row n at words + n * word_stride
  const unsigned short* scale;  // D, at scale[n * scale_stride + g * scale_step]
  const void* zero;             // see ZERO in codes.h
  long long word_stride, scale_stride, scale_step, zero_stride, zero_step;
  int N, K, group_shift;  // g = k >> group_shift
};

// A lane's share of one weight row for one step: 16-byte loads where a chunk fills them.
struct Chunk {
  static constexpr int WORDS = A_CHUNK / 8;
  unsigned word[WORDS];
  MOERACLE_FN void load(Chunk& chunk, const unsigned* from) {
#pragma unroll
    for (int i = 0; i < WORDS; i += WORDS % 4 == 0 ? 4 : 2) {
      if (WORDS % 4 == 0) {
        const u32x4 four = load_nt(reinterpret_cast<const u32x4*>(from + i));
#pragma unroll
        for (int j = 0; j < 4; j++) chunk.word[i + j] = four.v[j];
      } else {
        const u32x2 two = load_nt(reinterpret_cast<const u32x2*>(from + i));
        chunk.word[i] = two.v[0];
        chunk.word[i + 1] = two.v[1];
      }
    }
  }
};

// Fill sum[ROWS][YTILE] with this lane's totals of the products of LDS rows and weight rows n0.. (clamped to the last).
MOERACLE_FN void int4_rows(float (&sum)[ROWS][YTILE], const u32x4* lds, const Int4Matrix& w, int n0) {
  constexpr int WORDS = Chunk::WORDS, STEP = MOERACLE_WAVE * A_CHUNK;
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int y = 0; y < YTILE; y++) sum[r][y] = 0.0f;

  for (int k0 = 0; k0 < w.K; k0 += STEP * UNRL) {
    Chunk chunk[UNRL][YTILE];
    unsigned short scale[UNRL][YTILE];
    int zero[UNRL][YTILE];
#pragma unroll
    for (int u = 0; u < UNRL; u++) {
      const int k = chunk_at(k0 + u * STEP, w.K).k;
      const long long g = k >> w.group_shift;
#pragma unroll
      for (int y = 0; y < YTILE; y++) {
        const long long n = n0 + y < w.N ? n0 + y : w.N - 1;
        Chunk::load(chunk[u][y], w.words + n * w.word_stride + k / 8);
        scale[u][y] = w.scale[n * w.scale_stride + g * w.scale_step];
        const long long zero_row = (ZERO == ZERO_RDNA ? n / 8 : n) * w.zero_stride;
        zero[u][y] = zero_word(w.zero, zero_row, g * w.zero_step);
      }
    }
    LOADS_ISSUED();
#pragma unroll
    for (int u = 0; u < UNRL; u++) {
      const ChunkAt at = chunk_at(k0 + u * STEP, w.K);
      LOADS_ISSUED();  // the activations of two steps at once would cost registers
      float part[ROWS][YTILE], sum_a[ROWS];
      Offset offset[YTILE];
#pragma unroll
      for (int y = 0; y < YTILE; y++) offset[y] = Codes<D>::offset(zero_of(zero[u][y], n0 + y));
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        sum_a[r] = 0.0f;
#pragma unroll
        for (int y = 0; y < YTILE; y++) part[r][y] = 0.0f;
      }
#pragma unroll
      for (int c = 0; c < WORDS; c++) {
        u32x4 a[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) a[r] = lds[r * at.row_pieces + at.piece + c];
        if (DECODE == MAGIC) {
#pragma unroll
          for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int j = 0; j < 4; j++) sum_a[r] = dot2<D>(a[r].v[j], Codes<D>::ONES, sum_a[r]);
        }
#pragma unroll
        for (int y = 0; y < YTILE; y++) {
          unsigned b[4];
          Codes<D>::of_word(chunk[u][y].word[c], offset[y], b);
#pragma unroll
          for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int j = 0; j < 4; j++) part[r][y] = dot2<D>(a[r].v[j], b[j], part[r][y]);
        }
      }
#pragma unroll
      for (int y = 0; y < YTILE; y++) {
        const float s = to_float(D{scale[u][y]});
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const float dot = DECODE == MAGIC ? fmaf(-offset[y].minus, sum_a[r], part[r][y]) : part[r][y];
          sum[r][y] = fmaf(dot, s, sum[r][y]);
        }
      }
    }
  }
}

}  // namespace moeracle
#endif

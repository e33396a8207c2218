// int8 lm_head for 1 to 5 rows: y[r, v] = D(sum_k x[r, k] q[v, k] s[v, k/G] + bias[v]), one scale a row or a group.
//
// As the int4 loop: lane l owns k = step*32*A_CHUNK + l*A_CHUNK + j, a chunk's dot starts at +0 and enters the lane's total
// times its scale by one fmaf: schedule fma/lanes32x<A_CHUNK>/fused.  A chunk of 16 codes is one 16-byte load.
#include "stage.h"

extern "C" __global__ __launch_bounds__(WAVES * 32) void int8_gemv(
    const unsigned short* x, const unsigned* codes, const float* scale, const unsigned short* bias, unsigned short* y,
    int has_bias, int V, int K, int group_shift, int blocks, long long x_stride, long long code_stride,
    long long scale_stride, long long scale_step) {
  constexpr int STEP = MOERACLE_WAVE * A_CHUNK, QUADS = A_CHUNK / 16;
  SHARED_DYNAMIC(u32x4, lds);  // ROWS * K / 8
  long long source[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) source[r] = r * x_stride;
  stage_rows(lds, x, source, K);
  __syncthreads();

  for (int v0 = (int(blockIdx.x) * WAVES + wave_id()) * YTILE; v0 < V; v0 += blocks * WAVES * YTILE) {
    float sum[ROWS][YTILE];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int i = 0; i < YTILE; i++) sum[r][i] = 0.0f;

    for (int k0 = 0; k0 < K; k0 += STEP * UNRL) {
      u32x4 chunk[UNRL][YTILE][QUADS];
      float s[UNRL][YTILE];
#pragma unroll
      for (int u = 0; u < UNRL; u++) {
        const int k = chunk_at(k0 + u * STEP, K).k;
#pragma unroll
        for (int i = 0; i < YTILE; i++) {
          const long long v = v0 + i < V ? v0 + i : V - 1;
          const u32x4* from = reinterpret_cast<const u32x4*>(codes + v * code_stride + k / 4);
#pragma unroll
          for (int q = 0; q < QUADS; q++) chunk[u][i][q] = load_nt(from + q);
          s[u][i] = scale[v * scale_stride + (k >> group_shift) * scale_step];
        }
      }
      LOADS_ISSUED();
#pragma unroll
      for (int u = 0; u < UNRL; u++) {
        const ChunkAt at = chunk_at(k0 + u * STEP, K);
        float part[ROWS][YTILE];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
          for (int i = 0; i < YTILE; i++) part[r][i] = 0.0f;
#pragma unroll
        for (int c = 0; c < A_CHUNK / 8; c++) {
          u32x4 a[ROWS];
#pragma unroll
          for (int r = 0; r < ROWS; r++) a[r] = lds[r * at.row_pieces + at.piece + c];
#pragma unroll
          for (int i = 0; i < YTILE; i++) {
            unsigned b[4];
            Codes<D>::of_int8(chunk[u][i][c / 2].v[c % 2 * 2], b);
            Codes<D>::of_int8(chunk[u][i][c / 2].v[c % 2 * 2 + 1], b + 2);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
              for (int j = 0; j < 4; j++) part[r][i] = dot2<D>(a[r].v[j], b[j], part[r][i]);
          }
        }
#pragma unroll
        for (int i = 0; i < YTILE; i++)
#pragma unroll
          for (int r = 0; r < ROWS; r++)
            sum[r][i] = fmaf(part[r][i], s[u][i], sum[r][i]);
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int i = 0; i < YTILE; i++) {
        float total = wave_sum_shr(sum[r][i]);
        if (lane_id() == 31 && v0 + i < V) {
          if (has_bias) total += to_float(D{bias[v0 + i]});
          store_result(y, (long long)r * V + v0 + i, total);
        }
      }
  }
}
MOERACLE_EXPORT(int8_gemv)

// Activation rows into LDS, where every wave of the block reads them again for each weight row.
#ifndef MOERACLE_STAGE_H
#define MOERACLE_STAGE_H
#include "codes.h"

namespace moeracle {

MOERACLE_FN void stage_zeros(u32x4* lds, int K) {
  const int i = int(threadIdx.x);
  if (i < A_CHUNK / 8 && K % (MOERACLE_WAVE * A_CHUNK * UNRL) != 0) lds[ROWS * (K / 8) + i] = u32x4{{0u, 0u, 0u, 0u}};
}

// Copy ROWS rows of K values, all threads of the block; row r comes from x + source[r] or, where that is negative, is 0.
// Rows start at multiples of 16 bytes. Behind them a chunk of zeros, if the last step is not whole. The caller's
// __syncthreads() follows.
MOERACLE_FN void stage_rows(u32x4* lds, const unsigned short* x, const long long source[ROWS], int K) {
  const int pieces = K / 8;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (source[r] < 0) {
      for (int i = int(threadIdx.x); i < pieces; i += WAVES * MOERACLE_WAVE) lds[r * pieces + i] = u32x4{{0u, 0u, 0u, 0u}};
    } else {
      const u32x4* from = reinterpret_cast<const u32x4*>(x + source[r]);
      for (int i = int(threadIdx.x); i < pieces; i += WAVES * MOERACLE_WAVE) lds[r * pieces + i] = from[i];
    }
  }
  stage_zeros(lds, K);
}

// Between a round's loads and its products: the compiler may move neither across, or it would hold loads back to save
// registers.
#if defined(MOERACLE_GFX)
#define LOADS_ISSUED() __builtin_amdgcn_sched_barrier(0)
#else
#define LOADS_ISSUED()
#endif

// A lane's chunk of the step that begins at k0: k of its weights, and the place of its activations in row r of LDS. Beyond
// K it takes the first chunk's weights times zeros: no branch stands between the loads of different steps, so that all of
// them are in flight together. The zeros lie behind the rows (hip.common.lds_bytes says when); a product with one adds +0.
struct ChunkAt {
  int k, piece, row_pieces;
};
MOERACLE_FN ChunkAt chunk_at(int k0, int K) {
  const int k = k0 + lane_id() * A_CHUNK;
  return k < K ? ChunkAt{k, k / 8, K / 8} : ChunkAt{0, ROWS * (K / 8), 0};
}

}  // namespace moeracle
#endif

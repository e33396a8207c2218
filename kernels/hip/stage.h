// Activation rows into LDS, where every wave of the block reads them again for each weight row.
#ifndef MOERACLE_STAGE_H
#define MOERACLE_STAGE_H
#include "codes.h"

namespace moeracle {

// Copy ROWS rows of K values, all threads of the block; row r comes from x + source[r] or, where that is negative, is 0.
// Rows start at multiples of 16 bytes. The caller's __syncthreads() follows.
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
}

}  // namespace moeracle
#endif

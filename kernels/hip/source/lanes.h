// Across the lanes of a wave, and memory. Lane l is threadIdx.x % 32 (blocks are one-dimensional in x, or x a multiple
// of 32). Every lane of the wave must take part; in emulation a lane that does not is a fault with its line.
#ifndef MOERACLE_LANES_H
#define MOERACLE_LANES_H

namespace moeracle {

MOERACLE_FN int lane_id() { return int(threadIdx.x & 31u); }
MOERACLE_FN int wave_id() { return int(threadIdx.x >> 5); }

// What each backend defines (v is float, int or unsigned; bits travel unchanged):
//   shfl_xor(v, mask)        v of lane l ^ mask, 0 <= mask < 32.   gfx: DPP row_xmask below 16, v_permlanex16 for 16,
//                            ds_bpermute for the rest (and where mask is no constant).
//   shfl(v, lane)            v of lane (lane % 32).                gfx: ds_bpermute
//   shfl_first(v)            v of lane 0.                          gfx: v_readfirstlane_b32
//   row_shr<N>(v)            v of lane l-N of the same row of 16; 0 where l%16 < N. 1 <= N <= 15.   gfx: DPP row_shr
//   row_ror<N>(v)            v of lane (l%16 - N) mod 16 of the same row.                           gfx: DPP row_ror
//   wave_ballot(p)                unsigned, bit l set where lane l's p is not zero.
//   __syncthreads()          all threads of the block wait; shared memory written before is seen after.
// The one-addition forms, both operands fp32, one rounding (gfx: one v_add_f32 with DPP or after v_permlanex16):
template <int N> MOERACLE_FN float row_shr_add(float v MOERACLE_SITE) { return row_shr<N>(v MOERACLE_PASS_SITE) + v; }
template <int N> MOERACLE_FN float row_ror_add(float v MOERACLE_SITE) { return row_ror<N>(v MOERACLE_PASS_SITE) + v; }
MOERACLE_FN float xor16_add(float v MOERACLE_SITE) { return shfl_xor(v, 16 MOERACLE_PASS_SITE) + v; }
template <int M> MOERACLE_FN float xor_add(float v MOERACLE_SITE) { return shfl_xor(v, M MOERACLE_PASS_SITE) + v; }

// The sum over a wave as wvSplitK adds it; LANE 31 HOLDS IT (lane 15 the other row first). Row tree, r = 0, 1:
//   row_r = (((a15+a7)+(a11+a3))+((a13+a5)+(a9+a1)))+(((a14+a6)+(a10+a2))+((a12+a4)+(a8+a0)))
//   lane 31: row_1 + row_0.
MOERACLE_FN float wave_sum_shr(float v MOERACLE_SITE) {
  v = row_shr_add<8>(v MOERACLE_PASS_SITE);
  v = row_shr_add<4>(v MOERACLE_PASS_SITE);
  v = row_shr_add<2>(v MOERACLE_PASS_SITE);
  v = row_shr_add<1>(v MOERACLE_PASS_SITE);
  return xor16_add(v MOERACLE_PASS_SITE);
}
// The same tree with rotations: every lane of a row sees a rotation of it, lane 15 and 31 exactly the tree above.
MOERACLE_FN float wave_sum_ror(float v MOERACLE_SITE) {
  v = row_ror_add<8>(v MOERACLE_PASS_SITE);
  v = row_ror_add<4>(v MOERACLE_PASS_SITE);
  v = row_ror_add<2>(v MOERACLE_PASS_SITE);
  v = row_ror_add<1>(v MOERACLE_PASS_SITE);
  return xor16_add(v MOERACLE_PASS_SITE);
}

// Memory: plain pointers and [] work everywhere and are checked in emulation. For streams that are read once:
//   load_nt<T>(p)            T of 4, 8 or 16 bytes (float, unsigned, u32x2, u32x4), p aligned to its size.
//                            gfx: global_load_b32/b64/b128 slc dlc. NVIDIA: ld.global.cs.
//   store_nt(p, v)           likewise.
// Atomics, relaxed, device scope, return the old value; the order among threads is unspecified on GPUs and thread order
// in emulation, so a float sum's bits may differ from backend to backend:
//   atomic_add(int* | unsigned* | float*, v)  atomic_max(int* | unsigned*, v)  atomic_exchange(int* | unsigned*, v)
//   atomic_cas(unsigned* p, expected, desired)    thread_fence()    device scope

}  // namespace moeracle
#endif

// silu times up, as the two ways of storing it round.
#ifndef MOERACLE_SILU_H
#define MOERACLE_SILU_H
#include "codes.h"

namespace moeracle {

MOERACLE_FN float rounded_store(float x) { return to_float(D{(unsigned short)Codes<D>::store_bits(x)}); }

// g * rcp(1 + exp(-g)): a reciprocal, not a division, which is nine instructions. Below -128 the result is -0 already
// and -inf would make it inf * 0; a NaN passes the comparison by.
MOERACLE_FN float silu(float g) { return silu_f32(g < -128.0f ? -128.0f : g); }

MOERACLE_FN unsigned silu_mul_rounded(float gate, float up) {  // D(D(silu(gate)) * up), what separate kernels store
  return Codes<D>::store_bits(rounded_store(silu(gate)) * up);
}
MOERACLE_FN unsigned silu_mul_once(float gate, float up) { return Codes<D>::store_bits(silu(gate) * up); }

}  // namespace moeracle
#endif

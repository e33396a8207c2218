// Numbers: bf16 and fp16 as bits, packed pairs, conversions, dot2. The same code in every backend unless stated.
#ifndef MOERACLE_NUMBERS_H
#define MOERACLE_NUMBERS_H

namespace moeracle {

// 16-bit numbers are their bits. A pair is one 32-bit word, its element 0 in the low half.
struct bf16 {
  unsigned short bits;
  static constexpr bool is_bf16 = true;
};
struct fp16 {
  unsigned short bits;
  static constexpr bool is_bf16 = false;
};

struct alignas(8) u32x2 {
  unsigned v[2];
  __device__ unsigned& operator[](int i) { return v[i]; }
  __device__ const unsigned& operator[](int i) const { return v[i]; }
};
struct alignas(16) u32x4 {
  unsigned v[4];
  __device__ unsigned& operator[](int i) { return v[i]; }
  __device__ const unsigned& operator[](int i) const { return v[i]; }
};
struct alignas(16) f32x4 { float v[4]; };


MOERACLE_FN float bits_to_float(unsigned bits) { return bit_cast<float>(bits); }
MOERACLE_FN unsigned float_to_bits(float x) { return bit_cast<unsigned>(x); }

// ---- bf16: the top half of an fp32 --------------------------------------------------------------------------------
MOERACLE_FN float to_float(bf16 x) { return bits_to_float(unsigned(x.bits) << 16); }  // exact, NaN payload kept

// Round to nearest even, overflow to inf, NaN stays NaN (quiet, top payload bits kept): the full conversion.
MOERACLE_FN unsigned bf16_bits_quiet(float x) {
  unsigned u = float_to_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (u >> 16) | 0x40u;
  return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}
// The same for every x that is not NaN, without the compare; a NaN may become an infinity or -0.
MOERACLE_FN unsigned bf16_bits_finite(float x) {
  unsigned u = float_to_bits(x);
  return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}
// Drop the low 16 bits: toward zero. Equal to rounding exactly where x already is a bf16.
MOERACLE_FN unsigned bf16_bits_truncate(float x) { return float_to_bits(x) >> 16; }

// ---- fp16 -----------------------------------------------------------------------------------------------------------
// widen: exact. narrow: round to nearest even, overflow to inf, subnormals kept, NaN stays NaN. Defined by each backend.
MOERACLE_FN float to_float(fp16 x) { return fp16_bits_to_float(x.bits); }

// ---- one name for both ----------------------------------------------------------------------------------------------
// round to nearest even, NaN quiet
template <class D> MOERACLE_FN D from_float(float x) {
  if constexpr (D::is_bf16)
    return D{(unsigned short)bf16_bits_quiet(x)};
  else
    return D{fp16_bits_from_float(x)};
}
template <class D> MOERACLE_FN float pair_low(unsigned pair) { return to_float(D{(unsigned short)(pair & 0xffffu)}); }
template <class D> MOERACLE_FN float pair_high(unsigned pair) { return to_float(D{(unsigned short)(pair >> 16)}); }
MOERACLE_FN unsigned pack_pair(unsigned low_bits, unsigned high_bits) { return (low_bits & 0xffffu) | (high_bits << 16); }
template <class D> MOERACLE_FN float rounded(float x) { return to_float(from_float<D>(x)); }  // round to D and widen

// ---- packed arithmetic ----------------------------------------------------------------------------------------------
// fp16 pairs, each half with one rounding to fp16: half2_sub a-b, half2_fma a*b+c (gfx v_pk_*; NVIDIA __hsub2, __hfma2).
//   MOERACLE_FN unsigned half2_sub(unsigned a, unsigned b);              defined by each backend
//   MOERACLE_FN unsigned half2_fma(unsigned a, unsigned b, unsigned c);  defined by each backend
//
// dot2: acc + a.low*b.low + a.high*b.high in fp32, in THIS order, each step one rounding:
//   t = fma(a.low, b.low, acc);  return fma(a.high, b.high, t);
// Products of two bf16 or two fp16 are exact in fp32 (bf16: while inside fp32's range), so fma here equals mul then add.
// gfx: one v_dot2_f32_bf16 or v_dot2_f32_f16. AMD's ISA guide gives the same order; that silicon rounds after each
// product has not been verified here, nor what it does with subnormals.
template <class D> MOERACLE_FN float dot2(unsigned a, unsigned b, float acc) {
  if constexpr (D::is_bf16)
    return dot2_f32_bf16(a, b, acc);
  else
    return dot2_f32_f16(a, b, acc);
}

// ---- elementary functions -------------------------------------------------------------------------------------------
//   float fmaf(a, b, c)   one rounding, every backend.
//   float rcp_f32(x)      1/x. Host, NVIDIA: correctly rounded. gfx: v_rcp_f32, within 1 ulp.
//   float exp_f32(x)      e^x. Host, NVIDIA: through fp64, so correctly rounded but for ties closer than fp64 sees.
//                         gfx: v_exp_f32(x * log2 e), a few ulp. Overflow inf, underflow 0, NaN stays.
//   float silu_f32(g)     g * rcp(1 + exp(-g)), roundings in that order.
//   float sigmoid_f32(g)  rcp(1 + exp(-g)).
MOERACLE_FN float sigmoid_f32(float g) { return rcp_f32(1.0f + exp_f32(-g)); }
MOERACLE_FN float silu_f32(float g) { return g * sigmoid_f32(g); }

}  // namespace moeracle
#endif

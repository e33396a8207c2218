// Quantized codes as pairs of the activation dtype, without a compare for NaN: what is decoded here is always finite.
//
// A pair holds the element of lower k in its low half: what v_dot2 takes, and what an exllama word yields.
#ifndef MOERACLE_CODES_H
#define MOERACLE_CODES_H
#include "knobs.h"

namespace moeracle {

// Half to even, for storing a result: an infinity stays one; an arithmetic NaN has its quiet bit set and stays one, since
// the minimum keeps the largest payloads from carrying into the sign. gfx: v_min_u32 where a v_cmp_u_f32 and its masks were.
MOERACLE_FN unsigned bf16_store_bits(float x) {
  unsigned bits = float_to_bits(x), size = bits & 0x7fffffffu;
  size = size < 0x7fff0000u ? size : 0x7fff0000u;
  return ((size + 0x7fffu + ((size >> 16) & 1u)) >> 16) | ((bits >> 16) & 0x8000u);
}
MOERACLE_FN unsigned bf16_pair_finite(float low, float high) {
  return bf16_bits_finite(low) | (bf16_bits_finite(high) << 16);
}
// Four bytes of two words, as v_perm_b32 takes them: selector byte i says which of low's (0..3) or high's (4..7) is byte i.
template <unsigned SELECT> MOERACLE_FN unsigned bytes_of(unsigned high, unsigned low) {
#if defined(MOERACLE_GFX)
  return __builtin_amdgcn_perm(high, low, SELECT);
#else
  constexpr unsigned S0 = SELECT & 7u, S1 = SELECT >> 8 & 7u, S2 = SELECT >> 16 & 7u, S3 = SELECT >> 24 & 7u;
  const unsigned b0 = (S0 < 4 ? low : high) >> 8 * (S0 & 3u) & 0xffu, b1 = (S1 < 4 ? low : high) >> 8 * (S1 & 3u) & 0xffu;
  const unsigned b2 = (S2 < 4 ? low : high) >> 8 * (S2 & 3u) & 0xffu, b3 = (S3 < 4 ? low : high) >> 8 * (S3 & 3u) & 0xffu;
  return b0 | b1 << 8 | b2 << 16 | b3 << 24;
#endif
}
// The upper halves: exact for integers of up to 8 bits, up to one ulp too small for anything else.
MOERACLE_FN unsigned bf16_pair_truncate(float low, float high) {
  return bytes_of<0x07060302u>(float_to_bits(high), float_to_bits(low));
}

// What eight codes of one row and group have subtracted, made once a chunk.
struct Offset {
  float minus;         // bf16: 128 + z
  unsigned low, high;  // fp16: pairs of 1024 + z and of -(64 + z)
};

template <class D> struct Codes;

template <> struct Codes<bf16> {
  static constexpr unsigned ONES = 0x3f803f80u;
  MOERACLE_FN unsigned store_bits(float x) { return bf16_store_bits(x); }
  MOERACLE_FN Offset offset(int z) { return {128.0f + float(z), 0u, 0u}; }

  // 0x4300 is 128 with an ulp of 1, so nibble | 0x4300 is 128 + u. One mask, shifting between: in bf16 a nibble four bits
  // higher reaches into the exponent (u >= 8 would decode to 2(u-8)).
  MOERACLE_FN void of_word(unsigned word, const Offset& o, unsigned out[4]) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const unsigned magic = ((word >> (4 * j)) & 0x000f000fu) | 0x43004300u;
      if (DECODE == MAGIC) {
        out[j] = magic;
      } else {
        const float low = bits_to_float(magic << 16) - o.minus, high = bits_to_float(magic & 0xffff0000u) - o.minus;
        out[j] = DECODE == TRUNCATE ? bf16_pair_truncate(low, high) : bf16_pair_finite(low, high);
      }
    }
  }
  // Four int8: 0x4b000000 | byte is 2^23 + byte; minus 2^23 + 128 leaves the code, of 8 bits, so truncation is exact.
  MOERACLE_FN void of_int8(unsigned word, unsigned out[2]) {
    const unsigned u = word ^ 0x80808080u;
    out[0] = bf16_pair_truncate(bits_to_float(bytes_of<0x07040400u>(0x4b000000u, u)) - 8388736.0f,
                                bits_to_float(bytes_of<0x07040401u>(0x4b000000u, u)) - 8388736.0f);
    out[1] = bf16_pair_truncate(bits_to_float(bytes_of<0x07040402u>(0x4b000000u, u)) - 8388736.0f,
                                bits_to_float(bytes_of<0x07040403u>(0x4b000000u, u)) - 8388736.0f);
  }
};

template <> struct Codes<fp16> {
  static constexpr unsigned ONES = 0x3c003c00u;
  MOERACLE_FN unsigned store_bits(float x) { return fp16_bits_from_float(x); }
  MOERACLE_FN Offset offset(int z) {
    const unsigned z1 = unsigned(z), pair = z1 | (z1 << 16);
    return {0.0f, 0x64006400u + pair, 0xd400d400u + (pair << 4)};  // 1024 has an ulp of 1, 64 one of 1/16
  }

  // 0x6400 is 1024 with an ulp of 1: 1024 + u; or, from the nibble four bits higher, 1024 + 16u, times 1/16 - 64 - z.
  MOERACLE_FN void of_word(unsigned word, const Offset& o, unsigned out[4]) {
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      const unsigned w = word >> (4 * j);
      out[j] = half2_sub((w & 0x000f000fu) | 0x64006400u, o.low);
      out[j + 1] = half2_fma((w & 0x00f000f0u) | 0x64006400u, 0x2c002c00u, o.high);
    }
  }
  // 1024 + (code + 128), minus 1152.
  MOERACLE_FN void of_int8(unsigned word, unsigned out[2]) {
    const unsigned u = word ^ 0x80808080u;
    out[0] = half2_sub(bytes_of<0x04010400u>(0x64u, u), 0x64806480u);
    out[1] = half2_sub(bytes_of<0x04030402u>(0x64u, u), 0x64806480u);
  }
};

// The word that holds the zero point of a weight row and a group, and the zero point in it: loading it and looking at it
// are two functions, so that a kernel can have all its loads under way before it waits for one.
MOERACLE_FN int zero_word(const void* zeros, long long row, long long g) {
  if (ZERO == ZERO_UNPACKED) return static_cast<const unsigned char*>(zeros)[row + g];
  if (ZERO == ZERO_RDNA) return static_cast<const int*>(zeros)[row + g];
  return 8;
}
MOERACLE_FN int zero_of(int word, int n) { return ZERO == ZERO_RDNA ? (word >> (n % 8 * 4)) & 15 : word; }

// y[i] = D(value); with STORE_FP32 y holds fp32 and gets the value itself, for who wants every bit of the accumulator.
MOERACLE_FN void store_result(unsigned short* y, long long i, float value) {
#if STORE_FP32
  reinterpret_cast<float*>(y)[i] = value;
#else
  y[i] = (unsigned short)Codes<D>::store_bits(value);
#endif
}

}  // namespace moeracle
#endif

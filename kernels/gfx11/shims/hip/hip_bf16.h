// What kernels use of <hip/hip_bf16.h>: __hip_bfloat16 and __hip_bfloat162, kept as 16 bits, computed with in fp32.
#pragma once
#include "hip_runtime.h"

struct __hip_bfloat16_raw { unsigned short x; };
MOERACLE_FN unsigned short moeracle_to_bf16(float x) {  // nearest even; a NaN stays one
  unsigned u = __float_as_uint(x);
  return x != x ? (unsigned short)(u >> 16 | 0x40) : (unsigned short)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}
struct __hip_bfloat16 {
  unsigned short data;
  __host__ __device__ __hip_bfloat16() = default;
  __device__ __hip_bfloat16(float x) : data(moeracle_to_bf16(x)) {}
  __device__ __hip_bfloat16(double x) : data(moeracle_to_bf16((float)x)) {}
  __device__ __hip_bfloat16(int x) : data(moeracle_to_bf16((float)x)) {}
  __host__ __device__ __hip_bfloat16(__hip_bfloat16_raw raw) : data(raw.x) {}
  __device__ operator float() const { return __uint_as_float((unsigned)data << 16); }
  __host__ __device__ operator __hip_bfloat16_raw() const { return {data}; }
};
struct __attribute__((aligned(4))) __hip_bfloat162 {
  __hip_bfloat16 x, y;
  __host__ __device__ __hip_bfloat162() = default;
  __host__ __device__ __hip_bfloat162(__hip_bfloat16 a, __hip_bfloat16 b) : x(a), y(b) {}
};
MOERACLE_FN float __bfloat162float(__hip_bfloat16 x) { return (float)x; }
MOERACLE_FN __hip_bfloat16 __float2bfloat16(float x) { return __hip_bfloat16(x); }
MOERACLE_FN __hip_bfloat16 __float2bfloat16_rn(float x) { return __hip_bfloat16(x); }
MOERACLE_FN float2 __bfloat1622float2(__hip_bfloat162 a) { return make_float2(a.x, a.y); }
MOERACLE_FN __hip_bfloat162 __floats2bfloat162_rn(float a, float b) { return __hip_bfloat162(__hip_bfloat16(a), __hip_bfloat16(b)); }
MOERACLE_FN __hip_bfloat162 __float22bfloat162_rn(float2 a) { return __floats2bfloat162_rn(a.x, a.y); }
MOERACLE_FN __hip_bfloat162 __bfloat162bfloat162(__hip_bfloat16 a) { return __hip_bfloat162(a, a); }
MOERACLE_FN __hip_bfloat162 __halves2bfloat162(__hip_bfloat16 a, __hip_bfloat16 b) { return __hip_bfloat162(a, b); }
MOERACLE_FN __hip_bfloat16 __low2bfloat16(__hip_bfloat162 a) { return a.x; }
MOERACLE_FN __hip_bfloat16 __high2bfloat16(__hip_bfloat162 a) { return a.y; }
MOERACLE_FN float __low2float(__hip_bfloat162 a) { return a.x; }
MOERACLE_FN float __high2float(__hip_bfloat162 a) { return a.y; }
MOERACLE_FN unsigned short __bfloat16_as_ushort(__hip_bfloat16 a) { return a.data; }
MOERACLE_FN __hip_bfloat16 __ushort_as_bfloat16(unsigned short a) { return __hip_bfloat16(__hip_bfloat16_raw{a}); }
#define MOERACLE_BF16_OP(NAME, OP)                                                                                       \
  MOERACLE_FN __hip_bfloat16 NAME(__hip_bfloat16 a, __hip_bfloat16 b) { return __hip_bfloat16((float)a OP (float)b); }   \
  MOERACLE_FN __hip_bfloat16 operator OP(__hip_bfloat16 a, __hip_bfloat16 b) { return NAME(a, b); }                      \
  MOERACLE_FN __hip_bfloat16 &operator OP##=(__hip_bfloat16 &a, __hip_bfloat16 b) { return a = NAME(a, b); }             \
  MOERACLE_FN __hip_bfloat162 NAME##2(__hip_bfloat162 a, __hip_bfloat162 b) { return __hip_bfloat162(NAME(a.x, b.x), NAME(a.y, b.y)); } \
  MOERACLE_FN __hip_bfloat162 operator OP(__hip_bfloat162 a, __hip_bfloat162 b) { return NAME##2(a, b); }
MOERACLE_BF16_OP(__hadd, +) MOERACLE_BF16_OP(__hsub, -) MOERACLE_BF16_OP(__hmul, *) MOERACLE_BF16_OP(__hdiv, /)
MOERACLE_FN __hip_bfloat16 __hfma(__hip_bfloat16 a, __hip_bfloat16 b, __hip_bfloat16 c) { return __hip_bfloat16(__builtin_fmaf((float)a, (float)b, (float)c)); }
MOERACLE_FN __hip_bfloat162 __hfma2(__hip_bfloat162 a, __hip_bfloat162 b, __hip_bfloat162 c) { return __hip_bfloat162(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); }

// What kernels use of <hip/hip_fp16.h>: __half and __half2, conversions, arithmetic, fused multiply-add, comparisons.
#pragma once
#include "hip_runtime.h"

struct __half_raw { unsigned short x; };
struct __half {
  _Float16 data;
  __host__ __device__ __half() = default;
  __host__ __device__ __half(_Float16 x) : data(x) {}
  __host__ __device__ __half(float x) : data((_Float16)x) {}
  __host__ __device__ __half(double x) : data((_Float16)x) {}
  __host__ __device__ __half(int x) : data((_Float16)x) {}
  __host__ __device__ __half(unsigned x) : data((_Float16)x) {}
  __device__ __half(__half_raw raw) { __builtin_memcpy(&data, &raw, 2); }
  __host__ __device__ operator float() const { return (float)data; }
  __device__ operator __half_raw() const { __half_raw raw; __builtin_memcpy(&raw, &data, 2); return raw; }
};
typedef _Float16 moeracle_half2 __attribute__((ext_vector_type(2)));
struct __attribute__((aligned(4))) __half2 {
  __half x, y;
  __host__ __device__ __half2() = default;
  __host__ __device__ __half2(__half a, __half b) : x(a), y(b) {}
  __device__ operator moeracle_half2() const { return moeracle_half2{x.data, y.data}; }  // as builtins take it
};
typedef __half half;
typedef __half2 half2;
MOERACLE_FN moeracle_half2 moeracle_pair(__half2 a) { return moeracle_bits<moeracle_half2>(a); }
MOERACLE_FN __half2 moeracle_unpair(moeracle_half2 a) { return moeracle_bits<__half2>(a); }

#define MOERACLE_HALF_OP(NAME, OP)                                                                              \
  MOERACLE_FN __half NAME(__half a, __half b) { return __half((_Float16)(a.data OP b.data)); }                  \
  MOERACLE_FN __half operator OP(__half a, __half b) { return NAME(a, b); }                                     \
  MOERACLE_FN __half &operator OP##=(__half &a, __half b) { return a = NAME(a, b); }                            \
  MOERACLE_FN __half2 NAME##2(__half2 a, __half2 b) { return moeracle_unpair(moeracle_pair(a) OP moeracle_pair(b)); } \
  MOERACLE_FN __half2 operator OP(__half2 a, __half2 b) { return NAME##2(a, b); }                               \
  MOERACLE_FN __half2 &operator OP##=(__half2 &a, __half2 b) { return a = NAME##2(a, b); }
MOERACLE_HALF_OP(__hadd, +) MOERACLE_HALF_OP(__hsub, -) MOERACLE_HALF_OP(__hmul, *) MOERACLE_HALF_OP(__hdiv, /)
#define MOERACLE_HALF_TEST(NAME, OP)                                                                            \
  MOERACLE_FN bool NAME(__half a, __half b) { return a.data OP b.data; }                                        \
  MOERACLE_FN bool operator OP(__half a, __half b) { return a.data OP b.data; }
MOERACLE_HALF_TEST(__heq, ==) MOERACLE_HALF_TEST(__hne, !=) MOERACLE_HALF_TEST(__hlt, <) MOERACLE_HALF_TEST(__hle, <=) MOERACLE_HALF_TEST(__hgt, >) MOERACLE_HALF_TEST(__hge, >=)
MOERACLE_FN __half operator-(__half a) { return __half((_Float16)-a.data); }
MOERACLE_FN __half __hneg(__half a) { return -a; }
MOERACLE_FN __half __habs(__half a) { return __half((_Float16)__builtin_fabsf16(a.data)); }
MOERACLE_FN __half __hmax(__half a, __half b) { return __half((_Float16)__builtin_fmaxf16(a.data, b.data)); }
MOERACLE_FN __half __hmin(__half a, __half b) { return __half((_Float16)__builtin_fminf16(a.data, b.data)); }
MOERACLE_FN __half __hfma(__half a, __half b, __half c) { return __half((_Float16)__builtin_fmaf16(a.data, b.data, c.data)); }
#if __has_builtin(__builtin_elementwise_fma)
MOERACLE_FN __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return moeracle_unpair(__builtin_elementwise_fma(moeracle_pair(a), moeracle_pair(b), moeracle_pair(c))); }
#else  // before clang 17
MOERACLE_FN __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return __half2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); }
#endif
MOERACLE_FN __half __float2half(float x) { return __half((_Float16)x); }
MOERACLE_FN __half __float2half_rn(float x) { return __half((_Float16)x); }
MOERACLE_FN float __half2float(__half x) { return (float)x.data; }
MOERACLE_FN __half2 __halves2half2(__half a, __half b) { return __half2(a, b); }
MOERACLE_FN __half2 __half2half2(__half a) { return __half2(a, a); }
MOERACLE_FN __half2 __float2half2_rn(float x) { return __half2(__half(x), __half(x)); }
MOERACLE_FN __half2 __floats2half2_rn(float a, float b) { return __half2(__half(a), __half(b)); }
MOERACLE_FN __half2 __float22half2_rn(float2 a) { return __half2(__half(a.x), __half(a.y)); }
MOERACLE_FN float2 __half22float2(__half2 a) { return make_float2(a.x, a.y); }
MOERACLE_FN __half __low2half(__half2 a) { return a.x; }
MOERACLE_FN __half __high2half(__half2 a) { return a.y; }
MOERACLE_FN float __low2float(__half2 a) { return a.x; }
MOERACLE_FN float __high2float(__half2 a) { return a.y; }
MOERACLE_FN unsigned short __half_as_ushort(__half a) { return moeracle_bits<unsigned short>(a); }
MOERACLE_FN __half __ushort_as_half(unsigned short a) { return __half(__half_raw{a}); }
MOERACLE_FN __half __int2half_rn(int x) { return __half((_Float16)x); }
MOERACLE_FN int __half2int_rn(__half x) { return (int)__builtin_rintf((float)x.data); }
MOERACLE_FN bool __hisnan(__half x) { return x.data != x.data; }

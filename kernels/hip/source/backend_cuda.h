// Backend 3: NVIDIA through nvcc -x cu -fmad=false. Not tuned: it is here so that one source can be run on a GPU and
// compared with the emulation, so arithmetic follows the host's (correctly rounded), not the fast intrinsics.
#ifndef MOERACLE_BACKEND_CUDA_H
#define MOERACLE_BACKEND_CUDA_H

#include <cuda_fp16.h>

#define MOERACLE_FN static __device__ __forceinline__
#define MOERACLE_SITE
#define MOERACLE_PASS_SITE
#define MOERACLE_EXPORT(name)
#define SHARED(T, name, count) __shared__ T name[count]
#define SHARED_DYNAMIC(T, name) extern __shared__ T name[]

namespace moeracle {

template <class To, class From> MOERACLE_FN To bit_cast(const From& x) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast");
  To y;
  memcpy(&y, &x, sizeof(To));
  return y;
}

// ---- numbers ----------------------------------------------------------------------------------------------------------
MOERACLE_FN float rcp_f32(float x) { return __frcp_rn(x); }
MOERACLE_FN float exp_f32(float x) { return __double2float_rn(::exp(double(x))); }
MOERACLE_FN float fp16_bits_to_float(unsigned short bits) { return __half2float(__ushort_as_half(bits)); }
MOERACLE_FN unsigned short fp16_bits_from_float(float x) { return __half_as_ushort(__float2half_rn(x)); }
MOERACLE_FN unsigned half2_sub(unsigned a, unsigned b) {
  return bit_cast<unsigned>(__hsub2_rn(bit_cast<__half2>(a), bit_cast<__half2>(b)));
}
MOERACLE_FN unsigned half2_fma(unsigned a, unsigned b, unsigned c) {
  return bit_cast<unsigned>(__hfma2(bit_cast<__half2>(a), bit_cast<__half2>(b), bit_cast<__half2>(c)));
}
// Not __hfma2 of bf16 pairs: that rounds to bf16 at each step.
MOERACLE_FN float dot2_f32_bf16(unsigned a, unsigned b, float acc) {
  acc = __fmaf_rn(__uint_as_float(a << 16), __uint_as_float(b << 16), acc);
  return __fmaf_rn(__uint_as_float(a & 0xffff0000u), __uint_as_float(b & 0xffff0000u), acc);
}
MOERACLE_FN float dot2_f32_f16(unsigned a, unsigned b, float acc) {
  acc = __fmaf_rn(fp16_bits_to_float(a & 0xffffu), fp16_bits_to_float(b & 0xffffu), acc);
  return __fmaf_rn(fp16_bits_to_float(a >> 16), fp16_bits_to_float(b >> 16), acc);
}

// ---- lanes ------------------------------------------------------------------------------------------------------------
template <class T> MOERACLE_FN T shfl_xor(T v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
template <class T> MOERACLE_FN T shfl(T v, int lane) { return __shfl_sync(0xffffffffu, v, lane & 31); }
template <class T> MOERACLE_FN T shfl_first(T v) { return __shfl_sync(0xffffffffu, v, 0); }
template <int N, class T> MOERACLE_FN T row_shr(T v) {
  T other = __shfl_up_sync(0xffffffffu, v, N, 16);
  return (threadIdx.x & 15u) >= N ? other : T(0);
}
template <int N, class T> MOERACLE_FN T row_ror(T v) {
  return __shfl_sync(0xffffffffu, v, (int(threadIdx.x) - N) & 15, 16);
}
MOERACLE_FN unsigned wave_ballot(int p) { return __ballot_sync(0xffffffffu, p != 0); }

// ---- memory -----------------------------------------------------------------------------------------------------------
template <int BYTES> struct word_of;
template <> struct word_of<4> { typedef unsigned type; };
template <> struct word_of<8> { typedef uint2 type; };
template <> struct word_of<16> { typedef uint4 type; };
template <class T> MOERACLE_FN T load_nt(const T* p) {
  return bit_cast<T>(__ldcs((const typename word_of<sizeof(T)>::type*)p));
}
template <class T> MOERACLE_FN void store_nt(T* p, T v) {
  typedef typename word_of<sizeof(T)>::type word;
  __stcs((word*)p, bit_cast<word>(v));
}
template <class T> MOERACLE_FN T atomic_add(T* p, T v) { return atomicAdd(p, v); }
template <class T> MOERACLE_FN T atomic_max(T* p, T v) { return atomicMax(p, v); }
template <class T> MOERACLE_FN T atomic_exchange(T* p, T v) { return atomicExch(p, v); }
MOERACLE_FN unsigned atomic_cas(unsigned* p, unsigned expected, unsigned desired) {
  return atomicCAS(p, expected, desired);
}
MOERACLE_FN void thread_fence() { __threadfence(); }

}  // namespace moeracle
#endif

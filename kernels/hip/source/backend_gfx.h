// Backend 1: gfx11 and gfx12 machine code through clang -x hip, with or without ROCm's own headers.
#ifndef MOERACLE_BACKEND_GFX_H
#define MOERACLE_BACKEND_GFX_H

#pragma clang fp contract(off)

#ifndef __global__
#define __global__ __attribute__((global))
#endif
#ifndef __device__
#define __device__ __attribute__((device))
#endif
#ifndef __shared__
#define __shared__ __attribute__((shared))
#endif
#undef __launch_bounds__
#define __launch_bounds__(threads) __attribute__((amdgpu_flat_work_group_size(1, threads)))

#define MOERACLE_FN static __device__ __attribute__((always_inline)) inline
#define MOERACLE_SITE
#define MOERACLE_PASS_SITE
#define MOERACLE_EXPORT(name)
#define SHARED(T, name, count) __shared__ T name[count]
#define SHARED_DYNAMIC(T, name) extern __shared__ T name[]

namespace moeracle {

template <class To, class From> MOERACLE_FN To bit_cast(const From& x) { return __builtin_bit_cast(To, x); }

struct dim { unsigned x, y, z; };
MOERACLE_FN dim thread_index() {
  return {__builtin_amdgcn_workitem_id_x(), __builtin_amdgcn_workitem_id_y(), __builtin_amdgcn_workitem_id_z()};
}
MOERACLE_FN dim block_index() {
  return {__builtin_amdgcn_workgroup_id_x(), __builtin_amdgcn_workgroup_id_y(), __builtin_amdgcn_workgroup_id_z()};
}
MOERACLE_FN dim block_size() {
  return {__builtin_amdgcn_workgroup_size_x(), __builtin_amdgcn_workgroup_size_y(), __builtin_amdgcn_workgroup_size_z()};
}
MOERACLE_FN dim grid_size() {  // the dispatch packet holds threads, not blocks
  return {__builtin_amdgcn_grid_size_x() / __builtin_amdgcn_workgroup_size_x(),
          __builtin_amdgcn_grid_size_y() / __builtin_amdgcn_workgroup_size_y(),
          __builtin_amdgcn_grid_size_z() / __builtin_amdgcn_workgroup_size_z()};
}

// ---- numbers ----------------------------------------------------------------------------------------------------------
typedef _Float16 f16x2 __attribute__((ext_vector_type(2)));
#if __clang_major__ >= 19
typedef __bf16 bf16x2 __attribute__((ext_vector_type(2)));
#else
typedef short bf16x2 __attribute__((ext_vector_type(2)));
#endif

MOERACLE_FN float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MOERACLE_FN float rcp_f32(float x) { return __builtin_amdgcn_rcpf(x); }
MOERACLE_FN float exp2_f32(float x) {
#if __has_builtin(__builtin_amdgcn_exp2f)
  return __builtin_amdgcn_exp2f(x);
#else  // clang 16
  float y;
  __asm__("v_exp_f32 %0, %1" : "=v"(y) : "v"(x));
  return y;
#endif
}
MOERACLE_FN float exp_f32(float x) { return exp2_f32(x * 1.44269504088896340736f); }
MOERACLE_FN float fp16_bits_to_float(unsigned short bits) { return float(bit_cast<_Float16>(bits)); }
MOERACLE_FN unsigned short fp16_bits_from_float(float x) { return bit_cast<unsigned short>(_Float16(x)); }
MOERACLE_FN unsigned half2_sub(unsigned a, unsigned b) {
  return bit_cast<unsigned>(bit_cast<f16x2>(a) - bit_cast<f16x2>(b));
}
MOERACLE_FN unsigned half2_fma(unsigned a, unsigned b, unsigned c) {
#if __has_builtin(__builtin_elementwise_fma)
  return bit_cast<unsigned>(__builtin_elementwise_fma(bit_cast<f16x2>(a), bit_cast<f16x2>(b), bit_cast<f16x2>(c)));
#else  // before clang 17
  unsigned y;
  __asm__("v_pk_fma_f16 %0, %1, %2, %3" : "=v"(y) : "v"(a), "v"(b), "v"(c));
  return y;
#endif
}
MOERACLE_FN float dot2_f32_bf16(unsigned a, unsigned b, float acc) {
  return __builtin_amdgcn_fdot2_f32_bf16(bit_cast<bf16x2>(a), bit_cast<bf16x2>(b), acc, false);
}
MOERACLE_FN float dot2_f32_f16(unsigned a, unsigned b, float acc) {
  return __builtin_amdgcn_fdot2(bit_cast<f16x2>(a), bit_cast<f16x2>(b), acc, false);
}

// ---- lanes ------------------------------------------------------------------------------------------------------------
constexpr int DPP_ROW_SHR = 0x110, DPP_ROW_ROR = 0x120, DPP_ROW_XMASK = 0x160;

// bound_ctrl true: a lane that the pattern takes from outside its row gives 0.
template <int CTRL> MOERACLE_FN unsigned dpp(unsigned v) {
  return (unsigned)__builtin_amdgcn_update_dpp(0, (int)v, CTRL, 0xf, 0xf, true);
}
template <int CTRL> MOERACLE_FN float dpp(float v) { return bit_cast<float>(dpp<CTRL>(bit_cast<unsigned>(v))); }
template <int CTRL> MOERACLE_FN int dpp(int v) { return (int)dpp<CTRL>((unsigned)v); }
template <int N, class T> MOERACLE_FN T row_shr(T v) { return dpp<DPP_ROW_SHR + N>(v); }
template <int N, class T> MOERACLE_FN T row_ror(T v) { return dpp<DPP_ROW_ROR + N>(v); }

MOERACLE_FN unsigned bpermute(unsigned v, int lane) {
  return (unsigned)__builtin_amdgcn_ds_bpermute((lane & 31) << 2, (int)v);
}
MOERACLE_FN unsigned xor_bits(unsigned v, int mask) {
  if (__builtin_constant_p(mask)) {
    if (mask == 16) return __builtin_amdgcn_permlanex16(v, v, 0x76543210u, 0xfedcba98u, false, false);
    if (mask == 1) return dpp<DPP_ROW_XMASK + 1>(v);
    if (mask == 2) return dpp<DPP_ROW_XMASK + 2>(v);
    if (mask == 4) return dpp<DPP_ROW_XMASK + 4>(v);
    if (mask == 8) return dpp<DPP_ROW_XMASK + 8>(v);
  }
  int lane = (int)__builtin_amdgcn_mbcnt_lo(~0u, 0u);
  return bpermute(v, lane ^ mask);
}
template <class T> MOERACLE_FN T shfl_xor(T v, int mask) { return bit_cast<T>(xor_bits(bit_cast<unsigned>(v), mask)); }
template <class T> MOERACLE_FN T shfl(T v, int lane) { return bit_cast<T>(bpermute(bit_cast<unsigned>(v), lane)); }
template <class T> MOERACLE_FN T shfl_first(T v) {
  return bit_cast<T>(__builtin_amdgcn_readfirstlane(bit_cast<int>(v)));
}
MOERACLE_FN unsigned wave_ballot(int p) { return __builtin_amdgcn_ballot_w32(p != 0); }
MOERACLE_FN void block_barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

// ---- memory -----------------------------------------------------------------------------------------------------------
template <int BYTES> struct word_of;
template <> struct word_of<4> { typedef unsigned type; };
template <> struct word_of<8> { typedef unsigned type __attribute__((ext_vector_type(2))); };
template <> struct word_of<16> { typedef unsigned type __attribute__((ext_vector_type(4))); };

template <class T> MOERACLE_FN T load_nt(const T* p) {
  typedef typename word_of<sizeof(T)>::type word;
  return bit_cast<T>(__builtin_nontemporal_load((const word*)p));
}
template <class T> MOERACLE_FN void store_nt(T* p, T v) {
  typedef typename word_of<sizeof(T)>::type word;
  __builtin_nontemporal_store(bit_cast<word>(v), (word*)p);
}
template <class T> MOERACLE_FN T atomic_add(T* p, T v) {
  return __hip_atomic_fetch_add(p, v, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
template <class T> MOERACLE_FN T atomic_max(T* p, T v) {
  return __hip_atomic_fetch_max(p, v, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
template <class T> MOERACLE_FN T atomic_exchange(T* p, T v) {
  return __hip_atomic_exchange(p, v, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
}
MOERACLE_FN unsigned atomic_cas(unsigned* p, unsigned expected, unsigned desired) {
  __hip_atomic_compare_exchange_strong(p, &expected, desired, __ATOMIC_RELAXED, __ATOMIC_RELAXED,
                                       __HIP_MEMORY_SCOPE_AGENT);
  return expected;
}
MOERACLE_FN void thread_fence() { __builtin_amdgcn_fence(__ATOMIC_SEQ_CST, "agent"); }

// ---- matrix fragments -------------------------------------------------------------------------------------------------
typedef float f32x8 __attribute__((ext_vector_type(8)));
#if defined(__GFX12__)
typedef short s16_in __attribute__((ext_vector_type(8)));
typedef _Float16 f16_in __attribute__((ext_vector_type(8)));
#define MOERACLE_WMMA_BF16 __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32_gfx12
#define MOERACLE_WMMA_F16 __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12
#else
typedef short s16_in __attribute__((ext_vector_type(16)));
typedef _Float16 f16_in __attribute__((ext_vector_type(16)));
#define MOERACLE_WMMA_BF16 __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32
#define MOERACLE_WMMA_F16 __builtin_amdgcn_wmma_f32_16x16x16_f16_w32
#endif
template <class D, class In, class Acc> MOERACLE_FN Acc gfx_wmma(const In& a, const In& b, const Acc& c) {
  f32x8 d;
  if constexpr (sizeof(D) == 2 && D::is_bf16)
    d = MOERACLE_WMMA_BF16(bit_cast<s16_in>(a), bit_cast<s16_in>(b), bit_cast<f32x8>(c));
  else
    d = MOERACLE_WMMA_F16(bit_cast<f16_in>(a), bit_cast<f16_in>(b), bit_cast<f32x8>(c));
  return bit_cast<Acc>(d);
}

}  // namespace moeracle

#define threadIdx moeracle::thread_index()
#define blockIdx moeracle::block_index()
#define blockDim moeracle::block_size()
#define gridDim moeracle::grid_size()
#define __syncthreads() moeracle::block_barrier()

#endif

// Each primitive of kernels/hip alone, so that test_primitives_hip.py can hold it against numpy.
#include "moeracle_hip.h"

#define MAP(name, In, Out, expression)                                                          \
  extern "C" __global__ __launch_bounds__(256) void name(const In* in, Out* out, int n) {      \
    const int i = int(blockIdx.x * 256 + threadIdx.x);                                          \
    if (i < n) {                                                                                \
      const In x = in[i];                                                                       \
      out[i] = expression;                                                                      \
    }                                                                                           \
  }                                                                                             \
  MOERACLE_EXPORT(name)

MAP(bf16_quiet, float, unsigned short, (unsigned short)bf16_bits_quiet(x))
MAP(bf16_finite, float, unsigned short, (unsigned short)bf16_bits_finite(x))
MAP(bf16_truncate, float, unsigned short, (unsigned short)bf16_bits_truncate(x))
MAP(bf16_widen, unsigned short, float, to_float(bf16{x}))
MAP(fp16_widen, unsigned short, float, to_float(fp16{x}))
MAP(fp16_narrow, float, unsigned short, from_float<fp16>(x).bits)
MAP(rounded_bf16, float, float, rounded<bf16>(x))
MAP(rcp, float, float, rcp_f32(x))
MAP(exponential, float, float, exp_f32(x))
MAP(sigmoid, float, float, sigmoid_f32(x))
MAP(silu, float, float, silu_f32(x))

#define MAP3(name, In, Out, expression)                                                                     \
  extern "C" __global__ __launch_bounds__(256) void name(const In* pa, const In* pb, const Out* pc, Out* out, int n) { \
    const int i = int(blockIdx.x * 256 + threadIdx.x);                                                       \
    if (i < n) {                                                                                             \
      const In a = pa[i], b = pb[i];                                                                         \
      const Out c = pc[i];                                                                                   \
      out[i] = expression;                                                                                   \
    }                                                                                                        \
  }                                                                                                          \
  MOERACLE_EXPORT(name)

MAP3(fused, float, float, fmaf(a, b, c))
MAP3(unfused, float, float, a * b + c)
MAP3(dot_bf16, unsigned, float, dot2<bf16>(a, b, c))
MAP3(dot_fp16, unsigned, float, dot2<fp16>(a, b, c))
MAP3(fp16_pair_sub, unsigned, unsigned, half2_sub(a, b) + 0 * c)
MAP3(fp16_pair_fma, unsigned, unsigned, half2_fma(a, b, c))

extern "C" __global__ __launch_bounds__(64) void lanes(const float* in, float* out, int n) {
  const float v = in[threadIdx.x];
  float* to = out + threadIdx.x;
  const int wave = 64;
  to[0 * wave] = shfl_xor(v, 1);
  to[1 * wave] = shfl_xor(v, 16);
  to[2 * wave] = shfl_xor(v, 21);
  to[3 * wave] = shfl(v, lane_id() * 7 + n);
  to[4 * wave] = shfl_first(v);
  to[5 * wave] = row_shr<1>(v);
  to[6 * wave] = row_shr<8>(v);
  to[7 * wave] = row_ror<1>(v);
  to[8 * wave] = row_ror<12>(v);
  to[9 * wave] = row_shr_add<4>(v);
  to[10 * wave] = row_ror_add<2>(v);
  to[11 * wave] = xor16_add(v);
  to[12 * wave] = wave_sum_shr(v);
  to[13 * wave] = wave_sum_ror(v);
  to[14 * wave] = bits_to_float(wave_ballot(v > 0));
  to[15 * wave] = bits_to_float(unsigned(shfl_xor(int(lane_id() * 3 - 50), 2)));
  to[16 * wave] = float(lane_id());
  to[17 * wave] = float(wave_id());
}
MOERACLE_EXPORT(lanes)

template <class D> __device__ void matrix(const unsigned short* a, const unsigned short* b, const float* c, float* d) {
  wmma_input fa, fb;
  wmma_acc acc;
  for (int i = 0; i < WMMA_KEEP / 2; i++) {
    const int at = wmma_row() * 16 + wmma_k0() + 2 * i;
    fa.v[i] = pack_pair(a[at], a[at + 1]);
    fb.v[i] = pack_pair(b[at], b[at + 1]);
  }
  for (int r = 0; r < 8; r++) acc.v[r] = c[wmma_c_row(r) * 16 + wmma_c_col()];
  acc = wmma_16x16x16<D>(fa, fb, acc);
  for (int r = 0; r < 8; r++) d[wmma_c_row(r) * 16 + wmma_c_col()] = acc.v[r];
}
extern "C" __global__ __launch_bounds__(32) void wmma_bf16(const unsigned short* a, const unsigned short* b,
                                                           const float* c, float* d) {
  matrix<bf16>(a, b, c, d);
}
MOERACLE_EXPORT(wmma_bf16)
extern "C" __global__ __launch_bounds__(32) void wmma_fp16(const unsigned short* a, const unsigned short* b,
                                                           const float* c, float* d) {
  matrix<fp16>(a, b, c, d);
}
MOERACLE_EXPORT(wmma_fp16)

// Two in a row: a lane that is ahead must not change what the others still read.
extern "C" __global__ __launch_bounds__(32) void wmma_chain(const unsigned short* a, const unsigned short* b, float* d) {
  wmma_input fa, fb;
  wmma_acc acc = {};
  for (int i = 0; i < WMMA_KEEP / 2; i++) {
    const int at = wmma_row() * 16 + wmma_k0() + 2 * i;
    fa.v[i] = pack_pair(a[at], a[at + 1]);
    fb.v[i] = pack_pair(b[at], b[at + 1]);
  }
  for (int i = 0; i < 3; i++) acc = wmma_16x16x16<bf16>(i == 1 ? fb : fa, i == 1 ? fa : fb, acc);
  for (int r = 0; r < 8; r++) d[wmma_c_row(r) * 16 + wmma_c_col()] = acc.v[r];
}
MOERACLE_EXPORT(wmma_chain)

extern "C" __global__ __launch_bounds__(64) void wide(const unsigned* in, unsigned* out) {
  const int t = int(threadIdx.x);
  store_nt(out + t, load_nt(in + t));
  store_nt((u32x2*)(out + 64) + t, load_nt((const u32x2*)(in + 64) + t));
  store_nt((u32x4*)(out + 192) + t, load_nt((const u32x4*)(in + 192) + t));
}
MOERACLE_EXPORT(wide)

extern "C" __global__ __launch_bounds__(64) void atomics(int* sum, float* total, int* most, unsigned* last,
                                                         unsigned* first, const float* in) {
  SHARED(int, block_sum, 1);
  const int id = int(blockIdx.x * 64 + threadIdx.x);
  if (threadIdx.x == 0) block_sum[0] = 0;
  __syncthreads();
  atomic_add(&block_sum[0], 1);
  __syncthreads();
  if (threadIdx.x == 0) atomic_add(sum, block_sum[0]);
  atomic_add(total, in[id]);
  atomic_max(most, id ^ 37);
  atomic_exchange(last, unsigned(id));
  atomic_cas(first, 0u, unsigned(id + 1));
  thread_fence();
}
MOERACLE_EXPORT(atomics)

// Every thread's ids, and a sum through shared memory that needs both barriers.
extern "C" __global__ void places(int* out, int width) {
  SHARED_DYNAMIC(int, slots);
  const int threads = int(blockDim.x * blockDim.y * blockDim.z);
  const int t = int((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
  const int b = int((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
  slots[t] = t + 1;
  __syncthreads();
  int sum = 0;
  for (int i = 0; i < threads; i++) sum += slots[i];
  __syncthreads();
  slots[t] = 0;
  int* mine = out + (b * threads + t) * width;
  mine[0] = int(threadIdx.x);
  mine[1] = int(threadIdx.y);
  mine[2] = int(threadIdx.z);
  mine[3] = b;
  mine[4] = int(gridDim.x * 100 + gridDim.y * 10 + gridDim.z);
  mine[5] = sum;
}
MOERACLE_EXPORT(places)

extern "C" __global__ void numbers(int i, unsigned u, float f, long long l, float* out) {
  if (threadIdx.x == 0) {
    out[0] = float(i);
    out[1] = float(u);
    out[2] = f;
    out[3] = float(l >> 32);
  }
}
MOERACLE_EXPORT(numbers)

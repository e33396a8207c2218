// Kernels in the style of shipped ones, and planted defects beside them; what the tests of moeracle.gfx11 load.
#include <hip/hip_bf16.h>
#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>

// ---- a GEMV of int4 codes, K in parts that are added by DPP within a wave and through LDS between waves ----
template <class T> __device__ float widened(T x) { return (float)x; }
template <int CONTROL> __device__ float from_row(float x) {
  return __builtin_bit_cast(float, __builtin_amdgcn_update_dpp(0, __builtin_bit_cast(int, x), CONTROL, 15, 15, true));
}
__device__ float wave_sum(float x) {
  x += from_row<0x128>(x), x += from_row<0x124>(x), x += from_row<0x122>(x), x += from_row<0x121>(x);  // row_ror 8 4 2 1
  return x + __builtin_bit_cast(float, __builtin_amdgcn_permlanex16(0, __builtin_bit_cast(int, x), 0, 0, true, false));
}
template <class T, int WAVES> __global__ __launch_bounds__(WAVES * 32) void gemv_int4(
    const T* x, const unsigned* w, const T* scale, T* out, int N, int K, int G) {
  __shared__ float part[WAVES];
  int n = blockIdx.x, lane = threadIdx.x % 32, wave = threadIdx.x / 32;
  float sum = 0;
  for (int k = threadIdx.x * 8; k < K; k += WAVES * 32 * 8) {
    unsigned codes = w[(n * K + k) / 8];
    float s = widened(scale[n * (K / G) + k / G]);
    for (int i = 0; i < 8; i++) sum = fmaf(((float)(codes >> 4 * i & 15) - 8.0f) * s, widened(x[k + i]), sum);
  }
  sum = wave_sum(sum);
  if (lane == 0) part[wave] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = part[0];
    for (int i = 1; i < WAVES; i++) total += part[i];
    out[n] = T(total);
  }
}

// ---- split K over workgroups: partial sums in fp32, the last workgroup of a column (by its ticket) adds them in order ----
__global__ void split_k_tickets(const float* x, const float* w, float* partial, unsigned* tickets, float* out, int N, int K) {
  __shared__ bool last;
  int n = blockIdx.x, part = blockIdx.y, parts = gridDim.y, per = K / parts;
  float sum = 0;
  for (int k = threadIdx.x; k < per; k += 32) sum = fmaf(w[n * K + part * per + k], x[part * per + k], sum);
  sum = wave_sum(sum);
  if (threadIdx.x == 0) {
    partial[n * parts + part] = sum;
    __threadfence();
    last = atomicAdd(&tickets[n], 1u) == (unsigned)parts - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    float total = 0;
    for (int i = 0; i < parts; i++) total += partial[n * parts + i];
    out[n] = total;
  }
}

// ---- defect A: each part rounded to T and added in T by a 64-bit compare-and-swap, in whatever order they come ----
template <class T> __global__ void split_k_swaps(const T* x, const T* w, T* out, int N, int K) {
  int n = blockIdx.x * 4, part = blockIdx.y, per = K / gridDim.y;
  float sum[4] = {0, 0, 0, 0};
  for (int k = threadIdx.x; k < per; k += 32)
    for (int i = 0; i < 4; i++) sum[i] = fmaf(widened(w[(n + i) * K + part * per + k]), widened(x[part * per + k]), sum[i]);
  for (int i = 0; i < 4; i++) sum[i] = wave_sum(sum[i]);
  if (threadIdx.x) return;
  T add[4] = {T(sum[0]), T(sum[1]), T(sum[2]), T(sum[3])};
  unsigned long long* place = (unsigned long long*)(out + n);
  for (unsigned long long old = *place, seen;; old = seen) {
    T now[4];
    __builtin_memcpy(now, &old, 8);
    for (int i = 0; i < 4; i++) now[i] = now[i] + add[i];
    unsigned long long next;
    __builtin_memcpy(&next, now, 8);
    seen = atomicCAS(place, old, next);
    if (seen == old) break;
  }
}

// ---- defect B: a float handed to a builtin that takes an int: the wave's partial sums lose their fractions ----
__global__ void sums_truncated(const float* x, float* out, int K) {
  float sum = 0;
  for (int k = threadIdx.x; k < K; k += 32) sum += x[blockIdx.x * K + k];
  sum += (float)__builtin_amdgcn_mov_dpp((int)sum, 0x121, 15, 15, true);
  out[blockIdx.x * 32 + threadIdx.x] = sum;
}

// ---- mxfp4 by whole-number dot products: codes to signed bytes, four products at once ----
__device__ int doubled(unsigned code) {  // twice the value of e2m1
  int m = code & 7, value = m < 5 ? (m < 2 ? m : m) : m == 5 ? 6 : m == 6 ? 8 : 12;
  return code & 8 ? -value : value;
}
__global__ void mxfp4_dot4(const unsigned* w, const unsigned char* exponents, const int* x, float* out, int K) {
  int n = blockIdx.x;
  float sum = 0;
  for (int block = threadIdx.x; block < K / 32; block += 32) {
    int whole = 0;
    for (int i = 0; i < 8; i++) {
      unsigned half = w[n * K / 8 + block * 4 + i / 2] >> 16 * (i % 2), bytes = 0;
      for (int j = 0; j < 4; j++) bytes |= (unsigned)(unsigned char)doubled(half >> 4 * j & 15) << 8 * j;
      whole = __builtin_amdgcn_sudot4(true, (int)bytes, true, x[block * 8 + i], whole, false);
    }
    sum = fmaf((float)whole, __uint_as_float((unsigned)exponents[n * (K / 32) + block] << 23), sum);
  }
  out[n * 32 + threadIdx.x] = sum * 0.5f;
}

// ---- a WMMA tile: D = A B, 16 x 16, K in steps of 16 ----
typedef _Float16 half16 __attribute__((ext_vector_type(16)));
typedef float float8 __attribute__((ext_vector_type(8)));
__global__ void wmma_tile(const __half* a, const __half* b, float* d, int K) {  // a [16, K], b [16, K] (rows are columns of B)
  int lane = threadIdx.x, row = lane % 16;
  float8 acc = {};
  for (int k = 0; k < K; k += 16) {
    half16 left = *(const half16*)(a + row * K + k), right = *(const half16*)(b + row * K + k);
    acc = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(left, right, acc);
  }
  for (int r = 0; r < 8; r++) d[(2 * r + lane / 16) * 16 + row] = acc[r];
}

// ---- values that live in scratch, and arithmetic with several instructions: division, fp64, 64 bits ----
__global__ void scratch_sort(const int* in, int* out, int count) {
  int held[200];
  for (int i = 0; i < count; i++) held[i] = in[threadIdx.x * 32 + i];
  for (int i = 1; i < count; i++)
    for (int j = i; j > 0 && held[j - 1] > held[j]; j--) { int t = held[j]; held[j] = held[j - 1], held[j - 1] = t; }
  for (int i = 0; i < count; i++) out[threadIdx.x * 32 + i] = held[i];
}
__global__ void arithmetic(const float* a, const float* b, float* quotient, double* wide, long long* whole, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  quotient[i] = a[i] / b[i];
  wide[i] = (double)a[i] / (double)b[i] + __builtin_sqrt((double)a[i] * (double)a[i]);
  long long x = __float_as_int(a[i]), y = __float_as_int(b[i]) | 1;
  whole[i] = x * 0x123456789abcdefll / y + x % y;
}
__device__ __noinline__ float called(float x, int depth) { return depth ? x * 1.5f + called(x, depth - 1) : x; }
__global__ void calls(const float* x, float* out) { out[threadIdx.x] = called(x[threadIdx.x], 3); }

// ---- what a GPU leaves undefined ----
__global__ void reads_unwritten_lds(float* out) {
  __shared__ float box[64];
  if (threadIdx.x < 16) box[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = box[threadIdx.x];  // LINE unwritten
}
__global__ void races(float* out) {
  __shared__ float box[64];
  box[threadIdx.x] = 0;
  __syncthreads();
  box[threadIdx.x] = threadIdx.x;  // LINE race
  out[threadIdx.x] = box[63 - threadIdx.x];
}
__global__ void past_the_end(float* out, int n) {
  if ((int)threadIdx.x <= n) out[threadIdx.x] = 1;  // LINE past
}
__global__ void unwritten_register(float* out) {
  float x;
  asm volatile("v_mov_b32 %0, v77" : "=v"(x));  // LINE register
  out[threadIdx.x] = x;
}
__global__ void never_ends(int* out) {
  while (__hip_atomic_load(out, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT) == 0) {}
}
__global__ void empty_here(float* out) {
#ifdef __gfx90a__
  out[0] = 1;
#endif
}

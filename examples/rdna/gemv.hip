// A W4A16 GEMV in the style of shipped RDNA3 kernels: a wave a column, eight codes a lane, sums joined across lanes by DPP.
#include <hip/hip_bf16.h>
#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>

template <int CONTROL> __device__ float moved(float x) {
  return __builtin_bit_cast(float, __builtin_amdgcn_mov_dpp(__builtin_bit_cast(int, x), CONTROL, 15, 15, true));
}
template <int CONTROL> __device__ float moved_wrongly(float x) {
  return (float)__builtin_amdgcn_mov_dpp((int)x, CONTROL, 15, 15, true);
}
__device__ float other_row(float x) {
#ifdef PERMLANE  // clang up to 19 moves the instruction into the branch of one lane, behind which it reads what no lane wrote
  return __builtin_bit_cast(float, __builtin_amdgcn_permlanex16(0, __builtin_bit_cast(int, x), 0x76543210, 0xfedcba98, true, false));
#else
  return __shfl_xor(x, 16);
#endif
}
template <int CONTROL> __device__ float moved_as_shipped(float x) {  // clang up to 19 makes an int of the float
  return __builtin_amdgcn_mov_dpp(x, CONTROL, 15, 15, true);
}
#if defined(TRUNCATED)  // a planted defect, for the page docs/gfx11.md
#define MOVED moved_wrongly
#elif defined(AS_SHIPPED)
#define MOVED moved_as_shipped
#else
#define MOVED moved
#endif

template <class T> __device__ float dot(const T* x, const unsigned* w, const T* scale, int first, int end, int G) {
  float sum = 0;
  for (int k = first + threadIdx.x * 8; k < end; k += 256) {
    unsigned codes = w[k / 8];
    float s = (float)scale[k / G];
    for (int i = 0; i < 8; i++) sum = fmaf((float)x[k + i], ((float)(codes >> 4 * i & 15) - 8.0f) * s, sum);
  }
  sum += MOVED<0x128>(sum);  // row_ror by 8, 4, 2, 1
  sum += MOVED<0x124>(sum);
  sum += MOVED<0x122>(sum);
  sum += MOVED<0x121>(sum);
  return sum + other_row(sum);
}

// grid (N, T), 32 threads
template <class T> __global__ void gemv(const T* x, const unsigned* w, const T* scale, T* out, int N, int K, int G) {
  int n = blockIdx.x, t = blockIdx.y;
  float sum = dot(x + t * K, w + n * (K / 8), scale + n * (K / G), 0, K, G);
  if (threadIdx.x == 0) out[t * N + n] = T(sum);
}

// grid (N / 4, T, parts of K): a part's sum is rounded to T and added in T by a 64-bit compare-and-swap on four columns
template <class T> __global__ void gemv_split(const T* x, const unsigned* w, const T* scale, T* out, int N, int K, int G, int part) {
  int n = blockIdx.x * 4, t = blockIdx.y, first = blockIdx.z * part;
  T add[4];
  for (int i = 0; i < 4; i++)
    add[i] = T(dot(x + t * K, w + (n + i) * (K / 8), scale + (n + i) * (K / G), first, min(first + part, K), G));
  if (threadIdx.x) return;
  unsigned long long* place = (unsigned long long*)(out + t * N + n);
  for (unsigned long long old = *place, seen;; old = seen) {
    T now[4];
    __builtin_memcpy(now, &old, 8);
    for (int i = 0; i < 4; i++) now[i] += add[i];
    unsigned long long next;
    __builtin_memcpy(&next, now, 8);
    seen = atomicCAS(place, old, next);
    if (seen == old) break;
  }
}

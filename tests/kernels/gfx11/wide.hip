// One of nearly everything that clang makes of whole numbers, floats, atomics and LDS: scanned, so that each has a model.
#include <hip/hip_bf16.h>
#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>
typedef _Float16 h2 __attribute__((ext_vector_type(2)));
typedef short s2 __attribute__((ext_vector_type(2)));
typedef unsigned short u2 __attribute__((ext_vector_type(2)));
__global__ void ints(int* a, unsigned* b, long long* c, short* s, unsigned char* u, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int x = a[i]; unsigned y = b[i]; long long z = c[i]; short t = s[i];
  a[i] = __popc(y) + __clz(x) + __ffs(x) + __mulhi(x, x) + x / 7 + x % 13 + (x >> (y & 31)) + abs(x) + min(x, (int)y) + max(x, 3);
  b[i] = __brev(y) ^ __umulhi(y, y) ^ (y / 10) ^ __byte_perm(y, x, 0x3210) ^ (y << (x & 31)) ^ __builtin_amdgcn_ubfe(y, x, 5) ^ __builtin_amdgcn_sad_u8(y, x, 1) ^ __builtin_amdgcn_alignbit(y, x, 3) ^ __builtin_elementwise_add_sat(y, 77u) ^ __builtin_elementwise_sub_sat(y, 77u);
  c[i] = z * z + (z >> (x & 63)) + (z << (x & 63)) + z / (y | 1) + __popcll(z) + __clzll(z) + (long long)min((long long)x, z);
  s[i] = t * t + (t >> 3) + max(t, (short)5) + __builtin_elementwise_add_sat(t, (short)9);
  u[i] = u[i] * 3 + (u[i] > 100 ? 1 : 2);
}
__global__ void floats(float* a, double* d, _Float16* h, __hip_bfloat16* b, h2* hh, s2* ss, u2* uu, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float x = a[i]; double y = d[i]; _Float16 v = h[i];
  a[i] = expf(x) + logf(x) + sqrtf(x) + rsqrtf(x) + __sinf(x) + __cosf(x) + floorf(x) + ceilf(x) + truncf(x) + rintf(x) + roundf(x) + tanhf(x) + erff(x) + fminf(x, 1) + fmaxf(x, 2) + 1.0f / x + __builtin_ldexpf(x, 3) + exp2f(x) + log2f(x) + __builtin_fmodf(x, 3.0f) + __builtin_amdgcn_fractf(x) + __builtin_amdgcn_fmed3f(x, 0, 1) + (float)(int)x + (float)(unsigned)x + (float)(long long)x + (float)v + (isnan(x) ? 1 : 0) + (isinf(x) ? 1 : 0) + __builtin_frexpf(x, (int*)&hh[i]);
  d[i] = y * y + 1.0 / y + __builtin_sqrt(y) + __builtin_floor(y) + (double)x + (double)(long long)y + (double)(unsigned)x + __builtin_fmin(y, 2.0) + __builtin_ldexp(y, 3);
  h[i] = v * v + (_Float16)1.0 / v + __builtin_sqrtf16(v) + __builtin_floorf16(v) + (_Float16)(short)v + (_Float16)(unsigned short)v + __builtin_fmaxf16(v, (_Float16)2) + __builtin_fabsf16(v) + __builtin_exp2f16(v) + (_Float16)x;
  b[i] = __hip_bfloat16((float)b[i] * x);
  h2 w = hh[i]; hh[i] = w * w + __builtin_elementwise_max(w, (h2){1, 2}) + __builtin_elementwise_min(w, (h2){1, 2}) - w;
  s2 q = ss[i]; ss[i] = q * q + (q >> (s2){3, 4}) + __builtin_elementwise_max(q, (s2){1, 2}) + __builtin_elementwise_add_sat(q, (s2){1, 2});
  u2 p = uu[i]; uu[i] = p * p + (p >> (u2){3, 4}) + __builtin_elementwise_min(p, (u2){1, 2}) + __builtin_elementwise_sub_sat(p, (u2){1, 2});
}
__global__ void atomics(int* a, unsigned* b, unsigned long long* c, float* f, double* d, float x) {
  __shared__ int la[4]; __shared__ unsigned lb[4]; __shared__ float lf[4]; __shared__ unsigned long long lc[4]; __shared__ double ld[2];
  int i = threadIdx.x & 3;
  if (threadIdx.x < 4) la[i] = 0, lb[i] = 0, lf[i] = 0, lc[i] = 0, ld[i & 1] = 0;
  __syncthreads();
  atomicAdd(&la[i], i); atomicMax(&la[i], i); atomicMin(&la[i], i); atomicAnd(&lb[i], 7u); atomicOr(&lb[i], 7u); atomicXor(&lb[i], 7u); atomicExch(&lb[i], 1u); atomicCAS(&lb[i], 1u, 2u); atomicAdd(&lf[i], x); atomicAdd(&lc[i], 5ull); atomicMax(&lc[i], 5ull); atomicCAS(&lc[i], 5ull, 6ull); atomicAdd(&ld[i & 1], 1.0);
  __syncthreads();
  a[i] = atomicAdd(&a[i], la[i]) + atomicMax(&a[i], 3) + atomicMin(&a[i], 3) + atomicSub(&a[i], 3) + atomicExch(&a[i], 2);
  b[i] = atomicInc(&b[i], 10) + atomicDec(&b[i], 10) + atomicAnd(&b[i], 3u) + atomicOr(&b[i], 3u) + atomicXor(&b[i], lb[i]) + atomicCAS(&b[i], 1u, 2u);
  c[i] = atomicAdd(&c[i], lc[i]) + atomicMax(&c[i], 3ull) + atomicExch(&c[i], 2ull) + atomicCAS(&c[i], 5ull, 6ull) + atomicAnd(&c[i], 3ull);
  f[i] = atomicAdd(&f[i], lf[i]); d[i] = atomicAdd(&d[i], ld[i & 1]);
  f[i + 4] = __shfl(x, i) + __shfl_up(f[i], 1) + __shfl_xor(f[i], 4) + __shfl_down(f[i], 2); a[i + 4] = __any(i) + __all(i) + (int)__ballot(i);
}
__constant__ float table[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
__global__ void lds(const uint4* a, uint4* o, float* f, int n, float s, _Float16 hs, _Float16* ho) {
  extern __shared__ unsigned char raw[];
  uint4* t = (uint4*)raw; unsigned char* u = raw; unsigned short* w = (unsigned short*)raw;
  t[threadIdx.x] = a[threadIdx.x]; __syncthreads();
  uint4 v = t[(threadIdx.x + 1) % 64]; u[threadIdx.x * 16 + 3] = 5; w[threadIdx.x * 8 + 5] = 9; v.x += u[threadIdx.x * 16] + w[threadIdx.x * 8 + 2] + (signed char)u[threadIdx.x * 16 + 1];
  o[threadIdx.x] = v; f[threadIdx.x] = table[threadIdx.x & 15] * s + table[n & 15] / s + floorf(s) + (float)(int)s;
  if (hs * hs + (_Float16)1.5 > (_Float16)s) ho[threadIdx.x] = hs - (_Float16)2;
  switch (n) { case 0: f[0] = 1; break; case 1: f[1] = s * s; break; case 2: f[2] = s - 1; break; case 3: f[3] = 4; break; case 4: f[4] = s / 3; break; case 5: f[5] = expf(s); break; default: f[6] = 9; }
}

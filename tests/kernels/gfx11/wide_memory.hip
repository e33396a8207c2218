// More of what clang makes of lanes, atomics, memory of every width, scratch, branches and calls: scanned, so that each has a model.
#include <hip/hip_bf16.h>
#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>
typedef _Float16 h2 __attribute__((ext_vector_type(2)));
typedef int i4 __attribute__((ext_vector_type(4)));
typedef int i2 __attribute__((ext_vector_type(2)));
typedef float f4 __attribute__((ext_vector_type(4)));
typedef float f2 __attribute__((ext_vector_type(2)));
#define G int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return;
// lanes
__global__ void lanes(int* a, float* f, unsigned long long* q, int n) {
  int i = threadIdx.x, x = a[i]; int s = 0;
  s += __builtin_amdgcn_update_dpp(x, x, 0x111, 0xf, 0xf, false); s += __builtin_amdgcn_update_dpp(0, x, 0x101, 0x5, 0x3, true); s += __builtin_amdgcn_update_dpp(0, x, 0x1b, 0xf, 0xf, true); s += __builtin_amdgcn_update_dpp(0, x, 0x140, 0xf, 0xf, true); s += __builtin_amdgcn_update_dpp(0, x, 0x141, 0xf, 0xf, true); s += __builtin_amdgcn_update_dpp(0, x, 0x153, 0xf, 0xf, true); s += __builtin_amdgcn_update_dpp(0, x, 0x161, 0xf, 0xf, true);
  s += __builtin_amdgcn_mov_dpp8(x, 0xfac688 & 0xffffff); s += __builtin_amdgcn_permlane16(x, x, 0x76543210, 0xfedcba98, true, true); s += __builtin_amdgcn_permlanex16(x, x, n, n + 1, false, false); s += __builtin_amdgcn_ds_swizzle(x, 0x041f); s += __builtin_amdgcn_ds_swizzle(x, 0x80b1); s += __builtin_amdgcn_ds_bpermute(x, s); s += __builtin_amdgcn_ds_permute(x, s);
  s += __builtin_amdgcn_readfirstlane(x) + __builtin_amdgcn_readlane(x, 5) + __builtin_amdgcn_readlane(x, n); s += __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(x, 3)); s += (int)__builtin_amdgcn_ballot_w32(x > 3) + __popc(__builtin_amdgcn_ballot_w32(x > n));
  s += __builtin_amdgcn_permlane64(x) ; q[i] = __builtin_amdgcn_ballot_w64(x > 1) + __builtin_readcyclecounter();
  f[i] = __shfl_xor(f[i], 1) + __shfl_xor(f[i], 16) + __shfl(f[i], 0) + __shfl_down(f[i], 8); a[i] = s;
}
// atomics
__global__ void atoms(int* a, unsigned* b, unsigned long long* c, long long* d, float* f, double* g, h2* h, int n) { int i = threadIdx.x & 7;
  a[i] = atomicAdd(a + i, n) + atomicMax(a + i, n) + atomicMin(a + i, n) + __hip_atomic_fetch_sub(a + i, n, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT) + __hip_atomic_fetch_and(a + 1, n, __ATOMIC_SEQ_CST, __HIP_MEMORY_SCOPE_SYSTEM) ; atomicAdd(b + i, 7u); atomicMax(b, 9u), atomicMin(b, 9u), atomicAnd(b + 1, 3u), atomicOr(b + 2, 3u), atomicXor(b + 3, 9u), atomicInc(b + 4, 9u), atomicDec(b + 5, 9u), atomicExch(b + 6, 1u), atomicCAS(b + 7, 3u, 4u);
  b[i + 8] = atomicInc(b + 4, 9u) + atomicDec(b + 5, 9u) + atomicExch(b + 6, 1u) + atomicCAS(b + 7, 3u, 4u);
  atomicAdd(c, 1ull), atomicMax(c + 1, 2ull), atomicMin(c + 2, 3ull), atomicAnd(c + 3, 4ull), atomicOr(c + 4, 4ull), atomicXor(c + 5, 6ull), atomicExch(c + 6, 7ull), atomicCAS(c + 7, 8ull, 9ull); c[i + 8] = atomicCAS(c + 7, 8ull, 9ull) + atomicAdd(c + i, 5ull) + atomicExch(c + 6, 1ull);
  d[i] = __hip_atomic_fetch_max(d + i, (long long)n, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT) + __hip_atomic_fetch_min(d + i, (long long)n, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT) + __hip_atomic_fetch_sub(d + i, (long long)n, __ATOMIC_ACQ_REL, __HIP_MEMORY_SCOPE_WORKGROUP) + __hip_atomic_load(d, __ATOMIC_SEQ_CST, __HIP_MEMORY_SCOPE_SYSTEM); __hip_atomic_store(d + 3, n, __ATOMIC_RELEASE, __HIP_MEMORY_SCOPE_AGENT);
  atomicAdd(f, 1.5f); f[i + 1] = atomicAdd(f + i, 2.5f) + __hip_atomic_fetch_max(f + i, 3.0f, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT) + __hip_atomic_fetch_min(f + i, 3.0f, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT); atomicAdd(g, 1.0); g[i + 1] = __hip_atomic_fetch_max(g + i, 3.0, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT); }
__global__ void lds_atoms(int* o, float* fo, unsigned long long* co, double* go, int n) {
  __shared__ int a[8]; __shared__ unsigned b[8]; __shared__ unsigned long long c[8]; __shared__ long long d[8]; __shared__ float f[8]; __shared__ double g[8]; int i = threadIdx.x & 7;
  a[i] = n, b[i] = n, c[i] = n, d[i] = n, f[i] = n, g[i] = n; __syncthreads();
  int s = atomicAdd(a + i, n) + atomicMax(a + i, n) + atomicMin(a + i, n) + __hip_atomic_fetch_sub(a + i, n, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP); atomicAdd(b, 3u), atomicMax(b, 3u), atomicMin(b, 3u), atomicAnd(b, 3u), atomicOr(b, 3u), atomicXor(b, 3u); s += atomicInc(b, 3u) + atomicDec(b, 3u) + atomicExch(b, 3u) + atomicCAS(b, 3u, 5u) + atomicOr(b, 1u);
  atomicAdd(c, 1ull), atomicMax(c + 1, 2ull), atomicMin(c + 2, 3ull), atomicAnd(c + 3, 4ull), atomicOr(c + 4, 4ull), atomicXor(c + 5, 6ull); co[i] = atomicCAS(c + 7, 8ull, 9ull) + atomicAdd(c + i, 5ull) + atomicExch(c + 6, 1ull); co[i + 8] = __hip_atomic_fetch_max(d + i, (long long)n, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP) + __hip_atomic_fetch_min(d + i, (long long)n, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
  fo[i] = atomicAdd(f + i, 1.0f) + __hip_atomic_fetch_max(f + i, 3.0f, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP) + __hip_atomic_fetch_min(f + i, 3.0f, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP); go[i] = __hip_atomic_fetch_max(g + i, 3.0, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP) + __hip_atomic_fetch_min(g + i, 3.0, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP) + atomicAdd(g + i, 1.0); o[i] = s; }
// memory of every width, LDS, scratch, generic
struct P3 { int x, y, z; };
__global__ void mems(const unsigned char* a, const signed char* b, const short* c, const unsigned short* d, const P3* e, const i4* f, i4* o, P3* oo, unsigned char* ob, short* os, _Float16* oh, h2* h, int n) { G
  i4 v = f[i]; v.x += a[i] + b[i] + c[i] + d[i] + a[i + n * 3ll]; P3 p = e[i]; oo[i] = P3{p.z, p.x, p.y}; o[i] = v; ob[i] = v.x, ob[i + n] = v.x >> 16, os[i] = v.y, os[i + n] = v.y >> 16; h2 w = h[i]; oh[i] = w.y; oh[i + n] = w.x; oh[i + 2 * n] = (_Float16)a[i] + oh[i + 3 * n]; h[i + n] = (h2){oh[i + 4 * n], oh[i + 5 * n]}; h[i + 2 * n] = (h2){(_Float16)b[i], (_Float16)a[i + 1]};
  o[i + n] = __builtin_nontemporal_load(f + i + n); __builtin_nontemporal_store(v, o + i + 2 * n); }
__global__ void ldss(const i4* a, i4* o, const h2* h, _Float16* oh, int n) {
  __shared__ i4 q[64]; __shared__ P3 t[64]; __shared__ double d[64]; __shared__ unsigned char c[256]; __shared__ short s[128]; __shared__ _Float16 hh[128]; __shared__ i2 w[130]; int i = threadIdx.x;
  q[i] = a[i], t[i] = P3{i, n, i}, d[i] = i, c[i] = i, c[i + 64] = n >> 16, c[i + 128] = 7, s[i] = n, s[i + 64] = n >> 16, hh[i] = h[i].x, hh[i + 64] = h[i].y; w[i] = (i2){i, n}, w[i + 64] = (i2){n, i}; __syncthreads(); int j = 63 - i;
  i4 v = q[j]; v.x += t[j].x + t[j].z + (int)d[j] + c[j] + (signed char)c[j + 64] + s[j] + (unsigned short)s[j + 64] + w[j].x + w[j + 64].y; o[i] = v; oh[i] = hh[j] + hh[j + 64]; oh[i + 64] = hh[i & 15] * hh[(i & 15) + 32]; h2 pr = (h2){hh[j], hh[i ^ 5]}; oh[i + 128] = pr.x * pr.y; }
__global__ void flats(int* g, int* o, int n, int pick) { __shared__ int l[64]; int own[8]; int i = threadIdx.x; l[i] = i; for (int k = 0; k < 8; k++) own[k] = k * n; __syncthreads();
  int* p = pick == 0 ? g : pick == 1 ? l : own; int s = 0; for (int k = 0; k < n; k++) s += p[k & 7], p[k & 7] = s; atomicAdd(pick ? l : g, 3); unsigned char* b = (unsigned char*)p; s += b[n & 7]; o[i] = s + own[n & 7]; }
__global__ void scratches(const i4* a, i4* o, short* s, unsigned char* c, double* d, int n) { i4 own[20]; short t[40]; unsigned char u[64]; double v[12]; int i = threadIdx.x; for (int k = 0; k < n; k++) own[k] = a[k * 32 + i], t[k] = s[k], u[k] = c[k], v[k % 12] = d[k]; i4 r = own[n & 7]; r.x += t[n & 15] + u[n & 31] + (signed char)u[n & 15] + (int)v[n % 12]; o[i] = r; s[i] = t[(n + 1) & 31]; c[i] = u[n >> 1 & 31]; }
// control, scalar
__global__ void scalars(const int* a, int* o, unsigned long long* q, float s, float t, _Float16 hs, _Float16 ht, long long k, unsigned u, double dd, int n) {
  int sum = 0; for (int j = 0; j < n; j++) { if (a[j] > 3) sum += a[j] * j; else if (a[j] < -7) sum ^= a[j] >> 2; else continue; if (sum > 1000000) break; }
  float f = s * t + s - t; f = fmaxf(f, s) + fminf(t, s) + floorf(s) + ceilf(t) + truncf(s) + rintf(t) + (float)n + (float)u + (s > t ? 1.0f : 2.0f) + (s != t) + fabsf(s) + sqrtf(s); _Float16 h = hs * ht + hs - ht; h = __builtin_fmaxf16(h, hs) + __builtin_fminf16(h, ht) + (hs > ht ? h : hs) + __builtin_floorf16(hs); sum += (int)f + (int)h + (unsigned)s + (int)(hs * s);
  unsigned long long m = k * (unsigned long long)u + (k << (n & 63)) + (k >> (n & 63)) + (unsigned long long)k / (u | 1) + __builtin_popcountll(k) + __builtin_clzll(k | 1) + __builtin_ctzll(k | 1) + (k & 0xff00ff00ff00ff00ull) + (~k | u) + (k > (long long)u ? k : 9) + __builtin_bitreverse64(k) + __builtin_bswap64(k) + (unsigned long long)(double)n + (unsigned long long)dd; sum += n / 7 + n % 11 + n / (int)(u | 1) + __builtin_popcount(u) + __builtin_clz(u | 1) + __builtin_ctz(u | 1) + __builtin_bitreverse32(u) + abs(n) + max(n, 5) + min((int)u, n) + (n >> 3 & 7) + (int)(signed char)n + (int)(short)u + __mulhi(n, (int)u) + (int)__umulhi(u, u + 1) + __builtin_bswap32(u);
  o[threadIdx.x] = sum; q[threadIdx.x] = m; if (n == 12345) __builtin_trap(); }
__global__ void switches(int* o, int n) { switch (o[threadIdx.x]) { case 0: o[1] = n; break; case 1: o[2] = n * 3; break; case 5: o[3] = n - 1; break; case 7: o[4] = n << 2; break; case 8: o[5] = 11; break; case 9: o[6] = n * n; break; case 10: o[7] = 5; break; default: o[8] = 1; } switch (n) { case 0: o[11] = n; break; case 1: o[12] = n * 3; break; case 2: o[13] = n - 1; break; case 3: o[14] = n << 2; break; case 4: o[15] = 11; break; case 5: o[16] = n * n; break; case 6: o[17] = 5; break; default: o[18] = 1; } }
typedef int (*fn)(int, int); __device__ __noinline__ int add_(int a, int b) { return a + b * 3; } __device__ __noinline__ int mul_(int a, int b) { return a * b - 1; } __device__ __noinline__ int rec(int a, int b) { return a < 2 ? b : rec(a - 1, b + a) + rec(a - 2, b); }
__global__ void calls(int* o, int n, int which) { fn table[3] = {add_, mul_, rec}; fn f = table[which]; o[threadIdx.x] = f(o[threadIdx.x] & 7, n); }
__global__ void vectors(int* o, float* f, int n) { int v[16]; float w[16]; for (int k = 0; k < 16; k++) v[k] = o[threadIdx.x + k * 32], w[k] = f[k]; o[threadIdx.x] = v[n & 15]; v[n >> 4 & 15] = 7; w[threadIdx.x & 15] = 2; f[threadIdx.x] = w[n & 15]; for (int k = 0; k < 16; k++) o[threadIdx.x + k * 32 + 512] = v[k]; }
__global__ void sync2(int* o, int n) { __shared__ int a[256]; a[threadIdx.x] = n; __syncthreads(); __threadfence(); __threadfence_system(); __builtin_amdgcn_s_sleep(1); __builtin_amdgcn_sched_barrier(0); __builtin_amdgcn_s_setprio(1); __builtin_amdgcn_s_waitcnt(0); o[threadIdx.x] = a[threadIdx.x ^ 64]; }

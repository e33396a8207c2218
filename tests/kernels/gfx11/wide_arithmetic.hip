// More of what clang makes of whole numbers, floats, dot products and matrices: scanned, so that each has a model.
#include <hip/hip_bf16.h>
#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>
typedef _Float16 h2 __attribute__((ext_vector_type(2)));
typedef _Float16 h8 __attribute__((ext_vector_type(8)));
typedef _Float16 h16 __attribute__((ext_vector_type(16)));
typedef __bf16 b2 __attribute__((ext_vector_type(2)));
typedef short s2 __attribute__((ext_vector_type(2)));
typedef short s16v __attribute__((ext_vector_type(16)));
typedef int i2 __attribute__((ext_vector_type(2)));
typedef int i4 __attribute__((ext_vector_type(4)));
typedef int i8v __attribute__((ext_vector_type(8)));
typedef float f8 __attribute__((ext_vector_type(8)));
typedef float f4 __attribute__((ext_vector_type(4)));
typedef unsigned short u2 __attribute__((ext_vector_type(2)));
typedef unsigned char uc4 __attribute__((ext_vector_type(4)));
typedef signed char sc8 __attribute__((ext_vector_type(8)));
#define G int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return;
// 64-bit integers
__global__ void i64s(long long* a, unsigned long long* b, int* c, unsigned* d, int n) { G
  long long x = a[i], y = a[i + n]; unsigned long long u = b[i], v = b[i + n]; int k = c[i];
  a[i] = x * y + (x ^ y) - (x & ~y) + (x << (k & 63)) + (x >> (k & 63)) + (x < y ? x : y) + (x > y) + x / (y | 1) + x % (y | 1) - (long long)__builtin_clzll(u | 1) + __builtin_ctzll(u | 1) + __builtin_parityll(u) ;
  b[i] = u * v + u / (v | 1) + u % (v | 1) + (u >> (k & 63)) + __builtin_bswap64(u) + __builtin_rotateleft64(u, 13) + __builtin_rotateleft64(u, k & 63) + __builtin_bitreverse64(v) + __builtin_popcountll(v);
  unsigned long long carry; unsigned long long s = __builtin_addcll(u, v, 0, &carry); b[i] ^= s + carry; long long o; c[i] = __builtin_add_overflow(x, y, &o) + __builtin_mul_overflow(x, y, &o) + __builtin_sub_overflow(x, y, &o); a[i] += o;
  unsigned o32; d[i] = __builtin_add_overflow(d[i], d[i + n], &o32) + o32; int p; d[i] += __builtin_mul_overflow(c[i], k, &p) + p + __builtin_sub_overflow(c[i], k, &p) + p;
  __int128 w = (__int128)x * y; a[i] ^= (long long)(w >> 64); unsigned __int128 uw = (unsigned __int128)u * v; b[i] ^= (unsigned long long)(uw >> 64);
}
__global__ void i32s(int* a, unsigned* b, int n) { G
  int x = a[i], y = a[i + n], z = a[i + 2 * n]; unsigned u = b[i], v = b[i + n], w = b[i + 2 * n];
  a[i] = x / (y | 1) + x % (y | 1) + x / 3 + x % 10 + ((x << 5) + y) + ((x + y) << 3) + (x ^ y ^ z) + (x + y + z) + ((x & y) | z) + (x | y | z) + ((x << 4) | y) + max(max(x, y), z) + min(min(x, y), z) + max(min(x, y), z) + min(max(x, y), min(max(x, y), z)) + __builtin_bswap32(x) + abs(x - y) + (int)(signed char)x + (int)(short)y + __mul24(x, y) + __builtin_rotateleft32(x, y) + __builtin_elementwise_add_sat(x, y) + __builtin_elementwise_sub_sat(x, y) + __builtin_clrsb(x);
  b[i] = u / (v | 1) + u % (v | 1) + u / 3 + u % 1000 + ((u * v) >> 3) + (u >> 7 & 31) + (u & 0xff) * (v & 0xffff) + (u & 0xffffff) * (v & 0xffffff) + __builtin_rotateright32(u, v) + ((u & v) | (~u & w)) + ((u ^ v) + w) + max(max(u, v), w) + min(min(u, v), w) + (u > v ? u : w) + __builtin_amdgcn_lerp(u, v, w) + __builtin_amdgcn_sad_u16(u, v, w) + __builtin_amdgcn_sad_hi_u8(u, v, w) + __builtin_amdgcn_msad_u8(u, v, w) + __builtin_amdgcn_alignbyte(u, v, w) + __builtin_amdgcn_perm(u, v, w) + __builtin_amdgcn_sbfe(u, v, w) + __builtin_amdgcn_ubfe(u, v, w) + __builtin_amdgcn_cvt_pk_u8_f32(__uint_as_float(u), v, w);
  unsigned long long q = __builtin_amdgcn_qsad_pk_u16_u8((unsigned long long)u << 32 | v, w, u) ; b[i] += (unsigned)q + (unsigned)(q >> 32); q = __builtin_amdgcn_mqsad_pk_u16_u8((unsigned long long)u << 32 | v, w, q); b[i] += (unsigned)q;
}
__global__ void i16s(short* a, unsigned short* b, signed char* c, unsigned char* d, s2* e, u2* f, uc4* g, int n) { G
  short x = a[i], y = a[i + n], z = a[i + 2 * n]; unsigned short u = b[i], v = b[i + n], w = b[i + 2 * n];
  a[i] = x * y + z; a[i + n] = max(max((int)x, (int)y), (int)z); a[i + 2 * n] = (x >> (y & 15)) + (x << (z & 15)) - (x ^ y); 
  a[i + 3 * n] = __builtin_elementwise_max(x, y) + __builtin_elementwise_min(x, z) + __builtin_elementwise_sub_sat(x, y) + __builtin_elementwise_add_sat(y, z);
  b[i] = u * v + w; b[i + n] = u / (v | 1) + u % (w | 1); b[i + 2 * n] = (u >> (v & 15)) + (u & v) + (u | w) + __builtin_elementwise_max(u, v) + __builtin_elementwise_min(u, w) + __builtin_elementwise_sub_sat(u, v) + __builtin_elementwise_add_sat(v, w);
  c[i] = c[i] * c[i + n] + c[i + 2 * n] / 7; d[i] = d[i] * d[i + n] + d[i + 2 * n] % 7; c[i + n] = c[i] >> (d[i] & 7); d[i + n] = d[i] >> 3;
  s2 p = e[i], q = e[i + n], r = e[i + 2 * n]; e[i] = p * q + r; e[i + n] = __builtin_elementwise_max(p, q) - __builtin_elementwise_min(q, r) + (p << (q & (s2)15)) + (p >> (q & (s2)15)) + __builtin_elementwise_sub_sat(p, q) + __builtin_elementwise_abs(r) ;
  u2 P = f[i], Q = f[i + n], R = f[i + 2 * n]; f[i] = P * Q + R; f[i + n] = __builtin_elementwise_max(P, Q) - __builtin_elementwise_min(Q, R) + (P >> (Q & (u2)15)) + __builtin_elementwise_sub_sat(P, Q) + __builtin_elementwise_add_sat(P, R) + P.yx; f[i + 2 * n] = (u2){Q.y, R.x};
  g[i] = g[i] + g[i + n] * g[i + 2 * n];
}
__global__ void f32s(float* a, int* b, unsigned* c, int n) { G
  float x = a[i], y = a[i + n], z = a[i + 2 * n];
  a[i] = x + y * z; a[i + n] = fmaxf(fmaxf(x, y), z) + fminf(fminf(x, y), z) + fmaxf(fminf(x, y), z) + fminf(fmaxf(x, y), z) + fminf(fmaxf(x, fminf(y, z)), fmaxf(y, z)) + __builtin_amdgcn_fmed3f(x, y, z) + fabsf(x) - fabsf(y) + copysignf(x, y) + x * 2.0f + fminf(fmaxf(x * y, 0.0f), 1.0f) + x*y*z;
  a[i + 2 * n] = x / y + sqrtf(x) + rsqrtf(y) + __builtin_amdgcn_rcpf(x) + __builtin_amdgcn_sqrtf(z) + __builtin_amdgcn_rsqf(z) + __builtin_amdgcn_logf(x) + __builtin_amdgcn_sinf(x) + __builtin_amdgcn_cosf(y) + __builtin_amdgcn_fractf(x) + __builtin_amdgcn_frexp_mantf(x) + __builtin_amdgcn_ldexpf(x, b[i]) + __builtin_amdgcn_cubeid(x, y, z) + __builtin_amdgcn_cubema(x, y, z) + __builtin_amdgcn_cubesc(x, y, z) + __builtin_amdgcn_cubetc(x, y, z);
  a[i + 3 * n] = floorf(x) + ceilf(y) + truncf(z) + rintf(x) + roundf(y) + expf(x) + exp2f(y) + logf(x) + log2f(z) + __builtin_log10f(x) + __builtin_fmodf(x, y) + __builtin_ldexpf(x, 7) + tanhf(x) + erff(y) + __builtin_canonicalizef(x) + __builtin_elementwise_roundeven(z) + (isnan(x) ? 1 : 2) + (isinf(y) ? 3 : 4) + (__builtin_isfinite(z) ? 1 : 0) + (__builtin_signbit(x) ? 1 : 0) + (__builtin_isnormal(y) ? 2 : 0);
  b[i] = (int)x + (int)(unsigned)y + (int)floorf(x) + (int)(x + 0.5f) + __float2int_rn(y) + (int)(long long)x + (int)(unsigned long long)fabsf(y) + __builtin_amdgcn_frexp_expf(x) + (x < y) + (x <= z) + (x == y) + (x != z) + !(x < y) + !(x >= z) + (int)__builtin_isgreater(x, y) + __builtin_isunordered(x, z) + __builtin_islessgreater(x, y) + __builtin_amdgcn_classf(x, 0x123) + __builtin_amdgcn_classf(y, b[i]);
  c[i] = __builtin_bit_cast(unsigned, __builtin_amdgcn_cvt_pkrtz(x, y)) + __builtin_bit_cast(unsigned, __builtin_amdgcn_cvt_pknorm_i16(x, y)) + __builtin_bit_cast(unsigned, __builtin_amdgcn_cvt_pknorm_u16(x, y)) + __builtin_bit_cast(unsigned, __builtin_amdgcn_cvt_pk_i16(b[i], b[i + n])) + __builtin_bit_cast(unsigned, __builtin_amdgcn_cvt_pk_u16(c[i], c[i + n]));
  a[i + 4 * n] = (float)b[i] + (float)c[i] + (float)(unsigned char)c[i] + (float)(unsigned char)(c[i] >> 8) + (float)(unsigned char)(c[i] >> 16) + (float)(c[i] >> 24) + (float)(short)b[i] + (float)(long long)b[i] + (float)((unsigned long long)c[i] << 20) + x * (1 / 3.14159f) + z / 3;
}
__global__ void f64s(double* a, float* b, int* c, long long* d, unsigned long long* e, int n) { G
  double x = a[i], y = a[i + n], z = a[i + 2 * n];
  a[i] = x + y * z; a[i + n] = x / y + __builtin_sqrt(x) + __builtin_fmax(x, y) + __builtin_fmin(y, z) + __builtin_fabs(z) + __builtin_floor(x) + __builtin_ceil(y) + __builtin_trunc(z) + __builtin_rint(x) + __builtin_round(y) + __builtin_copysign(x, y) + __builtin_ldexp(x, c[i]) + __builtin_amdgcn_rcp(x) + __builtin_amdgcn_rsq(y) + __builtin_amdgcn_fract(z) + __builtin_amdgcn_frexp_mant(x) + __builtin_amdgcn_sqrt(x) + __builtin_fma(x, y, z);
  a[i + 2 * n] = (double)b[i] + (double)c[i] + (double)(unsigned)c[i] + (double)d[i] + (double)e[i] + (x < y ? x : z);
  b[i] = (float)x; c[i] = (int)x + (int)(unsigned)y + __builtin_amdgcn_frexp_exp(z) + (x < y) + (x == z) + (x != y) + __builtin_isnan(x) + __builtin_isinf(y) + __builtin_amdgcn_class(x, c[i]); d[i] = (long long)x; e[i] = (unsigned long long)y;
}
__global__ void f16s(_Float16* a, h2* b, float* c, short* d, unsigned short* e, int* f, int n) { G
  _Float16 x = a[i], y = a[i + n], z = a[i + 2 * n];
  a[i] = x * y + z; a[i + n] = x / y; a[i + 2 * n] = __builtin_fmaxf16(__builtin_fmaxf16(x, y), z) + __builtin_fminf16(__builtin_fminf16(x, y), z) + __builtin_fmaxf16(__builtin_fminf16(x, y), z) + __builtin_sqrtf16(x) + __builtin_floorf16(y) + __builtin_ceilf16(z) + __builtin_truncf16(x) + __builtin_rintf16(y) + __builtin_roundf16(z) + __builtin_exp2f16(x) + __builtin_log2f16(y) + __builtin_fabsf16(x) + __builtin_copysignf16(x, y) + __builtin_amdgcn_rcph(x) + __builtin_amdgcn_rsqh(y) + __builtin_amdgcn_sinh(x) + __builtin_amdgcn_cosh(y) + __builtin_amdgcn_fracth(z) + __builtin_amdgcn_frexp_manth(x) + __builtin_amdgcn_ldexph(x, d[i]) + __builtin_amdgcn_fmed3h(x, y, z) + __builtin_fmaf16(x, y, z) + (_Float16)d[i] + (_Float16)e[i] + (_Float16)f[i] + (_Float16)c[i] + (_Float16)(double)c[i] + __builtin_canonicalizef16(x);
  a[i + 3 * n] = (_Float16)((float)x * (float)y + (float)z); a[i + 4 * n] = (_Float16)__builtin_fmaf((float)x, c[i], (float)y);
  d[i] = (short)x + (x < y) + (x == z) + __builtin_amdgcn_frexp_exph(x) + __builtin_isnan(x) + __builtin_isinf(y) + __builtin_amdgcn_classh(x, f[i]); e[i] = (unsigned short)y; f[i] = (int)x; c[i] = (float)x * c[i] + (float)y; c[i + n] = __builtin_fmaf((float)x, (float)y, c[i]);
  h2 p = b[i], q = b[i + n], r = b[i + 2 * n]; b[i] = p * q + r; b[i + n] = __builtin_elementwise_max(p, q) + __builtin_elementwise_min(q, r) - p.yx + (h2){p.y, q.x} + __builtin_elementwise_fma(p, q.yx, -r) + __builtin_elementwise_abs(p); b[i + 2 * n] = p / q;
  c[i + 2 * n] = __builtin_amdgcn_fdot2(p, q, c[i], false) + __builtin_amdgcn_fdot2(p, q, c[i], true);
  a[i + 5 * n] = __builtin_amdgcn_fdot2_f16_f16(p, q, x);
}
__global__ void bf16s(__bf16* a, b2* b, float* c, int n) { G
  __bf16 x = a[i], y = a[i + n]; a[i] = (__bf16)((float)x * (float)y); c[i] = (float)x + (float)y; b2 p = b[i], q = b[i + n];
  a[i + n] = x + y; 
}
__global__ void bdots(s2* b, float* c, short* a, int n) { G s2 p = b[i], q = b[i + n];
  c[i + n] = __builtin_amdgcn_fdot2_f32_bf16(p, q, c[i], false); c[i + 2 * n] = __builtin_amdgcn_fdot2_f32_bf16(p, q, c[i], true); a[i] = __builtin_amdgcn_fdot2_bf16_bf16(p, q, a[i]); }
__global__ void dots(int* a, unsigned* b, int n) { G
  int x = a[i], y = a[i + n], z = a[i + 2 * n]; unsigned u = b[i], v = b[i + n], w = b[i + 2 * n];
  a[i] = __builtin_amdgcn_sudot4(true, x, true, y, z, false) + __builtin_amdgcn_sudot4(true, x, false, y, z, true) + __builtin_amdgcn_sudot4(false, x, true, y, z, true) + __builtin_amdgcn_sudot8(true, x, true, y, z, false) + __builtin_amdgcn_sudot8(false, x, true, y, z, true);
  b[i] = __builtin_amdgcn_udot4(u, v, w, false) + __builtin_amdgcn_udot4(u, v, w, true) + __builtin_amdgcn_udot8(u, v, w, false) + __builtin_amdgcn_udot8(u, v, w, true);
}
__global__ void wmmas(const h16* a, const s16v* b, const i4* c, const i2* d, float* f, int* g, _Float16* h, short* s) {
  int l = threadIdx.x; f8 x = {}; x = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(a[l], a[l + 32], x); x = __builtin_amdgcn_wmma_f32_16x16x16_bf16_w32(b[l], b[l + 32], x);
  i8v y = {}; y = __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32(true, c[l], true, c[l + 32], y, false); y = __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32(false, c[l], true, c[l + 32], y, true); y = __builtin_amdgcn_wmma_i32_16x16x16_iu4_w32(true, d[l], true, d[l + 32], y, false); y = __builtin_amdgcn_wmma_i32_16x16x16_iu4_w32(false, d[l], false, d[l + 32], y, true);
  h16 z = {}; z = __builtin_amdgcn_wmma_f16_16x16x16_f16_w32(a[l], a[l + 32], z, false); z = __builtin_amdgcn_wmma_f16_16x16x16_f16_w32(a[l], a[l + 32], z, true);
  s16v w = {}; w = __builtin_amdgcn_wmma_bf16_16x16x16_bf16_w32(b[l], b[l + 32], w, false); w = __builtin_amdgcn_wmma_bf16_16x16x16_bf16_w32(b[l], b[l + 32], w, true);
  for (int r = 0; r < 8; r++) f[r * 32 + l] = x[r], g[r * 32 + l] = y[r]; for (int r = 0; r < 16; r++) h[r * 32 + l] = z[r], s[r * 32 + l] = w[r];
}

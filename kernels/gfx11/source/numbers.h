// Number formats and the arithmetic that C has no operator for. NaN payloads are not modelled; subnormals are kept.
#pragma once
#include "state.h"

template <class To, class From> static inline To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To out;
  memcpy(&out, &x, sizeof out);
  return out;
}
static inline float as_f(u32 x) { return bits<float>(x); }
static inline u32 as_u(float x) { return bits<u32>(x); }
static inline float bf(u32 x) { return as_f(x << 16); }

static inline float widen(u32 h) {  // fp16
  u32 sign = (h & 0x8000) << 16, rest = h & 0x7FFF;
  float scaled = as_f(rest << 13) * 0x1p112f;  // subnormals too: the product is exact
  u32 magnitude = rest >= 0x7C00 ? 0x7F800000 | (rest & 0x3FF) << 13 : as_u(scaled);
  return as_f(magnitude | sign);
}

static inline u32 narrow(float x) {  // fp16, nearest even
  u32 all = as_u(x), sign = all >> 16 & 0x8000, u = all & 0x7FFFFFFF;
  u32 normal = (u + 0xFFF + (u >> 13 & 1)) >> 13;
  normal -= 112 << 10;
  u32 tiny = as_u(as_f(u) + 0.5f) - 0x3F000000;  // the adder rounds at 2^-24
  u32 out = u < 0x38800000 ? tiny : normal;
  out = u >= 0x477FF000 ? 0x7C00 : out;
  out = u > 0x7F800000 ? 0x7E00 : out;
  return out | sign;
}

static inline u32 narrow_to_zero(float x) {  // fp16, toward zero
  u32 all = as_u(x), sign = all >> 16 & 0x8000, u = all & 0x7FFFFFFF;
  if (u > 0x7F800000) return sign | 0x7E00;
  if (u == 0x7F800000) return sign | 0x7C00;
  if (u >= 0x47800000) return sign | 0x7BFF;
  if (u < 0x38800000) return sign | (u32)(as_f(u) * 0x1p24f);
  return sign | ((u >> 13) - (112 << 10));
}

static inline double sum_to_odd(double p, double c) {  // Boldo and Melquiond 2008: later roundings are then the only one
  double s = p + c, b = s - p, error = (p - (s - b)) + (c - b);
  i64 word = bits<i64>(s);
  if (error != 0 && !(word & 1) && std::isfinite(s)) word += (error > 0) == (s > 0) ? 1 : -1;
  return bits<double>(word);
}

static inline float to_odd(double x) {  // fp32 such that a later rounding to 22 bits or fewer is the only one
  float f = (float)x;
  if ((double)f == x || f != f || std::isinf(x)) return f;
  u32 word = as_u(f);
  if (!(word & 1)) word += ((double)f < x) == (x > 0) ? 1 : -1;
  return as_f(word);
}

static inline float fma_half(float a, float b, float c) { return to_odd(sum_to_odd((double)a * b, c)); }

static inline float fma_bf(float a, float b, float c) { return to_odd(sum_to_odd((double)a * b, c)); }
static inline u32 narrow_bf(float x) {  // bf16, nearest even
  u32 u = as_u(x);
  return x != x ? u >> 16 | 0x40 : (u + 0x7FFF + (u >> 16 & 1)) >> 16;
}
static inline i32 snorm(float x) { return x != x ? 0 : (i32)std::nearbyint(32767.0 * (x < -1 ? -1 : x > 1 ? 1 : x)); }
static inline u32 unorm(float x) { return x != x ? 0 : (u32)std::nearbyint(65535.0 * (x < 0 ? 0 : x > 1 ? 1 : x)); }

static inline float least(float a, float b) {  // the other one beside a NaN; -0 below +0
  if (a != a) return b;
  if (b != b) return a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
static inline float most(float a, float b) {
  if (a != a) return b;
  if (b != b) return a;
  return a > b || (a == b && !std::signbit(a)) ? a : b;
}
static inline double least(double a, double b) { return a != a ? b : b != b ? a : a < b || (a == b && std::signbit(a)) ? a : b; }
static inline double most(double a, double b) { return a != a ? b : b != b ? a : a > b || (a == b && !std::signbit(a)) ? a : b; }
template <class T> static inline T least(T a, T b) { return a < b ? a : b; }
template <class T> static inline T most(T a, T b) { return a > b ? a : b; }
template <class T> static inline T median(T a, T b, T c) { return most(least(a, b), least(most(a, b), c)); }
static inline float median_f(float a, float b, float c) {
  if (a != a || b != b || c != c) return least(least(a, b), c);
  float top = most(most(a, b), c);
  return top == a ? most(b, c) : top == b ? most(a, c) : most(a, b);
}

template <class T> static inline T fraction(T x, T most) {  // below 1; of an infinity or a NaN a NaN
  T f = x - std::floor(x);
  return f > most ? most : f;
}

template <class T> static inline T saturate(double x, double low, double high) {  // toward zero; NaN gives 0
  return x != x ? 0 : x <= low ? (T)low : x >= high ? (T)high : (T)x;
}
static inline u32 to_u32(double x) { return saturate<u32>(x, 0, 4294967295.0); }
static inline i32 to_i32(double x) { return saturate<i32>(x, -2147483648.0, 2147483647.0); }

static inline u32 leading(u32 x) { return x ? __builtin_clz(x) : 0xFFFFFFFF; }
static inline u32 trailing(u32 x) { return x ? __builtin_ctz(x) : 0xFFFFFFFF; }
static inline u32 sign_bits(u32 x) { return leading(x ^ (u32)((i32)x >> 31)); }
static inline u32 reversed(u32 x) {
  x = (x >> 1 & 0x55555555) | (x & 0x55555555) << 1;
  x = (x >> 2 & 0x33333333) | (x & 0x33333333) << 2;
  x = (x >> 4 & 0x0F0F0F0F) | (x & 0x0F0F0F0F) << 4;
  return __builtin_bswap32(x);
}
static inline u32 field(u32 x, u32 start, u32 width) { return (u32)((u64)x >> start & ((1ull << width) - 1)); }
static inline i32 signed_field(i32 x, u32 start, u32 width) {
  if (!width) return 0;
  u32 f = (u32)((i64)x >> start & ((1ull << width) - 1)), sign = 1u << ((width - 1) & 31);
  return width >= 32 ? (i32)f : (i32)((f ^ sign) - sign);
}
static inline i32 i24(u32 x) { return (i32)(x << 8) >> 8; }
static inline u32 u24(u32 x) { return x & 0xFFFFFF; }

static inline u32 permuted(u32 high, u32 low, u32 select) {  // V_PERM_B32
  u64 both = (u64)high << 32 | low;
  u32 out = 0;
  for (int i = 0; i < 4; i++) {
    u32 s = select >> 8 * i & 0xFF, byte;
    if (s >= 13) byte = 0xFF;
    else if (s == 12) byte = 0;
    else if (s >= 8) byte = both >> (16 * (s - 8) + 15) & 1 ? 0xFF : 0;
    else byte = both >> 8 * s & 0xFF;
    out |= byte << 8 * i;
  }
  return out;
}
static inline u32 sad(u32 a, u32 b, u32 c, int width, u32 step) {
  for (int at = 0; at < 32; at += width) {
    i64 x = a >> at & step, y = b >> at & step;
    c += (u32)(x > y ? x - y : y - x);
  }
  return c;
}

static inline u32 sad_masked(u32 a, u32 b, u32 c) {  // bytes of b that are 0 do not count
  for (int at = 0; at < 32; at += 8)
    if (b >> at & 0xFF) c += sad(a >> at & 0xFF, b >> at & 0xFF, 0, 32, 0xFFFFFFFF);
  return c;
}
template <class Fn> static inline u64 four_sads(u64 a, u32 b, u64 c, Fn fn) {
  u64 out = 0;
  for (int i = 0; i < 4; i++) out |= (u64)(u16)fn((u32)(a >> 8 * i), b, (u32)(c >> 16 * i & 0xFFFF)) << 16 * i;
  return out;
}
static inline u32 lerped(u32 a, u32 b, u32 c) {
  u32 out = 0;
  for (int at = 0; at < 32; at += 8) out |= ((a >> at & 0xFF) + (b >> at & 0xFF) + (c >> at & 1)) >> 1 << at;
  return out;
}
static inline u32 byte_of(i16 x) { return x < 0 ? 0 : x > 255 ? 255 : (u32)x; }
struct Cube { float face, major, s, t; };
static inline Cube cube(float x, float y, float z) {
  float ax = std::fabs(x), ay = std::fabs(y), az = std::fabs(z);
  if (az >= ax && az >= ay) return {z < 0 ? 5.0f : 4.0f, z, z < 0 ? -x : x, -y};
  if (ay >= ax) return {y < 0 ? 3.0f : 2.0f, y, x, y < 0 ? -z : z};
  return {x < 0 ? 1.0f : 0.0f, x, x < 0 ? z : -z, -y};
}

static inline int exponent(float x) { return as_u(x) >> 23 & 255; }
static inline int exponent(double x) { return bits<u64>(x) >> 52 & 2047; }
static inline bool tiny(float x) { return x != 0 && exponent(x) == 0; }
static inline bool tiny(double x) { return x != 0 && exponent(x) == 0; }

// The three instructions of a correctly rounded division. Where the guide's text cannot be meant (a divisor near the largest
// number scaled up, a product scaled after it was rounded, by one power in both directions) what makes the quotient right is
// taken: tests hold a / b against IEEE division. T: float or double; `wide` scales by 2^64 or 2^128.
template <class T> static inline T div_scale(T value, T divisor, T dividend, bool &scaled) {
  const int wide = sizeof(T) == 4 ? 64 : 128, apart = sizeof(T) == 4 ? 96 : 768, small = sizeof(T) == 4 ? 23 : 53;
  scaled = false;
  if (dividend == 0 || divisor == 0) return (T)NAN;
  bool of_divisor = bits<typename std::conditional<sizeof(T) == 4, u32, u64>::type>(value) ==
                    bits<typename std::conditional<sizeof(T) == 4, u32, u64>::type>(divisor);
  bool of_dividend = value == dividend;
  if (exponent(dividend) - exponent(divisor) >= apart) return scaled = true, of_divisor ? (T)std::ldexp(value, wide) : value;
  if (tiny(divisor)) return (T)std::ldexp(value, wide);
  bool inverse_tiny = tiny((T)((T)1 / divisor)), quotient_tiny = tiny((T)(dividend / divisor));
  if (inverse_tiny && quotient_tiny) return scaled = true, of_divisor ? (T)std::ldexp(value, -wide) : value;
  if (inverse_tiny) return (T)std::ldexp(value, -wide);
  if (quotient_tiny) return scaled = true, of_dividend ? (T)std::ldexp(value, wide) : value;
  if (exponent(dividend) <= small) return (T)std::ldexp(value, wide);
  return value;
}
static inline float fma_scaled(float a, float b, float c, int power) {  // rounded once, after scaling
  return (float)std::ldexp(sum_to_odd((double)a * b, c), power);
}
static inline double fma_scaled(double a, double b, double c, int power) {
  double p = a * b;
  if (!std::isfinite(p) || !std::isfinite(c)) return std::fma(a, b, c);
  typedef long double L;
  L low = std::fma(a, b, -p), s = (L)p + c, t = s - p, rest = ((L)p - (s - t)) + ((L)c - t) + low, u = s + rest;
  L lost = rest - (u - s);
  if (lost != 0) {  // to odd: step to the neighbour with the last bit set
    int e;
    L unit = (std::frexp(u, &e), std::ldexp((L)1, e - __LDBL_MANT_DIG__));
    if (std::fmod(u / unit, (L)2) == 0) u += lost > 0 ? unit : -unit;
  }
  return (double)std::ldexp(u, power);
}

// A quotient that must overflow is infinite: the guide has no line for it, and without one the refinement leaves a NaN.
template <class T> static inline T div_fixup(T quotient, T divisor, T dividend) {
  bool negative = std::signbit(divisor) != std::signbit(dividend);
  const int low = sizeof(T) == 4 ? -150 : -1075, top = sizeof(T) == 4 ? 255 : 2047;
  T out;
  if (dividend != dividend) return dividend;
  if (divisor != divisor) return divisor;
  if ((divisor == 0 && dividend == 0) || (std::isinf(divisor) && std::isinf(dividend))) return (T)-NAN;
  if (divisor == 0 || std::isinf(dividend)) out = (T)INFINITY;
  else if (std::isinf(divisor) || dividend == 0) out = 0;
  else if (exponent(dividend) - exponent(divisor) < low) out = 0;
  else if (exponent(divisor) == top || exponent(dividend) - exponent(divisor) > top / 2 + 1) out = (T)INFINITY;
  else out = std::fabs(quotient);
  return negative ? -out : out;
}

static inline double two_over_pi(double x, u32 part) {  // V_TRIG_PREOP_F64: 53 bits of 2 / pi, as large as x calls for
  static const u64 BITS[] = {
    0xA2F9836E4E441529, 0xFC2757D1F534DDC0, 0xDB6295993C439041, 0xFE5163ABDEBBC561, 0xB7246E3A424DD2E0, 0x06492EEA09D1921C,
    0xFE1DEB1CB129A73E, 0xE88235F52EBB4484, 0xE99C7026B45F7E41, 0x3991D639835339F4, 0x9C845F8BBDF9283B, 0x1FF897FFDE05980F,
    0xEF2F118B5A0A6D1F, 0x6D367ECF27CB09B7, 0x4F463F669E5FEA2D, 0x7527BAC7EBE5F17B, 0x3D0739F78A5292EA, 0x6BFB5FB11F8D5D08,
    0x56033046FC7B0000, 0, 0};
  int shift = (int)part * 53 + (exponent(x) > 1077 ? exponent(x) - 1077 : 0), word = shift / 64, in_word = shift % 64;
  if (word > 18) return 0;
  u64 top = BITS[word] << in_word | (in_word ? BITS[word + 1] >> (64 - in_word) : 0);
  return std::ldexp((double)(top >> 11), -53 - shift + (exponent(x) >= 1968 ? 128 : 0));
}

static inline bool in_class(double x, bool subnormal, u32 mask) {
  int which = x != x ? 1 : std::isinf(x) ? (x < 0 ? 2 : 9) : x == 0 ? (std::signbit(x) ? 5 : 6) : subnormal ? (x < 0 ? 4 : 7) : (x < 0 ? 3 : 8);
  return mask >> which & 1;
}

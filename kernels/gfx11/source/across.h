// Instructions that look across lanes, at lane masks, or at several registers: carries, packed pairs, dot products, WMMA.
#pragma once
#include "scalar.h"

static void readfirstlane(Wave &w, const Instruction &in) {
  u32 b[LANES];
  const u32 *a = words(w, in, 0, b);
  set_scalar(w, in.dst, a[w.s[EXEC] ? trailing(w.s[EXEC]) : 0]);
}
static void readlane(Wave &w, const Instruction &in) {
  u32 b[LANES];
  const u32 *a = words(w, in, 0, b);
  set_scalar(w, in.dst, a[scalar_word(w, in, in.src[1]) & 31]);
}
static void writelane(Wave &w, const Instruction &in) {
  w.v[in.dst][scalar_word(w, in, in.src[1]) & 31] = scalar_word(w, in, in.src[0]);
  w.v_written[in.dst] = 1;
}
template <int OTHER> static void permlane(Wave &w, const Instruction &in) {
  u32 b[LANES], out[LANES];
  const u32 *a = words(w, in, 0, b);
  u64 select = (u64)scalar_word(w, in, in.src[2]) << 32 | scalar_word(w, in, in.src[1]);
  for (int l = 0; l < LANES; l++) out[l] = a[((l & 16) ^ OTHER) | (select >> 4 * (l & 15) & 15)];
  put(w, in, in.dst, out);
}
template <int HIGH_HALF> static void mbcnt(Wave &w, const Instruction &in) {
  u32 a[LANES], b[LANES], out[LANES];
  U::load(w, in, 0, a), U::load(w, in, 1, b);
  for (int l = 0; l < LANES; l++) out[l] = b[l] + (HIGH_HALF ? 0 : __builtin_popcount(a[l] & ((1u << l) - 1)));
  put(w, in, in.dst, out);
}
template <class K> static void cndmask(Wave &w, const Instruction &in) {
  typename K::T a[LANES], b[LANES];
  K::load(w, in, 0, a), K::load(w, in, 1, b);
  u32 choose = scalar_word(w, in, in.src[2]);
  for (int l = 0; l < LANES; l++) a[l] = choose >> l & 1 ? b[l] : a[l];
  K::store(w, in, a);
}
static void movrels(Wave &w, const Instruction &in) {  // the source's number plus M0
  Instruction one = in;
  one.src[0] += (int)w.s[M0];
  if (one.src[0] < VGPR || one.src[0] >= VGPR + w.launch->vgprs) fail(w, in, STATE, 0, one.src[0], 4);
  one.run = nullptr;
  u32 a[LANES];
  const u32 *from = w.v[one.src[0] - VGPR];
  if (!w.v_written[one.src[0] - VGPR]) note_unwritten(w, in, one.src[0]);
  memcpy(a, from, sizeof a);
  put(w, in, in.dst, a);
}
static void movreld(Wave &w, const Instruction &in) {  // the destination's number plus M0
  u32 a[LANES];
  U::load(w, in, 0, a);
  int reg = in.dst + (int)w.s[M0];
  if (reg < 0 || reg >= w.launch->vgprs) fail(w, in, STATE, 0, VGPR + reg, 4);
  put(w, in, reg, a);
}
static void movrelsd(Wave &w, const Instruction &in) {
  int from = in.src[0] - VGPR + (int)w.s[M0], to = in.dst + (int)w.s[M0];
  if (from < 0 || from >= w.launch->vgprs || to < 0 || to >= w.launch->vgprs) fail(w, in, STATE, 0, VGPR + to, 4);
  put(w, in, to, w.v[from]);
}
// A word of the third source, which takes several registers.
static u32 matrix_word(Wave &w, const Instruction &in, int r, int l) {
  if (in.src[2] < VGPR) return scalar_word(w, in, in.src[2]);
  if (!w.v_written[in.src[2] - VGPR + r]) note_unwritten(w, in, in.src[2] + r);
  return w.v[in.src[2] - VGPR + r][l];
}
template <bool SWAPS> static void movrel_two(Wave &w, const Instruction &in) {  // M0 holds an offset of each register
  int from = in.src[0] - VGPR + (int)(w.s[M0] & 1023), to = in.dst + (int)(w.s[M0] >> 16 & 1023);
  if (from >= w.launch->vgprs || to >= w.launch->vgprs) fail(w, in, STATE, 0, VGPR + to, 4);
  u32 a[LANES], b[LANES];
  memcpy(a, w.v[from], sizeof a), memcpy(b, w.v[to], sizeof b);
  put(w, in, to, a);
  if (SWAPS) put(w, in, from, b);
}
static void swap_half(Wave &w, const Instruction &in) {  // registers from 128 on are upper halves
  Instruction back = in;
  u32 a[LANES], b[LANES];
  back.dst = in.src[0] - VGPR, back.src[0] = in.dst + VGPR;
  halves(w, in, 0, a, false), halves(w, back, 0, b, false);
  put_half(w, in, a), put_half(w, back, b);
}
static void four_msads(Wave &w, const Instruction &in) {  // V_MQSAD_U32_U8
  u64 a[LANES];
  u32 b[LANES], out[4][LANES];
  UL::load(w, in, 0, a), U::load(w, in, 1, b);
  for (int i = 0; i < 4; i++)
    for (int l = 0; l < LANES; l++) out[i][l] = sad_masked((u32)(a[l] >> 8 * i), b[l], matrix_word(w, in, i, l));
  for (int i = 0; i < 4; i++) put(w, in, in.dst + i, out[i]);
}
static void swap(Wave &w, const Instruction &in) {
  u32 a[LANES], b[LANES];
  memcpy(a, w.v[in.src[0] - VGPR], sizeof a), memcpy(b, w.v[in.dst], sizeof b);
  put(w, in, in.src[0] - VGPR, b), put(w, in, in.dst, a);
}

// extra: 1 subtracts, 2 reversed, 4 takes the carry of src[2]
static void carry(Wave &w, const Instruction &in) {
  u32 a[LANES], b[LANES], out[LANES];
  U::load(w, in, 0, a), U::load(w, in, 1, b);
  u32 into = in.extra & 4 ? scalar_word(w, in, in.src[2]) : 0, mask = 0;
  for (int l = 0; l < LANES; l++) {
    u64 x = in.extra & 2 ? b[l] : a[l], y = in.extra & 2 ? a[l] : b[l], c = into >> l & 1;
    u64 total = in.extra & 1 ? x - y - c : x + y + c;
    out[l] = (u32)total, mask |= (u32)(total >> 32 & 1) << l;
  }
  put(w, in, in.dst, out);
  set_scalar(w, in.sdst, mask & w.writes);
}
static void mad_u64(Wave &w, const Instruction &in) {
  u32 a[LANES], b[LANES], mask = 0;
  u64 c[LANES];
  U::load(w, in, 0, a), U::load(w, in, 1, b), UL::load(w, in, 2, c);
  for (int l = 0; l < LANES; l++) {
    u64 product = (u64)a[l] * b[l], total = product + c[l];
    mask |= (u32)(total < product) << l, c[l] = total;
  }
  UL::store(w, in, c), set_scalar(w, in.sdst, mask & w.writes);
}
static void mad_i64(Wave &w, const Instruction &in) {
  i32 a[LANES], b[LANES];
  u32 mask = 0;
  i64 c[LANES];
  I::load(w, in, 0, a), I::load(w, in, 1, b), IL::load(w, in, 2, c);
  for (int l = 0; l < LANES; l++) {
    i64 total;
    mask |= (u32)__builtin_add_overflow((i64)a[l] * b[l], c[l], &total) << l, c[l] = total;
  }
  IL::store(w, in, c), set_scalar(w, in.sdst, mask & w.writes);
}
template <class K> static void scale(Wave &w, const Instruction &in) {
  typename K::T a[LANES], b[LANES], c[LANES];
  K::load(w, in, 0, a), K::load(w, in, 1, b), K::load(w, in, 2, c);
  u32 mask = 0;
  for (int l = 0; l < LANES; l++) {
    bool scaled;
    a[l] = div_scale(a[l], b[l], c[l], scaled);
    mask |= (u32)scaled << l;
  }
  K::store(w, in, a), set_scalar(w, in.sdst, mask & w.writes);
}
template <class K> static void fmas(Wave &w, const Instruction &in) {
  typename K::T a[LANES], b[LANES], c[LANES];
  K::load(w, in, 0, a), K::load(w, in, 1, b), K::load(w, in, 2, c);
  const int wide = sizeof a[0] == 4 ? 64 : 128, middle = sizeof a[0] == 4 ? 127 : 1023;
  u32 scaled = scalar_word(w, in, VCC);
  for (int l = 0; l < LANES; l++) {
    a[l] = scaled >> l & 1 ? fma_scaled(a[l], b[l], c[l], exponent(c[l]) > middle ? wide : -wide) : std::fma(a[l], b[l], c[l]);
  }
  K::store(w, in, a);
}

// ---- pairs of 16 bits in one register (VOP3P) ----
static u32 chosen(const Instruction &in, int place, u32 word, bool upper) {
  bool high = (upper ? in.high2 : in.high) >> place & 1;
  return high ? word >> 16 : word & 0xFFFF;
}
static void pair_words(Wave &w, const Instruction &in, int place, u32 *out) {
  if (in.src[place] >= 240 && in.src[place] <= 248) {
    for (int l = 0; l < LANES; l++) out[l] = narrow(CONSTANTS[in.src[place] - 240]);
    return;
  }
  U::load(w, in, place, out);
}
static u32 pair_constant(Wave &w, const Instruction &in) {  // of the third source, in 16 bits
  int code = in.src[2];
  return code >= 240 && code <= 248 ? narrow(CONSTANTS[code - 240]) : scalar_word(w, in, code) & 0xFFFF;
}
template <int COUNT, class Fn> static inline void packed_real(Wave &w, const Instruction &in, Fn fn) {
  u32 s[3][LANES], out[LANES];
  for (int i = 0; i < COUNT; i++) pair_words(w, in, i, s[i]);
  for (int l = 0; l < LANES; l++) {
    u32 made[2];
    for (int upper = 0; upper < 2; upper++) {
      float x[3] = {0, 0, 0};
      for (int i = 0; i < COUNT; i++) {
        x[i] = widen(chosen(in, i, s[i][l], upper));
        if ((upper ? in.neg_high : in.neg) >> i & 1) x[i] = -x[i];
      }
      float y = fn(x[0], x[1], x[2]);
      made[upper] = narrow(in.clamp ? (y != y || y < 0 ? 0 : y > 1 ? 1 : y) : y);
    }
    out[l] = made[0] | made[1] << 16;
  }
  put(w, in, in.dst, out);
}
template <int COUNT, bool SIGN, class Fn> static inline void packed_whole(Wave &w, const Instruction &in, Fn fn) {
  u32 s[3][LANES], out[LANES];
  for (int i = 0; i < COUNT; i++) U::load(w, in, i, s[i]);
  for (int l = 0; l < LANES; l++) {
    u32 made[2];
    for (int upper = 0; upper < 2; upper++) {
      i64 x[3] = {0, 0, 0};
      for (int i = 0; i < COUNT; i++) {
        u32 h = chosen(in, i, s[i][l], upper);
        x[i] = SIGN ? (i64)(i16)h : (i64)h;
      }
      i64 y = fn(x[0], x[1], x[2]);
      if (in.clamp) y = SIGN ? least<i64>(most<i64>(y, -32768), 32767) : least<i64>(most<i64>(y, 0), 65535);
      made[upper] = (u32)y & 0xFFFF;
    }
    out[l] = made[0] | made[1] << 16;
  }
  put(w, in, in.dst, out);
}
template <class Fn> static inline void dot2(Wave &w, const Instruction &in, Fn wide) {
  u32 a[LANES], b[LANES], c[LANES];
  float out[LANES];
  U::load(w, in, 0, a), U::load(w, in, 1, b), U::load(w, in, 2, c);
  for (int l = 0; l < LANES; l++) {
    float x[2], y[2], z = as_f(c[l]);
    for (int upper = 0; upper < 2; upper++) {
      x[upper] = wide(chosen(in, 0, a[l], upper)), y[upper] = wide(chosen(in, 1, b[l], upper));
      u8 neg = upper ? in.neg_high : in.neg;
      if (neg & 1) x[upper] = -x[upper];
      if (neg & 2) y[upper] = -y[upper];
    }
    if (in.neg & 4) z = -z;
#ifdef MOERACLE_PLANT  // a test's: the high product first
    out[l] = std::fma(x[0], y[0], std::fma(x[1], y[1], z));
#else
    out[l] = std::fma(x[1], y[1], std::fma(x[0], y[0], z));
#endif
    out[l] = output(in, out[l]);
  }
  put(w, in, in.dst, (const u32 *)out);
}
// Whole-number dot products: neg bit of a source: signed. SIZE bits of each of 32 / SIZE values.
template <int SIZE, int SIGNS> static void dot_whole(Wave &w, const Instruction &in) {
  u32 a[LANES], b[LANES];
  i32 c[LANES];
  U::load(w, in, 0, a), U::load(w, in, 1, b), I::load(w, in, 2, c);
  for (int l = 0; l < LANES; l++) {
    i64 total = SIGNS ? (i64)c[l] : (i64)(u32)c[l];
    for (int at = 0; at < 32; at += SIZE) {
      i64 x = a[l] >> at & ((1u << SIZE) - 1), y = b[l] >> at & ((1u << SIZE) - 1);
      if (SIGNS && (in.neg & 1)) x = (x ^ (1 << (SIZE - 1))) - (1 << (SIZE - 1));
      if (SIGNS && (in.neg & 2)) y = (y ^ (1 << (SIZE - 1))) - (1 << (SIZE - 1));
      total += x * y;
    }
    if (in.clamp) total = SIGNS ? least<i64>(most<i64>(total, -2147483648ll), 2147483647ll) : least<i64>(total, 4294967295ll);
    c[l] = (i32)total;
  }
  put(w, in, in.dst, (const u32 *)c);
}
// extra: 0 an fp32 result, 1 fp16 in the lower half, 2 in the upper half
static void mixed(Wave &w, const Instruction &in) {
  u32 s[3][LANES], half[LANES];
  float out[LANES];
  for (int i = 0; i < 3; i++) {
    bool is_half = in.high2 >> i & 1;
    if (is_half) pair_words(w, in, i, s[i]); else U::load(w, in, i, s[i]);
    for (int l = 0; l < LANES; l++) {
      float x = is_half ? widen(in.high >> i & 1 ? s[i][l] >> 16 : s[i][l] & 0xFFFF) : as_f(s[i][l]);
      if (in.neg_high >> i & 1) x = std::fabs(x);
      if (in.neg >> i & 1) x = -x;
      s[i][l] = as_u(x);
    }
  }
  for (int l = 0; l < LANES; l++) {
    out[l] = output(in, std::fma(as_f(s[0][l]), as_f(s[1][l]), as_f(s[2][l])));
    half[l] = narrow(out[l]);  // two roundings, as in AMD's pseudo-code
  }
  if (!in.extra) return put(w, in, in.dst, (const u32 *)out);
  Instruction one = in;
  one.dst_high = in.extra == 2;
  put_half(w, one, half);
}

// ---- D = A B + C, 16 x 16 x 16 ----
// Lane l holds row l % 16 of A and column l % 16 of B, in lanes 16..31 once more; register r of C and D is row 2 r + l / 16,
// column l % 16. The order of the sum is not published: here k ascending, each step one fma, as in the CPU emulation.
static void same_in_both_rows(Wave &w, const Instruction &in, int reg, int count) {
  for (int r = reg; r < reg + count; r++) {
    if (!w.v_written[r]) note_unwritten(w, in, VGPR + r);
    for (int l = 0; l < 16; l++)
      if (w.v[r][l] != w.v[r][l + 16]) fail(w, in, WMMA_LANES, l + 16, r, 4);
  }
}
static void set_matrix(Wave &w, const Instruction &in, int r, const u32 *values) {
  memcpy(w.v[in.dst + r], values, 4 * LANES), w.v_written[in.dst + r] = 1;
}
static float signed_matrix(const Instruction &in, float x) {
  if (in.neg_high & 4) x = std::fabs(x);
  return in.neg & 4 ? -x : x;
}
// t: C, which becomes D. `wide` makes a float of 16 bits.
template <class Fn> static inline void wmma_sum(Wave &w, const Instruction &in, float (*t)[LANES], Fn wide) {
  float a[16][16], b[16][LANES];
  auto value = [&](int i, int k, int l) {
    u32 word = w.v[in.src[i] - VGPR + k / 2][l];
    float x = wide(k & 1 ? word >> 16 : word & 0xFFFF);
    return (k & 1 ? in.neg_high : in.neg) >> i & 1 ? -x : x;
  };
  for (int i = 0; i < 2; i++) same_in_both_rows(w, in, in.src[i] - VGPR, 8);
  for (int k = 0; k < 16; k++)
    for (int l = 0; l < LANES; l++) {
      if (l < 16) a[k][l] = value(0, k, l);
      b[k][l] = value(1, k, l & 15);
    }
  for (int r = 0; r < 8; r++)
    for (int k = 0; k < 16; k++) {
      float low = a[k][2 * r], top = a[k][2 * r + 1];
      for (int l = 0; l < 16; l++) t[r][l] = std::fma(low, b[k][l], t[r][l]);
      for (int l = 16; l < LANES; l++) t[r][l] = std::fma(top, b[k][l], t[r][l]);
    }
}
template <class Fn> static inline void wmma(Wave &w, const Instruction &in, Fn wide) {
  float t[8][LANES];
  for (int r = 0; r < 8; r++)
    for (int l = 0; l < LANES; l++) t[r][l] = signed_matrix(in, as_f(matrix_word(w, in, r, l)));
  wmma_sum(w, in, t, wide);
  for (int r = 0; r < 8; r++) set_matrix(w, in, r, (const u32 *)t[r]);
}
// C and D of 16 bits: in the half of each register that op_sel names; the other half is kept. One rounding, at the end.
template <class Fn, class To> static inline void wmma_narrow(Wave &w, const Instruction &in, Fn wide, To narrowed) {
  const int shift = in.high & 4 ? 16 : 0;
  float t[8][LANES];
  for (int r = 0; r < 8; r++)
    for (int l = 0; l < LANES; l++)
      t[r][l] = signed_matrix(in, in.src[2] < VGPR ? wide(pair_constant(w, in)) : wide(matrix_word(w, in, r, l) >> shift & 0xFFFF));
  wmma_sum(w, in, t, wide);
  for (int r = 0; r < 8; r++) {
    u32 out[LANES];
    for (int l = 0; l < LANES; l++) out[l] = (w.v[in.dst + r][l] & 0xFFFF0000u >> shift) | narrowed(t[r][l]) << shift;
    set_matrix(w, in, r, out);
  }
}
template <int SIZE> static void wmma_whole(Wave &w, const Instruction &in) {
  const int per = 32 / SIZE, count = 16 / per;
  int first[2] = {in.src[0] - VGPR, in.src[1] - VGPR};
  for (int i = 0; i < 2; i++) same_in_both_rows(w, in, first[i], count);
  auto value = [&](int i, int k, int l) {
    i32 x = w.v[first[i] + k / per][l] >> SIZE * (k % per) & ((1 << SIZE) - 1);
    return in.neg >> i & 1 ? (x ^ (1 << (SIZE - 1))) - (1 << (SIZE - 1)) : x;
  };
  i32 t[8][LANES];
  for (int r = 0; r < 8; r++)
    for (int l = 0; l < LANES; l++) {
      i64 total = (i32)matrix_word(w, in, r, l);
      for (int k = 0; k < 16; k++) total += (i64)value(0, k, 2 * r + l / 16) * value(1, k, l & 15);
      t[r][l] = (i32)(in.clamp ? least<i64>(most<i64>(total, -2147483648ll), 2147483647ll) : total);
    }
  for (int r = 0; r < 8; r++) set_matrix(w, in, r, (const u32 *)t[r]);
}

#define RUN(NAME, ...) {#NAME, [](Wave &w, const Instruction &in) { __VA_ARGS__; }},
#define REALS(NAME, COUNT, X) RUN(NAME, (packed_real<COUNT>(w, in, [](float a, float b, float c) -> float { return (void)b, (void)c, X; })))
#define WHOLES(NAME, COUNT, SIGN, X) RUN(NAME, (packed_whole<COUNT, SIGN>(w, in, [](i64 a, i64 b, i64 c) -> i64 { return (void)c, X; })))
static const Entry ACROSS[] = {
  RUN(V_NOP, (void)w, (void)in) RUN(V_READFIRSTLANE_B32, readfirstlane(w, in)) RUN(V_READLANE_B32, readlane(w, in)) RUN(V_WRITELANE_B32, writelane(w, in))
  RUN(V_PERMLANE16_B32, permlane<0>(w, in)) RUN(V_PERMLANEX16_B32, permlane<16>(w, in)) RUN(V_MBCNT_LO_U32_B32, mbcnt<0>(w, in))
  RUN(V_MBCNT_HI_U32_B32, mbcnt<1>(w, in)) RUN(V_CNDMASK_B32, cndmask<B>(w, in)) RUN(V_CNDMASK_B16, cndmask<BH>(w, in))
  RUN(V_MOVRELS_B32, movrels(w, in)) RUN(V_MOVRELD_B32, movreld(w, in)) RUN(V_MOVRELSD_B32, movrelsd(w, in)) RUN(V_SWAP_B32, swap(w, in))
  RUN(V_MOVRELSD_2_B32, movrel_two<false>(w, in)) RUN(V_SWAPREL_B32, movrel_two<true>(w, in)) RUN(V_SWAP_B16, swap_half(w, in)) RUN(V_MQSAD_U32_U8, four_msads(w, in))
  RUN(V_ADD_CO_U32, carry(w, in)) RUN(V_SUB_CO_U32, carry(w, in)) RUN(V_SUBREV_CO_U32, carry(w, in)) RUN(V_ADD_CO_CI_U32, carry(w, in))
  RUN(V_SUB_CO_CI_U32, carry(w, in)) RUN(V_SUBREV_CO_CI_U32, carry(w, in)) RUN(V_MAD_U64_U32, mad_u64(w, in)) RUN(V_MAD_I64_I32, mad_i64(w, in))
  RUN(V_DIV_SCALE_F32, scale<F>(w, in)) RUN(V_DIV_SCALE_F64, scale<D>(w, in)) RUN(V_DIV_FMAS_F32, fmas<F>(w, in)) RUN(V_DIV_FMAS_F64, fmas<D>(w, in))
  REALS(V_PK_ADD_F16, 2, a + b) REALS(V_PK_MUL_F16, 2, a * b) REALS(V_PK_FMA_F16, 3, fma_half(a, b, c)) REALS(V_PK_MIN_F16, 2, least(a, b)) REALS(V_PK_MAX_F16, 2, most(a, b))
  WHOLES(V_PK_ADD_U16, 2, false, a + b) WHOLES(V_PK_SUB_U16, 2, false, a - b) WHOLES(V_PK_MUL_LO_U16, 2, false, a * b & 0xFFFF) WHOLES(V_PK_ADD_I16, 2, true, a + b)
  WHOLES(V_PK_SUB_I16, 2, true, a - b) WHOLES(V_PK_LSHLREV_B16, 2, false, b << (a & 15) & 0xFFFF) WHOLES(V_PK_LSHRREV_B16, 2, false, b >> (a & 15))
  WHOLES(V_PK_ASHRREV_I16, 2, true, b >> (a & 15)) WHOLES(V_PK_MAD_U16, 3, false, a * b + c) WHOLES(V_PK_MAD_I16, 3, true, a * b + c)
  WHOLES(V_PK_MIN_U16, 2, false, least(a, b)) WHOLES(V_PK_MAX_U16, 2, false, most(a, b)) WHOLES(V_PK_MIN_I16, 2, true, least(a, b)) WHOLES(V_PK_MAX_I16, 2, true, most(a, b))
  RUN(V_DOT2_F32_F16, (dot2(w, in, [](u32 h) { return widen(h); }))) RUN(V_DOT2_F32_BF16, (dot2(w, in, [](u32 h) { return bf(h); })))
  RUN(V_DOT4_I32_IU8, (dot_whole<8, 1>(w, in))) RUN(V_DOT4_U32_U8, (dot_whole<8, 0>(w, in))) RUN(V_DOT8_I32_IU4, (dot_whole<4, 1>(w, in)))
  RUN(V_DOT8_U32_U4, (dot_whole<4, 0>(w, in))) RUN(V_FMA_MIX_F32, mixed(w, in)) RUN(V_FMA_MIXLO_F16, mixed(w, in)) RUN(V_FMA_MIXHI_F16, mixed(w, in))
  RUN(V_WMMA_F32_16X16X16_F16, (wmma(w, in, [](u32 h) { return widen(h); }))) RUN(V_WMMA_F32_16X16X16_BF16, (wmma(w, in, [](u32 h) { return bf(h); })))
  RUN(V_WMMA_F16_16X16X16_F16, (wmma_narrow(w, in, [](u32 h) { return widen(h); }, narrow)))
  RUN(V_WMMA_BF16_16X16X16_BF16, (wmma_narrow(w, in, [](u32 h) { return bf(h); }, narrow_bf)))
  RUN(V_WMMA_I32_16X16X16_IU8, wmma_whole<8>(w, in)) RUN(V_WMMA_I32_16X16X16_IU4, wmma_whole<4>(w, in))
};

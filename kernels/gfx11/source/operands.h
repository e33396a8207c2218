// Reading sources and writing results: registers, constants, modifiers, lane patterns (DPP), masks.
#pragma once
#include <type_traits>
#include "numbers.h"

static const float CONSTANTS[] = {0.5f, -0.5f, 1, -1, 2, -2, 4, -4, 0.15915494f};
static const u32 SHARED_APERTURE = 0x00010000, PRIVATE_APERTURE = 0x00020000;  // upper words of generic addresses

static inline void note_unwritten(Wave &w, const Instruction &in, int reg) {
  i64 at = &in - w.launch->program;
  if (!w.launch->unwritten[at]) w.launch->unwritten[at] = 1, w.launch->unwritten_register[at] = reg;
}

static inline u32 scalar_word(Wave &w, const Instruction &in, int code) {
  if (code < 128) {
    if (code == NUL) return 0;
    if (__builtin_expect(!w.s_written[code], 0)) note_unwritten(w, in, code);
    return w.s[code];
  }
  if (code <= 192) return code - 128;
  if (code <= 208) return 192 - code;
  switch (code) {
    case SCC: return w.scc;
    case LITERAL: return in.literal;
    case 235: return SHARED_APERTURE;
    case 237: return PRIVATE_APERTURE;
    case 251: return w.s[VCC] == 0;
    case 252: return w.s[EXEC] == 0;
  }
  if (code >= 240 && code <= 248) return as_u(CONSTANTS[code - 240]);
  fail(w, in, STATE, 0, code, 0);
}
static inline u64 scalar_pair(Wave &w, const Instruction &in, int code) {
  if (code < 128) return code == NUL ? 0 : (u64)scalar_word(w, in, code + 1) << 32 | scalar_word(w, in, code);
  if (code > 192 && code <= 208) return (u64)(i64)(192 - code);
  if (code == 235 || code == 237) return (u64)scalar_word(w, in, code) << 32;
  if (code >= 240 && code <= 248) return bits<u64>(code == 248 ? 0.15915494309189532 : (double)CONSTANTS[code - 240]);
  return scalar_word(w, in, code);
}
static inline void set_scalar(Wave &w, int code, u32 value) {
  if (code != NUL) w.s[code] = value, w.s_written[code] = 1;
}
static inline void set_pair(Wave &w, int code, u64 value) {
  if (code != NUL) set_scalar(w, code, (u32)value), set_scalar(w, code + 1, (u32)(value >> 32));
}

static inline int dpp_lane(int control, int lane) {  // the lane that is read, -1: none
  int inside = lane & 15, n = control & 15, place;
#ifdef MOERACLE_PLANT  // a test's: shifts turned the other way
  if (control > 0x110 && control < 0x120) control -= 0x10;
#endif
  if (control >> 24) return (lane & ~7) | (control >> 3 * (lane & 7) & 7);  // DPP8
  if (control < 0x100) place = (inside & ~3) | (control >> 2 * (lane & 3) & 3);
  else if (control < 0x110) place = inside + n;
  else if (control < 0x120) place = inside - n;
  else if (control < 0x130) place = (inside - n) & 15;
  else if (control == 0x140) place = 15 - inside;
  else if (control == 0x141) place = (inside & 8) | (7 - (inside & 7));
  else if (control < 0x160) place = n;
  else place = inside ^ n;
  return place < 0 || place > 15 ? -1 : (lane & 16) | place;
}

static inline const u32 *moved(Wave &w, const Instruction &in, const u32 *from, u32 *out) {
  for (int l = 0; l < LANES; l++) {
    int source = dpp_lane(in.dpp, l);
    bool valid = source >= 0 && (in.fetch_inactive || w.s[EXEC] >> source & 1);
    out[l] = valid ? from[source] : 0;
    bool enabled = (in.row_mask >> (l >> 4) & 1) && (in.bank_mask >> (l >> 2 & 3) & 1);
    if (!enabled || !(valid || in.bound)) w.writes &= ~(1u << l);
  }
  return out;
}

static inline const u32 *words(Wave &w, const Instruction &in, int place, u32 *buffer) {
  int code = in.src[place];
  const u32 *from;
  if (code >= VGPR) {
    if (__builtin_expect(!w.v_written[code - VGPR], 0)) note_unwritten(w, in, code);
    from = w.v[code - VGPR];
  } else {
    u32 value = scalar_word(w, in, code);
    for (int l = 0; l < LANES; l++) buffer[l] = value;
    from = buffer;
  }
  if (place == 0 && in.dpp >= 0) {
    u32 copy[LANES];
    memcpy(copy, from, sizeof copy);
    return moved(w, in, copy, buffer);
  }
  return from;
}
static inline void halves(Wave &w, const Instruction &in, int place, u32 *out, bool floating) {
  int code = in.src[place];
  bool high = in.high >> place & 1;
  Instruction copy;
  const Instruction *one = &in;
  if ((in.flags & SHORT) && code >= VGPR + 128) copy = in, copy.src[place] -= 128, high = true, one = &copy;
  if (code >= 240 && code <= 248 && floating) {
    for (int l = 0; l < LANES; l++) out[l] = narrow(CONSTANTS[code - 240]);
    return;
  }
  u32 buffer[LANES];
  const u32 *from = words(w, *one, place, buffer);
  for (int l = 0; l < LANES; l++) out[l] = high ? from[l] >> 16 : from[l] & 0xFFFF;
}
static inline void pairs(Wave &w, const Instruction &in, int place, u64 *out) {
  int code = in.src[place];
  if (code >= VGPR) {
    for (int i = 0; i < 2; i++)
      if (!w.v_written[code - VGPR + i]) note_unwritten(w, in, code + i);
    for (int l = 0; l < LANES; l++) out[l] = (u64)w.v[code - VGPR + 1][l] << 32 | w.v[code - VGPR][l];
    return;
  }
  u64 value = scalar_pair(w, in, code);
  for (int l = 0; l < LANES; l++) out[l] = value;
}

static inline void put(Wave &w, const Instruction &in, int reg, const u32 *values) {
  if (in.flags & DEFER) {
    w.deferred = 1, w.held_dst = reg, w.held_mask = w.writes;
    memcpy(w.held, values, sizeof w.held);
    return;
  }
  u32 *to = w.v[reg], mask = w.writes;
  w.v_written[reg] = 1;
  if (mask == 0xFFFFFFFF) memcpy(to, values, sizeof w.held);
  else
    for (int l = 0; l < LANES; l++) to[l] = mask >> l & 1 ? values[l] : to[l];
}
static inline void put_half(Wave &w, const Instruction &in, const u32 *values) {
  int reg = in.dst;
  bool high = in.dst_high;
  if ((in.flags & SHORT) && reg >= 128) reg -= 128, high = true;
  u32 out[LANES];
  const u32 *old = w.v[reg];
  for (int l = 0; l < LANES; l++) out[l] = high ? (old[l] & 0xFFFF) | values[l] << 16 : (old[l] & 0xFFFF0000) | (values[l] & 0xFFFF);
  put(w, in, reg, out);
}

static inline float output(const Instruction &in, float x) {
  if (in.omod) x *= in.omod == 1 ? 2.0f : in.omod == 2 ? 4.0f : 0.5f;
  if (in.clamp) x = x != x ? 0 : x < 0 ? 0 : x > 1 ? 1 : x;
  return x;
}
template <class T> static inline T modified(const Instruction &in, int place, T x) {
  if (in.abs >> place & 1) x = std::fabs(x);
  return in.neg >> place & 1 ? -x : x;
}

// Kinds of operands. T: what a formula computes with.
struct U { typedef u32 T;  // 32 bits
  static void load(Wave &w, const Instruction &in, int p, T *a) { u32 b[LANES]; memcpy(a, words(w, in, p, b), 4 * LANES); }
  static void store(Wave &w, const Instruction &in, const T *a) { put(w, in, in.dst, a); }
  static T scalar(Wave &w, const Instruction &in, int p) { return scalar_word(w, in, in.src[p]); }
  static void set(Wave &w, const Instruction &in, T x) { set_scalar(w, in.sdst, x); } };
struct I { typedef i32 T;
  static void load(Wave &w, const Instruction &in, int p, T *a) { U::load(w, in, p, (u32 *)a); }
  static void store(Wave &w, const Instruction &in, const T *a) { put(w, in, in.dst, (const u32 *)a); }
  static T scalar(Wave &w, const Instruction &in, int p) { return (i32)scalar_word(w, in, in.src[p]); }
  static void set(Wave &w, const Instruction &in, T x) { set_scalar(w, in.sdst, (u32)x); } };
struct B { typedef u32 T;  // 32 bits that may be a float: sign modifiers count
  static void load(Wave &w, const Instruction &in, int p, T *a) {
    U::load(w, in, p, a);
    u32 clear = in.abs >> p & 1 ? 0x7FFFFFFF : 0xFFFFFFFF, flip = in.neg >> p & 1 ? 0x80000000 : 0;
    for (int l = 0; l < LANES; l++) a[l] = (a[l] & clear) ^ flip; }
  static void store(Wave &w, const Instruction &in, const T *a) { put(w, in, in.dst, a); } };
struct F { typedef float T;
  static void load(Wave &w, const Instruction &in, int p, T *a) {
    U::load(w, in, p, (u32 *)a);
    if ((in.neg | in.abs) >> p & 1) for (int l = 0; l < LANES; l++) a[l] = modified(in, p, a[l]); }
  static void store(Wave &w, const Instruction &in, T *a) {
    if (in.omod | in.clamp) for (int l = 0; l < LANES; l++) a[l] = output(in, a[l]);
    put(w, in, in.dst, (const u32 *)a); }
  static T scalar(Wave &w, const Instruction &in, int p) { return as_f(scalar_word(w, in, in.src[p])); }
  static void set(Wave &w, const Instruction &in, T x) { set_scalar(w, in.sdst, as_u(x)); } };
struct H { typedef float T;  // fp16, widened; results rounded once
  static void load(Wave &w, const Instruction &in, int p, T *a) {
    u32 h[LANES];
    halves(w, in, p, h, true);
    for (int l = 0; l < LANES; l++) a[l] = modified(in, p, widen(h[l])); }
  static void store(Wave &w, const Instruction &in, T *a) {
    u32 h[LANES];
    for (int l = 0; l < LANES; l++) h[l] = narrow(output(in, a[l]));
    put_half(w, in, h); } };
struct UH { typedef u32 T;  // 16 bits
  static void load(Wave &w, const Instruction &in, int p, T *a) { halves(w, in, p, a, false); }
  static void store(Wave &w, const Instruction &in, const T *a) { put_half(w, in, a); } };
struct IH { typedef i32 T;
  static void load(Wave &w, const Instruction &in, int p, T *a) {
    halves(w, in, p, (u32 *)a, false);
    for (int l = 0; l < LANES; l++) a[l] = (i16)a[l]; }
  static void store(Wave &w, const Instruction &in, const T *a) { put_half(w, in, (const u32 *)a); } };
struct BH { typedef u32 T;  // 16 bits that may be a float
  static void load(Wave &w, const Instruction &in, int p, T *a) {
    halves(w, in, p, a, true);
    u32 clear = in.abs >> p & 1 ? 0x7FFF : 0xFFFF, flip = in.neg >> p & 1 ? 0x8000 : 0;
    for (int l = 0; l < LANES; l++) a[l] = (a[l] & clear) ^ flip; }
  static void store(Wave &w, const Instruction &in, const T *a) { put_half(w, in, a); } };
struct UL { typedef u64 T;  // 64 bits
  static void load(Wave &w, const Instruction &in, int p, T *a) { pairs(w, in, p, a); }
  static void store(Wave &w, const Instruction &in, const T *a) {
    u32 low[LANES], top[LANES];
    for (int l = 0; l < LANES; l++) low[l] = (u32)a[l], top[l] = (u32)(a[l] >> 32);
    put(w, in, in.dst, low), put(w, in, in.dst + 1, top); }
  static T scalar(Wave &w, const Instruction &in, int p) { return scalar_pair(w, in, in.src[p]); }
  static void set(Wave &w, const Instruction &in, T x) { set_pair(w, in.sdst, x); } };
struct IL { typedef i64 T;
  static void load(Wave &w, const Instruction &in, int p, T *a) {
    pairs(w, in, p, (u64 *)a);
    if (in.src[p] == LITERAL) for (int l = 0; l < LANES; l++) a[l] = (i32)in.literal; }
  static void store(Wave &w, const Instruction &in, const T *a) { UL::store(w, in, (const u64 *)a); }
  static T scalar(Wave &w, const Instruction &in, int p) { return in.src[p] == LITERAL ? (i32)in.literal : (i64)scalar_pair(w, in, in.src[p]); }
  static void set(Wave &w, const Instruction &in, T x) { set_pair(w, in.sdst, (u64)x); } };
struct D { typedef double T;
  static void load(Wave &w, const Instruction &in, int p, T *a) {
    pairs(w, in, p, (u64 *)a);
    if (in.src[p] == LITERAL) for (int l = 0; l < LANES; l++) a[l] = bits<double>((u64)in.literal << 32);
    for (int l = 0; l < LANES; l++) a[l] = modified(in, p, a[l]); }
  static void store(Wave &w, const Instruction &in, T *a) {
    for (int l = 0; l < LANES; l++) {
      if (in.omod) a[l] *= in.omod == 1 ? 2.0 : in.omod == 2 ? 4.0 : 0.5;
      if (in.clamp) a[l] = a[l] != a[l] ? 0 : a[l] < 0 ? 0 : a[l] > 1 ? 1 : a[l];
    }
    UL::store(w, in, (const u64 *)a); } };
// Whole-number results whose formula is exact in 64 bits: wrapped, or with clamp saturated.
#define SATURATING(NAME, BASE, LOW, HIGH)                                                                  \
  struct NAME { typedef i64 T;                                                                             \
    static void store(Wave &w, const Instruction &in, const T *a) {                                        \
      BASE::T out[LANES];                                                                                  \
      for (int l = 0; l < LANES; l++) out[l] = (BASE::T)(!in.clamp ? a[l] : a[l] < LOW ? LOW : a[l] > HIGH ? HIGH : a[l]); \
      BASE::store(w, in, out); } };
SATURATING(SU, U, 0, 4294967295ll)
SATURATING(SI, I, -2147483648ll, 2147483647ll)
SATURATING(SUH, UH, 0, 65535)
SATURATING(SIH, IH, -32768, 32767)

template <class R, class A, class Fn> static inline void lanes1(Wave &w, const Instruction &in, Fn fn) {
  typename A::T a[LANES]; typename R::T r[LANES];
  A::load(w, in, 0, a);
  for (int l = 0; l < LANES; l++) r[l] = fn(a[l]);
  R::store(w, in, r);
}
template <class R, class A, class C, class Fn> static inline void lanes2(Wave &w, const Instruction &in, Fn fn) {
  typename A::T a[LANES]; typename C::T b[LANES]; typename R::T r[LANES];
  A::load(w, in, 0, a), C::load(w, in, 1, b);
  for (int l = 0; l < LANES; l++) r[l] = fn(a[l], b[l]);
  R::store(w, in, r);
}
template <class R, class A, class C, class E, class Fn> static inline void lanes3(Wave &w, const Instruction &in, Fn fn) {
  typename A::T a[LANES]; typename C::T b[LANES]; typename E::T c[LANES]; typename R::T r[LANES];
  A::load(w, in, 0, a), C::load(w, in, 1, b), E::load(w, in, 2, c);
  for (int l = 0; l < LANES; l++) r[l] = fn(a[l], b[l], c[l]);
  R::store(w, in, r);
}
template <class A, class C, class Fn> static inline void compare(Wave &w, const Instruction &in, Fn fn) {
  typename A::T a[LANES]; typename C::T b[LANES];
  A::load(w, in, 0, a), C::load(w, in, 1, b);
  u32 mask = 0;
  for (int l = 0; l < LANES; l++) mask |= (u32)(bool)fn(a[l], b[l]) << l;
  set_scalar(w, in.sdst, mask & w.writes);
}

// Global memory, LDS and scratch: every access is checked against what was allocated.
#pragma once
#include "across.h"

static const u64 BASE = 1ull << 44;  // device address of region 0; each region has 2^REGION_BITS addresses
enum { REGION_BITS = 36 };

static inline u8 *global_at(Wave &w, const Instruction &in, int lane, u64 address, int size, bool write) {
  u64 rel = address - BASE, region = rel >> REGION_BITS, offset = rel & ((1ull << REGION_BITS) - 1);
  if (__builtin_expect(region >= (u64)w.launch->region_count, 0)) fail(w, in, OUTSIDE, lane, address, size);
  const Region &r = w.launch->regions[region];
  if (__builtin_expect(offset + size > r.size, 0)) fail(w, in, OUTSIDE, lane, address, size);
  if (write && __builtin_expect(!r.writable, 0)) fail(w, in, READ_ONLY, lane, address, size);
  return r.bytes + offset;
}

// Byte by byte: what one wave wrote and another reads or writes, or read and another writes, with no barrier between.
static void touch(Wave &w, const Instruction &in, int lane, u32 offset, int size, bool write, bool atomic) {
  Group &g = *w.group;
  const u32 me = w.number + 1;
  const i32 here = (i32)(&in - w.launch->program);
  for (u32 at = offset; at < offset + size; at++) {
    Shadow &s = g.shadow[at];
    if ((!write || atomic) && s.written != g.serial) fail(w, in, LDS_UNINITIALIZED, lane, offset, size);
    const u32 by = s.writer & 255;
    const bool wrote = s.writer >> 8 == g.epoch;
    if (wrote && (by & WAVES) != me && !(atomic && by & ATOMIC)) fail(w, in, LDS_RACE, lane, offset, size, by, s.writer_at);
    if (!write) {
      const bool more = s.reader >> 8 == g.epoch && (s.reader & 255) != me;
      s.reader = g.epoch << 8 | (more ? (u32)WAVES : me), s.reader_at = here;
      continue;
    }
    if (s.reader >> 8 == g.epoch && (s.reader & 255) != me) fail(w, in, LDS_RACE, lane, offset, size, -(i64)(s.reader & 255), s.reader_at);
    const u32 tag = wrote && (by & WAVES) != me ? (u32)WAVES : me;
    s.writer = g.epoch << 8 | tag | (atomic && (!wrote || by & ATOMIC) ? (u32)ATOMIC : 0);
    s.writer_at = here, s.written = g.serial;
  }
}
static inline u8 *lds_at(Wave &w, const Instruction &in, int lane, u32 offset, int size, bool write, bool atomic = false) {
  if (__builtin_expect((u64)offset + size > (u64)w.launch->lds, 0)) fail(w, in, LDS_OUTSIDE, lane, offset, size);
  if (w.launch->checks) touch(w, in, lane, offset, size, write, atomic);
  return w.group->lds + offset;
}
static inline u8 *scratch_at(Wave &w, const Instruction &in, int lane, u32 offset, int size) {
  if ((u64)offset + size > (u64)w.launch->scratch) fail(w, in, SCRATCH_OUTSIDE, lane, offset, size);
  return w.scratch + (u64)lane * w.launch->scratch + offset;
}
enum Space { GLOBAL, FLAT, DS, SCRATCH };
template <Space S> static inline u8 *place(Wave &w, const Instruction &in, int lane, u64 address, int size, bool write, bool atomic = false) {
  if (S == DS) return lds_at(w, in, lane, (u32)address, size, write, atomic);
  if (S == SCRATCH) return scratch_at(w, in, lane, (u32)address, size);
  if (S == FLAT && address >> 32 == SHARED_APERTURE) return lds_at(w, in, lane, (u32)address, size, write, atomic);
  if (S == FLAT && address >> 32 == PRIVATE_APERTURE) return scratch_at(w, in, lane, (u32)address, size);
  return global_at(w, in, lane, address, size, write);
}
template <Space S> static inline void addresses(Wave &w, const Instruction &in, u64 *out) {
  if (S == DS || S == SCRATCH) {
    u32 base = in.flags & HAS_SADDR ? scalar_word(w, in, in.src[1]) : 0, a[LANES];
    if (in.flags & HAS_VADDR) U::load(w, in, 0, a);
    else memset(a, 0, sizeof a);
    for (int l = 0; l < LANES; l++) out[l] = (u32)(a[l] + base + (u32)in.offset);
  } else if (in.flags & HAS_SADDR) {
    u64 base = scalar_pair(w, in, in.src[1]) + in.offset;
    u32 a[LANES];
    U::load(w, in, 0, a);
    for (int l = 0; l < LANES; l++) out[l] = base + a[l];
  } else {
    UL::load(w, in, 0, out);
    for (int l = 0; l < LANES; l++) out[l] += in.offset;
  }
}

template <Space S> static inline void load_one(Wave &w, const Instruction &in, const u64 *at, int dst) {
  u32 got[4][LANES];
  int size = in.size, count = (size + 3) / 4;
  memset(got, 0, sizeof got[0] * count);
  for (int l = 0; l < LANES; l++) {
    if (!(w.writes >> l & 1)) continue;
    const u8 *from = place<S>(w, in, l, at[l], size, false);
    if (size == 4) memcpy(&got[0][l], from, 4);
    else if (size < 4) {
      u32 x = 0;
      memcpy(&x, from, size);
      if (in.flags & SIGNED) x = size == 1 ? (u32)(i8)x : (u32)(i16)x;
      got[0][l] = x;
    } else {
      u32 x[4];
      memcpy(x, from, size);
      for (int i = 0; i < count; i++) got[i][l] = x[i];
    }
  }
  if (in.flags & HALF) {
    Instruction one = in;
    one.dst = dst, one.dst_high = in.flags & HIGH ? 1 : 0, one.flags &= ~SHORT;
    return put_half(w, one, got[0]);
  }
  for (int i = 0; i < count; i++) put(w, in, dst + i, got[i]);
}
template <Space S> static inline void store_one(Wave &w, const Instruction &in, const u64 *at, int data) {
  int size = in.size, count = (size + 3) / 4;
  for (int i = 0; i < count; i++)
    if (!w.v_written[data + i]) note_unwritten(w, in, VGPR + data + i);
  for (int i = 0; i < LANES; i++) {
    int l = w.group->lane_order[i];
    if (!(w.writes >> l & 1)) continue;
    u8 *to = place<S>(w, in, l, at[l], size, true);
    u32 x[4];
    for (int k = 0; k < count; k++) x[k] = w.v[data + k][l];
    if (in.flags & HIGH) x[0] >>= 16;
    memcpy(to, x, size);
  }
}
template <Space S> static void load(Wave &w, const Instruction &in) {
  u64 at[LANES];
  addresses<S>(w, in, at);
  if (!(in.flags & TWO)) return load_one<S>(w, in, at, in.dst);
  u64 other[LANES];
  for (int l = 0; l < LANES; l++) other[l] = (u32)(at[l] + in.extra);
  load_one<S>(w, in, at, in.dst), load_one<S>(w, in, other, in.dst + in.size / 4);
}
template <Space S> static void store(Wave &w, const Instruction &in) {
  u64 at[LANES];
  addresses<S>(w, in, at);
  store_one<S>(w, in, at, in.src[2] - VGPR);
  if (!(in.flags & TWO)) return;
  for (int l = 0; l < LANES; l++) at[l] = (u32)(at[l] + in.extra);
  store_one<S>(w, in, at, in.src[3] - VGPR);
}

static void scalar_load(Wave &w, const Instruction &in) {
  u64 address = scalar_pair(w, in, in.src[0]) + in.offset + (in.flags & HAS_SADDR ? scalar_word(w, in, in.src[1]) : 0);
  u32 got[16];
  memcpy(got, global_at(w, in, 0, address & ~3ull, in.size, false), in.size);
  for (int i = 0; i < in.size / 4; i++) set_scalar(w, in.sdst + i, got[i]);
}

enum Change { SWAP, CMPSWAP, ADD, SUB, RSUB, MIN_I, MIN_U, MAX_I, MAX_U, AND, OR, XOR, INC, DEC, ADD_F, MIN_F, MAX_F, CSUB, CMPSWAP_F };
template <class T, class SIGNED_T, class REAL_T> static inline T changed(int what, T old, T data, T expected) {
  switch (what) {
    case SWAP: return data;
    case CMPSWAP: return old == expected ? data : old;
    case CMPSWAP_F: return bits<REAL_T>(old) == bits<REAL_T>(expected) ? data : old;
    case ADD: return old + data;
    case SUB: return old - data;
    case RSUB: return data - old;
    case CSUB: return old < data ? 0 : old - data;
    case MIN_I: return (T)least((SIGNED_T)old, (SIGNED_T)data);
    case MAX_I: return (T)most((SIGNED_T)old, (SIGNED_T)data);
    case MIN_U: return least(old, data);
    case MAX_U: return most(old, data);
    case AND: return old & data;
    case OR: return old | data;
    case XOR: return old ^ data;
    case INC: return old >= data ? 0 : old + 1;
    case DEC: return old == 0 || old > data ? data : old - 1;
    case ADD_F: return bits<T>((REAL_T)(bits<REAL_T>(old) + bits<REAL_T>(data)));
    case MIN_F: return bits<T>(least(bits<REAL_T>(data), bits<REAL_T>(old)));
    default: return bits<T>(most(bits<REAL_T>(data), bits<REAL_T>(old)));
  }
}
// data in src[2], what is expected in src[3]; `old`: what memory held
template <Space S> static inline void change(Wave &w, const Instruction &in, const u64 *at, u32 (*old)[LANES]) {
  memset(old, 0, 2 * sizeof *old);
  int data = in.src[2] - VGPR, expected = in.src[3] - VGPR;
  for (int i = 0; i < in.size / 4; i++) {
    if (!w.v_written[data + i]) note_unwritten(w, in, VGPR + data + i);
    if (in.src[3] && !w.v_written[expected + i]) note_unwritten(w, in, VGPR + expected + i);
  }
  for (int i = 0; i < LANES; i++) {
    int l = w.group->lane_order[i];
    if (!(w.writes >> l & 1)) continue;
    if (at[l] & (in.size - 1)) fail(w, in, MISALIGNED, l, at[l], in.size);
    u8 *p = place<S>(w, in, l, at[l], in.size, true, true);
    if (in.size == 4) {
      u32 before;
      memcpy(&before, p, 4);
      u32 after = changed<u32, i32, float>(in.extra, before, w.v[data][l], in.src[3] ? w.v[expected][l] : 0);
      memcpy(p, &after, 4), old[0][l] = before;
    } else {
      u64 before;
      memcpy(&before, p, 8);
      auto pair = [&](int r) { return (u64)w.v[r + 1][l] << 32 | w.v[r][l]; };
      u64 after = changed<u64, i64, double>(in.extra, before, pair(data), in.src[3] ? pair(expected) : 0);
      memcpy(p, &after, 8), old[0][l] = (u32)before, old[1][l] = (u32)(before >> 32);
    }
  }
}
static inline void returned(Wave &w, const Instruction &in, u32 (*old)[LANES]) {
  if (!(in.flags & RETURN)) return;
  put(w, in, in.dst, old[0]);
  if (in.size == 8) put(w, in, in.dst + 1, old[1]);
}
template <Space S> static void atomic(Wave &w, const Instruction &in) {
  u64 at[LANES];
  u32 old[2][LANES];
  addresses<S>(w, in, at);
  change<S>(w, in, at, old);
  returned(w, in, old);
}

static void bpermute(Wave &w, const Instruction &in) {
  u32 a[LANES], d[LANES], out[LANES];
  U::load(w, in, 0, a), U::load(w, in, 2, d);
  for (int l = 0; l < LANES; l++) {
    int from = (a[l] + (u32)in.offset) >> 2 & 31;
    out[l] = w.s[EXEC] >> from & 1 ? d[from] : 0;
  }
  put(w, in, in.dst, out);
}
static void permute(Wave &w, const Instruction &in) {  // to the lane that the address names; the highest lane stays
  u32 a[LANES], d[LANES], out[LANES] = {0};
  U::load(w, in, 0, a), U::load(w, in, 2, d);
  for (int l = 0; l < LANES; l++)
    if (w.s[EXEC] >> l & 1) out[(a[l] + (u32)in.offset) >> 2 & 31] = d[l];
  put(w, in, in.dst, out);
}
static void swizzle(Wave &w, const Instruction &in) {
  u32 a[LANES], out[LANES];
  U::load(w, in, 0, a);
  for (int l = 0; l < LANES; l++) {
    int o = (int)in.offset, from;
    if (o >= 0xE000) fail(w, in, UNMODELLED, 0, o, 0);
    if (o >= 0xC000) {  // rotate by o >> 5 & 31, the direction in bit 10, among the lanes that the mask leaves free
      int mask = o & 31, by = o >> 5 & 31;
      from = (l & mask) | ((o >> 10 & 1 ? l - by : l + by) & ~mask & 31);
    } else if (o & 0x8000) from = (l & ~3) | (o >> 2 * (l & 3) & 3);
    else from = ((l & o & 31) | (o >> 5 & 31)) ^ (o >> 10 & 31);
    out[l] = w.s[EXEC] >> from & 1 ? a[from] : 0;
  }
  put(w, in, in.dst, out);
}

static const Entry MEMORY[] = {
  RUN(LOAD_GLOBAL, load<GLOBAL>(w, in)) RUN(LOAD_FLAT, load<FLAT>(w, in)) RUN(LOAD_DS, load<DS>(w, in)) RUN(LOAD_SCRATCH, load<SCRATCH>(w, in))
  RUN(STORE_GLOBAL, store<GLOBAL>(w, in)) RUN(STORE_FLAT, store<FLAT>(w, in)) RUN(STORE_DS, store<DS>(w, in)) RUN(STORE_SCRATCH, store<SCRATCH>(w, in))
  RUN(ATOMIC_GLOBAL, atomic<GLOBAL>(w, in)) RUN(ATOMIC_FLAT, atomic<FLAT>(w, in)) RUN(ATOMIC_DS, atomic<DS>(w, in)) RUN(LOAD_SCALAR, scalar_load(w, in))
  RUN(DS_BPERMUTE_B32, bpermute(w, in)) RUN(DS_PERMUTE_B32, permute(w, in)) RUN(DS_SWIZZLE_B32, swizzle(w, in))
};

// Memory through a buffer descriptor of four scalar registers: what lies outside it reads as zero and is not written.
#pragma once
#include "memory.h"

struct Buffer { u64 base; u32 stride, records, select; };
static Buffer descriptor(Wave &w, const Instruction &in, int at) {
  u32 d[4];
  for (int i = 0; i < 4; i++) d[i] = scalar_word(w, in, at + i);
  // Swizzled addresses, and an index that the lane's number is added to, are not modelled.
  if (d[1] >> 30 || d[3] >> 23 & 1) fail(w, in, STATE, 0, at, 16);
  return {(u64)(d[1] & 0xFFFF) << 32 | d[0], d[1] >> 16 & 0x3FFF, d[2], d[3] >> 28 & 3};
}
// Range check of `size` bytes at `offset` of structure `index`. The scalar offset shortens a raw buffer.
static inline bool inside(const Buffer &b, u64 index, u64 offset, u32 scalar, int size) {
  switch (b.select) {
    case 0: return index < b.records && (!b.stride || offset + size <= b.stride);
    case 1: return index < b.records;
    case 2: return b.records != 0;
    default: return offset + size + scalar <= b.records;
  }
}
struct Places { u64 at[LANES], index[LANES]; u32 offset[LANES], scalar; Buffer buffer; };
static void places(Wave &w, const Instruction &in, Places &p) {
  p.buffer = descriptor(w, in, in.src[1]), p.scalar = scalar_word(w, in, in.sdst);
  u32 index[LANES], offset[LANES];
  memset(index, 0, sizeof index), memset(offset, 0, sizeof offset);
  Instruction one = in;
  if (in.flags & INDEXED) U::load(w, one, 0, index), one.src[0]++;
  if (in.flags & HAS_VADDR) U::load(w, one, 0, offset);
  for (int l = 0; l < LANES; l++) {
    u64 sum = (u64)offset[l] + (u64)in.offset;  // saturating
    p.offset[l] = sum > 0xFFFFFFFF ? 0xFFFFFFFF : (u32)sum, p.index[l] = index[l];
    p.at[l] = p.buffer.base + p.scalar + (u64)p.buffer.stride * index[l] + p.offset[l];
  }
}
// Each word by itself, as the guide says for the forms without a format.
static void buffer_load(Wave &w, const Instruction &in) {
  Places p;
  places(w, in, p);
  u32 got[4][LANES];
  int step = in.size < 4 ? in.size : 4, count = (in.size + 3) / 4;
  memset(got, 0, sizeof got);
  for (int i = 0; i < count; i++)
    for (int l = 0; l < LANES; l++)
      if (w.writes >> l & 1 && inside(p.buffer, p.index[l], (u64)p.offset[l] + 4 * i, p.scalar, step))
        memcpy(&got[i][l], global_at(w, in, l, p.at[l] + 4 * i, step, false), step);
  if (in.flags & SIGNED)
    for (int l = 0; l < LANES; l++) got[0][l] = in.size == 1 ? (u32)(i8)got[0][l] : (u32)(i16)got[0][l];
  if (in.flags & HALF) {
    Instruction one = in;
    one.dst_high = in.flags & HIGH ? 1 : 0, one.flags &= ~SHORT;
    return put_half(w, one, got[0]);
  }
  for (int i = 0; i < count; i++) put(w, in, in.dst + i, got[i]);
}
static void buffer_store(Wave &w, const Instruction &in) {
  Places p;
  places(w, in, p);
  int step = in.size < 4 ? in.size : 4, count = (in.size + 3) / 4, data = in.src[2] - VGPR;
  for (int i = 0; i < count; i++)
    if (!w.v_written[data + i]) note_unwritten(w, in, VGPR + data + i);
  for (int n = 0; n < LANES; n++)
    for (int i = 0, l = w.group->lane_order[n]; i < count; i++) {
      if (!(w.writes >> l & 1) || !inside(p.buffer, p.index[l], (u64)p.offset[l] + 4 * i, p.scalar, step)) continue;
      u32 x = w.v[data + i][l] >> (in.flags & HIGH ? 16 : 0);
      memcpy(global_at(w, in, l, p.at[l] + 4 * i, step, true), &x, step);
    }
}
static void buffer_atomic(Wave &w, const Instruction &in) {  // all of it or nothing
  Places p;
  places(w, in, p);
  u32 asked = w.writes, live = 0;
  for (int l = 0; l < LANES; l++)
    live |= (u32)(asked >> l & 1 && inside(p.buffer, p.index[l], p.offset[l], p.scalar, in.size)) << l;
  w.writes = live;
  u32 old[2][LANES];
  change<GLOBAL>(w, in, p.at, old);
  w.writes = asked;
  returned(w, in, old);
}
static void buffer_load_scalar(Wave &w, const Instruction &in) {
  Buffer b = descriptor(w, in, in.src[0]);
  u64 offset = ((u64)in.offset + (in.flags & HAS_SADDR ? scalar_word(w, in, in.src[1]) : 0)) & ~3ull;
  u64 end = b.stride ? (u64)b.stride * b.records : b.records;
  u32 got[16];
  for (int i = 0; i < in.size / 4; i++) {
    got[i] = 0;
    if (offset + 4 * i + 4 <= end) memcpy(&got[i], global_at(w, in, 0, b.base + offset + 4 * i, 4, false), 4);
  }
  for (int i = 0; i < in.size / 4; i++) set_scalar(w, in.sdst + i, got[i]);
}

static const Entry BUFFERS[] = {
  RUN(LOAD_BUFFER, buffer_load(w, in)) RUN(STORE_BUFFER, buffer_store(w, in)) RUN(ATOMIC_BUFFER, buffer_atomic(w, in))
  RUN(LOAD_SCALAR_BUFFER, buffer_load_scalar(w, in))
};

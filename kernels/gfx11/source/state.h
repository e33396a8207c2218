// What a wave, a workgroup and a launch are; how an instruction fails. Filled and read by ../core.py: same fields, same order.
#pragma once
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstring>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t i8;
typedef int16_t i16;
typedef int32_t i32;
typedef int64_t i64;

enum { LANES = 32, VCC = 106, NUL = 124, M0 = 125, EXEC = 126, SCC = 253, LITERAL = 255, VGPR = 256 };
enum { SHORT = 1, DEFER = 2, GLC = 4, SIGNED = 8, HALF = 16, HIGH = 32, RETURN = 64, HAS_SADDR = 128, HAS_VADDR = 256, TWO = 512, INDEXED = 1024 };
enum Kind {
  DONE, ENDLESS, OUTSIDE, LDS_OUTSIDE, LDS_UNINITIALIZED, LDS_RACE, SCRATCH_OUTSIDE, MISALIGNED, BAD_JUMP, READ_ONLY, WMMA_LANES,
  STATE, UNMODELLED, TRAP
};

struct Wave;
struct Instruction {
  void (*run)(Wave &, const Instruction &);
  i64 offset;  // bytes added to an address
  i32 op, address, next, target;
  i32 dst, sdst, src[4];
  i32 size, flags, extra;
  u32 literal;
  i32 dpp;  // control word, -1: none
  u8 neg, abs, high, high2, neg_high, clamp, omod, dst_high;
  u8 row_mask, bank_mask, bound, fetch_inactive;
};

struct Region { u8 *bytes; u64 size; i64 writable; };

struct Fault { i64 kind, at, wave, lane, address, size, other, other_at; };

// Of one byte of LDS. writer, reader: epoch << 8 | wave + 1 (WAVES: more than one; ATOMIC: by atomics alone); written: the
// serial number of the workgroup that wrote it.
struct Shadow { u32 writer, reader, written; i32 writer_at, reader_at; };
enum { WAVES = 127, ATOMIC = 128 };

struct Launch {
  Instruction *program;
  u64 *counts;
  Region *regions;
  const i64 *groups;  // [count, 3], in the order in which they run
  const i32 *user;    // first scalar registers
  i64 user_count, group_count, region_count, instruction_count;
  i64 grid[3], block[3];
  i64 lds, scratch, vgprs, first_system, wants_id[3], entry;
  i64 budget;         // instructions of one wave
  i64 seed, order;    // order: 0 ascending, 1 descending, 2 shuffled
  i64 fill;           // what registers, LDS and scratch hold at first: 0 or a seed
  i64 checks;
  i64 image_base;     // device address of the code object's first byte
  const i32 *index_of;  // instruction by (address - image_base) / 4
  i64 index_count;
  u8 *unwritten;      // [instruction]: it read a register that its wave had not written
  i32 *unwritten_register;
  i64 done_groups, executed;
  Fault fault;
};

struct Group;
struct Wave {
  alignas(64) u32 v[256][LANES];
  u32 s[128];
  u32 scc;
  u32 clock;
  u32 writes;      // lanes that the running instruction writes
  i32 pc;
  i32 number;      // in its workgroup
  int state;       // 0 runs, 1 waits at a barrier, 2 has ended
  i64 spent;
  u8 *scratch;
  Group *group;
  Launch *launch;
  int deferred;    // a VOPD half that waits for the other
  i32 held_dst;
  u32 held[LANES], held_mask;
  u8 v_written[256], s_written[128];
};

struct Group {
  Wave *waves;
  i64 count;
  i64 id[3];
  u8 *lds;
  Shadow *shadow;
  u32 epoch, serial;
  u8 lane_order[LANES];
  u64 random;
  Launch *launch;
  jmp_buf failed;
};

static inline u64 draw(u64 &state) {  // splitmix64
  u64 z = (state += 0x9E3779B97F4A7C15ull);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

[[noreturn]] static void fail(Wave &w, const Instruction &in, Kind kind, int lane, u64 address, i64 size, i64 other = 0, i64 other_at = -1) {
  i64 at = &in - w.launch->program;
  w.launch->fault = {kind, at, w.number, lane, (i64)address, size, other, other_at};
  longjmp(w.group->failed, 1);
}

// Runs a decoded gfx11 program, workgroup after workgroup, wave after wave; called through ctypes by ../core.py.
#include "buffer.h"

#include <cstdlib>

static void unmodelled(Wave &w, const Instruction &in) { fail(w, in, UNMODELLED, 0, 0, 0); }

static const struct { const Entry *entries; int count; } TABLES[] = {
  {VECTOR, sizeof VECTOR / sizeof *VECTOR}, {ACROSS, sizeof ACROSS / sizeof *ACROSS}, {SCALAR, sizeof SCALAR / sizeof *SCALAR},
  {CONTROL, sizeof CONTROL / sizeof *CONTROL}, {MEMORY, sizeof MEMORY / sizeof *MEMORY},
  {BUFFERS, sizeof BUFFERS / sizeof *BUFFERS}};

static const Entry *entry(int op) {
  for (auto &table : TABLES) {
    if (op < table.count) return &table.entries[op];
    op -= table.count;
  }
  return nullptr;
}
extern "C" {
const char *moeracle_gfx_name(int op) { const Entry *e = op < 0 ? nullptr : entry(op); return e ? e->name : nullptr; }
i64 moeracle_gfx_size(int what) { return what == 0 ? sizeof(Instruction) : what == 1 ? sizeof(Launch) : sizeof(Region); }
void moeracle_gfx_link(Instruction *program, i64 count) {
  for (i64 i = 0; i < count; i++) {
    const Entry *e = program[i].op < 0 ? nullptr : entry(program[i].op);
    program[i].run = e ? e->run : unmodelled;
  }
}

static void fill(void *to, size_t words, u64 seed) {
  u32 *out = (u32 *)to;
  if (!seed) { memset(out, 0, words * 4); return; }
  for (size_t i = 0; i < words; i++) out[i] = (u32)(draw(seed) >> 16);
}

static void start(Group &g, Wave &w, int number, const i64 *id) {
  Launch &L = *g.launch;
  u64 seed = L.fill ? (u64)L.fill * 0x9E3779B97F4A7C15ull + id[0] * 131 + id[1] * 65537 + id[2] * 257 + number : 0;
  fill(w.v, sizeof w.v / 4, seed), fill(w.s, 128, seed ? seed + 1 : 0);
  memset(w.v_written, 0, sizeof w.v_written), memset(w.s_written, 0, sizeof w.s_written);
  w.number = number, w.state = 0, w.spent = 0, w.group = &g, w.launch = &L, w.scc = 0, w.clock = 0, w.deferred = 0, w.pc = (i32)L.entry;
  for (i64 i = 0; i < L.user_count; i++) set_scalar(w, (int)i, (u32)L.user[i]);
  int at = (int)L.first_system;
  for (int axis = 0; axis < 3; axis++)
    if (L.wants_id[axis]) set_scalar(w, at++, (u32)id[axis]);
  i64 threads = L.block[0] * L.block[1] * L.block[2];
  u32 live = 0;
  for (int l = 0; l < LANES; l++) {
    i64 t = (i64)number * LANES + l, x = t % L.block[0], y = t / L.block[0] % L.block[1], z = t / (L.block[0] * L.block[1]);
    w.v[0][l] = (u32)(x | y << 10 | z << 20);
    live |= (u32)(t < threads) << l;
  }
  w.v_written[0] = 1;
  set_scalar(w, EXEC, live);
  set_scalar(w, EXEC + 1, 0);
  if (L.scratch) fill(w.scratch, L.scratch * LANES / 4, seed ? seed + 2 : 0);
}

// Runs one wave until it waits, ends or has used its turn.
static void run_wave(Wave &w, i64 turn) {
  const Instruction *program = w.launch->program;
  u64 *counts = w.launch->counts;
  i64 left = turn;
  while (w.state == 0 && left-- > 0) {
    const Instruction &in = program[w.pc];
    counts[w.pc]++;
    w.pc = in.next;
    w.writes = w.s[EXEC];
    in.run(w, in);
    if (in.flags & DEFER) continue;
    if (w.deferred) {
      w.deferred = 0;
      u32 *to = w.v[w.held_dst];
      w.v_written[w.held_dst] = 1;
      for (int l = 0; l < LANES; l++) to[l] = w.held_mask >> l & 1 ? w.held[l] : to[l];
    }
  }
  w.spent += turn - left, w.launch->executed += turn - left;
  if (w.spent > w.launch->budget) fail(w, program[w.pc], ENDLESS, 0, 0, 0);
}

static void shuffle(u8 *order, int count, i64 how, u64 &random) {
  for (int i = 0; i < count; i++) order[i] = (u8)(how == 1 ? count - 1 - i : i);
  if (how == 2)
    for (int i = count - 1; i > 0; i--) {
      int other = (int)(draw(random) % (u64)(i + 1));
      u8 kept = order[i];
      order[i] = order[other], order[other] = kept;
    }
}

// Runs workgroups from launch->done_groups on, until about `most` instructions are spent; 0: well, 1: launch->fault says what.
int moeracle_gfx_run(Launch *launch, i64 most) {
  Launch &L = *launch;
  i64 threads = L.block[0] * L.block[1] * L.block[2], count = (threads + LANES - 1) / LANES, words = L.lds / 4 + 2;
  Group g;
  memset(&g, 0, sizeof g);
  g.launch = launch, g.count = count;
  u8 *scratch = L.scratch ? (u8 *)malloc(L.scratch * LANES * count) : nullptr;
  g.waves = (Wave *)aligned_alloc(64, sizeof(Wave) * count);
  g.lds = (u8 *)malloc(words * 4), g.shadow = (Shadow *)calloc(words * 4, sizeof(Shadow));
  volatile int failed = 0;
  if (!g.waves || !g.lds || !g.shadow || (L.scratch && !scratch)) failed = 2;
  else if (setjmp(g.failed)) failed = 1;
  else {
    i64 until = L.executed + most;
    for (; L.done_groups < L.group_count && L.executed < until; L.done_groups++) {
      const i64 *id = L.groups + 3 * L.done_groups;
      g.serial++, g.epoch++;
      if (g.epoch > 0xF00000) memset(g.shadow, 0, words * 4 * sizeof(Shadow)), g.epoch = g.serial = 1;
      for (int i = 0; i < 3; i++) g.id[i] = id[i];
      g.random = (u64)L.seed * 0x2545F4914F6CDD1Dull + (u64)L.done_groups;
      fill(g.lds, words, L.fill ? g.random + (u64)L.fill + 7 : 0);
      u8 order[32];
      shuffle(order, (int)count, L.order, g.random), shuffle(g.lane_order, LANES, L.order, g.random);
      for (i64 i = 0; i < count; i++) g.waves[i].scratch = scratch + i * L.scratch * LANES, start(g, g.waves[i], (int)i, id);
      for (;;) {
        int running = 0, waiting = 0;
        for (i64 i = 0; i < count; i++) {
          Wave &w = g.waves[order[i]];
          if (w.state == 0) run_wave(w, L.order == 2 ? 1 + (i64)(draw(g.random) % 997) : 65536);
          running += w.state == 0, waiting += w.state == 1;
        }
        if (running) continue;
        if (!waiting) break;
        g.epoch++;
        for (i64 i = 0; i < count; i++)
          if (g.waves[i].state == 1) g.waves[i].state = 0;
      }
    }
  }
  free(scratch), free(g.waves), free(g.lds), free(g.shadow);
  return failed;
}

// One instruction on registers that the caller gives and takes back: for tests of single instructions.
int moeracle_gfx_step(Launch *launch, u32 *vector, u32 *scalar, u32 *scc, u8 *lds) {
  Group g;
  memset(&g, 0, sizeof g);
  Wave *w = (Wave *)aligned_alloc(64, sizeof(Wave));
  g.launch = launch, g.count = 1, g.waves = w, g.lds = lds;
  g.shadow = (Shadow *)calloc(launch->lds + 8, sizeof(Shadow));
  u64 none = 0;
  shuffle(g.lane_order, LANES, 0, none);
  volatile int failed = 0;
  memcpy(w->v, vector, sizeof w->v), memcpy(w->s, scalar, sizeof w->s);
  memset(w->v_written, 1, sizeof w->v_written), memset(w->s_written, 1, sizeof w->s_written);
  w->scc = *scc, w->clock = 0, w->number = 0, w->state = 0, w->spent = 0, w->group = &g, w->launch = launch, w->deferred = 0, w->pc = 0, w->scratch = lds;
  if (setjmp(g.failed)) failed = 1;
  else
    run_wave(*w, launch->instruction_count);
  memcpy(vector, w->v, sizeof w->v), memcpy(scalar, w->s, sizeof w->s), *scc = w->scc;
  free(w), free(g.shadow);
  return failed;
}
}

// The emulation's runtime: it runs blocks, waves and lanes, and answers what the kernel and its instrumentation call.
// Compiled without -fsanitize=thread and linked to the kernel, whose accesses call __tsan_* below.
#include <stdlib.h>
#include <sys/mman.h>

#include "host_checks.h"
#include "host_meetings.h"

#define HIDDEN extern "C" __attribute__((visibility("hidden")))

namespace {

[[noreturn]] void fiber() {
  entry(launch->arguments);
  threads[current].state = DONE;
  stop();
}

// Runs a wave until all its lanes have returned or wait at one barrier; false after a fault.
bool run_wave(int first) {
  for (;;) {
    for (int i = 0; i < WAVE; i++) {
      const int t = first + (launch->backward ? WAVE - 1 - i : i);
      if (threads[t].state != READY) continue;
      current = t;
      stack_low = (uintptr_t)(stacks + STACK * t);
      steps = 0;
      moeracle_switch(&scheduler_sp, threads[t].sp);
      if (fault->kind) return false;
    }
    const Thread* lead = nullptr;  // whoever waits for the others: a cross-lane operation before a barrier
    for (int i = 0; i < WAVE; i++) {
      const Thread& t = threads[first + i];
      if (t.state != DONE && (!lead || (t.state == AT_EXCHANGE && lead->state == AT_BARRIER))) lead = &t;
    }
    if (!lead) return true;
    for (int i = 0; i < WAVE; i++)
      if (!same_site(*lead, threads[first + i])) {
        diverged(lead->state == AT_BARRIER ? FAULT_DIVERGENT_BARRIER : FAULT_DIVERGENT_EXCHANGE,
                 int(lead - threads), first + i);
        return false;
      }
    if (lead->state == AT_BARRIER) return true;
    exchange(threads + first);
  }
}

bool run_block() {
  for (int t = 0; t < count; t++) {
    threads[t].sp = moeracle_fiber(stacks + STACK * t, STACK, fiber);
    threads[t].state = READY;
    threads[t].side = 0;
  }
  for (int i = 0; i < array_count; i++)
    for (size_t b = 0; b < arrays[i].bytes; b++) cells[arrays[i].start + b].state = UNWRITTEN;
  for (;;) {
    epoch++;
    for (int w = 0; w < count; w += WAVE)
      if (!run_wave(launch->backward ? count - WAVE - w : w)) return false;
    int waiting = 0;
    while (waiting < count && threads[waiting].state == DONE) waiting += WAVE;
    if (waiting == count) return true;
    for (int t = 0; t < count; t += WAVE)
      if (!same_site(threads[waiting], threads[t])) {
        diverged(FAULT_DIVERGENT_BARRIER, waiting, t);
        return false;
      }
    for (int t = 0; t < count; t++) threads[t].state = READY;
    fault->barriers++;
  }
}

void* declare(Array& a, const char* key, size_t bytes, size_t align, const char* name, const char* file, int line) {
  if (align < 16) align = 16;
  lds_bytes += bytes;
  if (lds_bytes > LDS_LIMIT) {
    blame_line(FAULT_SHARED_SIZE, current, file, line);
    fault->size = lds_bytes;
    text(fault->name, sizeof fault->name, name);
    stop();
  }
  a.key = key;
  a.start = (lds_used + align - 1) / align * align;
  a.bytes = bytes;
  text(a.name, sizeof a.name, name);
  lds_used = a.start + bytes + RED_ZONE;
  for (size_t b = 0; b < bytes; b++) cells[a.start + b].state = UNWRITTEN;
  return lds + a.start;
}

bool prepare() {
  if (stacks) return true;
  const auto get = [](size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : (char*)p;
  };
  lds = get(LDS_ARENA);
  cells = (Cell*)get(LDS_ARENA * sizeof(Cell));
  writers = (uintptr_t*)get(LDS_ARENA * sizeof(uintptr_t));
  stacks = get(STACK * MOST_THREADS);
  return lds && cells && writers && stacks;
}

int run(void (*kernel)(void**), const moeracle_launch* wanted, moeracle_fault* report) {
  if (!prepare()) return -1;
  launch = wanted;
  fault = report;
  entry = kernel;
  memset(fault, 0, sizeof *fault);
  count = int(launch->block[0] * launch->block[1] * launch->block[2]);
  last = nullptr;
  for (size_t b = 0; b < LDS_ARENA; b++) cells[b].state = ABSENT;
  lds_used = lds_bytes = current = 0;
  array_count = 1;
  arrays[0].bytes = 0;
  declare(arrays[0], nullptr, launch->dynamic_bytes, 16, "dynamic", "", 0);  // the caller keeps it within the limit
  const unsigned long blocks = (unsigned long)launch->grid[0] * launch->grid[1] * launch->grid[2];
  for (unsigned long i = 0; i < blocks && !fault->kind; i++) {
    const unsigned long b = launch->backward ? blocks - 1 - i : i;
    block[0] = b % launch->grid[0];
    block[1] = b / launch->grid[0] % launch->grid[1];
    block[2] = b / launch->grid[0] / launch->grid[1];
    run_block();
  }
  return fault->kind;
}

}  // namespace

// ---- what the kernel calls --------------------------------------------------------------------------------------------

HIDDEN unsigned moeracle_id(int which) {
  unsigned thread[3];
  switch (which / 3) {
    case 0: place(thread, current); return thread[which];
    case 1: return block[which - 3];
    case 2: return launch->block[which - 6];
    default: return launch->grid[which - 9];
  }
}

HIDDEN unsigned moeracle_exchange(int kind, unsigned value, int parameter, const char* file, int line) {
  wait(AT_EXCHANGE, kind, value, parameter, file, line);
  return threads[current].result;
}

HIDDEN const unsigned* moeracle_gather(const unsigned* words, const char* file, int line) {
  const unsigned side = threads[current].side++ & 1;
  memcpy(gathered[side][current], words, sizeof gathered[side][current]);
  wait(AT_EXCHANGE, GATHER, 0, 0, file, line);
  return gathered[side][current / WAVE * WAVE];
}

HIDDEN void moeracle_barrier(const char* file, int line) { wait(AT_BARRIER, 0, 0, 0, file, line); }

HIDDEN void* moeracle_shared(const char* key, unsigned long bytes, unsigned long align, const char* name,
                             const char* file, int line) {
  for (int i = 1; i < array_count; i++)
    if (arrays[i].key == key) return lds + arrays[i].start;
  if (array_count == MOST_ARRAYS) abort();
  return declare(arrays[array_count++], key, bytes, align, name, file, line);
}

HIDDEN void* moeracle_shared_dynamic(const char* name, const char*, int) {
  text(arrays[0].name, sizeof arrays[0].name, name);
  return lds + arrays[0].start;
}

HIDDEN void moeracle_access(const void* p, unsigned long bytes, int kind) {
  if ((uintptr_t)p % bytes) {
    blame(FAULT_MISALIGNED, current, CALLER);
    fault->bytes = bytes;
    fault->offset = long((uintptr_t)p % bytes);
    stop();
  }
  check((uintptr_t)p, bytes, kind != 0, kind == 2, CALLER);
}

HIDDEN int moeracle_run(void (*kernel)(void**), const moeracle_launch* wanted, moeracle_fault* report) {
  pthread_mutex_lock(&busy);
  const int result = run(kernel, wanted, report);
  pthread_mutex_unlock(&busy);
  return result;
}

// ---- what the compiler's instrumentation calls ------------------------------------------------------------------------

#define ACCESS(bytes)                                                                                         \
  HIDDEN void __tsan_read##bytes(void* p) { check((uintptr_t)p, bytes, false, false, CALLER); }               \
  HIDDEN void __tsan_write##bytes(void* p) { check((uintptr_t)p, bytes, true, false, CALLER); }               \
  HIDDEN void __tsan_read##bytes##_pc(void* p, void*) { check((uintptr_t)p, bytes, false, false, CALLER); }   \
  HIDDEN void __tsan_write##bytes##_pc(void* p, void*) { check((uintptr_t)p, bytes, true, false, CALLER); }   \
  HIDDEN void __tsan_unaligned_read##bytes(void* p) { check((uintptr_t)p, bytes, false, false, CALLER); }     \
  HIDDEN void __tsan_unaligned_write##bytes(void* p) { check((uintptr_t)p, bytes, true, false, CALLER); }     \
  HIDDEN void __tsan_volatile_read##bytes(void* p) { check((uintptr_t)p, bytes, false, false, CALLER); }      \
  HIDDEN void __tsan_volatile_write##bytes(void* p) { check((uintptr_t)p, bytes, true, false, CALLER); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
HIDDEN void __tsan_read_range(void* p, unsigned long bytes) { check((uintptr_t)p, bytes, false, false, CALLER); }
HIDDEN void __tsan_write_range(void* p, unsigned long bytes) { check((uintptr_t)p, bytes, true, false, CALLER); }
HIDDEN void __tsan_init() {}
HIDDEN void __tsan_func_entry(void*) {}
HIDDEN void __tsan_func_exit(void*) {}
HIDDEN void* __tsan_memcpy(void* to, const void* from, unsigned long bytes) {
  check((uintptr_t)from, bytes, false, false, CALLER);
  check((uintptr_t)to, bytes, true, false, CALLER);
  return memcpy(to, from, bytes);
}
HIDDEN void* __tsan_memset(void* to, int value, unsigned long bytes) {
  check((uintptr_t)to, bytes, true, false, CALLER);
  return memset(to, value, bytes);
}

// The emulation's state, one launch at a time, and how a fault is written down. Included by host_runtime.cpp only.
#ifndef MOERACLE_HOST_STATE_H
#define MOERACLE_HOST_STATE_H

#include <pthread.h>
#include <stdint.h>
#include <string.h>

#include "host_fiber.h"
#include "host_launch.h"

#define CALLER ((uintptr_t)__builtin_return_address(0))

extern "C" const char __ehdr_start __attribute__((visibility("hidden")));  // the linker's: where this object lies
extern "C" const char _end __attribute__((visibility("hidden")));

namespace {

constexpr int WAVE = 32, MOST_THREADS = 1024, MOST_ARRAYS = 32;
constexpr size_t STACK = 64 << 10, LDS_LIMIT = 64 << 10, LDS_ARENA = 96 << 10, RED_ZONE = 16;
enum State { READY, AT_EXCHANGE, AT_BARRIER, DONE };
enum Kind { XOR, LANE, ROW_SHR, ROW_ROR, BALLOT, GATHER };
const char* const KINDS[] = {"shfl_xor", "shfl", "row_shr", "row_ror", "wave_ballot", "wmma_16x16x16"};

struct Thread {
  void* sp;
  State state;
  int kind, parameter, line;
  const char* file;
  unsigned value, result;
  unsigned side;  // which half of `gathered` its next gather fills: a lane is at most one meeting ahead of another
};

struct Array {  // one SHARED declaration; [0] is the dynamic one
  const char* key;
  size_t start, bytes;
  char name[64];
};

// One shared byte: whether it is written, and who touched it last between two barriers.
struct Cell {
  uint32_t write_epoch, read_epoch, read_waves;
  uint8_t write_wave, state;
};
enum { ABSENT, UNWRITTEN, WRITTEN };

pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER;  // one launch at a time in one shared object
Thread threads[MOST_THREADS];
unsigned gathered[2][MOST_THREADS][8];
char* stacks;
char* lds;
Cell* cells;
uintptr_t* writers;  // pc of the last write to a shared byte
Array arrays[MOST_ARRAYS];
int array_count;
size_t lds_used, lds_bytes;
uint32_t epoch;
const moeracle_launch* launch;
moeracle_fault* fault;
void (*entry)(void**);
unsigned block[3];
int count, current;
uintptr_t stack_low;
unsigned long steps;
const moeracle_buffer* last;
void* scheduler_sp;

[[noreturn]] void stop() {  // leaves the fiber for good: nothing after the faulty access happens
  void* dead;
  moeracle_switch(&dead, scheduler_sp);
  __builtin_unreachable();
}

void place(unsigned* out, int thread) {
  out[0] = thread % launch->block[0];
  out[1] = thread / launch->block[0] % launch->block[1];
  out[2] = thread / launch->block[0] / launch->block[1];
}

void text(char* out, size_t size, const char* from) {
  const size_t length = strnlen(from, size - 1);
  memcpy(out, from, length);
  out[length] = 0;
}

uintptr_t relative(uintptr_t pc) { return pc ? pc - 1 - (uintptr_t)&__ehdr_start : 0; }  // -1: inside the call

void blame(int kind, int thread, uintptr_t pc) {
  fault->kind = kind;
  memcpy(fault->block, block, sizeof block);
  place(fault->thread, thread);
  fault->pc = relative(pc);
  fault->argument = -1;
}

void blame_line(int kind, int thread, const char* file, int line) {
  blame(kind, thread, 0);
  text(fault->file, sizeof fault->file, file);
  fault->line = line;
}

}  // namespace
#endif

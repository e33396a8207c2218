// Every load and store of a kernel, held against its buffers, its shared arrays and what other waves did to them.
#ifndef MOERACLE_HOST_CHECKS_H
#define MOERACLE_HOST_CHECKS_H

#include "host_state.h"

namespace {

const Array* array_at(size_t offset) {  // the array that holds it, else the nearest before it
  const Array* best = nullptr;
  for (int i = 0; i < array_count; i++)
    if (arrays[i].bytes && arrays[i].start <= offset && (!best || arrays[i].start > best->start)) best = &arrays[i];
  return best;
}

[[noreturn]] void shared_fault(int kind, size_t offset, size_t bytes, bool write, uintptr_t pc) {
  const Array* a = array_at(offset);
  blame(kind, current, pc);
  fault->is_write = write;
  fault->bytes = bytes;
  if (a) {
    fault->offset = (long)offset - (long)a->start;
    fault->size = a->bytes;
    text(fault->name, sizeof fault->name, a->name);
  }
  stop();
}

void check_shared(size_t offset, size_t bytes, bool write, bool atomic, uintptr_t pc) {
  const uint8_t wave = uint8_t(current / WAVE);
  fault->shared_accesses++;
  for (size_t i = offset; i < offset + bytes; i++) {
    Cell& c = cells[i];
    if (c.state == ABSENT) shared_fault(FAULT_SHARED_OUT_OF_BOUNDS, offset, bytes, write, pc);
    if (!write && c.state == UNWRITTEN) shared_fault(FAULT_SHARED_UNINITIALIZED, i, bytes, write, pc);
    if (atomic) {
      if (c.state == UNWRITTEN) shared_fault(FAULT_SHARED_UNINITIALIZED, i, bytes, write, pc);
      continue;
    }
    const bool written_by_other = c.write_epoch == epoch && c.write_wave != wave;
    const bool read_by_other = write && c.read_epoch == epoch && (c.read_waves & ~(1u << wave));
    if (written_by_other || read_by_other) {
      place(fault->other_thread, (written_by_other ? c.write_wave : __builtin_ctz(c.read_waves & ~(1u << wave))) * WAVE);
      fault->other_pc = written_by_other ? relative(writers[i]) : 0;
      shared_fault(FAULT_SHARED_RACE, i, bytes, write, pc);
    }
    if (write) {
      c.state = WRITTEN;
      c.write_epoch = epoch;
      c.write_wave = wave;
      writers[i] = pc;
    } else {
      c.read_waves = (c.read_epoch == epoch ? c.read_waves : 0) | 1u << wave;
      c.read_epoch = epoch;
    }
  }
}

bool holds(const moeracle_buffer& b, uintptr_t address, size_t bytes) {
  return address - b.address < b.bytes && bytes <= b.bytes - (address - b.address);
}

constexpr uintptr_t NULL_PAGES = 65536;  // what Linux lets no program map (vm.mmap_min_addr), or nobody uses

[[noreturn]] void global_fault(int kind, uintptr_t address, size_t bytes, bool write, uintptr_t pc) {
  blame(kind, current, pc);
  fault->is_write = write;
  fault->bytes = bytes;
  unsigned long nearest = ~0ul;
  const bool null = address < NULL_PAGES;  // its distance from an argument says nothing, however low that lies
  for (int i = 0; i < launch->buffer_count && !null; i++) {
    const moeracle_buffer& b = launch->buffers[i];
    const long offset = (long)(address - b.address);
    const unsigned long distance = offset < 0 ? 0ul - (unsigned long)offset : (unsigned long)offset;
    const unsigned long away = offset >= 0 && distance >= b.bytes ? distance - b.bytes : offset < 0 ? distance : 0;
    if (away >= nearest) continue;
    nearest = away;
    fault->argument = b.argument;
    fault->offset = offset;
    fault->size = b.bytes;
  }
  stop();
}

[[noreturn]] void static_fault(size_t bytes, uintptr_t pc) {
  blame(FAULT_READ_ONLY, current, pc);  // of no argument
  fault->is_write = 1;
  fault->bytes = bytes;
  stop();
}

void check(uintptr_t address, size_t bytes, bool write, bool atomic, uintptr_t pc) {
  if (++steps > launch->most_steps) {
    blame(FAULT_HANG, current, pc);
    stop();
  }
  if (address - stack_low < STACK) return;
  if (address - (uintptr_t)lds < LDS_ARENA) return check_shared(address - (uintptr_t)lds, bytes, write, atomic, pc);
  if (!last || !holds(*last, address, bytes)) {
    last = nullptr;
    for (int i = 0; i < launch->buffer_count && !last; i++)
      if (holds(launch->buffers[i], address, bytes)) last = &launch->buffers[i];
    if (!last) {
      const bool constant = address >= (uintptr_t)&__ehdr_start && address < (uintptr_t)&_end;
      if (constant && !write) return;  // a table of the kernel's own
      if (constant) static_fault(bytes, pc);
      global_fault(FAULT_OUT_OF_BOUNDS, address, bytes, write, pc);
    }
  }
  if (write) {
    if (!last->writable) global_fault(FAULT_READ_ONLY, address, bytes, write, pc);
    fault->global_write_bytes += bytes;
  } else {
    fault->global_read_bytes += bytes;
  }
}

}  // namespace
#endif

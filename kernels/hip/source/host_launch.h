// What the caller (hip/runtime/emulate.py, through ctypes) and the emulation's runtime say to each other. Layouts mirror hip/runtime/emulate.py.
#ifndef MOERACLE_HOST_LAUNCH_H
#define MOERACLE_HOST_LAUNCH_H

struct moeracle_buffer {  // global memory that a kernel may touch: one per pointer argument
  unsigned long address, bytes;
  int argument, writable;
};

struct moeracle_launch {
  unsigned grid[3], block[3];
  unsigned dynamic_bytes;  // of SHARED_DYNAMIC
  int backward;            // 1: blocks, waves and lanes run in descending order; a kernel without races cannot tell
  unsigned long most_steps;  // loads and stores of one thread between two meetings before it counts as hanging
  const struct moeracle_buffer* buffers;
  int buffer_count;
  void** arguments;
};

enum moeracle_fault_kind {
  FAULT_NONE,
  FAULT_OUT_OF_BOUNDS,
  FAULT_READ_ONLY,
  FAULT_MISALIGNED,
  FAULT_SHARED_OUT_OF_BOUNDS,
  FAULT_SHARED_UNINITIALIZED,
  FAULT_SHARED_RACE,
  FAULT_SHARED_SIZE,
  FAULT_DIVERGENT_EXCHANGE,
  FAULT_DIVERGENT_BARRIER,
  FAULT_HANG,
};

struct moeracle_fault {
  int kind, is_write;
  unsigned block[3], thread[3], other_thread[3];
  unsigned long pc, other_pc;       // relative to the shared object's start; 0: `line` says it
  char file[160], other_file[160];  // of a meeting, a declaration or an atomic; empty: take pc
  int line, other_line;             // other_line -1: that thread has returned
  long offset;                      // bytes from the start of the buffer or shared array
  unsigned long bytes, size;        // of the access; of the buffer or shared array
  int argument;                     // which pointer argument is nearest, or -1
  char name[64];                    // of the shared array, or of the cross-lane operation
  // what the launch did, filled also without a fault
  unsigned long global_read_bytes, global_write_bytes, shared_accesses, exchanges, barriers;
};

#endif

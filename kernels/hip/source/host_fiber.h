// A fiber is a stack and a place in it: moeracle_switch leaves one and enters another. A dozen instructions on x86-64
// and AArch64 (callee-saved registers only: the call clobbers the rest), ucontext elsewhere
// or with -DMOERACLE_UCONTEXT.
#ifndef MOERACLE_HOST_FIBER_H
#define MOERACLE_HOST_FIBER_H

extern "C" __attribute__((visibility("hidden"))) void moeracle_switch(void** save, void* enter);

#if defined(__x86_64__) && defined(__ELF__) && !defined(MOERACLE_UCONTEXT)

asm(R"(
.text
.hidden moeracle_switch
.globl moeracle_switch
.type moeracle_switch, @function
moeracle_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size moeracle_switch, .-moeracle_switch
)");

// Returns what moeracle_switch enters to call start() on the stack of `bytes` from `low` (both multiples of 16).
static inline void* moeracle_fiber(char* low, unsigned long bytes, void (*start)()) {
  void** sp = (void**)(low + bytes);
  *--sp = nullptr;  // start's return address, never used; leaves the stack aligned as after a call
  *--sp = (void*)start;
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  return sp;
}

#elif defined(__aarch64__) && defined(__ELF__) && !defined(MOERACLE_UCONTEXT)

asm(R"(
.text
.hidden moeracle_switch
.globl moeracle_switch
.type moeracle_switch, %function
moeracle_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size moeracle_switch, .-moeracle_switch
)");

static inline void* moeracle_fiber(char* low, unsigned long bytes, void (*start)()) {
  void** sp = (void**)(low + bytes - 160);
  for (int i = 0; i < 20; i++) sp[i] = nullptr;
  sp[11] = (void*)start;  // x30
  return sp;
}

#else

#include <ucontext.h>  // two system calls a switch: slow, but there on every POSIX system

// The first switch into a fiber starts it; `save` and `enter` are pointers to contexts.
struct moeracle_context {
  ucontext_t saved;
};
static inline void* moeracle_fiber(char* low, unsigned long bytes, void (*start)()) {
  moeracle_context* c = (moeracle_context*)((unsigned long)(low + bytes - sizeof(moeracle_context)) & ~15ul);
  getcontext(&c->saved);
  c->saved.uc_stack.ss_sp = low;
  c->saved.uc_stack.ss_size = (unsigned long)((char*)c - low);
  makecontext(&c->saved, start, 0);
  return c;
}
extern "C" void moeracle_switch(void** save, void* enter) {
  moeracle_context here;
  *save = &here;
  swapcontext(&here.saved, &((moeracle_context*)enter)->saved);
}

#endif
#endif

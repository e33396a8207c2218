// Where threads meet: cross-lane operations within a wave, barriers within a block.
#ifndef MOERACLE_HOST_MEETINGS_H
#define MOERACLE_HOST_MEETINGS_H

#include "host_state.h"

namespace {

void wait(State state, int kind, unsigned value, int parameter, const char* file, int line) {
  Thread& t = threads[current];
  t.state = state;
  t.kind = kind;
  t.value = value;
  t.parameter = parameter;
  t.file = file;
  t.line = line;
  moeracle_switch(&t.sp, scheduler_sp);
}

bool same_site(const Thread& a, const Thread& b) {
  return a.state == b.state && a.line == b.line && a.kind == b.kind && !strcmp(a.file, b.file);
}

void diverged(int kind, int waiting, int other) {
  const Thread &a = threads[waiting], &b = threads[other];
  blame_line(kind, waiting, a.file, a.line);
  text(fault->name, sizeof fault->name, a.state == AT_BARRIER ? "__syncthreads" : KINDS[a.kind]);
  place(fault->other_thread, other);
  text(fault->other_file, sizeof fault->other_file, b.state == DONE ? "" : b.file);
  fault->other_line = b.state == DONE ? -1 : b.line;
}

void exchange(Thread* wave) {
  unsigned mask = 0;
  for (int l = 0; l < WAVE; l++) mask |= (wave[l].value & 1u) << l;
  for (int l = 0; l < WAVE; l++) {
    const int row = l & 16, n = wave[l].parameter;
    switch (wave[l].kind) {
      case XOR: wave[l].result = wave[(l ^ n) & 31].value; break;
      case LANE: wave[l].result = wave[n & 31].value; break;
      case ROW_SHR: wave[l].result = (l & 15) >= n ? wave[l - n].value : 0u; break;
      case ROW_ROR: wave[l].result = wave[row | ((l - n) & 15)].value; break;
      default: wave[l].result = mask;
    }
    wave[l].state = READY;
  }
  fault->exchanges++;
}

}  // namespace
#endif

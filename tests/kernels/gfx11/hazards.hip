// What goes wrong between waves, workgroups and lanes, each beside the same thing done right.
#include <hip/hip_runtime.h>

__global__ void half_of_the_waves_wait(float* out) {  // 128 threads: waves 2 and 3 pass the first barrier by
  __shared__ float box[64];
  if (threadIdx.x < 64) box[threadIdx.x] = threadIdx.x;
  if (threadIdx.x < 64) __syncthreads();
  out[threadIdx.x] = box[threadIdx.x % 64];  // LINE partial
}
__global__ void halves_read_as_words(unsigned* out) {  // wave 0 writes lower halves, wave 1 upper ones
  __shared__ unsigned box[32];
  unsigned short* halves = (unsigned short*)box;
  if (threadIdx.x < 32) box[threadIdx.x] = 0;
  __syncthreads();
  halves[threadIdx.x % 32 * 2 + threadIdx.x / 32] = threadIdx.x;
#ifdef RIGHT
  __syncthreads();
#endif
  out[threadIdx.x] = box[threadIdx.x % 32];  // LINE aliased
}
__global__ void two_buffers_one_barrier(const float* x, float* out, int tiles) {
  __shared__ float tile[64];
  float sum = 0;
  for (int t = 0; t < tiles; t++) {
    tile[threadIdx.x] = x[t * 64 + threadIdx.x];  // LINE overwritten
    __syncthreads();
    sum += tile[63 - threadIdx.x];
#ifdef RIGHT
    __syncthreads();
#endif
  }
  out[threadIdx.x] = sum;
}
__global__ void counted_in_lds(unsigned* out, int plain) {  // waves add atomically; wave 1 may store over it
  __shared__ unsigned count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 1u);
  if (plain && threadIdx.x == 32) *(volatile unsigned*)&count = 5;  // LINE plain
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = count;
}
__global__ void one_wave_counts(unsigned* out) {  // no barrier is needed within a wave
  __shared__ unsigned count[32];
  count[threadIdx.x] = 0;
  atomicAdd(&count[threadIdx.x & 3], 1u);
  __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
  out[threadIdx.x] = count[threadIdx.x & 3];
}
__global__ void largest_by_swaps(const float* x, unsigned* most) {  // any order gives the same
  float mine = x[blockIdx.x * 32 + threadIdx.x];
  for (unsigned old = *most, seen; __uint_as_float(old) < mine; old = seen)
    if ((seen = atomicCAS(most, old, __float_as_uint(mine))) == old) break;
}
__global__ void sum_by_swaps(const float* x, unsigned* total) {  // each order rounds otherwise
  float mine = x[blockIdx.x * 32 + threadIdx.x];
  for (unsigned old = *total, seen;; old = seen)
    if ((seen = atomicCAS(total, old, __float_as_uint(__uint_as_float(old) + mine))) == old) break;
}
// The last workgroup, by its ticket, adds all parts: in their order, or in the order in which they came.
__global__ void last_group_adds(const float* x, float* parts, unsigned* ticket, float* out, int as_they_came) {
  __shared__ unsigned mine;
  if (threadIdx.x == 0) {
    mine = atomicAdd(ticket, 1u);
    parts[as_they_came ? mine : blockIdx.x] = x[blockIdx.x];
    __threadfence();
  }
  __syncthreads();
  if (mine != gridDim.x - 1 || threadIdx.x) return;
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; i++) sum += parts[i];
  out[0] = sum;
}
__global__ void several_lanes_one_place(int* out) { out[0] = threadIdx.x; }
__global__ void behind_lds(float* out, int at) {
  __shared__ float box[32];
  box[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = box[threadIdx.x + at];  // LINE behind
}
__global__ void before_the_start(float* out, int at) { out[(int)threadIdx.x - at] = 1; }  // LINE before
__global__ void asserts(const int* x, int* out) {
  assert(x[threadIdx.x] > 0);  // LINE asserted
  out[threadIdx.x] = x[threadIdx.x];
}
__global__ void reads_a_register(float* out) {
  float x;
  asm volatile("v_mov_b32 %0, v99" : "=v"(x));  // LINE register
  out[threadIdx.x] = x;
}

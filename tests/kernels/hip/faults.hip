// One fault a kernel, on the line that ends with "fault: NAME"; test_faults_hip.py reads the line numbers from here.
#include "moeracle_hip.h"

// A kernel is KERNEL(name) { … }: 64 threads a block, `in` 64 floats, `out` 64 floats, `words` 64 unsigned.
#define KERNEL(name)                                                                                                   \
  static __device__ void name##_body(const float* in, float* out, unsigned* words, int n);                             \
  extern "C" __global__ __launch_bounds__(64) void name(const float* in, float* out, unsigned* words, int n) {         \
    name##_body(in, out, words, n);                                                                                    \
  }                                                                                                                    \
  MOERACLE_EXPORT(name)                                                                                                \
  static __device__ void name##_body([[maybe_unused]] const float* in, [[maybe_unused]] float* out,                    \
                                     [[maybe_unused]] unsigned* words, [[maybe_unused]] int n)

#define T int(threadIdx.x)

KERNEL(read_past_end) {
  float x = in[T + 1];  // fault: read_past_end
  out[T] = x;
}

KERNEL(read_before_start) {
  float x = in[T - 3];  // fault: read_before_start
  out[T] = x;
}

KERNEL(write_past_end) {
  if (T == 40) out[T + 24 + n] = 1;  // fault: write_past_end
}

KERNEL(wide_read_past_end) {
  u32x4 x = load_nt((const u32x4*)(words + 4 * T));  // fault: wide_read_past_end
  out[T] = bits_to_float(x[0]);
}

KERNEL(straddles_end) {
  u32x2 x = load_nt((const u32x2*)(words + 2 * (T % 32)));  // fault: straddles_end
  out[T] = bits_to_float(x[0]);
}

static __device__ float kept[64];

KERNEL(write_to_static) {
  kept[T] = in[T];  // fault: write_to_static
  out[T] = kept[63 - T];
}

KERNEL(null_pointer) {
  const float* nothing = n == 0 ? nullptr : in;
  out[T] = nothing[T];  // fault: null_pointer
}

KERNEL(write_to_const) {
  ((float*)in)[T] = 1;  // fault: write_to_const
}

KERNEL(misaligned) {
  u32x2 x = load_nt((const u32x2*)(words + 2 * (T / 4) + 1));  // fault: misaligned
  out[T] = bits_to_float(x[0]);
}

KERNEL(shared_past_end) {
  SHARED(float, tile, 64);
  tile[T] = in[T];
  __syncthreads();
  out[T] = tile[T + 2 * n + 1];  // fault: shared_past_end
}

KERNEL(dynamic_past_end) {
  SHARED_DYNAMIC(float, tile);
  tile[T + 1] = in[T];  // fault: dynamic_past_end
  __syncthreads();
  out[T] = tile[T];
}

KERNEL(uninitialized) {
  SHARED(float, tile, 64);
  if (T != 17) tile[T] = in[T];
  __syncthreads();
  out[T] = tile[63 - T];  // fault: uninitialized
}

KERNEL(uninitialized_sum) {
  SHARED(float, tile, 64);
  tile[T] += in[T];  // fault: uninitialized_sum
  __syncthreads();
  out[T] = tile[T];
}

KERNEL(uninitialized_atomic) {
  SHARED(int, counter, 1);
  atomic_add(&counter[0], 1);  // fault: uninitialized_atomic
  __syncthreads();
  out[T] = float(counter[0]);
}

// The first block writes it, the second must not find it.
KERNEL(uninitialized_in_second_block) {
  SHARED(float, tile, 64);
  if (blockIdx.x == 0) tile[T] = in[T];
  __syncthreads();
  out[T] = tile[T];  // fault: uninitialized_in_second_block
}

KERNEL(race_read) {
  SHARED(float, tile, 64);
  tile[T] = in[T];  // other: race_read
  out[T] = tile[T % 32];  // fault: race_read
}

KERNEL(race_write) {
  SHARED(float, tile, 64);
  tile[T] = in[T];
  __syncthreads();
  out[T] = tile[63 - T];
  if (T >= 32) tile[T] = 0;  // fault: race_write
}

KERNEL(race_write_after_two_reads) {
  SHARED(float, tile, 64);
  tile[T] = in[T];
  __syncthreads();
  out[T] = tile[T % 32];
  if (T >= 32) tile[T % 32] = 0;  // fault: race_write_after_two_reads
}

KERNEL(too_much_shared) {
  SHARED(float, first, 8192);
  SHARED(float, second, 8193);  // fault: too_much_shared
  first[T] = second[T] = 0;
}

KERNEL(shuffle_without_some) {
  float v = in[T];
  if (T % 32 < 20) v = shfl_xor(v, 1);  // fault: shuffle_without_some
  out[T] = v;
}

KERNEL(shuffle_elsewhere) {
  float v = in[T];
  if (T & 1)
    v += shfl_xor(v, 2);  // other: shuffle_elsewhere
  else
    v -= shfl_xor(v, 2);  // fault: shuffle_elsewhere
  out[T] = v;
}

KERNEL(another_shuffle_in_the_same_line) {
  float v = in[T];
  out[T] = T & 1 ? shfl_xor(v, 1) : shfl(v, 0);  // fault: another_shuffle_in_the_same_line
}

KERNEL(shuffle_against_barrier) {
  float v = in[T];
  if (T == 5)
    __syncthreads();  // other: shuffle_against_barrier
  else
    v = shfl(v, 3);  // fault: shuffle_against_barrier
  out[T] = v;
}

KERNEL(shuffle_too_often) {
  float v = in[T];
  for (int i = 0; i < T % 32 + 1; i++) v = shfl_xor(v, 1);  // fault: shuffle_too_often
  out[T] = v;
}

KERNEL(barrier_without_thread) {
  if (T == 63) return;
  __syncthreads();  // fault: barrier_without_thread
  out[T] = 1;
}

KERNEL(barrier_without_wave) {
  if (T >= 32) return;
  __syncthreads();  // fault: barrier_without_wave
  out[T] = 1;
}

KERNEL(barrier_elsewhere) {
  if (T < 32)
    __syncthreads();  // fault: barrier_elsewhere
  else
    __syncthreads();  // other: barrier_elsewhere
  out[T] = 1;
}

KERNEL(hang) {
  volatile unsigned* flag = words;
  if (T == 7)
    while (flag[0] == 0) {  // fault: hang
    }
  __syncthreads();
}

// ---- nothing wrong with these ----------------------------------------------------------------------------------------
static __device__ const float TABLE[4] = {1, 2, 3, 4};

KERNEL(table_and_stack) {
  float own[16];
  for (int i = 0; i < 16; i++) own[i] = in[(T + i) % 64];
  out[T] = own[(T * n + 5) % 16] * TABLE[T % 4];
}

KERNEL(whole_waves_apart) {
  float v = in[T];
  if (T < 32) v = wave_sum_shr(v);
  else
    v = shfl_xor(v, 1) + shfl_xor(v, 2);
  out[T] = v;
}

KERNEL(one_wave_returns) {
  if (T >= 32) return;
  out[T] = wave_sum_ror(in[T]);
}

KERNEL(double_buffer) {
  SHARED(float, tile, 128);
  float sum = 0;
  for (int i = 0; i < 6; i++) {
    tile[i % 2 * 64 + T] = in[T] + i;
    __syncthreads();
    sum += tile[i % 2 * 64 + 63 - T];
  }
  out[T] = sum;
}

KERNEL(halves_of_a_word) {
  SHARED(unsigned short, tile, 64);
  tile[(T % 32) * 2 + T / 32] = (unsigned short)(T);
  __syncthreads();
  out[T] = float(tile[T]);
}

KERNEL(counted) {
  SHARED(int, counter, 2);
  if (T < 2) counter[T] = 0;
  __syncthreads();
  atomic_add(&counter[T % 2], T);
  __syncthreads();
  out[T] = float(counter[T % 2]);
}

// D[n, k] = D((u[n, k] - z[n, g]) * s[n, g]): eight codes, one 16-byte store a thread. u - z times s is exact in fp32.
#include "codes.h"

extern "C" __global__ __launch_bounds__(WAVES * 32) void dequantize_int4(
    const unsigned* words, const unsigned short* scale, const void* zero, u32x4* out, int E, int N, int K, int group_shift,
    long long word_expert, long long word_stride, long long scale_expert, long long scale_stride, long long scale_step,
    long long zero_expert, long long zero_stride, long long zero_step) {
  const long long i = (long long)blockIdx.x * (WAVES * 32) + threadIdx.x, in_row = K / 8;
  if (i >= E * N * in_row) return;
  const long long e = i / in_row / N, n = i / in_row % N, k = i % in_row * 8, g = k >> group_shift;
  const long long zero_row = e * zero_expert + (ZERO == ZERO_RDNA ? n / 8 : n) * zero_stride;
  const int z = zero_of(zero_word(zero, zero_row, g * zero_step), int(n % 8));
  const float s = to_float(D{scale[e * scale_expert + n * scale_stride + g * scale_step]});
  const unsigned word = words[e * word_expert + n * word_stride + k / 8];
  u32x4 eight;
#pragma unroll
  for (int j = 0; j < 4; j++) {  // exllama: k = 2j at bit 4j, k = 2j + 1 at bit 16 + 4j
    const float low = float(int((word >> (4 * j)) & 15u) - z), high = float(int((word >> (4 * j + 16)) & 15u) - z);
    eight.v[j] = pack_pair(Codes<D>::store_bits(low * s), Codes<D>::store_bits(high * s));
  }
  out[i] = eight;
}
MOERACLE_EXPORT(dequantize_int4)

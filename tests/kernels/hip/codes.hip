// The conversions of codes.h, element by element, for tests.
#include "codes.h"

extern "C" __global__ __launch_bounds__(32) void convert(const float* x, unsigned* stored, unsigned* finite, unsigned* cut, int n) {
  const int i = int(blockIdx.x) * 32 + int(threadIdx.x);
  if (i >= n) return;
  stored[i] = bf16_store_bits(x[i]);
  finite[i] = bf16_pair_finite(x[i], -x[i]);
  cut[i] = bf16_pair_truncate(x[i], -x[i]);
}
MOERACLE_EXPORT(convert)

extern "C" __global__ __launch_bounds__(32) void decode(const unsigned* words, unsigned* out, int zero, int n) {
  const int i = int(blockIdx.x) * 32 + int(threadIdx.x);
  if (i >= n) return;
  unsigned pairs[4];
  Codes<D>::of_word(words[i], Codes<D>::offset(zero), pairs);
  for (int j = 0; j < 4; j++) out[4 * i + j] = pairs[j];
}
MOERACLE_EXPORT(decode)

// Memory through a buffer descriptor: what lies behind its end reads as zero and is not written.
#include <hip/hip_runtime.h>
typedef __amdgpu_buffer_rsrc_t rsrc;
__global__ void bufs(void* p, void* q, unsigned* o, int n, int so) {
  int i = threadIdx.x * 4;
  rsrc r = __builtin_amdgcn_make_buffer_rsrc(p, 0, n, 0x31004000);
  rsrc w = __builtin_amdgcn_make_buffer_rsrc(q, 0, n, 0x31004000);
  unsigned char a = __builtin_amdgcn_raw_buffer_load_b8(r, i, 0, 0);
  unsigned short b = __builtin_amdgcn_raw_buffer_load_b16(r, i, so, 0);
  unsigned c = __builtin_amdgcn_raw_buffer_load_b32(r, i, 64, 0);
  auto d = __builtin_amdgcn_raw_buffer_load_b64(r, i * 2, 0, 0);
  auto e = __builtin_amdgcn_raw_buffer_load_b96(r, i * 3, 0, 0);
  auto f = __builtin_amdgcn_raw_buffer_load_b128(r, i * 4, so, 1);
  __builtin_amdgcn_raw_buffer_store_b8(a, w, i, 0, 0);
  __builtin_amdgcn_raw_buffer_store_b16(b, w, i + 2, 0, 0);
  __builtin_amdgcn_raw_buffer_store_b32(c + (signed char)a, w, i, 1024, 0);
  __builtin_amdgcn_raw_buffer_store_b64(d, w, i * 2, 2048, 0);
  __builtin_amdgcn_raw_buffer_store_b96(e, w, i * 3, so, 0);
  __builtin_amdgcn_raw_buffer_store_b128(f, w, i * 4, 4096, 0);
  o[threadIdx.x] = a + b + c;
}
// As a compiler of Triton kernels masks lanes: an offset that is too large for any buffer.
__global__ void masked_copy(void* p, void* q, int n) {
  rsrc from = __builtin_amdgcn_make_buffer_rsrc(p, 0, 0x7FFFFFFE, 0x31004000), to = __builtin_amdgcn_make_buffer_rsrc(q, 0, 0x7FFFFFFE, 0x31004000);
  unsigned i = blockIdx.x * 32 + threadIdx.x, at = i < (unsigned)n ? i * 4 : 0x80000000u;
  __builtin_amdgcn_raw_buffer_store_b32(__builtin_amdgcn_raw_buffer_load_b32(from, at, 0, 0) + 1, to, at, 0, 0);
}

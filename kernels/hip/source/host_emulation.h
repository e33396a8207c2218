// Backend 4: the host CPU. Each GPU thread is a fiber; 32 of them meet at every cross-lane operation, a block at every
// barrier. This header is compiled together with the kernel under -fsanitize=thread, whose callbacks (host_runtime.cpp,
// ours; no sanitizer library is linked) see every load and store: that is how plain pointers are checked.
#ifndef MOERACLE_HOST_EMULATION_H
#define MOERACLE_HOST_EMULATION_H

#include "host_launch.h"

#define MOERACLE_HIDDEN __attribute__((visibility("hidden")))
#define MOERACLE_PUBLIC __attribute__((visibility("default")))
#define __global__ __attribute__((noinline))
#define __device__
#define __launch_bounds__(threads)
#define MOERACLE_FN static inline __attribute__((always_inline))
// Where a kernel called: the line that a fault names.
#define MOERACLE_SITE , const char* file = __builtin_FILE(), int line = __builtin_LINE()
#define MOERACLE_PASS_SITE , file, line
#define SHARED(T, name, count)                                                                                     \
  static const char name##_key = 0;                                                                                \
  T(&name)[count] = *(T(*)[count])moeracle_shared(&name##_key, sizeof(T) * (count), alignof(T), #name, __FILE__, __LINE__)
#define SHARED_DYNAMIC(T, name) T* name = (T*)moeracle_shared_dynamic(#name, __FILE__, __LINE__)

enum moeracle_exchange_kind { EXCHANGE_XOR, EXCHANGE_LANE, EXCHANGE_ROW_SHR, EXCHANGE_ROW_ROR, EXCHANGE_BALLOT, EXCHANGE_GATHER };
enum moeracle_access_kind { ACCESS_READ, ACCESS_WRITE, ACCESS_ATOMIC };  // whole, aligned to its size

// The runtime. Ids are constant for a fiber, hence for one call of a kernel.
extern "C" {
MOERACLE_HIDDEN unsigned moeracle_id(int which) __attribute__((const));
MOERACLE_HIDDEN unsigned moeracle_exchange(int kind, unsigned value, int parameter, const char* file, int line);
MOERACLE_HIDDEN const unsigned* moeracle_gather(const unsigned* words, const char* file, int line);  // 8 of each lane
MOERACLE_HIDDEN void moeracle_barrier(const char* file, int line);
MOERACLE_HIDDEN void* moeracle_shared(const char* key, unsigned long bytes, unsigned long align, const char* name,
                                      const char* file, int line);
MOERACLE_HIDDEN void* moeracle_shared_dynamic(const char* name, const char* file, int line);
MOERACLE_HIDDEN void moeracle_access(const void* p, unsigned long bytes, int kind);
MOERACLE_HIDDEN int moeracle_run(void (*entry)(void**), const struct moeracle_launch*, struct moeracle_fault*);
}

namespace moeracle {

template <class To, class From> MOERACLE_FN To bit_cast(const From& x) { return __builtin_bit_cast(To, x); }

struct dim { unsigned x, y, z; };
MOERACLE_FN dim ids(int from) { return {moeracle_id(from), moeracle_id(from + 1), moeracle_id(from + 2)}; }

// ---- numbers ----------------------------------------------------------------------------------------------------------
MOERACLE_FN float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MOERACLE_FN float rcp_f32(float x) { return 1.0f / x; }
MOERACLE_FN float exp_f32(float x) { return float(__builtin_exp(double(x))); }
// The exponent is moved by one exact multiplication, which also normalizes subnormals.
MOERACLE_FN float fp16_bits_to_float(unsigned short bits) {
  unsigned magnitude = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
  if (magnitude >= 0x0f800000u) return bit_cast<float>(sign | magnitude | 0x70000000u);  // inf, NaN
  return bit_cast<float>(sign | bit_cast<unsigned>(bit_cast<float>(magnitude) * 0x1p112f));
}
MOERACLE_FN unsigned short fp16_bits_from_float(float x) {
  unsigned u = bit_cast<unsigned>(x), sign = (u >> 16) & 0x8000u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return sign | 0x7e00u | ((u >> 13) & 0x3ffu);
  if (u >= 0x47800000u) return sign | 0x7c00u;  // 65536 and above; from 65520 the carry below gives infinity
  if (u < 0x38800000u) {                        // below 2^-14: adding 0.5 rounds at 2^-24, where subnormals end
    float moved = bit_cast<float>(u) + 0.5f;
    return sign | (bit_cast<unsigned>(moved) - 0x3f000000u);
  }
  return sign | ((u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13);
}
// fp32 rounds to odd, so that the rounding to fp16 is the only one.
MOERACLE_FN unsigned short fp16_bits_from_double(double x) {
  float y = float(x);
  unsigned u = bit_cast<unsigned>(y);
  if (double(y) != x && x == x && !(u & 1u)) y = bit_cast<float>((x > double(y)) == (x > 0) ? u + 1 : u - 1);
  return fp16_bits_from_float(y);
}
MOERACLE_FN unsigned short half_sub(unsigned short a, unsigned short b) {
  return fp16_bits_from_float(fp16_bits_to_float(a) - fp16_bits_to_float(b));
}
MOERACLE_FN unsigned short half_fma(unsigned short a, unsigned short b, unsigned short c) {
  double product = double(fp16_bits_to_float(a)) * double(fp16_bits_to_float(b));  // exact: 22 bits
  return fp16_bits_from_double(product + fp16_bits_to_float(c));  // near a tie of fp16 it spans 41 bits at most: exact
}
MOERACLE_FN unsigned half2_sub(unsigned a, unsigned b) {
  return half_sub(a & 0xffffu, b & 0xffffu) | unsigned(half_sub(a >> 16, b >> 16)) << 16;
}
MOERACLE_FN unsigned half2_fma(unsigned a, unsigned b, unsigned c) {
  return half_fma(a & 0xffffu, b & 0xffffu, c & 0xffffu) | unsigned(half_fma(a >> 16, b >> 16, c >> 16)) << 16;
}
MOERACLE_FN float dot2_f32_bf16(unsigned a, unsigned b, float acc) {
  acc = fmaf(bit_cast<float>(a << 16), bit_cast<float>(b << 16), acc);
  return fmaf(bit_cast<float>(a & 0xffff0000u), bit_cast<float>(b & 0xffff0000u), acc);
}
MOERACLE_FN float dot2_f32_f16(unsigned a, unsigned b, float acc) {
  acc = fmaf(fp16_bits_to_float(a & 0xffffu), fp16_bits_to_float(b & 0xffffu), acc);
  return fmaf(fp16_bits_to_float(a >> 16), fp16_bits_to_float(b >> 16), acc);
}

// ---- lanes ------------------------------------------------------------------------------------------------------------
template <class T> MOERACLE_FN T exchange(int kind, T v, int parameter, const char* file, int line) {
  static_assert(sizeof(T) == 4, "cross-lane operations move 32 bits");
  return bit_cast<T>(moeracle_exchange(kind, bit_cast<unsigned>(v), parameter, file, line));
}
template <class T> MOERACLE_FN T shfl_xor(T v, int mask MOERACLE_SITE) { return exchange(EXCHANGE_XOR, v, mask, file, line); }
template <class T> MOERACLE_FN T shfl(T v, int lane MOERACLE_SITE) { return exchange(EXCHANGE_LANE, v, lane, file, line); }
template <class T> MOERACLE_FN T shfl_first(T v MOERACLE_SITE) { return exchange(EXCHANGE_LANE, v, 0, file, line); }
template <int N, class T> MOERACLE_FN T row_shr(T v MOERACLE_SITE) { return exchange(EXCHANGE_ROW_SHR, v, N, file, line); }
template <int N, class T> MOERACLE_FN T row_ror(T v MOERACLE_SITE) { return exchange(EXCHANGE_ROW_ROR, v, N, file, line); }
MOERACLE_FN unsigned wave_ballot(int p MOERACLE_SITE) { return exchange(EXCHANGE_BALLOT, unsigned(p != 0), 0, file, line); }
MOERACLE_FN void block_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  moeracle_barrier(file, line);
}

// ---- memory: these are checked as one access, then done without the compiler's instrumentation. Atomics are not torn,
// because one fiber runs at a time.
#if defined(__clang__)
#define MOERACLE_RAW __attribute__((no_sanitize("thread"), noinline))
#else
#define MOERACLE_RAW __attribute__((no_sanitize("thread"), noipa))  // else the load may move into the caller
#endif
template <class T> MOERACLE_RAW T raw_load(const T* p) { return *p; }
template <class T> MOERACLE_RAW void raw_store(T* p, T v) { *p = v; }
template <class T> MOERACLE_FN T load_nt(const T* p) {
  moeracle_access(p, sizeof(T), ACCESS_READ);
  return raw_load(p);
}
template <class T> MOERACLE_FN void store_nt(T* p, T v) {
  moeracle_access(p, sizeof(T), ACCESS_WRITE);
  raw_store(p, v);
}
template <class T> MOERACLE_FN T atomic_old(T* p) {
  moeracle_access(p, sizeof(T), ACCESS_ATOMIC);
  return raw_load(p);
}
template <class T> MOERACLE_FN T replace(T* p, T old, T v) {
  raw_store(p, v);
  return old;
}
template <class T> MOERACLE_FN T atomic_add(T* p, T v) {
  const T old = atomic_old(p);
  return replace(p, old, T(old + v));
}
template <class T> MOERACLE_FN T atomic_max(T* p, T v) {
  const T old = atomic_old(p);
  return replace(p, old, old < v ? v : old);
}
template <class T> MOERACLE_FN T atomic_exchange(T* p, T v) { return replace(p, atomic_old(p), v); }
MOERACLE_FN unsigned atomic_cas(unsigned* p, unsigned expected, unsigned desired) {
  const unsigned old = atomic_old(p);
  return replace(p, old, old == expected ? desired : old);
}
MOERACLE_FN void thread_fence() {}

// ---- launching --------------------------------------------------------------------------------------------------------
// One letter an argument: r and w pointers (const and not), i u l f numbers.
template <class T> struct letter;
template <class T> struct letter<T*> { static constexpr char value = 'w'; };
template <class T> struct letter<const T*> { static constexpr char value = 'r'; };
template <> struct letter<int> { static constexpr char value = 'i'; };
template <> struct letter<unsigned> { static constexpr char value = 'u'; };
template <> struct letter<long long> { static constexpr char value = 'l'; };
template <> struct letter<float> { static constexpr char value = 'f'; };

template <int... I> struct indices {};
template <int N, int... I> struct indices_below : indices_below<N - 1, N - 1, I...> {};
template <int... I> struct indices_below<0, I...> { typedef indices<I...> type; };

template <class... Args> struct call {
  template <void (*kernel)(Args...), int... I>
  __attribute__((no_sanitize("thread"))) static void unpack(void** args, indices<I...>) {
    kernel(*(Args*)args[I]...);
  }
  template <void (*kernel)(Args...)> __attribute__((no_sanitize("thread"))) static void entry(void** args) {
    unpack<kernel>(args, typename indices_below<sizeof...(Args)>::type());
  }
  static const char* signature() {
    static const char text[] = {letter<Args>::value..., 0};
    return text;
  }
};
template <class... Args> call<Args...> call_of(void (*)(Args...));

}  // namespace moeracle

#define threadIdx moeracle::ids(0)
#define blockIdx moeracle::ids(3)
#define blockDim moeracle::ids(6)
#define gridDim moeracle::ids(9)
#define __syncthreads() moeracle::block_barrier()

#define MOERACLE_EXPORT(name)                                                                                      \
  extern "C" MOERACLE_PUBLIC const char* moeracle_signature_##name() {                                             \
    return decltype(moeracle::call_of(name))::signature();                                                         \
  }                                                                                                                \
  extern "C" MOERACLE_PUBLIC int moeracle_launch_##name(const moeracle_launch* launch, moeracle_fault* fault) {    \
    return moeracle_run(decltype(moeracle::call_of(name))::template entry<name>, launch, fault);                   \
  }

#endif

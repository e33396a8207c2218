// Scalar instructions: name, kind of the result, kinds of the sources, formula; `scc` is read and written.
#pragma once
#include "vector.h"

#define S1(NAME, R, A, ...) {#NAME, [](Wave &w, const Instruction &in) { A::T a = A::scalar(w, in, 0); u32 scc = w.scc; R::T d; __VA_ARGS__; w.scc = scc; R::set(w, in, d); }},
#define S2(NAME, R, A, C, ...) {#NAME, [](Wave &w, const Instruction &in) { A::T a = A::scalar(w, in, 0); C::T b = C::scalar(w, in, 1); u32 scc = w.scc; R::T d; __VA_ARGS__; w.scc = scc; R::set(w, in, d); }},
#define LOGIC(NAME, R, A, C, X) S2(NAME, R, A, C, d = X; scc = d != 0)
#define TEST(NAME, A, C, X) {#NAME, [](Wave &w, const Instruction &in) { A::T a = A::scalar(w, in, 0); C::T b = C::scalar(w, in, 1); w.scc = X; }},
#define TESTS(K, A) TEST(S_CMP_EQ_##K, A, A, a == b) TEST(S_CMP_GT_##K, A, A, a > b) TEST(S_CMP_GE_##K, A, A, a >= b) TEST(S_CMP_LT_##K, A, A, a < b) TEST(S_CMP_LE_##K, A, A, a <= b)
#define SAVE(NAME, X) {#NAME, [](Wave &w, const Instruction &in) { u32 a = scalar_word(w, in, in.src[0]), b = w.s[EXEC], d = X; set_scalar(w, in.sdst, b); w.s[EXEC] = d; w.scc = d != 0; }},
#define WRITE(NAME, X) {#NAME, [](Wave &w, const Instruction &in) { u32 a = scalar_word(w, in, in.src[0]), b = w.s[EXEC], d = X; w.s[EXEC] = d; set_scalar(w, in.sdst, d); w.scc = d != 0; }},
struct HS { typedef float T;  // fp16 in the lower half of a scalar register
  static T scalar(Wave &w, const Instruction &in, int p) {
    int code = in.src[p];
    return code >= 240 && code <= 248 ? widen(narrow(CONSTANTS[code - 240])) : widen(scalar_word(w, in, code) & 0xFFFF); }
  static void set(Wave &w, const Instruction &in, T x) { set_scalar(w, in.sdst, narrow(x)); } };
static inline bool over(i64 x) { return x != (i32)x; }

static u32 quads(u32 a, bool all) {  // per quad of lanes
  u32 out = 0;
  for (int i = 0; i < 32; i += 4) { u32 q = a >> i & 15; if (all ? q == 15 : q != 0) out |= 15u << i; }
  return out;
}

static const Entry SCALAR[] = {
  S2(S_ADD_U32, U, U, U, u64 t = (u64)a + b; d = (u32)t; scc = t >> 32 & 1) S2(S_SUB_U32, U, U, U, d = a - b; scc = b > a)
  S2(S_ADD_I32, I, I, I, i64 t = (i64)a + b; d = (i32)t; scc = over(t)) S2(S_SUB_I32, I, I, I, i64 t = (i64)a - b; d = (i32)t; scc = over(t))
  S2(S_ADDC_U32, U, U, U, u64 t = (u64)a + b + scc; d = (u32)t; scc = t >> 32 & 1) S2(S_SUBB_U32, U, U, U, i64 t = (i64)a - b - scc; d = (u32)t; scc = t < 0)
  LOGIC(S_AND_B32, U, U, U, a & b) LOGIC(S_OR_B32, U, U, U, a | b) LOGIC(S_XOR_B32, U, U, U, a ^ b) LOGIC(S_NAND_B32, U, U, U, ~(a & b)) LOGIC(S_NOR_B32, U, U, U, ~(a | b))
  LOGIC(S_XNOR_B32, U, U, U, ~(a ^ b)) LOGIC(S_AND_NOT1_B32, U, U, U, a & ~b) LOGIC(S_OR_NOT1_B32, U, U, U, a | ~b)
  LOGIC(S_AND_B64, UL, UL, UL, a & b) LOGIC(S_OR_B64, UL, UL, UL, a | b) LOGIC(S_XOR_B64, UL, UL, UL, a ^ b) LOGIC(S_NAND_B64, UL, UL, UL, ~(a & b)) LOGIC(S_NOR_B64, UL, UL, UL, ~(a | b))
  LOGIC(S_XNOR_B64, UL, UL, UL, ~(a ^ b)) LOGIC(S_AND_NOT1_B64, UL, UL, UL, a & ~b) LOGIC(S_OR_NOT1_B64, UL, UL, UL, a | ~b)
  LOGIC(S_LSHL_B32, U, U, U, a << (b & 31)) LOGIC(S_LSHR_B32, U, U, U, a >> (b & 31)) LOGIC(S_ASHR_I32, I, I, U, a >> (b & 31))
  LOGIC(S_LSHL_B64, UL, UL, U, a << (b & 63)) LOGIC(S_LSHR_B64, UL, UL, U, a >> (b & 63)) LOGIC(S_ASHR_I64, IL, IL, U, a >> (b & 63))
  LOGIC(S_BFE_U32, U, U, U, field(a, b & 31, least<u32>(b >> 16 & 127, 32))) LOGIC(S_BFE_I32, I, I, U, signed_field(a, b & 31, least<u32>(b >> 16 & 127, 32)))
  S2(S_BFE_U64, UL, UL, U, u32 n = b >> 16 & 127; d = a >> (b & 63) & (n >= 64 ? ~0ull : (1ull << n) - 1); scc = d != 0)
  S2(S_BFE_I64, IL, IL, U, u32 n = b >> 16 & 127; d = !n ? 0 : (i64)((u64)(a >> (b & 63)) << (64 - least<u32>(n, 64))) >> (64 - least<u32>(n, 64)); scc = d != 0)
  S2(S_BFM_B32, U, U, U, d = ((1u << (a & 31)) - 1) << (b & 31)) S2(S_BFM_B64, UL, U, U, d = ((1ull << (a & 63)) - 1) << (b & 63))
  S2(S_MUL_I32, U, U, U, d = a * b) S2(S_MUL_HI_U32, U, U, U, d = (u32)((u64)a * b >> 32)) S2(S_MUL_HI_I32, I, I, I, d = (i32)((i64)a * b >> 32))
  S2(S_CSELECT_B32, U, U, U, d = scc ? a : b) S2(S_CSELECT_B64, UL, UL, UL, d = scc ? a : b)
  S2(S_PACK_LL_B32_B16, U, U, U, d = (a & 0xFFFF) | b << 16) S2(S_PACK_LH_B32_B16, U, U, U, d = (a & 0xFFFF) | (b & 0xFFFF0000))
  S2(S_PACK_HH_B32_B16, U, U, U, d = a >> 16 | (b & 0xFFFF0000)) S2(S_PACK_HL_B32_B16, U, U, U, d = a >> 16 | b << 16)
  S2(S_MIN_I32, I, I, I, d = least(a, b); scc = a < b) S2(S_MAX_I32, I, I, I, d = most(a, b); scc = a >= b) S2(S_MIN_U32, U, U, U, d = least(a, b); scc = a < b)
  S2(S_MAX_U32, U, U, U, d = most(a, b); scc = a >= b) S2(S_ABSDIFF_I32, U, I, I, i64 t = (i64)(i32)((u32)a - (u32)b); d = (u32)(t < 0 ? -t : t); scc = d != 0)
  S2(S_LSHL1_ADD_U32, U, U, U, u64 t = ((u64)a << 1) + b; d = (u32)t; scc = t >= 1ull << 32) S2(S_LSHL2_ADD_U32, U, U, U, u64 t = ((u64)a << 2) + b; d = (u32)t; scc = t >= 1ull << 32)
  S2(S_LSHL3_ADD_U32, U, U, U, u64 t = ((u64)a << 3) + b; d = (u32)t; scc = t >= 1ull << 32) S2(S_LSHL4_ADD_U32, U, U, U, u64 t = ((u64)a << 4) + b; d = (u32)t; scc = t >= 1ull << 32)
  S2(S_ADD_F32, F, F, F, d = a + b) S2(S_SUB_F32, F, F, F, d = a - b) S2(S_MUL_F32, F, F, F, d = a * b) S2(S_MIN_F32, F, F, F, d = least(a, b)) S2(S_MAX_F32, F, F, F, d = most(a, b))
  {"S_FMA_F32", [](Wave &w, const Instruction &in) { F::set(w, in, std::fma(F::scalar(w, in, 0), F::scalar(w, in, 1), F::scalar(w, in, 2))); }},
  S2(S_ADD_F16, HS, HS, HS, d = a + b) S2(S_SUB_F16, HS, HS, HS, d = a - b) S2(S_MUL_F16, HS, HS, HS, d = a * b) S2(S_MIN_F16, HS, HS, HS, d = least(a, b)) S2(S_MAX_F16, HS, HS, HS, d = most(a, b))
  {"S_FMA_F16", [](Wave &w, const Instruction &in) { HS::set(w, in, fma_half(HS::scalar(w, in, 0), HS::scalar(w, in, 1), HS::scalar(w, in, 2))); }},
  S1(S_TRUNC_F16, HS, HS, d = std::trunc(a)) S1(S_FLOOR_F16, HS, HS, d = std::floor(a)) S1(S_CEIL_F16, HS, HS, d = std::ceil(a)) S1(S_RNDNE_F16, HS, HS, d = std::nearbyint(a))
  TESTS(F16, HS) TEST(S_CMP_LG_F16, HS, HS, a < b || a > b) TEST(S_CMP_O_F16, HS, HS, a == a && b == b) TEST(S_CMP_U_F16, HS, HS, a != a || b != b) TEST(S_CMP_NGE_F16, HS, HS, !(a >= b))
  TEST(S_CMP_NLG_F16, HS, HS, !(a < b || a > b)) TEST(S_CMP_NGT_F16, HS, HS, !(a > b)) TEST(S_CMP_NLE_F16, HS, HS, !(a <= b)) TEST(S_CMP_NEQ_F16, HS, HS, !(a == b)) TEST(S_CMP_NLT_F16, HS, HS, !(a < b))
  S2(S_CVT_PK_RTZ_F16_F32, U, F, F, d = narrow_to_zero(a) | narrow_to_zero(b) << 16)
  S1(S_MOV_B32, U, U, d = a) S1(S_MOV_B64, UL, UL, d = a) S1(S_CMOV_B32, U, U, d = scc ? a : w.s[in.sdst]) S1(S_CMOV_B64, UL, UL, d = scc ? a : scalar_pair(w, in, in.sdst))
  S1(S_NOT_B32, U, U, d = ~a; scc = d != 0) S1(S_NOT_B64, UL, UL, d = ~a; scc = d != 0) S1(S_BREV_B32, U, U, d = reversed(a))
  S1(S_BREV_B64, UL, UL, d = (u64)reversed((u32)a) << 32 | reversed((u32)(a >> 32))) S1(S_SEXT_I32_I8, I, U, d = (i8)a) S1(S_SEXT_I32_I16, I, U, d = (i16)a)
  S1(S_ABS_I32, U, I, d = a < 0 ? 0u - (u32)a : (u32)a; scc = d != 0) S1(S_BCNT1_I32_B32, U, U, d = __builtin_popcount(a); scc = d != 0) S1(S_BCNT0_I32_B32, U, U, d = 32 - __builtin_popcount(a); scc = d != 0)
  S1(S_BCNT1_I32_B64, U, UL, d = __builtin_popcountll(a); scc = d != 0) S1(S_BCNT0_I32_B64, U, UL, d = 64 - __builtin_popcountll(a); scc = d != 0)
  S1(S_CLZ_I32_U32, U, U, d = leading(a)) S1(S_CLZ_I32_U64, U, UL, d = a ? __builtin_clzll(a) : ~0u) S1(S_CLS_I32, U, U, d = sign_bits(a))
  S1(S_CLS_I32_I64, U, UL, u64 x = a ^ (u64)((i64)a >> 63); d = x ? __builtin_clzll(x) : ~0u) S1(S_CTZ_I32_B32, U, U, d = trailing(a)) S1(S_CTZ_I32_B64, U, UL, d = a ? __builtin_ctzll(a) : ~0u)
  S1(S_BITSET0_B32, U, U, d = w.s[in.sdst] & ~(1u << (a & 31))) S1(S_BITSET1_B32, U, U, d = w.s[in.sdst] | 1u << (a & 31))
  S1(S_BITSET0_B64, UL, U, d = scalar_pair(w, in, in.sdst) & ~(1ull << (a & 63))) S1(S_BITSET1_B64, UL, U, d = scalar_pair(w, in, in.sdst) | 1ull << (a & 63))
  S1(S_WQM_B32, U, U, d = quads(a, false); scc = d != 0) S1(S_QUADMASK_B32, U, U, d = 0; for (int i = 0; i < 8; i++) d |= (u32)((a >> 4 * i & 15) != 0) << i; scc = d != 0)
  S1(S_TRUNC_F32, F, F, d = std::trunc(a)) S1(S_FLOOR_F32, F, F, d = std::floor(a)) S1(S_CEIL_F32, F, F, d = std::ceil(a)) S1(S_RNDNE_F32, F, F, d = std::nearbyint(a))
  S1(S_CVT_F32_U32, F, U, d = (float)a) S1(S_CVT_F32_I32, F, I, d = (float)a) S1(S_CVT_U32_F32, U, F, d = to_u32(a)) S1(S_CVT_I32_F32, I, F, d = to_i32(a))
  S1(S_CVT_F32_F16, F, U, d = widen(a & 0xFFFF)) S1(S_CVT_HI_F32_F16, F, U, d = widen(a >> 16)) S1(S_CVT_F16_F32, U, F, d = narrow(a))
  S1(S_MOVRELS_B32, U, U, int from = in.src[0] + (int)w.s[M0]; if (from < 0 || from > 105) fail(w, in, STATE, 0, from, 4); (void)a; d = w.s[from])
  {"S_MOVRELD_B32", [](Wave &w, const Instruction &in) { int to = in.sdst + (int)w.s[M0]; if (to < 0 || to > 105) fail(w, in, STATE, 0, to, 4); set_scalar(w, to, scalar_word(w, in, in.src[0])); }},
  {"S_MOVRELS_B64", [](Wave &w, const Instruction &in) { int from = in.src[0] + (int)w.s[M0]; if (from < 0 || from > 104) fail(w, in, STATE, 0, from, 8); set_pair(w, in.sdst, scalar_pair(w, in, from)); }},
  {"S_MOVRELD_B64", [](Wave &w, const Instruction &in) { int to = in.sdst + (int)w.s[M0]; if (to < 0 || to > 104) fail(w, in, STATE, 0, to, 8); set_pair(w, to, scalar_pair(w, in, in.src[0])); }},
  S1(S_BITREPLICATE_B64_B32, UL, U, d = 0; for (int i = 0; i < 32; i++) d |= (u64)(a >> i & 1) * 3 << 2 * i)
  S1(S_QUADMASK_B64, UL, UL, d = 0; for (int i = 0; i < 16; i++) d |= (u64)((a >> 4 * i & 15) != 0) << i; scc = d != 0)
  S1(S_WQM_B64, UL, UL, d = (u64)quads((u32)(a >> 32), false) << 32 | quads((u32)a, false); scc = d != 0)
  SAVE(S_AND_SAVEEXEC_B32, a & b) SAVE(S_OR_SAVEEXEC_B32, a | b) SAVE(S_XOR_SAVEEXEC_B32, a ^ b) SAVE(S_NAND_SAVEEXEC_B32, ~(a & b)) SAVE(S_NOR_SAVEEXEC_B32, ~(a | b))
  SAVE(S_XNOR_SAVEEXEC_B32, ~(a ^ b)) SAVE(S_AND_NOT0_SAVEEXEC_B32, ~a & b) SAVE(S_OR_NOT0_SAVEEXEC_B32, ~a | b) SAVE(S_AND_NOT1_SAVEEXEC_B32, a & ~b) SAVE(S_OR_NOT1_SAVEEXEC_B32, a | ~b)
  WRITE(S_AND_NOT0_WREXEC_B32, ~a & b) WRITE(S_AND_NOT1_WREXEC_B32, a & ~b)
  TESTS(U32, U) TESTS(I32, I) TESTS(F32, F) TEST(S_CMP_LG_U32, U, U, a != b) TEST(S_CMP_LG_I32, U, U, a != b) TEST(S_CMP_EQ_U64, UL, UL, a == b) TEST(S_CMP_LG_U64, UL, UL, a != b)
  TEST(S_CMP_LG_F32, F, F, a < b || a > b) TEST(S_CMP_O_F32, F, F, a == a && b == b) TEST(S_CMP_U_F32, F, F, a != a || b != b) TEST(S_CMP_NGE_F32, F, F, !(a >= b))
  TEST(S_CMP_NLG_F32, F, F, !(a < b || a > b)) TEST(S_CMP_NGT_F32, F, F, !(a > b)) TEST(S_CMP_NLE_F32, F, F, !(a <= b)) TEST(S_CMP_NEQ_F32, F, F, !(a == b)) TEST(S_CMP_NLT_F32, F, F, !(a < b))
  TEST(S_BITCMP0_B32, U, U, !(a >> (b & 31) & 1)) TEST(S_BITCMP1_B32, U, U, a >> (b & 31) & 1) TEST(S_BITCMP0_B64, UL, U, !(a >> (b & 63) & 1)) TEST(S_BITCMP1_B64, UL, U, a >> (b & 63) & 1)
};

static void jump(Wave &w, const Instruction &in, u64 address) {
  i64 at = (i64)(address - w.launch->image_base) / 4;
  if (address & 3 || at < 0 || at >= w.launch->index_count || w.launch->index_of[at] < 0) fail(w, in, BAD_JUMP, 0, address, 4);
  w.pc = w.launch->index_of[at];
}
static u64 here(Wave &w, const Instruction &in) { return w.launch->image_base + (u64)w.launch->program[in.next - 1].address + (u64)in.size; }
static const u32 MODE = 0xF0;  // nearest even, subnormals of every format kept
static u64 clock(Wave &w) { return (u64)++w.clock * 64; }
#define IF(NAME, X) {#NAME, [](Wave &w, const Instruction &in) { if (X) w.pc = in.target; }},
static const Entry CONTROL[] = {
  IF(S_BRANCH, (true)) IF(S_CBRANCH_SCC0, !w.scc) IF(S_CBRANCH_SCC1, w.scc) IF(S_CBRANCH_VCCZ, !w.s[VCC]) IF(S_CBRANCH_VCCNZ, w.s[VCC])
  IF(S_CBRANCH_EXECZ, !w.s[EXEC]) IF(S_CBRANCH_EXECNZ, w.s[EXEC])
  {"S_ENDPGM", [](Wave &w, const Instruction &) { w.state = 2; }}, {"S_BARRIER", [](Wave &w, const Instruction &) { w.state = 1; }},
  {"S_GETPC_B64", [](Wave &w, const Instruction &in) { set_pair(w, in.sdst, here(w, in)); }},
  {"S_SETPC_B64", [](Wave &w, const Instruction &in) { jump(w, in, scalar_pair(w, in, in.src[0])); }},
  {"S_SWAPPC_B64", [](Wave &w, const Instruction &in) { u64 to = scalar_pair(w, in, in.src[0]); set_pair(w, in.sdst, here(w, in)); jump(w, in, to); }},
  {"S_CALL_B64", [](Wave &w, const Instruction &in) { set_pair(w, in.sdst, here(w, in)); w.pc = in.target; }},
  {"S_TRAP", [](Wave &w, const Instruction &in) { fail(w, in, TRAP, 0, in.extra, 0); }},
  // A clock that goes on by 64 each time it is read: time is not modelled. extra: first bit, size: bits.
  {"READ_CLOCK", [](Wave &w, const Instruction &in) { u64 x = clock(w) >> in.extra; set_scalar(w, in.sdst, (u32)(in.size < 32 ? x & ((1ull << in.size) - 1) : x)); }},
  {"READ_CLOCK_PAIR", [](Wave &w, const Instruction &in) { set_pair(w, in.sdst, clock(w)); }},
  {"READ_MODE", [](Wave &w, const Instruction &in) { set_scalar(w, in.sdst, MODE >> in.extra & (u32)((1ull << in.size) - 1)); }},
  // Rounding and subnormals may be set to what they are.
  {"WRITE_MODE", [](Wave &w, const Instruction &in) {
    u32 mask = (u32)(((1ull << in.size) - 1) << in.extra), next = (MODE & ~mask) | (scalar_word(w, in, in.src[0]) << in.extra & mask);
    if (next != MODE) fail(w, in, UNMODELLED, 0, next, 4);
  }},
  {"NO_EFFECT", [](Wave &, const Instruction &) {}},
};

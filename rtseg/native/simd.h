// Vectors as wide as the instruction set compiled for, in the notation of GCC and Clang.
//
// Everything is internal to one translation unit: see the last paragraph on top of
// upsample_argmax.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef RTSEG_ISA
#define RTSEG_ISA baseline
#endif

namespace rtseg {
namespace RTSEG_ISA {
namespace {

// What one register of this instruction set holds.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

template <int N>
struct Vector {
  typedef float f32 __attribute__((vector_size(N * 4)));
  typedef std::int32_t i32 __attribute__((vector_size(N * 4)));
  typedef std::uint8_t u8 __attribute__((vector_size(N)));
};
using F = Vector<kLanes>::f32;
using I = Vector<kLanes>::i32;
using B = Vector<kLanes>::u8;

#define RTSEG_INLINE inline __attribute__((always_inline))

template <class V, class T>
RTSEG_INLINE V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T>
RTSEG_INLINE void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}
RTSEG_INLINE F absolute(F v) { return (F)((I)v & 0x7fffffff); }
RTSEG_INLINE F larger(F a, F b) { return a > b ? a : b; }
RTSEG_INLINE F smaller(F a, F b) { return a < b ? a : b; }
RTSEG_INLINE float absolute(float v) { return __builtin_fabsf(v); }
RTSEG_INLINE float larger(float a, float b) { return a > b ? a : b; }
#if defined(__AVX512F__)
constexpr bool kPermutes = true;
RTSEG_INLINE F permute(F v, I at) {  // all lanes; the unmasked form warns in GCC 12
  return (F)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)at, (__m512)v);
}
#elif defined(__AVX2__)
constexpr bool kPermutes = true;
RTSEG_INLINE F permute(F v, I at) { return (F)_mm256_permutevar8x32_ps((__m256)v, (__m256i)at); }
#else
constexpr bool kPermutes = false;  // no instruction for it
RTSEG_INLINE F permute(F v, I) { return v; }
#endif
RTSEG_INLINE bool any(I v) {
  std::uint64_t words[sizeof(I) / 8], all = 0;
  __builtin_memcpy(words, &v, sizeof v);
  for (std::uint64_t word : words) all |= word;
  return all != 0;
}

}  // namespace
}  // namespace RTSEG_ISA
}  // namespace rtseg

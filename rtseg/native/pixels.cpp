// See pixels.h.

#include "pixels.h"

#include "simd.h"

namespace rtseg {
namespace RTSEG_ISA {
namespace {

constexpr int kBlock = 16;  // pixels that `blend` colours together

// Above 1.5 * 2^23 a float has no room for a fraction: the addition rounds, the low byte is the sum.
RTSEG_INLINE std::uint8_t mixed(std::uint8_t value, float colour, float rest) {
  const float sum = (float)value * rest + colour + 0x1.8p23f;
  std::uint32_t bits;
  __builtin_memcpy(&bits, &sum, sizeof bits);
  return (std::uint8_t)bits;
}

// kMixed numbers at a time. GCC's own way from bytes to floats and back takes twice as long.
#if defined(__AVX512F__)
constexpr int kMixed = 16;
RTSEG_INLINE void mix(const std::uint8_t* in, const float* colours, float rest, std::uint8_t* out) {
  const __m128i bytes = _mm_loadu_si128((const __m128i*)in);
  const F value = (F)_mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepu8_epi32(0xffff, bytes));
  const __m512 sum = (__m512)(value * rest + load<F>(colours));
  const __m512i rounded = _mm512_maskz_cvtps_epi32(0xffff, sum);
  _mm_storeu_si128((__m128i*)out, _mm512_maskz_cvtepi32_epi8(0xffff, rounded));
}
#elif defined(__AVX2__)
constexpr int kMixed = 16;
RTSEG_INLINE void mix(const std::uint8_t* in, const float* colours, float rest, std::uint8_t* out) {
  __m256i rounded[2];
  for (int half = 0; half < 2; ++half) {
    const __m128i bytes = _mm_loadl_epi64((const __m128i*)(in + 8 * half));
    const F value = (F)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    rounded[half] = _mm256_cvtps_epi32((__m256)(value * rest + load<F>(colours + 8 * half)));
  }
  const __m256i words =
      _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded[0], rounded[1]), 0xd8);
  const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
  _mm_storeu_si128((__m128i*)out, _mm_packus_epi16(low, high));
}
#else
constexpr int kMixed = 1;
RTSEG_INLINE void mix(const std::uint8_t* in, const float* colours, float rest, std::uint8_t* out) {
  *out = mixed(*in, *colours, rest);
}
#endif

}  // namespace

// Labels lie in runs: the colours of a block are laid out anew only where its label changes.
void blend(const std::uint8_t* __restrict__ bgr, const std::uint8_t* __restrict__ labels,
           const float* __restrict__ colours, float rest, std::size_t pixels,
           std::uint8_t* __restrict__ out) {
  alignas(64) float block[3 * kBlock + 1];
  int held = -1;  // the label whose colours fill the block
  std::size_t p = 0;
  for (; p + kBlock <= pixels; p += kBlock) {
    const std::uint64_t run = 0x0101010101010101u * labels[p];
    std::uint64_t words[kBlock / 8], differs = 0;
    __builtin_memcpy(words, labels + p, kBlock);
    for (const std::uint64_t word : words) differs |= word ^ run;
    if (differs || held != labels[p]) {
      held = differs ? -1 : labels[p];
      for (int k = 0; k < kBlock; ++k) {  // the fourth is written over by the next one
        __builtin_memcpy(block + 3 * k, colours + 4 * labels[p + k], 4 * sizeof(float));
      }
    }
    for (int i = 0; i < 3 * kBlock; i += kMixed) {
      mix(bgr + 3 * p + i, block + i, rest, out + 3 * p + i);
    }
  }
  for (; p < pixels; ++p) {
    for (int c = 0; c < 3; ++c) {
      out[3 * p + c] = mixed(bgr[3 * p + c], colours[4 * labels[p] + c], rest);
    }
  }
}

// A histogram waits for its own last increment wherever neighbours are alike, as labels are nearly
// everywhere: so runs are measured, eight labels at a time, and added once.
void count_labels(const std::uint8_t* labels, std::size_t n, std::int64_t* counts) {
  std::size_t i = 0;
  while (i + 8 <= n) {
    const std::uint64_t run = 0x0101010101010101u * labels[i];
    const std::size_t start = i;
    std::uint64_t word;
    for (; i + 8 <= n; i += 8) {
      __builtin_memcpy(&word, labels + i, 8);
      if (word != run) break;
    }
    counts[run & 255] += (std::int64_t)(i - start);
    if (i + 8 <= n && i == start) {  // a border within the word
      for (int k = 0; k < 8; ++k) ++counts[labels[i + k]];
      i += 8;
    }
  }
  for (; i < n; ++i) ++counts[labels[i]];
}

}  // namespace RTSEG_ISA
}  // namespace rtseg

// BGR to 4:2:0 for the video encoder; see reference.to_yuv420 for the arithmetic: 15-bit
// coefficients of BT.601, limited range, chroma from the sum of 2 x 2 pixels.

#include "yuv.h"

#include "simd.h"

namespace rtseg {
namespace RTSEG_ISA {
namespace {

struct Row {
  const std::uint8_t *upper, *lower;
  std::uint8_t *luma_upper, *luma_lower, *u, *v;
};

#if defined(__AVX2__)
// kLanes pixels, their channels as 16-bit pairs: blue and green, red and zero.
struct Pixels {
  I blue_green, red;
};

#if defined(__AVX512F__)
RTSEG_INLINE I multiplied(I pairs, I weights) {
  return (I)_mm512_madd_epi16((__m512i)pairs, (__m512i)weights);
}
RTSEG_INLINE I added(I a, I b) { return (I)_mm512_add_epi16((__m512i)a, (__m512i)b); }
RTSEG_INLINE I shuffled(I v, __m128i bytes) {
  return (I)_mm512_shuffle_epi8((__m512i)v, _mm512_maskz_broadcast_i32x4(0xffff, bytes));
}
// Four pixels, 12 bytes, to each 128 bits.
RTSEG_INLINE I spread(const std::uint8_t* p) {
  const I at = {0, 1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 0, 9, 10, 11, 0};
  return (I)permute(load<F>(p), at);
}
RTSEG_INLINE void store_bytes(std::uint8_t* out, I v) {
  _mm_storeu_si128((__m128i*)out, _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v));
}
// The sums of neighbours.
RTSEG_INLINE I folded(I v) { return v + (I)_mm512_maskz_srli_epi64(0xff, (__m512i)v, 32); }
RTSEG_INLINE void store_even_bytes(std::uint8_t* out, I v) {
  _mm_storel_epi64((__m128i*)out, _mm512_maskz_cvtepi64_epi8(0xff, (__m512i)v));
}
#else
RTSEG_INLINE I multiplied(I pairs, I weights) {
  return (I)_mm256_madd_epi16((__m256i)pairs, (__m256i)weights);
}
RTSEG_INLINE I added(I a, I b) { return (I)_mm256_add_epi16((__m256i)a, (__m256i)b); }
RTSEG_INLINE I shuffled(I v, __m128i bytes) {
  return (I)_mm256_shuffle_epi8((__m256i)v, _mm256_broadcastsi128_si256(bytes));
}
RTSEG_INLINE I spread(const std::uint8_t* p) {
  const I at = {0, 1, 2, 0, 3, 4, 5, 0};
  return (I)permute(load<F>(p), at);
}
// Byte 0 of each 128 bits' first numbers, one after the other.
RTSEG_INLINE std::uint64_t first_bytes(I v, __m128i which) {
  const __m256i bytes = (__m256i)shuffled(v, which);
  const std::uint32_t low = (std::uint32_t)_mm256_extract_epi32(bytes, 0);
  return low | (std::uint64_t)(std::uint32_t)_mm256_extract_epi32(bytes, 4) << 32;
}
RTSEG_INLINE void store_bytes(std::uint8_t* out, I v) {
  const std::uint64_t bytes = first_bytes(v, _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1,
                                                           -1, -1, -1, -1, -1));
  __builtin_memcpy(out, &bytes, 8);
}
RTSEG_INLINE I folded(I v) { return v + (I)_mm256_srli_epi64((__m256i)v, 32); }
RTSEG_INLINE void store_even_bytes(std::uint8_t* out, I v) {
  const std::uint64_t bytes = first_bytes(
      v, _mm_setr_epi8(0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
  const std::uint32_t four = (std::uint32_t)(bytes | bytes >> 16);
  __builtin_memcpy(out, &four, 4);
}
#endif

RTSEG_INLINE Pixels load_pixels(const std::uint8_t* p) {
  const __m128i blue_green =
      _mm_setr_epi8(0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1);
  const __m128i red = _mm_setr_epi8(2, -1, -1, -1, 5, -1, -1, -1, 8, -1, -1, -1, 11, -1, -1, -1);
  const I four = spread(p);
  return {shuffled(four, blue_green), shuffled(four, red)};
}

RTSEG_INLINE I weighted(const Pixels& pixels, const YuvWeights& weights) {
  const I blue_green = I{} + ((weights.blue & 0xffff) | (int)((unsigned)weights.green << 16));
  const I red = I{} + (weights.red & 0xffff);
  return multiplied(pixels.blue_green, blue_green) + multiplied(pixels.red, red);
}

// Blocks of kLanes columns of two rows, as far as whole vectors can be read; the columns done.
int convert_blocks(const Row& row, int width) {
  int x = 0;
  // kLanes pixels are read as 4 * kLanes bytes.
  for (; 3 * x + 4 * kLanes <= 3 * width; x += kLanes) {
    const Pixels upper = load_pixels(row.upper + 3 * x), lower = load_pixels(row.lower + 3 * x);
    store_bytes(row.luma_upper + x, (weighted(upper, kLuma) + kLumaOffset) >> 15);
    store_bytes(row.luma_lower + x, (weighted(lower, kLuma) + kLumaOffset) >> 15);
    const Pixels both = {added(upper.blue_green, lower.blue_green), added(upper.red, lower.red)};
    store_even_bytes(row.u + x / 2, (folded(weighted(both, kChromaU)) + kChromaOffset) >> 17);
    store_even_bytes(row.v + x / 2, (folded(weighted(both, kChromaV)) + kChromaOffset) >> 17);
  }
  return x;
}
#else
int convert_blocks(const Row&, int) { return 0; }
#endif

// Columns from x on, one by one.
void luma_row(const std::uint8_t* __restrict__ in, int x, int width,
              std::uint8_t* __restrict__ luma) {
  for (; x < width; ++x) {
    const int sum =
        in[3 * x] * kLuma.blue + in[3 * x + 1] * kLuma.green + in[3 * x + 2] * kLuma.red;
    luma[x] = (std::uint8_t)((sum + kLumaOffset) >> 15);
  }
}

void chroma_row(const Row& row, int x, int width, const YuvWeights& weights,
                std::uint8_t* __restrict__ chroma) {
  const std::uint8_t *a = row.upper, *b = row.lower;
  for (; x < width; x += 2) {
    const int blue = a[3 * x] + a[3 * x + 3] + b[3 * x] + b[3 * x + 3];
    const int green = a[3 * x + 1] + a[3 * x + 4] + b[3 * x + 1] + b[3 * x + 4];
    const int red = a[3 * x + 2] + a[3 * x + 5] + b[3 * x + 2] + b[3 * x + 5];
    const int sum = blue * weights.blue + green * weights.green + red * weights.red;
    chroma[x / 2] = (std::uint8_t)((sum + kChromaOffset) >> 17);
  }
}

}  // namespace

void to_yuv420(const YuvJob& job) {
  for (int y = 0; y < job.height; y += 2) {
    const std::uint8_t* upper = job.bgr + y * job.stride;
    std::uint8_t* luma = job.luma + y * job.luma_stride;
    const Row row = {upper, upper + job.stride, luma, luma + job.luma_stride,
                     job.u + y / 2 * job.u_stride, job.v + y / 2 * job.v_stride};
    const int x = convert_blocks(row, job.width);
    luma_row(row.upper, x, job.width, row.luma_upper);
    luma_row(row.lower, x, job.width, row.luma_lower);
    chroma_row(row, x, job.width, kChromaU, row.u);
    chroma_row(row, x, job.width, kChromaV, row.v);
  }
}

}  // namespace RTSEG_ISA
}  // namespace rtseg

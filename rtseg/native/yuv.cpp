// BGR to 4:2:0 for the video encoder, and a decoder's 4:2:0 to BGR. The arithmetic is that of
// reference.to_yuv420 (15-bit coefficients of BT.601, limited range, chroma from the sum of 2 x 2
// pixels) and of reference.yuv420_to_bgr (20-bit coefficients, chroma the same for 2 x 2 pixels).

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

// --- 4:2:0 to BGR ---

RTSEG_INLINE std::uint8_t level(int sum) {
  const int value = sum >> 20;
  return (std::uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

#if defined(__AVX2__)
#if defined(__AVX512F__)
RTSEG_INLINE I packed16(I a, I b) { return (I)_mm512_packs_epi32((__m512i)a, (__m512i)b); }
RTSEG_INLINE I packed8(I a, I b) { return (I)_mm512_packus_epi16((__m512i)a, (__m512i)b); }
// The first 12 bytes of each 128 bits, side by side.
RTSEG_INLINE void store_pixels(std::uint8_t* out, I v) {
  const I at = {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15};
  _mm512_mask_storeu_epi32(out, 0xfff, (__m512i)permute((F)v, at));
}
// kLanes bytes as numbers, what is above `black` of them.
RTSEG_INLINE I above(const std::uint8_t* p, __m128i black) {
  const __m128i bytes = _mm_subs_epu8(_mm_loadu_si128((const __m128i*)p), black);
  return (I)_mm512_maskz_cvtepu8_epi32(0xffff, bytes);
}
constexpr I kLowTwice = {0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7};
#else
RTSEG_INLINE I packed16(I a, I b) { return (I)_mm256_packs_epi32((__m256i)a, (__m256i)b); }
RTSEG_INLINE I packed8(I a, I b) { return (I)_mm256_packus_epi16((__m256i)a, (__m256i)b); }
RTSEG_INLINE void store_pixels(std::uint8_t* out, I v) {
  const I at = {0, 1, 2, 4, 5, 6, 3, 7};
  const I pixels = (I)permute((F)v, at);
  __builtin_memcpy(out, &pixels, 24);
}
RTSEG_INLINE I above(const std::uint8_t* p, __m128i black) {
  const __m128i bytes = _mm_subs_epu8(_mm_loadl_epi64((const __m128i*)p), black);
  return (I)_mm256_cvtepu8_epi32(bytes);
}
constexpr I kLowTwice = {0, 0, 1, 1, 2, 2, 3, 3};
#endif

// Blocks of 2 * kLanes columns of a row; the columns done.
int bgr_blocks(const YuvPicture& picture, const std::uint8_t* y, const std::uint8_t* u,
               const std::uint8_t* v, std::uint8_t* bgr) {
  // In 128 bits, `blue_green` holds four blues of each half, then the greens; `red` the reds.
  const __m128i first = _mm_setr_epi8(0, 8, -1, 1, 9, -1, 2, 10, -1, 3, 11, -1, -1, -1, -1, -1);
  const __m128i second = _mm_setr_epi8(4, 12, -1, 5, 13, -1, 6, 14, -1, 7, 15, -1, -1, -1, -1, -1);
  const __m128i first_red = _mm_setr_epi8(-1, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, -1, -1);
  const __m128i second_red =
      _mm_setr_epi8(-1, -1, 4, -1, -1, 5, -1, -1, 6, -1, -1, 7, -1, -1, -1, -1);
  const I twice[2] = {kLowTwice, kLowTwice + kLanes / 2};
  const __m128i black = _mm_set1_epi8((char)picture.black), none = _mm_setzero_si128();
  const I luma = I{} + picture.luma, red_v = I{} + picture.red_v, green_u = I{} + picture.green_u;
  const I green_v = I{} + picture.green_v, blue_u = I{} + picture.blue_u;
  const int width = picture.width;
  int x = 0;
  for (; x + 2 * kLanes <= width; x += 2 * kLanes) {
    const I low_u = above(u + x / 2, none) - 128, low_v = above(v + x / 2, none) - 128;
    const I of_blue = low_u * blue_u, of_red = low_v * red_v;
    const I of_green = low_u * green_u + low_v * green_v;
    I blue[2], green[2], red[2];
    for (int k = 0; k < 2; ++k) {
      const I grey = above(y + x + k * kLanes, black) * luma + (1 << 19);
      blue[k] = (grey + (I)permute((F)of_blue, twice[k])) >> 20;
      green[k] = (grey + (I)permute((F)of_green, twice[k])) >> 20;
      red[k] = (grey + (I)permute((F)of_red, twice[k])) >> 20;
    }
    const I blue_green = packed8(packed16(blue[0], blue[1]), packed16(green[0], green[1]));
    const I only_red = packed8(packed16(red[0], red[1]), I{});
    std::uint8_t* const out = bgr + 3 * x;
    store_pixels(out, shuffled(blue_green, first) | shuffled(only_red, first_red));
    store_pixels(out + 3 * kLanes, shuffled(blue_green, second) | shuffled(only_red, second_red));
  }
  return x;
}
#else
// In loops that a compiler turns into vectors, on ARM down to the interleaved stores.
int bgr_blocks(const YuvPicture& picture, const std::uint8_t* __restrict__ y,
               const std::uint8_t* __restrict__ u, const std::uint8_t* __restrict__ v,
               std::uint8_t* __restrict__ bgr) {
  constexpr int kBlock = 32;
  const int black = picture.black, luma = picture.luma, red_v = picture.red_v;
  const int green_u = picture.green_u, green_v = picture.green_v, blue_u = picture.blue_u;
  const int width = picture.width;
  int x = 0;
  for (; x + kBlock <= width; x += kBlock) {
    int low_u[kBlock], low_v[kBlock];
    for (int i = 0; i < kBlock / 2; ++i) {
      low_u[2 * i] = low_u[2 * i + 1] = u[x / 2 + i] - 128;
      low_v[2 * i] = low_v[2 * i + 1] = v[x / 2 + i] - 128;
    }
    std::uint8_t blue[kBlock], green[kBlock], red[kBlock];
    for (int i = 0; i < kBlock; ++i) {
      const int above_black = y[x + i] - black;
      const int grey = (above_black > 0 ? above_black : 0) * luma + (1 << 19);
      blue[i] = level(grey + low_u[i] * blue_u);
      green[i] = level(grey + low_u[i] * green_u + low_v[i] * green_v);
      red[i] = level(grey + low_v[i] * red_v);
    }
    std::uint8_t* __restrict__ const out = bgr + 3 * x;
    for (int i = 0; i < kBlock; ++i) {
      out[3 * i] = blue[i], out[3 * i + 1] = green[i], out[3 * i + 2] = red[i];
    }
  }
  return x;
}
#endif

}  // namespace

void yuv420_to_bgr(const YuvPicture& picture, std::uint8_t* bgr) {
  for (int row = 0; row < picture.height; ++row) {
    const std::uint8_t* const y = picture.y + row * picture.y_stride;
    const std::uint8_t* const u = picture.u + row / 2 * picture.u_stride;
    const std::uint8_t* const v = picture.v + row / 2 * picture.v_stride;
    for (int x = bgr_blocks(picture, y, u, v, bgr); x < picture.width; ++x) {
      const int low_u = u[x / 2] - 128, low_v = v[x / 2] - 128;
      const int above_black = y[x] - picture.black;
      const int grey = (above_black > 0 ? above_black : 0) * picture.luma + (1 << 19);
      bgr[3 * x] = level(grey + low_u * picture.blue_u);
      bgr[3 * x + 1] = level(grey + low_u * picture.green_u + low_v * picture.green_v);
      bgr[3 * x + 2] = level(grey + low_v * picture.red_v);
    }
    bgr += (std::size_t)3 * picture.width;
  }
}

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

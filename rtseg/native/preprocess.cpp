// Bilinear resize of uint8 in the fixed point of OpenCV's INTER_LINEAR, to the bit, so that a
// network sees the same picture whatever prepared it: see reference.resize. With weights of 11 bits,
//     upper = (a * wx0 + b * wx1) >> 4            lower = the same one row below
//     value = ((upper * wy0 >> 16) + (lower * wy1 >> 16) + 2) >> 2
// and then value * scale + shift, each rounded to float32. Both intermediate rows fit 16 bits.
//
// Each source row is combined along x once and kept while the output rows need it.

#include "preprocess.h"

#include "simd.h"

namespace rtseg {
namespace RTSEG_ISA {
namespace {

// The state of one resize.
struct Resize {
  const PreprocessJob& job;
  std::uint8_t* picks;  // see lay_out_picks
  bool apart;           // two neighbouring outputs may be further apart than one load of 16 bytes
};

#if defined(__AVX2__)
// Vectors take two outputs from 16 bytes: `even` holds the first two of every four outputs, `odd` the
// last two. Shuffled by `picks`, each leaves the two bytes of one channel of its outputs, as 16 bits
// each, and zeros where the other vector's belong.
#if defined(__AVX512F__)
using Bytes = __m512i;
RTSEG_INLINE Bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
#else
using Bytes = __m256i;
RTSEG_INLINE Bytes load_bytes(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
#endif

// Per block of kLanes outputs, the shuffle of its `even` and that of its `odd` vector, for blue.
void lay_out_picks(const Resize& resize) {
  const std::int32_t* first = resize.job.columns.first;
  for (int x = 0; x + kLanes <= resize.job.width; x += kLanes) {
    std::uint8_t* const block = resize.picks + 8 * x;
    for (int i = 0; i < 8 * kLanes; ++i) block[i] = 0x80;  // picks a zero, and so does 0x82
    for (int k = 0; k < kLanes; ++k) {
      const int distance = resize.apart ? 8 : 3 * (first[x + (k | 1)] - first[x + (k & ~1)]);
      const int at = k % 2 == 0 ? 0 : distance, vector = k / 2 % 2;
      std::uint8_t* const pick = block + 4 * kLanes * vector + 4 * k;
      pick[0] = (std::uint8_t)at;
      pick[2] = (std::uint8_t)(at + 3);
    }
  }
}

// 16 bytes that hold the pixels of two outputs: as they lie, or 8 from each.
template <bool kApart>
RTSEG_INLINE __m128i two_outputs(const std::uint8_t* in, const std::int32_t* first) {
  const __m128i both = _mm_loadu_si128((const __m128i*)(in + 3 * first[0]));
  if (!kApart) return both;
  return _mm_unpacklo_epi64(both, _mm_loadl_epi64((const __m128i*)(in + 3 * first[1])));
}

template <bool kApart>
RTSEG_INLINE Bytes outputs(const std::uint8_t* in, const std::int32_t* first) {
  const __m256i low = _mm256_inserti128_si256(
      _mm256_castsi128_si256(two_outputs<kApart>(in, first)), two_outputs<kApart>(in, first + 4), 1);
#if defined(__AVX512F__)
  const __m256i high =
      _mm256_inserti128_si256(_mm256_castsi128_si256(two_outputs<kApart>(in, first + 8)),
                              two_outputs<kApart>(in, first + 12), 1);
  return _mm512_maskz_inserti64x4(0xff, _mm512_castsi256_si512(low), high, 1);
#else
  return low;
#endif
}

RTSEG_INLINE Bytes picked(Bytes even, Bytes odd, Bytes pick_even, Bytes pick_odd) {
#if defined(__AVX512F__)
  return _mm512_or_si512(_mm512_shuffle_epi8(even, pick_even), _mm512_shuffle_epi8(odd, pick_odd));
#else
  return _mm256_or_si256(_mm256_shuffle_epi8(even, pick_even), _mm256_shuffle_epi8(odd, pick_odd));
#endif
}

// Pairs of 16-bit numbers, multiplied and added.
RTSEG_INLINE I weighted(Bytes pairs, Bytes weights) {
#if defined(__AVX512F__)
  return (I)_mm512_madd_epi16(pairs, weights);
#else
  return (I)_mm256_madd_epi16(pairs, weights);
#endif
}

// Whole blocks of a row, as far as the 16 bytes of each load lie inside it; the number of outputs.
template <bool kApart>
int combine_blocks(const Resize& resize, const std::uint8_t* __restrict__ in,
                   std::int16_t* __restrict__ out) {
  typedef std::uint8_t Picks __attribute__((vector_size(kLanes * 4)));
  typedef std::int16_t Shorts __attribute__((vector_size(kLanes * 2)));
  const ResizeTaps& at = resize.job.columns;
  const int width = resize.job.width;
  int x = 0;
  for (; x + kLanes <= width && at.first[x + kLanes - 1] + 6 <= resize.job.src_width; x += kLanes) {
    const Bytes even = outputs<kApart>(in, at.first + x);
    const Bytes odd = outputs<kApart>(in, at.first + x + 2);
    const Bytes weights = load_bytes(at.weights + x);
    Picks pick_even = load<Picks>(resize.picks + 8 * x);
    Picks pick_odd = load<Picks>(resize.picks + 8 * x + 4 * kLanes);
    for (int c = 2; c >= 0; --c) {  // blue, green, red
      const Bytes pairs = picked(even, odd, (Bytes)pick_even, (Bytes)pick_odd);
      store(out + c * width + x, __builtin_convertvector(weighted(pairs, weights) >> 4, Shorts));
      pick_even += 1, pick_odd += 1;
    }
  }
  return x;
}
#else
void lay_out_picks(const Resize&) {}
template <bool kApart>
int combine_blocks(const Resize&, const std::uint8_t*, std::int16_t*) {
  return 0;
}
#endif

// Along x: (src_width, 3) uint8 to three rows of `width` numbers, R, G, B.
void combine_columns(const Resize& resize, const std::uint8_t* in, std::int16_t* out) {
  const ResizeTaps& at = resize.job.columns;
  const int width = resize.job.width;
  int x = resize.apart ? combine_blocks<true>(resize, in, out)
                       : combine_blocks<false>(resize, in, out);
  for (; x < width; ++x) {
    const std::uint8_t *a = in + 3 * at.first[x], *b = in + 3 * at.second[x];
    const int weight0 = at.weights[x] & 0xffff, weight1 = at.weights[x] >> 16;
    for (int c = 0; c < 3; ++c) {
      out[c * width + x] = (std::int16_t)((a[2 - c] * weight0 + b[2 - c] * weight1) >> 4);
    }
  }
}

// Along y, and normalised: one output row of one plane.
void combine_rows(const std::int16_t* __restrict__ upper, const std::int16_t* __restrict__ lower,
                  int weight0, int weight1, float scale, float shift, int width,
                  float* __restrict__ out) {
  const std::int16_t w0 = (std::int16_t)weight0, w1 = (std::int16_t)weight1;
  for (int x = 0; x < width; ++x) {
    const std::int16_t u = (std::int16_t)(upper[x] * w0 >> 16);
    const std::int16_t l = (std::int16_t)(lower[x] * w1 >> 16);
    out[x] = (float)(std::int16_t)((std::int16_t)(u + l + 2) >> 2) * scale + shift;
  }
}

void resize(const PreprocessJob& job, std::int16_t* scratch) {
  Resize state{job, (std::uint8_t*)(scratch + 6 * job.width), false};
  for (int x = 0; x + 1 < job.width; x += 2) {
    if (job.columns.first[x + 1] - job.columns.first[x] > 3) state.apart = true;
  }
  lay_out_picks(state);
  const std::size_t plane = (std::size_t)job.height * job.width;
  std::int16_t* rows[2] = {scratch, scratch + 3 * job.width};
  int held[2] = {-1, -1};  // the source rows in `rows`
  for (int y = 0; y < job.height; ++y) {
    const int wanted[2] = {job.rows.first[y], job.rows.second[y]};
    if (held[1] == wanted[0]) {
      std::int16_t* const row = rows[0];
      rows[0] = rows[1], rows[1] = row;
      held[1] = held[0], held[0] = wanted[0];
    }
    for (int k = 0; k < 2; ++k) {
      if (held[k] == wanted[k]) continue;
      combine_columns(state, job.bgr + wanted[k] * job.stride, rows[k]);
      held[k] = wanted[k];
    }
    for (int c = 0; c < 3; ++c) {
      combine_rows(rows[0] + c * job.width, rows[1] + c * job.width,
                   job.rows.weights[y] & 0xffff, job.rows.weights[y] >> 16, job.scale[c],
                   job.shift[c], job.width, job.planes + c * plane + (std::size_t)y * job.width);
    }
  }
}

void normalise(const PreprocessJob& job) {
  const std::size_t plane = (std::size_t)job.height * job.width;
  const float r1 = job.scale[0], g1 = job.scale[1], b1 = job.scale[2];
  const float r0 = job.shift[0], g0 = job.shift[1], b0 = job.shift[2];
  for (int y = 0; y < job.height; ++y) {
    const std::uint8_t* __restrict__ in = job.bgr + y * job.stride;
    float* __restrict__ red = job.planes + (std::size_t)y * job.width;
    float* __restrict__ green = red + plane;
    float* __restrict__ blue = green + plane;
    for (int x = 0; x < job.width; ++x) {
      red[x] = (float)in[3 * x + 2] * r1 + r0;
      green[x] = (float)in[3 * x + 1] * g1 + g0;
      blue[x] = (float)in[3 * x] * b1 + b0;
    }
  }
}

}  // namespace

void preprocess(const PreprocessJob& job, std::int16_t* scratch) {
  if (job.height == job.src_height && job.width == job.src_width) {
    normalise(job);
  } else {
    resize(job, scratch);
  }
}

}  // namespace RTSEG_ISA
}  // namespace rtseg

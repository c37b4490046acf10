// One row of logits in working memory: float32 values of all classes, and the winner per pixel.
#pragma once

#include "simd.h"
#include "upsample_argmax.h"

namespace rtseg {
namespace RTSEG_ISA {
namespace {

// What is known of one row of logits: a padded float32 copy, and per pixel the winner.
struct Row {
  int index;               // which row of the logits, or -1
  float* values;           // classes x row_stride
  float* best;             // the largest logit
  float* lead;             // by how much it exceeds all classes before it
  std::int32_t* label;     // its class, the lowest in a tie
  std::int32_t* unsafe;    // -1 where a logit is NaN, infinite or very large
};

constexpr float kLarge = 0x1p120f;  // from here on sums of logits may overflow

// Exact for every half, also without F16C: the exponent is moved by a multiplication.
inline void half_to_float(const std::uint16_t* in, float* out, int n) {
  int i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm_loadu_si128((const __m128i*)(in + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
  }
  for (; i < n; ++i) out[i] = _cvtsh_ss(in[i]);
#elif defined(__aarch64__)
  for (; i < n; ++i) {
    __fp16 half;
    __builtin_memcpy(&half, in + i, 2);
    out[i] = half;
  }
#else
  for (; i < n; ++i) {
    const std::uint32_t magnitude = in[i] & 0x7fffu, sign = (std::uint32_t)(in[i] & 0x8000u) << 16;
    std::uint32_t bits = magnitude << 13;
    float scaled;
    __builtin_memcpy(&scaled, &bits, 4);
    scaled *= 0x1p112f;
    __builtin_memcpy(&bits, &scaled, 4);
    if (magnitude >= 0x7c00u) bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
    bits |= sign;
    __builtin_memcpy(out + i, &bits, 4);
  }
#endif
}

// Reads row `y` of all classes as float32, padded to `row_stride` with its last value.
inline void copy_values(const Logits& logits, int y, int row_stride, float* values) {
  const std::ptrdiff_t step = logits.stride_column;
  const std::size_t element = logits.half ? 2 : 4;
  for (int k = 0; k < logits.classes; ++k, values += row_stride) {
    const std::ptrdiff_t first = k * logits.stride_class + y * logits.stride_row;
    if (!logits.half) {
      const float* in = (const float*)logits.data + first;
      if (step == 1) __builtin_memcpy(values, in, sizeof(float) * logits.width);
      else for (int x = 0; x < logits.width; ++x) values[x] = in[x * step];
    } else {
      const std::uint16_t* in = (const std::uint16_t*)logits.data + first;
      if (step == 1) half_to_float(in, values, logits.width);
      else for (int x = 0; x < logits.width; ++x) half_to_float(in + x * step, values + x, 1);
    }
    for (int x = logits.width; x < row_stride; ++x) values[x] = values[logits.width - 1];
    if (step == 1 && y + 1 < logits.height) {
      // Class planes lie too far apart for the processor to foresee the next row by itself.
      const char* next = (const char*)logits.data + (first + logits.stride_row) * element;
      for (std::size_t at = 0; at < logits.width * element; at += 64) {
        __builtin_prefetch(next + at, 0, 2);
      }
    }
  }
}

// The argmax of a row at low resolution, and what the proof in upsample_argmax.cpp needs.
inline void find_winners(const Row& row, int classes, int row_stride) {
  constexpr int kTogether = 2;  // vectors side by side, so that the comparisons overlap
  const F infinity = F{} + __builtin_inff();
  for (int x = 0; x < row_stride; x += kTogether * kLanes) {
    const float* values = row.values + x;
    F best[kTogether], before[kTogether];
    I label[kTogether], safe[kTogether];
    for (int i = 0; i < kTogether; ++i) {
      best[i] = load<F>(values + i * kLanes);
      before[i] = -infinity;
      label[i] = I{};
      safe[i] = absolute(best[i]) <= kLarge;
    }
    for (int k = 1; k < classes; ++k) {
      values += row_stride;
      for (int i = 0; i < kTogether; ++i) {
        const F v = load<F>(values + i * kLanes);
        const I wins = v > best[i];
        before[i] = wins ? best[i] : before[i];
        label[i] = wins ? I{} + k : label[i];
        best[i] = wins ? v : best[i];
        safe[i] &= absolute(v) <= kLarge;
      }
    }
    for (int i = 0; i < kTogether; ++i) {
      const int at = x + i * kLanes;
      store(row.best + at, best[i]);
      store(row.lead + at, best[i] - before[i]);
      store(row.label + at, label[i]);
      store(row.unsafe + at, ~safe[i]);
    }
  }
}

}  // namespace
}  // namespace RTSEG_ISA
}  // namespace rtseg

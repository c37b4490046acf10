// Loops over pixels that OpenCV needs several passes for, or waits in.
//
// pixels.cpp is compiled once per instruction set, like upsample_argmax.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rtseg {

// (height, width, 3) uint8 BGR to (3, height, width) float32 RGB: value * scale + shift. Rows of
// the input lie `stride` bytes apart; scale and shift are three numbers each, RGB.
using ToPlanes = void (*)(const std::uint8_t* bgr, std::ptrdiff_t stride, int height, int width,
                          const float* scale, const float* shift, float* planes);

// Adds to counts (256) how often each of n labels occurs.
using CountLabels = void (*)(const std::uint8_t* labels, std::size_t n, std::int64_t* counts);

#define RTSEG_DECLARE_PIXELS(isa)                                                              \
  namespace isa {                                                                              \
  void to_planes(const std::uint8_t*, std::ptrdiff_t, int, int, const float*, const float*,    \
                 float*);                                                                      \
  void count_labels(const std::uint8_t*, std::size_t, std::int64_t*);                          \
  }
RTSEG_DECLARE_PIXELS(baseline)
RTSEG_DECLARE_PIXELS(avx2)
RTSEG_DECLARE_PIXELS(avx512)
#undef RTSEG_DECLARE_PIXELS

}  // namespace rtseg

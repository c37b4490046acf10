// Loops over pixels that OpenCV needs several passes for, or waits in.
//
// pixels.cpp is compiled once per instruction set, like upsample_argmax.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rtseg {

// (pixels, 3) uint8: value * rest + the colour of the pixel's label, rounded to the nearest, halves to
// even. `colours` is (256, 4), already multiplied by the opacity, the fourth of no meaning; sums lie
// in 0..255. `out` does not overlap `bgr`.
using Blend = void (*)(const std::uint8_t* bgr, const std::uint8_t* labels, const float* colours,
                       float rest, std::size_t pixels, std::uint8_t* out);

// Adds to counts (256) how often each of n labels occurs.
using CountLabels = void (*)(const std::uint8_t* labels, std::size_t n, std::int64_t* counts);

#define RTSEG_DECLARE_PIXELS(isa)                                                              \
  namespace isa {                                                                              \
  void blend(const std::uint8_t*, const std::uint8_t*, const float*, float, std::size_t,       \
             std::uint8_t*);                                                                   \
  void count_labels(const std::uint8_t*, std::size_t, std::int64_t*);                          \
  }
RTSEG_DECLARE_PIXELS(baseline)
RTSEG_DECLARE_PIXELS(avx2)
RTSEG_DECLARE_PIXELS(avx512)
#undef RTSEG_DECLARE_PIXELS

}  // namespace rtseg
